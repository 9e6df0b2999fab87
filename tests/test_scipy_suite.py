"""SciPy's own tests pass with our functions in the place of SciPy's.

They run in a pytest of their own, in which this file is a plugin: see `pytest_configure`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

# Names of SciPy's tests that are not ours to pass, as regular expressions, and why
EXCEPTIONS = {
    r"test_wrap_radians": "tests a private helper for complex numbers",
    r"test_logsumexp_(b|b_zero|b_shape)\[": "weights (b=) are not offered",
    r"test_logsumexp_(sign|sign_zero|sign_shape|complex_sign)\[": "return_sign= is not offered",
    r"test_logsumexp_shape\[": "weights (b=) are not offered; see test_axes_layouts.py",
    r"test_dtypes_ab": "weights (b=) are not offered",
    r"test_dtypes_a\[.*complex": "complex numbers are refused",
    r"test_gh21610|test_gh21709": "complex numbers are refused",
    r"test_gh22601_infinite_elements\[.*(j|x\d|y\d)": "complex numbers are refused",
    r"test_no_writeback": "weights (b=) are not offered; tested in test_axes_layouts.py",
    r"test_device": "complex numbers and weights (b=)",
    r"test_gh22903": "weights (b=) are not offered",
    r"test_gh23548": "return_sign= is not offered",
}
EXPECTED = {
    "TestSoftmax": 5,
    "TestLogSoftmax": 10,
    "TestLogSumExp": 10,
}  # at least so many must have run


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin, before SciPy's test file is imported: its functions become ours."""
    import scipy.special
    from scipy._lib import _array_api

    import fastsoftmax as fsm

    def adapt(name: str) -> None:
        def adapter(x: Any, axis: Any = None, **arguments: Any) -> Any:
            return getattr(fsm, name)(x, axis=axis, **arguments)

        capabilities = _array_api.xp_capabilities_table
        capabilities[adapter] = capabilities[getattr(scipy.special, name)]
        setattr(scipy.special, name, adapter)

    for name in ("softmax", "log_softmax", "logsumexp"):
        adapt(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """As a plugin: the exceptions are left out, and one that names no test any more is an error."""
    left_out = [i for i in items if any(re.search(e, i.name) for e in EXCEPTIONS)]
    stale = [e for e in EXCEPTIONS if not any(re.search(e, i.name) for i in items)]
    if stale:
        raise pytest.UsageError(f"no such tests: {stale}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [i for i in items if i not in left_out]


def test_scipy_suite(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy", minversion="1.17")
    root = Path(scipy.__file__).parent
    tests = root / "special" / "tests" / "test_logsumexp.py"
    if not tests.exists():
        pytest.skip("this SciPy came without its tests")
    settings, report = tmp_path / "pytest.ini", tmp_path / "report.xml"
    settings.write_text("[pytest]\njunit_family = xunit2\n")
    here = Path(__file__)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SCIPY"))}
    search = [str(here.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        settings,
        "--rootdir",
        root,
        "--confcutdir",
        root,
    ]
    command += ["-p", here.stem, "-p", "no:cacheprovider", f"--junitxml={report}", tests]
    done = subprocess.run(
        [str(c) for c in command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = [c for c in ElementTree.parse(report).iter("testcase") if not len(c)]
    for group, count in EXPECTED.items():
        ran = [c for c in passed if c.get("classname", "").endswith(group)]
        assert len(ran) >= count, f"{group}: {len(ran)} tests ran"
