"""out= receives the result whole or not at all, and may be, or overlap, any of the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import FUNCTIONS, assert_same_bits, cast, every_float, every_function, every_map
from reference import Array

import fastsoftmax as fsm

SENTINEL = 7


def result_shape(name: str, x: Array) -> tuple[int, ...]:
    return x.shape[:-1] if name == "logsumexp" else x.shape


@every_function
@every_float
def test_out_is_filled_and_returned(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    x = cast(rng.standard_normal((6, 19)), dtype)
    expected = FUNCTIONS[name](x)
    out = np.full(expected.shape, SENTINEL, dtype=dtype)
    assert FUNCTIONS[name](x, out=out) is out
    assert_same_bits(out, expected)


@every_function
def test_out_of_any_layout(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 19)).astype(np.float32)
    expected = FUNCTIONS[name](x)
    shape = expected.shape
    around = np.full((13, 60), SENTINEL, dtype=np.float32)
    bytewise = np.zeros(expected.nbytes + 1, dtype=np.uint8)
    outs = {
        "fortran": np.empty(shape, np.float32, order="F"),
        "strided": around[1::2, 2:59:3] if len(shape) == 2 else around[1::2, 3],
        "backwards": np.empty(shape, np.float32)[tuple(slice(None, None, -1) for _ in shape)],
        "unaligned": bytewise[1:].view(np.float32).reshape(shape),
        "byte-swapped": np.empty(shape, np.dtype(np.float32).newbyteorder("S")),
    }
    for title, out in outs.items():
        assert FUNCTIONS[name](x, out=out) is out, title
        np.testing.assert_array_equal(out, expected, err_msg=title)
    outs["strided"][...] = SENTINEL
    assert (around == SENTINEL).all(), "written outside out"


@every_function
def test_out_along_other_axes(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 5, 6))
    for axis in (0, 1, (0, 2), None):
        expected = np.asarray(FUNCTIONS[name](x, axis=axis))
        out = np.full(expected.shape, np.nan)
        assert FUNCTIONS[name](x, axis=axis, out=out) is out
        assert_same_bits(out, expected)


def test_out_of_logsumexp_without_dimensions_and_with_all() -> None:
    out = np.full((), np.nan)
    assert fsm.logsumexp([0.0, 0.0], out=out) is out
    assert out == np.log(2)
    out = np.full((1,), np.nan)
    assert fsm.logsumexp([0.0, 0.0], keepdims=True, out=out) is out
    with pytest.raises(ValueError):
        fsm.logsumexp([0.0, 0.0], keepdims=True, out=np.empty(()))


@every_map
def test_out_of_a_scalar(name: str) -> None:
    out = np.full((), np.nan)
    assert FUNCTIONS[name](2.0, out=out) is out
    assert out == FUNCTIONS[name](2.0)


@every_function
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda out: out[:-1], ValueError),
        (lambda out: out[None], ValueError),
        (lambda out: out[..., None], ValueError),
        (lambda out: np.concatenate([out, out]), ValueError),
        (lambda out: out.ravel()[0:1].reshape(()), ValueError),
        (lambda out: out.astype(np.float64), TypeError),
        (lambda out: out.astype(np.float16), TypeError),
        (lambda out: out.astype(np.int32), TypeError),
        (lambda out: out.astype(np.complex64), TypeError),
        (lambda out: out.astype(object), TypeError),
        (lambda out: out.tolist(), TypeError),
        (lambda out: (out,), TypeError),
        (memoryview, TypeError),
    ],
    ids=[
        "short", "more dimensions", "last dimension", "long", "no dimensions",
        "float64", "float16", "int32", "complex64", "object", "list", "tuple", "memoryview",
    ],
)  # fmt: skip
def test_wrong_out_is_refused_and_not_written(
    change: Any, error: type[Exception], name: str
) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = change(np.full(result_shape(name, x), SENTINEL, dtype=np.float32))
    with pytest.raises(error, match="out"):
        FUNCTIONS[name](x, out=out)
    assert (np.asarray(out) == SENTINEL).all()


@every_function
def test_read_only_out_is_refused(name: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = np.full(result_shape(name, x), SENTINEL, dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"out|read-only"):
        FUNCTIONS[name](x, out=out)
    assert (out == SENTINEL).all()
    with pytest.raises(ValueError):
        FUNCTIONS[name](x, out=np.broadcast_to(np.float32(SENTINEL), out.shape))


@every_function
@pytest.mark.parametrize(
    "arguments",
    [
        {"axis": 5},
        {"axis": (0, 0)},
        {"where": np.ones((3, 4))},
        {"where": np.ones((2, 4), bool)},
        {"temperature": -1},
        {"temperature": [1.0, 2.0, np.nan]},
        {"temperature": np.ones((2, 1))},
        {"dtype": np.float64},
        {"dtype": int},
    ],
    ids=str,
)
def test_nothing_is_written_before_every_argument_is_right(
    arguments: dict[str, Any], name: str
) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    if name == "logsumexp" and "temperature" in arguments:
        return
    out = np.full(result_shape(name, x), SENTINEL, dtype=np.float32)
    with pytest.raises((ValueError, TypeError)):
        FUNCTIONS[name](x, out=out, **arguments)
    assert (out == SENTINEL).all()


@every_float
@every_map
def test_in_place(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    for shape in ((7, 33), (3, 2000), (40, 3)):
        x = cast(rng.standard_normal(shape), dtype)
        for axis in (-1, 0):
            expected = FUNCTIONS[name](x, axis=axis)
            same = x.copy()
            assert FUNCTIONS[name](same, axis=axis, out=same) is same
            assert_same_bits(same, expected)


@every_map
@pytest.mark.parametrize("n", [5, 64, 1000, 70_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_views_that_overlap(dtype: Any, n: int, name: str, rng: np.random.Generator) -> None:
    start = rng.standard_normal((3, n + 9)).astype(dtype)
    views = {
        "one to the right": (np.s_[:, :n], np.s_[:, 1 : n + 1]),
        "one to the left": (np.s_[:, 1 : n + 1], np.s_[:, :n]),
        "nine to the right": (np.s_[:, :n], np.s_[:, 9:]),
        "backwards": (np.s_[:, :n], np.s_[:, n - 1 :: -1]),
        "other rows": (np.s_[:2, :n], np.s_[1:, :n]),
        "rows upside down": (np.s_[:, :n], np.s_[::-1, :n]),
        "every other": (np.s_[:, : n // 2], np.s_[:, : 2 * (n // 2) : 2]),
    }
    for title, (source, target) in views.items():
        for axis in (-1, 0):
            expected = FUNCTIONS[name](start[source].copy(), axis=axis)
            buffer = start.copy()
            untouched = np.ones(buffer.shape, bool)
            untouched[target] = False
            FUNCTIONS[name](buffer[source], axis=axis, out=buffer[target])
            assert_same_bits(buffer[target], expected)
            np.testing.assert_array_equal(buffer[untouched], start[untouched], err_msg=title)


@every_map
def test_transposed_in_place(name: str, rng: np.random.Generator) -> None:
    for n in (3, 40, 300):
        x = rng.standard_normal((n, n)).astype(np.float32)
        expected = FUNCTIONS[name](x.copy())
        FUNCTIONS[name](x, out=x.T)
        assert_same_bits(np.ascontiguousarray(x.T), expected)


def test_logsumexp_into_its_input(rng: np.random.Generator) -> None:
    for column in (0, 7, -1):
        x = rng.standard_normal((50, 20))
        expected = fsm.logsumexp(x.copy())
        assert_same_bits(fsm.logsumexp(x, out=x[:, column]).copy(), expected)
    x = rng.standard_normal((20, 20))
    expected = fsm.logsumexp(x.copy())
    assert_same_bits(fsm.logsumexp(x, out=x[3]).copy(), expected)


@every_map
def test_overlap_with_the_other_arguments(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 40))
    start = rng.uniform(0.5, 2, (30, 40))
    for temperature in (np.s_[:, 3:4], np.s_[:, 39:], np.s_[4, 7:8]):
        out = start.copy()
        expected = FUNCTIONS[name](x, temperature=start[temperature].copy())
        FUNCTIONS[name](x, temperature=out[temperature], out=out)
        assert_same_bits(out, expected)
    flat = rng.random(240) < 0.5
    out = np.zeros(240)
    out.view(np.bool_)[-240:] = flat  # contiguous, and in the way of the result
    FUNCTIONS[name](np.arange(240.0), where=out.view(np.bool_)[-240:], out=out)
    assert_same_bits(out, FUNCTIONS[name](np.arange(240.0), where=flat))
    mask = rng.random((30, 40)) < 0.5
    out = np.zeros((30, 40))
    where = out.view(np.bool_)[:, -40:]
    where[...] = mask
    FUNCTIONS[name](x, where=where, out=out)
    assert_same_bits(out, FUNCTIONS[name](x, where=mask))
