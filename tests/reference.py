"""The slow, obvious twin of every function, in much more precision than any result type has.

Nothing here comes from the library. Results are `Exact`: a mantissa in three parts and an exponent,
so that values beyond the range of every NumPy type are held too. `ulp_error` says how far a result
is from one, in units in the last place of the result type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import ml_dtypes

    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:  # pragma: no cover - it is a test dependency, but not built for every Python
    BFLOAT16 = None
Array = NDArray[Any]
Axis = int | tuple[int, ...] | None
WIDE = np.longdouble
PART = 48  # bits in each part of a mantissa: exact in float64 and wider
BITS = 3 * PART
CONTEXT = mpmath.MPContext()
CONTEXT.prec = 160


def _limits(dtype: Any) -> tuple[int, int, int]:
    info = np.finfo(dtype)
    return int(info.nmant) + 1, int(info.minexp), int(info.maxexp)


# precision in bits, exponent of the smallest normal number, first exponent that overflows
FORMATS = {np.dtype(t): _limits(t) for t in (np.float16, np.float32, np.float64, np.longdouble)}
if BFLOAT16 is not None:
    FORMATS[BFLOAT16] = (8, -126, 128)

FLOATS = list(FORMATS)
SHORT = [t for t in FLOATS if FORMATS[t][0] <= 11]  # computed in float32, then rounded


class Exact(NamedTuple):
    """(high + middle + low) * 2**exponent; zeros, infinities and NaN sit in high."""

    high: Array
    middle: Array
    low: Array
    exponent: Array

    def map(self, function: Callable[[Array], Array]) -> Exact:
        return Exact(*(function(part) for part in self))

    def approximate(self) -> Array:
        """The value rounded to longdouble (it may overflow or underflow there)."""
        with np.errstate(all="ignore"):
            return np.ldexp(
                self.high + (self.middle + self.low), np.clip(self.exponent, -40000, 40000)
            )


def widen(x: ArrayLike) -> Array:
    """Any real array as longdouble, exactly."""
    x = np.asarray(x)
    return x.astype(np.float32).astype(WIDE) if x.dtype == BFLOAT16 else x.astype(WIDE)


def from_wide(x: Array) -> Exact:
    """The values of a longdouble array."""
    finite = np.isfinite(x)
    mantissa, exponent = np.frexp(np.where(finite, x, 0))
    scaled = np.ldexp(mantissa, PART)
    high = np.trunc(scaled)
    low = np.ldexp(scaled - high, -PART)
    return Exact(
        np.where(finite, np.ldexp(high, -PART), x),
        low,
        np.zeros_like(low),
        exponent.astype(np.int64),
    )


def from_mp(values: list[Any], shape: tuple[int, ...]) -> Exact:
    """The values of a flat list of mpmath numbers."""
    parts: list[list[float]] = [[], [], []]
    exponents = []
    for value in values:
        sign, mantissa, exponent, bits = value._mpf_
        if not mantissa:  # 0, an infinity or NaN
            pieces = (float(value), 0, 0)
        else:
            mantissa = mantissa << (BITS - bits) if bits <= BITS else mantissa >> (bits - BITS)
            mantissa = -mantissa if sign else mantissa
            high, rest = divmod(mantissa, 2 ** (2 * PART))
            pieces = (high * 2.0**-PART, *(p * 2.0**-PART for p in divmod(rest, 2**PART)))
        exponents.append(min(max(exponent + bits, -(2**40)), 2**40) if mantissa else 0)
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    scaled = [
        np.array(p, dtype=WIDE).reshape(shape) * WIDE(2.0 ** (-PART * i))
        for i, p in enumerate(parts)
    ]
    return Exact(*scaled, np.array(exponents, dtype=np.int64).reshape(shape))


def to_mp(x: ArrayLike) -> list[Any]:
    """A flat list of mpmath numbers with exactly the values of x."""
    wide = widen(x).ravel()
    finite = np.isfinite(wide)
    mantissa, exponent = np.frexp(np.where(finite, wide, 0))
    return [
        CONTEXT.ldexp(CONTEXT.mpf(int(m)), int(e) - 128) if ok else CONTEXT.mpf(float(v))
        for m, e, ok, v in zip(np.ldexp(mantissa, 128), exponent, finite, wide, strict=True)
    ]


def ulp_error(got: ArrayLike, exact: Exact, dtype: Any) -> Array:
    """|got - exact| in units in the last place of exact's binade, subnormal numbers included.

    An infinity in place of a value too large for dtype counts as the number after the largest.
    NaN where NaN is due is 0; NaN, or another infinity, where it is not due is inf.
    """
    bits, lowest, highest = FORMATS[np.dtype(dtype)]
    wide = widen(got)
    shape = exact.high.shape
    assert wide.shape == shape, f"shape {wide.shape}, should be {shape}"
    high, exponent = exact.high, exact.exponent
    is_zero = high == 0
    exponent = np.where(is_zero, lowest + 1, exponent)
    last_place = np.maximum(exponent, lowest + 1) - bits
    mantissa, got_exponent = np.frexp(
        np.where(np.isfinite(wide), wide, np.copysign(WIDE(0.5), wide))
    )
    got_exponent = np.where(np.isinf(wide), highest + 1, got_exponent)
    with np.errstate(all="ignore"):
        shift = np.clip(got_exponent - exponent, -40000, 40000)
        difference = np.ldexp(mantissa, shift.astype(np.intc)) - high - exact.middle - exact.low
        error = np.ldexp(
            np.abs(difference), np.clip(exponent - last_place, -40000, 40000).astype(np.intc)
        )
    too_large = np.isinf(wide) & (np.sign(wide) == np.sign(high)) & (exponent > highest)
    same = (np.isnan(wide) & np.isnan(high)) | (np.isinf(wide) & (wide == high)) | too_large
    different = (np.isnan(wide) != np.isnan(high)) | (np.isinf(high) & (wide != high))
    return np.where(same, 0, np.where(different, np.inf, error)).astype(np.float64)


def _row(x: list[Any], keep: list[bool], t: Any) -> tuple[list[Any], list[Any], Any]:
    """softmax, log_softmax and logsumexp (of x / t) of one row, with mpmath."""
    zero, infinity, nan = CONTEXT.mpf(0), CONTEXT.inf, CONTEXT.nan
    kept = [i for i, k in enumerate(keep) if k]
    p, logp = [zero] * len(x), [-infinity] * len(x)
    if not kept:
        return p, logp, -infinity
    top = max(kept, key=lambda i: x[i])
    bad = any(CONTEXT.isnan(x[i]) for i in kept)
    if bad or CONTEXT.isinf(x[top]):
        for i in kept:
            p[i] = logp[i] = nan
        return p, logp, nan if bad else x[top]
    below = {i: (x[i] - x[top]) / t for i in kept}
    power = {i: CONTEXT.exp(d) if d > -60000 else zero for i, d in below.items()}
    total = CONTEXT.fsum(power.values())
    rest = CONTEXT.fsum(v for i, v in power.items() if i != top)
    log_total = CONTEXT.log1p(rest)
    for i in kept:
        p[i] = power[i] / total
        logp[i] = below[i] - log_total
    return p, logp, x[top] / t + log_total


def _rows_mp(x: Array, keep: Array, t: Array) -> tuple[Exact, Exact, Exact]:
    rows, n = x.shape
    values, temperatures = to_mp(x), to_mp(t)
    results = [
        _row(values[i * n : i * n + n], keep[i].tolist(), temperatures[i]) for i in range(rows)
    ]
    p = from_mp([v for r in results for v in r[0]], x.shape)
    logp = from_mp([v for r in results for v in r[1]], x.shape)
    return p, logp, from_mp([r[2] for r in results], (rows,))


def _rows_wide(x: Array, keep: Array, t: Array) -> tuple[Exact, Exact, Exact]:
    """The same in longdouble, for results of at most 24 bits: float64 would do as well."""
    rows = np.arange(len(x))
    x = np.where(keep, widen(x), -np.inf)
    if not x.size:
        return from_wide(x), from_wide(x), from_wide(np.full(len(x), -np.inf, dtype=WIDE))
    t = widen(t)
    with np.errstate(all="ignore"):
        top = x.argmax(axis=1)
        largest = x[rows, top]
        below = (x - largest[:, None]) / t[:, None]
        power = np.exp(below)
        others = power.copy()
        others[rows, top] = 0
        rest = others.sum(axis=1)
        log_total = np.log1p(rest)
        p = power / (1 + rest[:, None])
        logp = below - log_total[:, None]
        lse = np.where(np.isinf(largest), largest, largest / t + log_total)
    spoilt = np.isnan(x).any(axis=1) | ~np.isfinite(largest)
    p[spoilt] = logp[spoilt] = np.nan
    return from_wide(np.where(keep, p, 0)), from_wide(np.where(keep, logp, -np.inf)), from_wide(lse)


class Rows(NamedTuple):
    """x with its reduced axes moved to the end and made one, and the way back."""

    x: Array
    batch: tuple[int, ...]
    axes: tuple[int, ...]
    reduced: tuple[int, ...]

    def back(self, exact: Exact) -> Exact:
        n, k = len(self.batch), len(self.axes)
        return exact.map(
            lambda a: np.moveaxis(a.reshape(self.batch + self.reduced), range(n, n + k), self.axes)
        )


def rows_of(x: Array, axis: Axis) -> Rows:
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(sorted(a % x.ndim for a in axes)) if x.ndim else ()
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    reduced = tuple(x.shape[a] for a in axes)
    moved = np.moveaxis(x, axes, range(len(batch), x.ndim))
    n = int(np.prod(reduced, dtype=int))
    return Rows(moved.reshape(int(np.prod(batch, dtype=int)), n), batch, axes, reduced)


def everything(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: Any = None,
    temperature: ArrayLike = 1.0,
    keepdims: bool = False,
) -> tuple[Exact, Exact, Exact]:
    """softmax, log_softmax and logsumexp (of x / temperature) at the price of one."""
    x = np.asarray(x)
    rows = rows_of(x, axis)
    keep = rows_of(np.broadcast_to(True if where is None else np.asarray(where), x.shape), axis).x
    kept = tuple(1 if i in rows.axes else n for i, n in enumerate(x.shape))
    t = np.broadcast_to(np.asarray(temperature), kept).ravel()
    evaluate = _rows_wide if x.dtype in FORMATS and FORMATS[x.dtype][0] <= 24 else _rows_mp
    p, logp, lse = evaluate(rows.x, keep, t)
    shape = kept if keepdims else rows.batch
    return rows.back(p), rows.back(logp), lse.map(lambda a: a.reshape(shape))


def softmax(
    x: ArrayLike, axis: Axis = -1, *, where: Any = None, temperature: ArrayLike = 1.0
) -> Exact:
    return everything(x, axis, where=where, temperature=temperature)[0]


def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, where: Any = None, temperature: ArrayLike = 1.0
) -> Exact:
    return everything(x, axis, where=where, temperature=temperature)[1]


def logsumexp(x: ArrayLike, axis: Axis = -1, *, where: Any = None, keepdims: bool = False) -> Exact:
    return everything(x, axis, where=where, keepdims=keepdims)[2]


def jacobian(x: ArrayLike, axis: Axis = -1, function: str = "softmax") -> Exact:
    """J[..., i, j] = p[i] * ((i == j) - p[j]), with 1 - p[i] as the sum of the others.

    Of log_softmax, J[..., i, j] = (i == j) - p[j].
    """
    rows = rows_of(np.asarray(x), axis)
    count, n = rows.x.shape
    entries = []
    for row in range(count):
        p = _row(to_mp(rows.x[row]), [True] * n, CONTEXT.mpf(1))[0]
        others = [CONTEXT.fsum(p[j] for j in range(n) if j != i) for i in range(n)]
        left = p if function == "softmax" else [1] * n
        entries += [left[i] * (others[i] if i == j else -p[j]) for i in range(n) for j in range(n)]
    return from_mp(entries, (*rows.batch, n, n))


def _softmax_vjp(p: list[Any], k: int, v: list[Any]) -> list[Any]:
    return [a * b for a, b in zip(p, _log_softmax_jvp(p, k, v), strict=True)]


def _log_softmax_jvp(p: list[Any], k: int, v: list[Any]) -> list[Any]:
    h = [a - v[k] for a in v]
    mean = CONTEXT.fdot(p, h)
    return [a - mean for a in h]


def _log_softmax_vjp(p: list[Any], k: int, v: list[Any]) -> list[Any]:
    others = CONTEXT.fsum(a for i, a in enumerate(p) if i != k)
    total = CONTEXT.fsum(v)
    y = [b - a * total for a, b in zip(p, v, strict=True)]
    y[k] = others * v[k] - p[k] * CONTEXT.fsum(b for i, b in enumerate(v) if i != k)
    return y


def _softmax_vjp_derivative(p: list[Any], k: int, v: list[Any], u: list[Any]) -> list[Any]:
    a, b = _log_softmax_jvp(p, k, v), _log_softmax_jvp(p, k, u)
    covariance = CONTEXT.fsum(w * s * t for w, s, t in zip(p, a, b, strict=True))
    return [w * (s * t - covariance) for w, s, t in zip(p, a, b, strict=True)]


PRODUCTS = {
    "softmax_vjp": _softmax_vjp,
    "softmax_jvp": _softmax_vjp,
    "softmax_vjp_derivative": _softmax_vjp_derivative,
    "log_softmax_vjp": _log_softmax_vjp,
    "log_softmax_jvp": _log_softmax_jvp,
}


def product(name: str, x: ArrayLike, *vectors: ArrayLike, axis: Axis = -1) -> Exact:
    """The derivative called `name` at logits x, times one vector or two of the shape of x."""
    rows = rows_of(np.asarray(x), axis)
    others = [rows_of(np.asarray(v), axis).x for v in vectors]
    count, n = rows.x.shape
    entries = []
    for row in range(count):
        values = to_mp(rows.x[row])
        p = _row(values, [True] * n, CONTEXT.mpf(1))[0]
        k = max(range(n), key=lambda i: values[i]) if n else 0
        entries += PRODUCTS[name](p, k, *(to_mp(v[row]) for v in others)) if n else []
    return rows.back(from_mp(entries, (count, n)))


def product_scale(name: str, x: ArrayLike, *vectors: ArrayLike, axis: Axis = -1) -> Array:
    """The size of what is added up in `product`, as longdouble: its conditioning."""
    p, back = everything(x, axis)[0], rows_of(np.asarray(x), axis)
    p, others = rows_of(p.approximate(), axis).x, [rows_of(widen(v), axis).x for v in vectors]
    if not p.size:
        return np.zeros(np.shape(x), WIDE)
    top = back.x.argmax(axis=1)[:, None]
    h = [np.abs(v - np.take_along_axis(v, top, axis=1)) for v in others]
    mean = [(p * a).sum(axis=1, keepdims=True) for a in h]
    if name in ("softmax_vjp", "softmax_jvp"):
        scale = p * (h[0] + mean[0])
    elif name == "log_softmax_jvp":
        scale = h[0] + mean[0]
    elif name == "log_softmax_vjp":
        v = np.abs(others[0])
        less = np.where(np.arange(p.shape[1]) == top, 0, p).sum(axis=1, keepdims=True)
        less = np.where(np.arange(p.shape[1]) == top, less, 1 - p)
        scale = less * v + p * (v.sum(axis=1, keepdims=True) - v)
    else:
        product = (p * h[0] * h[1]).sum(axis=1, keepdims=True)
        scale = p * ((h[0] + mean[0]) * (h[1] + mean[1]) + product + mean[0] * mean[1])
    return back.back(from_wide(scale)).approximate()


def cross_entropy(
    x: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Exact, Exact]:
    """The loss of each row of x, of two dimensions, and its gradient."""
    x, targets = np.asarray(x), np.asarray(targets)
    count, n = x.shape
    w = [CONTEXT.mpf(1)] * n if weight is None else to_mp(weight)
    smoothing, z_factor = CONTEXT.mpf(label_smoothing), CONTEXT.mpf(z_loss)
    losses: list[Any] = []
    gradients: list[Any] = []
    for row in range(count):
        if targets.ndim == 1 and targets[row] == ignore_index:
            losses += [CONTEXT.mpf(0)]
            gradients += [CONTEXT.mpf(0)] * n
            continue
        p, log_p, log = _row(to_mp(x[row]), [True] * n, CONTEXT.mpf(1))
        if targets.ndim == 1:
            q, w_row = [CONTEXT.mpf(int(i == targets[row])) for i in range(n)], w[targets[row]]
        else:
            q, w_row = to_mp(targets[row]), CONTEXT.mpf(1)
        a = [v * ((1 - smoothing) * b + smoothing / n) for v, b in zip(w, q, strict=True)]
        z = z_factor * w_row * log
        losses += [CONTEXT.fsum(-b * c for b, c in zip(a, log_p, strict=True) if b) + z * log]
        less = [1 - b for b in p]
        top = max(range(n), key=lambda i: p[i])
        less[top] = CONTEXT.fsum(b for i, b in enumerate(p) if i != top)
        total = CONTEXT.fsum(a)
        gradients += [p[i] * (total - a[i] + 2 * z) - less[i] * a[i] for i in range(n)]
    return from_mp(losses, (count,)), from_mp(gradients, x.shape)
