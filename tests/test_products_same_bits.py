"""The same row gives the same bits, of products with Jacobians: see test_same_bits.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import LIMITS, assert_same_bits, cast, every_float, rows
from reference import SHORT, from_wide, ulp_error

import fastsoftmax as fsm

every_product = pytest.mark.parametrize(
    "product", [fsm.softmax_vjp, fsm.log_softmax_vjp, fsm.log_softmax_jvp]
)


@np.errstate(invalid="ignore")  # of longdouble
@every_float
@every_product
@pytest.mark.parametrize("size", [1 << 13, 1 << 19])
def test_products_of_long_rows_whose_elements_lie_apart(
    product: Any, dtype: np.dtype, size: int, rng: np.random.Generator
) -> None:
    """Few columns, and long strided rows, go by chunks; if their mean is not finite, gathered.

    Long rows among other elements are read where they are.
    """
    n = size // dtype.itemsize + 3
    x = 3 * rng.standard_normal((3, n))
    x[1, 1:3] = 15, 20  # more than a half
    p = fsm.softmax(cast(x, dtype))
    v = cast(rng.standard_normal((3, n)), dtype)
    for first, value, step in ((0, 1, 2), (1, np.inf, 4)):
        p[0, first] = 0  # does not count
        v[:2, first] = value
        expected = product(p, v)
        apart = [np.repeat(a, step, axis=1)[:, ::step] for a in (p, v)]
        assert_same_bits(product(*apart), expected)
        assert_same_bits(product(p, apart[1]), expected)
        among = [np.pad(a, ((0, 0), (3, 5)))[:, 3:-5] for a in (p, v)]
        assert_same_bits(product(*among), expected)
        assert_same_bits(product(among[0], v), expected)
        columns = [np.ascontiguousarray(a.T) for a in (p, v)]
        assert_same_bits(product(*columns, axis=0), expected.T)
        middle = [np.stack([a, a[::-1].copy()]) for a in columns]
        got = product(*middle, axis=1, out=middle[1])
        assert_same_bits(got[0], expected.T)
        assert_same_bits(got[1], product(p[:, ::-1].copy(), v[:, ::-1].copy()).T)


@every_float
@pytest.mark.parametrize("n", [255, 256, 700])
def test_second_derivatives_of_rows_among_others(
    n: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    arrays = [fsm.softmax(rows(5, n, dtype, rng)), rows(5, n, dtype, rng), rows(5, n, dtype, rng)]
    expected = fsm.softmax_vjp_derivative(*arrays)
    among = [np.pad(a, ((0, 0), (1, 2)))[:, 1:-2] for a in arrays]
    assert_same_bits(fsm.softmax_vjp_derivative(*among), expected)
    for i in range(3):
        some = [among[k] if k == i else arrays[k] for k in range(3)]
        assert_same_bits(fsm.softmax_vjp_derivative(*some), expected)


def test_a_constant_vector_has_no_product(rng: np.random.Generator) -> None:
    """Not even one of -0, in any layout: what rounding leaves of the mean is not its sign."""
    for n in (100, 1000, 300_000):
        p = fsm.softmax(rng.standard_normal((2, n)).astype(np.float16))
        v = np.full_like(p, 0.7)
        assert_same_bits(fsm.softmax_vjp(p, v), np.zeros_like(p))
        assert_same_bits(fsm.softmax_vjp(p.T.copy(), v.T.copy(), axis=0), np.zeros_like(p.T))


@every_float
@every_product
def test_products_of_two_beside_rows_of_their_own_way(
    product: Any, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Rows of two go side by side; those without a finite mean, or with an odd weight, alone."""
    p, v = fsm.softmax(rows(200, 2, dtype, rng)), rows(200, 2, dtype, rng)
    p[::7], p[3], p[50], p[90] = 0.25 * p[::7], [0, 1], 0, 0.5
    v[3], v[90], v[130] = [np.nan, 1], [np.nan, 2], [3, 3]
    alone = np.array([product(*row) for row in zip(p, v, strict=True)], dtype)
    assert np.isfinite(alone[3].astype(float)).all()
    assert np.isnan(alone[90].astype(float)).any()
    assert_same_bits(product(p, v), alone)
    assert_same_bits(product(p.T.copy(), v.T.copy(), 0), alone.T)
    blocks = [a.reshape(4, 50, 2).swapaxes(1, 2) for a in (p, v, alone)]
    assert_same_bits(product(*(a.copy() for a in blocks[:2]), 1), blocks[2])
    assert_same_bits(product(*blocks[:2], 1), blocks[2])
    assert_same_bits(product(p, v, out=v), alone)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@every_product
