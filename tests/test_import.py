"""Importing: fast, and clear about what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import fastsoftmax as fsm


def run(program: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=options.get("cwd")
    )


def test_without_the_compiled_part(tmp_path: Path) -> None:
    source = Path(fsm.__file__).parent
    ignore = shutil.ignore_patterns("_native*.so", "_native*.pyd", "__pycache__")
    shutil.copytree(source, tmp_path / "fastsoftmax", ignore=ignore)
    done = run("import fastsoftmax", cwd=str(tmp_path))
    assert "the compiled part of fastsoftmax is missing" in done.stderr
    assert "pip install" in done.stderr


def test_what_is_imported() -> None:
    """Nothing but NumPy and ourselves: that is what keeps it fast."""
    program = (
        "import sys, numpy; before = set(sys.modules); import fastsoftmax;"
        "print({m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    done = run(program)
    assert eval(done.stdout) <= {"fastsoftmax", "numpy", "__future__"}, done


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("fastsoftmax") == fsm.__version__
