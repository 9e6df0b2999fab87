"""The reference is right: known values, its fast path against its slow one, its error measure."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import reference
from helpers import cast, every_float, every_function
from reference import FORMATS, WIDE, Array, everything, from_mp, from_wide, to_mp, ulp_error, widen


def test_known_values() -> None:
    p, logp, lse = everything(np.array([30.0, 0.0]))
    assert float(logp.approximate()[0]) == pytest.approx(-math.log1p(math.exp(-30)), rel=1e-15)
    assert float(p.approximate()[1]) == pytest.approx(1 / (1 + math.exp(30)), rel=1e-15)
    assert float(lse.approximate()) == pytest.approx(30 + math.exp(-30), rel=1e-15)


def test_known_rounding() -> None:
    assert np.float64(reference.softmax(np.zeros(3)).approximate()[0]) == 1 / 3
    assert np.float64(reference.logsumexp(np.zeros(2)).approximate()) == math.log(2)


def test_both_ways_agree(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.standard_normal((30, 20)), rng.uniform(-90, 90, (30, 20))])
    x[0, 3], x[1, 4], x[2], x[3, 5] = np.nan, np.inf, -np.inf, -np.inf
    x = x.astype(np.float32)
    where = rng.random(x.shape) < 0.9
    where[4] = False
    t = np.linspace(0.1, 10, len(x)).astype(np.float32)[:, None]
    fast = everything(x, where=where, temperature=t)
    slow = everything(x.astype(np.float64), where=where, temperature=t.astype(np.float64))
    for a, b in zip(fast, slow, strict=True):
        big = np.isfinite(b.high) & (np.abs(b.approximate()) > 2.0**-10)
        assert (ulp_error(a.approximate(), b, WIDE)[big] * np.finfo(WIDE).eps < 2.0**-36).all()
        assert (ulp_error(a.approximate().astype(np.float32), b, np.float32) < 0.501).all()


@every_float
def test_exact_values_stay_exact(dtype: np.dtype) -> None:
    bits, lowest, highest = FORMATS[dtype]
    one = np.longdouble(1)
    largest = np.ldexp(1 - np.ldexp(one, -bits), highest)
    edges = [
        0,
        1,
        -1,
        1 + np.ldexp(one, 1 - bits),
        largest,
        np.ldexp(one, lowest),
        np.ldexp(one, lowest - bits + 1),
    ]
    x = cast([*edges, np.inf, -np.inf, np.nan], dtype)
    for same in (from_wide(widen(x)), from_mp(to_mp(x), x.shape)):
        assert (ulp_error(x, same, dtype) == 0).all()
        np.testing.assert_array_equal(same.approximate(), widen(x))


@every_float
def test_one_place_is_one_unit(dtype: np.dtype) -> None:
    bits, lowest, _ = FORMATS[dtype]
    one = np.longdouble(1)
    for exponent in (-3, 0, 5, lowest, lowest + 1):
        below_two = np.ldexp(2 - np.ldexp(one, 1 - bits), exponent)
        two = np.ldexp(one, exponent + 1)
        assert ulp_error(cast(two, dtype), from_wide(np.asarray(below_two)), dtype) == 1
        assert ulp_error(cast(-below_two, dtype), from_wide(np.asarray(-two)), dtype) == 0.5
    smallest = np.ldexp(one, lowest - bits + 1)
    halfway = from_mp([mpmath.mpf(2) ** (lowest - bits)], ())
    assert ulp_error(cast(smallest, dtype), halfway, dtype) == 0.5
    assert ulp_error(cast(0, dtype), halfway, dtype) == 0.5
    assert ulp_error(cast(3 * smallest, dtype), from_wide(np.asarray(smallest)), dtype) == 2
    assert ulp_error(cast(smallest, dtype), from_wide(np.asarray(one * 0)), dtype) == 1


@every_float
def test_infinities_and_nan_are_errors_where_not_due(dtype: np.dtype) -> None:
    highest = FORMATS[dtype][2]
    values = [
        mpmath.mpf(2) ** (highest + 3),
        -(mpmath.mpf(2) ** (highest + 3)),
        mpmath.mpf(1),
        mpmath.inf,
        mpmath.nan,
    ]
    expected = from_mp(values, (5,))
    right = ulp_error(cast([np.inf, -np.inf, 1, np.inf, np.nan], dtype), expected, dtype)
    assert (right == 0).all()
    wrong = ulp_error(cast([-np.inf, np.nan, np.nan, 1, 1], dtype), expected, dtype)
    assert (wrong > 100).all()


@every_function
def test_axes(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    function = getattr(reference, name)
    moved = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(3, 8)
    rows = function(moved).approximate()
    both = function(x, axis=(2, 0)).approximate()
    if name != "logsumexp":
        rows = rows.reshape(3, 2, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(both, rows)


def test_derivatives_agree_with_differences() -> None:
    x, g, t = np.array([0.3, -1.0, 0.8]), np.array([1.0, -2.0, 0.5]), np.array([0.4, 0.1, -2.0])
    h = 2.0**-20

    def slope(function: Any, direction: Array) -> Array:
        above, below = (function(x + s * direction).approximate() for s in (h, -h))
        return np.asarray((above - below) / (2 * h))

    for name, function in {
        "softmax": reference.softmax,
        "log_softmax": reference.log_softmax,
    }.items():
        jacobian = reference.jacobian(x, function=name).approximate()
        for i in range(3):
            np.testing.assert_allclose(jacobian[:, i], slope(function, np.eye(3)[i]), rtol=1e-9)
        for kind, dense in {"vjp": g @ jacobian, "jvp": jacobian @ g}.items():
            got = reference.product(f"{name}_{kind}", x, g).approximate()
            np.testing.assert_allclose(got, dense, rtol=1e-12)
    got = reference.product("softmax_vjp_derivative", x, g, t).approximate()
    expected = slope(lambda x: reference.product("softmax_vjp", x, g), t)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
