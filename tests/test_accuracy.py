"""Every result is within 2 units in the last place of the exact value (16-bit types: 0.51)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import reference
from helpers import (
    FUNCTIONS,
    SIZES,
    assert_accurate,
    cast,
    every_float,
    every_function,
    exact,
)
from reference import CONTEXT, FORMATS, SHORT, Array, Exact, from_mp

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def ties(rng: np.random.Generator, dtype: np.dtype) -> Array:
    """Neighbours of 3: all differences are a few units in the last place."""
    return 3 * (1 + rng.integers(-9, 9, (40, 30)) * np.ldexp(1.0, 1 - FORMATS[dtype][0]))


def saturated(rng: np.random.Generator, dtype: np.dtype) -> Array:
    """One element carries nearly all of the row, which makes its logarithm nearly 0."""
    gap = np.linspace(1, min(1.2 * FORMATS[dtype][2] * np.log(2), 15000), 200)
    x = np.stack([gap, np.zeros(200), rng.standard_normal(200)], axis=1)
    x[::3] -= 50
    return np.concatenate([x, x[:, ::-1], [[30, 0, -np.inf], [0, 30, -np.inf]]])


def subnormal(rng: np.random.Generator, dtype: np.dtype) -> Array:
    """Probabilities around the smallest normal and the smallest subnormal number."""
    bits, lowest, _ = FORMATS[dtype]
    low = rng.uniform((lowest - bits - 1) * np.log(2), (lowest + 2) * np.log(2), (20, 30))
    low[:, 7] = 0
    return low


def magnitudes(rng: np.random.Generator, dtype: np.dtype) -> Array:
    return rng.choice([-1, 1], (40, 40)) * 2.0 ** rng.uniform(-40, 10, (40, 40))


def huge(rng: np.random.Generator, dtype: np.dtype) -> Array:
    """Up to the largest number: differences, and some logarithms, are beyond it."""
    scale = np.ldexp(np.longdouble(1), FORMATS[dtype][2] - rng.integers(1, 4, (20, 1)))
    x = rng.uniform(-1.5, 1.5, (20, 7)) * scale
    x[:, 3] = x[:, 5] = 1.9 * scale[:, 0]
    return x


CASES: dict[str, Any] = {
    "normal": lambda rng, dtype: rng.standard_normal((40, 50)),
    "offset": lambda rng, dtype: 1e4 + rng.standard_normal((40, 50)),
    "negative offset": lambda rng, dtype: rng.standard_normal((40, 50)) - 1e4,
    "uniform 80": lambda rng, dtype: rng.uniform(-80, 80, (40, 50)),
    "uniform 700": lambda rng, dtype: rng.uniform(-700, 700, (40, 50)),
    "just below 256": lambda rng, dtype: (
        rng.uniform(250, 262, (40, 20)) * rng.choice([-1, 1], (40, 1))
    ),
    "sums to one": lambda rng, dtype: np.log(rng.dirichlet(np.ones(20), 30)),
    "ties": ties,
    "saturated": saturated,
    "subnormal": subnormal,
    "magnitudes": magnitudes,
    "huge": huge,
}


@functools.cache
def case(title: str, dtype: np.dtype) -> tuple[Array, dict[str, Exact]]:
    x = cast(CASES[title](np.random.default_rng(list(CASES).index(title)), dtype), dtype)
    return x, dict(zip(FUNCTIONS, reference.everything(x), strict=True))


@every_function
@every_float
@pytest.mark.parametrize("title", CASES)
def test_accuracy(title: str, dtype: np.dtype, name: str) -> None:
    x, expected = case(title, dtype)
    with np.errstate(over="ignore", under="ignore"):
        assert_accurate(name, FUNCTIONS[name](x), expected[name], dtype)


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_accuracy_at_every_length(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    longer = [127, 128, 129, 255, 257, 513, 1023, 1025] if dtype == FLOAT64 else [1023, 4097, 65537]
    for n in sorted({*range(1, 70), *SIZES, *longer}):
        x = cast(4 * rng.standard_normal(n), dtype)
        assert_accurate(name, FUNCTIONS[name](x), exact(name, x), dtype)


@every_function
def test_accuracy_of_a_long_row(name: str, rng: np.random.Generator) -> None:
    x = cast(3 * rng.standard_normal(1_000_000), FLOAT32)
    assert_accurate(name, FUNCTIONS[name](x), exact(name, x), FLOAT32)


@every_function
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("gap", [0.0, 5.0, 17.0, 25.0, 30.0, 50.0])
@pytest.mark.parametrize("position", [0, 31, -1])
def test_many_small_terms_do_not_vanish(
    position: int, gap: float, dtype: np.dtype, name: str
) -> None:
    n = 1_000_000
    x = np.full(n, 2 - gap, dtype=dtype)
    x[position] = 2
    small = CONTEXT.exp(-gap)
    rest = small * (n - 1)
    results = {
        "softmax": (1 / (1 + rest), small / (1 + rest)),
        "log_softmax": (-CONTEXT.log1p(rest), -gap - CONTEXT.log1p(rest)),
        "logsumexp": (2 + CONTEXT.log1p(rest),),
    }
    got = FUNCTIONS[name](x)
    if name != "logsumexp":
        assert np.unique(got).size <= 2
        got = got[[position, 5]]
    expected = from_mp(list(results[name]), np.shape(got))
    assert_accurate(name, got, expected, dtype)


def test_log_softmax_of_a_saturated_row_keeps_its_digits() -> None:
    for dtype, relative in ((np.float32, 2.0**-23), (np.float64, 2.0**-51)):
        got = FUNCTIONS["log_softmax"](np.array([30, 0], dtype=dtype))
        assert abs(float(got[0]) / -9.357622968839735e-14 - 1) <= relative
        assert abs(float(got[1]) + 30) < 1e-13


@every_function
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_every_16_bit_value(dtype: np.dtype, name: str) -> None:
    """Every finite value next to 0, and next to its own half."""
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    x = x[np.isfinite(x.astype(np.float32))]
    for other in (np.zeros_like(x), cast(reference.widen(x) / 2, dtype)):
        pairs = np.stack([x, other], axis=1)
        with np.errstate(over="ignore", under="ignore"):
            assert_accurate(name, FUNCTIONS[name](pairs), exact(name, pairs), dtype)


@pytest.mark.parametrize("name", ["log_softmax", "logsumexp"])
@pytest.mark.parametrize(("dtype", "limit"), [(FLOAT32, 0.51), (FLOAT64, 1.8)], ids=str)
def test_logarithms_of_pairs_at_every_distance(
    dtype: np.dtype, limit: float, name: str, rng: np.random.Generator
) -> None:
    """They have a way of their own: one power, and a polynomial of it."""
    far = 1.05 * (FORMATS[dtype][0] - FORMATS[dtype][1]) * np.log(2)
    distance = np.concatenate([np.linspace(0, far, 600), 2.0 ** rng.uniform(-60, 4, 600)])
    x = rng.standard_normal((1200, 2))
    x[:, 1] = x[:, 0] + distance * rng.choice([-1, 1], 1200)
    x = cast(x, dtype)
    got, expected = FUNCTIONS[name](x), exact(name, x)
    if name == "logsumexp":
        assert_accurate(name, got, expected, dtype)
    else:
        assert reference.ulp_error(got, expected, dtype).max() < limit


@pytest.mark.exhaustive
@pytest.mark.parametrize("sign", [0, 2**31])
def test_every_float32_next_to_zero(sign: int) -> None:
    """All from 2**-26 (below, the result hardly changes) to 104 (above, it underflows)."""
    first, last = (int(np.float32(v).view(np.uint32)) for v in (2.0**-26, 104))
    step = 2**20
    for start in range(first, last, step):
        bits = np.arange(start, min(start + step, last), dtype=np.uint32) + np.uint32(sign)
        pairs = np.stack([bits.view(np.float32), np.zeros(len(bits), np.float32)], axis=1)
        for name, expected in zip(FUNCTIONS, reference.everything(pairs), strict=True):
            assert_accurate(name, FUNCTIONS[name](pairs), expected, FLOAT32)


@pytest.mark.parametrize("n", [50, 100, 300])
def test_the_smallest_normal_results_are_as_exact_as_others(n: int) -> None:
    """What the rounded reciprocal lacks of the sum's counts there too, though it is subnormal."""
    lowest = FORMATS[FLOAT32][1]
    x = np.random.default_rng(0).uniform(lowest * np.log(2), (lowest + 1) * np.log(2), (60, n))
    x[:, 0] = 0
    x = (x + 40).astype(np.float32)
    errors = reference.ulp_error(FUNCTIONS["softmax"](x), exact("softmax", x), FLOAT32)
    assert errors.max() < 1.6


