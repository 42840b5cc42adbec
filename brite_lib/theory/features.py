"""Features of a kernel: a matrix Φ with Φ·Φᵀ equal, or close, to the Gram matrix, so that f_θ = Φ·θ spans the kernel's RKHS.

With Φ from the exact method and full rank, ‖θ‖ is the RKHS norm of f_θ (for θ in the row space). A matrix Φ of rank r is
itself the exact feature map of some kernel, so the theorem holds for it as it stands; only the distance to the
original kernel is an approximation.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.spatial.distance
from numpy.typing import ArrayLike

from brite_lib.errors import InputError
from brite_lib.theory.model import Array, check_positive, finite

KERNELS = ("rbf", "linear", "tabular")
NEGATIVE = 1e-8  # an eigenvalue below −NEGATIVE × the largest is no rounding error

Kernel = Callable[[Array, Array], ArrayLike]


def kernel_features(
    points: ArrayLike, kernel: str | Kernel = "rbf", rank: int | None = None, length_scale: float = 1.0, method: str = "exact"
) -> Array:
    """Features of n points.

    Args:
        points: (n, p) coordinates; for ``"precomputed"`` the (n, n) Gram matrix itself.
        kernel: ``"rbf"`` exp(−‖a − b‖²/(2·length_scale²)), ``"linear"`` a·b, ``"tabular"`` 1[a = b], ``"precomputed"``, or a
            function of (n, p) and (m, p) points that returns the (n, m) Gram matrix.
        rank: columns to keep, 1 to n; None: all that are not zero.
        length_scale: of ``"rbf"``; the others ignore it.
        method: ``"exact"``, the best approximation of that rank by an eigendecomposition, O(n³); or ``"nystrom"`` with
            landmarks chosen by a pivoted Cholesky decomposition, O(n·rank²), which never holds the Gram matrix.

    Returns:
        (n, r) float64 with r ≤ rank: fewer columns when the kernel's rank on these points is smaller. Columns are ordered
        by decreasing weight.

    Raises:
        InputError: for a kernel that is not symmetric and positive semi-definite on these points, and for bad settings.
    """
    points = finite("points", points, 2, "(n, p)")
    if 0 in points.shape:
        raise InputError(f"points must hold at least one point with one coordinate, found shape {points.shape}")
    n = points.shape[0]
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or not 1 <= rank <= n):
        raise InputError(f"rank must be a whole number from 1 to the number of points ({n}) or None, found {rank!r}")
    length_scale = check_positive("length_scale", length_scale)
    if method not in ("exact", "nystrom"):
        raise InputError(f"method must be 'exact' or 'nystrom', found {method!r}")
    gram = _gram_function(points, kernel, length_scale)
    everything = np.arange(n)
    if method == "nystrom":
        return _pivoted_cholesky(gram, n, rank or n)
    return _eigen_features(gram(everything, everything), rank or n)


def _gram_function(points: Array, kernel: str | Kernel, length_scale: float) -> Callable[[Array, Array], Array]:
    """The Gram matrix between two lists of row numbers."""
    if callable(kernel):
        return lambda left, right: finite("kernel", kernel(points[left], points[right]), 2, "(n, m)", (left.size, right.size))
    if kernel == "rbf":
        return lambda left, right: np.exp(-scipy.spatial.distance.cdist(points[left], points[right], "sqeuclidean") / (2 * length_scale**2))
    if kernel == "linear":
        return lambda left, right: points[left] @ points[right].T
    if kernel == "tabular":
        _, label = np.unique(points, axis=0, return_inverse=True)
        return lambda left, right: (label[left][:, None] == label[right]).astype(np.float64)
    if kernel == "precomputed":
        if points.shape[0] != points.shape[1]:
            raise InputError(f"a precomputed kernel must be a square Gram matrix, found shape {points.shape}")
        return lambda left, right: points[np.ix_(left, right)]
    raise InputError(f"kernel must be one of {', '.join(KERNELS)}, precomputed, or a function, found {kernel!r}")


def _eigen_features(gram: Array, rank: int) -> Array:
    scale = np.abs(gram).max()
    if (difference := np.abs(gram - gram.T).max()) > NEGATIVE * scale:
        raise InputError(f"the kernel is not symmetric on these points: K(a, b) and K(b, a) differ by up to {difference:.3g}")
    if np.array_equal(gram, np.diag(np.diag(gram))) and gram.min() >= 0:  # tabular on distinct points: keep the natural axes
        kept = np.argsort(-np.diag(gram), kind="stable")[: min(rank, int((np.diag(gram) > 0).sum()))]
        return np.sqrt(gram)[:, kept]
    values, vectors = scipy.linalg.eigh((gram + gram.T) / 2)
    if values[0] < -NEGATIVE * np.abs(values).max():
        raise _not_positive(f"its Gram matrix has the eigenvalue {values[0]:.3g}")
    kept = np.flatnonzero(values > gram.shape[0] * np.finfo(float).eps * values[-1])[::-1][:rank]
    vectors = vectors[:, kept]
    # The sign of an eigenvector is arbitrary; fixed, the features do not depend on the LAPACK build.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(kept.size)])
    return vectors * np.sqrt(values[kept])


def _pivoted_cholesky(gram: Callable[[Array, Array], Array], n: int, rank: int) -> Array:
    everything = np.arange(n)
    left = np.array([gram(everything[i : i + 1], everything[i : i + 1])[0, 0] for i in range(n)])  # what the columns leave unexplained
    scale = np.abs(left).max()
    features = np.zeros((n, rank))
    for column in range(rank):
        pivot = int(left.argmax())
        rest = gram(everything, everything[pivot : pivot + 1])[:, 0] - features[:, :column] @ features[pivot, :column]
        # What the columns leave must be a covariance again: non-negative on its diagonal, and Cauchy and Schwarz hold.
        if left.min() < -NEGATIVE * scale or (rest**2 > left[pivot] * left + NEGATIVE * max(scale, 1e-300) ** 2).any():
            raise _not_positive("a covariance exceeds the variances around it")
        if left[pivot] <= n * np.finfo(float).eps * scale:
            return features[:, :column]
        features[:, column] = rest / np.sqrt(left[pivot])
        left = left - features[:, column] ** 2
    return features


def _not_positive(why: str) -> InputError:
    return InputError(f"the kernel is not positive semi-definite on these points ({why}), so it has no feature map")
