"""The whole grid: every function, type, layout and row length, against the fastest peer.

    python benchmarks/grid.py --json grid.json                 all of it
    python benchmarks/grid.py --json grid.json --functions softmax --dtypes float32
    python benchmarks/grid.py --json grid.json --values masked      of other values, see VALUES
    python benchmarks/grid.py --from grid.json --plot grid.png      draws what was measured
    python benchmarks/grid.py --from grid.json                 prints what was measured

A cell is our time over that of the fastest peer: below 1 we are faster. Batches are one row, what
fills 256 KiB (the cache) and what fills 64 MiB (memory). Layouts: the axis is the last, the first
or a middle one; `steps` takes every second element of the last axis, `slices` has other elements
after each row. A peer three times slower than the fastest is not asked about longer arrays.

AVX2 for all: FASTSOFTMAX_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 XLA_FLAGS=--xla_cpu_max_isa=AVX2
NPY_DISABLE_CPU_FEATURES=X86_V4 (NumPy 2.4; onnxruntime cannot be held to it)
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastsoftmax import _bench

FUNCTIONS = ["softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp"]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
LAYOUTS = {"last": -1, "first": 0, "middle": 1, "steps": -1, "slices": -1}
BATCHES = {"row": 1, "cache": 2**18, "memory": 2**26}
LENGTHS = [2, 3, 5, 10, 17, 50, 100, 257, 1000, 4096, 32000, 131072, 4194304]

Array = Any
Cell = dict[str, Any]


def masked(x: Array, axis: int) -> None:
    """A quarter of the elements is -inf."""
    x[np.random.default_rng(3).random(x.shape) < 0.25] = -np.inf


def shifted(x: Array, axis: int) -> None:
    x += np.asarray(1000, x.dtype)


def sure(x: Array, axis: int) -> None:
    """The largest element of each row is 20 more."""
    at = np.expand_dims(x.argmax(axis), axis)
    np.put_along_axis(x, at, np.take_along_axis(x, at, axis) + np.asarray(20, x.dtype), axis)


def cold(x: Array, axis: int) -> None:
    """As a temperature of 1/15 makes them: many results are subnormal."""
    x *= np.asarray(15, x.dtype)


def far(x: Array, axis: int) -> None:
    """As a temperature of 1/300 makes them."""
    x *= np.asarray(300, x.dtype)


VALUES = {"masked": masked, "shifted": shifted, "sure": sure, "cold": cold, "far": far}


def spread(x: Array, layout: str) -> Array:
    """The same elements, with others between them."""
    wide = np.zeros((len(x), 2 * x.shape[1] if layout == "steps" else x.shape[1] + 8), x.dtype)
    view = wide[:, ::2] if layout == "steps" else wide[:, : x.shape[1]]
    view[...] = x
    return view


def calls_of(case: _bench.Case, layout: str, peers: Iterable[str]) -> dict[str, _bench.Call]:
    """JAX and onnxruntime take whole arrays only, and copy others first."""
    calls = _bench.calls(case, peers)
    if layout not in ("steps", "slices"):
        return calls
    inputs = [spread(a, layout) for a in case.inputs]
    views = dataclasses.replace(case, x=inputs[0], g=inputs[1] if case.g is not None else None)

    def copying(call: _bench.Call) -> _bench.Call:
        def copy_and_call() -> None:
            for view, whole in zip(inputs, case.inputs, strict=True):
                np.copyto(whole, view)
            call()

        return copy_and_call

    after_copy = {k: copying(calls[k]) for k in ("JAX", "onnxruntime") if k in calls}
    return {**_bench.calls(views, peers), "copy": calls["copy"], **after_copy}


def fastest(seconds: dict[str, float]) -> list[str]:
    """The peers worth asking about longer arrays."""
    peers = {k: t for k, t in seconds.items() if k not in ("copy", "fastsoftmax")}
    return [name for name, t in peers.items() if t <= 3 * min(peers.values())]


def rows_of(batch: str, n: int, dtype: str) -> int:
    itemsize = {"float32": 4, "float64": 8}.get(dtype, 2)
    return max(1, BATCHES[batch] // (itemsize * n)) if batch != "row" else 1


def measure(options: argparse.Namespace) -> Iterator[Cell]:
    product = itertools.product(options.functions, options.dtypes, options.layouts, options.lengths)
    for function, dtype, layout, n in product:
        seen = set()
        if n <= 1000 or n == options.lengths[0]:
            peers = list(_bench.PEERS)
        for batch in BATCHES:
            rows = rows_of(batch, n, dtype)
            if rows in seen:
                continue
            seen.add(rows)
            what = (f"{rows}x{n}", function, dtype, LAYOUTS[layout], options.threads)
            case = _bench.make_case(*what)
            if options.values:
                VALUES[options.values](case.x, case.axis)
            calls = calls_of(case, layout, peers)
            seconds = _bench.medians(calls, options.rounds, 0.01 * (options.threads > 1))
            peers = fastest(seconds) if rows * n > 2**12 else peers
            key = {"function": function, "dtype": dtype, "layout": layout, "n": n, "batch": batch}
            yield {**key, "rows": rows, "values": options.values, "seconds": seconds}


def ratio(cell: Cell) -> tuple[float, str]:
    """Our time over that of the fastest peer, and its name."""
    peers = {k: t for k, t in cell["seconds"].items() if k not in ("copy", "fastsoftmax")}
    best = min(peers, key=lambda name: peers[name])
    return cell["seconds"]["fastsoftmax"] / peers[best], best


def table(cells: list[Cell]) -> str:
    """Of each function and type: the cells we win, and those we lose, the worst first."""
    lines = ["| | cells | faster than all | lost by up to 1.25 | by more | the worst |"]
    lines.append("|---" * 6 + "|")
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kind = [cell["function"], cell["dtype"], cell.get("values")]
        kinds.setdefault(", ".join(filter(None, kind)), []).append(cell)
    for kind, some in kinds.items():
        ratios = sorted(((*ratio(cell), cell) for cell in some), key=lambda r: -r[0])
        won = sum(r <= 1 for r, _, _ in ratios)
        lost = sum(r > 1.25 for r, _, _ in ratios)
        worst = ", ".join(
            f"{c['rows']} x {c['n']} {c['layout']} {r:.1f} ({peer})" for r, peer, c in ratios[:3]
        )
        lines.append(
            f"| {kind} | {len(some)} | {won} | {len(some) - won - lost} | {lost} | {worst} |"
        )
    return "\n".join(lines)


def draw(path: Path, cells: list[Cell]) -> None:
    """A square for each cell, blue where we are faster, red where a peer is."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(f"{c['function']} {c['dtype']} {c['layout']}" for c in cells))
    figure = Figure(figsize=(17, 1.5 + 0.21 * len(kinds)), layout="constrained")
    panels = figure.subplots(1, len(BATCHES), sharey=True)
    titles = {"row": "one row", "cache": "256 KiB", "memory": "64 MiB"}
    for axes, batch in zip(panels, BATCHES, strict=True):
        values = np.full((len(kinds), len(LENGTHS)), np.nan)
        for cell in cells:
            if cell["batch"] == batch:
                i = kinds.index(f"{cell['function']} {cell['dtype']} {cell['layout']}")
                values[i, LENGTHS.index(cell["n"])] = ratio(cell)[0]
        axes.imshow(np.log2(values), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if abs(np.log2(value)) > 1.2 else "black"
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=6, color=color)
        axes.set_title(titles[batch])
        axes.set_xlabel("row length")
        axes.set_xticks(range(len(LENGTHS)), map(str, LENGTHS), rotation=60, fontsize=7)
        axes.set_yticks(range(len(kinds)), kinds, fontsize=7)
    figure.suptitle("Our time over that of the fastest peer")
    figure.savefig(path, dpi=85)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the whole grid.")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=FUNCTIONS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--lengths", nargs="+", type=int, choices=LENGTHS, default=LENGTHS)
    parser.add_argument("--values", choices=VALUES, help="of softmax and its logarithms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--from", metavar="FILE", type=Path, dest="source")
    parser.add_argument("--plot", metavar="FILE", type=Path)
    options = parser.parse_args()
    if options.values:
        options.functions = [f for f in options.functions if not f.endswith("_vjp")]
    if options.source:
        cells = [json.loads(line) for line in options.source.read_text().splitlines()]
    else:
        _bench.with_threads(options.threads)
        cells = []
        for cell in measure(options):
            cells.append(cell)
            print(*(cell[k] for k in ("function", "dtype", "layout", "rows", "n")), file=sys.stderr)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(cell) + "\n")
    print(table(cells))
    if options.plot:
        draw(options.plot, cells)


if __name__ == "__main__":
    main()
