"""What SoftmaxJacobian knows of its matrix: against mpmath where it is small, and by what defines
it where it is large."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import reference
from helpers import assert_same_bits, record_error
from reference import Array, from_mp, ulp_error, widen
from test_derivatives import LARGEST_GAP, every_precision, logits

import fastsoftmax as fsm
from fastsoftmax import SoftmaxJacobian

MP = mpmath.MPContext()
MP.prec = 1200  # at a gap of 200 eigenvalues are 2^-290 apart from what they are computed from


def exact_matrix(x: Array) -> Any:
    p = [MP.exp(v) for v in map(MP.mpf, x.tolist())]
    total = MP.fsum(p)
    p = [v / total for v in p]
    return MP.diag(p) - MP.matrix(p) * MP.matrix(p).T


def exact(values: Any) -> reference.Exact:
    """One number or a list of them."""
    values = [values] if isinstance(values, MP.mpf) else list(values)
    return from_mp([reference.CONTEXT.make_mpf(MP.mpf(v)._mpf_) for v in values], (len(values),))


def check(name: str, got: Any, values: Any, limit: float) -> None:
    got = np.atleast_1d(got)
    errors = ulp_error(got, exact(values), got.dtype)
    record_error(name, got.dtype, errors)
    assert errors.max() <= limit, name


def cases(dtype: type, n: int, rng: np.random.Generator) -> Array:
    gaps = np.minimum([0, 1, 16, 40, 80, 200], LARGEST_GAP[dtype])
    x = rng.standard_normal((len(gaps), n))
    x[:, 0] = x.max(axis=1) + gaps
    return x.astype(dtype)


@every_precision
@pytest.mark.parametrize("n", [1, 2, 3, 6, 10])
def test_small_ones(dtype: type, n: int, rng: np.random.Generator) -> None:
    for x in cases(dtype, n, rng):
        operator, matrix = SoftmaxJacobian(fsm.softmax(x)), exact_matrix(x)
        values = sorted(MP.eigsy(matrix, eigvals_only=True)) if n > 1 else [MP.mpf(0)]
        got = operator.eigvalsh()
        assert got[0] == 0
        assert operator.rank() == n - 1
        if n == 1:
            assert operator.norm() == operator.trace() == operator.log_pdet() == 0
            continue
        check("eigvalsh", got[1:], values[1:], 8)
        check("norm", operator.norm(), MP.sqrt(MP.fsum(v * v for v in values)), 5)
        check("trace", operator.trace(), MP.fsum(values), 5)
        product = MP.log(MP.fprod(values[1:]))
        check("log_pdet", operator.log_pdet(), product, 6)


@every_precision
@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e3])
def test_small_solutions(dtype: type, damping: float, rng: np.random.Generator) -> None:
    eps = np.finfo(dtype).eps
    for x in cases(dtype, 6, rng):
        operator, matrix = SoftmaxJacobian(fsm.softmax(x)), exact_matrix(x)
        damped = matrix + MP.mpf(damping) * MP.eye(6)
        b = rng.standard_normal(6).astype(dtype)
        inverse = damped**-1
        expected = inverse * MP.matrix(b.tolist())
        scale = [
            MP.fsum(abs(inverse[i, j] * MP.mpf(float(b[j]))) for j in range(6)) for i in range(6)
        ]
        got = operator.solve(b, damping=damping)
        assert got.dtype == dtype
        for i in range(6):
            assert abs(MP.mpf(float(got[i])) - expected[i]) <= 8 * eps * scale[i]
        p = fsm.softmax(x).astype(float)
        terms = np.abs(np.log(p + damping)).sum() + abs(np.log(damping * (p / (p + damping)).sum()))
        error = MP.mpf(float(operator.logdet(damping=damping))) - MP.log(MP.det(damped))
        assert abs(error) <= 4 * eps * terms


@every_precision
def test_small_factors_and_pseudoinverses(dtype: type, rng: np.random.Generator) -> None:
    eps, tiny = np.finfo(dtype).eps, float(np.finfo(dtype).smallest_subnormal)
    for x in cases(dtype, 6, rng)[:-1]:
        operator, matrix = SoftmaxJacobian(fsm.softmax(x)), exact_matrix(x)
        total = MP.fsum(MP.exp(MP.mpf(float(v))) for v in x)
        p = [MP.exp(MP.mpf(float(v))) / total for v in x]
        others = [MP.fsum(p[j] for j in range(6) if j != i) for i in range(6)]
        root = [MP.sqrt(v) for v in p]
        factor = operator.factor().to_dense()
        for i in range(6):
            for j in range(6):
                value = root[i] * others[i] if i == j else -p[i] * root[j]
                assert abs(MP.mpf(float(factor[i, j])) - value) <= 8 * eps * abs(value) + tiny
        assert_same_bits(operator.factor().T.to_dense().T != 0, factor != 0)
        np.testing.assert_allclose(operator.factor().T.to_dense().T, factor, rtol=16 * eps)
        mean = MP.fsum(1 / v for v in p) / 6
        inverse = operator.pinv().to_dense()
        for i in range(6):
            for j in range(6):
                terms = [(i == j) / p[i], -1 / p[i] / 6, -1 / p[j] / 6, mean / 6]
                error = abs(MP.mpf(float(inverse[i, j])) - MP.fsum(terms))
                assert error <= 8 * eps * MP.fsum(map(abs, terms))
        assert MP.norm(MP.matrix(matrix) * MP.matrix([1] * 6)) < 1e-300


@every_precision
@pytest.mark.parametrize("n", [100, 2000, 100_000])
def test_large_ones_by_what_defines_them(dtype: type, n: int, rng: np.random.Generator) -> None:
    eps = np.finfo(dtype).eps
    p = fsm.softmax(3 * rng.standard_normal((2, n)).astype(dtype))
    operator = SoftmaxJacobian(p)
    v = rng.standard_normal((2, n)).astype(dtype)

    def assert_close(a: Array, b: Array, scale: Any) -> None:
        assert (np.abs(widen(a) - widen(b)) <= 32 * eps * widen(scale)).all()

    factor = operator.factor()
    assert_close(factor @ (factor.T @ v), operator @ v, p * (np.abs(v) + 2))
    for damping in (1e-6, 0.1, np.array([1e-4, 2.0])):
        x = operator.solve(v, damping=damping)
        column = np.broadcast_to(damping, 2)[:, None]
        scale = np.abs(v) + (p + column) * np.abs(x) + np.abs(x).max() * p
        assert_close((operator @ x) + column.astype(dtype) * x, v, scale)
    centred = v - v.mean(axis=1, keepdims=True, dtype=np.longdouble)
    x = operator.pinv() @ centred
    scale = np.abs(centred) + p * np.abs(x).max(axis=1, keepdims=True)
    assert_close(operator @ x, centred, scale)
    assert (np.abs(x.mean(axis=1, dtype=float)) <= 8 * eps * np.abs(x).max(axis=1)).all()
    wide = widen(p)
    diagonal = (wide * (1 - wide)).sum(axis=1)
    assert_close(operator.trace(), diagonal, diagonal)
    squares = ((wide**2).sum(axis=1)) ** 2 + (wide**2 - 2 * wide**3).sum(axis=1)
    assert_close(operator.norm(), np.sqrt(squares), np.sqrt(squares))
    if n <= 2000:
        values = operator.eigvalsh()
        assert (np.diff(values) >= 0).all()
        assert_close(values.sum(axis=1, dtype=np.longdouble), diagonal, diagonal)
        assert_close((widen(values) ** 2).sum(axis=1), squares, squares)
        dense = np.linalg.eigvalsh(operator.to_dense().astype(float))
        np.testing.assert_allclose(values, dense, rtol=0, atol=16 * eps * dense.max())
        logs = np.log(widen(values[:, 1:])).sum(axis=1)
        assert_close(operator.log_pdet(), logs, np.abs(logs))
        damped = np.log(widen(values) + 0.1).sum(axis=1)
        assert_close(operator.logdet(damping=0.1), damped, np.abs(damped))


def test_equal_probabilities_and_zeros() -> None:
    for dtype in (np.float16, np.float32, np.float64, np.longdouble):
        p = np.array([[0.25] * 4, [0, 0.5, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]], dtype)
        operator = SoftmaxJacobian(p)
        expected = [[0, 0.25, 0.25, 0.25], [0, 0, 0, 0.5], [0] * 4, [0] * 4]
        assert_same_bits(operator.eigvalsh(), np.array(expected, dtype))
        assert operator.rank().tolist() == [3, 1, 0, 0]
        np.testing.assert_allclose(operator.norm(), [0.75**0.5 / 2, 0.5, 0, 0], rtol=1e-3)
        np.testing.assert_allclose(
            operator.log_pdet(), [-3 * np.log(4), -np.log(2), 0, 0], rtol=1e-3
        )
        v = np.array([1, -1, 3, 1], dtype)
        expected = [[0, -8, 8, 0], [0, -2, 0, 2], [0] * 4, [0] * 4]
        np.testing.assert_allclose(operator.pinv() @ v, expected)
        np.testing.assert_allclose(operator.factor() @ (operator.factor().T @ v), operator @ v)
        solution = operator.solve(v, damping=0.5)
        np.testing.assert_allclose(operator @ solution + solution / 2, [v] * 4, rtol=4e-3)
        values = np.linalg.eigvalsh(operator.to_dense().astype(float))
        np.testing.assert_allclose(
            operator.logdet(damping=0.5), np.log(values + 0.5).sum(axis=1), rtol=4e-3
        )


def test_longdouble_agrees_with_float64(rng: np.random.Generator) -> None:
    p = fsm.softmax(5 * rng.standard_normal((3, 20)))
    v = rng.standard_normal((3, 20))
    double, wide = SoftmaxJacobian(p), SoftmaxJacobian(p.astype(np.longdouble))
    for name in ("eigvalsh", "norm", "trace", "log_pdet", "diagonal", "to_dense"):
        got = getattr(wide, name)()
        assert got.dtype == np.longdouble
        np.testing.assert_allclose(getattr(double, name)(), got.astype(float), rtol=1e-14)
    for a, b in ((double.pinv() @ v, wide.pinv() @ v), (double.factor() @ v, wide.factor() @ v)):
        np.testing.assert_allclose(a, b.astype(float), rtol=1e-11)
    np.testing.assert_allclose(double.solve(v, damping=1), wide.solve(v, damping=1).astype(float))


@every_precision
def test_eigenvalues_lie_between_the_probabilities(dtype: type, rng: np.random.Generator) -> None:
    p = fsm.softmax(logits(dtype, 40, rng))
    values, ordered = SoftmaxJacobian(p).eigvalsh(), np.sort(p)
    assert (values[:, 0] == 0).all()
    assert (values[:, 1:] >= ordered[:, :-1]).all() and (values[:, 1:] <= ordered[:, 1:]).all()


def test_nan_spoils_only_its_row() -> None:
    p = np.array([[0.5, np.nan, 0.5], [0.25, 0.5, 0.25]])
    operator = SoftmaxJacobian(p)
    good = SoftmaxJacobian(p[1])
    for name in ("eigvalsh", "norm", "trace", "log_pdet"):
        got = getattr(operator, name)()
        assert np.isnan(got[0]).all()
        assert_same_bits(got[1], getattr(good, name)())


@pytest.mark.parametrize("damping", [0, -1.0, np.nan, np.inf, [1.0, 0.0]], ids=str)
def test_damping_that_is_refused(damping: Any) -> None:
    operator = SoftmaxJacobian(np.ones((2, 4)) / 4)
    for call in (
        lambda: operator.solve(np.ones((2, 4)), damping=damping),
        lambda: operator.logdet(damping=damping),
    ):
        with pytest.raises(ValueError, match="damping must be positive and finite"):
            call()
    with pytest.raises(ValueError, match=r"damping has shape \(3,\).*the batch, \(2,\)"):
        operator.logdet(damping=np.ones(3))
    with pytest.raises(TypeError, match="damping has dtype complex128"):
        operator.logdet(damping=1j)


def test_solutions_with_matrices(rng: np.random.Generator) -> None:
    operator = SoftmaxJacobian(fsm.softmax(rng.standard_normal((3, 5))))
    b = rng.standard_normal((3, 5, 2))
    got = operator.solve(b, damping=[0.1, 1.0, 10.0])
    for i, damping in enumerate([0.1, 1.0, 10.0]):
        dense = operator.to_dense()[i] + damping * np.eye(5)
        np.testing.assert_allclose(got[i], np.linalg.solve(dense, b[i]), rtol=1e-10)
