"""What callers may pass, turned into rows and back; every error about it comes from here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax import _native

Array = NDArray[Any]
Axis = int | Sequence[int] | None

# What arrays of other libraries are known by; NumPy would convert most of them without a word.
FOREIGN = (
    "__array__",
    "__array_interface__",
    "__array_namespace__",
    "__array_ufunc__",
    "__cuda_array_interface__",
    "__dlpack__",
)


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def to_array(name: str, value: ArrayLike) -> Array:
    """The argument called `name` as an array, if that is what NumPy users mean by it."""
    if isinstance(value, np.ndarray):
        foreign = type(value).__array_ufunc__ is not np.ndarray.__array_ufunc__
    else:
        foreign = not isinstance(value, np.generic) and any(hasattr(value, a) for a in FOREIGN)
    if foreign:
        raise TypeError(
            f"{name} is a {_type_name(value)}, which has rules of its own; "
            f"convert it to a numpy.ndarray first (for instance with numpy.asarray)"
        )
    return np.asanyarray(value)


def plain(name: str, value: Any) -> Array:
    array = to_array(name, value)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; only x (and out) may be one")
    return np.asarray(array)


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.char in "efdg" or dtype.name == "bfloat16"


def result_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What is computed from the argument called `name`: floats stay, integers give float64."""
    if dtype.char in "?bBhHiIlLqQpP":
        return np.dtype(np.float64)
    if not is_float(dtype):
        raise TypeError(f"{name} has dtype {dtype.name}; real numbers are expected")
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What computes a result type: float32 for 16 bits, float64 for a longdouble of 64 bits."""
    if dtype.itemsize <= 4:
        return np.dtype(np.float32)
    return dtype if dtype.itemsize > 8 else np.dtype(np.float64)


def contiguous(x: Array, dtype: DTypeLike | None = None) -> Array:
    """x in native byte order, aligned and C-contiguous: as it is, or a copy."""
    y = np.asarray(x, dtype, order="C")
    return y if y.flags.aligned else y.copy()


def in_dtype(y: Array, dtype: np.dtype[Any]) -> Array:
    """y in that dtype; NumPy takes long to a float16 that is subnormal."""
    if y.dtype != np.float32 or dtype.itemsize != 2:
        return y.astype(dtype, copy=False)
    rounded = np.empty(y.shape, dtype)
    _native.narrow(contiguous(y), rounded)
    return rounded


PART = 2**18  # bytes that stay in the cache


class Axes:
    """
    The reduced axes of an array, and the way to rows and back.

    Attributes
    ----------
    shape : the shape of the array.
    reduced : the reduced axes, in order.
    batch : the shape without them.
    kept : the shape with 1 in their place.
    order : all axes, the reduced ones last.
    in_order : whether that is their order already.
    """

    def __init__(self, shape: tuple[int, ...], axis: Axis) -> None:
        ndim = len(shape)
        self.shape = shape
        if axis is None or (not shape and axis in (0, -1)):
            self.reduced = tuple(range(ndim))
        else:
            try:
                self.reduced = tuple(sorted(normalize_axis_tuple(axis, ndim, "axis")))
            except TypeError:
                raise TypeError(
                    f"axis is {axis!r}; an int, some of them or None is expected"
                ) from None
        rest = tuple(i for i in range(ndim) if i not in self.reduced)
        self.batch = tuple(shape[i] for i in rest)
        self.kept = tuple(1 if i in self.reduced else n for i, n in enumerate(shape))
        self.order = rest + self.reduced
        self.in_order = self.order == tuple(range(ndim))

    @property
    def n(self) -> int:
        """The length of a row."""
        return math.prod(self.shape[i] for i in self.reduced)

    def rows(self, x: Array, dtype: DTypeLike | None = None) -> Array:
        """batch + (n,), contiguous; a view where x allows it."""
        moved = x if self.in_order else x.transpose(self.order)
        return contiguous(moved, dtype).reshape((*self.batch, self.n))

    def parts(self, *arrays: tuple[Array, DTypeLike]) -> Iterator[tuple[Any, list[Array]]]:
        """
        Contiguous rows of arrays, each of its dtype, with their index into the batch.

        All of them at once where they are there; else part by part, as copies that stay in the
        cache, each made where the last one was.
        """
        moved = [(a.transpose(self.order), np.dtype(dtype)) for a, dtype in arrays]
        whole = all(a.dtype == t and a.flags.c_contiguous and a.flags.aligned for a, t in moved)
        copies = [np.empty(0, dtype) for _, dtype in moved]
        for at in ((),) if whole else self._indices(moved[0][0].nbytes):
            rows = []
            for i, (a, dtype) in enumerate(moved):
                part = a[at]
                if not whole:
                    if copies[i].size < part.size:
                        copies[i] = np.empty(part.size, dtype)
                    copy = copies[i][: part.size].reshape(part.shape)
                    np.copyto(copy, part, casting="unsafe")
                    part = copy
                batch = part.shape[: part.ndim - len(self.reduced)]
                rows.append(part.reshape(*batch, self.n))
            yield at, rows

    def _indices(self, nbytes: int) -> Iterator[tuple[int | slice, ...]]:
        """Indices of the batch, in order: parts of an array of so many bytes."""
        size, k = nbytes, 0  # of what is left when k leading axes are fixed
        while size > PART and k < len(self.batch):
            size //= self.batch[k]
            k += 1
        if k == 0:
            yield ()
            return
        step = max(1, PART // size)
        for lead in np.ndindex(self.batch[: k - 1]):
            for i in range(0, self.batch[k - 1], step):
                yield (*lead, slice(i, i + step))

    def back(self, rows: Array) -> Array:
        """Rows to the original shape, as a view."""
        if self.in_order:
            return rows.reshape(self.shape)
        moved = rows.reshape([self.shape[i] for i in self.order])
        return moved.transpose([self.order.index(i) for i in range(len(self.shape))])

    def columns(self, x: Array) -> Array | None:
        """
        (before, n, after), of an x whose reduced axes are neighbours: as it is, or a copy.

        None where its rows are better taken: they lie in one piece, or are of other axes.
        """
        if not self.reduced:
            return None
        first, end = self.reduced[0], self.reduced[-1] + 1
        if len(self.reduced) != end - first or x.strides[end - 1] == x.itemsize:
            return None
        x = contiguous(x)
        return x.reshape(math.prod(self.shape[:first]), self.n, math.prod(self.shape[end:]))


def room(
    out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: Array | None
) -> Array:
    """Where a kernel writes an array of that shape: out itself where that is as good as new."""
    if (
        type(out) is np.ndarray
        and out.dtype == dtype
        and out.flags.carray
        and not any(a is not None and np.may_share_memory(out, a) for a in inputs)
    ):
        return out.reshape(shape)
    return np.empty(shape, dtype)


def to_mask(where: Any, shape: tuple[int, ...]) -> Array | None:
    """where as an array of bool of that shape."""
    if where is None:
        return None
    mask = plain("where", where)
    if mask.dtype != bool:
        raise TypeError(
            f"where has dtype {mask.dtype.name}; bool is expected (True keeps an element)"
        )
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {mask.shape}, which does not broadcast to that of x, {shape}"
        ) from None


def to_temperature(temperature: Any, axes: Axes, working: np.dtype[Any]) -> Array:
    """The temperature of all rows, of shape (), or of each, of shape `axes.batch`."""
    wide = np.longdouble if working.itemsize > 8 else np.float64
    if type(temperature) is float and 2**-60 < temperature < 2**60:
        return np.asarray(temperature, wide)
    t = plain("temperature", temperature)
    result_dtype("temperature", t.dtype)
    t = t.astype(wide)
    if not (np.isfinite(t) & (t > 0)).all():
        raise ValueError(f"temperature must be positive and finite, not {temperature!r}")
    limits = np.finfo(working)
    with np.errstate(all="ignore"):
        rate = t.dtype.type(math.log2(math.e)) / t
    if not ((rate >= limits.tiny) & (rate <= limits.max)).all():
        raise ValueError(
            f"temperature is {temperature!r}; log2(e) / temperature must be a normal {working.name}"
        )
    if t.size == 1 and t.ndim <= len(axes.shape):
        return t.reshape(())
    try:
        return np.broadcast_to(t, axes.kept).reshape(axes.batch)
    except ValueError:
        raise ValueError(
            f"temperature has shape {t.shape}; it must broadcast to {axes.kept}: "
            f"that of x, with length 1 along the axis"
        ) from None


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], masked: bool = False) -> None:
    """Refuses an out that cannot take the result."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {_type_name(out)}; a numpy.ndarray is expected")
    to_array("out", out)
    if isinstance(out, np.ma.MaskedArray) != masked:
        raise TypeError(
            "out is a plain array, but x is masked: a masked array is expected"
            if masked
            else "out is a masked array, but x is not: a plain array is expected"
        )
    if out.dtype != dtype and out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype.name}; {dtype.name} is expected")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; {shape} is expected")
    if not out.flags.writeable:
        raise ValueError("out is read-only")


