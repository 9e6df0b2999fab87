"""cross_entropy and its derivatives: exact at every gap, for every kind of target."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import reference
from helpers import assert_same_bits, record_error
from reference import BFLOAT16, ulp_error, widen

import fastsoftmax as fsm

DTYPES = [np.float32, np.float64, np.longdouble]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def both(x: Any, targets: Any, **options: Any) -> tuple[Any, Any]:
    return fsm.cross_entropy(x, targets, reduction="none", return_grad=True, **options)


def errors(x: Any, targets: Any, **options: Any) -> tuple[Any, Any]:
    """Of the losses, and of the gradients: these in units of the larger of a and of sum(a) * p."""
    loss, grad = reference.cross_entropy(x, targets, **options)
    got, got_grad = both(x, targets, **options)
    assert got.dtype == got_grad.dtype == x.dtype
    of_loss = ulp_error(got, loss, x.dtype)
    if len(options) + (np.ndim(targets) == 2) == 0:  # nothing may cancel in the gradient
        of_grad = ulp_error(got_grad, grad, x.dtype)
    else:
        w, s = widen(options.get("weight", np.ones(x.shape[1]))), options.get("label_smoothing", 0)
        q = targets if np.ndim(targets) == 2 else targets[:, None] == np.arange(x.shape[1])
        a = w * ((1 - s) * q + s / x.shape[1])
        scale = np.maximum(a, widen(fsm.softmax(x)) * a.sum(axis=1, keepdims=True))
        if z := options.get("z_loss", 0):
            scale += abs(z) * widen(fsm.softmax(x)) * np.abs(x).max()
        scale = np.maximum(scale, np.finfo(x.dtype).tiny).astype(x.dtype)
        of_grad = np.abs(widen(got_grad) - grad.approximate()) / np.spacing(scale)
    record_error("cross_entropy", x.dtype, of_loss)
    record_error("its gradient", x.dtype, of_grad)
    return of_loss, of_grad


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 10, 63, 64, 100, 256, 257, 1000])
def test_every_gap(dtype: Any, n: int, rng: np.random.Generator) -> None:
    gaps = np.array([0, 1e-3, 0.5, 1, 3, 5, 9, 12, 14, 16, 18, 20, 25, 30, 50, 80, 100])
    x = rng.standard_normal((len(gaps), n)).astype(dtype)
    targets = rng.integers(0, n, len(gaps))
    x[np.arange(len(gaps)), targets] = x.max(axis=1) + gaps.astype(dtype)
    of_loss, of_grad = errors(x, targets)
    assert of_loss.max() <= 4
    assert of_grad.max() <= 4


@every_dtype
def test_wrong_and_wild_rows(dtype: Any, rng: np.random.Generator) -> None:
    for n in (2, 7, 40, 90, 700):
        x = (rng.standard_normal((12, n)) * np.geomspace(0.01, 4000, 12)[:, None]).astype(dtype)
        of_loss, of_grad = errors(x, rng.integers(0, n, 12))
        assert of_loss.max() <= 4
        assert of_grad.max() <= 4


@every_dtype
@pytest.mark.parametrize("weight", [1e-30, 1, 1e30])
@pytest.mark.parametrize("n", [5, 50, 300, 1100])
def test_powers_and_gradients_of_any_size(
    dtype: Any, weight: float, n: int, rng: np.random.Generator
) -> None:
    for shift in (-39, 0, 39, 200):
        x = (rng.uniform(-1, 1, (4, n)) + shift).astype(dtype)
        x[0] = shift
        of_loss, of_grad = errors(x, rng.integers(0, n, 4), weight=np.full(n, weight, dtype))
        assert of_loss.max() <= 4
        assert of_grad.max() <= 6


OPTIONS: list[dict[str, Any]] = [
    {"weight": True},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": True, "label_smoothing": 0.3},
    {"z_loss": 1e-2},
    {"weight": True, "label_smoothing": 0.1, "z_loss": 0.5},
    {"ignore_index": 0},
    {"ignore_index": -100, "weight": True},
    {"ignore_index": 2**40},
]


@every_dtype
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_options(dtype: Any, options: Any, kind: str, rng: np.random.Generator) -> None:
    for n in (1, 2, 5, 40, 100, 300):
        x = (2 * rng.standard_normal((6, n)) + 5).astype(dtype)
        targets: Any = rng.integers(0, n, 6)
        arguments = dict(options)
        if "weight" in arguments:
            arguments["weight"] = rng.random(n).astype(dtype)
        if "ignore_index" in arguments:
            targets[2] = arguments["ignore_index"]
            if kind == "probabilities":
                continue
        if kind == "probabilities":
            targets = rng.dirichlet(np.ones(n), 6).astype(dtype)
        of_loss, of_grad = errors(x, targets, **arguments)
        assert of_loss.max() <= 4
        # a itself, a product of three, is rounded thrice
        assert of_grad.max() <= (10 if dtype is np.longdouble else 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 10, 64, 300, 1000, 20000])
def test_gradient_rows_sum_to_zero(dtype: Any, n: int, rng: np.random.Generator) -> None:
    """Also where the model nearly agrees with its targets, so that all entries are small."""
    x = (rng.standard_normal((20, n)) * np.geomspace(0.1, 30, 20)[:, None]).astype(dtype)
    t, w = rng.integers(0, n, 20), rng.random(n).astype(dtype)
    sure = x.copy()
    sure[np.arange(20), t] += np.linspace(0, 40, 20).astype(dtype)
    near = fsm.softmax(x + 1e-3 * rng.standard_normal(x.shape)).astype(dtype)
    for logits, targets, options in (
        (x, t, {}),
        (sure, t, {"weight": w}),
        (sure, t, {"label_smoothing": 0.1}),
        (sure, t, {"label_smoothing": 0.3, "weight": w}),
        (x, near, {}),
        (x, near, {"weight": w, "label_smoothing": 1e-3}),
        (x, rng.dirichlet(np.full(n, 100), 20).astype(dtype), {"weight": w}),
    ):
        for reduction in ("none", "mean"):
            _, grad = fsm.cross_entropy(
                logits, targets, reduction=reduction, return_grad=True, **options
            )
            largest = np.abs(grad).max(axis=1)
            assert (np.abs(widen(grad).sum(axis=1)) <= 4 * np.spacing(largest)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sum_over_ten_million_rows(dtype: Any, rng: np.random.Generator) -> None:
    some = (5 * rng.standard_normal((1000, 2))).astype(dtype)
    targets = rng.integers(0, 2, 1000)
    loss = reference.cross_entropy(some, targets)[0].approximate()
    x, t = np.tile(some, (10_000, 1)), np.tile(targets, 10_000)
    expected = reference.from_wide(np.asarray(loss.sum() * 10_000))
    total = fsm.cross_entropy(x, t, reduction="sum")
    assert ulp_error(total, expected, dtype) <= 4
    mean = reference.from_wide(np.asarray(loss.sum() / 1000))
    assert ulp_error(fsm.cross_entropy(x, t), mean, dtype) <= 4


@pytest.mark.parametrize("n", [3, 70, 1000])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64, np.longdouble])
def test_in_place(dtype: Any, n: int, rng: np.random.Generator) -> None:
    if dtype is None:
        pytest.skip("no ml_dtypes")
    x = np.concatenate([rng.standard_normal((4, n)), 300 * rng.standard_normal((4, n))])
    x = x.astype(dtype)
    for targets in (rng.integers(0, n, 8), rng.dirichlet(np.ones(n), 8).astype(dtype)):
        for smoothing in (0.0, 0.1):
            before = x.copy()
            loss, grad = both(x, targets, label_smoothing=smoothing)
            assert_same_bits(x, before)
            y = x.copy()
            again, same = both(y, targets, label_smoothing=smoothing, out=y)
            assert same is y
            assert_same_bits(y, grad)
            assert_same_bits(again, loss)
            alone = fsm.cross_entropy(x, targets, reduction="none", label_smoothing=smoothing)
            assert_same_bits(alone, loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_axes_and_layouts(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 7, 5, 3)).astype(dtype)
    for axis in (0, 1, 2, 3, -1, (1, 2), None):
        axes = fsm._arguments.Axes(x.shape, axis)
        rows = axes.rows(x).reshape(-1, axes.n)
        targets = rng.integers(0, axes.n, axes.batch)
        loss, grad = both(rows, targets.reshape(-1))
        expected = axes.back(grad.reshape((*axes.batch, axes.n)))
        for layout in (x, np.asfortranarray(x), x[::-1][::-1], np.repeat(x, 2, axis=3)[..., ::2]):
            got = fsm.cross_entropy(layout, targets, axis, reduction="none", return_grad=True)
            assert_same_bits(np.reshape(got[0], -1), loss)
            assert_same_bits(got[1], expected)
        out = np.empty_like(x[..., ::-1].T).T[..., ::-1]
        fsm.cross_entropy(x, targets, axis, reduction="none", return_grad=True, out=out)
        assert_same_bits(out, expected)
        q = axes.back(rng.dirichlet(np.ones(axes.n), axes.batch or None)).astype(dtype)
        by_row = both(rows, axes.rows(q).reshape(-1, axes.n))[1]
        got = fsm.cross_entropy(x, q, axis, reduction="none", return_grad=True)
        assert_same_bits(got[1], axes.back(by_row.reshape((*axes.batch, axes.n))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16])
@pytest.mark.parametrize(
    "shape", [(3, 19, 5000), (1, 5, 20_000), (900, 3, 40), (2, 70, 9), (5, 300, 33), (2, 20_000, 2)]
)
def test_classes_along_a_middle_axis(
    shape: tuple[int, int, int], dtype: Any, rng: np.random.Generator
) -> None:
    """As images have them: the bits of rows, in any number of parts."""
    x, n = (5 * rng.standard_normal(shape)).astype(dtype), shape[1]
    x[0, 0, 0], x[-1, :, -1] = np.inf, -np.inf
    rows = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, n)
    t = rng.integers(-1, n, (shape[0], shape[2]))
    q = fsm.softmax(rng.standard_normal(rows.shape).astype(dtype))
    all_options: list[dict[str, Any]] = [
        {"ignore_index": -1},
        {"label_smoothing": 0.1, "z_loss": 0.01},
    ]
    if x.itemsize > 2:
        all_options[1]["weight"] = rng.random(n).astype(dtype)
    with np.errstate(invalid="ignore"):
        for options in all_options:
            targets, of_rows = (t, t.ravel()) if "ignore_index" in options else (q, q)
            if targets is q:
                targets = q.reshape(shape[0], shape[2], n).transpose(0, 2, 1).copy()
            loss, grad = both(rows, of_rows, **options)
            grad = grad.reshape(shape[0], shape[2], n).transpose(0, 2, 1)
            got = both(x, targets, axis=1, **options)
            assert_same_bits(got[0].ravel(), loss)
            assert_same_bits(got[1], grad)
            out = x.copy()
            assert_same_bits(both(out, targets, axis=1, out=out, **options)[0], got[0])
            assert_same_bits(out, grad)
            x0, rows0 = (np.where(np.isfinite(a), a, np.zeros_like(a)) for a in (x, rows))
            mean = fsm.cross_entropy(x0, targets, 1, **options)
            assert_same_bits(mean, fsm.cross_entropy(rows0, of_rows, **options))


def test_blocks_of_large_arrays(rng: np.random.Generator) -> None:
    """The axis and the types make it go through more blocks than one."""
    x = rng.standard_normal((6, 90, 1500))
    targets = rng.integers(0, 90, (6, 1500))
    loss, grad = fsm.cross_entropy(x, targets, 1, reduction="none", return_grad=True)
    rows = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, 90)
    expected = both(rows, targets.reshape(-1))
    assert_same_bits(loss.reshape(-1), expected[0])
    assert_same_bits(grad, expected[1].reshape(6, 1500, 90).transpose(0, 2, 1))
    where = rng.random(x.shape) < 0.9
    masked = np.where(where, x, -np.inf)
    targets = where.argmax(axis=1)
    loss, grad = fsm.cross_entropy(x, targets, 1, where=where, return_grad=True)
    expected = fsm.cross_entropy(masked, targets, 1, return_grad=True)
    assert loss == expected[0]
    assert_same_bits(grad, expected[1])


@every_dtype
def test_where(dtype: Any, rng: np.random.Generator) -> None:
    """What is not kept is as if it were not there."""
    x = rng.standard_normal((8, 12)).astype(dtype)
    where = np.zeros(x.shape, bool)
    where[:, [1, 4, 5, 9]] = True
    t, w = rng.integers(0, 4, 8), rng.random(12).astype(dtype)
    full_t = np.array([1, 4, 5, 9])[t]
    q = rng.dirichlet(np.ones(12), 8).astype(dtype)
    kept = np.ix_(range(8), [1, 4, 5, 9])
    junk = np.where(where, x, np.nan)
    u = np.finfo(dtype).eps
    for options in ({}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "z_loss": 0.1}):
        got = both(junk, full_t, where=where, weight=w, **options)
        expected = both(x[kept], t, weight=w[[1, 4, 5, 9]], **options)
        np.testing.assert_allclose(got[0], expected[0], rtol=8 * u)
        np.testing.assert_allclose(got[1][kept], expected[1], rtol=8 * u, atol=8 * u)
        assert (got[1][~where] == 0).all()
        got = both(junk, np.where(where, q, 0), where=where, **options)
        expected = both(x[kept], q[kept], **options)
        np.testing.assert_allclose(got[0], expected[0], rtol=8 * u)
        np.testing.assert_allclose(got[1][kept], expected[1], rtol=8 * u, atol=8 * u)
    loss, grad = both(x, np.zeros(8, int), where=where)  # targets that are not kept
    assert (loss == np.inf).all() and (grad[~where] == 0).all()
    loss, grad = both(x, full_t, where=np.zeros_like(where))  # nothing is
    assert (loss == np.inf).all() and (grad == 0).all()
    loss, grad = both(x, full_t, where=np.zeros_like(where), ignore_index=int(full_t[0]))
    assert (loss == np.where(full_t == full_t[0], 0, np.inf)).all() and (grad == 0).all()


def test_masked_arrays(rng: np.random.Generator) -> None:
    x = np.ma.MaskedArray(rng.standard_normal((3, 4)), rng.random((3, 4)) < 0.3)
    targets = (~x.mask).argmax(axis=1)
    loss, grad = both(x, targets)
    expected = both(x.data, targets, where=~x.mask)
    assert type(loss) is np.ndarray and isinstance(grad, np.ma.MaskedArray)
    assert_same_bits(loss, expected[0])
    assert_same_bits(grad.data, expected[1])
    assert (grad.mask == x.mask).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("n", [5, 80, 400])
def test_special_rows(dtype: Any, n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, n)).astype(dtype)
    x[0, 1], x[1, 2], x[2] = np.nan, np.inf, -np.inf
    x[3, 0] = x[4, 3] = -np.inf
    t = np.array([0, 0, 0, 0, 0, 1])
    with np.errstate(invalid="ignore"):
        loss, grad = both(x, t)
    assert np.isnan(loss[:3]).all() and np.isnan(grad[:3]).all()
    assert loss[3] == np.inf and grad[3, 0] == -1  # -log(0)
    assert np.isfinite(loss[4:]).all() and np.isfinite(grad[3:]).all() and grad[4, 3] == 0
    with np.errstate(invalid="raise"):
        both(x[[0, 3, 4, 5]], t[[0, 3, 4, 5]])
        for bad in (1, 2):
            with pytest.raises(FloatingPointError):
                both(x[bad : bad + 1], t[:1])
        loss, grad = both(x, np.array([7, 7, 7, 0, 0, 1]), ignore_index=7)  # they do not count
    assert (loss[:3] == 0).all() and (grad[:3] == 0).all()
    q = np.zeros(x.shape, dtype)
    q[:, 1] = 1
    loss, grad = both(x[3:], q[3:])  # a target of 0 does not ask for log(0)
    assert np.isfinite(loss).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", range(2, 18))
def test_rows_of_a_few_side_by_side(dtype: Any, n: int, rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((200, n))).astype(dtype)
    x[::7, -1] += 30  # sure, rightly or wrongly
    x[170] *= 1000  # not tame: nor are its neighbours computed side by side
    t, weight = rng.integers(n, size=len(x)), rng.random(n).astype(dtype)
    t[::5] = n - 1
    weight[0] = 0
    for options in ({}, {"weight": weight}, {"ignore_index": 1}, {"weight": -weight}):
        more: dict[str, Any] = {"reduction": "none", "return_grad": True, **options}
        alone = [fsm.cross_entropy(x[i], t[i], **more) for i in range(len(x))]
        losses, gradients = (np.stack(results) for results in zip(*alone, strict=True))
        for first, count in ((0, 31), (1, 32), (2, 33), (3, 127), (4, 129), (5, 160), (0, 200)):
            some = slice(first, first + count)
            among = np.zeros((count + 2, n), dtype)
            loss, _ = fsm.cross_entropy(x[some], t[some], **more, out=among[1:-1])
            assert_same_bits(loss, losses[some])
            assert_same_bits(among[1:-1], gradients[some])
            assert not among[[0, -1]].any(), "written beyond the result"
            itself = x[some].copy()
            fsm.cross_entropy(itself, t[some], **more, out=itself)
            assert_same_bits(itself, gradients[some])
            without = fsm.cross_entropy(x[some], t[some], **{**more, "return_grad": False})
            assert_same_bits(without, losses[some])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 5, 18, 40, 200, 700])
def test_whatever_the_neighbours_are(dtype: Any, n: int, rng: np.random.Generator) -> None:
    """Tame rows, masked, shifted, sure and wide ones, and rows without a maximum."""
    x = 3 * rng.standard_normal((300, n))
    x[rng.random(x.shape) < 0.03] = -np.inf
    x[::3] += rng.choice([-1000, 1000, 0])
    x[::5] *= 30
    x[::7, -1] += 40
    for value in (np.nan, np.inf, -np.inf):
        x[rng.integers(len(x), size=3), 0] = value
    x[11] = -np.inf
    x, t = x.astype(dtype), rng.integers(n, size=len(x))
    q = rng.random(x.shape).astype(dtype)
    for targets, options in ((t, {}), (t, {"label_smoothing": 0.1}), (t, {"z_loss": 0.5}), (q, {})):
        more: dict[str, Any] = {"reduction": "none", "return_grad": True, **options}
        with np.errstate(all="ignore"):
            loss, grad = fsm.cross_entropy(x, targets, **more)
            for i in range(len(x)):
                own_loss, own_grad = fsm.cross_entropy(x[i : i + 1], targets[i : i + 1], **more)
                assert_same_bits(own_loss, loss[i : i + 1])
                assert_same_bits(own_grad, grad[i : i + 1])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_16_bits_are_rounded_once(dtype: Any, rng: np.random.Generator) -> None:
    """Loss and gradient are those of float32, rounded: also where they are subnormal."""
    for n in (3, 100, 5000):
        x, t = (5 * rng.standard_normal((64, n))).astype(dtype), rng.integers(n, size=64)
        t[5] = -1
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
            more: dict[str, Any] = {"ignore_index": -1, "return_grad": True, **options}
            loss, grad = fsm.cross_entropy(x, t, **more)
            wide_loss, wide_grad = fsm.cross_entropy(x.astype(np.float32), t, **more)
            assert loss.dtype == grad.dtype == dtype
            assert_same_bits(grad, wide_grad.astype(dtype))
            assert abs(float(loss) - float(wide_loss)) <= float(np.spacing(loss)) / 2
            along_0 = fsm.cross_entropy(x.T, t, axis=0, **more)
            assert_same_bits(along_0[1], grad.T)
            same = x.copy()
            assert_same_bits(fsm.cross_entropy(same, t, out=same, **more)[1], grad)


def test_reductions(rng: np.random.Generator) -> None:
    x, t, w = rng.standard_normal((9, 4)), rng.integers(0, 4, 9), rng.random(4)
    each, _ = both(x, t, weight=w, ignore_index=1)
    total, of_sum = fsm.cross_entropy(
        x, t, weight=w, ignore_index=1, reduction="sum", return_grad=True
    )
    mean, of_mean = fsm.cross_entropy(x, t, weight=w, ignore_index=1, return_grad=True)
    kept = w[t[t != 1]].sum()
    np.testing.assert_allclose(total, each.sum(), rtol=1e-14)
    np.testing.assert_allclose(mean, each.sum() / kept, rtol=1e-14)
    np.testing.assert_allclose(of_mean, of_sum / kept, rtol=1e-14)
    q = rng.dirichlet(np.ones(4), 9)
    each, _ = both(x, q, weight=w)
    np.testing.assert_allclose(fsm.cross_entropy(x, q, weight=w), each.mean(), rtol=1e-14)
    for dtype in (np.float32, np.float64, np.longdouble):
        loss, grad = fsm.cross_entropy(
            x.astype(dtype), np.full(9, 2), ignore_index=2, return_grad=True
        )
        assert np.isnan(loss) and (grad == 0).all()
    assert np.isnan(fsm.cross_entropy(np.empty((0, 3)), np.empty(0, int)))
    assert fsm.cross_entropy(np.empty((0, 3)), np.empty(0, int), reduction="sum") == 0


def test_result_types() -> None:
    for dtype in (np.float16, np.float32, np.float64, np.longdouble):
        loss, grad = fsm.cross_entropy(np.ones(3, dtype), 1, return_grad=True)
        assert type(loss) is np.dtype(dtype).type and grad.dtype == dtype
    assert type(fsm.cross_entropy([1, 2], 0)) is np.float64
    assert type(fsm.cross_entropy([1.0, 2], 0, reduction="none")) is np.float64
    assert fsm.cross_entropy([[1.0, 2]], np.uint8([1]), reduction="none").shape == (1,)
    x, t = np.linspace(0, 1, 30).reshape(10, 3), np.arange(10) % 3
    expected = fsm.cross_entropy(x, t)
    for kind in (*"bBhHiIlLqQ", ">i4", ">i8"):
        assert fsm.cross_entropy(x, t.astype(kind)) == expected
    assert fsm.cross_entropy(x, np.stack([t, t], axis=1)[:, 0]) == expected
    assert fsm.cross_entropy(x, t.tolist()) == expected
    with pytest.raises(IndexError, match=r"targets\[0\] is 18446744073709551615"):
        fsm.cross_entropy(x, np.full(10, 2**64 - 1, np.uint64))


def test_errors_come_before_anything_is_written() -> None:
    x, t = np.zeros((2, 3)), np.array([0, 1])
    out = np.full_like(x, 7)

    def fails(error: Any, message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            fsm.cross_entropy(*arguments, **{"return_grad": True, "out": out, **options})
        assert (out == 7).all()

    fails(IndexError, r"targets\[1\] is 3; an index from 0 to 2", x, [0, 3])
    fails(IndexError, r"targets\[0\] is -1; .* or -100", x, [-1, -100], ignore_index=-100)
    fails(IndexError, r"targets\[1, 2\] is 9", np.zeros((2, 3, 4)), [[0, 1, 2], [0, 0, 9]])
    fails(ValueError, r"targets has dtype int64 and shape \(3,\)", x, [0, 1, 2])
    fails(ValueError, r"targets has dtype float64 and shape \(2,\)", x, [0.0, 1.0])
    fails(ValueError, r"targets has dtype bool", x, x > 0)
    fails(TypeError, r"targets has dtype complex128", x, x * 1j)
    fails(ValueError, r"weight has shape \(2,\); \(3,\)", x, t, weight=[1, 2])
    fails(ValueError, r"label_smoothing must be from 0 to 1, not 2", x, t, label_smoothing=2)
    fails(ValueError, r"z_loss must be finite", x, t, z_loss=np.inf)
    fails(ValueError, r"ignore_index is for targets that are indices", x, x, ignore_index=1)
    fails(ValueError, r"reduction is 'avg'", x, t, reduction="avg")
    fails(ValueError, r"out takes the gradient", x, t, return_grad=False)
    fails(TypeError, r"out has dtype float32", x, t, out=np.zeros((2, 3), np.float32))
    fails(ValueError, r"out has shape \(3, 2\)", x, t, out=np.zeros((3, 2)))
    fails(ValueError, r"no class along axis -1", np.zeros((2, 0)), t)
    fails(np.exceptions.AxisError, r"axis 5", x, t, 5)
    fails(ValueError, r"where has shape", x, t, where=np.ones(7, bool))


def test_memory_that_is_shared(rng: np.random.Generator) -> None:
    """out in the memory of the targets, or half over the logits."""
    memory = rng.standard_normal(60)
    x, out = memory[:48].reshape(6, 8), memory[12:].reshape(6, 8)
    t = rng.integers(0, 8, 6)
    expected = both(x.copy(), t)
    got = both(x, t, out=out)
    assert_same_bits(got[0], expected[0])
    assert_same_bits(out, expected[1])
    x, q = rng.standard_normal((6, 8)), rng.dirichlet(np.ones(8), 6)
    expected = both(x, q)
    got = both(x, q, out=q)
    assert_same_bits(q, expected[1])


@pytest.mark.parametrize("shape", [(200_000, 10), (4000, 500), (40, 60_000)])
def test_takes_no_memory(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x, t = rng.standard_normal(shape, np.float32), rng.integers(0, shape[1], shape[0])
    out = np.empty_like(x)
    tracemalloc.start()
    fsm.cross_entropy(x, t, return_grad=True, label_smoothing=0.1, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1 << 21 and peak < x.nbytes / 3
