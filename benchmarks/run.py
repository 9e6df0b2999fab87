"""How fast: fastsoftmax against every peer that is installed, and against a copy of the same bytes.

    python benchmarks/run.py                    the grid that README.md and docs/performance.md show
    python benchmarks/run.py 8192x1000 1x10     some shapes
    python benchmarks/run.py --function log_softmax --dtype float64 --axis 0

All run in this process, taking turns, so that a busy machine slows them alike; the figures are
medians. On one thread, unless --threads says otherwise. `x copy` is our time over that of np.copyto
on the same array (for logsumexp, which only reads, over that of a sum): 1 is the speed of memory,
or of the cache for small arrays. `x best` is our time over that of the fastest peer: below 1 we are
faster. Results go into an array that is there already, for all that can do so.

AVX2 for all: FASTSOFTMAX_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 XLA_FLAGS=--xla_cpu_max_isa=AVX2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
LENGTHS = [2, 3, 5, 10, 17, 33, 50, 100, 257, 1000, 4096, 32000, 131072, 4194304]
SMALL = ["1x10", "1x1000", "64x10", "1000x100"]


def grid(itemsize: int) -> list[str]:
    """Some small calls, then every row length with as many rows as fill 64 MiB."""
    return SMALL + [f"{max(1, 2**26 // itemsize // n)}x{n}" for n in LENGTHS]


def numpy_softmax(x: Any, axis: int, out: Any) -> Any:
    np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    np.exp(out, out=out)
    return np.divide(out, out.sum(axis=axis, keepdims=True), out=out)


def numpy_log_softmax(x: Any, axis: int, out: Any) -> Any:
    np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    return np.subtract(out, np.log(np.exp(out).sum(axis=axis, keepdims=True)), out=out)


def numpy_logsumexp(x: Any, axis: int, out: Any) -> Any:
    m = x.max(axis=axis, keepdims=True)
    return np.add(np.log(np.exp(x - m).sum(axis=axis)), m.squeeze(axis), out=out)


def ours(function: str, x: Any, axis: int, out: Any) -> Call:
    import fastsoftmax

    call = getattr(fastsoftmax, function)
    return lambda: call(x, axis, out=out)


def numpy(function: str, x: Any, axis: int, out: Any) -> Call:
    plain = globals()[f"numpy_{function}"]
    return lambda: plain(x, axis, out)


def scipy(function: str, x: Any, axis: int, out: Any) -> Call:
    from scipy import special

    call = getattr(special, function)
    return lambda: call(x, axis=axis)


def scikit_learn(function: str, x: Any, axis: int, out: Any) -> Call:
    from sklearn.utils.extmath import softmax

    if function != "softmax" or axis != -1:
        raise NotImplementedError
    return lambda: softmax(x)


def torch(function: str, x: Any, axis: int, out: Any) -> Call:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tensor, target = torch.from_numpy(x), torch.from_numpy(out)
    call = getattr(torch, function)
    return lambda: call(tensor, axis, out=target)


def jax(function: str, x: Any, axis: int, out: Any) -> Call:
    import jax

    jax.config.update("jax_enable_x64", True)
    functions = {"logsumexp": jax.scipy.special.logsumexp}
    call = jax.jit(lambda v: functions.get(function, getattr(jax.nn, function))(v, axis=axis))
    array = jax.numpy.asarray(x)
    return lambda: call(array).block_until_ready()


def onnxruntime(function: str, x: Any, axis: int, out: Any) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper

    operator = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[function]
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[x.dtype.name]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], axis=axis)],
        "softmax",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(out))
    return lambda: session.run_with_iobinding(binding)


PEERS = {
    "NumPy": numpy,
    "SciPy": scipy,
    "scikit-learn": scikit_learn,
    "torch": torch,
    "JAX": jax,
    "onnxruntime": onnxruntime,
}


def contenders(function: str, x: Any, axis: int, out: Any) -> dict[str, Call]:
    """The copy, ourselves, and every peer that is installed and has the function."""
    copy = np.empty_like(x)
    limit = (
        (lambda: x.sum(dtype=x.dtype)) if function == "logsumexp" else lambda: np.copyto(copy, x)
    )
    calls = {"copy": limit, "fastsoftmax": ours(function, x, axis, out)}
    for name, peer in PEERS.items():
        try:
            calls[name] = peer(function, x, axis, out)
            calls[name]()
        except (ImportError, NotImplementedError, KeyError):
            calls.pop(name, None)
    return calls


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Seconds a call, the calls taking turns; short ones are repeated to fill about 2 ms."""
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
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


