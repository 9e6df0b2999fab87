"""Softmax for NumPy, its logarithm and its derivatives."""

from fastsoftmax._functions import softmax
from fastsoftmax._layer import Softmax

__all__ = ["Softmax", "softmax"]
__version__ = "0.1.0"