def deliver(y: Array, out: Array | None, source: Array, mask: Any) -> Any:
    """y in out, or as what the source is; a scalar where no dimension is left."""
    if out is not None:
        if isinstance(out, np.ma.MaskedArray):
            out.data[...] = y
            out.mask = np.asarray(mask)
        elif not np.may_share_memory(out, y):  # else it is there already
            out[...] = y
        return out
    if not (y.flags.c_contiguous or (y.flags.f_contiguous and source.flags.f_contiguous)):
        y = y.copy()
    if mask is not None:
        masked = np.ma.MaskedArray(y, np.array(mask))
        return masked if y.ndim else masked[()]
    if type(source) is not np.ndarray:
        return source.__array_wrap__(y, None, y.ndim == 0)
    return y if y.ndim else y[()]


def check_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses a Jacobian larger than the machine's memory, before the kernel would swap or kill."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not known here: NumPy will try
        return
    if size > memory:
        raise MemoryError(
            f"the Jacobian, {shape} of {dtype.name}, takes {_in_words(size)}, more than the "
            f"{_in_words(memory)} of this machine; its products with a vector need none of it: "
            f"softmax_vjp(p, g), SoftmaxJacobian(p) @ v, or backward(grad) of the layer"
        )


def _in_words(size: float) -> str:
    return f"{size / 2**40:.1f} TiB" if size >= 2**40 else f"{size / 2**30:.1f} GiB"
