"""Logits and targets of a loss: checked, and handed to the kernel a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _longdouble, _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    Axis,
    contiguous,
    in_dtype,
    plain,
    result_dtype,
    to_array,
    to_mask,
    working_dtype,
)
from fastsoftmax._functions import logsumexp

_DIRECT = 1 << 22  # elements of a block that is computed where it is
_COPIED = 1 << 18  # of one that is copied first
_NOTHING_IGNORED = -(2**63)


class Block(NamedTuple):
    """Some rows, contiguous and of the working dtype: views, where that is possible."""

    at: tuple[Any, ...]  # their indices in the batch
    x: Array
    targets: Array | None  # int64 indices, or probabilities; None for losses without targets
    keep: Array | None


class Losses:
    """
    Logits, targets and what modifies them, as `cross_entropy` takes them.

    Attributes
    ----------
    source, values : the logits, as given and as a plain array.
    dtype, working : of the result, and of the computation.
    axes : the rows.
    mask : what is masked in the logits, or None.
    copies : whether what is made of a block takes memory; blocks are smaller then.
    after_blas : whether threads of BLAS were busy just before.
    """

    def __init__(
        self,
        logits: ArrayLike,
        targets: ArrayLike | None,
        axis: Axis,
        weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        *,
        copies: bool = False,
        after_blas: bool = False,
        weight_name: str = "weight",
    ) -> None:
        self.source = to_array("logits", logits)
        self.dtype = result_dtype("logits", self.source.dtype)
        self.working = working_dtype(self.dtype)
        self.axes = Axes(self.source.shape, axis)
        self.values = np.asarray(self.source)
        if not self.axes.n:
            raise ValueError(f"logits has shape {self.axes.shape}: no class along axis {axis}")
        self._set_targets(targets)
        self.ignored = _NOTHING_IGNORED
        if ignore_index is not None:
            if not self.are_indices:
                raise ValueError("ignore_index is for targets that are indices, not probabilities")
            self.ignored = int(ignore_index)
        self.weight = None if weight is None else self._to_weight(weight_name, weight)
        self.number: Any = np.longdouble if self.working.itemsize > 8 else float
        self.smoothing = self.number(label_smoothing)
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, not {label_smoothing!r}")
        self.z_loss = float(z_loss)
        if not math.isfinite(self.z_loss):
            raise ValueError(f"z_loss must be finite, not {z_loss!r}")
        self.mask: Any = None
        self.keep = to_mask(where, self.axes.shape)
        if isinstance(self.source, np.ma.MaskedArray):
            self.mask = np.ma.getmaskarray(self.source)
            self.keep = ~self.mask & (True if self.keep is None else self.keep)
        self.copies, self.after_blas = copies, after_blas
        if self.are_indices:
            self._check_indices()

    def _set_targets(self, targets: ArrayLike | None) -> None:
        self.targets: Any = None
        self.are_indices = False
        if targets is None:
            return
        given, axes = plain("targets", targets), self.axes
        self.targets, self.are_indices = given, given.dtype.kind in "iu"
        result_dtype("targets", given.dtype)
        expected = axes.batch if self.are_indices else axes.shape
        if given.shape != expected or given.dtype.kind == "b":
            raise ValueError(
                f"targets has dtype {given.dtype.name} and shape {given.shape}; indices of shape "
                f"{axes.batch}, that of logits without the axis, or probabilities, floats of shape "
                f"{axes.shape}, are expected"
            )

    def _to_weight(self, name: str, weight: ArrayLike) -> Array:
        given = plain(name, weight)
        result_dtype(name, given.dtype)
        if given.shape != (self.axes.n,):
            raise ValueError(
                f"{name} has shape {given.shape}; ({self.axes.n},) is expected, one for each class"
            )
        return contiguous(given, self.working)

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
        """Of the rows that count: what the mean divides by."""
        if not self.are_indices:
            return math.prod(self.axes.batch)
        total = Total(self.working)
        for index in _blocks(self.axes.batch, _COPIED):
            t = self.targets[index].reshape(-1)
            if self.ignored != _NOTHING_IGNORED:
                t = t[t != self.ignored]
            total.add(np.array([t.size]) if self.weight is None else self.weight[t])
        return total.value

    def room(self, out: Array | None, *others: Array | None) -> Array:
        """Where a result goes: out, unless it is memory of something else that is read."""
        if type(out) is np.ndarray:
            x = self.values
            same = out.dtype == x.dtype and out.strides == x.strides
            same = same and out.ctypes.data == x.ctypes.data
            read = [self.targets, self.weight, self.keep, None if same else x, *others]
            if not any(a is not None and np.may_share_memory(out, a) for a in read):
                return out
        return np.empty(self.axes.shape, self.dtype)

    def blocks(self) -> Iterator[Block]:
        axes, n = self.axes, self.axes.n
        x: Any
        targets: Any
        keep: Any
        x, targets, keep = (
            a if a is None or a.shape != axes.shape else a.transpose(axes.order)
            for a in (self.values, self.targets, self.keep)
        )
        direct = x.flags.carray and x.dtype == self.working and keep is None and not self.copies
        for index in _blocks(axes.batch, max(1, (_DIRECT if direct else _COPIED) // n)):
            rows: Any = contiguous(x[index], self.working).reshape(-1, n)
            t: Any = None
            if self.are_indices:
                t = contiguous(targets[index], np.int64).reshape(-1)
            elif targets is not None:
                t = contiguous(targets[index], self.working).reshape(-1, n)
            kept = None
            if keep is not None:
                kept = keep[index].reshape(-1, n)
                nothing = np.where(kept.any(axis=-1, keepdims=True), -np.inf, 0)
                rows = np.where(kept, rows, nothing.astype(rows.dtype))
            yield Block(index, rows, t, kept)

    def run(self, grad: Array | None, factor: Any, each: Array | None) -> Any:
        """The sum of all losses; those of the rows into `each`, their gradients into `grad`."""
        total = Total(self.working)
        for block in self.blocks():
            y = part = None
            if grad is not None:
                part = grad.transpose(self.axes.order)[block.at]
                own = part.flags.carray and part.dtype == self.working
                y = part.reshape(block.x.shape) if own else np.empty(block.x.shape, self.working)
            loss = self.of_block(block, y, factor)
            if each is None:
                total.add(loss)
            else:
                each[block.at] = loss.reshape(each[block.at].shape)
            if y is not None and part is not None and not own:
                part[...] = in_dtype(y, part.dtype).reshape(part.shape)
        return total.value

    def of_block(self, block: Block, y: Array | None, factor: Any) -> Array:
        kept, n = 1 - self.smoothing, self.axes.n
        if block.keep is None:
            spread = self.smoothing / n
            return self._kernel(block.x, y, block.targets, kept, spread, self.z_loss, factor)
        loss = self._kernel(block.x, y, block.targets, kept, 0.0, self.z_loss, factor)
        if self.smoothing:  # the loss is linear in the target: that of the other share is added
            uniform = block.keep / np.maximum(block.keep.sum(axis=-1, keepdims=True), 1)
            more: Any = None if y is None else np.empty_like(y)
            q = uniform.astype(self.working)
            other = self._kernel(block.x, more, q, self.smoothing, 0.0, 0.0, factor)
            counts = self.counts(block)
            loss += np.where(counts, other, 0)
            if y is not None:
                y += np.where(counts[:, None], more, 0)
        nothing = ~block.keep.any(axis=-1)
        if nothing.any():
            t: Any = block.targets
            asks = self.counts(block) if self.are_indices else (t != 0).any(axis=-1)
            loss[nothing] = np.where(asks[nothing], np.inf, 0)
        if y is not None:
            y[~block.keep] = 0
        return loss

    def plain_loss(self, x: Array, t: Array) -> Array:
        """Of rows to indices t, in float64, without anything that modifies it."""
        loss = np.empty(len(x))
        options = (None, _NOTHING_IGNORED, 1.0, 0.0, 0.0, 1.0)
        _native.cross_entropy_rows(x, None, t, *options, loss, self.after_blas)
        return loss

    def weighted(self, loss: Array, logsumexp: Array, t: Array) -> Array:
        """Of rows to indices t, with weight and z_loss, and 0 where they are ignored."""
        counts = t != self.ignored
        w = 1.0 if self.weight is None else self.weight[np.where(counts, t, 0)].astype(np.float64)
        loss = np.where(np.isposinf(loss) & (w == 0), 0, loss)
        loss = w * loss
        if self.z_loss:
            loss += self.z_loss * w * logsumexp**2
        return np.where(counts, loss, 0)

    def _kernel(
        self,
        x: Array,
        y: Array | None,
        targets: Any,
        kept: Any,
        spread: Any,
        z_loss: float,
        factor: Any,
    ) -> Array:
        options = (self.weight, self.ignored, kept, spread, z_loss, factor)
        if self.working.itemsize > 8:
            return _longdouble.cross_entropy(x, y, targets, *options)
        loss = np.empty(len(x))
        if x.size:
            _native.cross_entropy_rows(x, y, targets, *options, loss, self.after_blas)
        return loss

    def curvature(self, block: Block) -> tuple[Array, Array]:
        """Of each row, what multiplies diag(p) - p p^T in its Hessian, and what p p^T."""
        t: Any = block.targets
        wide = np.promote_types(self.working, np.float64)
        n = self.axes.n if block.keep is None else block.keep.sum(axis=-1)
        w = np.ones(self.axes.n, wide) if self.weight is None else self.weight.astype(wide)
        of_row: Any = np.ones(len(block.x), wide)
        if self.are_indices:
            asked = of_row = w[np.where(self.counts(block), t, 0)]
        else:
            asked = (w * np.where(True if block.keep is None else block.keep, t, 0)).sum(axis=-1)
        all_weights = (w * (True if block.keep is None else block.keep)).sum(axis=-1)
        asked = (1 - self.smoothing) * asked + self.smoothing * all_weights / np.maximum(n, 1)
        if not self.z_loss:
            return asked, 0 * asked
        z = 2 * self.z_loss * of_row
        return asked + z * logsumexp(block.x.astype(wide, copy=False)), z

    def counts(self, block: Block) -> Array:
        """Which rows are not ignored."""
        if not self.are_indices:
            return np.ones(len(block.x), bool)
        return np.asarray(block.targets != self.ignored)


class Total:
    """A sum that keeps what rounding takes from it."""

    def __init__(self, working: np.dtype[Any]) -> None:
        self.wide = working.itemsize > 8
        self.high: Any = 0.0
        self.low: Any = 0.0

    def add(self, values: Array) -> None:
        if self.wide:
            self.high += values.sum(dtype=np.longdouble)
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
