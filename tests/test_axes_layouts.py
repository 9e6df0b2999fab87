"""Any axes and any layout in memory give the values of a contiguous copy."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
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
from numpy.exceptions import AxisError
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from reference import BFLOAT16, PRODUCTS, Array

import fastsoftmax as fsm

every_product = pytest.mark.parametrize("name", PRODUCTS)


def unaligned(x: Array) -> Array:
    """The same values one byte off."""
    buffer = np.zeros(x.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def spread(x: Array, *steps: int) -> Array:
    """The same values, the elements of axis i |steps[i]| apart, backwards where it is negative."""
    wide = np.zeros([n * abs(s) for n, s in zip(x.shape, steps, strict=True)], dtype=x.dtype)
    view = wide[tuple(slice(None, None, s) for s in steps)]
    view[...] = x
    return view


def field(x: Array) -> Array:
    """The same values as one field of packed records: strided, and mostly unaligned."""
    records = np.zeros(x.shape, dtype=[("a", "u1"), ("b", x.dtype), ("c", "u2")])
    records["b"] = x
    return records["b"]


def swapped(x: Array) -> Array:
    """The same values in the other byte order (which bfloat16 does not have)."""
    return x if x.dtype == BFLOAT16 else x.astype(x.dtype.newbyteorder("S"))


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "every other column": lambda x: spread(x, 1, 2),
    "every third column": lambda x: spread(x, 1, 3),
    "every fourth column": lambda x: spread(x, 1, 4),
    "every fifth column": lambda x: spread(x, 1, 5),
    "among others": lambda x: np.pad(x, ((1, 0), (3, 2)))[1:, 3:-2],
    "every third row": lambda x: spread(x, 3, 1),
    "columns backwards": lambda x: spread(x, 1, -1),
    "rows backwards": lambda x: spread(x, -1, 1),
    "all backwards": lambda x: spread(x, -2, -3),
    "fortran spread": lambda x: spread(x.T, 2, -2).T,
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "one column for all": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "one value for all": lambda x: np.broadcast_to(x[0, 0], x.shape),
    "windows": lambda x: sliding_window_view(x.ravel(), x.shape[1])[: x.shape[0]],
    "windows backwards": lambda x: sliding_window_view(x.ravel(), x.shape[1])[::-1, ::-1],
    "byte-swapped": swapped,
    "byte-swapped spread": lambda x: spread(swapped(x), 1, -2),
    "unaligned": unaligned,
    "unaligned fortran": lambda x: unaligned(x.T.copy()).T,
    "unaligned spread": lambda x: unaligned(spread(x, 2, 2))[::2, ::-2],
    "unaligned byte-swapped": lambda x: unaligned(swapped(x)),
    "field": field,
    "field byte-swapped": lambda x: field(swapped(x)),
    "read-only": read_only,
}


def plain(x: Array) -> Array:
    """A contiguous, aligned, native copy."""
    copy = np.empty(x.shape, dtype=x.dtype if x.dtype == BFLOAT16 else x.dtype.newbyteorder("="))
    copy[...] = x
    return copy


@every_function
@every_float
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for shape in ((5, 37), (2, 3), (70, 4)):
        x = LAYOUTS[layout](cast(3 * rng.standard_normal(shape), dtype))
        before = x.tobytes()
        for axis in (-1, 0, None):
            got = FUNCTIONS[name](x, axis=axis)
            assert got.dtype == dtype and got.dtype.isnative
            expected = FUNCTIONS[name](plain(x), axis=axis)
            if axis is None:  # one row made of several: not read in the same order in every layout
                assert_accurate(name, got, exact(name, plain(x), axis=None), dtype)
            else:
                assert_same_bits(got, expected)
        assert x.tobytes() == before


@every_function
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    "layout",
    [
        "every other column",
        "among others",
        "columns backwards",
        "fortran",
        "unaligned",
        "byte-swapped",
    ],
)
def test_layouts_at_every_size(layout: str, n: int, name: str, rng: np.random.Generator) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        x = LAYOUTS[layout](cast(3 * rng.standard_normal((3, n)), dtype))
        got = FUNCTIONS[name](x)
        assert_same_bits(got, FUNCTIONS[name](plain(x)))
        if n <= 100 or dtype == np.float32:
            assert_accurate(name, got, exact(name, plain(x)), dtype)


@every_function
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("columns", [1, 5, 40])
def test_first_axis_at_every_size(
    columns: int, n: int, name: str, rng: np.random.Generator
) -> None:
    x = cast(3 * rng.standard_normal((n, columns)), np.dtype(np.float32))
    got = FUNCTIONS[name](x, axis=0)
    assert_accurate(name, got, exact(name, x, axis=0), np.float32)
    rows = FUNCTIONS[name](np.ascontiguousarray(x.T))
    assert_same_bits(got, rows if name == "logsumexp" else rows.T)


@every_function
@every_float
@pytest.mark.parametrize("n", [2, 5, 31, 40, 63, 64, 513, 16_391])
def test_columns_give_the_bits_of_rows(
    n: int, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """Some tiles have a row that is not tame, or a term that outweighs the others."""
    if dtype == np.longdouble and n > 64:
        return
    for scale in (0.1, 3, 20):
        rows = cast(scale * rng.standard_normal((70, n)), dtype)
        for x in (rows, rows[:40], rows[:3]):
            got = FUNCTIONS[name](np.ascontiguousarray(x.T), axis=0)
            assert_same_bits(got if name == "logsumexp" else got.T, FUNCTIONS[name](x))


@every_product
@every_float
@pytest.mark.parametrize("n", [2, 5, 15, 16, 17, 64, 100, 257, 3000, 16_391])
def test_products_give_the_same_bits_in_any_layout(
    n: int, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """In one row v is not finite, in one p vanishes first, in one p is not a probability."""
    if dtype == np.longdouble and n > 64:
        return
    count = 1 + (name == "softmax_vjp_derivative")
    x = 3 * rng.standard_normal((40, n))
    x[3, : n // 2] = -120
    p = fsm.softmax(cast(x, dtype))
    p[4] = 0
    vectors = [cast(rng.standard_normal(p.shape), dtype) for _ in range(count)]
    for v in vectors:
        v[7, n // 2] = np.inf
    function = getattr(fsm, name)
    with np.errstate(all="ignore"):
        expected = function(p, *vectors)
        for part in (slice(None), slice(5)):
            columns = [np.ascontiguousarray(a[part].T) for a in (p, *vectors)]
            assert_same_bits(function(*columns, axis=0).T, expected[part])
        for layout in ("every other column", "columns backwards", "fortran", "rows backwards"):
            views = [LAYOUTS[layout](a) for a in (p, *vectors)]
            assert_same_bits(function(*views), expected)
            assert_same_bits(function(p, *views[1:]), expected)
        middle = [a.reshape(4, 10, n).swapaxes(1, 2).copy() for a in (p, *vectors)]
        result = function(*middle, 1)
        assert_same_bits(result.swapaxes(1, 2).reshape(40, n), expected)
        for in_place in (middle[0], middle[1]):
            copies = [a.copy() for a in middle]
            i = 0 if in_place is middle[0] else 1
            assert_same_bits(function(*copies, 1, out=copies[i]), result)


def test_large_strided_arrays_go_part_by_part(rng: np.random.Generator) -> None:
    """Integers, masks that are broadcast and temperatures of rows, in arrays of several parts."""
    x = rng.integers(-50, 50, (3, 700, 2, 90))[:, :, ::-1, ::2]
    keep = rng.random((700, 1, 45)) < 0.7
    t = rng.uniform(0.5, 2, (3, 700, 2, 1))
    for name, function in FUNCTIONS.items():
        kwargs = {} if name == "logsumexp" else {"temperature": 1.5}
        got = function(x, where=keep, **kwargs)
        assert_same_bits(got[2, 5:9], function(x[2, 5:9], where=keep[5:9], **kwargs))
        if name != "logsumexp":
            got = function(x, temperature=t)
            assert_same_bits(got[1, 600:], function(x[1, 600:], temperature=t[1, 600:]))


def axes_of(ndim: int) -> list[Any]:
    """Every choice of axes, each a single int, tuples in every order, negative ones, and None."""
    singles = range(-ndim, ndim)
    tuples = [t for k in range(ndim + 1) for t in itertools.permutations(range(ndim), k)]
    return [*singles, *tuples, tuple(range(-ndim, 0)), None]


@every_function
@pytest.mark.parametrize("shape", [(6,), (3, 5), (4, 3, 5), (2, 3, 4, 3), (3, 1, 4)], ids=str)
def test_axes(shape: tuple[int, ...], name: str, rng: np.random.Generator) -> None:
    x = cast(2 * rng.standard_normal(shape), np.dtype(np.float32))
    for layout in (x, np.asfortranarray(x), spread(x, *[2, -1, 3, -2][: x.ndim])):
        for axis in axes_of(x.ndim):
            assert_accurate(
                name, FUNCTIONS[name](layout, axis=axis), exact(name, x, axis=axis), np.float32
            )
            if name == "logsumexp":
                got = fsm.logsumexp(layout, axis=axis, keepdims=True)
                assert_accurate(name, got, exact(name, x, axis=axis, keepdims=True), np.float32)


@every_function
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_axes_that_lie_as_one(name: str, dtype: Any, rng: np.random.Generator) -> None:
    function = FUNCTIONS[name]
    x, where = (3 * rng.standard_normal((3, 4, 50))).astype(dtype), rng.random((4, 50)) < 0.7
    for axes, shape in (
        (None, (1, -1)),
        ((0, 1, 2), (1, -1)),
        ((1, 2), (3, -1)),
        ((-3, -2), (-1, 50)),
    ):
        for keep in (None, where):
            mask = None if keep is None else np.broadcast_to(keep, x.shape).reshape(shape)
            at = 0 if shape[1] == 50 else 1
            expected = function(x.reshape(shape), axis=at, where=mask)
            result = function(x, axis=axes, where=keep)
            assert_same_bits(np.reshape(result, expected.shape), expected)
            for out in (np.empty_like(result), np.empty_like(np.repeat(result, 2, -1))[..., ::2]):
                if np.ndim(result):
                    assert function(x, axis=axes, where=keep, out=out) is out
                    assert_same_bits(out, result)
            if name != "logsumexp":
                same = x.copy()
                assert_same_bits(function(same, axis=axes, where=keep, out=same), result)


@every_function
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 3), (0, 0)], ids=str)
def test_empty(shape: tuple[int, ...], name: str) -> None:
    x = np.empty(shape, dtype=np.float32)
    with np.errstate(all="raise"):
        for axis in axes_of(x.ndim):
            assert_accurate(
                name, FUNCTIONS[name](x, axis=axis), exact(name, x, axis=axis), np.float32
            )


def test_logsumexp_of_nothing_is_minus_infinity() -> None:
    assert fsm.logsumexp([]) == -np.inf
    np.testing.assert_array_equal(fsm.logsumexp(np.ones((2, 0))), [-np.inf, -np.inf])


@every_function
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3,), 1), ((3,), -2), ((3, 4), 2), ((3, 4), (0, 2)), ((3, 4), (-3,)), ((), 1), ((), (0, 1))],
)
def test_axis_out_of_range(shape: tuple[int, ...], axis: Any, name: str) -> None:
    with pytest.raises(AxisError):
        FUNCTIONS[name](np.ones(shape), axis=axis)


@every_function
@pytest.mark.parametrize("axis", [(0, 0), (1, -1), (-2, 0)])
def test_repeated_axis(axis: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError):
        FUNCTIONS[name](np.ones((3, 4)), axis=axis)


@every_function
@pytest.mark.parametrize("axis", [1.0, "0", (0.5,), 1j])
def test_axis_of_a_wrong_type(axis: Any, name: str) -> None:
    with pytest.raises(TypeError, match=r"axis is .*; an int"):
        FUNCTIONS[name](np.ones((3, 4)), axis=axis)


@every_map
def test_axis_may_be_a_numpy_integer(name: str) -> None:
    x = np.arange(12.0).reshape(3, 4) % 5
    assert_same_bits(FUNCTIONS[name](x, axis=np.int8(0)), FUNCTIONS[name](x, axis=0))


@every_function
def test_many_dimensions(name: str, rng: np.random.Generator) -> None:
    x = cast(rng.standard_normal((2, 1, 2, 1, 3, 1, 2, 1, 1, 2)), np.dtype(np.float32))
    for axis in (0, 4, -1, (2, 4), None):
        assert_accurate(name, FUNCTIONS[name](x, axis=axis), exact(name, x, axis=axis), np.float32)


@every_function
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_mapped(mode: str, name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 33)).astype(np.float32)
    path = tmp_path / "x.npy"
    np.save(path, x)
    contents = path.read_bytes()
    mapped = np.load(path, mmap_mode=mode)
    assert isinstance(mapped, np.memmap)
    for axis in (-1, 0):
        assert_same_bits(FUNCTIONS[name](mapped, axis=axis), FUNCTIONS[name](x, axis=axis))
    del mapped
    assert path.read_bytes() == contents


@every_map
def test_windows_that_overlap_themselves(name: str) -> None:
    base = np.arange(10, dtype=np.float64) % 4
    x = as_strided(base, shape=(4, 5, 3), strides=(8, 16, 0))
    assert_same_bits(FUNCTIONS[name](x), FUNCTIONS[name](plain(x)))
    assert_same_bits(FUNCTIONS[name](x, axis=1), FUNCTIONS[name](plain(x), axis=1))


@every_function
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
def test_memory_for_a_few_long_columns(name: str, dtype: type) -> None:
    x = np.zeros((1 << 17, 2), dtype)
    arguments = {} if name == "logsumexp" else {"out": np.empty_like(x)}
    tracemalloc.start()
    FUNCTIONS[name](x, axis=0, **arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * x.nbytes
