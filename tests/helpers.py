"""What several test files share: the functions, their accuracy, and comparison bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from reference import BFLOAT16, FLOATS, FORMATS, SHORT, Array, Exact

import fastsoftmax as fsm

FUNCTIONS = {"softmax": fsm.softmax, "log_softmax": fsm.log_softmax, "logsumexp": fsm.logsumexp}
MAPS = {"softmax": fsm.softmax, "log_softmax": fsm.log_softmax}  # shape of x -> shape of x

every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_map = pytest.mark.parametrize("name", MAPS)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

# units in the last place of the result
LIMITS = {np.dtype(np.float32): 2.0, np.dtype(np.float64): 2.0, np.dtype(np.longdouble): 4.0}
LIMITS.update(dict.fromkeys(SHORT, 0.51))

# A logsumexp near 0 is a difference of larger numbers, the maximum and a logarithm (below 8 for the
# lengths tested): two units in the last place of those are granted.
SLACK = {t: 16 * 2.0 ** -FORMATS[t][0] for t in FLOATS}

# around the widths of vectors, and of several of them
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1000]


# The largest error seen of each function and dtype on each instruction set; conftest.py prints it
WORST: dict[tuple[str, str, str], float] = {}


def record_error(name: str, dtype: Any, errors: Array, isa: str | None = None) -> None:
    key = (name, np.dtype(dtype).name, isa or fsm._native.isa())
    if errors.size and np.isfinite(errors).all():
        WORST[key] = max(WORST.get(key, 0.0), float(errors.max()))


def cast(x: Any, dtype: np.dtype[Any]) -> Array:
    """x in dtype; values too large for it become its largest."""
    bits, _, highest = FORMATS[dtype]
    largest = np.ldexp(1 - np.ldexp(np.longdouble(1), -bits), highest)
    x = np.asarray(x, dtype=np.longdouble)
    limited = np.where(np.isfinite(x), np.clip(x, -largest, largest), x)
    if dtype == BFLOAT16:
        return limited.astype(np.float32).astype(dtype)
    return limited.astype(dtype)


def rows(count: int, n: int, dtype: np.dtype, rng: np.random.Generator) -> Array:
    """Normal logits, the later rows more spread out."""
    return cast(rng.standard_normal((count, n)) * np.linspace(0.1, 30, count)[:, None], dtype)


def exact(name: str, x: Any, **arguments: Any) -> Exact:
    """What the function called name should give."""
    return getattr(reference, name)(x, **arguments)


def assert_accurate(
    name: str, got: Any, expected: Exact, dtype: Any = None, isa: str | None = None
) -> None:
    """The result has its dtype and is within the promised units in the last place."""
    got = np.asarray(got)
    dtype = got.dtype if dtype is None else np.dtype(dtype)
    assert got.dtype == dtype and got.dtype.isnative
    errors = reference.ulp_error(got, expected, dtype)
    allowed = np.full(errors.shape, LIMITS[dtype])
    if name == "logsumexp":
        bits, lowest, _ = FORMATS[dtype]
        with np.errstate(all="ignore"):
            ulp = np.ldexp(np.longdouble(1), np.maximum(expected.exponent, lowest + 1) - bits)
            small = np.abs(expected.approximate()) < 0.5
            allowed = np.where(small, allowed + SLACK[dtype] / ulp, allowed)
        record_error(name, dtype, errors[~small], isa)
    else:
        record_error(name, dtype, errors, isa)
    worst = np.unravel_index(np.argmax(errors - allowed), errors.shape) if errors.size else ()
    assert (errors <= allowed).all(), (
        f"{name}: {errors[worst]:.4g} units in the last place at {worst}: {got[worst]!r} instead "
        f"of {expected.approximate()[worst]!r}"
    )


def assert_same_bits(a: Any, b: Any) -> None:
    """Same dtype, shape and values, the signs of zeros included; all NaN are one."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a, b = reference.widen(a), reference.widen(b)
    nan = np.isnan(a) & np.isnan(b)
    different = ~nan & ((a != b) | (np.signbit(a) != np.signbit(b)))
    first = tuple(int(i) for i in np.argwhere(different)[0]) if different.any() else ()
    assert not different.any(), (
        f"{different.sum()} differ, first at {first}: {a[first]!r}, {b[first]!r}"
    )
