"""The same row gives the same bits: alone or among others, in any layout, axis or output."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers import (
    FUNCTIONS,
    MAPS,
    SIZES,
    assert_accurate,
    assert_same_bits,
    cast,
    every_float,
    every_function,
    every_map,
    exact,
    rows,
)
from reference import SHORT, Array

import fastsoftmax as fsm

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
LONGER = [5000, 70_001]


def one_by_one(name: str, x: Array) -> Array:
    return np.array([FUNCTIONS[name](row) for row in x], dtype=x.dtype)


@every_function
@every_float
@pytest.mark.parametrize("n", SIZES)
def test_alone_or_in_a_batch(n: int, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    x = rows(21, n, dtype, rng)
    alone = one_by_one(name, x)
    assert_same_bits(FUNCTIONS[name](x), alone)
    for start, stop in ((0, 1), (3, 20), (20, 21), (5, 13)):
        assert_same_bits(FUNCTIONS[name](x[start:stop]), alone[start:stop])
    order = rng.permutation(21)
    assert_same_bits(FUNCTIONS[name](x[order]), alone[order])
    cube = FUNCTIONS[name](x.reshape(3, 1, 7, n))
    assert_same_bits(cube.reshape(alone.shape), alone)


@every_function
@every_float
@pytest.mark.parametrize("n", SIZES)
def test_any_axis_and_layout(n: int, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    x = rows(37, n, dtype, rng)
    alone = one_by_one(name, x)
    columns = alone if name == "logsumexp" else alone.T
    assert_same_bits(FUNCTIONS[name](x.T, axis=0), columns)
    assert_same_bits(FUNCTIONS[name](np.ascontiguousarray(x.T), axis=0), columns)
    assert_same_bits(FUNCTIONS[name](np.asfortranarray(x)), alone)
    middle = np.ascontiguousarray(np.broadcast_to(x.T[None], (2, n, 37)))
    got = FUNCTIONS[name](middle, axis=1)
    assert_same_bits(got[1], columns)
    wide = np.zeros((74, 3 * n), dtype=dtype)
    wide[::2, ::-3] = x
    assert_same_bits(FUNCTIONS[name](wide[::2, ::-3]), alone)


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_long_rows(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in LONGER:
        x = rows(5, n, dtype, rng)
        alone = one_by_one(name, x)
        assert_same_bits(FUNCTIONS[name](x), alone)
        got = FUNCTIONS[name](np.asfortranarray(x))
        assert_same_bits(got, alone)
        assert_same_bits(FUNCTIONS[name](x[:, ::-1][:, ::-1]), alone)


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_wherever_the_row_begins_in_memory(
    dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    for n in (5, 33, 100, 1000):
        x = rows(1, n, dtype, rng)[0]
        expected = FUNCTIONS[name](x)
        for start in range(0, 70, 3):
            buffer = np.zeros(x.nbytes + 80, dtype=np.uint8)
            moved = buffer[start : start + x.nbytes].view(dtype)
            moved[...] = x
            assert_same_bits(FUNCTIONS[name](moved), expected)
            out = np.zeros(expected.nbytes + 80, dtype=np.uint8)
            out = out[start : start + expected.nbytes].view(dtype).reshape(expected.shape)
            FUNCTIONS[name](moved, out=out)
            assert_same_bits(out, expected)


@every_function
@every_float
def test_into_out_or_not(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in SIZES:
        x = rows(6, n, dtype, rng)
        expected = FUNCTIONS[name](x)
        shape = expected.shape
        padded = np.zeros(tuple(2 * s + 1 for s in shape), dtype=dtype)
        for out in (
            np.empty(shape, dtype),
            np.empty(shape, dtype, order="F"),
            padded[tuple(slice(1, None, 2) for _ in shape)],
        ):
            assert_same_bits(FUNCTIONS[name](x, out=out), expected)


@every_function
@every_float
def test_with_where(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in (3, 17, 64, 1000):
        x = rows(7, n, dtype, rng)
        where = rng.random(x.shape) < 0.6
        got = FUNCTIONS[name](x, where=where)
        alone = [FUNCTIONS[name](a, where=w) for a, w in zip(x, where, strict=True)]
        assert_same_bits(got, np.array(alone, dtype=dtype))
        columns = FUNCTIONS[name](np.asfortranarray(x).T, axis=0, where=where.T)
        assert_same_bits(columns if name == "logsumexp" else columns.T, got)


@every_map
@every_float
def test_with_temperature(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in (3, 17, 64, 1000):
        x = rows(7, n, dtype, rng)
        temperature = rng.uniform(0.1, 10, (7, 1))
        got = FUNCTIONS[name](x, temperature=temperature)
        for row, t, result in zip(x, temperature, got, strict=True):
            assert_same_bits(FUNCTIONS[name](row, temperature=float(t[0])), result)
        columns = FUNCTIONS[name](np.asfortranarray(x).T, axis=0, temperature=temperature.T)
        assert_same_bits(columns.T, got)


@every_function
def test_neighbours_with_special_values_change_nothing(name: str, rng: np.random.Generator) -> None:
    x = rows(20, 50, FLOAT32, rng)
    expected = FUNCTIONS[name](x)
    dirty = x.copy()
    dirty[1::4, 7] = np.nan
    dirty[2::4, 49] = np.inf
    dirty[3::4] = -np.inf
    for axis in (-1, 0):
        with np.errstate(invalid="ignore"):
            got = FUNCTIONS[name](dirty if axis else np.ascontiguousarray(dirty.T), axis=axis)
        got = got if axis or name == "logsumexp" else got.T
        assert_same_bits(got[::4], expected[::4])


@every_function
def test_again_and_again(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 1000)).astype(np.float32)
    first = FUNCTIONS[name](x)
    for _ in range(5):
        assert_same_bits(FUNCTIONS[name](x), first)


@every_map
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("n", [40, 700, 5000])
def test_at_the_bound_of_tame_rows(
    n: int, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """Rows within the bound take no maximum; one element beyond it, anywhere, changes the way."""
    bound = 40 if dtype == FLOAT32 else 350
    x = cast(rng.uniform(-bound, bound, (30, n)), dtype)
    breakers = [
        bound,
        -bound,
        np.nextafter(bound, 1e9),
        -bound - 1,
        bound + 1,
        -np.inf,
        np.inf,
        np.nan,
    ]
    for i, value in enumerate(breakers):
        x[3 * i : 3 * i + 3][[0, 1, 2], [0, n // 2, n - 1]] = value
    with np.errstate(invalid="ignore"):
        got, same = FUNCTIONS[name](x), x.copy()
        FUNCTIONS[name](same, out=same)
        shifted = FUNCTIONS[name](x - x.dtype.type(1024) * 4)
    assert_same_bits(same, got)
    exact_rows = slice(0, 18)
    assert_accurate(name, got[exact_rows], exact(name, x[exact_rows]), dtype)
    assert np.isnan(got[18:24]).all() and np.isnan(shifted[18:24]).all()


def test_columns_of_every_kind(rng: np.random.Generator) -> None:
    """A middle axis, as it lies or transposed, tame or not, against contiguous rows."""
    lengths, widths = (
        [1, 2, 17, 40, 63, 64, 65, 257, 600],
        [1, 3, 7, 8, 9, 64, 65, 257, 513, 600, 1025, 1100],
    )
    for _ in range(150):
        shape = (2, int(rng.choice(lengths)), int(rng.choice(widths)))
        dtype = rng.choice([np.float32, np.float64])
        x = rng.choice([1, 8, 50, 1e4]) * rng.standard_normal(shape) + rng.choice([0, 0, 1e4, -300])
        x = x.astype(dtype)
        if rng.random() < 0.3:
            value = rng.choice([np.nan, np.inf, -np.inf, 61, 501, 1e30])
            x[0, rng.integers(shape[1]), rng.integers(shape[2])] = value
        t: Any = float(rng.choice([1, 0.3, 7]))
        if rng.random() < 0.2:
            t = rng.uniform(0.2, 3, (2, 1, shape[2]))
        rows = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        with np.errstate(all="ignore"):
            for function in MAPS.values():
                got = function(x, 1, temperature=t)
                of_rows = function(
                    rows, temperature=t if np.ndim(t) == 0 else np.moveaxis(t, 1, -1)
                )
                assert_same_bits(got, np.moveaxis(of_rows, -1, 1))
                same = x.copy()
                assert_same_bits(function(same, 1, temperature=t, out=same), got)
            assert_same_bits(FUNCTIONS["logsumexp"](x, 1), FUNCTIONS["logsumexp"](rows))


@every_function
@every_float
@pytest.mark.parametrize("n", [2, 5, 9, 17, 33, 50, 63, 64, 100, 257, 600, 2100])
def test_masked_shifted_and_far_rows(
    n: int, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """Among tame rows and among their like, in rows and in columns, as alone; and accurate."""
    tame = 3 * rng.standard_normal((24, n))
    masked = np.where(rng.random(tame.shape) < 0.25, -np.inf, tame)
    masked[:, rng.integers(n)] = 1
    far = np.where(rng.random(tame.shape) < 0.25, -6e4, tame)
    cold = 15 * tame  # and results of which many are subnormal
    for wild in (masked, far, tame + 1000, tame - 300, cold, 8 * cold, 300 * tame):
        x = cast(np.concatenate([wild, tame]), dtype)
        alone = one_by_one(name, x)
        assert_accurate(name, alone[:4], exact(name, x[:4]), dtype)
        for order in (slice(0, 24), slice(None), rng.permutation(len(x))):
            some = x[order].copy()
            assert_same_bits(FUNCTIONS[name](some), alone[order])
            columns = FUNCTIONS[name](np.ascontiguousarray(some.T), axis=0)
            assert_same_bits(columns.T, alone[order])
            some[-1, -1] = np.nan
            assert_same_bits(FUNCTIONS[name](some)[:-1], alone[order][:-1])
            columns = FUNCTIONS[name](np.ascontiguousarray(some.T), axis=0)
            assert_same_bits(columns.T[:-1], alone[order][:-1])


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_long_columns(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Sums of more elements than a chunk (16384) are the same in columns."""
    for n in (16383, 16384, 16385, 40_000):
        x = (3 * rng.standard_normal((n, 9))).astype(dtype)
        rows = FUNCTIONS[name](np.ascontiguousarray(x.T))
        assert_same_bits(FUNCTIONS[name](x, axis=0), rows.T)


