"""Softmax, its logarithm and its loss as layers: called forward, then asked for derivatives."""

from __future__ import annotations

from typing import Any

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
from fastsoftmax._losses import Reduction, cross_entropy


class _Layer:
    axis: Axis
    _result: Any  # of the last call

    def __init__(self, axis: Axis = -1) -> None:
        self.axis = axis
        self._result = None

    @property
    def output(self) -> Any:
        return self._result

    def backward(self, grad: ArrayLike | None = None) -> Any:
        """
        The derivatives of the last call.

        Parameters
        ----------
        grad : array_like, optional
            The gradient of something with respect to the result of the call, of its shape.

        Returns
        -------
        ndarray
            Without `grad`, the full derivative with respect to the logits: of `Softmax` and
            `LogSoftmax` the Jacobian, of shape batch + (n, n), as `softmax_jacobian` or
            `log_softmax_jacobian` gives it; of `SoftmaxCrossEntropy` the gradient. With it, the
            gradient of that something with respect to the logits.

        Raises
        ------
        RuntimeError
            Before the first call.
        ValueError
            Where `grad` is not of the shape of the result.
        MemoryError
            Where the Jacobian is larger than the memory of the machine; `backward(grad)` needs
            none of it.
        """
        if self._result is None:
            raise RuntimeError("backward() needs the result of a call: call the layer with x first")
        if grad is None:
            return self._derivative()
        gradient, shape = to_array("grad", grad), np.shape(self._result)
        if gradient.shape != shape:
            raise ValueError(
                f"grad has shape {gradient.shape}; that of the last result, {shape}, is expected"
            )
        return self._vjp(gradient)

    def _derivative(self) -> Any:
        raise NotImplementedError

    def _vjp(self, grad: Array) -> Any:
        raise NotImplementedError


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
        self._result = softmax(x, self.axis) if normalization else _plain(x, self.axis)
        return self._result

    def _derivative(self) -> Any:
        return softmax_jacobian(self._result, self.axis)

    def _vjp(self, grad: Array) -> Any:
        return softmax_vjp(self._result, grad, self.axis)


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

    _p: Any  # the probabilities of the last call

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
        self._result, self._p = output, p
        return output

    def _derivative(self) -> Any:
        return log_softmax_jacobian(self._p, self.axis)

    def _vjp(self, grad: Array) -> Any:
        return log_softmax_vjp(self._p, grad, self.axis)


class SoftmaxCrossEntropy(_Layer):
    """
    Softmax and cross-entropy as the last layer: called with logits and targets, it gives the loss.

    Parameters
    ----------
    axis : int, tuple of int or None
        The axis of the classes.
    weight, ignore_index, label_smoothing, z_loss, reduction
        As for `cross_entropy`.

    Attributes
    ----------
    axis : int, tuple of int or None
        As given.
    output : ndarray or None
        The probabilities of the last call, computed when they are first asked for.

    Notes
    -----
    A call computes the gradient in the same sweep, and keeps it for `backward`. The logits are
    kept, not copied, for `output`.

    Examples
    --------
    >>> import fastsoftmax as fsm
    >>> layer = fsm.SoftmaxCrossEntropy()
    >>> layer([[1.0, 2.0, 3.0]], [2])
    np.float64(0.4076059644443803)
    >>> layer.backward()
    array([[ 0.09003057,  0.24472847, -0.33475904]])
    >>> layer.output
    array([[0.09003057, 0.24472847, 0.66524096]])
    """

    def __init__(
        self,
        axis: Axis = -1,
        *,
        weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(axis)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.reduction: Reduction = reduction
        self._logits: Any = None
        self._output: Any = None

    def __call__(self, logits: ArrayLike, targets: ArrayLike) -> Any:
        """
        The loss.

        Parameters
        ----------
        logits, targets : array_like
            As for `cross_entropy`.

        Returns
        -------
        scalar or ndarray
            As `cross_entropy` gives it.
        """
        self._result, self._grad = cross_entropy(
            logits,
            targets,
            self.axis,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            reduction=self.reduction,
            return_grad=True,
        )
        self._logits, self._output = logits, None
        return self._result

    @property
    def output(self) -> Any:
        if self._output is None and self._result is not None:
            self._output = softmax(self._logits, self.axis)
        return self._output

    def _derivative(self) -> Any:
        return self._grad

    def _vjp(self, grad: Array) -> Any:
        if np.ndim(self._result):
            grad = np.expand_dims(grad, Axes(np.shape(self._grad), self.axis).reduced)
        return (self._grad * grad).astype(self._grad.dtype, copy=False)


def _plain(x: ArrayLike, axis: Axis) -> Any:
    """exp(x) / sum(exp(x)) by NumPy, with its signals."""
    source = to_array("x", x)
    dtype = result_dtype("x", source.dtype)
    e = np.exp(source.astype(working_dtype(dtype)))
    y: Array = e / e.sum(axis=Axes(source.shape, axis).reduced, keepdims=True)
    return y.astype(dtype, copy=False)
