"""Floats keep their dtype, integers give float64, and other dtypes are refused by name."""

from __future__ import annotations

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    FUNCTIONS,
    MAPS,
    assert_accurate,
    assert_same_bits,
    cast,
    every_float,
    every_function,
    every_map,
    exact,
)
from reference import BFLOAT16, FLOATS, SHORT

import fastsoftmax as fsm

INTEGERS = [np.dtype(c) for c in "?bBhHiIlLqQ"]

REFUSED = [
    np.zeros(3, np.complex64),
    np.zeros(3, np.complex128),
    np.zeros(3, np.clongdouble),
    np.array([1.0, 2.0, 3.0], dtype=object),
    np.array(["1", "22", "333"]),
    np.array([b"1", b"22"]),
    np.zeros(3, "M8[s]"),
    np.zeros(3, "m8[ns]"),
    np.zeros(3, "V4"),
    np.zeros(3, [("a", "f4"), ("b", "f8")]),
    np.array(["a", "b"], dtype=np.dtypes.StringDType()),
    np.zeros(3, ml_dtypes.float8_e5m2),
    np.zeros(3, ml_dtypes.int4),
]


@every_function
@every_float
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0,), (3, 0), (0, 3)])
def test_floats_keep_their_dtype(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    x = cast(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 5 - 2, dtype)
    got = FUNCTIONS[name](x)
    assert got.dtype == dtype
    assert got.shape == (shape[:-1] if name == "logsumexp" else shape)
    assert_accurate(name, got, exact(name, x), dtype)


@every_function
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda t: t.name)
def test_integers_and_bools_give_float64(dtype: np.dtype, name: str) -> None:
    x = np.array([[0, 1, 1, 0, 3], [1, 5, 0, 2, 4]]).astype(dtype)
    got = FUNCTIONS[name](x)
    assert got.dtype == np.float64
    assert_same_bits(got, FUNCTIONS[name](x.astype(np.float64)))
    assert_accurate(name, got, exact(name, x.astype(np.float64)))


@every_function
def test_extreme_integers_do_not_wrap(name: str) -> None:
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        limits = np.iinfo(dtype)
        x = np.array([limits.min, limits.max, limits.max, 0], dtype=dtype)
        got = FUNCTIONS[name](x)
        assert_accurate(name, got, exact(name, x.astype(np.float64)), np.float64)


