"""softmax, log_softmax and logsumexp.

Each tries the native call, which takes arrays of floats as they lie and answers None to anything
else; `_general` then makes such an array of it, or rows.
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
    contiguous,
    deliver,
    is_float,
    result_dtype,
    room,
    to_array,
    to_mask,
    to_temperature,
    working_dtype,
)

_ROWS = {
    "softmax": _native.softmax_rows,
    "log_softmax": _native.log_softmax_rows,
    "logsumexp": _native.logsumexp_rows,
}
_COLUMNS = {
    "softmax": _native.softmax_columns,
    "log_softmax": _native.log_softmax_columns,
    "logsumexp": _native.logsumexp_columns,
}
_MASKED = {"softmax": 0.0, "log_softmax": -np.inf, "logsumexp": -np.inf}
_SMALL = 2**16  # elements that are converted at once, not part by part
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
    """
    Probabilities from logits: exp(x / temperature) / sum(exp(x / temperature)).

    Parameters
    ----------
    x : array_like
        Real numbers. Floats (float16, bfloat16, float32, float64, longdouble) keep their dtype,
        16-bit ones being computed in float32; integers and bool give float64.
    axis : int, tuple of int or None
        The axis along which the result sums to 1: several together, or all (None).
    where : array_like of bool, optional
        True keeps an element. The others, whatever they are, have no effect and come out as 0;
        where nothing is kept, the result is 0. Broadcasts to the shape of `x`.
    temperature : float or array_like
        Divides `x`: positive and finite, of length 1 along `axis`.
    out : ndarray, optional
        Receives the result, and is returned: of the shape of `x` and the dtype of the result.
        It may be `x` itself, or overlap it.
    dtype : dtype, optional
        `x` is converted to this floating-point type first.

    Returns
    -------
    ndarray
        Of the shape of `x`; of floats that lie side by side in memory, along one axis and without
        `where`, in their order. A masked array for a masked array, whose mask counts as `where`; a
        scalar where `x` is one.

    Raises
    ------
    TypeError
        Where an argument is not of real numbers, or an array of another library.
    ValueError
        Where shapes do not fit, or the temperature is out of range.
    numpy.exceptions.AxisError
        Where `x` has no such axis.

    Notes
    -----
    Within 2 units in the last place of the exact value (float16 and bfloat16: 0.51). A row with
    NaN is NaN. A row with +inf, or with nothing but -inf, is NaN too, with the signal 'invalid'
    of `numpy.errstate`.

    The powers are taken of two, 2**(x * log2(e) / temperature), with log2(e) / temperature as the
    sum of two numbers, so that no rounded difference x - max(x) enters. What that difference
    costs: P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and
    softmax functions", IMA Journal of Numerical Analysis 41 (2021), 2311-2330.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> fsm.softmax([1.0, 2.0, 3.0])
    array([0.09003057, 0.24472847, 0.66524096])
    >>> fsm.softmax([[1.0, 2.0], [3.0, 3.0]], axis=None).sum()
    np.float64(1.0)
    >>> fsm.softmax([1.0, 2.0, 3.0], where=[True, True, False])
    array([0.26894142, 0.73105858, 0.        ])
    """
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
    """
    Logarithms of probabilities: x / temperature - logsumexp(x / temperature).

    Parameters
    ----------
    x, axis, where, temperature, out, dtype
        As for `softmax`; elements that `where` does not keep come out as -inf.

    Returns
    -------
    ndarray
        Of the shape of `x`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    Notes
    -----
    Within 2 units in the last place, also near 0: with m the largest element, and rest the sum
    of the other exp(x - m), the result is (x - m) - log1p(rest), two terms of one sign.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax([30.0, 0.0])
    array([-9.35762297e-14, -3.00000000e+01])
    """
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
    """
    The logarithm of the partition function: log(sum(exp(x))).

    Parameters
    ----------
    x, axis, where, dtype
        As for `softmax`.
    keepdims : bool
        Keeps the reduced axes, with length 1.
    out : ndarray, optional
        Receives the result, and is returned: of its shape and dtype.

    Returns
    -------
    ndarray or scalar
        Of the shape of `x` without the reduced axes. -inf where nothing is summed; +inf and -inf
        in `x` count as what they are, without a signal.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    Notes
    -----
    m + log1p(rest), with m the largest element and rest the sum of the other exp(x - m): within
    2 units in the last place of the larger of abs(m) and the result, which may cancel.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.logsumexp([[1000.0, 1000.0], [0.0, 0.0]])
    array([1.00069315e+03, 6.93147181e-01])
    """
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
        if not is_float(np.dtype(dtype)):
            raise TypeError(
                f"dtype is {np.dtype(dtype).name}; a real floating-point type is expected"
            )
        result = result_dtype("dtype", np.dtype(dtype))
    tried = source is x and source.dtype == result and dtype is None
    if type(source) is np.ndarray and not (tried or keepdims) and source.size <= _SMALL:
        array = source.astype(result, copy=False)
        y = getattr(_native, name)(array, axis, where, temperature, out, None)
        if y is not None:
            return y
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
    if mask is not None:
        keep = ~mask if keep is None else keep & ~mask
    y = None
    if (
        keep is None
        and not axes.in_order
        and values.dtype == working
        and t.max(initial=0) <= _LARGE
    ):
        y = _of_columns(name, axes.columns(values), t, out, shape)
    if y is None:
        direct = out if axes.in_order else None
        stored = result if result.itemsize == 2 and t.max(initial=0) <= _LARGE else working
        y = _of_rows(name, values, stored, axes, keep, t, direct, source)
        y = y.astype(result, copy=False)
        y = y.reshape(shape) if reduces else axes.back(y)
    if mask is not None:
        mask = mask.all(axis=axes.reduced, keepdims=keepdims) if reduces else mask
    return deliver(y, out, source, mask)


def _of_columns(
    name: str, x: Array | None, t: Array, out: Array | None, shape: tuple[int, ...]
) -> Array | None:
    """Along the middle axis of x, without a copy of the whole; None where that does not go."""
    if x is None or not x.size or x.dtype.itemsize > 8:
        return None
    y = room(out, shape, x.dtype, x, t)
    _COLUMNS[name](x, y, contiguous(t))
    return y


def _of_rows(
    name: str,
    x: Array,
    dtype: np.dtype[Any],
    axes: Axes,
    keep: Array | None,
    t: Array,
    out: Array | None,
    source: Array,
) -> Array:
    """
    Of shape batch + (n,), computed as dtype, the working type or one of 16 bits.

    What is not there already as contiguous rows of that type becomes it part by part.
    """
    shape = axes.batch if name == "logsumexp" else (*axes.batch, axes.n)
    y = room(out, shape, dtype, source, t, keep)
    if not x.size:
        y[...] = _MASKED[name]
        return y
    masks = [] if keep is None else [(keep, bool)]
    for at, (rows, *mask) in axes.parts((x, dtype), *masks):
        _of_part(name, rows, mask[0] if mask else None, t[at] if t.ndim else t, y[at] if at else y)
    return y


def _of_part(name: str, rows: Array, keep: Array | None, t: Array, y: Array) -> None:
    if keep is not None:
        # zeros in a row with nothing kept: nothing to signal there
        is_kept = keep.any(axis=-1, keepdims=True)
        nothing = -np.inf if name == "logsumexp" else np.where(is_kept, -np.inf, 0)
        rows = np.where(keep, rows, np.asarray(nothing, rows.dtype))
    if t.max() > _LARGE:
        rows = np.ldexp(rows, np.where(t > _LARGE, -64, 0)[..., None])
        t = np.where(t > _LARGE, t / _LARGE, t)
    if rows.dtype.itemsize > 8:
        y[...] = _longdouble.rows(name, rows, t)
    else:
        _ROWS[name](rows, y, contiguous(t))
    if keep is not None and name != "logsumexp":
        y[~keep] = _MASKED[name]
