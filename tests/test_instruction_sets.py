"""Every instruction set is accurate, all agree bit by bit, impossible ones are refused.

FASTSOFTMAX_ISA is read once, at import: for each, this file runs itself as a program that writes
its results.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from helpers import FUNCTIONS, SIZES, assert_accurate, assert_same_bits, cast
from reference import FLOATS, Array
from test_accuracy import CASES, case

import fastsoftmax as fsm

NAMES = ("baseline", "avx2", "avx512", "neon")
AVAILABLE = list(fsm._native.available_isas())
HERE = Path(__file__).resolve()


def run(isa: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTSOFTMAX_ISA": isa}
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )


def inputs() -> Iterator[tuple[str, Array, dict[str, Any]]]:
    """What is computed beside the cases of the accuracy tests: a title, x and the arguments."""
    rng = np.random.default_rng(11)
    for dtype in FLOATS:
        for n in SIZES:
            x = cast(3 * rng.standard_normal((3, n)), dtype)
            yield f"{dtype} of {n}", x, {}
            yield f"{dtype} of {n}, axis 0", cast(rng.standard_normal((n, 5)), dtype), {"axis": 0}
            where = rng.random(x.shape) < 0.7
            yield f"{dtype} of {n}, where", x, {"where": where}
            yield f"{dtype} of {n}, hot", x, {"temperature": rng.choice([0.25, 1, 8], (3, 1))}
        special = np.tile(rng.standard_normal(21), (64, 1))
        special[np.arange(63), np.arange(63) % 21] = np.repeat([np.nan, np.inf, -np.inf], 21)
        special[63] = -np.inf
        yield f"{dtype}, special", cast(special, dtype), {}


def side_by_side() -> Iterator[tuple[str, Array]]:
    """Rows of a few elements, whole vectors of them and more, and, along axis 0, few columns."""
    rng = np.random.default_rng(12)
    for dtype in FLOATS:
        for n in range(2, 25):
            yield f"{dtype}, 67 of {n}", cast(3 * rng.standard_normal((67, n)), dtype)


def accepts(name: str, arguments: dict[str, Any]) -> bool:
    return name != "logsumexp" or "temperature" not in arguments


def write(path: str) -> None:
    """The program: all results, as arrays that need only NumPy to be read."""
    results: dict[str, Array] = {"isa": np.array(fsm._native.isa())}

    def add(key: str, value: Any) -> None:
        value = np.asarray(value)
        results[key] = value.astype(np.float32) if value.dtype.itemsize == 2 else value
        # MMX instructions would take the registers of long doubles
        assert np.longdouble(value.size or 1) / 3 > 0, key

    with np.errstate(all="ignore"):
        for name, function in FUNCTIONS.items():
            for title, x, arguments in inputs():
                if accepts(name, arguments):
                    add(f"{name}: {title}", function(x, **arguments))
            for title in CASES:
                for dtype in FLOATS:
                    x = cast(
                        CASES[title](np.random.default_rng(list(CASES).index(title)), dtype), dtype
                    )
                    add(f"{name}: {title}, {dtype}", function(x))
        for title, x, arguments in inputs():
            if not arguments:
                targets = np.arange(len(x)) % x.shape[1]
                q = fsm.softmax(x[:, ::-1].copy())
                w = np.linspace(0, 1, x.shape[1])
                for kind, t, options in (
                    ("indices", targets, {}),
                    ("smoothed", targets, {"label_smoothing": 0.1, "weight": w, "z_loss": 0.01}),
                    ("probabilities", q, {"weight": w}),
                ):
                    loss, grad = fsm.cross_entropy(
                        x, t, reduction="none", return_grad=True, **options
                    )
                    add(f"loss, {kind}: {title}", loss)
                    add(f"gradient of the loss, {kind}: {title}", grad)
                add(f"mean loss: {title}", fsm.cross_entropy(x, targets))
            if not arguments and x.shape[1] <= 100:
                layer = fsm.Softmax()
                layer(x)
                add(f"jacobian: {title}", layer.backward())
                add(f"product: {title}", layer.backward(x[::-1].copy()))
                layer(x, normalization=False)
                add(f"plain: {title}", layer.output)
                p, v, u = fsm.softmax(x), x[::-1].copy(), x[:, ::-1].copy()
                add(f"derivative of the product: {title}", fsm.softmax_vjp_derivative(p, v, u))
                add(f"product of the logarithm: {title}", fsm.log_softmax_vjp(p, v))
                add(f"change of the logarithm: {title}", fsm.log_softmax_jvp(p, v))
                add(f"jacobian of the logarithm: {title}", fsm.log_softmax_jacobian(p))
                add(f"eigenvalues: {title}", fsm.SoftmaxJacobian(p).eigvalsh())
                add(f"diagonal: {title}", fsm.SoftmaxJacobian(p).diagonal())
        for title, x in side_by_side():
            for axis in (-1, 0):
                p, v = fsm.softmax(x, axis), x[::-1].copy()
                add(f"softmax: {title}, axis {axis}", p)
                add(f"log_softmax: {title}, axis {axis}", fsm.log_softmax(x, axis))
                add(f"product: {title}, axis {axis}", fsm.softmax_vjp(p, v, axis))
                add(
                    f"product of the logarithm: {title}, axis {axis}",
                    fsm.log_softmax_vjp(p, v, axis),
                )
    np.savez(path, **results)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Array]]:
    found = {}
    for isa in AVAILABLE:
        path = tmp_path_factory.mktemp("isa") / f"{isa}.npz"
        done = run(isa, str(HERE), str(path))
        assert done.returncode == 0, done.stderr
        with np.load(path) as file:
            found[isa] = dict(file)
    return found


@pytest.mark.parametrize("isa", AVAILABLE)
def test_the_one_asked_for_is_used(isa: str, results: dict[str, dict[str, Array]]) -> None:
    assert str(results[isa]["isa"]) == isa


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[np.dtype, Any]]:
    """What every function should give for every input, computed once for all instruction sets."""
    table: dict[str, tuple[np.dtype, Any]] = {}
    for title, x, arguments in inputs():
        for name, value in zip(FUNCTIONS, reference.everything(x, **arguments), strict=True):
            if accepts(name, arguments):
                table[f"{name}: {title}"] = (x.dtype, value)
    for title in CASES:
        for dtype in FLOATS:
            for name, value in case(title, dtype)[1].items():
                table[f"{name}: {title}, {dtype}"] = (dtype, value)
    return table


@pytest.mark.parametrize("isa", AVAILABLE)
def test_accuracy(
    isa: str, results: dict[str, dict[str, Array]], expected: dict[str, tuple[np.dtype, Any]]
) -> None:
    assert len(expected) > 1000
    for key, (dtype, value) in expected.items():
        got = results[isa][key]
        got = got.astype(dtype) if dtype.itemsize == 2 else got
        assert_accurate(key.split(":")[0], got, value, dtype, isa)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_all_give_the_same_bits(isa: str, results: dict[str, dict[str, Array]]) -> None:
    best = results[AVAILABLE[0]]
    assert results[isa].keys() == best.keys()
    for key in best.keys() - {"isa"}:
        try:
            assert_same_bits(results[isa][key], best[key])
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}") from None


@pytest.mark.parametrize("isa", AVAILABLE)
def test_invalid_is_signalled_only_for_invalid_rows(isa: str) -> None:
    program = """
