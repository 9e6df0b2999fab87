"""Linear operators: square matrices, one for each element of a batch, known by their products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax._arguments import Array, result_dtype, to_array

if TYPE_CHECKING:
    import scipy.sparse.linalg


class LinearOperator:
    """
    A square matrix for each element of a batch, which is never built.

    Attributes
    ----------
    shape : tuple of int
        batch + (n, n).
    dtype : dtype
        Of its products; what it multiplies is converted to that.

    Notes
    -----
    Sums, differences, negatives, products with a number and with each other (``+``, ``-``, ``*``,
    ``/``, ``@``) are operators again, whose products cost what those of their parts do.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    __array_ufunc__ = None  # NumPy leaves array @ operator and number * operator to us

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype

    def _product(self, v: Array) -> Array:
        """With vectors, of shape batch + (n,), or several a matrix, of shape batch + (k, n)."""
        raise NotImplementedError

    @property
    def T(self) -> LinearOperator:
        """The transposed operator."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of axes, those of the batch and two."""
        return len(self.shape)

    def __matmul__(self, other: Any) -> Any:
        """Times vectors (n,) or batch + (n,), matrices batch + (n, k), or an operator."""
        if isinstance(other, LinearOperator):
            return _Composed(self, other)
        v = self._operand(other, -2)
        if v.ndim < self.ndim:
            return self._product(v)
        return self._product(v.swapaxes(-1, -2)).swapaxes(-1, -2)

    def __rmatmul__(self, other: ArrayLike) -> Array:
        """Vectors (n,) or batch + (n,), or matrices batch + (k, n), times this."""
        return self.T._product(self._operand(other, -1))

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, -other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: float) -> LinearOperator:
        return _Scaled(factor, self) if np.ndim(factor) == 0 else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LinearOperator:
        return _Scaled(1 / divisor, self) if np.ndim(divisor) == 0 else NotImplemented

    def __neg__(self) -> LinearOperator:
        return _Scaled(-1.0, self)

    def to_dense(self) -> Array:
        """The matrices as an array, of shape batch + (n, n)."""
        unit = np.broadcast_to(np.eye(self.shape[-1], dtype=self.dtype), self.shape)
        return self._product(unit).swapaxes(-1, -2).copy()

    def diagonal(self) -> Array:
        """The diagonals, of shape batch + (n,); of some operators they cost n products."""
        n = self.shape[-1]
        y = np.empty(self.shape[:-1], self.dtype)
        for i in range(n):
            unit = np.zeros(self.shape[:-1], self.dtype)
            unit[..., i] = 1
            y[..., i] = self._product(unit)[..., i]
        return y

    def trace(self) -> Any:
        """The sums of the diagonals, of the shape of the batch."""
        return rounded(wide(self.diagonal()).sum(axis=-1), self.dtype)

    def as_linear_operator(self) -> scipy.sparse.linalg.LinearOperator:
        """
        For the solvers of `scipy.sparse.linalg`.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            Of shape (n, n); of a batch, the block diagonal of its matrices, which multiplies
            vectors of shape batch + (n,) made flat.

        Raises
        ------
        ImportError
            Where SciPy is not installed.
        """
        try:
            from scipy.sparse import linalg
        except ImportError as error:
            raise ImportError(
                "as_linear_operator() needs SciPy: pip install 'fastsoftmax[scipy]'"
            ) from error
        vectors = self.shape[:-1]
        size = math.prod(vectors)

        def product(operator: LinearOperator, v: Array) -> Array:
            columns = v.reshape(*vectors, -1) if v.ndim > 1 else v.reshape(vectors)
            return np.asarray(operator @ columns).reshape(v.shape)

        return linalg.LinearOperator(
            (size, size),
            matvec=lambda v: product(self, v.reshape(size)),
            rmatvec=lambda v: product(self.T, v.reshape(size)),
            matmat=lambda v: product(self, v),
            rmatmat=lambda v: product(self.T, v),
            dtype=self.dtype,
        )

    def _operand(self, value: ArrayLike, axis: int) -> Array:
        """What stands beside an operator: vectors, or matrices with n along that axis."""
        v = to_array("the operand", value)
        result_dtype("the operand", v.dtype)
        v = np.asarray(v).astype(self.dtype, copy=False)
        batch, n = self.shape[:-2], self.shape[-1]
        is_matrix = v.ndim == len(batch) + 2
        shape = (*batch, n)
        if is_matrix:
            shape = (*batch, n, v.shape[-1]) if axis == -2 else (*batch, v.shape[-2], n)
        try:
            if v.ndim not in (1, len(batch) + 1, len(batch) + 2):
                raise ValueError
            return v if v.shape == shape else np.broadcast_to(v, shape)
        except ValueError:
            matrices = f"{(*batch, n, 'k')}" if axis == -2 else f"{(*batch, 'k', n)}"
            raise ValueError(
                f"the operand of {self!r} has shape {v.shape}; vectors, {(*batch, n)} or {(n,)}, "
                f"or matrices, {matrices}, are expected".replace("'", "")
            ) from None


