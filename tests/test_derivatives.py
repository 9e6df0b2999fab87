"""The derivatives as functions: no digits lost to probabilities near 1, whatever the arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, cast, every_float, record_error
from reference import PRODUCTS, SHORT, Array, rows_of, ulp_error, widen
from test_layer import assert_jacobian, assert_vjp, spacing

import fastsoftmax as fsm

FLOATS = [np.float32, np.float64]
every_precision = pytest.mark.parametrize("dtype", FLOATS)
every_product = pytest.mark.parametrize("name", PRODUCTS)
JACOBIANS = {"softmax": fsm.softmax_jacobian, "log_softmax": fsm.log_softmax_jacobian}
every_jacobian = pytest.mark.parametrize("name", JACOBIANS)
LARGEST_GAP = {np.float32: 80, np.float64: 600}


def long(n: int) -> Any:
    return pytest.param(n, marks=pytest.mark.exhaustive)


def vectors(name: str, shape: Any, rng: np.random.Generator, offset: float = 0) -> list[Array]:
    """What the derivative called `name` multiplies."""
    count = 2 if name == "softmax_vjp_derivative" else 1
    return [offset + rng.standard_normal(shape) for _ in range(count)]


def logits(dtype: type, n: int, rng: np.random.Generator) -> Array:
    """Rows with one logit 0 to 80 (600) above the others, which are near each other, or are not."""
    gap = np.append(np.arange(0, 20, 2), np.linspace(20, LARGEST_GAP[dtype], 7))
    near, far = rng.standard_normal((2, len(gap), n))
    near[:, -1] = near[:, :-1].max(axis=1) + gap
    far *= (gap / np.ptp(far, axis=1))[:, None]
    return np.concatenate([near, far]).astype(dtype)


@every_jacobian
@every_precision
@pytest.mark.parametrize("n", [2, 3, 4, 10, 40])
def test_jacobian_at_every_gap(name: str, dtype: type, n: int, rng: np.random.Generator) -> None:
    x = logits(dtype, n, rng)
    got = JACOBIANS[name](fsm.softmax(x))
    errors = ulp_error(got, reference.jacobian(x, function=name), dtype)
    record_error(f"{name}_jacobian", dtype, errors)
    assert errors.max() <= 5
    if name == "softmax":
        assert_same_bits(got, got.swapaxes(-1, -2))
        largest = np.abs(got).max(axis=-1)
        left = np.abs(widen(got).sum(axis=-1)) / spacing(largest, np.dtype(dtype))
        assert left.max() <= 4


@every_precision
@pytest.mark.parametrize("n", [100, 1000, 3000])
def test_rows_of_long_jacobians_sum_to_zero(dtype: type, n: int, rng: np.random.Generator) -> None:
    for x in logits(dtype, n, rng)[::5]:
        got = fsm.softmax_jacobian(fsm.softmax(x))
        largest = np.abs(got).max(axis=-1)
        left = np.abs(got.sum(axis=-1, dtype=np.longdouble)) / spacing(largest, np.dtype(dtype))
        assert left.max() <= 4


@every_product
@every_precision
@pytest.mark.parametrize("n", [2, 3, 10, 63, 64, 300])
def test_products_at_every_gap(name: str, dtype: type, n: int, rng: np.random.Generator) -> None:
    x = logits(dtype, n, rng)
    for offset in (0, 1e4):
        v = [a.astype(dtype) for a in vectors(name, x.shape, rng, offset)]
        assert_vjp(getattr(fsm, name)(fsm.softmax(x), *v), x, *v, name=name)


@every_product
@every_precision
@pytest.mark.parametrize("n", [long(5_000), 17_000, long(100_000)])
def test_products_of_long_rows_at_every_gap(
    name: str, dtype: type, n: int, rng: np.random.Generator
) -> None:
    """Rows of more than 16384 elements are summed by chunks, one of which has the largest."""
    some = {5_000: slice(None), 17_000: slice(5, 6), 100_000: slice(None, None, 7)}
    x = logits(dtype, n, rng)[some[n]]
    v = [a.astype(dtype) for a in vectors(name, x.shape, rng)]
    assert_vjp(getattr(fsm, name)(fsm.softmax(x), *v), x, *v, name=name)


@every_precision
def test_derivatives_far_from_the_largest(dtype: type) -> None:
    """The derivative of one p that is by far not the largest."""
    x = np.array([[80, 0, 0, -0.7]], dtype)
    one = np.array([[0, 1, 0, 0]], dtype)
    got = fsm.softmax_vjp(fsm.softmax(x), one)
    assert (got[0, :2] != 0).all()
    np.testing.assert_allclose(got, fsm.softmax_jacobian(fsm.softmax(x))[:, 1], rtol=2e-6)
    got = fsm.log_softmax_vjp(fsm.softmax(x), np.array([[-1, 0, 0, 0]], dtype))
    np.testing.assert_allclose(got[0, 0], -got[0, 1:].sum(), rtol=2e-6)
    assert got[0, 0] < 0


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


@pytest.mark.parametrize("n", [5, 17, 40, 100, 1000, 17_000])
@pytest.mark.parametrize(
    "kind",
    [
        "sparse",
        "equal but for one",
        "1e-12 to 1e12",
        "2^-20 and 1",
        "2^-14 and 1, of one sign",
        "1 and -1",
    ],
)
def test_float64_sums_whose_size_is_misjudged(n: int, kind: str, rng: np.random.Generator) -> None:
    """It is guessed from the first elements, and checked: the error and the bits don't show it."""
    p = fsm.softmax(rng.uniform(0.1, 20, (40, 1)) * rng.standard_normal((40, n)))
    v = rng.standard_normal((40, n))
    if kind == "sparse":
        v *= rng.random((40, n)) < 2 / n
    elif kind == "equal but for one":
        v = np.where(np.arange(n) == rng.integers(0, n, (40, 1)), v, v[:, :1])
    elif kind == "1e-12 to 1e12":
        v *= 10 ** rng.uniform(-12, 12, (40, n))
    elif kind == "2^-20 and 1":
        v[:, 4:] *= 2.0**20
        v[:, -1] = 2.0**22
    elif kind == "2^-14 and 1, of one sign":
        v = 1 + np.abs(v)
        v[:, :4] *= 2.0**-14
        np.put_along_axis(v, p.argmax(axis=1)[:, None], 0, axis=1)
    else:
        v = np.sign(v) + 1e-13 * v
    wide, h = widen(p), widen(v)
    h = h - np.take_along_axis(h, p.argmax(axis=1)[:, None], axis=1)
    exact = wide * (h - (wide * h).sum(axis=1, keepdims=True))
    scale = wide * (np.abs(h) + (wide * np.abs(h)).sum(axis=1, keepdims=True))
    got = fsm.softmax_vjp(p, v)
    assert (np.abs(got - exact) <= 3 * spacing(scale, np.dtype(np.float64))).all()
    assert_same_bits(got, fsm.softmax_vjp(p.T.copy(), v.T.copy(), axis=0).T)
    assert_same_bits(got[3:4], fsm.softmax_vjp(p[3:4], v[3:4]))
    assert_same_bits(got, fsm.softmax_vjp(p, np.repeat(v, 2, axis=1)[:, ::2]))