import itertools, numpy as np, fastsoftmax as fsm
functions = (fsm.softmax, fsm.log_softmax, fsm.logsumexp)
for f, n, dtype in itertools.product(functions, (1, 5, 16, 33), "efdg"):
    x = np.zeros((3, n), dtype)
    with np.errstate(all="raise", under="ignore"):
        f(x)
        x[1, n // 2] = np.nan
        f(x)
        x[1, n // 2] = np.inf
        try:
            f(x)
            assert f is fsm.logsumexp
        except FloatingPointError:
            assert f is not fsm.logsumexp
"""
    done = run(isa, "-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", AVAILABLE)
def test_the_best_is_the_default(isa: str) -> None:
    assert isa in NAMES
    program = "import fastsoftmax._native as n; print(n.isa())"
    environment = {k: v for k, v in os.environ.items() if k != "FASTSOFTMAX_ISA"}
    command = [sys.executable, "-c", program]
    default = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    chosen = default.stdout.strip()
    assert chosen in AVAILABLE
    assert NAMES.index(isa) <= NAMES.index(chosen)


@pytest.mark.parametrize("isa", ["bogus", "avx9", *(n for n in NAMES if n not in AVAILABLE)])
def test_impossible_ones_are_refused(isa: str) -> None:
    done = run(isa, "-c", "import fastsoftmax")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError"), done.stderr
    assert isa in done.stderr
    assert "FASTSOFTMAX_ISA" in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("isa", [i for i in AVAILABLE if i != fsm._native.isa()])
def test_all_core_tests(isa: str) -> None:
    files = sorted(
        p.name for p in HERE.parent.glob("test_*.py") if p != HERE and "scipy" not in p.name
    )
    done = run(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-3000:]


if __name__ == "__main__":
    write(sys.argv[1])
