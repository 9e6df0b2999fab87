"""The public functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _native


def softmax(x: ArrayLike, axis: int = -1) -> NDArray[Any]:
    """exp(x) / sum(exp(x)) along an axis."""
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    y: NDArray[Any] = np.empty_like(rows) if rows.size == 0 else _native.softmax(rows)
    return np.moveaxis(y, -1, axis)
