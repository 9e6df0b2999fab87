"""
The derivatives of softmax and log_softmax, from the probabilities.

The probabilities, not their logarithms: the largest may have lost what it lacks to 1, but the sum
of the others still has it, while exp(log p) is off by some 100 units where log p is -100. That of
logsumexp is the softmax itself.

Where p is 0 an element counts as masked: its derivatives are 0, and what the vectors hold there,
NaN or infinity, has no effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _longdouble, _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    Axis,
    check_memory,
    check_out,
    deliver,
    in_dtype,
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

    Where p is 0, as of masked elements, the result is 0 and g has no effect, even NaN.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_vjp(fsm.softmax([1.0, 2.0, 3.0]), [1.0, 0.0, 0.0])
    array([ 0.08192507, -0.02203304, -0.05989202])
    """
    done = _native.softmax_vjp(p, g, axis, out)
    return _product("softmax_vjp", axis, out, p=p, g=g) if done is None else done


def softmax_jvp(p: ArrayLike, t: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """
    How the softmax changes along a tangent: p * (t - sum(p * t)).

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them.
    t : array_like
        A change of the logits, of the shape of `p`; computed in its dtype.
    axis, out
        As for `softmax_vjp`.

    Returns
    -------
    ndarray
        The change of `p`, the Jacobian-vector product, of its shape and dtype: the numbers of
        `softmax_vjp`, for the Jacobian is symmetric.

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp` does.

    Notes
    -----
    Also the Hessian of `logsumexp` times `t`, for `softmax` is the gradient of that.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.softmax_jvp(fsm.softmax([1.0, 2.0, 3.0]), [1.0, 0.0, 0.0])
    array([ 0.08192507, -0.02203304, -0.05989202])
    """
    done = _native.softmax_vjp(p, t, axis, out)
    return _product("softmax_vjp", axis, out, p=p, t=t) if done is None else done


def softmax_vjp_derivative(
    p: ArrayLike, g: ArrayLike, t: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Any:
    """
    How the gradient back through softmax changes along a tangent; what double backward needs.

    With g fixed, and G = sum(p * g), T = sum(p * t)::

        p * ((g - G) * (t - T) - sum(p * (g - G) * (t - T)))

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them.
    g : array_like
        The gradient that `softmax_vjp` was given, of the shape of `p`; computed in its dtype.
    t : array_like
        A change of the logits, likewise.
    axis : int, tuple of int or None
        The axis along which `p` sums to 1.
    out : ndarray, optional
        Receives the result, and is returned; it may be `p`, `g` or `t`, or overlap them.

    Returns
    -------
    ndarray
        The derivative of ``softmax_vjp(softmax(x), g)`` with respect to x in the direction `t`,
        of the shape and dtype of `p`. Exchanging `g` and `t` leaves it as it is: these are the
        third derivatives of `logsumexp`.

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp` does.

    Notes
    -----
    In a double backward, v being the gradient with respect to the result of ``softmax_vjp(p, g)``,
    the gradient with respect to the logits is ``softmax_vjp_derivative(p, g, v)``, and with
    respect to g, ``softmax_vjp(p, v)``.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> p = fsm.softmax([1.0, 2.0, 3.0])
    >>> fsm.softmax_vjp_derivative(p, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    array([-0.0491078 ,  0.02931457,  0.01979323])
    """
    done = _native.softmax_vjp_derivative(p, g, t, axis, out)
    return _product("softmax_vjp_derivative", axis, out, p=p, g=g, t=t) if done is None else done


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
        is `softmax_vjp`, and needs none of it; `SoftmaxJacobian` has the rest.

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
    return _jacobian("softmax_jacobian", p, axis, out) if done is None else done


def log_softmax_vjp(
    p: ArrayLike, g: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Any:
    """
    The gradient back through log_softmax: g - p * sum(g).

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them, not their logarithms.
    g : array_like
        The gradient of something with respect to the logarithms of `p`, of the shape of `p`;
        computed in its dtype.
    axis, out
        As for `softmax_vjp`.

    Returns
    -------
    ndarray
        The gradient with respect to the logits, of the shape and dtype of `p`.

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp` does.

    Notes
    -----
    At the largest p it is computed as (sum of the other p) * g - p * (sum of the other g): for the
    p of `softmax`, within 4 units in the last place of
    (1 - p[i]) * abs(g[i]) + p[i] * sum(abs(g[j]) for j != i).

    Where p is 0, as of masked elements, the result is 0 and g has no effect, even NaN. A logit so
    far below the others that its p vanishes counts as masked too (float32: 104, float64: 746); the
    layer `LogSoftmax` knows the difference.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax_vjp(fsm.softmax([0.0, 0.0, 40.0]), [0.0, 0.0, -1.0])
    array([ 4.24835426e-18,  4.24835426e-18, -8.49670851e-18])
    """
    done = _native.log_softmax_vjp(p, g, axis, out)
    return _product("log_softmax_vjp", axis, out, p=p, g=g) if done is None else done


def log_softmax_jvp(
    p: ArrayLike, t: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Any:
    """
    How log_softmax changes along a tangent: t - sum(p * t).

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them, not their logarithms.
    t : array_like
        A change of the logits, of the shape of `p`; computed in its dtype.
    axis, out
        As for `softmax_vjp`.

    Returns
    -------
    ndarray
        The change of the logarithms, of the shape and dtype of `p`.

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp` does.

    Notes
    -----
    Computed as h - sum(p * h) with h = t - t[k], k the largest p: for the p of `softmax`, within 4
    units in the last place of abs(h[i]) + sum(p * abs(h)). Where p is 0 the result is 0, as for
    `log_softmax_vjp`.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax_jvp(fsm.softmax([1.0, 2.0, 3.0]), [1.0, 0.0, 0.0])
    array([ 0.90996943, -0.09003057, -0.09003057])
    """
    done = _native.log_softmax_jvp(p, t, axis, out)
    return _product("log_softmax_jvp", axis, out, p=p, t=t) if done is None else done


def log_softmax_jacobian(p: ArrayLike, axis: Axis = -1, *, out: Array | None = None) -> Any:
    """
    The Jacobian of log_softmax: J[..., i, j] = (i == j) - p[j].

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them, not their logarithms.
    axis, out
        As for `softmax_jacobian`.

    Returns
    -------
    ndarray
        Of the dtype of `p`, and the shape batch + (n, n); the change of logarithm i with logit j.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `softmax_jacobian` does.

    Notes
    -----
    The 1 - p of the largest p is taken as the sum of the others. Rows of p = 0 are 0, as for
    `log_softmax_vjp`.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> fsm.log_softmax_jacobian(fsm.softmax([1.0, 2.0, 3.0])).round(3)
    array([[ 0.91 , -0.245, -0.665],
           [-0.09 ,  0.755, -0.665],
           [-0.09 , -0.245,  0.335]])
    """
    done = _native.log_softmax_jacobian(p, axis, out)
    return _jacobian("log_softmax_jacobian", p, axis, out) if done is None else done


def _product(function: str, axis: Axis, out: Array | None, **arguments: ArrayLike) -> Any:
    """The function, of p and the vectors by name, for what the native one does not take."""
    sources = {name: to_array(name, value) for name, value in arguments.items()}
    p, *vectors = sources.values()
    dtype = result_dtype("p", p.dtype)
    for name, source in sources.items():
        result_dtype(name, source.dtype)
        if source.shape != p.shape:
            raise ValueError(f"{name} has shape {source.shape}; that of p, {p.shape}, is expected")
    axes = Axes(p.shape, axis)
    mask = _mask(p, *vectors)
    check_out(out, p.shape, dtype, mask is not None)

    kept = [_kept(a, mask) for a in sources.values()]
    stored = dtype if dtype.itemsize == 2 else working_dtype(dtype)
    y = room(out if axes.in_order else None, (*axes.batch, axes.n), stored, *sources.values())
    for at, rows in axes.parts(*((a, stored) for a in kept)):
        of_rows(function, y[at], *rows)
    return deliver(axes.back(y.astype(dtype, copy=False)), out, p, mask)


def _jacobian(function: str, p: ArrayLike, axis: Axis, out: Array | None) -> Any:
    source = to_array("p", p)
    dtype = result_dtype("p", source.dtype)
    axes = Axes(source.shape, axis)
    shape = (*axes.batch, axes.n, axes.n)
    mask = _mask(source)
    check_out(out, shape, dtype, mask is not None)
    working = working_dtype(dtype)
    if out is None:
        check_memory(shape, working)

    rows = axes.rows(_kept(source, mask), working)
    y = of_rows(function, room(out, shape, working, source), rows)
    if mask is not None:
        mask = axes.rows(mask)
        mask = mask[..., :, None] | mask[..., None, :]
    return deliver(in_dtype(y, dtype), out, source, mask)


def of_rows(function: str, y: Array, p: Array, *vectors: Array) -> Array:
    """The kernel called `function`, of rows of one dtype, in y."""
    if p.dtype.itemsize > 8:
        y[...] = getattr(_longdouble, function)(p, *vectors)
    elif y.size:
        getattr(_native, f"{function}_rows")(p, y, *vectors)
    return y


def _mask(*arrays: Array) -> Any:
    """What is masked in any of the arrays; None where none is a masked array."""
    masks = [np.ma.getmaskarray(a) for a in arrays if isinstance(a, np.ma.MaskedArray)]
    return np.logical_or.reduce(masks) if masks else None


def _kept(a: Array, mask: Any) -> Array:
    return np.asarray(a) if mask is None else np.where(mask, 0, np.asarray(a))
