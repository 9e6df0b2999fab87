"""Results too large for the cache are written past it: the same bits, and nothing beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import assert_same_bits

import fastsoftmax as fsm

LARGE = 26 << 20  # bytes of a result that is streamed
PRODUCTS = ["softmax_vjp", "log_softmax_vjp", "log_softmax_jvp"]
JACOBIANS = ["softmax_jacobian", "log_softmax_jacobian"]


def between_guards(shape: tuple[int, ...], dtype: type, offset: int) -> tuple[Any, Any]:
    """An array that begins `offset` elements after a line of the cache, and all of its memory."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, 7, dtype)
    first = (-memory.ctypes.data % 64) // memory.itemsize + 16 + offset
    return memory[first : first + size].reshape(shape), memory


def assert_guards(memory: Any, inner: Any) -> None:
    first = (inner.ctypes.data - memory.ctypes.data) // memory.itemsize
    assert (memory[:first] == 7).all() and (memory[first + inner.size :] == 7).all()


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 10, 70, 1003, LARGE // 4])
@pytest.mark.parametrize("offset", [0, 13])
def test_products(name: str, dtype: Any, n: int, offset: int, rng: np.random.Generator) -> None:
    shape = (LARGE // np.dtype(dtype).itemsize // n or 1, n)
    p = fsm.softmax(rng.standard_normal(shape, dtype))
    v = rng.standard_normal(shape, dtype)
    function = getattr(fsm, name)
    out, memory = between_guards(shape, dtype, offset)
    assert function(p, v, out=out) is out
    assert_guards(memory, out)
    if n < 2000:
        for i in range(0, len(p), len(p) // 3):
            few = slice(i, i + 100)
            assert_same_bits(out[few], function(p[few], v[few]))
    else:
        wide = p.astype(float)
        share = v - wide * v.sum(dtype=float)
        change = v - (wide * v).sum()
        expected = {"log_softmax_vjp": share, "log_softmax_jvp": change}.get(name, wide * change)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-12)
    assert_same_bits(function(p.copy(), v, out=p), out)  # in place


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [5, 20, 70])
@pytest.mark.parametrize("more", [1, 7])
def test_last_columns(name: str, dtype: Any, n: int, more: int, rng: np.random.Generator) -> None:
    """Those that are left where columns go together by 64 or more."""
    shape = (n, LARGE // np.dtype(dtype).itemsize // n // 1024 * 1024 + more)
    x = 3 * rng.standard_normal(shape, dtype)
    function = getattr(fsm, name)
    assert_same_bits(function(x, axis=0).T[-100:], function(x.T[-100:].copy()))


@pytest.mark.parametrize("name", JACOBIANS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, 8, 10, 16, 17, 100, 255, 256, 511, 512, 1003, 3000])
def test_jacobians(name: str, dtype: type, n: int, rng: np.random.Generator) -> None:
    rows = LARGE // np.dtype(dtype).itemsize // n**2 + 1
    p = fsm.softmax(rng.standard_normal((rows, n)).astype(dtype))
    function = getattr(fsm, name)
    out, memory = between_guards((rows, n, n), dtype, 5)
    assert function(p, out=out) is out
    assert_guards(memory, out)
    if n <= 511:
        for i in range(0, rows, rows // 3):
            assert_same_bits(out[i : i + 2], function(p[i : i + 2]))
    left = (p if name == "softmax_jacobian" else np.ones_like(p))[-1, :, None]
    plain = 0 - left * p[-1]
    np.fill_diagonal(plain, np.diagonal(out[-1]))
    assert_same_bits(out[-1], plain)
