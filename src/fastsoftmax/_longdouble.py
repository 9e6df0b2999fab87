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


def cross_entropy(
    x: Array,
    y: Array | None,
    targets: Array,
    weight: Array | None,
    ignored: int,
    kept: Any,
    spread: Any,
    z_loss: float,
    factor: Any,
) -> Array:
    """The loss of each row of x; its gradient, times factor, into y."""
    n, wide = x.shape[-1], x.dtype.type
    w = np.ones(n, wide) if weight is None else weight
    are_indices = targets.ndim == 1
    row_weight = np.ones(len(x), wide)
    counts = np.ones(len(x), bool)
    q = targets
    if are_indices:
        counts = targets != ignored
        safe = np.where(counts, targets, 0)
        q = (np.arange(n) == safe[:, None]).astype(wide)
        row_weight = w[safe]
    a = w * (wide(kept) * q + wide(spread))
    x = np.where(counts[:, None], x, 0)
    log_p, p = (rows(name, x, np.asarray(wide(1))) for name in ("log_softmax", "softmax"))
    z = wide(z_loss) * row_weight * rows("logsumexp", x, np.asarray(wide(1)))
    with np.errstate(all="ignore"):
        loss = -_sum(np.where(a == 0, 0, a * log_p))[:, 0]
        loss += 0 if z_loss == 0 else z * rows("logsumexp", x, np.asarray(wide(1)))
        if y is not None:
            y[...] = p * _sum(a) - a
            sure = (q == 1) & (p > 0.5) if are_indices else np.zeros(p.shape, bool)
            others = np.where(sure, 0, p), np.where(sure, 0, a)
            y[...] = np.where(sure, _sum(others[1]) - _sum(a) * _sum(others[0]), y)
            y[...] = factor * (y + 2 * z[:, None] * p)
            y[~counts] = 0
    return np.asarray(np.where(counts, loss, 0))


def softmax_vjp(p: Array, v: Array) -> Array:
    """p * (v - sum(p * v))."""
    return np.asarray(p * log_softmax_jvp(p, v))


def softmax_vjp_derivative(p: Array, v: Array, u: Array) -> Array:
    """p * (a * b - sum(p * a * b)), a and b being v and u less their means."""
    a, b = _relative(p, v), _relative(p, u)
    a_mean, b_mean = _sum(p * a), _sum(p * b)
    return np.asarray(p * ((a - a_mean) * (b - b_mean) - (_sum(p * a * b) - a_mean * b_mean)))


def log_softmax_jvp(p: Array, v: Array) -> Array:
    """v - sum(p * v)."""
    h = _relative(p, v)
    return np.where(p == 0, 0, h - _sum(p * h))


def log_softmax_vjp(p: Array, v: Array) -> Array:
    """v - p * sum(v)."""
    v = np.where(p == 0, 0, v)
    largest = is_largest(p)
    here = _one_less(p) * v - p * _sum(np.where(largest, 0, v))
    return np.where(largest, here, np.where(p == 0, 0, v - p * _sum(v)))


def softmax_jacobian(p: Array) -> Array:
    """p[i] * ((i == j) - p[j])."""
    y = 0 - p[..., :, None] * p[..., None, :]
    i = np.arange(p.shape[-1])
    y[..., i, i] = softmax_jacobian_diagonal(p)
    return np.asarray(y)


def softmax_jacobian_diagonal(p: Array) -> Array:
    """p * (1 - p)."""
    return np.asarray(p * _one_less(p))


def softmax_jacobian_eigenvalues(p: Array) -> Array:
    """The eigenvalues of diag(p) - p p^T for sorted p: the roots of x * sum(p / (p - x))."""
    y = np.where(np.isnan(p[..., -1:]), np.nan, np.concatenate([0 * p[..., :1], p[..., :-1]], -1))
    for index in np.ndindex(p.shape[:-1]):
        row = p[index]
        for i in np.flatnonzero((row[:-1] > 0) & (row[:-1] < row[1:])):
            low, high = row[i], row[i + 1]
            while (x := low + (high - low) / 2 if high < 2 * low else np.sqrt(low * high)) > low:
                if x >= high:
                    break
                low, high = (low, x) if (row / (row - x)).sum() > 0 else (x, high)
            y[(*index, i + 1)] = x
    return y


def log_softmax_jacobian(p: Array) -> Array:
    """(i == j) - p[j]."""
    y = np.repeat(0 - p[..., None, :], p.shape[-1], axis=-2)
    i = np.arange(p.shape[-1])
    y[..., i, i] = _one_less(p)
    return np.where(p[..., None] == 0, 0, y)


def _sum(a: Array) -> Array:
    return np.asarray(a.sum(axis=-1, keepdims=True))


def is_largest(p: Array) -> Array:
    """Whether an element is the first of the largest of its row."""
    if not p.shape[-1]:
        return np.zeros(p.shape, bool)
    return np.asarray(np.arange(p.shape[-1]) == p.argmax(axis=-1, keepdims=True))


def _relative(p: Array, v: Array) -> Array:
    """v less what it is at the largest p: what all of v have in common drops out; 0 where p is."""
    v = np.where(p == 0, 0, v)
    return np.where(p == 0, 0, v - _sum(np.where(is_largest(p), v, 0)))


def _one_less(p: Array) -> Array:
    """1 - p; for the largest p the sum of the others."""
    largest = is_largest(p)
    return np.where(largest, _sum(np.where(largest, 0, p)), 1 - p)
