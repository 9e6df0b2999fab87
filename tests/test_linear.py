"""linear_cross_entropy: what hidden @ weight.T and cross_entropy give, without the logits."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import fastsoftmax as fsm
from fastsoftmax import _linear


@pytest.fixture(params=[1, 3000, 1 << 25], ids=["a row a block", "some rows", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for name in ("_BLOCK", "_CLASSES"):
        monkeypatch.setattr(_linear, name, request.param)
    monkeypatch.setattr(_linear, "_ROWS", 30)
    monkeypatch.setattr(_linear, "_TILE", 500)
    return int(request.param)


def by_hand(
    hidden: Any, weight: Any, targets: Any, bias: Any = None, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if "class_weight" in options:
        options["weight"] = options.pop("class_weight")
    loss, z = fsm.cross_entropy(logits, targets, return_grad=True, **options)
    rows, x = z.reshape(-1, len(weight)), hidden.reshape(-1, hidden.shape[-1])
    grads = [z @ weight, rows.T @ x]
    return loss, (*grads, rows.sum(axis=0))[: 2 if bias is None else 3]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 3, "label_smoothing": 0.1},
    {"class_weight": True, "z_loss": 0.01, "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.usefixtures("block")
def test_agrees(dtype: Any, options: Any, rng: np.random.Generator) -> None:
    hidden = rng.standard_normal((4, 25, 16)).astype(dtype)
    weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((70, 16), (70,)))
    options = dict(options)
    if "class_weight" in options:
        options["class_weight"] = rng.random(70).astype(dtype)
    indices = rng.integers(0, 70, (4, 25))
    q = rng.dirichlet(np.ones(70), (4, 25)).astype(dtype)
    u = np.finfo(dtype).eps
    for targets in (indices, q):
        if targets is q and "ignore_index" in options:
            continue
        for b in (None, bias):
            loss, grads = by_hand(hidden, weight, targets, b, **options)
            arguments = {"bias": b, **options}
            got, got_grads = fsm.linear_cross_entropy(
                hidden, weight, targets, return_grad=True, **arguments
            )
            np.testing.assert_allclose(got, loss, rtol=100 * u)
            assert len(got_grads) == len(grads) and got.dtype == dtype
            for a, expected in zip(got_grads, grads, strict=True):
                assert a.dtype == dtype and a.shape == expected.shape
                np.testing.assert_allclose(a, expected, atol=100 * u * np.abs(expected).max())
            alone = fsm.linear_cross_entropy(hidden, weight, targets, **arguments)
            np.testing.assert_allclose(alone, got, rtol=4 * u)


ODD_OPTIONS: list[dict[str, Any]] = [
    {"ignore_index": 0},
    {"ignore_index": -100, "z_loss": 0.01},
    {"class_weight": np.arange(9, dtype=np.float32), "ignore_index": 4},
]


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.usefixtures("block")
def test_logits_that_are_not_finite(dtype: Any, options: Any) -> None:
    logits = np.array(
        [
            [-np.inf, 1, 2, 3, 4, 5, 6, 7, 8],
            [-np.inf] * 7 + [1, 2],
            [1, 2] + [-np.inf] * 7,
            [0, 1, np.inf, 3, 4, 5, 6, 7, 8],
            [0, 1, 2, 3, np.nan, 5, 6, 7, 8],
            [-np.inf] * 9,
            [60, -60, 0, 900, -900, 0, 1000, 1000, 0],
        ],
        dtype,
    )
    logits, t = np.repeat(logits, 9, axis=0), np.tile(np.arange(9), 7)
    options = {"reduction": "none", **options}
    if "class_weight" in options:
        options["class_weight"] = options["class_weight"].astype(dtype)
    if options.get("ignore_index") == -100:
        t[::5] = -100
    with np.errstate(invalid="ignore"):
        of_row = {k: v for k, v in options.items() if k != "class_weight"}
        expected = fsm.cross_entropy(logits, t, weight=options.get("class_weight"), **of_row)
        # a row of features for each row of logits, of which the bias is the only one
        got = [
            fsm.linear_cross_entropy(
                np.zeros((1, 1), dtype), np.zeros((9, 1), dtype), t[i : i + 1], bias=row, **options
            )
            for i, row in enumerate(logits)
        ]
    np.testing.assert_allclose(np.squeeze(got), np.squeeze(expected), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.usefixtures("block")
def test_a_sure_model_keeps_the_digits_of_its_loss(rng: np.random.Generator) -> None:
    gap = np.arange(0, 101, dtype=np.float32)
    noise, t = rng.standard_normal((101, 50)).astype(np.float32), rng.integers(0, 50, 101)
    logits = noise.copy()
    logits[np.arange(101), t] += gap
    exact = logits.astype(np.longdouble) - logits[np.arange(101), t][:, None]
    exact[np.arange(101), t] = -np.inf
    expected = np.log1p(np.exp(exact).sum(axis=-1))
    got = fsm.linear_cross_entropy(np.eye(101, dtype="f"), logits.T, t, reduction="none")
    unit = np.spacing(expected.astype(np.float32))
    assert (np.abs(got - expected) <= 4 * unit).all()


@pytest.mark.usefixtures("block")
def test_out(rng: np.random.Generator) -> None:
    hidden, weight, bias = (rng.standard_normal(s) for s in ((30, 8), (20, 8), (20,)))
    t = rng.integers(0, 20, 30)
    _, expected = fsm.linear_cross_entropy(hidden, weight, t, bias=bias, return_grad=True)
    for order in ("C", "F"):
        out = tuple(np.full(a.shape, np.nan, order=order) for a in (hidden, weight, bias))
        before = [a.copy() for a in (hidden, weight, bias)]
        got = fsm.linear_cross_entropy(hidden, weight, t, bias=bias, return_grad=True, out=out)[1]
        for a, b, y in zip(got, out, expected, strict=True):
            assert a is b
            np.testing.assert_allclose(a, y, rtol=1e-12, atol=1e-15)
        for a, b in zip((hidden, weight, bias), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_types(rng: np.random.Generator) -> None:
    hidden, weight = rng.standard_normal((6, 8)), rng.standard_normal((9, 8))
    t = rng.integers(0, 9, 6)
    loss, grads = fsm.linear_cross_entropy(
        hidden.astype(np.float16), weight.astype(np.float16), t, return_grad=True
    )
    assert loss.dtype == grads[0].dtype == grads[1].dtype == np.float16
    single = fsm.linear_cross_entropy(hidden.astype(np.float32), weight.astype(np.float32), t)
    np.testing.assert_allclose(loss, single, rtol=5e-3)
    assert fsm.linear_cross_entropy(hidden.astype(np.float32), weight, t).dtype == np.float64
    assert fsm.linear_cross_entropy([[1, 0]], [[1, 0], [0, 1]], [0]).dtype == np.float64
    one = fsm.linear_cross_entropy(hidden[0], weight, t[0], return_grad=True)
    assert one[0].shape == () and one[1][0].shape == (8,)
    assert np.isnan(fsm.linear_cross_entropy(np.empty((0, 8)), weight, np.empty(0, int)))


def test_memory_grows_with_the_block(rng: np.random.Generator) -> None:
    hidden = rng.standard_normal((4000, 16), np.float32)
    weight, t = rng.standard_normal((20_000, 16), np.float32), rng.integers(0, 20_000, 4000)
    out = (np.empty_like(hidden), np.empty_like(weight))
    logits = 4000 * 20_000 * 4
    tracemalloc.start()
    fsm.linear_cross_entropy(hidden, weight, t, return_grad=True, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * logits and peak < 1.2 * _linear._BLOCK


def test_errors(rng: np.random.Generator) -> None:
    h, w, t = np.zeros((5, 4)), np.zeros((3, 4)), np.zeros(5, int)
    out = (np.ones((5, 4)), np.ones((3, 4)))

    def fails(error: Any, message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            fsm.linear_cross_entropy(*arguments, return_grad=True, **{"out": out, **options})
        assert all((y == 1).all() for y in out)

    fails(ValueError, r"hidden has shape \(5, 4\) and weight \(4, 3\)", h, w.T, t)
    fails(ValueError, r"bias has shape \(4,\); \(3,\)", h, w, t, bias=np.zeros(4))
    fails(IndexError, r"targets\[2\] is 3", h, w, [0, 1, 3, 0, 0])
    fails(
        ValueError,
        r"out must be a tuple of 3 arrays, for hidden, weight, bias",
        h,
        w,
        t,
        bias=w[:, 0],
    )
    fails(ValueError, r"out for weight shares memory", h, w, t, out=(out[0], w))
    fails(ValueError, r"out has shape \(3, 4\); \(5, 4\)", h, w, t, out=out[::-1])
    fails(TypeError, r"weight has dtype complex128", h, w + 0j, t)
    fails(ValueError, r"class_weight has shape \(2,\); \(3,\)", h, w, t, class_weight=[1, 2])
    q = np.ones((5, 4))[:, :3]
    fails(ValueError, r"out for hidden shares memory", h, w, q, out=(q.base, out[1]))
    with pytest.raises(ValueError, match="out takes the gradients"):
        fsm.linear_cross_entropy(h, w, t, out=out)
