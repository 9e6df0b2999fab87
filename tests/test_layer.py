"""The layer: output, full Jacobian, vector-Jacobian product, and the numbers it always printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_accurate, assert_same_bits, cast, every_float, exact, record_error
from reference import FORMATS, Array, Exact, ulp_error, widen

import fastsoftmax as fsm

X = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0.001, 0.002, 0.0015, 0.003, 10]])
Y = [
    [1.16562310e-02, 3.16849208e-02, 8.61285444e-02, 2.34121657e-01, 6.36408647e-01],
    [6.36408647e-01, 2.34121657e-01, 8.61285444e-02, 3.16849208e-02, 1.16562310e-02],
    [4.54370855e-05, 4.54825454e-05, 4.54598098e-05, 4.55280507e-05, 9.99818093e-01],
]
J0 = [
    [1.15203632e-02, -3.69326755e-04, -1.00393421e-03, -2.72897611e-03, -7.41812617e-03],
    [-3.69326755e-04, 3.06809866e-02, -2.72897611e-03, -7.41812617e-03, -2.01645576e-02],
    [-1.00393421e-03, -2.72897611e-03, 7.87104183e-02, -2.01645576e-02, -5.48129504e-02],
    [-2.72897611e-03, -7.41812617e-03, -2.01645576e-02, 1.79308707e-01, -1.48997047e-01],
    [-7.41812617e-03, -2.01645576e-02, -5.48129504e-02, -1.48997047e-01, 2.31392681e-01],
]


def assert_jacobian(got: Array, expected: Exact) -> None:
    """Within what rounding the probabilities, each to 2 units, and their product leaves."""
    limit = 5 if FORMATS[got.dtype][0] > 11 else 2.5
    errors = ulp_error(got, expected, got.dtype)
    assert (errors <= limit).all(), f"{errors.max()} units in the last place"


def spacing(scale: Array, dtype: np.dtype) -> Array:
    """One unit in the last place of numbers of that size, subnormal ones included."""
    bits, lowest, _ = FORMATS[dtype]
    return np.ldexp(np.longdouble(1), np.maximum(np.frexp(scale)[1], lowest + 1) - bits)


def assert_vjp(
    got: Array, x: Array, *vectors: Array, axis: Any = -1, name: str = "softmax_vjp"
) -> None:
    """No digits lost to what all elements of grad have in common, nor to a probability near 1."""
    expected = reference.product(name, x, *vectors, axis=axis).approximate()
    assert got.shape == expected.shape
    assert got.dtype == x.dtype
    scale = reference.product_scale(name, x, *vectors, axis=axis)
    errors = np.abs(widen(got) - expected) / spacing(scale, x.dtype)
    record_error(name, x.dtype, errors)
    limit = 6 if name == "softmax_vjp_derivative" else 4  # it has two more factors
    assert (errors <= limit).all(), f"{errors.max()} units in the last place of its terms"


@pytest.mark.parametrize("normalization", [True, False])
def test_the_numbers_it_has_always_printed(normalization: bool) -> None:
    layer = fsm.Softmax()
    y = layer(X, normalization=normalization)
    np.testing.assert_allclose(y, Y, rtol=1e-8)
    np.testing.assert_array_equal(layer.output, y)
    jacobian = layer.backward()
    assert jacobian.shape == (3, 5, 5)
    np.testing.assert_allclose(jacobian[0], J0, rtol=1e-8)
    np.testing.assert_allclose(jacobian[1], np.array(J0)[::-1, ::-1], rtol=1e-8)
    for b in range(3):
        plain = y[b][:, None] * (np.eye(5) - y[b][None, :])
        np.testing.assert_allclose(jacobian[b], plain, rtol=1e-9, atol=1e-15)


def test_normalization_is_on_by_default_and_may_be_positional() -> None:
    x = np.array([[1000.0, 1001.0, 999.0]])
    layer = fsm.Softmax()
    assert_same_bits(layer(x), fsm.softmax(x))
    assert_same_bits(layer(x, True), fsm.softmax(x))
    with np.errstate(all="ignore"):
        assert np.isnan(layer(x, False)).any()


@every_float
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None], ids=str)
def test_output_is_softmax(axis: Any, dtype: np.dtype, rng: np.random.Generator) -> None:
    x = cast(3 * rng.standard_normal((3, 4, 5)), dtype)
    layer = fsm.Softmax(axis=axis)
    y = layer(x)
    assert_same_bits(y, fsm.softmax(x, axis=axis))
    assert_same_bits(layer.output, y)


@every_float
def test_without_normalization(dtype: np.dtype, rng: np.random.Generator) -> None:
    x = cast(2 * rng.standard_normal((6, 40)), dtype)
    layer = fsm.Softmax()
    y = layer(x, normalization=False)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        widen(y), exact("softmax", x).approximate(), rtol=16 * 2.0 ** -FORMATS[dtype][0]
    )


def test_without_normalization_overflows_as_numpy_does() -> None:
    layer = fsm.Softmax()
    x = np.array([[1000.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    with pytest.warns(RuntimeWarning) as caught:
        y = layer(x, normalization=False)
    assert any("overflow" in str(w.message) for w in caught)
    assert np.isnan(y[0, 0])
    assert (y[0, 1:] == 0).all()
    np.testing.assert_allclose(y[1], fsm.softmax(x[1]), rtol=1e-15)
    with pytest.raises(FloatingPointError, match="overflow"), np.errstate(over="raise"):
        layer(x, normalization=False)
    with np.errstate(under="ignore", invalid="ignore", divide="ignore"):
        assert np.isnan(layer(np.full((1, 3), -1000.0), normalization=False)).all()


@every_float
def test_jacobian(dtype: np.dtype, rng: np.random.Generator) -> None:
    for values in (
        rng.standard_normal((3, 7)),
        rng.uniform(-40, 40, (3, 6)),
        [[30, 0, -3], [0, 9.7, 1]],
        [[2.0]],
    ):
        x = cast(values, dtype)
        layer = fsm.Softmax()
        layer(x)
        jacobian = layer.backward()
        assert jacobian.dtype == dtype
        assert jacobian.shape == (*x.shape, x.shape[-1])
        assert_jacobian(jacobian, reference.jacobian(x))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 4), (2, 1, 2, 3), (0, 3), (3, 0)], ids=str)
def test_jacobian_shapes(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape)
    layer = fsm.Softmax()
    layer(x)
    jacobian = layer.backward()
    assert jacobian.shape == (*shape, shape[-1])
    assert_jacobian(jacobian, reference.jacobian(x))


@pytest.mark.parametrize("axis", [0, 1, -2, (0, 2), (1, 0), None], ids=str)
def test_jacobian_along_other_axes(axis: Any, rng: np.random.Generator) -> None:
    """The axes of the batch come first; n runs over the reduced axes in their order in x."""
    x = rng.standard_normal((2, 3, 4))
    for source in (x, np.asfortranarray(x)):
        layer = fsm.Softmax(axis=axis)
        layer(source)
        assert_jacobian(layer.backward(), reference.jacobian(x, axis))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65])
def test_jacobian_at_every_size(n: int, rng: np.random.Generator) -> None:
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((2, n)).astype(dtype)
        layer = fsm.Softmax()
        layer(x)
        assert_jacobian(layer.backward(), reference.jacobian(x))


@every_float
@pytest.mark.parametrize("offset", [0, 1000, -1e6])
def test_vjp(offset: float, dtype: np.dtype, rng: np.random.Generator) -> None:
    offset = offset if FORMATS[dtype][0] > 11 else offset / 1e4
    for values in (
        rng.standard_normal((4, 9)),
        rng.uniform(-40, 40, (4, 17)),
        [[30, 0, -3], [0, 9.7, 1]],
        [[2.0]],
    ):
        x = cast(values, dtype)
        grad = cast(offset + rng.standard_normal(x.shape), dtype)
        layer = fsm.Softmax()
        layer(x)
        assert_vjp(layer.backward(grad), x, grad)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None], ids=str)
def test_vjp_along_other_axes(axis: Any, rng: np.random.Generator) -> None:
    x, grad = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    for source, gradient in ((x, grad), (np.asfortranarray(x), grad), (x, np.asfortranarray(grad))):
        layer = fsm.Softmax(axis=axis)
        layer(source)
        assert_vjp(layer.backward(gradient), x, grad, axis=axis)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 100])
def test_vjp_at_every_size(n: int, rng: np.random.Generator) -> None:
    for dtype in (np.float32, np.float64):
        x, grad = (rng.standard_normal((2, n)).astype(dtype) for _ in range(2))
        layer = fsm.Softmax()
        layer(x)
        assert_vjp(layer.backward(grad), x, grad)


def test_vjp_of_what_all_elements_share_is_zero() -> None:
    layer = fsm.Softmax()
    for dtype in (np.float32, np.float64):
        layer(np.array([[1, 2, 3.5, -4], [30, 0, 0, 0]], dtype=dtype))
        assert (layer.backward(np.full((2, 4), 1e7, dtype=dtype)) == 0).all()


def test_vjp_is_the_product_with_the_jacobian(rng: np.random.Generator) -> None:
    x, grad = rng.standard_normal((5, 8)), rng.standard_normal((5, 8))
    for normalization in (True, False):
        layer = fsm.Softmax()
        layer(x, normalization=normalization)
        product = np.einsum("bj,bji->bi", grad, layer.backward())
        np.testing.assert_allclose(layer.backward(grad), product, rtol=1e-12, atol=1e-15)


def test_backward_belongs_to_the_last_call(rng: np.random.Generator) -> None:
    layer = fsm.Softmax()
    layer(rng.standard_normal((2, 3)))
    x = rng.standard_normal((4, 6))
    layer(x)
    expected = layer.backward()
    assert expected.shape == (4, 6, 6)
    x[...] = 0
    assert_same_bits(layer.backward(), expected)
    assert_same_bits(layer.backward(np.ones((4, 6))) * 0, np.zeros((4, 6)))


def test_rows_that_are_nan_spoil_only_themselves() -> None:
    layer = fsm.Softmax()
    x = np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]])
    layer(x)
    jacobian, product = layer.backward(), layer.backward(np.array([[1.0, 2.0, 4.0]] * 2))
    assert np.isnan(jacobian[0]).all() and np.isnan(product[0]).all()
    assert_jacobian(jacobian[1], reference.jacobian(x[1]))
    assert np.isfinite(product[1]).all()


def test_lists_and_integers(rng: np.random.Generator) -> None:
    layer = fsm.Softmax()
    y = layer([[1, 2, 3]])
    assert_accurate("softmax", y, exact("softmax", np.array([[1.0, 2.0, 3.0]])), np.float64)
    assert layer.backward().shape == (1, 3, 3)
    assert_vjp(
        layer.backward([[1.0, 0.0, 2.0]]), np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 0.0, 2.0]])
    )


def test_backward_before_a_call() -> None:
    for arguments in ((), (np.ones((2, 3)),)):
        with pytest.raises(RuntimeError, match=r"(?i)call"):
            fsm.Softmax().backward(*arguments)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2), (1, 3), (2, 3, 1), ()], ids=str)
def test_grad_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    layer = fsm.Softmax()
    layer(np.ones((2, 3)))
    with pytest.raises(ValueError):
        layer.backward(np.ones(shape))


def test_a_jacobian_that_cannot_fit() -> None:
    layer = fsm.Softmax()
    layer(np.broadcast_to(np.float32(0), (1, 3_000_000)))
    with pytest.raises(MemoryError, match=r"32\.7 TiB.*backward\(grad\)"):
        layer.backward()
    assert layer.backward(np.ones((1, 3_000_000), dtype=np.float32)).shape == (1, 3_000_000)
    p = np.broadcast_to(np.float32(1 / 32000), (512, 32000))
    with pytest.raises(MemoryError, match=r"\(512, 32000, 32000\) of float32, takes 1\.9 TiB"):
        fsm.softmax_jacobian(p)
