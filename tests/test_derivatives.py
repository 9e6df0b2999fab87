"""softmax_vjp and softmax_jacobian: no digits lost to probabilities near 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, cast, every_float, record_error
from reference import Array, rows_of, ulp_error, widen
from test_layer import assert_jacobian, assert_vjp, spacing

import fastsoftmax as fsm

FLOATS = [np.float32, np.float64]
every_precision = pytest.mark.parametrize("dtype", FLOATS)


def gaps(dtype: type) -> Array:
    """Rows with one logit 0 to 80 above the others."""
    gap = np.linspace(0, 80, 161)
    return np.stack([gap, 0 * gap, 0 * gap - 0.7, gap / 2], axis=1).astype(dtype)


@every_precision
def test_jacobian_at_every_gap(dtype: type) -> None:
    x = gaps(dtype)
    got = fsm.softmax_jacobian(fsm.softmax(x))
    errors = ulp_error(got, reference.jacobian(x), dtype)
    record_error("softmax_jacobian", dtype, errors)
    assert errors.max() <= 5
    assert_same_bits(got, got.swapaxes(-1, -2))


@every_precision
def test_vjp_at_every_gap(dtype: type, rng: np.random.Generator) -> None:
    x = gaps(dtype)
    for offset in (0, 1e4):
        g = (offset + rng.standard_normal(x.shape)).astype(dtype)
        got = fsm.softmax_vjp(fsm.softmax(x), g)
        assert_vjp(got, x, g)
    one = np.array([0, 1, 0, 0], dtype)  # by far not the largest p: the derivative of p[1]
    got = fsm.softmax_vjp(fsm.softmax(x), np.broadcast_to(one, x.shape))
    assert (got[-1, :2] != 0).all()
    np.testing.assert_allclose(got, fsm.softmax_jacobian(fsm.softmax(x))[:, 1], rtol=2e-6)


@every_precision
@pytest.mark.parametrize("n", [3, 50, 1000, 40_000])
def test_vjp_error_of_long_rows(dtype: type, n: int, rng: np.random.Generator) -> None:
    """With the p that is given taken as exact."""
    p = fsm.softmax(4 * rng.standard_normal((2, n))).astype(dtype)
    g = (100 + rng.standard_normal((2, n))).astype(dtype)
    wide, h = widen(p), widen(g)
    h = h - np.take_along_axis(h, p.argmax(axis=1)[:, None], axis=1)
    exact = wide * (h - (wide * h).sum(axis=1, keepdims=True))
    scale = wide * (np.abs(h) + (wide * np.abs(h)).sum(axis=1, keepdims=True))
    errors = np.abs(fsm.softmax_vjp(p, g) - exact) / spacing(scale, np.dtype(dtype))
    record_error("softmax_vjp", dtype, errors)
    assert errors.max() <= 1.6


@every_precision
def test_jacobian_is_symmetric_to_the_bit(dtype: type, rng: np.random.Generator) -> None:
    for n in (1, 2, 5, 17, 64, 100):
        jacobian = fsm.softmax_jacobian(fsm.softmax(5 * rng.standard_normal((3, n)).astype(dtype)))
        assert_same_bits(jacobian, jacobian.swapaxes(-1, -2))
        assert not np.signbit(jacobian[:, np.arange(n), np.arange(n)]).any()


@every_float
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None], ids=str)
def test_axes(axis: Any, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = cast(rng.standard_normal((3, 4, 2)), dtype)
    g = cast(rng.standard_normal((3, 4, 2)), dtype)
    p = fsm.softmax(x, axis)
    for layout in (p, np.asfortranarray(p), p[::-1][::-1]):
        assert_vjp(fsm.softmax_vjp(layout, g, axis), x, g, axis)
        got = fsm.softmax_jacobian(layout, axis)
        assert got.shape == (*rows_of(x, axis).batch, *2 * rows_of(x, axis).x.shape[-1:])
        assert_jacobian(got, reference.jacobian(x, axis))


@every_float
def test_out(dtype: np.dtype, rng: np.random.Generator) -> None:
    p = fsm.softmax(cast(rng.standard_normal((5, 40)), dtype))
    g = cast(rng.standard_normal((5, 40)), dtype)
    expected, jacobian = fsm.softmax_vjp(p, g), fsm.softmax_jacobian(p)
    for out in (np.empty_like(p), p.copy(), g.copy()):
        first, second = (out if np.array_equal(widen(out), widen(a)) else a for a in (p, g))
        assert fsm.softmax_vjp(first, second, out=out) is out
        assert_same_bits(out, expected)
    out = np.empty((5, 40, 40), dtype)
    assert fsm.softmax_jacobian(p, out=out) is out
    assert_same_bits(out, jacobian)
    wrong = np.full((5, 39), 7, dtype)
    for call in (
        lambda: fsm.softmax_vjp(p, g, out=wrong),
        lambda: fsm.softmax_jacobian(p, out=wrong),
    ):
        with pytest.raises(ValueError, match="out"):
            call()
    assert (widen(wrong) == 7).all()


def test_what_is_refused(rng: np.random.Generator) -> None:
    p = fsm.softmax(rng.standard_normal((2, 3)))
    with pytest.raises(ValueError, match=r"g has shape \(3, 2\)"):
        fsm.softmax_vjp(p, np.ones((3, 2)))
    with pytest.raises(TypeError, match="g has dtype complex128"):
        fsm.softmax_vjp(p, np.ones((2, 3), complex))
    for function in (fsm.softmax_jacobian, lambda p: fsm.softmax_vjp(p, p)):
        with pytest.raises(TypeError, match="p has dtype object"):
            function(np.array([[0.5, None]]))
    with pytest.raises(np.exceptions.AxisError):
        fsm.softmax_jacobian(p, axis=2)


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble])
def test_empty_and_nothing_kept(dtype: type) -> None:
    for shape in ((0, 3), (3, 0), (0,)):
        p = np.empty(shape, dtype)
        assert fsm.softmax_vjp(p, p).shape == shape
        assert fsm.softmax_jacobian(p).shape == (*shape, shape[-1])
    p = fsm.softmax(np.ones((2, 3), dtype), where=[[True, True, False], [False, False, False]])
    assert (fsm.softmax_vjp(p, np.array([[1, 2, 3], [4, 5, 6]], dtype))[1] == 0).all()
    assert (fsm.softmax_jacobian(p)[1] == 0).all()


def test_masked_arrays(rng: np.random.Generator) -> None:
    mask = np.array([[0, 1, 0], [0, 0, 0]], bool)
    p = fsm.softmax(np.ma.array([[1.0, np.nan, 2.0], [0.0, 1.0, 2.0]], mask=mask))
    g = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 4.0]])
    got = fsm.softmax_vjp(p, g)
    assert (np.ma.getmaskarray(got) == mask).all()
    plain = fsm.softmax_vjp(fsm.softmax([1.0, 2.0]), [1.0, 3.0])
    assert_same_bits(got[0].compressed(), plain)
    jacobian = fsm.softmax_jacobian(p)
    assert np.ma.getmaskarray(jacobian)[0].sum() == 5
    assert_same_bits(
        jacobian[0].compressed().reshape(2, 2), fsm.softmax_jacobian(fsm.softmax([1.0, 2.0]))
    )


def test_integers_count_as_float64() -> None:
    p = np.array([0, 1, 0])
    assert fsm.softmax_jacobian(p).dtype == fsm.softmax_vjp(p, [1, 2, 3]).dtype == np.float64
    p32 = np.array([0.25, 0.75], np.float32)
    assert fsm.softmax_vjp(p32, [1, 2]).dtype == np.float32
