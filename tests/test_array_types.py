"""What is not a plain array comes back as what it is, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FUNCTIONS, MAPS, assert_same_bits, every_function, every_map
from reference import Array

import fastsoftmax as fsm

DATA = np.array([[1.0, 2.0, 4.0], [0.5, -1.0, 3.0]])


class Foreign:
    """The parts that all arrays of other libraries share."""

    dtype, shape, ndim = DATA.dtype, DATA.shape, DATA.ndim

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: Any) -> Any:
        return DATA[index]


class TorchTensor(Foreign):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return DATA.copy()

    def __dlpack__(self, **_: Any) -> Any:
        return DATA.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class DeviceArray(Foreign):
    """On an accelerator: cannot be read by NumPy at all."""

    __cuda_array_interface__ = {  # noqa: RUF012 - as the protocol has it
        "shape": DATA.shape, "typestr": "<f8", "data": (0, True), "version": 3
    }  # fmt: skip


class DlpackOnly(Foreign):
    def __dlpack__(self, **_: Any) -> Any:
        return DATA.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class JaxArray(Foreign):
    __array_priority__ = 100

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return DATA.copy()

    def __array_namespace__(self, **_: Any) -> Any:
        return np


class DaskArray(Foreign):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise AssertionError("computed")

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("called")

    def __array_function__(self, *_: Any) -> Any:
        raise AssertionError("called")


class Series(Foreign):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return DATA.copy()

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return self


class NoUfuncs(Foreign):
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return DATA.copy()


class InterfaceOnly(Foreign):
    __array_interface__ = DATA.__array_interface__


class Quantity(np.ndarray):
    """A subclass with its own rules, as arrays with units have."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


class Named(np.ndarray):
    """A subclass that carries something along and leaves the arithmetic to NumPy."""

    name = "unnamed"

    def __array_finalize__(self, source: Any) -> None:
        self.name = getattr(source, "name", "unnamed")


FOREIGN = [
    TorchTensor,
    DeviceArray,
    DlpackOnly,
    JaxArray,
    DaskArray,
    Series,
    NoUfuncs,
    InterfaceOnly,
]


def instance(kind: type) -> Any:
    return DATA.view(kind) if issubclass(kind, np.ndarray) else kind()


@every_function
@pytest.mark.parametrize("kind", [*FOREIGN, Quantity], ids=lambda k: k.__name__)
def test_foreign_arrays_are_refused_by_name(kind: type, name: str) -> None:
    with pytest.raises(TypeError, match=kind.__name__):
        FUNCTIONS[name](instance(kind))
    with pytest.raises(TypeError, match=kind.__name__):
        FUNCTIONS[name](instance(kind), dtype=np.float32)


@pytest.mark.parametrize("kind", [*FOREIGN, Quantity], ids=lambda k: k.__name__)
def test_foreign_arrays_are_refused_by_the_layer(kind: type) -> None:
    layer = fsm.Softmax()
    for normalization in (True, False):
        with pytest.raises(TypeError, match=kind.__name__):
            layer(instance(kind), normalization=normalization)
    layer(DATA)
    with pytest.raises(TypeError, match=kind.__name__):
        layer.backward(instance(kind))


@every_map
@pytest.mark.parametrize("argument", ["where", "temperature", "out"])
@pytest.mark.parametrize("kind", FOREIGN, ids=lambda k: k.__name__)
def test_foreign_arrays_are_refused_as_other_arguments(
    kind: type, argument: str, name: str
) -> None:
    with pytest.raises(TypeError):
        FUNCTIONS[name](DATA, **{argument: kind()})


@every_map
def test_subclasses_come_back(name: str) -> None:
    x = DATA.view(Named)
    x.name = "scores"
    for axis in (-1, 0, None):
        got = MAPS[name](x, axis=axis)
        assert type(got) is Named and got.name == "scores"
        assert_same_bits(got, MAPS[name](DATA, axis=axis))
    assert type(MAPS[name](x.astype(np.int32))) is Named
    assert x.name == "scores" and (np.asarray(x) == DATA).all()


def test_subclasses_come_back_from_logsumexp() -> None:
    x = DATA.view(Named)
    x.name = "scores"
    for arguments in ({}, {"axis": 0}, {"keepdims": True}, {"axis": None}):
        got, sums = fsm.logsumexp(x, **arguments), np.sum(x, **{"axis": -1, **arguments})
        assert type(got) is type(sums)
        assert getattr(got, "name", None) == getattr(sums, "name", None)
        assert_same_bits(got, fsm.logsumexp(DATA, **arguments))


@every_function
def test_out_is_returned_as_it_is(name: str) -> None:
    expected = FUNCTIONS[name](DATA)
    out = np.empty(expected.shape)
    assert FUNCTIONS[name](DATA.view(Named), out=out) is out
    out = np.empty(expected.shape).view(Named)
    assert FUNCTIONS[name](DATA, out=out) is out
    assert_same_bits(out, expected)


