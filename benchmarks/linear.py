"""linear_cross_entropy against the matrix products it consists of: time, and memory on Linux.

    python benchmarks/linear.py [--tokens 4096] [--features 512] [--classes 32000] [--threads 1]

The products alone are hidden @ weight.T into logits that are there already, and for the gradients
grad @ weight and grad.T @ hidden. All take turns, float32; medians. The peak of memory is that of
the process above its start, when the arguments and the gradients exist and BLAS has its buffers, as
a share of the size of the logits; it is measured first, before the logits of the products exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import fastsoftmax as fsm
from fastsoftmax import _bench


def status(key: str) -> int:
    """A line of what Linux knows of the memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak(call: Any) -> int:
    """Bytes above what was there before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the last peak
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("tokens", 4096), ("features", 512), ("classes", 32000), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    _bench.with_threads(options.threads)

    rng = np.random.default_rng(0)
    tokens, d, n = options.tokens, options.features, options.classes
    hidden = rng.standard_normal((tokens, d), np.float32)
    weight = rng.standard_normal((n, d), np.float32)
    weight /= 20
    targets = rng.integers(0, n, tokens)
    out = (np.zeros_like(hidden), np.zeros_like(weight))
    arguments = (hidden, weight, targets)

    def loss() -> None:
        fsm.linear_cross_entropy(*arguments)

    def gradients() -> None:
        fsm.linear_cross_entropy(*arguments, return_grad=True, out=out)

    small = slice(0, 256)
    np.matmul(hidden[small], weight.T)
    print(f"{tokens} tokens x {d} features x {n} classes, float32, {options.threads} thread(s)\n")
    if Path("/proc/self/clear_refs").exists():
        for name, call in (("loss", loss), ("loss and gradients", gradients)):
            bytes_ = peak(call)
            share = bytes_ / (4 * tokens * n)
            print(f"{name}: {bytes_ / 2**20:.1f} MiB above the start, {share:.1%} of the logits")

    logits = np.zeros((tokens, n), np.float32)

    def product() -> None:
        np.matmul(hidden, weight.T, out=logits)

    def products() -> None:
        product()
        np.matmul(logits, weight, out=out[0])
        np.matmul(logits.T, hidden, out=out[1])

    calls = {"loss": loss, "product": product, "gradients": gradients, "products": products}
    seconds = _bench.medians(calls, options.rounds)
    for name, alone in (("loss", "product"), ("gradients", "products")):
        ratio = seconds[name] / seconds[alone]
        print(f"{name}: {seconds[name]:.2f} s, {ratio:.2f} times the {alone} alone")


if __name__ == "__main__":
    main()
