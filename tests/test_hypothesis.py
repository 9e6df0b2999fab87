"""Whatever the array and the arguments: the reference's result and its signal."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import reference
from helpers import FUNCTIONS, MAPS, assert_accurate, assert_same_bits, cast
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import BFLOAT16, FLOATS, Array, widen

import fastsoftmax as fsm

SETTINGS = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

ORDINARY = st.floats(-20, 20, width=32)
EDGES = st.sampled_from(
    [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1e-310,
        1e-40,
        1e5,
        -1e5,
        255.9,
        256.1,
        -700.0,
        3e38,
        -3e38,
        1e300,
        -1e300,
    ]
)


@st.composite
def arrays(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> Array:
    """An array of any float dtype and, as drawn, in any layout."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20))
    fill = st.just(draw(ORDINARY))
    x = cast(draw(hnp.arrays(np.float64, shape, elements=elements, fill=fill)), dtype)
    if x.ndim:
        x = x.transpose(draw(st.permutations(range(x.ndim))))
        x = x[tuple(slice(None, None, draw(st.sampled_from([1, 1, 2, -1, -3]))) for _ in x.shape)]
    kind = draw(
        st.sampled_from(
            ["as it is", "byte-swapped", "unaligned", "broadcast", "fortran", "read-only"]
        )
    )
    if kind == "byte-swapped" and dtype != BFLOAT16:
        x = x.astype(dtype.newbyteorder("S"))
    elif kind == "unaligned":
        moved = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
        moved[...] = x
        x = moved
    elif kind == "broadcast" and x.ndim < 3:
        x = np.broadcast_to(x, (draw(st.integers(1, 3)), *x.shape))
    elif kind == "fortran":
        x = np.asfortranarray(x)
    elif kind == "read-only":
        x.flags.writeable = False
    return x


def native(x: Array) -> Array:
    copy = np.empty(x.shape, x.dtype if x.dtype == BFLOAT16 else x.dtype.newbyteorder("="))
    copy[...] = x
    return copy


@st.composite
def axes_for(draw: st.DrawFn, x: Array) -> Any:
    if not x.ndim:
        return draw(st.sampled_from([-1, 0, None, ()]))
    single = st.integers(-x.ndim, x.ndim - 1)
    several = st.lists(single, max_size=x.ndim, unique_by=lambda a: a % x.ndim).map(tuple)
    return draw(st.one_of(st.just(-1), single, several, st.none()))


@st.composite
def masks_for(draw: st.DrawFn, x: Array) -> Array | None:
    if draw(st.booleans()):
        return None
    sides = [draw(st.sampled_from([1, n])) for n in x.shape]
    dropped = draw(st.integers(0, x.ndim))
    return draw(hnp.arrays(bool, tuple(sides[dropped:])))


@st.composite
def temperatures_for(draw: st.DrawFn, x: Array, axis: Any) -> Any:
    # x / temperature is rounded in longdouble, but for powers of two
    exact = x.dtype == np.longdouble
    values: st.SearchStrategy[float] = st.sampled_from([0.25, 4.0]) if exact else st.floats(0.1, 10)
    if draw(st.booleans()):
        return draw(values)
    axes = reference.rows_of(x, axis).axes
    shape = tuple(1 if i in axes else draw(st.sampled_from([1, n])) for i, n in enumerate(x.shape))
    return draw(hnp.arrays(np.float64, shape, elements=values, fill=values))


def is_invalid(x: Array, axis: Any, where: Array | None) -> bool:
    """Whether some row without NaN has +inf, or nothing but -inf, among its kept elements."""
    values = reference.rows_of(widen(x), axis).x
    keep = reference.rows_of(np.broadcast_to(True if where is None else where, x.shape), axis).x
    return any(
        kept.size and not np.isnan(kept).any() and np.isinf(kept.max())
        for kept in (v[k] for v, k in zip(values, keep, strict=True))
    )


def check(x: Array, axis: Any, where: Array | None, temperature: Any) -> None:
    plain, before = native(x), x.tobytes()
    expected = reference.everything(plain, axis, where=where, temperature=temperature)
    for i, (name, function) in enumerate(FUNCTIONS.items()):
        value, arguments = expected[i], {"axis": axis, "where": where}
        if name in MAPS:
            arguments["temperature"] = temperature
        else:
            value = reference.logsumexp(plain, axis, where=where)
        invalid = False
        with np.errstate(all="ignore", invalid="raise"):
            try:
                function(x, **arguments)
            except FloatingPointError:
                invalid = True
        assert invalid == (name in MAPS and is_invalid(plain, axis, where)), (
            f"{name}: signal is {invalid}"
        )
        with np.errstate(all="ignore"):
            got = function(x, **arguments)
            assert_accurate(name, got, value, plain.dtype)
            out = np.empty(value.high.shape, plain.dtype)
            assert function(x, out=out, **arguments) is out
            assert_same_bits(out, got)
            if name in MAPS and where is not None:
                masked = widen(got)[~np.broadcast_to(where, x.shape)]
                assert (masked == (0 if name == "softmax" else -np.inf)).all()
    assert x.tobytes() == before


@SETTINGS
@given(data=st.data(), x=arrays(ORDINARY))
def test_ordinary_values(data: st.DataObject, x: Array) -> None:
    axis = data.draw(axes_for(x))
    check(x, axis, data.draw(masks_for(x)), data.draw(temperatures_for(x, axis)))


@SETTINGS
@given(data=st.data(), x=arrays(st.one_of(ORDINARY, EDGES)))
def test_edges(data: st.DataObject, x: Array) -> None:
    axis = data.draw(axes_for(x))
    check(x, axis, data.draw(masks_for(x)), 1.0)


@SETTINGS
@given(data=st.data(), x=arrays(st.one_of(ORDINARY, EDGES)))
def test_in_place(data: st.DataObject, x: Array) -> None:
    axis = data.draw(axes_for(x))
    x = native(x)
    with np.errstate(all="ignore"):
        for function in MAPS.values():
            expected = function(x, axis=axis)
            same = x.copy()
            function(same, axis=axis, out=same)
            assert_same_bits(same, expected)


@SETTINGS
@given(data=st.data(), n=st.integers(1, 40))
def test_layer(data: st.DataObject, n: int) -> None:
    x, grad = (data.draw(hnp.arrays(np.float64, n, elements=st.floats(-30, 30))) for _ in range(2))
    layer = fsm.Softmax()
    p = layer(x)
    jacobian, product = layer.backward(), layer.backward(grad)
    exact = reference.jacobian(x)
    assert (reference.ulp_error(jacobian, exact, np.float64) <= 5).all()
    scale = p * (np.abs(grad - grad[x.argmax()]) + p @ np.abs(grad - grad[x.argmax()]))
    expected = reference.product("softmax_vjp", x, grad).approximate()
    assert (np.abs(product - expected) <= 10 * 2.0**-52 * scale + 2e-323).all()
