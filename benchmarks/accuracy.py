"""How exact losses and derivatives are where one logit outweighs the others, beside torch and JAX.

    python benchmarks/accuracy.py            prints the tables
    python benchmarks/accuracy.py --write    puts them into the pages of docs/, with the pictures

Rows of 10 logits, one of them `gap` above the largest of the others, which are standard normal, and
gradients that are standard normal (of the loss, the largest logit is the target); everything in
float32. The error of a row is its largest absolute error over its largest exact entry, from 60
digits of mpmath; the largest of 50 rows is shown. torch and JAX differentiate their own functions
of the logits; NumPy is the formula written out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

import fastsoftmax as fsm

Array = Any
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
GAPS = [0, 4, 8, 12, 14, 15, 16, 18, 20, 30, 40, 60, 80]
ROWS, N = 50, 10
LABELS = np.zeros(ROWS, np.int64)
PAGES = {
    "derivatives": {
        "softmax_vjp": "Gradient through softmax",
        "softmax_jacobian": "Jacobian of softmax",
        "log_softmax_vjp": "Gradient of the logarithmic loss",
    },
    "losses": {"loss": "Cross-entropy", "gradient": "Its gradient"},
}


def inputs(gap: float) -> tuple[Array, Array]:
    """Logits, and a gradient."""
    rng = np.random.default_rng(int(gap))
    x = rng.standard_normal((ROWS, N))
    x[:, 0] = x[:, 1:].max(axis=1) + gap
    return x.astype(np.float32), rng.standard_normal((ROWS, N)).astype(np.float32)


def target(x: Array) -> Array:
    """The gradient of -log(p[0]) with respect to log(p)."""
    g = np.zeros_like(x)
    g[:, 0] = -1
    return g


def exact(what: str, x: Array, g: Array) -> Array:
    """Rows of exact entries, rounded to float64."""
    rows = []
    with mpmath.workdps(60):
        for logits, gradient in zip(x.tolist(), g.tolist(), strict=True):
            e = [mpmath.exp(v) for v in logits]
            p = [v / mpmath.fsum(e) for v in e]
            others = mpmath.fsum(p[1:])
            if what == "loss":
                row = [mpmath.log1p(others / p[0])]
            elif what == "gradient":
                row = [-others, *p[1:]]
            elif what == "softmax_vjp":
                mean = mpmath.fdot(p, gradient)
                row = [a * (b - mean) for a, b in zip(p, gradient, strict=True)]
            elif what == "log_softmax_vjp":
                total = mpmath.fsum(gradient)
                row = [b - a * total for a, b in zip(p, gradient, strict=True)]
            else:
                row = [p[i] * ((i == j) - p[j]) for i in range(N) for j in range(N)]
            rows.append([float(v) for v in row])
    return np.array(rows)


def ours(what: str, x: Array, g: Array) -> Array:
    if what in PAGES["losses"]:
        return fsm.cross_entropy(x, LABELS, reduction="none", return_grad=True)[what == "gradient"]
    p = fsm.softmax(x)
    return fsm.softmax_jacobian(p) if what == "softmax_jacobian" else getattr(fsm, what)(p, g)


def numpy(what: str, x: Array, g: Array) -> Array:
    below = x - x.max(axis=1, keepdims=True)
    e = np.exp(below)
    p = e / e.sum(axis=1, keepdims=True)
    if what == "loss":
        return np.log(e.sum(axis=1)) - below[:, 0]
    if what == "gradient":
        return p - (np.arange(N) == 0)
    if what == "softmax_vjp":
        return p * (g - (p * g).sum(axis=1, keepdims=True))
    if what == "log_softmax_vjp":
        return g - p * g.sum(axis=1, keepdims=True)
    return p[:, :, None] * np.eye(N, dtype=x.dtype) - p[:, :, None] * p[:, None, :]


def torch(what: str, x: Array, g: Array) -> Array:
    import torch

    function = torch.log_softmax if what == "log_softmax_vjp" else torch.softmax
    logits = torch.from_numpy(x).requires_grad_()
    if what in PAGES["losses"]:
        labels = torch.from_numpy(LABELS)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        loss.sum().backward()
        return loss.detach().numpy() if what == "loss" else logits.grad.numpy()
    if what == "softmax_jacobian":
        jacobians = [
            torch.autograd.functional.jacobian(lambda v: function(v, 0), v) for v in logits
        ]
        return torch.stack(jacobians).numpy()
    function(logits, 1).backward(torch.from_numpy(g))
    return logits.grad.numpy()


def jax(what: str, x: Array, g: Array) -> Array:
    import jax

    function = jax.nn.log_softmax if what == "log_softmax_vjp" else jax.nn.softmax
    if what == "loss":
        return np.asarray(-jax.nn.log_softmax(x)[:, 0])
    if what == "gradient":
        return np.asarray(jax.grad(lambda v: -jax.nn.log_softmax(v)[:, 0].sum())(x))
    if what == "softmax_jacobian":
        return np.asarray(jax.vmap(jax.jacrev(function))(x))
    return np.asarray(jax.vjp(function, x)[1](g)[0])


CONTENDERS: dict[str, Callable[[str, Array, Array], Array]] = {
    "fastsoftmax": ours,
    "NumPy": numpy,
    "torch": torch,
    "JAX": jax,
}


def measure(what: str, contenders: dict[str, Any]) -> dict[str, list[float]]:
    """The largest error of a row at each gap."""
    errors: dict[str, list[float]] = {name: [] for name in contenders}
    for gap in GAPS:
        x, g = inputs(gap)
        g = target(x) if what == "log_softmax_vjp" else g
        right = exact(what, x, g)
        for name, contender in contenders.items():
            got = np.asarray(contender(what, x, g), np.float64).reshape(right.shape)
            of_row = np.abs(got - right).max(axis=1) / np.abs(right).max(axis=1)
            errors[name].append(float(of_row.max()))
    return errors


def in_words(error: float) -> str:
    return f"**{error:.2%}**" if error >= 0.0005 else f"{error:.1e}"


def table(title: str, errors: dict[str, list[float]]) -> str:
    lines = [f"**{title}**, float32", "", f"| gap | {' | '.join(errors)} |"]
    lines.append("|---" * (len(errors) + 1) + "|")
    for gap, *row in zip(GAPS, *errors.values(), strict=True):
        lines.append(f"| {gap} | {' | '.join(map(in_words, row))} |")
    return "\n".join(lines)


def draw(path: Path, found: dict[str, dict[str, list[float]]]) -> None:
    """A panel for each title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 3 * len(found), 4), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    styles = {
        "fastsoftmax": ("o-", 2.5),
        "NumPy": (":", 2),
        "torch": ("s--", 1.5),
        "JAX": (".-", 1),
    }
    for axes, (title, errors) in zip(panels, found.items(), strict=True):
        for name, values in errors.items():
            style, width = styles[name]
            axes.plot(GAPS, np.maximum(values, 1e-9), style, label=name, lw=width, ms=4)
        axes.axhline(1, color="grey", lw=0.8)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("gap between the largest logit and the next")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("relative error (1: no digit is right)")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="update the pages of docs/")
    options = parser.parse_args()
    contenders = {}
    for name, contender in CONTENDERS.items():
        try:
            contender("softmax_vjp", *inputs(0))
        except ImportError:
            continue
        contenders[name] = contender
    for name, whats in PAGES.items():
        found = {title: measure(what, contenders) for what, title in whats.items()}
        tables = "\n\n".join(table(title, errors) for title, errors in found.items())
        if not options.write:
            print(tables, end="\n\n")
            continue
        page = DOCS / f"{name}.md"
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        draw(DOCS / f"{name}.png", found)
        page.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