@every_function
@pytest.mark.parametrize("x", REFUSED, ids=lambda x: x.dtype.name.replace(" ", ""))
def test_other_dtypes_are_refused_by_name(x: np.ndarray, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        FUNCTIONS[name](x)
    message = str(caught.value)
    assert any(word.strip("'`,.:=()") == "x" for word in message.split()), message
    assert str(x.dtype) in message or x.dtype.name in message, message


@every_function
@pytest.mark.parametrize("x", [1j, [1, 2j], "text", ["a", "b"], [None, 1.0], None, {}], ids=repr)
def test_other_objects_are_refused(x: Any, name: str) -> None:
    with pytest.raises(TypeError):
        FUNCTIONS[name](x)


@every_function
@every_float
@pytest.mark.parametrize("source", [*FLOATS, np.dtype("i4"), np.dtype("?")], ids=str)
def test_dtype_casts_the_input_first(source: np.dtype, dtype: np.dtype, name: str) -> None:
    x = np.array([[1, 0, 0, 1], [2, 3, -5, 7]]).astype(source)
    if source.kind not in "bi":
        x = cast(np.array([[0.1, 7.3, -2.7, 0.1], [2, 3, 4, 5]]), source)
    got = FUNCTIONS[name](x, dtype=dtype)
    assert got.dtype == dtype
    assert_same_bits(got, FUNCTIONS[name](x.astype(dtype)))


@every_function
def test_dtype_may_be_spelled_in_every_way(name: str) -> None:
    for dtype in (np.float32, "float32", "f4", np.dtype("f4"), "<f4", ">f4"):
        got = FUNCTIONS[name]([1, 2], dtype=dtype)
        assert np.asarray(got).dtype == np.float32
    assert np.asarray(FUNCTIONS[name]([1, 2], dtype=float)).dtype == np.float64
    assert np.asarray(FUNCTIONS[name]([1, 2], dtype=None)).dtype == np.float64


@every_function
@pytest.mark.parametrize(
    "dtype", [int, bool, "i4", "u1", complex, "c8", object, "U3", "S1", "M8[s]", "V4"], ids=str
)
def test_dtype_must_be_a_float(dtype: Any, name: str) -> None:
    out = np.full((), 7.0) if name == "logsumexp" else np.full(2, 7.0)
    with pytest.raises(TypeError, match="dtype"):
        FUNCTIONS[name]([1.0, 2.0], dtype=dtype, out=out)
    assert (out == 7).all()


@every_function
@pytest.mark.parametrize("x", REFUSED[:5], ids=lambda x: x.dtype.name.replace(" ", ""))
def test_dtype_does_not_admit_other_dtypes(x: np.ndarray, name: str) -> None:
    with pytest.raises(TypeError):
        FUNCTIONS[name](x, dtype=np.float32)


@every_map
@pytest.mark.parametrize("axis", [-1, 0, None, ()], ids=str)
def test_scalars_are_one_element(axis: int | tuple[int, ...] | None, name: str) -> None:
    value = 1.0 if name == "softmax" else 0.0
    for x in (
        3,
        2.5,
        True,
        np.float32(7),
        np.float16(1),
        np.longdouble(2),
        np.int8(3),
        np.array(4.0),
    ):
        got = FUNCTIONS[name](x, axis=axis)
        wanted = np.asarray(x).dtype if np.asarray(x).dtype.kind == "f" else np.dtype(np.float64)
        assert isinstance(got, np.generic)
        assert got.dtype == wanted
        assert got == value


@pytest.mark.parametrize("axis", [-1, 0, None, ()], ids=str)
def test_logsumexp_of_a_scalar_is_itself(axis: int | tuple[int, ...] | None) -> None:
    for x in (3, 2.5, True, np.float32(7), np.float16(1), np.longdouble(2), np.array(4.0)):
        for keepdims in (False, True):
            got = fsm.logsumexp(x, axis=axis, keepdims=keepdims)
            assert isinstance(got, np.generic)
            assert got == x


@every_float
def test_results_without_dimensions_are_numpy_scalars(dtype: np.dtype) -> None:
    x = cast([[1, 2, 3], [4, 5, 6]], dtype)
    for got in (fsm.logsumexp(x, axis=None), fsm.logsumexp(x, axis=(0, 1)), fsm.logsumexp(x[0])):
        assert not isinstance(got, np.ndarray)
        assert np.asarray(got).dtype == dtype
    if dtype != BFLOAT16:
        assert type(fsm.logsumexp(x[0])) is dtype.type
    assert fsm.logsumexp(x, axis=None, keepdims=True).shape == (1, 1)


@every_function
def test_lists_tuples_and_buffers_are_arrays(name: str) -> None:
    function = FUNCTIONS[name]
    x = np.array([[0.5, 1.5, -2.0], [3.0, 0.0, 1.0]])
    for same in (x.tolist(), tuple(map(tuple, x.tolist())), memoryview(x), [x[0], x[1]]):
        assert_same_bits(function(same), function(x))
    for code in "fd":
        buffer = array.array(code, x[0].tolist())
        assert_same_bits(function(buffer), function(x[0].astype(code)))
    assert_same_bits(function(array.array("i", [1, 2, 3])), function(np.array([1.0, 2.0, 3.0])))


@every_function
def test_a_ragged_list_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        FUNCTIONS[name]([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_every_short_float_survives(dtype: np.dtype) -> None:
    """logsumexp of one element is that element: all 65536, in vectors and at their ends."""
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    for size in (2**16, 2**16 - 3):
        got = fsm.logsumexp(x[:size].reshape(-1, 1))
        nan = np.isnan(x[:size].astype(np.float32))
        np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
        zero = x[:size].astype(np.float32) == 0  # of -0 the result may be +0
        same = got.view(np.uint16) == x[:size].view(np.uint16)
        assert (same | nan | zero).all()


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("n", [16384, 16385, 40_000])
def test_long_rows_of_short_floats(n: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Rows longer than what is held as float32 at once, some without an answer."""
    x = cast(4 * rng.standard_normal((6, n)), dtype)
    x[3, n - 5], x[4, 7] = np.inf, np.nan
    x[5] = -np.inf
    for name, function in FUNCTIONS.items():
        with np.errstate(invalid="ignore"):
            got = function(x)
            columns = function(np.asfortranarray(x), 1)
        assert_accurate(name, got[:3], exact(name, x[:3]), dtype)
        assert_same_bits(columns, got)
        if name == "logsumexp":
            assert got[3] == np.inf and np.isnan(got[4]) and got[5] == -np.inf
        else:
            assert np.isnan(got[3:].astype(np.float32)).all()
            with pytest.raises(FloatingPointError), np.errstate(invalid="raise"):
                function(x[3])


@every_map
def test_lists_and_integers_are_arrays_of_float64(name: str) -> None:
    x = np.array([[1, 2, 4], [0, 0, -7]])
    expected = MAPS[name](x.astype(np.float64), temperature=2)
    for same in (x, x.tolist(), x.astype(np.int8), x.astype(">i4"), x.astype(np.int32).T.copy().T):
        assert_same_bits(MAPS[name](same, temperature=2), expected)
        out = np.empty(x.shape)
        assert MAPS[name](same, temperature=2, out=out) is out
        assert_same_bits(out, expected)
    half = MAPS[name](x.astype(np.float16))
    assert_same_bits(MAPS[name](x.tolist(), dtype=np.float16), half)
