"""Softmax as a layer of a network: called forward, then asked for derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax._functions import softmax


class Softmax:
    """Rows of x to probabilities, and the derivatives of the last call."""

    output: NDArray[Any]

    def __call__(self, x: ArrayLike, normalization: bool = True) -> NDArray[Any]:
        if normalization:
            self.output = softmax(x)
        else:
            e = np.exp(np.asarray(x))
            self.output = e / e.sum(axis=-1, keepdims=True)
        return self.output

    def backward(self) -> NDArray[Any]:
        """The Jacobian, batch + (n, n)."""
        p = self.output
        jacobian: NDArray[Any] = p[..., :, None] * (np.eye(p.shape[-1]) - p[..., None, :])
        return jacobian