class _OfTwo(LinearOperator):
    """Made of two operators of one shape."""

    verb: ClassVar[str]

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape != right.shape:
            raise ValueError(
                f"cannot {self.verb} operators of shapes {left.shape} and {right.shape}"
            )
        super().__init__(left.shape, np.result_type(left.dtype, right.dtype))
        self.left, self.right = left, right


class _Sum(_OfTwo):
    verb = "add"

    def _product(self, v: Array) -> Array:
        left, right = (a._product(v.astype(a.dtype, copy=False)) for a in (self.left, self.right))
        return np.asarray(left + right, self.dtype)

    @property
    def T(self) -> LinearOperator:
        return _Sum(self.left.T, self.right.T)

    def diagonal(self) -> Array:
        return np.asarray(self.left.diagonal() + self.right.diagonal(), self.dtype)

    def __repr__(self) -> str:
        return f"({self.left!r} + {self.right!r})"


class _Scaled(LinearOperator):
    def __init__(self, factor: float, operator: LinearOperator) -> None:
        result_dtype("the factor", np.asarray(factor).dtype)
        super().__init__(operator.shape, operator.dtype)
        self.factor, self.operator = factor, operator

    def _product(self, v: Array) -> Array:
        return self._scaled(self.operator._product(v))

    def _scaled(self, y: Array) -> Array:
        return np.asarray(y * y.dtype.type(self.factor), self.dtype)

    @property
    def T(self) -> LinearOperator:
        return _Scaled(self.factor, self.operator.T)

    def diagonal(self) -> Array:
        return self._scaled(self.operator.diagonal())

    def __repr__(self) -> str:
        return f"{self.factor} * {self.operator!r}"


class _Composed(_OfTwo):
    verb = "compose"

    def _product(self, v: Array) -> Array:
        inner = self.right._product(v.astype(self.right.dtype, copy=False))
        outer = self.left._product(inner.astype(self.left.dtype, copy=False))
        return outer.astype(self.dtype, copy=False)

    @property
    def T(self) -> LinearOperator:
        return _Composed(self.right.T, self.left.T)

    def __repr__(self) -> str:
        return f"{self.left!r} @ {self.right!r}"


class Symmetric(LinearOperator):
    """A linear operator that equals its transpose."""

    @property
    def T(self) -> Self:
        """The operator itself, which is symmetric."""
        return self


def wide(a: Array) -> Array:
    """In float64, or wider where a is."""
    return a if a.dtype.itemsize > 8 else np.asarray(a, np.float64)


def rounded(a: Any, dtype: np.dtype[Any]) -> Any:
    """In that dtype; a scalar where there is no dimension."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(a).astype(dtype)[()]
