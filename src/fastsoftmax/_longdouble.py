"""The kernels for rows of longdouble, plainly, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rows(name: str, x: Array, temperature: Array) -> Array:
    """The function called `name` of rows x; temperature has shape () or that of the batch."""
    t = temperature[..., None]
    m = x.max(axis=-1, keepdims=True)
    # inf - inf below signals 'invalid'; logsumexp has an answer there
    without = ~np.isfinite(m) if name == "logsumexp" else np.isnan(m)
    shift = np.where(without, 0, m)
    d = x - shift
    with np.errstate(all="ignore"):
        b = x - d  # Knuth's two-sum: what rounding took from d
        lost = np.where(np.isfinite(d), (x - (d + b)) + (b - shift), 0)
        e = np.exp(d / t)
        e += e * (lost / t)
        first = np.arange(x.shape[-1]) == x.argmax(axis=-1, keepdims=True)
        rest = np.where(first, 0, e).sum(axis=-1, keepdims=True)
        log = np.log1p(rest)
        if name == "softmax":
            y = e / (1 + rest)
        else:
            y = shift + log if name == "logsumexp" else d / t - log
    y = np.where(np.isfinite(m), y, m if name == "logsumexp" else np.nan)
    return np.asarray(y[..., 0] if name == "logsumexp" else y)


def vjp(p: Array, g: Array) -> Array:
    """p * (g - sum(p * g)), relative to the largest p."""
    k = p.argmax(axis=-1, keepdims=True) if p.shape[-1] else np.zeros((*p.shape[:-1], 0), int)
    h = g - np.take_along_axis(g, k, axis=-1)
    return np.asarray(p * (h - (p * h).sum(axis=-1, keepdims=True)))


def jacobian(p: Array) -> Array:
    """p[i] * ((i == j) - p[j]), with 1 - p of the largest as the sum of the others."""
    y = 0 - p[..., :, None] * p[..., None, :]
    if p.size:
        i = np.arange(p.shape[-1])
        first = i == p.argmax(axis=-1, keepdims=True)
        others = np.where(first, 0, p).sum(axis=-1, keepdims=True)
        y[..., i, i] = p * np.where(first, others, 1 - p)
    return np.asarray(y)
