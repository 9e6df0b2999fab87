"""LogSoftmax: output, full Jacobian, and vector-Jacobian product, also where p vanishes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, cast, every_float
from test_layer import assert_jacobian, assert_vjp

import fastsoftmax as fsm


@every_float
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), None], ids=str)
def test_output_and_derivatives(axis: Any, dtype: np.dtype, rng: np.random.Generator) -> None:
    x, g = (cast(3 * rng.standard_normal((3, 4, 5)), dtype) for _ in range(2))
    layer = fsm.LogSoftmax(axis=axis)
    y = layer(x)
    assert layer.output is y and layer.axis == axis
    assert_same_bits(y, fsm.log_softmax(x, axis))
    assert_vjp(layer.backward(g), x, g, axis=axis, name="log_softmax_vjp")
    if dtype.itemsize > 2:
        assert_jacobian(layer.backward(), reference.jacobian(x, axis, "log_softmax"))


@every_float
def test_a_probability_that_vanishes_is_not_masked(dtype: np.dtype) -> None:
    """The gradient of the logarithmic loss, where the target's probability is too small to hold."""
    x = cast([[20000.0, 0.0, -np.inf, 20000.0]], dtype)
    layer = fsm.LogSoftmax()
    assert np.isfinite(layer(x)[0, 1]) and fsm.softmax(x)[0, 1] == 0
    got = layer.backward(cast([[0.0, -1.0, 5.0, 0.0]], dtype)).astype(float)
    assert got.tolist() == [[0.5, -1, 0, 0.5]]
    expected = [[0.5, 0, 0, -0.5], [-0.5, 1, 0, -0.5], [0] * 4, [-0.5, 0, 0, 0.5]]
    np.testing.assert_allclose(layer.backward()[0].astype(float), expected, atol=1e-7)


def test_it_remembers_the_last_call(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3))
    layer = fsm.LogSoftmax()
    with pytest.raises(RuntimeError, match=r"(?i)call"):
        layer.backward()
    layer(x)
    expected = layer.backward()
    x[...] = 0
    assert_same_bits(layer.backward(), expected)
    with pytest.raises(ValueError, match=r"grad has shape \(3,\)"):
        layer.backward(np.ones(3))


def test_masked_and_integers() -> None:
    layer = fsm.LogSoftmax()
    layer(np.ma.array([1.0, 9.0, 2.0], mask=[False, True, False]))
    got = layer.backward([1.0, np.nan, 3.0])
    plain = fsm.log_softmax_vjp(fsm.softmax([1.0, 2.0]), [1.0, 3.0])
    assert_same_bits(got.compressed(), plain)
    layer(np.ma.array([2000.0, 9.0, 0.0], mask=[False, True, False]))
    assert layer.backward([0.0, 5.0, -1.0]).tolist() == [1.0, None, -1.0]
    assert layer([1, 2, 3]).dtype == layer.backward([1, 2, 3]).dtype == np.float64
