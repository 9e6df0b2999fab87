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
    room,
    to_array,
    working_dtype,
)


def softmax_vjp(p: ArrayLike, g: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """
    The gradient back through softmax: p * (g - sum(p * g)).

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them.
    g : array_like
        The gradient of something with respect to `p`, of the same shape; computed in the dtype
        of `p`.
    axis : int, tuple of int or None
        The axis along which `p` sums to 1.
    out : ndarray, optional
        Receives the result, and is returned; it may be `p` or `g`, or overlap them.

    Returns
    -------
    ndarray
        The gradient with respect to the logits, of the shape and dtype of `p` (float64 where
        that is of integers): the vector-Jacobian product, without the Jacobian. With a
        temperature, divide it by that.

    Raises
    ------
    TypeError
        Where an argument is not of real numbers, or an array of another library.
    ValueError
        Where shapes do not fit.

    Notes
    -----
    Computed as p * (h - sum(p * h)) with h = g - g[k], k the largest p: what all of g have in
    common drops out before it is rounded, and with p[k] near 1 nothing cancels. For the p of
    `softmax`, within 4 units in the last place of p[i] * (abs(h[i]) + sum(p * abs(h))).

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_vjp(fsm.softmax([1.0, 2.0, 3.0]), [1.0, 0.0, 0.0])
    array([ 0.08192507, -0.02203304, -0.05989202])
    """
    done = _native.softmax_vjp(p, g, axis, out)
    if done is not None:
        return done
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
    y = room(out if axes.in_order else None, rows.shape, working, source, gradient)
    if working.itemsize > 8:
        y = _longdouble.vjp(rows, g_rows)
    elif rows.size:
        _native.softmax_vjp_rows(rows, y, g_rows)
    return deliver(axes.back(y.astype(dtype, copy=False)), out, source, mask)


def softmax_jacobian(p: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """
    The Jacobian of softmax: J[..., i, j] = p[i] * ((i == j) - p[j]).

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them.
    axis : int, tuple of int or None
        The axis along which `p` sums to 1.
    out : ndarray, optional
        Receives the result, and is returned.

    Returns
    -------
    ndarray
        Of the dtype of `p`, and the shape batch + (n, n): batch being the other axes of `p`, n
        the length of the axis (of several, their product, the last running fastest).

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp` does.
    MemoryError
        Where the Jacobian is larger than the memory of the machine. Its product with a gradient
        is `softmax_vjp`, and needs none of it.

    Notes
    -----
    Symmetric to the bit. The diagonal is p[i] * (1 - p[i]) with the 1 - p of the largest p taken
    as the sum of the others: for the p of `softmax`, entries are within 5 units in the last
    place.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_jacobian(fsm.softmax([1.0, 2.0, 3.0])).round(3)
    array([[ 0.082, -0.022, -0.06 ],
           [-0.022,  0.185, -0.163],
           [-0.06 , -0.163,  0.223]])
    """
    done = _native.softmax_jacobian(p, axis, out)
    if done is not None:
        return done
    source = to_array("p", p)
    dtype = result_dtype("p", source.dtype)
    axes = Axes(source.shape, axis)
    shape = (*axes.batch, axes.n, axes.n)
    mask = _mask(source)
    check_out(out, shape, dtype, mask is not None)
    working = working_dtype(dtype)
    if out is None:
        _check_memory(shape, working)

    rows = axes.rows(_kept(source, mask), working)
    y = room(out, shape, working, source)
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