@every_function
def test_memory_maps_become_arrays(name: str, tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", dtype=np.float64, mode="w+", shape=DATA.shape)
    x[...] = DATA
    assert type(FUNCTIONS[name](x)) is type(np.exp(x)) is np.ndarray
    assert type(FUNCTIONS[name](x[0])) is not np.memmap
    out = np.memmap(
        tmp_path / "out", dtype=np.float64, mode="w+", shape=FUNCTIONS[name](DATA).shape
    )
    assert FUNCTIONS[name](DATA, out=out) is out
    assert_same_bits(np.fromfile(tmp_path / "out").reshape(out.shape), FUNCTIONS[name](DATA))


@every_map
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_matrices(name: str) -> None:
    got = MAPS[name](np.matrix(DATA))
    assert type(got) is np.matrix
    assert_same_bits(got, MAPS[name](DATA))


@every_map
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_masked_arrays_keep_their_mask(axis: int | None, name: str) -> None:
    mask = np.array([[0, 1, 0], [0, 0, 1]], bool)
    x = np.ma.array(DATA, mask=mask)
    x.data[0, 1] = np.nan
    got = MAPS[name](x, axis=axis)
    expected = MAPS[name](DATA, axis=axis, where=~mask)
    assert type(got) is np.ma.MaskedArray
    np.testing.assert_array_equal(np.ma.getmaskarray(got), mask)
    assert_same_bits(got.data, expected)
    assert np.isnan(x.data[0, 1]) and (x.mask == mask).all()


@every_map
def test_the_mask_of_the_result_is_its_own(name: str) -> None:
    x = np.ma.array(DATA.copy(), mask=[[0, 1, 0], [0, 0, 1]])
    got = MAPS[name](x)
    got[0, 0] = np.ma.masked
    assert not x.mask[0, 0]
    x[1, 0] = np.ma.masked
    assert not got.mask[1, 0]


@every_map
def test_masked_arrays_without_a_mask(name: str) -> None:
    got = MAPS[name](np.ma.array(DATA))
    assert type(got) is np.ma.MaskedArray
    assert not np.ma.getmaskarray(got).any()
    assert_same_bits(got.data, MAPS[name](DATA))


@every_map
def test_masked_arrays_with_where(name: str) -> None:
    mask, where = np.array([[0, 1, 0], [0, 0, 1]], bool), np.array([1, 1, 0], bool)
    got = MAPS[name](np.ma.array(DATA, mask=mask), where=where)
    assert_same_bits(np.asarray(got.data), MAPS[name](DATA, where=where & ~mask))
    assert np.ma.getmaskarray(got)[mask].all()
    assert not np.ma.getmaskarray(got)[where & ~mask].any()


def test_logsumexp_of_masked_arrays_is_masked_where_the_whole_row_is() -> None:
    mask = np.array([[0, 1, 0], [1, 1, 1]], bool)
    x = np.ma.array(DATA, mask=mask)
    got = fsm.logsumexp(x)
    assert type(got) is np.ma.MaskedArray
    np.testing.assert_array_equal(np.ma.getmaskarray(got), [False, True])
    assert got[0] == fsm.logsumexp([1.0, 4.0])
    kept = fsm.logsumexp(x, axis=0, keepdims=True)
    np.testing.assert_array_equal(np.ma.getmaskarray(kept), [[False, True, False]])
    assert kept.shape == (1, 3)
    np.testing.assert_array_equal(kept.compressed(), [1.0, 4.0])
    assert fsm.logsumexp(x[1]) is np.ma.masked
    assert fsm.logsumexp(x[0]) == fsm.logsumexp([1.0, 4.0])
    assert fsm.logsumexp(x, axis=None) == fsm.logsumexp([1.0, 4.0])


@every_function
def test_masked_integers_and_floats(name: str) -> None:
    for dtype, result in (
        (np.int64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float16),
    ):
        x = np.ma.array([[1, 2, 3], [4, 5, 6]], mask=[[0, 0, 1], [0, 1, 0]], dtype=dtype)
        got = FUNCTIONS[name](x)
        assert type(got) is np.ma.MaskedArray and got.dtype == result
        assert_same_bits(got.data, FUNCTIONS[name](x.data, where=~x.mask))


@every_function
def test_masked_arrays_into_out(name: str) -> None:
    """Whatever out is then, the masked values are not computed with."""
    mask = np.array([[0, 1, 0], [0, 0, 1]], bool)
    expected = FUNCTIONS[name](DATA, where=~mask)
    out = np.ma.array(np.full(expected.shape, 7.0))
    assert FUNCTIONS[name](np.ma.array(DATA, mask=mask), out=out) is out
    assert_same_bits(np.asarray(out.data), expected)
