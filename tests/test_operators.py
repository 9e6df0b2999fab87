"""SoftmaxJacobian as an operator: its products, and what is made of it, are those of the matrix."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, cast, every_float
from reference import BFLOAT16
from test_layer import assert_jacobian, assert_vjp

import fastsoftmax as fsm
from fastsoftmax import SoftmaxJacobian

BATCHES = [(), (3,), (2, 3), (1,)]
every_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)


def jacobian(batch: tuple[int, ...], rng: np.random.Generator, n: int = 5) -> SoftmaxJacobian:
    return SoftmaxJacobian(fsm.softmax(3 * rng.standard_normal((*batch, n))))


def operators(batch: tuple[int, ...], rng: np.random.Generator) -> list[Any]:
    """One of each kind."""
    a, b = jacobian(batch, rng), jacobian(batch, rng)
    return [a, a + b, a - b, -a, 2 * a, a / 4, a @ b, a.pinv(), a.factor(), a.factor().T]


def test_the_matrix_is_the_jacobian(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    for axis in (-1, 0, 1, (0, 2), None):
        p = fsm.softmax(x, axis)
        operator, dense = SoftmaxJacobian(p, axis), fsm.softmax_jacobian(p, axis)
        assert operator.shape == dense.shape
        assert operator.ndim == dense.ndim
        assert_same_bits(operator.to_dense(), dense)
        assert_same_bits(operator.diagonal(), np.einsum("...ii->...i", dense))
        assert_jacobian(operator.to_dense(), reference.jacobian(x, axis))


@every_float
def test_products_are_those_of_the_function(dtype: np.dtype, rng: np.random.Generator) -> None:
    x = cast(5 * rng.standard_normal((2, 3, 70)), dtype)
    p, v = fsm.softmax(x), cast(rng.standard_normal(x.shape), dtype)
    operator = SoftmaxJacobian(p)
    assert operator.dtype == dtype
    expected = fsm.softmax_jvp(p, v)
    assert_vjp(operator @ v, x, v, name="softmax_jvp")
    for got in (operator @ v, v @ operator, operator.T @ v, operator @ v[::-1][::-1]):
        assert_same_bits(got, expected)
    matrices = np.stack([v, v[..., ::-1]], axis=-1)
    got = operator @ matrices
    assert_same_bits(got[..., 0], expected)
    assert_same_bits(got[..., 1], fsm.softmax_jvp(p, v[..., ::-1]))
    got = matrices.swapaxes(-1, -2) @ operator
    assert_same_bits(got[..., 0, :], expected)
    one = v[0, 0]
    assert_same_bits(operator @ one, fsm.softmax_jvp(p, np.broadcast_to(one, p.shape)))
    assert_same_bits(one @ operator, operator @ one)


@every_batch
def test_every_kind_multiplies_as_its_matrix_does(
    batch: tuple[int, ...], rng: np.random.Generator
) -> None:
    for operator in operators(batch, rng):
        dense = operator.to_dense()
        assert dense.shape == operator.shape == (*batch, 5, 5)
        close = {"rtol": 1e-12, "atol": 1e-13 * np.abs(dense).max()}
        np.testing.assert_allclose(operator.T.to_dense(), dense.swapaxes(-1, -2), **close)
        np.testing.assert_allclose(operator.diagonal(), np.einsum("...ii->...i", dense), **close)
        np.testing.assert_allclose(operator.trace(), np.einsum("...ii", dense), **close)
        v, matrix = rng.standard_normal((*batch, 5)), rng.standard_normal((*batch, 5, 2))
        product = np.einsum("...ij,...j->...i", dense, v)
        np.testing.assert_allclose(operator @ v, product, **close)
        np.testing.assert_allclose(operator @ matrix, dense @ matrix, **close)
        left = np.einsum("...i,...ij->...j", v, dense)
        np.testing.assert_allclose(v @ operator, left, **close)
        rows = matrix.swapaxes(-1, -2)
        np.testing.assert_allclose(rows @ operator, rows @ dense, **close)


@every_batch
def test_algebra(batch: tuple[int, ...], rng: np.random.Generator) -> None:
    a, b = jacobian(batch, rng), jacobian(batch, rng)
    x, y = a.to_dense(), b.to_dense()
    for operator, matrix in {
        a + b: x + y,
        a - b: x - y,
        2 * a: 2 * x,
        a * np.float64(0.5): x / 2,
        np.float32(3) * a / 4: 0.75 * x,
        -a: -x,
        a @ b: x @ y,
        (a @ b).T: y @ x,
        2 * (a + b) @ a: 2 * (x + y) @ x,
        a.factor() @ a.factor().T: x,
        (a.factor() + b).T: a.factor().to_dense().swapaxes(-1, -2) + y,
    }.items():
        np.testing.assert_allclose(operator.to_dense(), matrix, rtol=1e-12, atol=1e-15)
    assert a.T is a and (a.pinv().T.shape) == a.shape
    with pytest.raises(TypeError):
        a * np.ones(3)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(ValueError, match=r"cannot add operators of shapes"):
        a + jacobian((7,), rng)
    with pytest.raises(ValueError, match=r"cannot compose operators of shapes"):
        a @ jacobian(batch, rng, 4)


def test_dtypes_of_what_is_made_of_it() -> None:
    p = fsm.softmax(np.arange(3, dtype=np.float32))
    single, double = SoftmaxJacobian(p), SoftmaxJacobian(p.astype(np.float64))
    assert (2.0 * single).dtype == single.pinv().dtype == (single @ single).dtype == np.float32
    assert (single + double).dtype == (double @ single).dtype == np.float64
    assert ((single + double) @ [1, 2, 3]).dtype == (np.ones(3) @ (double @ single)).dtype == float
    assert (single @ [1, 2, 3]).dtype == (single @ np.ones(3)).dtype == np.float32
    assert SoftmaxJacobian([0, 1]).dtype == np.float64
    if BFLOAT16 is not None:
        assert (SoftmaxJacobian(p.astype(BFLOAT16)) @ p).dtype == BFLOAT16


def test_repr(rng: np.random.Generator) -> None:
    a = SoftmaxJacobian(np.ones((4, 3), np.float32) / 3)
    text = "SoftmaxJacobian(shape=(4, 3, 3), dtype=float32)"
    assert repr(a) == text
    assert repr(2.0 * a + a) == f"(2.0 * {text} + {text})"
    assert repr(a.factor().T @ a.pinv()) == f"{text}.factor().T @ {text}.pinv()"


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (3, 5), (2, 5, 1), (1, 2, 3, 5)], ids=str)
def test_operands_of_wrong_shapes(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    operator = jacobian((2, 3), rng)
    for call in (lambda v: operator @ v, lambda v: v @ operator, lambda v: operator.pinv() @ v):
        with pytest.raises(ValueError, match=r"the operand of SoftmaxJacobian.*are expected"):
            call(np.ones(shape))
    with pytest.raises(
        ValueError, match=r"vectors, \(2, 3, 5\) or \(5,\), or matrices, \(2, 3, 5, k\)"
    ):
        operator @ np.ones(4)


def test_what_is_refused(rng: np.random.Generator) -> None:
    operator = jacobian((2,), rng)
    with pytest.raises(TypeError, match="p has dtype complex128"):
        SoftmaxJacobian(np.ones(3, complex))
    with pytest.raises(TypeError, match="the operand has dtype complex128"):
        operator @ np.ones((2, 5), complex)
    with pytest.raises(np.exceptions.AxisError):
        SoftmaxJacobian(np.ones(3), axis=1)
    with pytest.raises(TypeError, match="the factor has dtype complex128"):
        1j * operator


def test_masked_and_empty() -> None:
    p = fsm.softmax(np.ma.array([1.0, 9.0, 2.0], mask=[False, True, False]))
    operator = SoftmaxJacobian(p)
    plain = fsm.softmax_jacobian(fsm.softmax([1.0, 2.0]))
    assert_same_bits(operator.to_dense()[::2, ::2], plain)
    assert (operator.to_dense()[1] == 0).all()
    for shape in ((0, 3), (3, 0), (0,)):
        empty = SoftmaxJacobian(np.ones(shape))
        for each in (empty, 2 * empty + empty, empty.pinv(), empty.factor(), empty.factor().T):
            assert (each @ np.ones(shape)).shape == shape
            assert each.to_dense().shape == each.shape == (*shape, shape[-1])
            assert each.diagonal().shape == shape and np.shape(each.trace()) == shape[:-1]
        assert empty.eigvalsh().shape == shape
        assert empty.solve(np.ones(shape), damping=1).shape == shape
        for value in (empty.norm(), empty.rank(), empty.log_pdet(), empty.logdet(damping=1.0)):
            assert np.shape(value) == shape[:-1] and (value == 0).all()


def test_p_is_kept_and_not_written(rng: np.random.Generator) -> None:
    p = fsm.softmax(rng.standard_normal((3, 4)))
    p.flags.writeable = False
    operator = SoftmaxJacobian(p)
    assert np.shares_memory(operator._p, p)
    operator @ p, operator.eigvalsh(), operator.pinv() @ p, operator.factor() @ p


@every_batch
def test_as_an_operator_of_scipy(batch: tuple[int, ...], rng: np.random.Generator) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    for operator in operators(batch, rng):
        got = operator.as_linear_operator()
        dense = operator.to_dense().reshape(-1, 5, 5)
        size = 5 * len(dense)
        matrix = np.zeros((size, size))
        for i, block in enumerate(dense):
            matrix[5 * i : 5 * i + 5, 5 * i : 5 * i + 5] = block
        assert isinstance(got, linalg.LinearOperator)
        assert got.shape == (size, size) and got.dtype == operator.dtype
        close = {"rtol": 1e-12, "atol": 1e-13 * np.abs(dense).max()}
        np.testing.assert_allclose(got @ np.eye(size), matrix, **close)
        np.testing.assert_allclose(got.T @ np.eye(size), matrix.T, **close)
        v = rng.standard_normal(size)
        np.testing.assert_allclose(got.matvec(v[:, None])[:, 0], matrix @ v, **close)
        np.testing.assert_allclose(got.rmatvec(v), v @ matrix, **close)


def test_solvers_of_scipy_take_it(rng: np.random.Generator) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    optimize = pytest.importorskip("scipy.optimize")
    p = fsm.softmax(rng.standard_normal(30))
    operator = SoftmaxJacobian(p)
    b = rng.standard_normal(30)
    b -= b.mean()
    x, info = linalg.cg(operator.as_linear_operator(), b, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(x - x.mean(), operator.pinv() @ b, rtol=1e-6)
    largest = linalg.eigsh(operator.as_linear_operator(), k=3, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), operator.eigvalsh()[-3:], rtol=1e-10)
    result = optimize.minimize(
        lambda x: fsm.logsumexp(x) - b @ x + x @ x / 2,
        np.zeros(30),
        jac=lambda x: fsm.softmax(x) - b + x,
        hessp=lambda x, v: SoftmaxJacobian(fsm.softmax(x)) @ v + v,
        method="trust-ncg",
    )
    assert result.success
    np.testing.assert_allclose(fsm.softmax(result.x) + result.x, b, atol=1e-5)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"needs SciPy: pip install 'fastsoftmax\[scipy\]'"):
        SoftmaxJacobian(np.ones(1)).as_linear_operator()
