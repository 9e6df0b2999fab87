"""softmax, log_softmax and logsumexp.

Each tries the native call, which takes contiguous rows of float32 or float64 as they are and
answers None to anything else; `_general` then makes rows of whatever it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastsoftmax import _longdouble, _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    Axis,
    check_out,
    deliver,
    result_dtype,
    to_array,
    to_mask,
    to_temperature,
    working_dtype,
)

_KERNELS = {
    "softmax": _native.softmax_rows,
    "log_softmax": _native.log_softmax_rows,
    "logsumexp": _native.logsumexp_rows,
}
_MASKED = {"softmax": 0.0, "log_softmax": -np.inf, "logsumexp": -np.inf}
_LARGE = (
    2.0**64
)  # temperatures beyond, and x with them, are scaled down so that no threshold overflows


def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    out: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """exp(x / temperature) / sum(exp(x / temperature)) along an axis."""
    y = _native.softmax(x, axis, where, temperature, out, dtype)
    return _general("softmax", x, axis, where, temperature, out, dtype) if y is None else y


def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    out: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """The logarithm of softmax."""
    y = _native.log_softmax(x, axis, where, temperature, out, dtype)
    return _general("log_softmax", x, axis, where, temperature, out, dtype) if y is None else y


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """log(sum(exp(x))) along an axis."""
    y = None if keepdims else _native.logsumexp(x, axis, where, 1.0, out, dtype)
    return _general("logsumexp", x, axis, where, 1.0, out, dtype, keepdims) if y is None else y


def _general(
    name: str,
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    temperature: ArrayLike,
    out: Array | None,
    dtype: DTypeLike | None,
    keepdims: bool = False,
) -> Any:
    source = to_array("x", x)
    result = result_dtype("x", source.dtype)
    if dtype is not None:
        result = np.dtype(dtype)
        if result_dtype("dtype", result) != result or result.kind == "b":
            raise TypeError(f"dtype is {result.name}; a real floating-point type is expected")
    working = working_dtype(result)
    axes = Axes(source.shape, axis)
    reduces = name == "logsumexp"
    shape = (axes.kept if keepdims else axes.batch) if reduces else source.shape
    mask: Any = np.ma.getmaskarray(source) if isinstance(source, np.ma.MaskedArray) else None
    keep = to_mask(where, source.shape)
    t = to_temperature(temperature, axes, working)
    check_out(out, shape, result, mask is not None)

    values = np.asarray(source)
    if dtype is not None:
        values = values.astype(result, copy=False)
    rows = axes.rows(values, working)
    if mask is not None:
        keep = ~mask if keep is None else keep & ~mask
    if keep is not None:
        keep = axes.rows(keep)
        # zeros in a row with nothing kept: nothing to signal there
        nothing = -np.inf if reduces else np.where(keep.any(axis=-1, keepdims=True), -np.inf, 0)
        rows = np.where(keep, rows, np.asarray(nothing, working))
    if (t > _LARGE).any():
        rows = np.ldexp(rows, np.where(t > _LARGE, -64, 0)[..., None])
        t = np.where(t > _LARGE, t / _LARGE, t)

    y = _of_rows(
        name, rows, t, axes.room(out, rows.shape[:-1] if reduces else rows.shape, working, source)
    )
    if keep is not None and not reduces:
        y[~keep] = _MASKED[name]
    y = y.astype(result, copy=False)
    y = y.reshape(shape) if reduces else axes.back(y)
    if mask is not None:
        mask = mask.all(axis=axes.reduced, keepdims=keepdims) if reduces else mask
    return deliver(y, out, source, mask)


def _of_rows(name: str, rows: Array, t: Array, y: Array) -> Array:
    """The function of contiguous rows, of shape batch + (n,); y has room for it."""
    if not rows.size:
        return np.full(y.shape, _MASKED[name], rows.dtype)
    if rows.dtype.itemsize > 8:
        return _longdouble.rows(name, rows, t)
    _KERNELS[name](rows, y, np.require(t, np.float64, ["C", "A"]))
    return y
