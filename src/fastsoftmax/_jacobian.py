"""The Jacobian of softmax as a linear operator, and what follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsoftmax import _native
from fastsoftmax._arguments import Array, Axes, Axis, result_dtype, to_array, working_dtype
from fastsoftmax._derivatives import (
    log_softmax_jvp,
    log_softmax_vjp,
    of_rows,
    softmax_jacobian,
    softmax_jvp,
)
from fastsoftmax._longdouble import is_largest
from fastsoftmax._operators import LinearOperator, Symmetric, rounded, wide


class SoftmaxJacobian(Symmetric):
    """
    The Jacobian of softmax, J = diag(p) - p p^T, as a linear operator.

    It is symmetric and positive semidefinite, with J 1 = 0; also the Hessian of `logsumexp`, the
    covariance matrix of one draw from p, one-hot, and the Fisher information of p about its
    logits. The matrix is never built: a product costs about as much as a copy of p.

    Parameters
    ----------
    p : array_like
        Probabilities, as `softmax` gives them; kept, not copied, where they are contiguous
        floats. Masked elements count as 0.
    axis : int, tuple of int or None
        The axis along which `p` sums to 1.

    Attributes
    ----------
    shape : tuple of int
        batch + (n, n): batch being the other axes of `p`, n the length of the axis (of several,
        their product).
    dtype : dtype
        That of `p`; float64 where that is of integers. What J multiplies is converted to it.

    Raises
    ------
    TypeError
        Where `p` is not of real numbers, or an array of another library.

    Notes
    -----
    ``J @ v`` and ``v @ J`` take a vector (n,), vectors batch + (n,), or a matrix for each element
    of the batch, batch + (n, k) or batch + (k, n), whatever the axis of p was. ``J.T`` is J.
    Multiples, sums and compositions of operators (``2 * J``, ``J + K``, ``J @ K``) are operators.

    Nothing cancels where one p is near 1: what it lacks to 1 is taken as the sum of the others.
    Except for `eigvalsh`, of order n**2, and `to_dense`, everything is of order n.

    References
    ----------
    .. [1] Golub, G. H. (1973). Some modified matrix eigenvalue problems. SIAM Review 15, 318-334.
    .. [2] Bunch, J. R., Nielsen, C. P. and Sorensen, D. C. (1978). Rank-one modification of the
       symmetric eigenproblem. Numerische Mathematik 31, 31-48.
    .. [3] Sherman, J. and Morrison, W. J. (1950). Adjustment of an inverse matrix corresponding to
       a change in one element of a given matrix. Annals of Mathematical Statistics 21, 124-127.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fsm
    >>> J = fsm.SoftmaxJacobian(fsm.softmax([1.0, 2.0, 3.0]))
    >>> J
    SoftmaxJacobian(shape=(3, 3), dtype=float64)
    >>> J @ [1.0, 0.0, 0.0]
    array([ 0.08192507, -0.02203304, -0.05989202])
    >>> J.eigvalsh().round(4)
    array([0.    , 0.1186, 0.3709])
    >>> J.solve([1.0, 0.0, -1.0], damping=0.1).round(3)
    array([ 4.349, -1.368, -2.982])
    """

    def __init__(self, p: ArrayLike, axis: Axis = -1) -> None:
        source = to_array("p", p)
        dtype = result_dtype("p", source.dtype)
        if isinstance(source, np.ma.MaskedArray):
            source = source.filled(0)
        axes = Axes(source.shape, axis)
        super().__init__((*axes.batch, axes.n, axes.n), dtype)
        self._p = axes.rows(np.asarray(source), working_dtype(dtype))

    def __matmul__(self, other: Any) -> Any:
        if self._p.dtype == self.dtype:
            done = _native.softmax_vjp(self._p, other, -1, None)  # of what is like p
            if done is not None:
                return done
        return super().__matmul__(other)

    def _product(self, v: Array) -> Array:
        p = np.broadcast_to(_beside(self._p, v), v.shape)
        return np.asarray(rounded(softmax_jvp(p, v), self.dtype))

    def to_dense(self) -> Array:
        """The matrices as an array, of shape batch + (n, n), as `softmax_jacobian` gives them."""
        return np.asarray(rounded(softmax_jacobian(self._p), self.dtype))

    def diagonal(self) -> Array:
        """p * (1 - p), of shape batch + (n,)."""
        return np.asarray(rounded(self._working_diagonal(), self.dtype))

    def _working_diagonal(self) -> Array:
        return of_rows("softmax_jacobian_diagonal", np.empty_like(self._p), self._p)

    def norm(self) -> Any:
        """The Frobenius norms, of the shape of the batch."""
        p = wide(self._p)
        others = np.where(is_largest(p), 0, p)
        unit = others.max(axis=-1, keepdims=True, initial=0)  # lest squares underflow
        unit = np.where(unit > 0, unit, 1)
        squares = (others / unit) ** 2
        largest = p.max(axis=-1, initial=0) ** 2
        rest = squares.sum(axis=-1)
        # off the diagonal: p_i^2 p_j^2, summed over all pairs
        pairs = 2 * largest * rest + unit[..., 0] ** 2 * (rest**2 - (squares**2).sum(axis=-1))
        diagonal = ((wide(self._working_diagonal()) / unit) ** 2).sum(axis=-1)
        return rounded(unit[..., 0] * np.sqrt(diagonal + pairs), self.dtype)

    def rank(self) -> Any:
        """One less than the number of p that are not 0, of the shape of the batch."""
        return np.maximum(np.count_nonzero(self._p, axis=-1) - 1, 0)[()]

    def eigvalsh(self) -> Array:
        """
        The eigenvalues in ascending order, the first of which is 0, of shape batch + (n,).

        Notes
        -----
        Since p sums to 1, they are the roots of x * sum(p / (p - x)) [1]_, one between every two
        neighbouring p, found by rational interpolation [2]_ and accurate to a few units in the
        last place even where they are tiny.
        """
        p = np.sort(wide(self._p), axis=-1)
        y = of_rows("softmax_jacobian_eigenvalues", np.empty_like(p), p)
        return np.asarray(rounded(y, self.dtype))

    def log_pdet(self) -> Any:
        """
        The logarithm of the pseudo-determinant, of the shape of the batch.

        The product of the eigenvalues that are not 0 is m * prod(p), of the m probabilities that
        are not 0.
        """
        p = wide(self._p)
        m = np.count_nonzero(p, axis=-1)
        logs = np.log(p, where=p != 0, out=np.zeros_like(p)).sum(axis=-1)
        return rounded(np.log(np.maximum(m, 1)) + logs, self.dtype)

    def logdet(self, *, damping: ArrayLike) -> Any:
        """
        The logarithm of the determinant of J + damping * I.

        Parameters
        ----------
        damping : array_like
            A positive number, or one for each element of the batch. (Without it the determinant
            is 0; see `log_pdet`.)

        Returns
        -------
        ndarray
            Of the shape of the batch: sum(log(p + damping)) +
            log(damping * sum(p / (p + damping))), by the determinant lemma.
        """
        p, damping = wide(self._p), self._damping(damping)
        weight = (p / (p + damping)).sum(axis=-1)
        weight = np.where(p.any(axis=-1), damping[..., 0] * weight, 1)
        return rounded(np.log(p + damping).sum(axis=-1) + np.log(weight), self.dtype)

    def solve(self, b: ArrayLike, *, damping: ArrayLike) -> Any:
        """
        x with (J + damping * I) x = b.

        Parameters
        ----------
        b : array_like
            A vector, vectors or matrices, as for ``J @ b``.
        damping : array_like
            A positive number, or one for each element of the batch. (Without it J is singular:
            ``J.pinv() @ b`` is the shortest of the least-squares solutions.)

        Returns
        -------
        ndarray
            x, of the shape of ``J @ b``.

        Raises
        ------
        ValueError
            Where shapes do not fit, or `damping` is not positive and finite.

        Notes
        -----
        By the formula of Sherman and Morrison [3]_, in which 1 - sum(p**2 / (p + damping)) would
        cancel, but is damping * sum(w), w = p / (p + damping), as p sums to 1. So
        x = b / (p + damping) + w * (sum(w * b) / sum(w)) / damping.
        """
        v, damping = self._operand(b, -2), self._damping(damping)
        if is_matrix := v.ndim == self.ndim:
            v = v.swapaxes(-1, -2)
        p, damping, v = _beside(wide(self._p), v), _beside(damping, v), wide(v)
        weight = p / (p + damping)
        total = weight.sum(axis=-1, keepdims=True)
        mean = (weight * v).sum(axis=-1, keepdims=True) / np.where(total == 0, 1, total)
        x = rounded(v / (p + damping) + weight * (mean / damping), self.dtype)
        return x.swapaxes(-1, -2) if is_matrix else x

    def pinv(self) -> LinearOperator:
        """
        The pseudoinverse, an operator: C diag(1 / p) C, C v being v less its mean.

        Where p is 0, elements do not count for the mean, and the result is 0.
        """
        return _PseudoInverse(self)

    def factor(self) -> LinearOperator:
        """
        B with B B^T = J, an operator: B v = sqrt(p) * v - p * sum(sqrt(p) * v).

        B times standard normal numbers has the covariance matrix J.
        """
        return _Factor(self)

    def _damping(self, value: ArrayLike) -> Array:
        """As an array of shape batch + (1,), or (1,)."""
        damping = to_array("damping", value)
        result_dtype("damping", damping.dtype)
        damping = wide(np.asarray(damping))
        if not ((damping > 0) & np.isfinite(damping)).all():
            raise ValueError(f"damping must be positive and finite, not {value!r}")
        batch = self.shape[:-2]
        try:
            return np.broadcast_to(damping, batch)[..., None]
        except ValueError:
            raise ValueError(
                f"damping has shape {damping.shape}, which does not broadcast to the batch, {batch}"
            ) from None

    def __repr__(self) -> str:
        return f"SoftmaxJacobian(shape={self.shape}, dtype={self.dtype.name})"


class _PseudoInverse(Symmetric):
    def __init__(self, jacobian: SoftmaxJacobian) -> None:
        super().__init__(jacobian.shape, jacobian.dtype)
        self.jacobian = jacobian

    def _product(self, v: Array) -> Array:
        p = _beside(wide(self.jacobian._p), v)
        kept = p != 0
        count = np.maximum(np.count_nonzero(kept, axis=-1, keepdims=True), 1)

        def centred(v: Array) -> Array:
            return np.where(kept, v - (np.where(kept, v, 0).sum(axis=-1, keepdims=True)) / count, 0)

        return np.asarray(rounded(centred(centred(wide(v)) / np.where(kept, p, 1)), self.dtype))

    def __repr__(self) -> str:
        return f"{self.jacobian!r}.pinv()"


class _Factor(LinearOperator):
    """B v = g - p * sum(g) with g = sqrt(p) * v; B^T v = sqrt(p) * (v - sum(p * v))."""

    def __init__(self, jacobian: SoftmaxJacobian, transposed: bool = False) -> None:
        super().__init__(jacobian.shape, jacobian.dtype)
        self.jacobian, self.transposed = jacobian, transposed

    def _product(self, v: Array) -> Array:
        p = np.broadcast_to(_beside(wide(self.jacobian._p), v), v.shape)
        v = wide(v)
        if self.transposed:
            y = np.sqrt(p) * log_softmax_jvp(p, v)
        else:
            y = log_softmax_vjp(p, np.sqrt(p) * v)
        return np.asarray(rounded(y, self.dtype))

    @property
    def T(self) -> LinearOperator:
        return _Factor(self.jacobian, not self.transposed)

    def __repr__(self) -> str:
        return f"{self.jacobian!r}.factor(){'.T' * self.transposed}"


def _beside(a: Array, v: Array) -> Array:
    """a, a row for each element of the batch, beside vectors, or the rows of matrices."""
    return a if a.ndim >= v.ndim else a[..., None, :]
