"""How fast: fastsoftmax, NumPy's formula, SciPy and torch, against a copy of the same bytes.

    python benchmarks/run.py [--function softmax] [--dtype float32] [--rounds 15] [SHAPE ...]

All run in this process on one thread, taking turns, so that a busy machine slows them alike; the
table gives medians. `x copy` is the time over that of np.copyto on the same array: 1 would be the
speed of memory (or of the cache, for small arrays). `x best peer` is below 1 where we are faster
than every other. Peers that are not installed are left out. Every function writes into an array
that is there already, where it can (SciPy cannot).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastsoftmax as fsm

SHAPES = ["1x10", "1x1000", "64x10", "65536x10", "65536x48", "65536x49", "8192x1000", "512x32000",
          "4x4194304"]  # fmt: skip
Call = Callable[[], Any]


def numpy_softmax(x: Any, out: Any) -> Any:
    np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    return np.divide(out, out.sum(axis=-1, keepdims=True), out=out)


def numpy_log_softmax(x: Any, out: Any) -> Any:
    np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    return np.subtract(out, np.log(np.exp(out).sum(axis=-1, keepdims=True)), out=out)


def numpy_logsumexp(x: Any, out: Any) -> Any:
    m = x.max(axis=-1, keepdims=True)
    return np.add(np.log(np.exp(x - m).sum(axis=-1)), m[..., 0], out=out)


def contenders(function: str, x: Any, out: Any) -> dict[str, Call]:
    ours = getattr(fsm, function)
    plain = globals()[f"numpy_{function}"]
    copy = np.empty_like(x)
    calls: dict[str, Call] = {
        "copy": lambda: np.copyto(copy, x),
        "fastsoftmax": lambda: ours(x, out=out),
        "NumPy": lambda: plain(x, out),
    }
    try:
        from scipy import special

        theirs = getattr(special, function)
        calls["SciPy"] = lambda: theirs(x, axis=-1)
    except ImportError:
        pass
    try:
        import torch

        torch.set_num_threads(1)
        tensor, target = torch.from_numpy(x), torch.from_numpy(out)
        call = getattr(torch, function)
        calls["torch"] = lambda: call(tensor, -1, out=target)
    except ImportError:
        pass
    return calls


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Seconds a call, the calls taking turns; short ones are repeated to fill about 2 ms."""
    repeats, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(0.002 / max(time.perf_counter() - start, 1e-7)))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: float(np.median(t)) for name, t in times.items()}


def in_words(seconds: float) -> str:
    unit, factor = next(u for u in (("ms", 1e3), ("us", 1e6), ("ns", 1e9)) if seconds * u[1] >= 1)
    return f"{seconds * factor:.3g} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures speed, as ratios.")
    parser.add_argument("shapes", metavar="SHAPE", nargs="*", default=SHAPES, help="as 512x32000")
    functions = ["softmax", "log_softmax", "logsumexp"]
    parser.add_argument("--function", choices=functions, default="softmax")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    print(
        f"{options.function}, {options.dtype}, {fsm._native.isa()}, medians of {options.rounds}\n"
    )
    heading = None
    for shape in options.shapes:
        size = tuple(map(int, shape.split("x")))
        x = (3 * np.random.default_rng(0).standard_normal(size)).astype(options.dtype)
        out = np.empty(x.shape[: -1 if options.function == "logsumexp" else None], x.dtype)
        times = medians(contenders(options.function, x, out), options.rounds)
        copy, ours = times.pop("copy"), times["fastsoftmax"]
        best = min(t for name, t in times.items() if name != "fastsoftmax")
        if heading is None:
            heading = ["shape", *(f"{name}, x copy" for name in times), "x best peer", "our time"]
            print("| " + " | ".join(heading) + " |\n|" + "---|" * len(heading))
        cells = [shape, *(f"{t / copy:.2f}" for t in times.values())]
        print("| " + " | ".join([*cells, f"{ours / best:.2f}", in_words(ours)]) + " |", flush=True)


if __name__ == "__main__":
    main()
