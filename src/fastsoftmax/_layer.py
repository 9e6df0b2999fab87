"""Softmax as a layer of a network: called forward, then asked for derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax._arguments import Array, Axes, Axis, result_dtype, to_array, working_dtype
from fastsoftmax._derivatives import softmax_jacobian, softmax_vjp
from fastsoftmax._functions import softmax


class Softmax:
    """Softmax along an axis, and the derivatives of its last call."""

    axis: Axis
    output: Any

    def __init__(self, axis: Axis = -1) -> None:
        self.axis = axis
        self.output = None

    def __call__(self, x: ArrayLike, normalization: bool = True) -> Any:
        self.output = softmax(x, self.axis) if normalization else _plain(x, self.axis)
        return self.output

    def backward(self, grad: ArrayLike | None = None) -> Any:
        """The Jacobian, or the vector-Jacobian product."""
        if self.output is None:
            raise RuntimeError("backward() needs the result of a call: call the layer with x first")
        if grad is None:
            return softmax_jacobian(self.output, self.axis)
        gradient = to_array("grad", grad)
        if gradient.shape != np.shape(self.output):
            raise ValueError(
                f"grad has shape {gradient.shape}; that of the last output, "
                f"{np.shape(self.output)}, is expected"
            )
        return softmax_vjp(self.output, gradient, self.axis)


def _plain(x: ArrayLike, axis: Axis) -> Any:
    """exp(x) / sum(exp(x)) by NumPy, with its signals."""
    source = to_array("x", x)
    dtype = result_dtype("x", source.dtype)
    e = np.exp(source.astype(working_dtype(dtype)))
    y: Array = e / e.sum(axis=Axes(source.shape, axis).reduced, keepdims=True)
    return y.astype(dtype, copy=False)
