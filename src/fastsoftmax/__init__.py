"""Softmax for NumPy, its logarithm and its derivatives."""

from fastsoftmax._derivatives import softmax_jacobian, softmax_vjp
from fastsoftmax._functions import log_softmax, logsumexp, softmax
from fastsoftmax._layer import Softmax

__all__ = [
    "Softmax",
    "log_softmax",
    "logsumexp",
    "softmax",
    "softmax_jacobian",
    "softmax_vjp",
]
__version__ = "0.1.0"
