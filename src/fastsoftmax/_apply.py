"""Arrays in files, block by block: memory-mapped in, memory-mapped out, whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastsoftmax
from fastsoftmax import _native
from fastsoftmax._arguments import (
    Array,
    Axes,
    contiguous,
    result_dtype,
    to_temperature,
    working_dtype,
)

BLOCK = 2**20  # elements at a time

Progress = Callable[[int], Any]  # called with the number of elements just read


def open_array(path: Path) -> Array:
    """The array of a .npy file, memory-mapped and never unpickled."""
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("not a .npy file")
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "mmap length" in str(error):
            raise ValueError("truncated: it is shorter than its header says") from None
        raise
    return array


def apply(
    source: Path, target: Path, function: str, axis: int, temperature: float, progress: Progress
) -> None:
    """Writes the function of the array in one .npy file to another, in the order of the first."""
    x = open_array(source)
    dtype = result_dtype("the array", x.dtype)
    axes = Axes(x.shape, axis)
    to_temperature(temperature, axes, working_dtype(dtype))
    reduces = function == "logsumexp"
    fortran = x.flags.f_contiguous and not x.flags.c_contiguous
    with _whole_file(target, axes.batch if reduces else x.shape, dtype, fortran) as y:
        if x.ndim == 0 or x.size == 0:
            y[...] = getattr(fastsoftmax, function)(x, axis)
            return
        at = axes.reduced[0]
        source_view, target_view, at = (x.T, y.T, x.ndim - 1 - at) if fortran else (x, y, at)
        before, n, after = _around(source_view.shape, at)
        x3 = source_view.reshape(before, n, after)
        y3 = target_view.reshape(before, 1 if reduces else n, after)
        compute = _long_rows if _in_parts(n, dtype) else _block
        for i, j in _blocks(before, n, after):
            compute(x3[i, :, j], y3[i, :, j], function, temperature, progress)


def work(path: Path, axis: int, function: str) -> int:
    """How many elements `apply` will read, some of them more than once."""
    x = open_array(path)
    if not x.ndim or not _in_parts(Axes(x.shape, axis).n, result_dtype("the array", x.dtype)):
        return x.size
    return x.size * (2 if function == "logsumexp" else 3)


def _in_parts(n: int, dtype: np.dtype[Any]) -> bool:
    """Whether rows of n elements are computed in parts: long ones, where a kernel is there."""
    return n > BLOCK and working_dtype(dtype).itemsize <= 8


def _around(shape: tuple[int, ...], at: int) -> tuple[int, int, int]:
    """The sizes before, of, and after an axis."""
    return math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :])


def _steps(length: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def _blocks(before: int, n: int, after: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the first and the last axis, of about BLOCK elements or of rows that are longer."""
    columns = min(after, max(BLOCK // n, BLOCK // 2**16, 1))  # some, to read what lies side by side
    rows = max(1, BLOCK // (n * columns)) if columns == after else 1
    for i in _steps(before, rows):
        for j in _steps(after, columns):
            yield i, j


def _block(x: Array, y: Array, function: str, temperature: float, progress: Progress) -> None:
    """A block of whole rows along its middle axis."""
    if function == "logsumexp":
        y[...] = fastsoftmax.logsumexp(x, 1, keepdims=True)
    else:
        y[...] = getattr(fastsoftmax, function)(x, 1, temperature=temperature)
    progress(x.size)


def _long_rows(x: Array, y: Array, function: str, temperature: float, progress: Progress) -> None:
    """x of shape (1, n, rows), part by part: the maxima, the partition functions, the results."""
    _, n, rows = x.shape
    working = working_dtype(result_dtype("x", x.dtype))
    scale = -64 if temperature > 2.0**64 else 0  # as for all arrays: no threshold may overflow
    temperature = math.ldexp(temperature, scale)

    def parts() -> Iterator[tuple[slice, Array]]:
        for i in _steps(n, max(BLOCK // rows, 1)):
            part = contiguous(x[0, i].T, working)
            yield i, np.ldexp(part, scale) if scale else part
            progress((i.stop - i.start) * rows)

    largest = np.full(rows, -np.inf, working)
    for _, part in parts():
        largest = np.maximum(largest, part.max(axis=1))
    without = ~np.isfinite(largest)
    partition = np.zeros((rows, 4))
    partition[:, 0] = np.where(without, 0, largest)
    for _, part in parts():
        _native.partition_rows(part, part, partition, temperature)
    if function == "logsumexp":
        top = partition[:, :1].astype(working)
        _native.log_softmax_part_rows(top, log := np.empty_like(top), partition, 1.0)
        y[0, 0] = np.where(without, largest, (top - log)[:, 0])
        return
    # as for any such row: NaN, with NumPy's signal where it is due
    spoilt = getattr(fastsoftmax, function)(np.stack([largest, largest], axis=1))[without, :1]
    finish = _native.softmax_part_rows if function == "softmax" else _native.log_softmax_part_rows
    for i, part in parts():
        result = np.empty_like(part)
        finish(part, result, partition, temperature)
        result[without] = spoilt
        y[0, i] = result.T


@contextlib.contextmanager
def _whole_file(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
) -> Iterator[Array]:
    """A new .npy file beside `path`, mapped to be written; renamed to `path` when whole."""
    name = None
    try:
        descriptor, name = tempfile.mkstemp(f"{path.suffix}.part", f".{path.stem}.", path.parent)
        with os.fdopen(descriptor, "w+b") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": fortran,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start, size = file.tell(), math.prod(shape) * dtype.itemsize
            _reserve(file.fileno(), start, size)
        if size:
            y = np.memmap(name, dtype, "r+", start, shape, "F" if fortran else "C")
            yield y
            y.flush()
        else:
            yield np.empty(shape, dtype)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # as open() would have made it
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Room on the disk: writing through a map to a full one would kill the process."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, size)
    elif size:
        os.lseek(descriptor, start, os.SEEK_SET)
        for i in _steps(size, 2**24):
            os.write(descriptor, bytes(i.stop - i.start))
