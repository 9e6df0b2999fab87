"""The layer SoftmaxCrossEntropy is cross_entropy, its gradient, and softmax when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import assert_same_bits

import fastsoftmax as fsm


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_the_functions(
    dtype: Any, axis: Any, reduction: Any, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((3, 4, 5)).astype(dtype)
    axes = fsm._arguments.Axes(x.shape, axis)
    targets = rng.integers(0, axes.n, axes.batch)
    options: dict[str, Any] = {
        "weight": rng.random(axes.n),
        "ignore_index": 1,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "reduction": reduction,
    }
    layer = fsm.SoftmaxCrossEntropy(axis, **options)
    before = x.copy()
    loss, grad = fsm.cross_entropy(x, targets, axis, return_grad=True, **options)
    assert_same_bits(layer(x, targets), loss)
    assert_same_bits(layer.backward(), grad)
    assert_same_bits(layer.output, fsm.softmax(x, axis))
    assert layer.output is layer.output
    assert_same_bits(x, before)
    upstream = rng.standard_normal(np.shape(loss))
    expected = grad * np.expand_dims(upstream, axes.reduced if reduction == "none" else ())
    assert_same_bits(layer.backward(upstream), expected.astype(dtype))


def test_it_remembers_the_last_call(rng: np.random.Generator) -> None:
    layer = fsm.SoftmaxCrossEntropy()
    assert layer.output is None
    with pytest.raises(RuntimeError, match="needs the result of a call"):
        layer.backward()
    for n in (3, 5):
        x = rng.standard_normal((2, n))
        layer(x, [0, 1])
        assert layer.output.shape == layer.backward().shape == (2, n)
    with pytest.raises(ValueError, match=r"grad has shape \(2,\); that of the last result, \(\)"):
        layer.backward(np.ones(2))


def test_the_probabilities_are_computed_only_when_asked_for(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("fastsoftmax._layer.softmax", fails)
    layer = fsm.SoftmaxCrossEntropy()
    layer(rng.standard_normal((2, 3)), [0, 1])
    layer.backward()
    with pytest.raises(AssertionError):
        layer.output  # noqa: B018
