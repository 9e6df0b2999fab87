"""Rows of a few elements are laid side by side, whole vectors of them: any number, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import assert_same_bits, every_float, rows
from reference import Array

import fastsoftmax as fsm

MOST = 131  # more than go side by side at a time
COUNTS = [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 100, 128, 129, 131]


def softmax(x: Array, v: Array, out: Array) -> Array:
    return fsm.softmax(x, out=out)


def log_softmax(x: Array, v: Array, out: Array) -> Array:
    return fsm.log_softmax(x, out=out)


def softmax_vjp(x: Array, v: Array, out: Array) -> Array:
    return fsm.softmax_vjp(fsm.softmax(x), v, out=out)


def log_softmax_vjp(x: Array, v: Array, out: Array) -> Array:
    return fsm.log_softmax_vjp(fsm.softmax(x), v, out=out)


@every_float
@pytest.mark.parametrize("n", range(2, 25))
@pytest.mark.parametrize("function", [softmax, log_softmax, softmax_vjp, log_softmax_vjp])
def test_any_number_of_rows(
    function: Callable[[Array, Array, Array], Array],
    n: int,
    dtype: np.dtype,
    rng: np.random.Generator,
) -> None:
    x, v = rows(MOST, n, dtype, rng), rows(MOST, n, dtype, rng)
    alone = np.empty_like(x)
    for row in zip(x, v, alone, strict=True):
        function(*row)
    for count in COUNTS:
        first = rng.integers(MOST - count + 1)
        some = slice(first, first + count)
        among = np.zeros((count + 2, n), dtype=dtype)
        function(x[some], v[some], among[1:-1])
        assert_same_bits(among[1:-1], alone[some])
        assert not among[[0, -1]].any(), "written beyond the result"
        over = v[some].copy()
        assert_same_bits(function(x[some], over, over), alone[some])
