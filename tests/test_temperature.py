"""temperature= divides x: one for all rows or one for each, without losing accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import (
    MAPS,
    SIZES,
    assert_accurate,
    assert_same_bits,
    cast,
    every_float,
    every_map,
    exact,
)
from reference import FLOATS, ulp_error

ROUNDED_ONCE = [t for t in FLOATS if t != np.longdouble]
TEMPERATURES = [0.1, 0.3, 0.5, 0.7, 0.999, 1, 1.0, 1.1, 2, 3.0, 7.3, 10.0]


@every_map
@pytest.mark.parametrize("dtype", ROUNDED_ONCE, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=repr)
def test_accuracy(temperature: float, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    cases = [
        rng.standard_normal((10, 20)),
        1e4 + rng.standard_normal((5, 20)),
        rng.uniform(-80, 80, (5, 20)),
        [[30.0, 0.0], [0.0, 3.0]],
        np.arange(70.0)[:, None] * [1, -1],
    ]
    for values in cases:
        x = cast(values, dtype)
        with np.errstate(under="ignore"):
            got = MAPS[name](x, temperature=temperature)
        assert_accurate(name, got, exact(name, x, temperature=temperature), dtype)


@every_map
@pytest.mark.parametrize("temperature", [0.3, 7.3])
def test_longdouble_is_plain(temperature: float, name: str, rng: np.random.Generator) -> None:
    """x / temperature is rounded there: that costs as many units as its size."""
    x = rng.uniform(-80, 80, (5, 20)).astype(np.longdouble)
    got = MAPS[name](x, temperature=temperature)
    errors = ulp_error(got, exact(name, x, temperature=temperature), np.longdouble)
    assert (errors <= 4 + 160 / temperature).all()


RANGE = {
    np.float32: [2e-38, 1e-20, 1e5, 2.0**60, 2.0**64, 1e20, 6e37],
    np.float64: [2e-308, 1e-40, 1e40, 1e300, 3e307],
}


@every_map
@pytest.mark.parametrize("n", [4, 99, 601])
@pytest.mark.parametrize("dtype", RANGE)
def test_extreme_temperatures(dtype: type, n: int, name: str) -> None:
    largest = float(np.finfo(dtype).max)
    rows = [
        [1, 2, 2.5, 2.5],
        [-3, 0, 0, -np.inf],
        [5, 5, 5, 5],
        [-5, -5, -7, -5],
        [1e30, -1e30, 0, 1],
        [1e-30, 0, 0, 0],
        [largest, -largest, largest / 2, 0],
        [np.inf, np.nan, 0, 1],
    ]
    x = np.array(rows, dtype).repeat(-(-n // 4), axis=1)[:, :n]
    for temperature in RANGE[dtype]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            got = MAPS[name](x, temperature=temperature)
        assert_accurate(name, got, exact(name, x, temperature=temperature), np.dtype(dtype))


@every_map
@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float32, 1e-39), (np.float32, 3e38), (np.float64, 5e-309), (np.float64, 1.7e308)],
)
def test_temperatures_out_of_range(dtype: type, value: float, name: str) -> None:
    with pytest.raises(ValueError, match="temperature"):
        MAPS[name](np.ones(3, dtype), temperature=value)


@every_map
@pytest.mark.parametrize("n", SIZES)
def test_accuracy_at_every_size(n: int, name: str, rng: np.random.Generator) -> None:
    x = cast(3 * rng.standard_normal((3, n)), np.dtype(np.float32))
    temperature = np.array([[0.2], [1.0], [6.7]])
    got = MAPS[name](x, temperature=temperature)
    assert_accurate(name, got, exact(name, x, temperature=temperature), np.float32)
    columns = MAPS[name](np.asfortranarray(x.T), temperature=temperature.T, axis=0)
    assert_same_bits(columns.T, got)


SHAPES: list[tuple[Any, list[tuple[int, ...]]]] = [
    (-1, [(), (1,), (3, 1), (1, 1), (2, 3, 1), (1, 3, 1), (2, 1, 1), (1, 1, 1)]),
    (1, [(), (4,), (1, 4), (2, 1, 4), (1, 1, 4), (2, 1, 1)]),
    (0, [(), (4,), (3, 1), (3, 4), (1, 3, 4), (1, 1, 1)]),
    ((0, 2), [(), (3, 1), (1,), (1, 3, 1)]),
    ((2, 1), [(), (2, 1, 1)]),
    (None, [(), (1,), (1, 1, 1)]),
    ((), [(), (4,), (2, 3, 4), (3, 1), (1, 3, 4)]),
]


@every_map
@pytest.mark.parametrize(("axis", "shapes"), SHAPES, ids=str)
def test_shapes(
    axis: Any, shapes: list[tuple[int, ...]], name: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    for shape in shapes:
        temperature = rng.uniform(0.2, 5, shape)
        for source in (x, np.asfortranarray(x)):
            got = MAPS[name](source, axis=axis, temperature=temperature)
            expected = exact(name, x, axis=axis, temperature=temperature)
            assert_accurate(name, got, expected, np.float32)


@every_map
def test_one_for_each_row_is_each_row_with_its_own(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 45))
    temperatures = rng.uniform(0.1, 10, (30, 1))
    got = MAPS[name](x, temperature=temperatures)
    for row, t, result in zip(x, temperatures, got, strict=True):
        assert_same_bits(result, MAPS[name](row, temperature=t))
        assert_same_bits(result, MAPS[name](row, temperature=float(t[0])))
    strided = np.repeat(temperatures, 3, axis=0)[::-3][::-1]
    assert_same_bits(MAPS[name](x, temperature=strided), got)
    assert_same_bits(MAPS[name](x, temperature=temperatures.tolist()), got)


@every_map
@every_float
def test_temperature_one_changes_nothing(
    dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    x = cast(4 * rng.standard_normal((7, 40)), dtype)
    for one in (1, 1.0, np.float32(1), np.ones((7, 1)), np.ones(1, np.float32)):
        got = MAPS[name](x, temperature=one)
        assert_accurate(name, got, exact(name, x), dtype)


@every_map
def test_every_kind_of_number(name: str) -> None:
    x = np.array([1.0, 2.0, 4.0])
    expected = MAPS[name](x, temperature=2.0)
    kinds = [
        2,
        np.int8(2),
        np.uint64(2),
        np.float16(2),
        np.float32(2),
        np.longdouble(2),
        np.array(2),
    ]
    for two in [*kinds, np.array(2.0).astype(">f8"), [2.0], np.array([2], "i4")]:
        assert_same_bits(MAPS[name](x, temperature=two), expected)


@every_map
def test_the_result_keeps_the_dtype_of_x(name: str) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = np.array([1, 2, 4], dtype=dtype)
        for temperature in (0.5, np.float64(0.5), np.array(0.5), np.array([0.5]), 3):
            assert MAPS[name](x, temperature=temperature).dtype == dtype


@every_map
@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -1e-300, np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_refused(value: float, name: str) -> None:
    x = np.ones((3, 4))
    for temperature in (
        value,
        np.float32(value),
        [[1.0], [value], [1.0]],
        np.array([[1.0], [1.0], [value]]),
    ):
        with pytest.raises(ValueError, match="temperature"):
            MAPS[name](x, temperature=temperature)


@every_map
@pytest.mark.parametrize(
    "value", ["1", 1j, None, [1.0, "2", 3.0], {}, np.array([1, 2, 3], object)], ids=repr
)
def test_types_that_are_refused(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match="temperature"):
        MAPS[name](np.ones((3, 4)), temperature=value)


@every_map
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2,), -1),
        ((3,), -1),
        ((2, 1), -1),
        ((4,), -1),
        ((3, 4), -1),
        ((1, 4), -1),
        ((1, 1, 1), -1),
        ((3,), 0),
        ((3, 1), 0),
        ((3,), None),
    ],
)
def test_shapes_that_are_refused(shape: tuple[int, ...], axis: int | None, name: str) -> None:
    with pytest.raises(ValueError):
        MAPS[name](np.ones((3, 4)), axis=axis, temperature=np.ones(shape))


@every_map
def test_with_where_and_special_values(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 20)).astype(np.float32)
    x[1, 3], x[2, 4], x[3], x[4, 5] = np.nan, np.inf, -np.inf, -np.inf
    where = rng.random(x.shape) < 0.7
    where[5] = False
    temperature = rng.uniform(0.1, 10, (6, 1))
    for arguments in ({"temperature": temperature}, {"temperature": 0.4, "where": where}):
        with np.errstate(invalid="ignore"):
            got = MAPS[name](x, **arguments)
        assert_accurate(name, got, exact(name, x, **arguments), np.float32)


@every_map
def test_of_no_rows(name: str) -> None:
    assert MAPS[name](np.ones((0, 3)), temperature=np.ones((0, 1))).shape == (0, 3)
    assert MAPS[name](np.ones((3, 0)), temperature=np.ones((3, 1))).shape == (3, 0)


@every_map
def test_temperature_is_not_written(name: str, rng: np.random.Generator) -> None:
    temperature = rng.uniform(0.1, 10, (30, 1))
    before = temperature.copy()
    temperature.flags.writeable = False
    MAPS[name](rng.standard_normal((30, 9)), temperature=temperature)
    np.testing.assert_array_equal(temperature, before)


@every_map
def test_temperatures_of_any_number_type(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 5)).astype(np.float32)
    expected = MAPS[name](x, temperature=2.5)
    for kind in (np.float64, np.float32, np.float16, np.longdouble):
        assert_same_bits(MAPS[name](x, temperature=kind(2.5)), expected)
    for number in (np.float32("nan"), np.float16(0), np.float64(-1)):
        with pytest.raises(ValueError, match="temperature"):
            MAPS[name](x, temperature=number)
