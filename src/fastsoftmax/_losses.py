"""cross_entropy: the loss, its gradient and its second derivatives."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _native
from fastsoftmax._arguments import (
    Array,
    Axis,
    check_out,
    contiguous,
    deliver,
    in_dtype,
    result_dtype,
    to_array,
)
from fastsoftmax._derivatives import of_rows
from fastsoftmax._functions import softmax
from fastsoftmax._loss_rows import Losses

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: Array | None = None,
) -> Any:
    """
    The loss -log(softmax(logits)[target]) and, in the same sweep, its gradient.

    Parameters
    ----------
    logits : array_like
        Real numbers; dtypes and special values as for `softmax`.
    targets : array_like
        Integers of the shape of `logits` without `axis`: the class of each row. Or floats of the
        shape of `logits`: the probabilities of the classes, computed in its dtype.
    axis : int, tuple of int or None
        The axis of the classes.
    weight : array_like, optional
        A weight for each class, of shape (n,).
    ignore_index : int, optional
        Rows with this index as target do not count: their loss and gradient are 0, whatever
        their logits are.
    label_smoothing : float
        From 0 to 1. The target is (1 - label_smoothing) * target + label_smoothing / n.
    z_loss : float
        Adds z_loss * logsumexp(logits)**2 to the loss of each row, times the row's weight.
    where : array_like of bool, optional
        True keeps an element, as for `softmax`: the others have no effect, and the gradient 0. A
        target that is not kept costs +inf; n, in `label_smoothing`, is the number of those kept.
    reduction : {"mean", "sum", "none"}
        "mean" is the sum divided by the weight of the rows: that of its class where `targets` are
        indices and the row is not ignored, else 1. With nothing to divide by it is NaN.
    return_grad : bool
        True gives (loss, gradient).
    out : ndarray, optional
        Receives the gradient, of the shape and dtype of `logits`; it may be `logits` itself, which
        without it is left as it is.

    Returns
    -------
    loss : scalar or ndarray
        Of the dtype that `softmax` would have; with reduction "none", of the shape of `logits`
        without `axis`.
    gradient : ndarray
        Only with `return_grad`: that of the loss with respect to `logits`, with reduction "none"
        of the sum.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        Where arguments do not fit; before anything is written.
    IndexError
        Where an index is neither that of a class nor `ignore_index`.

    Notes
    -----
    With m the largest logit and rest the sum of the other exp(x - m), the loss of a row is
    sum(a * (m - x)) + sum(a) * log1p(rest), a = weight * target; nothing cancels, and the loss
    keeps its digits however sure and right the model is. The gradient is p * sum(a) - a, but for
    the class that is the target, where it is made of the sum of the other p.

    Where a is 0, log(p) does not count, even if it is -inf.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.cross_entropy([[30.0, 0.0], [0.0, 0.0]], [0, 1], reduction="none")
    array([9.35762297e-14, 6.93147181e-01])
    >>> loss, grad = fsm.cross_entropy([[1.0, 2.0, 3.0]], [2], return_grad=True)
    >>> grad
    array([[ 0.09003057,  0.24472847, -0.33475904]])
    """
    given = (weight, ignore_index, label_smoothing, z_loss, where)
    done = _native.cross_entropy(logits, targets, axis, *given, reduction, return_grad, out)
    if done is not None:
        return done
    check_reduction(reduction)
    if out is not None and not return_grad:
        raise ValueError("out takes the gradient, which only return_grad=True computes")
    losses = Losses(logits, targets, axis, *given)
    check_out(out, losses.axes.shape, losses.dtype, losses.mask is not None)
    grad = losses.room(out) if return_grad else None
    if reduction == "none":
        each = np.empty(losses.axes.batch, losses.dtype)
        losses.run(grad, 1.0, each)
        loss = each[()]
    else:
        loss = losses.dtype.type(reduced(losses, reduction, grad))
    return loss if grad is None else (loss, deliver(grad, out, losses.source, losses.mask))


def cross_entropy_hvp(
    logits: ArrayLike,
    targets: ArrayLike,
    v: ArrayLike,
    axis: Axis = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> Any:
    """
    The Hessian of `cross_entropy` with respect to the logits, times a vector.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, z_loss, where, reduction
        As for `cross_entropy`; "none" is the Hessian of the sum.
    v : array_like
        A change of the logits, of their shape; computed in their dtype.
    out : ndarray, optional
        Receives the result, and is returned: of the shape and dtype of `logits`.

    Returns
    -------
    ndarray
        The change of the gradient, of the shape of `logits`.

    Raises
    ------
    TypeError, ValueError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    Notes
    -----
    Of a row, a * p * (v - sum(p * v)) with a the sum of weight * target, as exact as `softmax_vjp`;
    with z = z_loss times the row's weight, a grows by 2 * z * logsumexp, and 2 * z * p * sum(p * v)
    is added. Through logits that are linear in parameters it is the Hessian of these, through
    others their Gauss-Newton matrix.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.cross_entropy_hvp([[1.0, 2.0, 3.0]], [2], [[1.0, 0.0, 0.0]])
    array([[ 0.08192507, -0.02203304, -0.05989202]])
    """
    check_reduction(reduction)
    given = (weight, ignore_index, label_smoothing, z_loss, where)
    losses = Losses(logits, targets, axis, *given, copies=True)
    direction = to_array("v", v)
    result_dtype("v", direction.dtype)
    if direction.shape != losses.axes.shape:
        raise ValueError(
            f"v has shape {direction.shape}; that of logits, {losses.axes.shape}, is expected"
        )
    return _second_order(losses, np.asarray(direction), reduction, out)


def cross_entropy_hessian_diagonal(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> Any:
    """
    The diagonal of the Hessian of `cross_entropy`, as boosting objectives ask for it.

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, z_loss, where, reduction, out
        As for `cross_entropy_hvp`.

    Returns
    -------
    ndarray
        Of the shape of `logits`.

    Raises
    ------
    TypeError, ValueError, IndexError, numpy.exceptions.AxisError
        As `cross_entropy` does.

    Notes
    -----
    a * p * (1 - p), with the a of `cross_entropy_hvp`, and 2 * z * p**2; 1 - p of the largest p is
    the sum of the others.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.cross_entropy_hessian_diagonal([[1.0, 2.0, 3.0]], [2])
    array([[0.08192507, 0.18483645, 0.22269543]])
    """
    check_reduction(reduction)
    given = (weight, ignore_index, label_smoothing, z_loss, where)
    losses = Losses(logits, targets, axis, *given, copies=True)
    return _second_order(losses, None, reduction, out)


def _second_order(losses: Losses, v: Array | None, reduction: str, out: Array | None) -> Any:
    """The Hessian times v, or its diagonal."""
    axes, working = losses.axes, losses.working
    check_out(out, axes.shape, losses.dtype, losses.mask is not None)
    _, factor = divisor(losses, reduction)
    y = losses.room(out, v)
    result = y.transpose(axes.order)
    direction = None if v is None else v.transpose(axes.order)
    for block in losses.blocks():
        p = softmax(block.x)
        if block.keep is not None:
            p[~block.keep] = 0
        asked, z = losses.curvature(block)
        if direction is None:
            change = of_rows("softmax_jacobian_diagonal", np.empty_like(p), p)
            other = p * p
        else:
            u: Any = contiguous(direction[block.at], working).reshape(p.shape)
            u = np.where(p == 0, 0, u)
            change = of_rows("softmax_vjp", np.empty_like(p), p, u)
            other = p * (p * u).sum(axis=-1, keepdims=True)
        change *= (factor * asked).astype(working)[:, None]
        if losses.z_loss:
            change += (factor * z).astype(working)[:, None] * other
        change[~losses.counts(block)] = 0
        result[block.at] = in_dtype(change, y.dtype).reshape(result[block.at].shape)
    return deliver(y, out, losses.source, losses.mask)


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; 'mean', 'sum' or 'none' is expected")


def reduced(losses: Losses, reduction: str, grad: Array | None = None) -> Any:
    """The sum or the mean of the losses, not rounded to their dtype yet."""
    total, factor = divisor(losses, reduction)
    with np.errstate(all="ignore"):
        return np.divide(losses.run(grad, factor, None), total)


def divisor(losses: Losses, reduction: str) -> tuple[Any, Any]:
    """What the losses are divided by, and what their derivatives are multiplied with."""
    total = losses.total_weight() if reduction == "mean" else 1
    with np.errstate(all="ignore"):
        return total, losses.number(np.divide(losses.number(1), total))
