"""Second derivatives of the loss, and what else it measures: perplexity, entropy, divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, record_error
from reference import CONTEXT, ulp_error, widen

import fastsoftmax as fsm

every_float = pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
SIZES = [2, 7, 63, 64, 300]


def wide(x: Any) -> Any:
    return np.asarray(x, np.longdouble)


def case(rng: np.random.Generator, n: int, dtype: Any, kind: str) -> tuple[Any, ...]:
    x = (3 * rng.standard_normal((5, n))).astype(dtype)
    q = rng.dirichlet(np.ones(n), 5).astype(dtype)
    targets = rng.integers(0, n, 5) if kind == "indices" else q
    return x, targets, rng.standard_normal((5, n)).astype(dtype), rng.random(n).astype(dtype)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight": True},
    {"label_smoothing": 0.2, "weight": True},
    {"z_loss": 0.3},
    {"ignore_index": 1},
    {"label_smoothing": 0.2, "z_loss": 0.3, "weight": True},
]


@every_float
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_hessian(
    dtype: Any, options: Any, kind: str, reduction: str, rng: np.random.Generator
) -> None:
    """Its products and its diagonal, against the whole matrix in longdouble."""
    if "ignore_index" in options and kind == "probabilities":
        return
    for n in (2, 7, 70):
        x, targets, v, w = case(rng, n, dtype, kind)
        arguments = {**options, "reduction": reduction}
        weights = np.ones(n, dtype)
        if "weight" in options:
            arguments["weight"] = weights = w
        p = reference.softmax(x).approximate()
        s, z = wide(options.get("label_smoothing", 0.0)), wide(options.get("z_loss", 0.0))
        indices = kind == "indices"
        counts = targets != options.get("ignore_index") if indices else np.ones(5, bool)
        q = np.eye(n)[targets] if indices else widen(targets)
        a = (widen(weights) * ((1 - s) * q + s / n)).sum(axis=1)
        of_row = widen(weights[targets]) if indices else np.ones(5)
        z = 2 * z * of_row
        a = a + z * reference.logsumexp(x).approximate()
        outer = p[:, :, None] * p[:, None, :]
        hessian = a[:, None, None] * (np.eye(n) * p[:, :, None] - outer) + z[:, None, None] * outer
        hessian[~counts] = 0
        if reduction == "mean":
            hessian /= (of_row * counts).sum()
        limit = 8 * np.finfo(dtype).eps * np.abs(hessian).max()
        got = fsm.cross_entropy_hvp(x, targets, v, **arguments)
        assert got.dtype == dtype
        expected = (hessian * widen(v)[:, None, :]).sum(axis=2)
        assert (np.abs(got - expected) <= limit * np.abs(v).sum(axis=1, keepdims=True)).all()
        got = fsm.cross_entropy_hessian_diagonal(x, targets, **arguments)
        assert (np.abs(got - np.einsum("rii->ri", hessian)) <= limit).all()


@every_float
def test_hessian_of_sure_rows_is_exact(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 9)).astype(dtype)
    x[:, 3] += np.linspace(0, 60, 20).astype(dtype)
    v = rng.standard_normal(x.shape).astype(dtype)
    t = np.full(20, 3)
    jacobian = reference.jacobian(x)
    diagonal = jacobian.map(lambda a: np.einsum("rii->ri", a))
    of_diagonal = ulp_error(
        fsm.cross_entropy_hessian_diagonal(x, t, reduction="sum"), diagonal, dtype
    )
    assert of_diagonal.max() <= 4
    product = reference.product("softmax_vjp", x, v).approximate()
    scale = reference.product_scale("softmax_vjp", x, v).astype(dtype)
    got = fsm.cross_entropy_hvp(x, t, v, reduction="sum")
    assert (np.abs(got - product) <= 5 * np.spacing(scale)).all()


def test_hessian_is_the_derivative_of_the_gradient(rng: np.random.Generator) -> None:
    x, targets, v, w = case(rng, 12, np.float64, "indices")
    where = rng.random(x.shape) < 0.8
    where[np.arange(5), targets] = True
    for arguments in ({"weight": w}, {"label_smoothing": 0.2, "z_loss": 0.1}, {"where": where}):
        grads = [
            fsm.cross_entropy(x + h * v, targets, return_grad=True, **arguments)[1]
            for h in (1e-5, -1e-5)
        ]
        expected = (grads[0] - grads[1]) / 2e-5
        got = fsm.cross_entropy_hvp(x, targets, v, **arguments)
        np.testing.assert_allclose(got, expected, atol=1e-9)
        unit = np.eye(12)[[4] * 5]
        column = fsm.cross_entropy_hvp(x, targets, unit, **arguments)
        diagonal = fsm.cross_entropy_hessian_diagonal(x, targets, **arguments)
        np.testing.assert_allclose(diagonal[:, 4], column[:, 4], rtol=1e-12)


def test_second_order_arguments(rng: np.random.Generator) -> None:
    x, targets, v, _ = case(rng, 6, np.float64, "indices")
    expected = fsm.cross_entropy_hvp(x, targets, v)
    for out in (np.empty_like(x), v.copy(), x.copy()):
        source = {id(out): out}
        got = fsm.cross_entropy_hvp(source.get(id(x), x), targets, v, out=out)
        assert got is out
        assert_same_bits(out, expected)
    y = v.copy()
    assert_same_bits(fsm.cross_entropy_hvp(x, targets, y, out=y), expected)
    y = x.copy()
    assert_same_bits(fsm.cross_entropy_hvp(y, targets, v, out=y), expected)
    turned = fsm.cross_entropy_hvp(x.T, targets, v.T, 0)
    assert_same_bits(turned, expected.T)
    expected = fsm.cross_entropy_hessian_diagonal(x, targets)
    out, y = np.empty_like(x), x.copy()
    assert fsm.cross_entropy_hessian_diagonal(x, targets, out=out) is out
    assert fsm.cross_entropy_hessian_diagonal(y, targets, out=y) is y
    assert_same_bits(out, expected)
    assert_same_bits(y, expected)
    half = fsm.cross_entropy_hessian_diagonal(x.astype(np.float16), targets)
    assert half.dtype == np.float16
    with pytest.raises(ValueError, match=r"v has shape \(6, 5\); that of logits, \(5, 6\)"):
        fsm.cross_entropy_hvp(x, targets, v.T)
    with pytest.raises(IndexError, match=r"targets\[4\] is 6"):
        fsm.cross_entropy_hessian_diagonal(x, [0, 1, 2, 3, 6])


def of_row(x: Any, q: Any = None) -> Any:
    """The entropy of softmax(x), or the divergence from it of q, by mpmath."""
    p, log_p, _ = reference._row(reference.to_mp(x), [True] * len(x), CONTEXT.mpf(1))
    if q is None:
        return CONTEXT.fsum(-a * b for a, b in zip(p, log_p, strict=True) if a)
    q = reference.to_mp(q)
    return CONTEXT.fsum(a * (CONTEXT.log(a) - b) for a, b in zip(q, log_p, strict=True) if a)


@every_float
@pytest.mark.parametrize("n", SIZES)
def test_entropy(dtype: Any, n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((12, n)) * np.geomspace(0.01, 30, 12)[:, None]
    x[:, 1] += np.linspace(0, 80, 12)
    x = x.astype(dtype)
    exact = reference.from_mp([of_row(row) for row in x], (12,))
    error = ulp_error(fsm.entropy(x), exact, dtype)
    record_error("entropy", dtype, error)
    assert error.max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
def test_divergence(dtype: Any, n: int, apart: float, rng: np.random.Generator) -> None:
    """Also where model and targets nearly agree: relative to the divergence, or to 1 - sum(q)."""
    x = (2 * rng.standard_normal((8, n))).astype(dtype)
    q = fsm.softmax(x + apart * rng.standard_normal((8, n))).astype(dtype)
    exact = reference.from_mp([of_row(a, b) for a, b in zip(x, q, strict=True)], (8,))
    error = np.abs(widen(fsm.kl_divergence(x, q)) - exact.approximate())
    lack = np.abs(1 - widen(q).sum(axis=1))
    scale = np.abs(exact.approximate()) + lack
    if (
        dtype is np.float64
    ):  # what p itself errs, times how far q is from it, and what a sum of q does
        scale += np.abs(widen(q) - widen(fsm.softmax(x))).sum(axis=1) + 2.0**-10
    assert (error <= 4 * np.finfo(dtype).eps * scale).all()


def test_divergence_of_what_vanishes() -> None:
    assert fsm.kl_divergence([0.0, -np.inf], [1.0, 0.0]) == 0
    assert fsm.kl_divergence([0.0, -np.inf], [0.5, 0.5]) == np.inf
    np.testing.assert_allclose(fsm.kl_divergence([0.0, -800.0], [0.5, 0.5]), 400 - np.log(2))
    where = [True, True, False]
    got = fsm.kl_divergence([0.0, 0.0, 5.0], [0.25, 0.75, 9.0], where=where)
    assert got == fsm.kl_divergence([0.0, 0.0], [0.25, 0.75])
    with pytest.raises(TypeError, match="targets has dtype int64; floats are expected"):
        fsm.kl_divergence([[0.0, 1.0]], [1])


def test_entropy_of_what_is_kept(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 6, 2))
    where = rng.random(x.shape) < 0.6
    where[0, :, 0] = False
    got = fsm.entropy(x, 1, where=where)
    assert got.shape == (3, 2) and got[0, 0] == 0
    kept = x[1, where[1, :, 1], 1]
    np.testing.assert_allclose(got[1, 1], fsm.entropy(kept), rtol=1e-14)
    assert fsm.entropy([0.0, -np.inf]) == 0
    assert fsm.entropy(np.zeros((2, 4), np.float16)).dtype == np.float16


def test_perplexity(rng: np.random.Generator) -> None:
    x, t = rng.standard_normal((50, 9)).astype(np.float32), rng.integers(0, 9, 50)
    expected = np.exp(fsm.cross_entropy(x.astype(float), t, ignore_index=2))
    got = fsm.perplexity(x, t, ignore_index=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-7)
    assert fsm.perplexity(np.zeros((2, 1000)), [3, 4]) == pytest.approx(1000, rel=1e-14)