@pytest.mark.parametrize("fill", [-np.inf, -50.0])
def test_the_sum_counts_what_rounding_its_largest_term_lost(fill: float) -> None:
    """Found among 3e8 elements, 2.09 units off where the rounding of its exponent was left out."""
    x = np.full(115, fill, np.float32)
    x[[3, 50]] = 30.167236328125, -1.7300584316253662
    assert_accurate("softmax", FUNCTIONS["softmax"](x), exact("softmax", x), FLOAT32)


def test_logarithms_count_the_rounding_errors_of_their_terms(rng: np.random.Generator) -> None:
    """Without them 1.5 units, which the bound would allow, in rows whose logarithm is small."""
    x = rng.uniform(-80, 80, (20_000, 64)).astype(np.float32)
    got = FUNCTIONS["log_softmax"](x)
    wide = x.astype(np.longdouble)
    k = wide.argmax(1)[:, None]
    shifted = wide - np.take_along_axis(wide, k, 1)
    terms = np.exp(shifted)
    np.put_along_axis(terms, k, 0, 1)
    exact = shifted - np.log1p(terms.sum(1, keepdims=True))
    units = np.ldexp(np.longdouble(1), np.frexp(exact)[1] - 24)
    assert (np.abs(got - exact) <= 1.2 * units).all()
