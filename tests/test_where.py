"""where= keeps elements: the others count for nothing, and come out as exact zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import (
    FUNCTIONS,
    SIZES,
    assert_accurate,
    assert_same_bits,
    cast,
    every_float,
    every_function,
    every_map,
    exact,
)
from reference import BFLOAT16, Array

import fastsoftmax as fsm

MASKED = {"softmax": 0.0, "log_softmax": -np.inf}


def masks(rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, Array]:
    n = shape[1]
    return {
        "most": rng.random(shape) < 0.9,
        "half": rng.random(shape) < 0.5,
        "few": rng.random(shape) < 0.1,
        "all": np.ones(shape, bool),
        "none": np.zeros(shape, bool),
        "first": np.broadcast_to(np.arange(n) == 0, shape),
        "last": np.broadcast_to(np.arange(n) == n - 1, shape),
        "causal": np.tri(*shape, dtype=bool),
        "columns": rng.random((1, n)) < 0.7,
        "rows": rng.random((shape[0], 1)) < 0.5,
        "one row": rng.random(n) < 0.6,
    }


@every_function
@every_float
def test_values(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    x = cast(3 * rng.standard_normal((9, 35)), dtype)
    for where in masks(rng, x.shape).values():
        with np.errstate(all="raise", under="ignore"):
            got = FUNCTIONS[name](x, where=where)
        assert_accurate(name, got, exact(name, x, where=where), dtype)
        if name != "logsumexp":
            assert (got[~np.broadcast_to(where, x.shape)] == MASKED[name]).all()


@every_function
@pytest.mark.parametrize("n", SIZES)
def test_values_at_every_size(n: int, name: str, rng: np.random.Generator) -> None:
    x = cast(3 * rng.standard_normal((4, n)), np.dtype(np.float32))
    for where in masks(rng, x.shape).values():
        for axis in (-1, 0):
            got = FUNCTIONS[name](x, where=where, axis=axis)
            assert_accurate(name, got, exact(name, x, where=where, axis=axis), np.float32)


@every_function
@every_float
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 16, 33, 200])
def test_what_lies_under_the_mask_has_no_effect(
    n: int, junk: float, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    clean = cast(rng.standard_normal((6, n)), dtype)
    where = rng.random(clean.shape) < 0.6
    where[0] = False
    dirty = clean.copy()
    dirty[~where] = cast(junk, dtype)
    with np.errstate(all="raise", under="ignore"):
        assert_same_bits(FUNCTIONS[name](dirty, where=where), FUNCTIONS[name](clean, where=where))


@every_map
def test_masked_zeros_also_in_rows_that_are_nan(name: str) -> None:
    x = np.ones((3, 40))
    x[0, 3], x[1, 5], x[2] = np.nan, np.inf, -np.inf
    where = np.arange(40) % 4 != 0
    with np.errstate(invalid="ignore"):
        got = FUNCTIONS[name](x, where=where)
    assert (got[:, ~where] == MASKED[name]).all()
    assert not np.signbit(got[:, ~where]).any() or name == "log_softmax"
    assert np.isnan(got[:, where]).all()


@every_function
@every_float
@pytest.mark.parametrize("n", [1, 2, 5, 40, 300, 2049, 20_000])
def test_as_minus_infinity(n: int, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    """Many rows, some of them with nothing kept, against logits that are -inf there."""
    x = cast(3 * rng.standard_normal((max(3, 9000 // n), n)), dtype)
    where = rng.random(x.shape) < 0.7
    where[1::5] = False
    masked = np.where(where, x, np.asarray(-np.inf, dtype))
    with np.errstate(invalid="ignore"):
        expected = FUNCTIONS[name](masked)
    expected[~where.any(axis=1)] = MASKED.get(name, -np.inf)
    assert_same_bits(FUNCTIONS[name](x, where=where), expected)
    if name in MASKED:
        assert_same_bits(FUNCTIONS[name](x, where=where, out=x), expected)


@every_function
@every_float
def test_a_row_with_nothing_kept(dtype: np.dtype, name: str) -> None:
    x = cast([[np.nan, 1, np.inf], [-np.inf, -np.inf, -np.inf], [1, 2, 3]], dtype)
    with np.errstate(all="raise"):
        got = FUNCTIONS[name](x, where=False)
    assert (got == (0 if name == "softmax" else -np.inf)).all()
    assert got.dtype == dtype


@every_function
@pytest.mark.parametrize(
    "where", [True, np.True_, [True, True, True], np.ones((1, 1), bool), None], ids=str
)
def test_everything_kept(where: Any, name: str) -> None:
    x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])
    got = FUNCTIONS[name](x, where=where)
    assert_accurate(name, got, exact(name, x), np.float64)


@every_function
def test_where_of_any_layout(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 50)).astype(np.float32)
    where = rng.random((6, 50)) < 0.6
    expected = FUNCTIONS[name](x, where=where)
    wide = np.zeros((12, 100), bool)
    wide[::-2, ::2] = where
    frozen = where.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(where), wide[::-2, ::2], frozen, where.tolist()):
        assert_same_bits(FUNCTIONS[name](x, where=same), expected)
    assert_same_bits(FUNCTIONS[name](np.asfortranarray(x), where=where), expected)
    got = FUNCTIONS[name](x.T, where=where.T, axis=0)
    assert_same_bits(got if name == "logsumexp" else got.T, expected)


@every_function
def test_where_broadcasts_over_every_axis(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    for shape in ((4,), (3, 1), (1, 4), (2, 1, 1), (1, 3, 1), (2, 3, 1), ()):
        where = rng.random(shape) < 0.6
        for axis in (0, 1, -1, (0, 2), None):
            got = FUNCTIONS[name](x, where=where, axis=axis)
            assert_accurate(name, got, exact(name, x, where=where, axis=axis), np.float32)


@every_function
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize(
    "shape",
    [(7, 3, 5), (2, 40, 33), (3, 1, 700), (1, 700, 3), (2, 90, 1100), (1, 20_000, 2)],
    ids=str,
)
def test_where_along_any_axis_of_any_layout(
    shape: tuple[int, int, int], dtype: Any, name: str, rng: np.random.Generator
) -> None:
    """As rows, with a mask of their own shape: also into arrays that lie otherwise."""
    x = (5 * rng.standard_normal(shape)).astype(dtype)
    x[0, 0, 0] = np.inf
    function, order = FUNCTIONS[name], (2, 0, 1)
    layouts = [
        x,
        x.transpose(order).copy().transpose(np.argsort(order)),
        np.repeat(x, 2, 2)[..., ::2],
    ]
    masks = [
        rng.random(m) < 0.7 for m in (shape, shape[1:], (shape[1], 1), (shape[0], 1, shape[2]))
    ]
    masks.append(np.asfortranarray(masks[0]))
    for axis in range(3):
        rows = np.moveaxis(x, axis, -1).copy()
        for where in masks:
            mask = np.moveaxis(np.broadcast_to(where, shape), axis, -1).copy()
            with np.errstate(invalid="ignore"):
                expected = function(rows, where=mask)
                if name != "logsumexp":
                    expected = np.moveaxis(expected, -1, axis)
                for view in layouts:
                    assert_same_bits(function(view, where=where, axis=axis), expected)
                    out = np.repeat(expected, 2, -1)[..., ::2]
                    assert function(view, where=where, axis=axis, out=out) is out
                    assert_same_bits(out, expected)
                if name != "logsumexp":
                    out = x.copy()
                    function(out, where=where, axis=axis, out=out)
                    assert_same_bits(out, expected)


@every_function
def test_where_in_the_memory_of_out(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 30)).astype(np.float32)
    for axis in (0, 1):
        expected = FUNCTIONS[name](x, axis=axis, where=x > 0)
        memory = np.zeros(x.shape, np.float32)
        where = memory.view(bool)[:, : x.shape[1]]
        where[...] = x > 0
        out = memory if name != "logsumexp" else memory.reshape(-1)[: len(expected)]
        FUNCTIONS[name](x, axis=axis, where=where, out=out)
        assert_same_bits(out, expected)


@every_function
@pytest.mark.parametrize("shape", [(2,), (4, 3), (5, 3, 4), (2, 4), (1, 1, 1)], ids=str)
def test_where_of_a_wrong_shape(shape: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError):
        FUNCTIONS[name](np.ones((3, 4)), where=np.ones(shape, bool))


@every_function
@pytest.mark.parametrize(
    "where", [1, 1.0, [1, 0, 1], np.ones(3, np.uint8), np.ones(3), "yes", [None]], ids=repr
)
def test_where_must_be_bool(where: Any, name: str) -> None:
    with pytest.raises(TypeError, match="where"):
        FUNCTIONS[name](np.ones(3), where=where)


@every_function
def test_where_is_not_written(name: str, rng: np.random.Generator) -> None:
    where = rng.random((5, 70)) < 0.5
    before = where.copy()
    FUNCTIONS[name](rng.standard_normal((5, 70)), where=where)
    np.testing.assert_array_equal(where, before)


@every_function
def test_any_nonzero_byte_is_true(name: str) -> None:
    """A bool array made by a view may hold other bytes than 0 and 1; NumPy takes them as true."""
    x = np.arange(40.0)
    odd = np.tile(np.array([0, 1, 2, 255, 128, 64, 0, 16], np.uint8), 5)
    assert_same_bits(FUNCTIONS[name](x, where=odd.view(bool)), FUNCTIONS[name](x, where=odd != 0))


@every_function
def test_where_of_an_empty_array(name: str) -> None:
    got = FUNCTIONS[name](np.empty((3, 0)), where=np.ones((3, 0), bool))
    assert got.shape == ((3,) if name == "logsumexp" else (3, 0))
    assert (got == -np.inf).all()


def test_softmax_of_the_kept_sums_to_one(rng: np.random.Generator) -> None:
    x, where = rng.standard_normal((50, 300)), rng.random((50, 300)) < 0.3
    np.testing.assert_allclose(fsm.softmax(x, where=where).sum(axis=1), 1, rtol=1e-14)
