"""Multinomial regression on handwritten digits by Newton's method, the Hessian being an operator.

    python examples/multinomial.py

Fits the weights of 10 classes to the 1797 digits that come with scikit-learn, with SciPy's
optimisers: Newton-CG and trust-ncg with exact products with the Hessian, X^T J (X V), J being the
SoftmaxJacobian of all rows; Newton-CG without them, which takes differences of gradients instead;
and L-BFGS-B, which knows gradients only. All minimise the mean logarithmic loss plus
0.5e-4 * sum(W**2), and go on until no element of the gradient exceeds 1e-7.

It needs scikit-learn and SciPy.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import fastsoftmax as fsm

PENALTY = 1e-4
TOLERANCE = 1e-7


class Regression:
    """The penalised loss of flat weights, its gradient and the products with its Hessian."""

    def __init__(self, features: Any, classes: Any) -> None:
        self.features, self.classes = features, classes
        self.shape = features.shape[1], classes.max() + 1
        self.operator: fsm.SoftmaxJacobian | None = None
        self.at: Any = None

    def logits(self, weights: Any) -> Any:
        return self.features @ weights.reshape(self.shape)

    def loss(self, weights: Any) -> float:
        y = fsm.log_softmax(self.logits(weights))
        of_rows = np.take_along_axis(y, self.classes[:, None], axis=1)
        return float(PENALTY / 2 * weights @ weights - of_rows.mean())

    def gradient(self, weights: Any) -> Any:
        residual = fsm.softmax(self.logits(weights))
        residual[np.arange(len(residual)), self.classes] -= 1
        return (self.features.T @ residual).ravel() / len(residual) + PENALTY * weights

    def hessian_product(self, weights: Any, direction: Any) -> Any:
        if self.at is None or not np.array_equal(self.at, weights):  # many products at one point
            self.operator = fsm.SoftmaxJacobian(fsm.softmax(self.logits(weights)))
            self.at = weights.copy()
        change = self.operator @ self.logits(direction)
        return (self.features.T @ change).ravel() / len(change) + PENALTY * direction


def digits() -> Regression:
    """Pixels from 0 to 1 and a constant."""
    pixels, classes = load_digits(return_X_y=True)
    return Regression(np.column_stack([pixels / 16, np.ones(len(pixels))]), classes)


def fit(problem: Regression, method: str, hessp: Any = None) -> dict[str, Any]:
    """What SciPy finds, and how long it takes."""
    options = {
        "Newton-CG": {"xtol": 1e-8, "maxiter": 1000},
        "trust-ncg": {"gtol": TOLERANCE, "maxiter": 1000},
        "L-BFGS-B": {"gtol": TOLERANCE, "ftol": 0, "maxiter": 20000, "maxfun": 40000},
    }[method]
    start = time.perf_counter()
    result = minimize(
        problem.loss,
        np.zeros(problem.shape).ravel(),
        jac=problem.gradient,
        hessp=hessp,
        method=method,
        options=options,
    )
    return {
        "seconds": time.perf_counter() - start,
        "iterations": result.nit,
        "gradients": result.njev,
        "products": result.get("nhev", 0) if hessp else 0,
        "loss": result.fun,
        "largest": np.abs(problem.gradient(result.x)).max(),
        "weights": result.x,
    }


def main() -> None:
    problem = digits()
    runs = {
        "Newton-CG, exact products": fit(problem, "Newton-CG", problem.hessian_product),
        "trust-ncg, exact products": fit(problem, "trust-ncg", problem.hessian_product),
        "Newton-CG, differences of gradients": fit(problem, "Newton-CG"),
        "L-BFGS-B, gradients only": fit(problem, "L-BFGS-B"),
    }
    print("| | iterations | gradients | Hessian products | time | loss | largest gradient |")
    print("|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        print(
            f"| {name} | {run['iterations']} | {run['gradients']} | {run['products'] or '-'} "
            f"| {run['seconds']:.2f} s | {run['loss']:.12f} | {run['largest']:.0e} |"
        )
    right = problem.logits(runs["trust-ncg, exact products"]["weights"]).argmax(axis=1)
    print(f"\n{(right == problem.classes).mean():.2%} of the digits are told right")


if __name__ == "__main__":
    main()
