"""NaN and infinities anywhere: which rows they spoil, and when 'invalid' is signalled."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import (
    FUNCTIONS,
    assert_accurate,
    cast,
    every_float,
    every_function,
    every_map,
    exact,
)
from reference import Array, widen

import fastsoftmax as fsm


def with_special(n: int, value: float, dtype: np.dtype) -> Array:
    """One row for every position in n, with the value there; then one with it everywhere."""
    x = np.tile(np.linspace(-1, 1, n), (n + 1, 1))
    x[np.arange(n), np.arange(n)] = value
    x[n] = value
    return cast(x, dtype)


def signals(call: Callable[[], Any]) -> bool:
    """Whether the call signals 'invalid', in each of NumPy's ways; nothing else may be."""
    with np.errstate(all="raise", under="ignore", invalid="raise"):
        try:
            call()
            raised = False
        except FloatingPointError as error:
            assert "invalid value" in str(error)
            raised = True
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="warn", under="ignore"):
        warnings.simplefilter("always")
        call()
    assert [c.category for c in caught] == [RuntimeWarning] * len(caught)
    assert all("invalid value" in str(c.message) for c in caught)
    assert bool(caught) == raised
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        call()
    return raised


@every_function
@every_float
@pytest.mark.parametrize("axis", [-1, 0])
def test_nan_spoils_its_row_in_silence(axis: int, dtype: np.dtype, name: str) -> None:
    for n in range(1, 34):
        x = with_special(n, np.nan, dtype)
        x = x if axis else np.asfortranarray(x.T)
        with np.errstate(all="raise"):
            got = FUNCTIONS[name](x, axis=axis)
        assert np.isnan(widen(got)).all()


