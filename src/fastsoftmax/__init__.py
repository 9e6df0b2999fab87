"""Softmax for NumPy, its logarithm, its losses and their derivatives.

Functions of arrays: `softmax`, `log_softmax`, `logsumexp`; derivatives, from probabilities:
`softmax_vjp`, `softmax_jvp`, `softmax_vjp_derivative`, `softmax_jacobian`, `log_softmax_vjp`,
`log_softmax_jvp`, `log_softmax_jacobian`; the Jacobian as an operator: `SoftmaxJacobian`. The
gradient of `logsumexp` is `softmax`.

Losses, from logits: `cross_entropy` with its gradient, `cross_entropy_hvp`,
`cross_entropy_hessian_diagonal`, `linear_cross_entropy`; `perplexity`, `entropy`, `kl_divergence`.

Layers: `Softmax`, `LogSoftmax`, `SoftmaxCrossEntropy`.
"""

try:
    import fastsoftmax._native  # noqa: F401 - to explain, should it be missing
except ModuleNotFoundError as error:
    raise ImportError(
        "the compiled part of fastsoftmax is missing, for this Python at least: install the "
        "package, with 'pip install .' in its source folder (a C++20 compiler is needed)"
    ) from error
from fastsoftmax._derivatives import (
    log_softmax_jacobian,
    log_softmax_jvp,
    log_softmax_vjp,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
    softmax_vjp_derivative,
)
from fastsoftmax._entropy import entropy, kl_divergence, perplexity
from fastsoftmax._functions import log_softmax, logsumexp, softmax
from fastsoftmax._jacobian import SoftmaxJacobian
from fastsoftmax._layer import LogSoftmax, Softmax, SoftmaxCrossEntropy
from fastsoftmax._linear import linear_cross_entropy
from fastsoftmax._losses import (
    cross_entropy,
    cross_entropy_hessian_diagonal,
    cross_entropy_hvp,
)

__all__ = [
    "LogSoftmax",
    "Softmax",
    "SoftmaxCrossEntropy",
    "SoftmaxJacobian",
    "cross_entropy",
    "cross_entropy_hessian_diagonal",
    "cross_entropy_hvp",
    "entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "perplexity",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "softmax_vjp_derivative",
]
__version__ = "0.1.0"
