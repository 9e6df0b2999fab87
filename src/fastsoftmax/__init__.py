"""Softmax for NumPy, its logarithm and its derivatives.

Functions of arrays: `softmax`, `log_softmax`, `logsumexp`; derivatives from probabilities:
`softmax_vjp`, `softmax_jacobian`; both as a layer: `Softmax`.
"""

try:
    import fastsoftmax._native  # noqa: F401 - to explain, should it be missing
except ModuleNotFoundError as error:
    raise ImportError(
        "the compiled part of fastsoftmax is missing, for this Python at least: install the "
        "package, with 'pip install .' in its source folder (a C++20 compiler is needed)"
    ) from error
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
