"""cross_entropy, and what belongs to it: a block of rows at a time, in native code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _longdouble, _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    Axis,
    check_out,
    contiguous,
    deliver,
    plain,
    result_dtype,
    to_array,
    to_mask,
    working_dtype,
)

_DIRECT = 1 << 22  # elements of a block that is computed where it is
_COPIED = 1 << 18  # of one that is copied first
_NOTHING_IGNORED = -(2**63)


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
    reduction: str = "mean",
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
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; 'mean', 'sum' or 'none' is expected")
    if out is not None and not return_grad:
        raise ValueError("out takes the gradient, which only return_grad=True computes")
    losses = _Losses(logits, targets, axis, weight, ignore_index, where)
    losses.set_smoothing(label_smoothing)
    losses.z_loss = _number("z_loss", z_loss)
    check_out(out, losses.axes.shape, losses.dtype, losses.mask is not None)
    total = losses.total_weight() if reduction == "mean" else 1
    with np.errstate(all="ignore"):
        factor = float(np.divide(1, total))
    grad = losses.room(out) if return_grad else None
    each = np.empty(losses.axes.batch, losses.dtype) if reduction == "none" else None
    total_loss = losses.run(grad, factor, each)
    loss: Any = each[()] if each is not None else losses.dtype.type(0)
    if each is None:
        with np.errstate(all="ignore"):
            loss = losses.dtype.type(np.divide(total_loss, total))
    return (loss, deliver(grad, out, losses.source, losses.mask)) if grad is not None else loss


def _number(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return number


class _Losses:
    """Logits and targets, checked, and computed by blocks of rows."""

    def __init__(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        axis: Axis,
        weight: ArrayLike | None,
        ignore_index: int | None,
        where: ArrayLike | None,
    ) -> None:
        self.source = to_array("logits", logits)
        self.dtype = result_dtype("logits", self.source.dtype)
        self.working = working_dtype(self.dtype)
        self.axes = axes = Axes(self.source.shape, axis)
        if not axes.n:
            raise ValueError(f"logits has shape {axes.shape}: no class along axis {axis}")
        self.targets = plain("targets", targets)
        self.ignored = _NOTHING_IGNORED
        if self.targets.dtype.kind in "iu":
            self.are_indices = True
            if self.targets.shape != axes.batch:
                raise ValueError(
                    f"targets has shape {self.targets.shape}; indices of shape {axes.batch} are "
                    f"expected, that of logits without the axis"
                )
            if ignore_index is not None:
                self.ignored = int(ignore_index)
        else:
            self.are_indices = False
            result_dtype("targets", self.targets.dtype)
            if self.targets.shape != axes.shape or self.targets.dtype.kind == "b":
                raise ValueError(
                    f"targets has dtype {self.targets.dtype.name} and shape {self.targets.shape}; "
                    f"integers of shape {axes.batch} or floats of shape {axes.shape} are expected"
                )
            if ignore_index is not None:
                raise ValueError("ignore_index is for targets that are indices, not probabilities")
        self.weight = None
        if weight is not None:
            given = plain("weight", weight)
            result_dtype("weight", given.dtype)
            if given.shape != (axes.n,):
                raise ValueError(
                    f"weight has shape {given.shape}; ({axes.n},) is expected, one for each class"
                )
            self.weight = contiguous(given, self.working)
        self.mask: Any = None
        self.keep = to_mask(where, axes.shape)
        if isinstance(self.source, np.ma.MaskedArray):
            self.mask = np.ma.getmaskarray(self.source)
            self.keep = ~self.mask & (True if self.keep is None else self.keep)
        self.values = np.asarray(self.source)
        self.z_loss = 0.0
        self.smoothing = 0.0
        if self.are_indices:
            self._check_indices()

    def set_smoothing(self, label_smoothing: float) -> None:
        self.smoothing = float(label_smoothing)
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, not {label_smoothing!r}")

    def _check_indices(self) -> None:
        t, n = self.targets, self.axes.n
        if not t.size or (t.min() >= 0 and t.max() < n):
            return
        wrong = ((t < 0) | (t >= n)) & (t != self.ignored)
        if wrong.any():
            at = tuple(int(i) for i in np.unravel_index(wrong.argmax(), t.shape))
            raise IndexError(
                f"targets[{', '.join(map(str, at))}] is {t[at]}; an index from 0 to {n - 1} is "
                f"expected" + ("" if self.ignored == _NOTHING_IGNORED else f", or {self.ignored}")
            )

    def total_weight(self) -> Any:
        """Of the rows that count."""
        if not self.are_indices:
            return math.prod(self.axes.batch)
        total, ignores = _Total(self.working), self.ignored != _NOTHING_IGNORED
        for index in _blocks(self.axes.batch, _COPIED):
            t = self.targets[index].reshape(-1)
            if ignores:
                t = t[t != self.ignored]
            if self.weight is None:
                total.high += t.size
            else:
                total.add(self.weight[t])
        return total.value

    def room(self, out: Array | None) -> Array:
        """Where the gradient goes: out, unless it is memory of something else that is read."""
        if out is None or type(out) is not np.ndarray:
            return np.empty(self.axes.shape, self.dtype)
        same = (
            out.__array_interface__["data"] == self.values.__array_interface__["data"]
            and out.strides == self.values.strides
            and out.dtype == self.values.dtype
        )
        read = [self.targets, self.weight, self.keep, None if same else self.values]
        if any(a is not None and np.may_share_memory(out, a) for a in read):
            return np.empty(self.axes.shape, self.dtype)
        return out

    def run(self, grad: Array | None, factor: float, each: Array | None) -> Any:
        """The sum of all losses; those of the rows into `each`, their gradients into `grad`."""
        axes, n, batch = self.axes, self.axes.n, len(self.axes.batch)
        x = self.values.transpose(axes.order)
        g = None if grad is None else grad.transpose(axes.order)
        targets = self.targets if self.are_indices else self.targets.transpose(axes.order)
        keep = None if self.keep is None else self.keep.transpose(axes.order)
        direct = axes.in_order and x.dtype == self.working and x.flags.carray and keep is None
        total = _Total(self.working)
        for index in _blocks(axes.batch, max(1, (_DIRECT if direct else _COPIED) // n)):
            rows: Array = contiguous(x[index], self.working).reshape(-1, n)
            if self.are_indices:
                t: Array = contiguous(targets[index], np.int64).reshape(-1)
            else:
                t = contiguous(targets[index], self.working).reshape(-1, n)
            y: Array | None = None
            if g is not None:
                part = g[index]
                own = part.flags.carray and part.dtype == self.working
                y = part.reshape(-1, n) if own else np.empty(rows.shape, self.working)
            if keep is None:
                loss = self._loss(rows, y, t, 1 - self.smoothing, self.smoothing / n, factor)
            else:
                loss = self._loss_where(rows, y, t, keep[index].reshape(-1, n), factor)
            if each is None:
                total.add(loss)
            else:
                each[index] = loss.reshape(x[index].shape[:batch])
            if g is not None and y is not None and not own:
                part[...] = y.reshape(part.shape)
        return total.value

    def _loss(
        self, x: Array, y: Array | None, t: Array, kept: float, spread: float, factor: float
    ) -> Array:
        """Of contiguous rows."""
        options = (self.weight, self.ignored, kept, spread, self.z_loss, factor)
        if self.working.itemsize > 8:
            return _longdouble.cross_entropy(x, y, t, *options)
        loss = np.empty(len(x))
        if x.size:
            _native.cross_entropy_rows(x, y, t, *options, loss)
        return loss

    def _loss_where(self, x: Array, y: Array | None, t: Array, keep: Array, factor: float) -> Array:
        """Of rows some of whose elements count, without touching x."""
        nothing = ~keep.any(axis=-1)
        x = np.where(keep, x, np.where(nothing, 0, -np.inf)[:, None].astype(x.dtype))
        loss = self._loss(x, y, t, 1 - self.smoothing, 0.0, factor)
        if self.smoothing:  # the loss is linear in the target: that of the other share is added
            uniform = keep / np.maximum(keep.sum(axis=-1, keepdims=True), 1)
            counts = t != self.ignored if self.are_indices else np.ones(len(t), bool)
            z_loss, self.z_loss = self.z_loss, 0.0
            more: Any = None if y is None else np.empty_like(y)
            other = self._loss(x, more, uniform.astype(x.dtype), self.smoothing, 0.0, factor)
            self.z_loss = z_loss
            loss += np.where(counts, other, 0)
            if y is not None:
                y += np.where(counts[:, None], more, 0)
        if nothing.any():
            asks = t != self.ignored if self.are_indices else (t != 0).any(axis=-1)
            loss[nothing] = np.where(asks[nothing], np.inf, 0)
        if y is not None:
            y[~keep] = 0
        return loss


class _Total:
    """A sum that keeps what rounding takes from it."""

    def __init__(self, working: np.dtype[Any]) -> None:
        self.wide = working.itemsize > 8
        self.high: Any = 0.0
        self.low: Any = 0.0

    def add(self, values: Array) -> None:
        if self.wide:
            self.high += values.sum()
            return
        part = _native.sum(values.astype(np.float64, copy=False))
        self.high, low = _native.sum(np.array([self.high, *part]))
        self.low += low

    @property
    def value(self) -> Any:
        return self.high + self.low


def _blocks(batch: tuple[int, ...], rows: int) -> Iterator[tuple[Any, ...]]:
    """Indices of parts of a batch, of about so many rows, that together are all of it."""
    axis, inner = len(batch), 1
    while axis and inner * batch[axis - 1] <= rows:
        axis -= 1
        inner *= batch[axis]
    if not axis:
        yield (...,)
        return
    step = max(1, rows // max(inner, 1))
    for outer in np.ndindex(batch[: axis - 1]):
        for start in range(0, batch[axis - 1], step):
            yield (*outer, slice(start, start + step))
