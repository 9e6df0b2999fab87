"""cross_entropy and its gradient: exact at every gap, for every kind of target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from reference import ulp_error, widen

import fastsoftmax as fsm

DTYPES = [np.float32, np.float64, np.longdouble]


def errors(x: Any, targets: Any, **options: Any) -> tuple[Any, Any, Any]:
    """Of the losses and gradients, in units in the last place; and the gradients."""
    loss, grad = reference.cross_entropy(x, targets, **options)
    got, got_grad = fsm.cross_entropy(x, targets, reduction="none", return_grad=True, **options)
    assert got.dtype == got_grad.dtype == x.dtype
    return ulp_error(got, loss, x.dtype), ulp_error(got_grad, grad, x.dtype), got_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64, 100, 300, 1000])
def test_every_gap(dtype: Any, n: int, rng: np.random.Generator) -> None:
    gaps = np.array([0, 1e-3, 0.5, 1, 3, 5, 9, 12, 14, 16, 18, 20, 25, 30, 50, 80, 100])
    x = rng.standard_normal((len(gaps), n)).astype(dtype)
    targets = rng.integers(0, n, len(gaps))
    x[np.arange(len(gaps)), targets] = x.max(axis=1) + gaps.astype(dtype)
    of_loss, of_grad, _ = errors(x, targets)
    assert of_loss.max() <= 4
    assert of_grad.max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 10, 64, 1000, 20000])
def test_gradient_rows_sum_to_zero(dtype: Any, n: int, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((20, n)) * np.geomspace(0.1, 30, 20)[:, None]).astype(dtype)
    _, grad = fsm.cross_entropy(x, rng.integers(0, n, 20), reduction="none", return_grad=True)
    largest = np.abs(grad).max(axis=1)
    assert (np.abs(widen(grad).sum(axis=1)) <= 4 * np.spacing(largest)).all()
