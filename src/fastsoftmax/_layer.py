"""Softmax and its logarithm as layers of a network: called forward, then asked for derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax._arguments import Array, Axes, Axis, result_dtype, to_array, working_dtype
from fastsoftmax._derivatives import (
    log_softmax_jacobian,
    log_softmax_vjp,
    softmax_jacobian,
    softmax_vjp,
)
from fastsoftmax._functions import log_softmax, softmax


class _Layer:
    axis: Axis
    output: Any
    _p: Any  # the probabilities of the last call
    _jacobian: ClassVar[Callable[..., Any]]
    _vjp: ClassVar[Callable[..., Any]]

    def __init__(self, axis: Axis = -1) -> None:
        self.axis = axis
        self.output = self._p = None

    def backward(self, grad: ArrayLike | None = None) -> Any:
        """
        The derivatives of the last call.

        Parameters
        ----------
        grad : array_like, optional
            The gradient of something with respect to the output, of its shape.

        Returns
        -------
        ndarray
            Without `grad`, the full Jacobian, of shape batch + (n, n), as `softmax_jacobian` or
            `log_softmax_jacobian` gives it. With it, the gradient with respect to the logits, as
            `softmax_vjp` or `log_softmax_vjp` gives it.

        Raises
        ------
        RuntimeError
            Before the first call.
        ValueError
            Where `grad` is not of the shape of the output.
        MemoryError
            Where the Jacobian is larger than the memory of the machine; `backward(grad)` needs
            none of it.
        """
        if self.output is None:
            raise RuntimeError("backward() needs the result of a call: call the layer with x first")
        if grad is None:
            return type(self)._jacobian(self._p, self.axis)
        gradient = to_array("grad", grad)
        if gradient.shape != np.shape(self.output):
            raise ValueError(
                f"grad has shape {gradient.shape}; that of the last output, "
                f"{np.shape(self.output)}, is expected"
            )
        return type(self)._vjp(self._p, gradient, self.axis)


class Softmax(_Layer):
    """
    Softmax as a layer: called with logits, then asked for the derivatives of that call.

    Parameters
    ----------
    axis : int, tuple of int or None
        The axis along which the output sums to 1.

    Attributes
    ----------
    axis : int, tuple of int or None
        As given.
    output : ndarray or None
        The result of the last call, which `backward` uses.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> layer = fsm.Softmax()
    >>> layer([[1.0, 2.0, 3.0]])
    array([[0.09003057, 0.24472847, 0.66524096]])
    >>> layer.backward().shape
    (1, 3, 3)
    >>> layer.backward([[1.0, 0.0, 0.0]])
    array([[ 0.08192507, -0.02203304, -0.05989202]])
    """

    _jacobian = softmax_jacobian
    _vjp = softmax_vjp

    def __call__(self, x: ArrayLike, normalization: bool = True) -> Any:
        """
        The probabilities of logits.

        Parameters
        ----------
        x : array_like
            Logits; dtypes, special values and errors as for `softmax`.
        normalization : bool
            True computes as `softmax` does. False is exp(x) / sum(exp(x)) as NumPy would have it,
            with its signals: 'overflow' where an exp(x) is too large, and NaN then.

        Returns
        -------
        ndarray
            Of the shape of `x`; kept, not copied, as `output`.
        """
        self.output = self._p = softmax(x, self.axis) if normalization else _plain(x, self.axis)
        return self.output


class LogSoftmax(_Layer):
    """
    The logarithm of softmax as a layer: called with logits, then asked for derivatives.

    Parameters
    ----------
    axis : int, tuple of int or None
        The axis along which the exponentials of the output sum to 1.

    Attributes
    ----------
    axis : int, tuple of int or None
        As given.
    output : ndarray or None
        The result of the last call.

    Notes
    -----
    A call computes the probabilities as well, and keeps them for `backward`: those made of the
    output would lose digits.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> layer = fsm.LogSoftmax()
    >>> layer([[0.0, 0.0, 40.0]])
    array([[-4.00000000e+01, -4.00000000e+01, -8.49670851e-18]])
    >>> layer.backward().shape
    (1, 3, 3)
    >>> layer.backward([[0.0, 0.0, -1.0]])
    array([[ 4.24835426e-18,  4.24835426e-18, -8.49670851e-18]])
    """

    _jacobian = log_softmax_jacobian
    _vjp = log_softmax_vjp

    def __call__(self, x: ArrayLike) -> Any:
        """
        The logarithms of the probabilities of logits.

        Parameters
        ----------
        x : array_like
            Logits; dtypes, special values and errors as for `log_softmax`.

        Returns
        -------
        ndarray
            Of the shape of `x`; kept, not copied, as `output`.
        """
        output = log_softmax(x, self.axis)
        p = softmax(x, self.axis)
        vanished = np.ma.filled((p == 0) & np.isfinite(output), False)  # they would count as masked
        if vanished.any():
            one = p.dtype.type(1)
            p[vanished] = np.nextafter(0 * one, one)
        self.output, self._p = output, p
        return output


def _plain(x: ArrayLike, axis: Axis) -> Any:
    """exp(x) / sum(exp(x)) by NumPy, with its signals."""
    source = to_array("x", x)
    dtype = result_dtype("x", source.dtype)
    e = np.exp(source.astype(working_dtype(dtype)))
    y: Array = e / e.sum(axis=Axes(source.shape, axis).reduced, keepdims=True)
    return y.astype(dtype, copy=False)