@every_map
@every_float
@pytest.mark.parametrize("axis", [-1, 0])
def test_inf_spoils_its_row_with_a_signal(axis: int, dtype: np.dtype, name: str) -> None:
    for n in range(1, 34):
        x = with_special(n, np.inf, dtype)
        for row in x[:: max(n // 3, 1)]:
            with (
                pytest.raises(FloatingPointError, match="invalid value"),
                np.errstate(invalid="raise"),
            ):
                FUNCTIONS[name](row)
        x = x if axis else np.asfortranarray(x.T)
        with np.errstate(all="raise", invalid="ignore"):
            assert np.isnan(widen(FUNCTIONS[name](x, axis=axis))).all()
        with pytest.warns(RuntimeWarning, match="invalid value"):
            FUNCTIONS[name](x, axis=axis)


@every_float
def test_logsumexp_of_infinity_is_infinity_in_silence(dtype: np.dtype) -> None:
    for n in range(1, 34):
        with np.errstate(all="raise"):
            assert (fsm.logsumexp(with_special(n, np.inf, dtype)) == np.inf).all()
            mixed = with_special(n, np.inf, dtype)
            mixed[:, -1] = np.where(mixed[:, -1] == np.inf, mixed[:, -1], -np.inf)
            assert (fsm.logsumexp(mixed) == np.inf).all()


@every_function
@every_float
def test_minus_infinity_counts_for_nothing(dtype: np.dtype, name: str) -> None:
    for n in range(2, 34):
        x = with_special(n, -np.inf, dtype)[:n]
        keep = x != -np.inf
        with np.errstate(all="raise", under="ignore"):
            got = FUNCTIONS[name](x)
        assert_accurate(name, got, exact(name, x), dtype)
        if name != "logsumexp":
            assert (got[~keep] == (0 if name == "softmax" else -np.inf)).all()
            assert np.isfinite(widen(got)[keep]).all()


@every_function
@every_float
def test_the_largest_numbers_beside_minus_infinity(dtype: np.dtype, name: str) -> None:
    for n in (3, 5, 10, 16, 40, 300):
        x = np.tile(cast(np.longdouble("1e4000"), dtype), (4, n))
        x[:, ::3] = -np.inf
        x[:, 2::3] = -x[:, 2::3]
        with np.errstate(all="raise", under="ignore"):
            got = FUNCTIONS[name](x)
        assert_accurate(name, got, exact(name, x), dtype)


@every_function
@every_float
def test_a_row_of_minus_infinity(dtype: np.dtype, name: str) -> None:
    for n in range(1, 34):
        x = cast(np.full(n, -np.inf), dtype)
        if name == "logsumexp":
            with np.errstate(all="raise"):
                assert fsm.logsumexp(x) == -np.inf
            continue
        with np.errstate(invalid="ignore"):
            assert np.isnan(widen(FUNCTIONS[name](x))).all()
        if n in (1, 2, 16, 33):
            assert signals(lambda x=x: FUNCTIONS[name](x))


@every_map
@every_float
def test_when_invalid_is_signalled(dtype: np.dtype, name: str) -> None:
    inf, nan = np.inf, np.nan
    cases = [
        ([1, 2, 3], False),
        ([1, nan, 3], False),
        ([nan, nan, nan], False),
        ([nan, -inf, 0], False),
        ([1, -inf, 3], False),
        ([1, inf, 3], True),
        ([inf, inf, inf], True),
        ([inf, -inf, 0], True),
        ([-inf, -inf, -inf], True),
        ([[1, 2], [3, inf]], True),
        ([[nan, 2], [-inf, -inf]], True),
        ([[nan, 2], [-inf, 3]], False),
    ]
    for values, invalid in cases:
        x = cast(values, dtype)
        assert signals(lambda x=x: FUNCTIONS[name](x)) == invalid, values
        assert not signals(lambda x=x: FUNCTIONS[name](x, where=np.isfinite(widen(x)))), values
        assert not signals(lambda x=x: fsm.logsumexp(x)), values


@every_map
def test_kept_minus_infinity_under_a_mask(name: str) -> None:
    x, where = np.array([-np.inf, -np.inf, 4.0]), np.array([True, True, False])
    assert signals(lambda: FUNCTIONS[name](x, where=where))
    with np.errstate(invalid="ignore"):
        got = FUNCTIONS[name](x, where=where)
    assert np.isnan(got[:2]).all() and got[2] == (0 if name == "softmax" else -np.inf)
    with np.errstate(all="raise"):
        assert fsm.logsumexp(x, where=where) == -np.inf
        assert np.isnan(fsm.logsumexp([np.inf, np.nan]))


@every_function
def test_only_the_spoilt_rows_are_spoilt(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((60, 45)).astype(np.float32)
    expected = FUNCTIONS[name](x)
    for value in (np.nan, np.inf):
        for axis in (-1, 0):
            y = x.copy()
            y[7::13, 3] = y[20, 44] = value
            spoilt = ~np.isfinite(y).all(axis=1)
            with np.errstate(invalid="ignore"):
                got = (
                    FUNCTIONS[name](y)
                    if axis
                    else FUNCTIONS[name](np.asfortranarray(y).T, axis=0).T
                )
            np.testing.assert_array_equal(got[~spoilt], expected[~spoilt])
            bad = got[spoilt]
            assert (
                (bad == np.inf).all() if name == "logsumexp" and value > 0 else np.isnan(bad).all()
            )


@every_function
@pytest.mark.parametrize("payload", [0x7FC00001, 0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_kind_of_nan(payload: int, name: str) -> None:
    x = np.zeros(37, dtype=np.float32)
    x.view(np.uint32)[11] = payload
    with np.errstate(invalid="ignore"):
        assert np.isnan(FUNCTIONS[name](x)).all()


@every_map
def test_both_zeros_are_zero(name: str) -> None:
    for dtype in (np.float32, np.float64):
        zeros, signed = np.zeros(9, dtype), np.array([-0.0, 0.0, -0.0] * 3, dtype)
        np.testing.assert_array_equal(FUNCTIONS[name](signed), FUNCTIONS[name](zeros))


@every_map
@pytest.mark.parametrize("n", [100, 5000, 100_000])
def test_in_long_rows(n: int, name: str) -> None:
    x = np.zeros((2, n), dtype=np.float32)
    for position in (0, 1, n // 2, n - 1):
        for value in (np.nan, np.inf):
            y = x.copy()
            y[1, position] = value
            assert signals(lambda y=y: FUNCTIONS[name](y)) == (value == np.inf)
            with np.errstate(invalid="ignore"):
                got = FUNCTIONS[name](y)
            assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


@every_function
def test_earlier_flags_are_neither_seen_nor_lost(name: str) -> None:
    """An overflow before the call is not reported by it, and one after it still is."""
    with np.errstate(all="ignore"):
        np.exp(np.float64(1e4))
        np.sqrt(np.float64(-1))
    with np.errstate(all="raise", under="ignore"):
        FUNCTIONS[name](np.array([1.0, 2.0]))
    with pytest.warns(RuntimeWarning, match="overflow"):
        np.exp(np.array([1e4]))


@every_function
def test_subnormal_numbers_still_work_afterwards(name: str) -> None:
    FUNCTIONS[name](np.zeros((100, 100), dtype=np.float32))
    smallest = np.array([5e-324])
    assert (smallest * 1.0)[0] == 5e-324
    assert np.float64(5e-324) + np.float64(5e-324) == 1e-323
    assert (np.array([1e-310]) / 2)[0] > 0


@pytest.mark.skipif(
    sys.platform != "linux" or fsm._native.isa() not in ("avx2", "avx512"),
    reason="asks the C library for a flag of x86; without FMA it is set on the way",
)
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("n", [64, 100, 257, 1000, 20_000])
def test_nothing_underflows(n: int, axis: int, rng: np.random.Generator) -> None:
    """Not even where results are subnormal: processors would take a hundred cycles for each."""
    x = (45 * rng.standard_normal((32, n))).astype(np.float32)
    x = x if axis == -1 else np.ascontiguousarray(x.T)
    libm, underflow = ctypes.CDLL(ctypes.util.find_library("m")), 16
    y = np.empty_like(x)
    for function in (fsm.softmax, fsm.log_softmax):
        libm.feclearexcept(underflow)
        function(x, axis=axis, out=y)
        assert not libm.fetestexcept(underflow)
        smallest = np.finfo(y.dtype).smallest_normal
        assert function is fsm.log_softmax or ((y > 0) & (y < smallest)).any()
