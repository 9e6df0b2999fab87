"""The demonstration: the first example of the project, then the digits of a small network."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fastsoftmax._arguments import Array
from fastsoftmax._functions import softmax
from fastsoftmax._layer import Softmax

X = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0.001, 0.002, 0.0015, 0.003, 10]])


def demo(plot: Path | None = None) -> None:
    """Prints both parts; draws them into the file `plot`."""
    if plot is not None:
        _require_matplotlib()
    layer = Softmax()
    y = layer(X)
    jacobian = layer.backward()
    _show("x        ", X)
    _show("output   ", y)
    _show("backward ", jacobian)

    digits = _digits()
    logits, labels = digits["logits"], digits["labels"]
    p = softmax(logits)
    print(
        f"\nHandwritten digits: {logits.dtype} logits of {len(logits)} images that a small\n"
        f"network (examples/digits.py) had not seen, to probabilities.\n"
    )
    print("The least certain eight:\ndigit   " + "".join(f"{d:7}" for d in range(10)))
    for i in _least_certain(p)[:8]:
        print(f"  {labels[i]}     " + "".join(f"{v:7.3f}" for v in p[i]))
    right = p.argmax(axis=1) == labels
    print(
        f"\naccuracy         {right.mean():.1%}\n"
        f"mean confidence  {p.max(axis=1).mean():.1%}\n"
        f"time             {_microseconds(logits):.0f} microseconds for all {len(logits)}"
    )
    if plot is not None:
        _draw(plot, jacobian[0], digits, p)
        print(f"plot             {plot}")


def _show(title: str, array: Array) -> None:
    print(title + np.array2string(array, prefix=title, max_line_width=100))


def _digits() -> dict[str, Array]:
    with (
        resources.files("fastsoftmax").joinpath("data/digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return dict(arrays)


def _least_certain(p: Array) -> Array:
    return np.argsort(p.max(axis=1))


def _microseconds(logits: Array) -> float:
    """The median time of one call."""
    times = []
    for _ in range(101):
        start = time.perf_counter()
        softmax(logits)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'fastsoftmax[plot]'") from None


def _draw(path: Path, jacobian: Array, digits: dict[str, Array], p: Array) -> None:
    """Twelve digits, the least certain first, each over its probabilities; then the Jacobian."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.7, 1])
    left, right = parts
    left.suptitle("Digits, the least certain first, and their probabilities")
    axes: Any = left.subplots(4, 6, height_ratios=[1.4, 1, 1.4, 1])
    for place, i in enumerate(_least_certain(p)[:12]):
        image = axes[2 * (place // 6), place % 6]
        image.imshow(digits["images"][i], cmap="gray_r")
        image.set_axis_off()
        bars = axes[2 * (place // 6) + 1, place % 6]
        label = digits["labels"][i]
        bars.bar(
            range(10), p[i], color=["tab:orange" if d == label else "tab:blue" for d in range(10)]
        )
        bars.set_ylim(0, 1)
        bars.set_xticks(range(10), range(10), fontsize=6)
        bars.set_yticks([0, 1] if place % 6 == 0 else [])
    left.supxlabel("orange: the true digit", fontsize=9)

    right.suptitle("Jacobian of softmax([1, 2, 3, 4, 5])")
    heat = right.subplots()
    limit = np.abs(jacobian).max()
    shown = heat.imshow(jacobian, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(jacobian):
        color = "white" if abs(value) > limit / 2 else "black"
        heat.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color=color)
    heat.set_xlabel("logit j")
    heat.set_ylabel("probability i")
    right.colorbar(shown, ax=heat, shrink=0.7)
    figure.savefig(path, dpi=110)
