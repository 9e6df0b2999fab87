"""Threads change nothing: Python threads, any number of OpenMP threads, a fork in between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FUNCTIONS, assert_same_bits, every_function, every_map

import fastsoftmax as fsm

HERE = Path(__file__).resolve()

# few long rows, many short ones, some of each; enough work for more than one thread
SHAPES = [
    ((3, 700_000), -1),
    ((40_000, 40), -1),
    ((600, 2500), -1),
    ((2500, 600), 0),
    ((1_500_001,), 0),
    ((40_000, 30), 0),
    ((150_000, 3), 0),
    ((50_000, 3, 7), 1),
    ((3, 50, 1700), 1),
    ((6, 500, 400), (0, 2)),
]


def run(program: str, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **variables},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


WRITE = """
import hashlib, numpy as np, fastsoftmax as fsm
from test_threads import SHAPES, FUNCTIONS
for dtype in (np.float32, np.float64, np.float16):
    for shape, axis in SHAPES:
        x = np.random.default_rng(5).standard_normal(shape).astype(dtype)
        where = x > -1
        for name, function in FUNCTIONS.items():
            for arguments in ({}, {"where": where}):
                digest = hashlib.sha256(function(x, axis=axis, **arguments).tobytes()).hexdigest()
                print(name, shape, axis, np.dtype(dtype), *arguments, digest)
        axes = axis if isinstance(axis, tuple) else (axis,)
        batch = tuple(m for i, m in enumerate(shape) if i not in [a % len(shape) for a in axes])
        targets = np.random.default_rng(8).integers(0, x.size // max(1, int(np.prod(batch))), batch)
        for smoothing in (0.0, 0.1):
            loss, grad = fsm.cross_entropy(
                x, targets, axis, label_smoothing=smoothing, return_grad=True
            )
            print("loss", loss, hashlib.sha256(grad.tobytes()).hexdigest())
    layer = fsm.Softmax()
    layer(np.random.default_rng(6).standard_normal((300, 64)).astype(dtype))
    one = fsm.softmax(np.random.default_rng(6).standard_normal((2, 700)).astype(dtype))
    print("jacobian of long rows", hashlib.sha256(fsm.softmax_jacobian(one).tobytes()).hexdigest())
    one = fsm.softmax(np.random.default_rng(6).standard_normal(900_000).astype(dtype))
    for name in ("softmax_vjp", "log_softmax_vjp", "log_softmax_jvp"):
        print(name, hashlib.sha256(getattr(fsm, name)(one, one).tobytes()).hexdigest())
    second = fsm.softmax_vjp_derivative(one, one, one[::-1].copy())
    print("second", hashlib.sha256(second.tobytes()).hexdigest())
    values = fsm.SoftmaxJacobian(fsm.softmax(one[:700])).eigvalsh()
    print("eigenvalues", hashlib.sha256(values.tobytes()).hexdigest())
    print("jacobian", np.dtype(dtype), hashlib.sha256(layer.backward().tobytes()).hexdigest())
    product = layer.backward(np.random.default_rng(7).standard_normal((300, 64)).astype(dtype))
    print("product", np.dtype(dtype), hashlib.sha256(product.tobytes()).hexdigest())
"""


def test_any_number_of_openmp_threads_gives_the_same_bits() -> None:
    results = {n: run(WRITE, OMP_NUM_THREADS=n).splitlines() for n in ("1", "2", "3")}
    assert len(results["1"]) == 3 * (len(SHAPES) * (len(FUNCTIONS) * 2 + 2) + 8)
    for n in ("2", "3"):
        for serial, parallel in zip(results["1"], results[n], strict=True):
            assert serial == parallel, f"with {n} threads"


COUNT = """
import os, sys, numpy as np, fastsoftmax as fsm, threadpoolctl

def threads_started(shape, limit=None, axis=-1):
    x = np.zeros(shape, np.float32)
    before = len(os.listdir("/proc/self/task"))
    with threadpoolctl.threadpool_limits(limit, "openmp"):
        fsm.softmax_vjp(fsm.softmax(x, axis), x, axis)
    return len(os.listdir("/proc/self/task")) - before

print(*eval(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_how_many_threads_are_started() -> None:
    if "openmp" not in run("import fastsoftmax, threadpoolctl as t; print(t.threadpool_info())"):
        pytest.skip("this build has no OpenMP: one thread")

    def started(calls: str, threads: str) -> list[int]:
        return [int(n) for n in run(COUNT, calls, OMP_NUM_THREADS=threads).split()]

    large = "threads_started((2000, 1000))"
    assert started(f"[{large}, {large}]", "3") == [2, 0], "OMP_NUM_THREADS; started once"
    assert started(f"[{large}]", "1") == [0]
    assert started("[threads_started((60, 1000)), threads_started((1, 65_000))]", "3") == [0, 0]
    assert started("[threads_started((1, 70_000)), threads_started((1, 1_000_000))]", "3") == [1, 1]
    narrow = "threads_started((8000, 64), axis=0)"  # where lines of one would be read by the other
    assert started(f"[{narrow}, threads_started((500, 1024), axis=0)]", "3") == [0, 1]
    limited = large.replace("))", "), 1)")
    assert started(f"[{limited}, {large}]", "3") == [0, 2], "threadpoolctl"


@every_function
def test_python_threads_at_once(name: str, rng: np.random.Generator) -> None:
    """Eight threads start together, each on arrays of its own and on one that all read."""
    shared = rng.standard_normal((400, 1500)).astype(np.float32)
    own = [rng.standard_normal(s) for s in [(30, 50), (5000, 9), (2, 90_000), (300, 300)] * 2]
    expected_shared = FUNCTIONS[name](shared)
    expected_own = [FUNCTIONS[name](x) for x in own]
    start = threading.Barrier(len(own))

    def work(i: int) -> list[Any]:
        start.wait(timeout=60)
        return [(FUNCTIONS[name](own[i]), FUNCTIONS[name](shared)) for _ in range(5)]

    with ThreadPoolExecutor(len(own)) as pool:
        for i, rounds in enumerate(pool.map(work, range(len(own)))):
            for from_own, from_shared in rounds:
                assert_same_bits(from_own, expected_own[i])
                assert_same_bits(from_shared, expected_shared)


@every_map
def test_signals_stay_with_their_thread(name: str) -> None:
    """Each thread has its own np.errstate, and only the one with the bad row is told."""
    good, bad = np.zeros((300, 1000), np.float32), np.zeros((300, 1000), np.float32)
    bad[123, 45] = np.inf
    start = threading.Barrier(4)

    def work(x: np.ndarray) -> int:
        start.wait(timeout=60)
        raised = 0
        for _ in range(20):
            with np.errstate(invalid="raise"):
                try:
                    FUNCTIONS[name](x)
                except FloatingPointError:
                    raised += 1
        return raised

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, [good, bad, good, bad])) == [0, 20, 0, 20]


@every_map
def test_signals_of_other_openmp_threads_arrive(name: str) -> None:
    for row in (0, 19_999, 39_999):
        x = np.zeros((40_000, 40), np.float32)
        x[row, 7] = np.inf
        with pytest.raises(FloatingPointError, match="invalid"), np.errstate(invalid="raise"):
            FUNCTIONS[name](x)
        x[row] = np.nan
        with np.errstate(all="raise"):
            assert np.isnan(FUNCTIONS[name](x)).sum() == 40


FORK = """
import os, sys, numpy as np, fastsoftmax as fsm
x = np.random.default_rng(0).standard_normal((4000, 1000)).astype(np.float32)
tall = np.asfortranarray(x)
before = fsm.softmax(x), fsm.logsumexp(x), fsm.log_softmax(tall)
child = os.fork()
after = fsm.softmax(x), fsm.logsumexp(x), fsm.log_softmax(tall)
same = all((a == b).all() for a, b in zip(before, after))
if child == 0:
    alone = not os.path.exists("/proc/self/task") or len(os.listdir("/proc/self/task")) == 1
    os._exit(0 if same and alone else 3)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both are right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_after_a_parallel_call_finishes() -> None:
    assert "both are right" in run(FORK, OMP_NUM_THREADS="2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_within_a_thread_finishes() -> None:
    program = f"""
import threading
thread = threading.Thread(target=exec, args=({FORK!r}, {{}}))
thread.start()
thread.join()
"""
    assert "both are right" in run(program, OMP_NUM_THREADS="2")


def test_many_threads_and_one_row_each(rng: np.random.Generator) -> None:
    x = rng.standard_normal((64, 33))
    expected = fsm.softmax(x)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert_same_bits(np.stack(list(pool.map(fsm.softmax, x))), expected)
