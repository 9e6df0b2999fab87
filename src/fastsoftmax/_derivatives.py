"""The derivatives of softmax, from its probabilities."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _longdouble, _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    Axis,
    check_out,
    deliver,
    result_dtype,
    to_array,
    working_dtype,
)


def softmax_vjp(p: ArrayLike, g: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """p * (g - sum(p * g))."""
    source, gradient = to_array("p", p), to_array("g", g)
    dtype = result_dtype("p", source.dtype)
    result_dtype("g", gradient.dtype)
    if gradient.shape != source.shape:
        raise ValueError(f"g has shape {gradient.shape}; that of p, {source.shape}, is expected")
    axes = Axes(source.shape, axis)
    mask = _mask(source, gradient)
    check_out(out, source.shape, dtype, mask is not None)

    working = working_dtype(dtype)
    rows, g_rows = (axes.rows(_kept(a, mask), working) for a in (source, gradient))
    y = axes.room(out, rows.shape, working, source, gradient)
    if working.itemsize > 8:
        y = _longdouble.vjp(rows, g_rows)
    elif rows.size:
        _native.softmax_vjp_rows(rows, y, g_rows)
    return deliver(axes.back(y.astype(dtype, copy=False)), out, source, mask)


def softmax_jacobian(p: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """p[i] * ((i == j) - p[j])."""
    source = to_array("p", p)
    dtype = result_dtype("p", source.dtype)
    axes = Axes(source.shape, axis)
    n = math.prod(source.shape[i] for i in axes.reduced)
    shape = (*axes.batch, n, n)
    mask = _mask(source)
    check_out(out, shape, dtype, mask is not None)
    working = working_dtype(dtype)
    if out is None:
        _check_memory(shape, working)

    rows = axes.rows(_kept(source, mask), working)
    y = axes.room(out, shape, working, source)
    if working.itemsize > 8:
        y = _longdouble.jacobian(rows)
    elif rows.size:
        _native.softmax_jacobian_rows(rows, y)
    if mask is not None:
        mask = axes.rows(mask)
        mask = mask[..., :, None] | mask[..., None, :]
    return deliver(y.astype(dtype, copy=False), out, source, mask)


def _mask(*arrays: Array) -> Any:
    """What is masked in any of the arrays; None where none is a masked array."""
    masks = [np.ma.getmaskarray(a) for a in arrays if isinstance(a, np.ma.MaskedArray)]
    return np.logical_or.reduce(masks) if masks else None


def _kept(a: Array, mask: Any) -> Array:
    return np.asarray(a) if mask is None else np.where(mask, 0, np.asarray(a))


def _check_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses a Jacobian larger than the machine's memory, before the kernel would swap or kill."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not known here: NumPy will try
        return
    if size > memory:
        raise MemoryError(
            f"the Jacobian, {shape} of {dtype.name}, takes {_in_words(size)}, more than the "
            f"{_in_words(memory)} of this machine; its products with a gradient need none of it: "
            f"softmax_vjp(p, g), or backward(grad) of the layer"
        )


def _in_words(size: float) -> str:
    return f"{size / 2**40:.1f} TiB" if size >= 2**40 else f"{size / 2**30:.1f} GiB"
