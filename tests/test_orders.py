"""However elements lie in memory: the same bits, results in the order of the input, as NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import assert_same_bits, cast
from numpy.exceptions import AxisError
from reference import BFLOAT16, Array

import fastsoftmax as fsm

FUNCTIONS: dict[str, int] = {  # and of how many arrays
    "softmax": 1,
    "log_softmax": 1,
    "logsumexp": 1,
    "softmax_vjp": 2,
    "log_softmax_vjp": 2,
    "log_softmax_jvp": 2,
    "softmax_vjp_derivative": 3,
}
SHAPES = [(4, 3, 5), (2, 40, 3), (3, 1, 700), (1, 6, 1)]
DENSE: dict[str, Callable[[Array], Array]] = {
    "C": lambda x: x.copy("C"),
    "Fortran": lambda x: x.copy("F"),
    "permuted": lambda x: x.transpose(1, 2, 0).copy("C").transpose(2, 0, 1),
}
ORDERS = {
    **DENSE,
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "permuted and reversed": lambda x: DENSE["permuted"](x[::-1])[::-1],
    "the same again": lambda x: np.broadcast_to(x[:1], x.shape),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def arrays(name: str, shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> list[Array]:
    """Inputs that broadcasting along the first axis does not change."""
    first, *others = (
        cast(np.repeat(rng.standard_normal((1, *shape[1:])), shape[0], axis=0), dtype)
        for _ in range(FUNCTIONS[name])
    )
    return [first if not others else fsm.softmax(first, axis=None), *others]


def expected_of(name: str, inputs: list[Array], axis: int) -> Array:
    """From contiguous rows, in C's order."""
    rows = [np.moveaxis(a, axis, -1).copy("C") for a in inputs]
    result = getattr(fsm, name)(*rows)
    return result if name == "logsumexp" else np.moveaxis(result, -1, axis).copy("C")


@every_function
@every_shape
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_bits(axis: int, shape: tuple[int, ...], name: str, rng: np.random.Generator) -> None:
    function = getattr(fsm, name)
    for dtype in map(np.dtype, (np.float64, np.float32, BFLOAT16)):
        inputs = arrays(name, shape, dtype, rng)
        expected = expected_of(name, inputs, axis)
        for order in ORDERS.values():
            for order_of_others in ORDERS.values() if len(inputs) > 1 else [order]:
                views = [order(inputs[0]), *map(order_of_others, inputs[1:])]
                assert_same_bits(function(*views, axis=axis), expected)
                for of_out in (*DENSE.values(), ORDERS["every other"]):
                    out = of_out(np.zeros_like(expected)) if expected.ndim == 3 else expected * 0
                    assert function(*views, axis=axis, out=out) is out
                    assert_same_bits(out, expected)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "logsumexp"])
@every_shape
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place(axis: int, shape: tuple[int, ...], name: str, rng: np.random.Generator) -> None:
    inputs = arrays(name, shape, np.dtype(np.float32), rng)
    expected = expected_of(name, inputs, axis)
    for kind, order in ORDERS.items():
        if kind == "the same again":
            continue
        for order_of_others in DENSE.values():
            for i in range(len(inputs)):
                views = [order(inputs[0]), *map(order_of_others, inputs[1:])]
                assert getattr(fsm, name)(*views, axis=axis, out=views[i]) is views[i]
                assert_same_bits(views[i], expected)
        beyond = np.repeat(order(inputs[0]), 2, axis=0)  # out is a shifted part of the same memory
        x, out = beyond[: shape[0]], beyond[1 : 1 + shape[0]]
        x[...] = inputs[0]
        result = getattr(fsm, name)(x, *inputs[1:], axis=axis, out=out)
        assert_same_bits(result, expected)


@every_function
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_much_into_a_part_of_a_larger_array(axis: int, name: str, rng: np.random.Generator) -> None:
    """Which is computed some at a time."""
    inputs = arrays(name, (2, 500, 700), np.dtype(np.float32), rng)
    expected = expected_of(name, inputs, axis)
    for cut in range(expected.ndim):
        whole = np.full([2 * n if i == cut else n for i, n in enumerate(expected.shape)], -5.0, "f")
        out, rest = np.split(whole, 2, axis=cut)
        assert getattr(fsm, name)(*inputs, axis=axis, out=out) is out
        assert_same_bits(out, expected)
        assert (rest == -5).all()
        if name != "logsumexp":
            out[...] = inputs[-1]
            getattr(fsm, name)(*inputs[:-1], out, axis=axis, out=out)
            assert_same_bits(out, expected)
            rest[...] = inputs[
                -1
            ]  # and out the other way round, so that each part would spoil others
            getattr(fsm, name)(*inputs[:-1], rest, axis=axis, out=np.flip(rest, (axis + 1) % 3))
            assert_same_bits(np.flip(rest, (axis + 1) % 3), expected)


@every_function
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_order_of_results(axis: int, name: str, rng: np.random.Generator) -> None:
    for dtype in map(np.dtype, (np.float64, np.float32, np.float16, BFLOAT16)):
        for order in DENSE.values():
            views = [order(a) for a in arrays(name, (4, 3, 5), dtype, rng)]
            result = getattr(fsm, name)(*views, axis=axis)
            like = views[0].max(axis) if name == "logsumexp" else np.exp(views[0])
            assert result.strides == like.strides
            assert result.flags.owndata and result.flags.writeable


@every_function
def test_axes_are_those_of_the_array(name: str) -> None:
    x = np.zeros((2, 3, 4), np.float32).T
    for axis in (3, -4):
        with pytest.raises(AxisError):
            getattr(fsm, name)(*[x] * FUNCTIONS[name], axis=axis)