@every_float
@pytest.mark.parametrize("n", [2, 3, 17, 63, 200])
@pytest.mark.parametrize("after", [2, 3, 7, 15, 16, 17, 40, 63])
def test_few_columns_of_many_blocks(
    after: int, n: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    blocks = 30
    x = rows(blocks * after, n, dtype, rng)
    x[5, -1] = -np.inf
    x[9] = np.nan
    temperature = rng.uniform(0.1, 10, (len(x), 1))

    def middle(a: Array) -> Array:
        """The same rows, along axis 1."""
        return np.ascontiguousarray(a.reshape(blocks, after, -1).swapaxes(1, 2))

    logsumexp = fsm.logsumexp(middle(x), axis=1, keepdims=True)
    assert_same_bits(logsumexp, middle(fsm.logsumexp(x, axis=-1, keepdims=True)))
    for function in MAPS.values():
        assert_same_bits(function(middle(x), axis=1), middle(function(x)))
    for function in MAPS.values():
        got = function(middle(x), axis=1, temperature=middle(temperature))
        assert_same_bits(got, middle(function(x, temperature=temperature)))
    p, g = fsm.softmax(x), rows(len(x), n, dtype, rng)
    for product in (fsm.softmax_vjp, fsm.log_softmax_vjp, fsm.log_softmax_jvp):
        assert_same_bits(product(middle(p), middle(g), axis=1), middle(product(p, g)))
    second = fsm.softmax_vjp_derivative(p, g, p[::-1].copy())
    got = fsm.softmax_vjp_derivative(middle(p), middle(g), middle(p[::-1]), axis=1)
    assert_same_bits(got, middle(second))


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_a_few_columns_too_long_for_a_cache(
    name: str, dtype: np.dtype, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((1_300_001, 5), np.float32).astype(dtype)
    for top in (1, 41, 1e30):  # tame; not quite, in float32; one element outweighs the others
        x[77, 3] = top
        rows = FUNCTIONS[name](np.ascontiguousarray(x.T))
        assert_same_bits(FUNCTIONS[name](x, axis=0), rows.T)


@every_function
@every_float
def test_a_strided_row_too_long_to_be_gathered(
    name: str, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Rows of more than 512 KiB; of logsumexp tame ones go by chunks, see far_row."""
    x = cast(rng.standard_normal(((1 << 19) // dtype.itemsize + 3, 2)), dtype)[:, 0]
    for top in (1, 61, 3e4):
        x[77] = top
        assert_same_bits(FUNCTIONS[name](x), FUNCTIONS[name](x.copy()))
        neighbours = np.repeat(x[:, None], 3, axis=1)
        assert_same_bits(FUNCTIONS[name](neighbours.T), FUNCTIONS[name](neighbours.T.copy()))


@every_function
@every_float
def test_columns_that_are_not_a_whole_vector(
    name: str, dtype: np.dtype, rng: np.random.Generator
) -> None:
    for n, count in itertools.product((5, 20, 66, 300), (7, 9, 15, 24, 47, 1031)):
        x = cast(3 * rng.standard_normal((n, count)), dtype)
        for column in (0, count - 1):
            rows = FUNCTIONS[name](np.ascontiguousarray(x.T))
            assert_same_bits(FUNCTIONS[name](x, axis=0), rows.T)
            x[n // 2, column] = 1e3  # not tame, of those together or of those left


@every_map
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, *SHORT], ids=str)
@pytest.mark.parametrize("n", [2049, 16_384, 16_385, 40_000, (1 << 20) + 1])
def test_long_rows_wherever_they_are(
    n: int, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """What is kept of them for a second pass depends on it: see longest_kept."""
    x = cast(3 * rng.standard_normal((2, n), np.float32), dtype)
    x[1, n // 2] = 700  # which is not tame
    function = FUNCTIONS[name]
    got = function(x)
    wider = np.zeros((2, n + 9), dtype)
    wider[:, :n] = x
    assert_same_bits(function(wider[:, :n]), got)
    assert_same_bits(function(x, where=np.ones(n, bool)), got)
    assert_same_bits(function(x[::-1]), got[::-1])
    assert_same_bits(function(x, out=x), got)
