"""The grid: fastsoftmax against every peer that is installed, over row lengths of 2 to 4,194,304.

    python benchmarks/run.py                    the grid that README.md and docs/performance.md show
    python benchmarks/run.py 8192x1000 1x10     some shapes
    python benchmarks/run.py --function log_softmax --dtype float64 --axis 0 --threads 2

A short form comes with the package, `fastsoftmax bench`; how it measures is in
src/fastsoftmax/_bench.py. `x copy` is our time over that of a copy of the same array (for
logsumexp, which only reads, of a sum; for the Jacobian, of a fill): 1 is the speed of memory, or of
the cache for small arrays. `x best` is our time over that of the fastest peer: below 1 we are
faster. Results go into an array that is there already, for all that can do so.

AVX2 for all: FASTSOFTMAX_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 XLA_FLAGS=--xla_cpu_max_isa=AVX2
NPY_DISABLE_CPU_FEATURES=X86_V4 (NumPy 2.4; onnxruntime cannot be held to it)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastsoftmax import _bench
from fastsoftmax.__main__ import add_bench_options

LENGTHS = [2, 3, 5, 10, 17, 33, 50, 100, 257, 1000, 4096, 32000, 131072, 4194304]
SMALL = ["1x10", "1x1000", "64x10", "1000x100"]


def grid(function: str, dtype: str) -> list[str]:
    """Some small calls, then every row length with as many rows as fill 64 MiB."""
    if function == "softmax_jacobian":
        return _bench.SHORT_JACOBIANS
    itemsize = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    return SMALL + [f"{max(1, 2**26 // itemsize // n)}x{n}" for n in LENGTHS]


def draw(path: Path, title: str, cells: list[dict[str, Any]]) -> None:
    """Throughput over row length: a line a library, the memory limit dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    large = [c for c in cells if c["shape"] not in SMALL]
    for name in ["copy", "fastsoftmax", *_bench.PEERS]:
        points = [
            (c["n"], c["elements"] / c["seconds"][name] / 1e9)
            for c in large
            if name in c["seconds"]
        ]
        if points:
            style = {"copy": "k--", "fastsoftmax": "o-"}.get(name, ".-")
            width = 2 if name == "fastsoftmax" else 1
            axes.plot(*zip(*points, strict=True), style, label=name, lw=width)
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
    add_bench_options(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--plot", metavar="FILE", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    _bench.with_threads(options.threads)
    shapes = options.shapes or grid(options.function, options.dtype)
    what = (options.function, options.dtype, options.axis, options.threads, options.rounds)
    title, cells = _bench.report(shapes, *what)
    if options.json:
        options.json.write_text(json.dumps({"title": title, "cells": cells}, indent=1))
    if options.plot:
        draw(options.plot, title, cells)


if __name__ == "__main__":
    main()
