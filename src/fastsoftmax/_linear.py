"""linear_cross_entropy: the loss of a linear layer, without its logits in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax._arguments import (
    Array,
    check_out,
    contiguous,
    plain,
    result_dtype,
    working_dtype,
)
from fastsoftmax._loss_rows import Block, Losses, Total
from fastsoftmax._losses import Reduction, check_reduction, divisor

_BLOCK = 47 << 20  # bytes of logits that exist at a time
_CLASSES = 40 << 20  # the same where blocks are of classes: BLAS takes more of its own there
_ROWS = 4096  # a block of classes has as many rows, if there are: products of few rows are slow
_TILE = 3 << 19  # bytes of the gradient of the weight that are added up at a time, in a cache


def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """
    The cross-entropy of the logits hidden @ weight.T + bias, of which a few rows exist at a time.

    Parameters
    ----------
    hidden : array_like
        Of shape (..., d), d being the number of features. Its dtype and that of `weight` give the
        dtype of all results; what has another is converted.
    weight : array_like
        Of shape (n, d), n being the number of classes.
    targets : array_like
        Class indices of shape (...), or probabilities of shape (..., n).
    bias : array_like, optional
        Of shape (n,).
    class_weight : array_like, optional
        What `cross_entropy` calls weight.
    ignore_index, label_smoothing, z_loss, reduction
        As for `cross_entropy`.
    return_grad : bool
        True gives (loss, gradients).
    out : tuple of ndarray, optional
        Receives the gradients: arrays of the shapes of `hidden`, `weight` and, if given, `bias`,
        of the dtype of the result, which share no memory with the arguments.

    Returns
    -------
    loss : scalar or ndarray
        With reduction "none", of shape (...).
    gradients : tuple of ndarray
        Only with `return_grad`: those of the loss with respect to `hidden`, `weight` and, if given,
        `bias`; with reduction "none", of the sum.

    Raises
    ------
    TypeError, ValueError, IndexError
        Where arguments do not fit; before anything is written.

    Notes
    -----
    The products are NumPy's, and rounded as these are. 47 MiB of logits exist at a time, or those
    of one row, and their gradient takes their place. Of float32 and below, a loss alone to indices
    takes blocks of classes instead of rows: 40 MiB, or a class of 4096 rows. The method, for GPUs:
    P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv:2410.10989;
    E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> hidden, weight = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> loss, (d_hidden, d_weight) = fsm.linear_cross_entropy(
    ...     hidden, weight, [0, 1], return_grad=True
    ... )
    >>> bool(np.isclose(loss, fsm.cross_entropy(hidden @ weight.T, [0, 1])))
    True
    >>> d_hidden.shape, d_weight.shape
    ((2, 2), (3, 2))
    """
    check_reduction(reduction)
    given = {"hidden": plain("hidden", hidden), "weight": plain("weight", weight)}
    if bias is not None:
        given["bias"] = plain("bias", bias)
    dtype = np.result_type(*(result_dtype(name, a.dtype) for name, a in given.items()))
    dtype = result_dtype("hidden", dtype)
    working = working_dtype(dtype)
    h, w = given["hidden"], given["weight"]
    if w.ndim != 2 or h.ndim < 1 or h.shape[-1] != w.shape[1]:
        raise ValueError(
            f"hidden has shape {h.shape} and weight {w.shape}; (..., d) and (n, d) are expected"
        )
    n, d = w.shape
    if bias is not None and given["bias"].shape != (n,):
        raise ValueError(f"bias has shape {given['bias'].shape}; ({n},) is expected")
    logits = np.broadcast_to(np.zeros((), dtype), (*h.shape[:-1], n))  # their shape, no memory
    losses = Losses(
        logits,
        targets,
        -1,
        weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        after_blas=True,
        weight_name="class_weight",
    )
    read = [a for a in (losses.targets, losses.weight) if a is not None]
    grads = _room(out, given, read, dtype, return_grad)

    batch = h.shape[:-1]
    total, factor = divisor(losses, reduction)
    rows = h.reshape(-1, d)
    flat = losses.targets.reshape(-1) if losses.are_indices else losses.targets.reshape(-1, n)
    w = contiguous(w, working)
    b = None if bias is None else contiguous(given["bias"], working)
    each = np.empty(len(rows), dtype)
    add = _Gradients(grads, w, dtype) if return_grad else None
    sum_of_losses = Total(working)
    by_class = not add and losses.are_indices and not losses.smoothing and working.itemsize == 4
    least, at_once = (_ROWS, _CLASSES) if by_class else (1, max(_BLOCK, n * working.itemsize))
    at_once //= working.itemsize  # logits
    step = _rows_at_a_time(len(rows), max(least, at_once // n))
    scratch = np.empty(min(step * n, max(step, at_once)), working)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        x = contiguous(rows[some], working)
        t = contiguous(flat[some], np.int64 if losses.are_indices else working)
        if by_class:
            loss = _loss_by_class(losses, x, w, b, t, scratch)
        else:
            z = _product(x, w, b, scratch)
            loss = losses.of_block(Block((some,), z, t, None), z if add else None, factor)
        if reduction == "none":
            each[some] = loss
        else:
            sum_of_losses.add(loss)
        if add:
            add(some, x, z)
    with np.errstate(all="ignore"):
        mean = dtype.type(np.divide(sum_of_losses.value, total))
    result = each.reshape(batch)[()] if reduction == "none" else mean
    return (result, add.finished()) if add else result


def _rows_at_a_time(rows: int, most: int) -> int:
    """Blocks of nearly equal size, for products of few rows are slow, and of whole registers."""
    rows = max(1, rows)
    blocks = -(-rows // most)
    return min(-(-rows // (16 * blocks)) * 16, most, rows)


def _product(x: Array, w: Array, b: Array | None, scratch: Array) -> Array:
    """The logits x @ w.T + b, in scratch."""
    z = np.matmul(x, w.T, out=scratch[: len(x) * len(w)].reshape(len(x), len(w)))
    if b is not None:
        z += b
    return z


def _loss_by_class(
    losses: Losses, x: Array, w: Array, b: Array | None, t: Array, scratch: Array
) -> Array:
    """
    The losses of rows x to indices t, over blocks of classes: log(1 + sum(exp(z - z_t))).

    What float64 holds of the logarithm of that sum is enough for float32 to keep all digits of a
    small loss, if the target stays out of it.
    """
    blocks = -(-len(w) // max(1, len(scratch) // len(x)))
    rows, step = np.arange(len(x)), -(-len(w) // blocks)
    z_t, others = np.zeros(len(x)), np.full(len(x), -np.inf)
    for start in range(0, len(w), step):
        part = slice(start, start + step)
        z = _product(x, w[part], None if b is None else b[part], scratch)
        here = (t >= start) & (t < start + len(z[0]))
        reference = np.where(here, t - start, 0)
        z_r = z[rows, reference].astype(np.float64)
        np.copyto(z_t, z_r, where=here)
        finite = np.isfinite(z_r)
        here &= finite  # a target that is not stays in the sum
        if not finite.all():
            reference = np.where(finite, reference, z.argmax(axis=-1))
            z_r = z[rows, reference].astype(np.float64)
        nothing = np.isneginf(z_r)
        z[nothing] = 0
        loss = losses.plain_loss(z, reference)
        with np.errstate(all="ignore"):
            but_target = np.where(here, np.log(-np.expm1(-loss)), 0)  # log(exp(loss) - 1) - loss
            others = np.logaddexp(others, z_r + loss + but_target)
    with np.errstate(all="ignore"):
        return losses.weighted(np.logaddexp(0, others - z_t), np.logaddexp(z_t, others), t)


def _room(
    out: tuple[Array, ...] | None,
    given: dict[str, Array],
    read: list[Array],
    dtype: np.dtype[Any],
    return_grad: bool,
) -> tuple[Array, ...]:
    """Where the gradients go, one of each argument."""
    if out is None:
        return tuple(np.empty(a.shape, dtype) for a in given.values()) if return_grad else ()
    if not return_grad:
        raise ValueError("out takes the gradients, which only return_grad=True computes")
    if not isinstance(out, tuple) or len(out) != len(given):
        raise ValueError(f"out must be a tuple of {len(given)} arrays, for {', '.join(given)}")
    for y, (name, a) in zip(out, given.items(), strict=True):
        check_out(y, a.shape, dtype)
        if any(np.may_share_memory(y, b) for b in (*given.values(), *read)):
            raise ValueError(f"out for {name} shares memory with an argument")
    return out


class _Gradients:
    """The gradients of the arguments, added up over blocks of rows."""

    def __init__(self, grads: tuple[Array, ...], w: Array, dtype: np.dtype[Any]) -> None:
        self.grads, self.w = grads, w
        self.of_hidden = _own(grads[0], dtype).reshape(-1, w.shape[1])
        self.of_weight = _own(grads[1], w.dtype)
        self.is_first = True
        self.of_bias = np.zeros(len(w), np.promote_types(w.dtype, np.float64))
        self.step = max(1, _TILE // max(1, w.shape[1] * w.itemsize))
        self.part = np.empty((min(self.step, len(w)), w.shape[1]), w.dtype)

    def __call__(self, some: slice, x: Array, z: Array) -> None:
        """For rows x, whose logits have the gradient z."""
        np.matmul(z, self.w, out=self.of_hidden[some])
        for start in range(0, len(self.w), self.step):
            tile = self.of_weight[start : start + self.step]
            part = tile if self.is_first else self.part[: len(tile)]
            np.matmul(z[:, start : start + self.step].T, x, out=part)
            if not self.is_first:
                tile += part
        self.is_first = False
        if len(self.grads) > 2:
            self.of_bias += z.sum(axis=0, dtype=self.of_bias.dtype)

    def finished(self) -> tuple[Array, ...]:
        if self.is_first:
            self.of_weight[...] = 0
        for y, computed in zip(self.grads, (self.of_hidden, self.of_weight), strict=False):
            if not np.may_share_memory(y, computed):
                y[...] = computed.reshape(y.shape)
        if len(self.grads) > 2:
            self.grads[2][...] = self.of_bias
        return self.grads


def _own(y: Array, dtype: np.dtype[Any]) -> Array:
    """y, where products can be added up in it as it is, else an array beside it."""
    return y if y.flags.carray and y.dtype == dtype else np.empty(y.shape, dtype)
