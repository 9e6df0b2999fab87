"""What this library promises about speed, and what holds on this machine.

    python benchmarks/goals.py                 prints a table
    python benchmarks/goals.py --rounds 21     of more rounds

Every line is a ratio, of medians in one process, the contenders taking turns: to a plain copy, to
the fastest peer that is installed, to ourselves along another axis. `n` is the length of the axis,
of float32 with 64 MiB in all where nothing else is said. (`benchmarks/grid.py` has the first goal:
faster than every peer in every cell.)
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import threadpoolctl

import fastsoftmax
from fastsoftmax import _bench

Measured = Iterator[tuple[str, float]]
IN_CACHE = [2, 3, 5, 10, 17, 33, 50, 100]
OUT_OF_CACHE = [1000, 4096, 32000, 131072]
LONGER = 4194304
PAUSE = 0.02  # before a call on two threads, those of the last one go to sleep


def shape(n: int) -> str:
    return f"{2**24 // n}x{n}"


def case_of(what: str, function: str = "softmax", axis: int = -1) -> _bench.Case:
    return _bench.make_case(what, function, "float32", axis, 1)


def over_limit(lengths: list[int], function: str, rounds: int) -> Measured:
    """To a copy of the same bytes; to a sum of them; to a fill of the Jacobian."""
    for n in lengths:
        what = f"{max(1, 2**24 // n**2)}x{n}" if function == "softmax_jacobian" else shape(n)
        seconds = _bench.medians(_bench.calls(case_of(what, function), []), rounds)
        yield what, seconds["fastsoftmax"] / seconds["copy"]


def over_peers(shapes: list[str], rounds: int) -> Measured:
    for what in shapes:
        seconds = _bench.medians(_bench.calls(case_of(what)), rounds)
        ours = seconds.pop("fastsoftmax")
        del seconds["copy"]
        yield what, ours / min(seconds.values(), default=np.nan)


def first_over_last(rounds: int) -> Measured:
    for n in [10, 100, *OUT_OF_CACHE, LONGER]:
        cases = {axis: case_of(shape(n), axis=axis) for axis in (0, -1)}
        calls = {str(axis): _bench.ours(case) for axis, case in cases.items()}
        seconds = _bench.medians(calls, rounds)
        yield shape(n), seconds["0"] / seconds["-1"]


def allocated_over_out(rounds: int) -> Measured:
    for n in [10, 1000, 32000]:
        case = case_of(shape(n))
        calls = {"out": _bench.ours(case), "new": lambda x=case.x: fastsoftmax.softmax(x)}
        seconds = _bench.medians(calls, rounds)
        yield shape(n), seconds["new"] / seconds["out"]


def small_over_torch(rounds: int) -> Measured:
    import torch

    x = np.random.default_rng(0).standard_normal(10).astype(np.float32)
    t, out = torch.from_numpy(x), np.empty_like(x)
    ours: dict[str, _bench.Call] = {
        "plain": lambda: fastsoftmax.softmax(x),
        "out=": lambda: fastsoftmax.softmax(x, out=out),
        "axis=0": lambda: fastsoftmax.softmax(x, axis=0),
        "temperature=": lambda: fastsoftmax.softmax(x, temperature=2.0),
    }
    seconds = _bench.medians({**ours, "torch": lambda: torch.softmax(t, -1)}, 5 * rounds)
    for name in ours:
        yield name, seconds[name] / seconds["torch"]


def small_over_scipy(rounds: int) -> Measured:
    from scipy import special

    x = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    kinds = {"axis=0": {"axis": 0}, "axis=1": {"axis": 1}, "where=": {"where": x > -1}}
    for name, options in kinds.items():
        ours = functools.partial(fastsoftmax.softmax, x, **options)
        scipy = functools.partial(special.softmax, x, axis=options.get("axis", -1))
        seconds = _bench.medians({"ours": ours, "scipy": scipy}, 5 * rounds)
        yield name, seconds["ours"] / seconds["scipy"]


def import_in_ms(rounds: int) -> Measured:
    """Beyond that of NumPy, in ms."""

    def seconds(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - start

    times = [(seconds("numpy"), seconds("fastsoftmax")) for _ in range(rounds)]
    numpy, ours = np.median(times, axis=0)
    yield "ms", 1e3 * float(ours - numpy)


def gained_by_two_threads(rounds: int) -> Measured:
    for n in [10, 100, *OUT_OF_CACHE, LONGER]:
        ours = _bench.ours(case_of(shape(n)))

        def limited(threads: int, ours: _bench.Call = ours) -> _bench.Call:
            def call() -> None:
                with threadpoolctl.threadpool_limits(threads, "openmp"):
                    ours()

            return call

        seconds = _bench.medians({"1": limited(1), "2": limited(2)}, rounds, PAUSE)
        yield shape(n), seconds["1"] / seconds["2"]


@dataclasses.dataclass
class Goal:
    """A ratio that is at most, or of threads at least, `limit`."""

    what: str
    limit: float
    measure: Callable[[int], Measured]
    at_least: bool = False

    def line(self, rounds: int) -> str:
        measured = dict(self.measure(rounds))
        values = ", ".join(f"{name} {ratio:.2f}" for name, ratio in measured.items())
        met = [(r >= self.limit) if self.at_least else (r <= self.limit) for r in measured.values()]
        than = "at least" if self.at_least else "at most"
        return f"| {self.what} | {than} {self.limit} | {values} | {sum(met)} of {len(met)} |"


ONE_THREAD = [
    Goal("softmax, over a copy", 1.25, lambda r: over_limit(OUT_OF_CACHE, "softmax", r)),
    Goal("the same, longer rows", 1.6, lambda r: over_limit([LONGER], "softmax", r)),
    Goal(
        "logsumexp, over a sum", 1.15, lambda r: over_limit([*OUT_OF_CACHE, LONGER], "logsumexp", r)
    ),
    Goal(
        "softmax in the cache, over the fastest peer",
        0.7,
        lambda r: over_peers([f"1000x{n}" for n in IN_CACHE], r),
    ),
    Goal("softmax, the first axis over the last", 1.25, first_over_last),
    Goal("softmax, a new result over `out=`", 1.6, allocated_over_out),
    Goal(
        "softmax_jacobian, over a fill",
        1.2,
        lambda r: over_limit([100, 512, 1000, 4096], "softmax_jacobian", r),
    ),
    Goal("softmax_vjp, over a copy", 2, lambda r: over_limit(OUT_OF_CACHE, "softmax_vjp", r)),
    Goal("softmax of 10 floats, over torch", 0.5, small_over_torch),
    Goal("softmax of 4 x 5 x 6, over SciPy", 1, small_over_scipy),
    Goal("import, beyond NumPy", 30, import_in_ms),
]
TWO_THREADS = [
    Goal("softmax, one thread over two", 1.7, gained_by_two_threads, at_least=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="What is promised about speed, and what holds.")
    parser.add_argument("--threads", type=int, choices=[1, 2], default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    _bench.with_threads(options.threads)
    print("| goal | | measured | met |\n|---|---|---|---|", flush=True)
    for goal in ONE_THREAD if options.threads == 1 else TWO_THREADS:
        print(goal.line(options.rounds), flush=True)


if __name__ == "__main__":
    main()
