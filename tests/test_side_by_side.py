"""Rows of a few elements are laid side by side, few columns as rows: any number, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import assert_same_bits, every_float, rows
from reference import Array

import fastsoftmax as fsm

MOST = 131  # more than go side by side at a time
COUNTS = [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 100, 128, 129, 131]
FEW = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 24, 31, 32, 33, 47]

Function = Callable[..., Array]


def softmax(x: Array, v: Array, out: Array, axis: int = -1) -> Array:
    return fsm.softmax(x, axis, out=out)


def log_softmax(x: Array, v: Array, out: Array, axis: int = -1) -> Array:
    return fsm.log_softmax(x, axis, out=out)


def softmax_vjp(x: Array, v: Array, out: Array, axis: int = -1) -> Array:
    return fsm.softmax_vjp(fsm.softmax(x, axis), v, axis, out=out)


def log_softmax_vjp(x: Array, v: Array, out: Array, axis: int = -1) -> Array:
    return fsm.log_softmax_vjp(fsm.softmax(x, axis), v, axis, out=out)


every_result = pytest.mark.parametrize(
    "function", [softmax, log_softmax, softmax_vjp, log_softmax_vjp]
)


@every_float
@pytest.mark.parametrize("n", range(2, 25))
@every_result
def test_any_number_of_rows(
    function: Function, n: int, dtype: np.dtype, rng: np.random.Generator
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
        itself, over = x[some].copy(), v[some].copy()
        assert_same_bits(function(itself, v[some], itself), alone[some])
        assert_same_bits(function(x[some], over, over), alone[some])


@every_float
@pytest.mark.parametrize("n", [3, 10, 20, 40, 70, 300, 1100])
@every_result
def test_any_number_of_columns(
    function: Function, n: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    x, v = rows(max(FEW), n, dtype, rng), rows(max(FEW), n, dtype, rng)
    alone = function(x, v, np.empty_like(x))
    for count in FEW:
        columns = [np.ascontiguousarray(a[:count].T) for a in (x, v)]
        among = np.zeros((n + 2, count), dtype=dtype)
        function(*columns, among[1:-1], axis=0)
        assert_same_bits(among[1:-1], alone[:count].T)
        assert not among[[0, -1]].any(), "written beyond the result"
        itself, over = (a.copy() for a in columns)
        assert_same_bits(function(itself, columns[1], itself, axis=0), alone[:count].T)
        assert_same_bits(function(columns[0], over, over, axis=0), alone[:count].T)
        infinite = columns[0].copy()
        infinite[rng.integers(n)] = np.inf  # what goes by itself then
        with np.errstate(invalid="ignore"):
            expected = function(infinite.T.copy(), v[:count], np.empty_like(v[:count]))
            got = function(infinite, columns[1], np.empty_like(infinite), axis=0)
        assert_same_bits(got, expected.T)


@every_float
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 12])
@every_result
def test_few_long_columns(
    function: Function, count: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Those that no cache holds go by chunks of 16384 elements."""
    for n in (33_333, 133_331):
        x, v = rows(count, n, dtype, rng), rows(count, n, dtype, rng)
        expected = function(x, v, np.empty_like(x)).T
        columns = [np.ascontiguousarray(a.T) for a in (x, v)]
        assert_same_bits(function(*columns, np.empty_like(columns[0]), axis=0), expected)
        for over in (0, 1):
            inputs = [a.copy() for a in columns]
            assert_same_bits(function(*inputs, inputs[over], axis=0), expected)


@every_float
@pytest.mark.parametrize("n", [10, 31, 32, 33, 48, 90, 200, 384])
@every_result
def test_narrow_blocks(
    function: Function, n: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """A middle axis with few elements after it: many blocks, the last of which are in less."""
    for after in (2, 3, 4, 5, 7, 8, 9, 13, 15, 16):
        blocks = 3000 // (n * after) + 3
        x, v = rows(blocks * after, n, dtype, rng), rows(blocks * after, n, dtype, rng)
        x[-1, n // 2] = np.inf  # goes by itself

        def as_blocks(a: Array, after: int = after) -> Array:
            return np.ascontiguousarray(a.reshape(-1, after, a.shape[-1]).transpose(0, 2, 1))

        with np.errstate(invalid="ignore"):
            expected = as_blocks(function(x, v, np.empty_like(x)))
            inputs = [as_blocks(a) for a in (x, v)]
            got = function(*inputs, np.empty_like(expected), axis=1)
            assert_same_bits(got, expected)
            for over in (0, 1):
                copies = [a.copy() for a in inputs]
                assert_same_bits(function(*copies, copies[over], axis=1), expected)
            if function is log_softmax:
                sums = fsm.logsumexp(x).reshape(-1, after)
                assert_same_bits(fsm.logsumexp(inputs[0], 1), sums)