@pytest.mark.parametrize("n", [10, 16, 64, 300, 1000])
def test_float32_products_are_rounded_twice(n: int, rng: np.random.Generator) -> None:
    """The difference from the mean, and its product with the p that is given, taken as exact."""
    p = fsm.softmax(3 * rng.standard_normal((100_000 // n, n), np.float32))
    g = rng.standard_normal(p.shape, np.float32)
    wide = widen(p)
    mean = (wide * g).sum(axis=1, keepdims=True) / wide.sum(axis=1, keepdims=True)
    exact = wide * (g - mean)
    errors = np.abs(fsm.softmax_vjp(p, g) - exact) / spacing(np.abs(exact), np.dtype(np.float32))
    assert errors.max() <= 1.51


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("n", [10, 63, 64, 300, 512, 600, 17_000])
@pytest.mark.parametrize("offset", [0, 100])
def test_16_bit_products_of_sure_rows(
    dtype: np.dtype, n: int, offset: float, rng: np.random.Generator
) -> None:
    """What the v have in common drops out, also where one p has all but 1e-30 of the weight."""
    x = rng.standard_normal((8, n))
    x[np.arange(8), rng.integers(0, n, 8)] += np.linspace(0, 70, 8)
    p, v = fsm.softmax(cast(x, dtype)), cast(offset + rng.standard_normal((8, n)), dtype)
    wide, h = p.astype(np.longdouble), v.astype(np.longdouble)
    h -= np.take_along_axis(h, wide.argmax(axis=1)[:, None], axis=1)
    h -= (wide * h).sum(axis=1, keepdims=True) / wide.sum(axis=1, keepdims=True)
    unit = np.spacing(np.abs(wide * h).astype(dtype)).astype(np.float64)
    error = np.abs(fsm.softmax_vjp(p, v).astype(np.longdouble) - wide * h)
    assert (error <= 0.51 * unit).all()


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
    p = fsm.softmax(x, axis)
    for layout in (p, np.asfortranarray(p), p[::-1][::-1]):
        for name in PRODUCTS:
            v = [cast(a, dtype) for a in vectors(name, x.shape, rng)]
            assert_vjp(getattr(fsm, name)(layout, *v, axis), x, *v, axis=axis, name=name)
        for name, function in JACOBIANS.items():
            got = function(layout, axis)
            assert got.shape == (*rows_of(x, axis).batch, *2 * rows_of(x, axis).x.shape[-1:])
            assert_jacobian(got, reference.jacobian(x, axis, name))


@every_product
@every_float
def test_out_of_products(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    p = fsm.softmax(cast(rng.standard_normal((5, 40)), dtype))
    v = [cast(a, dtype) for a in vectors(name, p.shape, rng)]
    function = getattr(fsm, name)
    expected = function(p, *v)
    for i in range(len(v) + 2):
        inputs = [p.copy(), *(a.copy() for a in v)]
        out = [*inputs, np.empty_like(p)][i]
        assert function(*inputs, out=out) is out
        assert_same_bits(out, expected)
    shifted = np.empty((6, 40), dtype)
    shifted[1:] = p
    assert_same_bits(function(shifted[1:], *v, out=shifted[:-1]), expected)
    wrong = np.full((5, 39), 7, dtype)
    with pytest.raises(ValueError, match="out"):
        function(p, *v, out=wrong)
    assert (widen(wrong) == 7).all()


@every_jacobian
@every_float
def test_out_of_jacobians(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    p = fsm.softmax(cast(rng.standard_normal((5, 40)), dtype))
    out = np.empty((5, 40, 40), dtype)
    assert JACOBIANS[name](p, out=out) is out
    assert_same_bits(out, JACOBIANS[name](p))
    with pytest.raises(ValueError, match="out"):
        JACOBIANS[name](p, out=out[1:])


@every_product
def test_what_is_refused(name: str, rng: np.random.Generator) -> None:
    p = fsm.softmax(rng.standard_normal((2, 3)))
    function = getattr(fsm, name)
    *others, last = vectors(name, p.shape, rng)
    called = "t" if name.endswith(("jvp", "derivative")) else "g"
    with pytest.raises(ValueError, match=rf"{called} has shape \(3, 2\)"):
        function(p, *others, last.T)
    with pytest.raises(TypeError, match=f"{called} has dtype complex128"):
        function(p, *others, last.astype(complex))
    with pytest.raises(TypeError, match="p has dtype object"):
        function(p.astype(object), *others, last)
    with pytest.raises(np.exceptions.AxisError):
        function(p, *others, last, axis=2)


@every_jacobian
def test_what_jacobians_refuse(name: str) -> None:
    with pytest.raises(TypeError, match="p has dtype object"):
        JACOBIANS[name](np.array([[0.5, None]]))
    with pytest.raises(np.exceptions.AxisError):
        JACOBIANS[name](np.ones((2, 3)), axis=2)


@every_product
@every_float
def test_what_is_masked_does_not_count(
    name: str, dtype: np.dtype, rng: np.random.Generator
) -> None:
    for n in (4, 40, 100):
        x, keep = cast(rng.standard_normal((3, n)), dtype), rng.random((3, n)) < 0.7
        keep[1], keep[2] = True, False
        v = [cast(a, dtype) for a in vectors(name, x.shape, rng)]
        spoilt = [a.copy() for a in v]
        for a in spoilt:
            a[~keep] = np.nan
        function = getattr(fsm, name)
        got = function(fsm.softmax(x, where=keep), *spoilt)
        assert (widen(got)[~keep] == 0).all()
        kept = [a[0][keep[0]] for a in (x, *v)]
        assert_vjp(got[0][keep[0]], *kept, name=name)
        assert_same_bits(got[1], function(fsm.softmax(x[1]), *(a[1] for a in v)))


@every_jacobian
def test_jacobians_of_what_is_masked_are_zero(name: str) -> None:
    for dtype in (np.float32, np.longdouble):
        x, keep = np.arange(5).astype(dtype), np.array([True, False, True, True, False])
        got = JACOBIANS[name](fsm.softmax(x, where=keep))
        assert (got[~keep] == 0).all() and (got[:, ~keep] == 0).all()
        assert_jacobian(got[keep][:, keep], reference.jacobian(x[keep], function=name))


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble])
def test_empty_and_nothing_kept(dtype: type) -> None:
    for shape in ((0, 3), (3, 0), (0,)):
        p = np.empty(shape, dtype)
        for name in PRODUCTS:
            v = [p] * len(vectors(name, shape, np.random.default_rng(0)))
            assert getattr(fsm, name)(p, *v).shape == shape
        for jacobian in JACOBIANS.values():
            assert jacobian(p).shape == (*shape, shape[-1])
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