def measure(options: argparse.Namespace, shape: str) -> dict[str, Any]:
    """One cell: medians of all contenders for rows x n, n being the length of the axis."""
    rows, n = map(int, shape.split("x"))
    size = (rows, n) if options.axis == -1 else (n, rows)
    x = (3 * np.random.default_rng(0).standard_normal(size, np.float32)).astype(options.dtype)
    reduced = (rows,) if options.function == "logsumexp" else size
    out = np.empty(reduced, x.dtype)
    times = medians(contenders(options.function, x, options.axis, out), options.rounds)
    return {"shape": shape, "elements": rows * n, "n": n, "seconds": times}


def row_of(cell: dict[str, Any]) -> str:
    times = dict(cell["seconds"])
    copy, mine = times.pop("copy"), times.pop("fastsoftmax")
    best = min(times, key=lambda name: times[name])
    others = " ".join(f"{name} {t / mine:.2f}" for name, t in times.items())
    return (
        f"| {cell['shape']} | {in_words(mine)} | {mine / copy:.2f} | {best} | "
        f"{mine / times[best]:.2f} | {others} |"
    )


def in_words(seconds: float) -> str:
    unit, factor = next(u for u in (("ms", 1e3), ("us", 1e6), ("ns", 1e9)) if seconds * u[1] >= 1)
    return f"{seconds * factor:.3g} {unit}"


def draw(path: Path, title: str, cells: list[dict[str, Any]]) -> None:
    """Throughput over row length: a line a library, the memory limit dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    large = [c for c in cells if c["shape"] not in SMALL]
    for name in ["copy", "fastsoftmax", *PEERS]:
        points = [
            (c["n"], c["elements"] / c["seconds"][name] / 1e9)
            for c in large
            if name in c["seconds"]
        ]
        if points:
            style = {"copy": "k--", "fastsoftmax": "o-"}.get(name, ".-")
            axes.plot(
                *zip(*points, strict=True), style, label=name, lw=2 if name == "fastsoftmax" else 1
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("row length")
    axes.set_ylabel("billion elements a second")
    axes.set_title(title, fontsize=10)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures speed, as ratios.")
    parser.add_argument("shapes", metavar="ROWSxN", nargs="*", help="default: the grid")
    functions = ["softmax", "log_softmax", "logsumexp"]
    parser.add_argument("--function", choices=functions, default="softmax")
    parser.add_argument("--dtype", choices=["float16", "float32", "float64"], default="float32")
    parser.add_argument("--axis", type=int, choices=[-1, 0], default=-1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--plot", metavar="FILE", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    threads = str(options.threads)
    if os.environ.get("OMP_NUM_THREADS") != threads:  # read by most when they are loaded
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        os.environ |= {"OMP_NUM_THREADS": threads, "XLA_FLAGS": flags if threads == "1" else ""}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if hasattr(os, "sched_setaffinity"):  # JAX heeds nothing else
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import fastsoftmax

    title = (
        f"{options.function} along axis {options.axis}, {options.dtype}, {threads} thread(s), "
        f"{fastsoftmax._native.isa()}, NumPy {np.__version__}, {platform.machine()}"
    )
    print(f"{title}, medians of {options.rounds}\n")
    print("| rows x n | our time | x copy | best peer | x best | times of the peers over ours |")
    print("|---|---|---|---|---|---|")
    cells = []
    for shape in options.shapes or grid(np.dtype(options.dtype).itemsize):
        cells.append(measure(options, shape))
        print(row_of(cells[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"title": title, "cells": cells}, indent=1))
    if options.plot:
        draw(options.plot, title, cells)


if __name__ == "__main__":
    main()
