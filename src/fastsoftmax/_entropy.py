"""perplexity, entropy and kl_divergence: what else the loss measures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax._arguments import Array, Axis
from fastsoftmax._functions import log_softmax, softmax
from fastsoftmax._loss_rows import Losses
from fastsoftmax._losses import cross_entropy, reduced


def perplexity(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    where: ArrayLike | None = None,
) -> Any:
    """
    exp(mean cross-entropy): among how many equally likely classes the model would be as unsure.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, where
        As for `cross_entropy`.

    Returns
    -------
    scalar
        Of the dtype that `softmax` would have.

    Raises
    ------
    TypeError, ValueError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    Notes
    -----
    The mean is not rounded to the dtype of the result before the exponential is taken, but to
    float64 if that is the dtype: half a unit of a mean of m is up to m units of the result.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.perplexity([[0.0, 0.0, 0.0, 0.0]], [1])
    np.float64(4.0)
    """
    losses = Losses(logits, targets, axis, weight=weight, ignore_index=ignore_index, where=where)
    return losses.dtype.type(np.exp(reduced(losses, "mean")))


def entropy(logits: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None) -> Any:
    """
    The entropy of the probabilities of logits, -sum(p * log(p)), in nats.

    Parameters
    ----------
    logits, axis, where
        As for `cross_entropy`. Where nothing is kept, the entropy is 0.

    Returns
    -------
    scalar or ndarray
        Of the shape of `logits` without `axis`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    Notes
    -----
    sum(p * (m - x)) + log1p(rest), as the loss with the probabilities themselves as targets: no
    term is negative. Logits of float32 and less are computed in float64.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.entropy([[0.0, 0.0], [40.0, 0.0]])
    array([6.93147181e-01, 1.74182524e-16])
    """
    losses = Losses(logits, None, axis, where=where, copies=True)
    y = np.empty(losses.axes.batch, losses.dtype)
    for block in losses.blocks():
        x = block.x if losses.working.itemsize > 4 else block.x.astype(np.float64)
        p = softmax(x)
        if block.keep is not None:
            p[~block.keep] = 0
        y[block.at] = cross_entropy(x, p, reduction="none").reshape(y[block.at].shape)
    return y[()]


def kl_divergence(
    logits: ArrayLike, targets: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None
) -> Any:
    """
    The divergence of the model from its targets: sum(q * log(q / p)), p = softmax(logits).

    Parameters
    ----------
    logits, axis, where
        As for `cross_entropy`; targets that are not kept do not count.
    targets : array_like
        The probabilities q, of the shape of `logits`.

    Returns
    -------
    scalar or ndarray
        Of the shape of `logits` without `axis`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    Notes
    -----
    The sum of q * log(q / p) - q + p, whose terms are never negative, and of sum(q) - 1: where p
    and q nearly agree, nothing cancels but what the targets lack of summing to 1. Logits of float32
    and less are computed in float64. A q of 0 adds nothing, even where p is 0.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.kl_divergence([[0.0, 0.0]], [[0.25, 0.75]])
    array([0.13081204])
    """
    losses = Losses(logits, targets, axis, where=where, copies=True)
    if losses.are_indices:
        raise TypeError(f"targets has dtype {losses.targets.dtype.name}; floats are expected")
    y = np.empty(losses.axes.batch, losses.dtype)
    wide = np.promote_types(losses.working, np.float64)
    for block in losses.blocks():
        x, q = block.x.astype(wide, copy=False), np.asarray(block.targets).astype(wide, copy=False)
        p, log_p = softmax(x), log_softmax(x)
        if block.keep is not None:
            p, q = np.where(block.keep, p, 0), np.where(block.keep, q, 0)
        with np.errstate(all="ignore"):
            total = _relative_entropy(q, p, log_p).sum(axis=-1)
            total += (q.sum(axis=-1, dtype=np.longdouble) - p.any(axis=-1)).astype(wide)
        y[block.at] = total.reshape(y[block.at].shape)
    return y[()]


def _relative_entropy(q: Array, p: Array, log_p: Array) -> Array:
    """q * log(q / p) - q + p, without cancellation."""
    log_ratio = np.log(q / p)
    vanishes = ~(p >= np.finfo(p.dtype).tiny)
    log_ratio[vanishes] = np.log(q[vanishes]) - log_p[vanishes]
    y = np.where(q == 0, p, q * log_ratio - (q - p))
    r = (q - p) / p
    near = np.abs(r) < 0.05
    z = r[near]
    # (1 + r) log(1 + r) - r = r^2/2 - r^3/6 + r^4/12 - ...
    series = np.zeros_like(z)
    for k in range(16, 1, -1):
        series = z * ((-1) ** k / (k * (k - 1)) + series)
    y[near] = p[near] * series * z
    return y