def test_products_of_pairs_of_16_bits(
    product: Any, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """In float32, wherever they are: enough for the last bit, but not for differences too large."""
    p = fsm.softmax(cast(2 * rng.standard_normal((1 << 17, 2)), dtype))
    v = cast(rng.standard_normal(p.shape) * 10.0 ** rng.integers(-2, 3, p.shape), dtype)
    v[:50] = cast([1e39, -1e39], dtype)  # the largest
    got = product(p, v)
    assert_same_bits(product(np.repeat(p, 2, axis=1)[:, ::2], v), got)
    assert_same_bits(product(p.T.copy(), v.T.copy(), axis=0), got.T)
    middle = [a.reshape(-1, 16, 2).swapaxes(1, 2).copy() for a in (p, v, got)]
    assert_same_bits(product(*middle[:2], axis=1), middle[2])
    p_0, p_1, v_0, v_1 = np.concatenate([p, v], axis=1).astype(float).T
    if product is fsm.log_softmax_vjp:
        expected = p_1 * v_0 - p_0 * v_1
    else:
        expected = p_1 * (v_0 - v_1) / (p_0 + p_1) * (p_0 if product is fsm.softmax_vjp else 1)
    errors = ulp_error(got[:, 0], from_wide(expected.astype(np.longdouble)), dtype)
    assert errors.max() <= LIMITS[dtype]


@every_product
def test_products_of_weights_beyond_one(product: Any, rng: np.random.Generator) -> None:
    """Which in float16 do not add up exactly in float32: rows go the way of columns."""
    for n in (40, 100, 3000):
        p = (3 * fsm.softmax(8 * rng.standard_normal((30, n)))).astype(np.float16)
        v = (5 + rng.standard_normal((30, n))).astype(np.float16)
        expected = product(p.astype(np.float32), v.astype(np.float32)).astype(np.float16)
        assert_same_bits(product(p, v), expected)
        assert_same_bits(product(p.T.copy(), v.T.copy(), 0), expected.T)


@every_float
def test_products_of_the_logarithm_where_a_p_is_above_one_half(
    dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Its product comes from the sums of the others; of two, which no probabilities are, not."""
    for n in (2, 3, 15, 16, 17, 40, 100, 257, 16384 + 7, (1 << 19) // dtype.itemsize + 3):
        count = 40 if n < 1000 else 5 + 20_000 // n * 4
        x, v = 3 * rng.standard_normal((2, count, n))
        x[np.arange(count), rng.integers(n, size=count)] += rng.choice([0, 15], count)
        p, v = fsm.softmax(cast(x, dtype)), cast(v, dtype)
        columns = [np.ascontiguousarray(a.T) for a in (p, v)]
        expected = np.array([fsm.log_softmax_vjp(*row) for row in zip(p, v, strict=True)], dtype)
        assert_same_bits(fsm.log_softmax_vjp(p, v), expected)
        assert_same_bits(fsm.log_softmax_vjp(*columns, axis=0), expected.T)
        assert_same_bits(fsm.log_softmax_vjp(p, v, out=v.copy()), expected)
        if dtype.itemsize > 8:
            continue
        infinite = v.copy()
        infinite[1, n // 2] = np.inf
        got = fsm.log_softmax_vjp(columns[0], infinite.T.copy(), axis=0)
        assert_same_bits(got, fsm.log_softmax_vjp(p, infinite).T)
        p[3, [0, n - 1]] = 0.75
        columns[0][[0, n - 1], 3] = 0.75
        expected = fsm.log_softmax_vjp(p, v)
        weight, value = p[3].astype(float), np.where(p[3] == 0, 0, v[3].astype(float))
        plain = value - weight * value.sum()
        np.testing.assert_allclose(expected[3].astype(float), plain, rtol=0.02, atol=0.02)
        assert_same_bits(fsm.log_softmax_vjp(*columns, axis=0, out=columns[1]), expected.T)
