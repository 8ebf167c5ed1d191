"""Target geometries: the simplex equiangular tight frame and the orthogonal frame.

A *Gram target* is the matrix of inner products that a collapsed classifier or set of class means
reaches, scaled to Frobenius norm 1, so that it can be compared with any Gram matrix after the same
scaling (metrics NC2 and NC3).
"""

import torch

from nclib import checks


def centring(K, *, dtype=torch.float64, device=None):
    """The projector ``I - 11ᵀ/K``, shape ``(K, K)``: subtracts the mean over classes."""
    K = checks.integer("K", K)
    return torch.eye(K, dtype=dtype, device=device) - 1.0 / K


def etf_gram(K, *, dtype=torch.float64, device=None):
    """Gram matrix of a simplex ETF with Frobenius norm 1: ``(I - 11ᵀ/K)/√(K-1)``, ``(K, K)``."""
    K = checks.integer("K", K, 2)
    return centring(K, dtype=dtype, device=device) / (K - 1) ** 0.5


def orthogonal_gram(K, *, dtype=torch.float64, device=None):
    """Gram matrix of an orthogonal frame with Frobenius norm 1: ``I/√K``, ``(K, K)``."""
    K = checks.integer("K", K)
    return torch.eye(K, dtype=dtype, device=device) / K**0.5


def random_rotation(d, columns=None, *, generator=None, dtype=torch.float64):
    """Haar-distributed ``(d, columns)`` matrix with orthonormal columns (``columns <= d``)."""
    d = checks.integer("d", d)
    columns = d if columns is None else checks.integer("columns", columns)
    if columns > d:
        raise checks.InputError(f"no {columns} orthonormal columns exist in dimension {d}")
    gaussian = torch.randn(d, columns, generator=generator, dtype=dtype)
    q, r = torch.linalg.qr(gaussian)
    return q * torch.sign(torch.diagonal(r))


def simplex_etf(K, d=None, *, generator=None, dtype=torch.float64):
    """K unit rows in dimension ``d`` with all cosines ``-1/(K-1)``: a simplex ETF, ``(K, d)``.

    ``d`` defaults to ``K - 1``, the smallest dimension in which it exists.  With a ``generator``
    the frame is turned at random; without one it is the same at every call.
    """
    K = checks.integer("K", K, 2)
    d = K - 1 if d is None else checks.integer("d", d)
    if d < K - 1:
        raise checks.InputError(
            f"a simplex ETF of K={K} vectors needs d >= {K - 1}, got d={d}; for smaller d see "
            "softmax codes (nclib.results.large_class.theory)"
        )
    # The Helmert basis of the complement of the vector of ones.
    basis = torch.zeros(K, K - 1, dtype=dtype)
    for j in range(1, K):
        basis[:j, j - 1] = 1
        basis[j, j - 1] = -j
        basis[:, j - 1] /= (j * (j + 1)) ** 0.5
    frame = basis * (K / (K - 1)) ** 0.5
    if generator is None:
        return torch.nn.functional.pad(frame, (0, d - K + 1))
    return frame @ random_rotation(d, K - 1, generator=generator, dtype=dtype).T


def orthogonal_frame(K, d=None, *, generator=None, dtype=torch.float64):
    """K orthonormal rows in dimension ``d >= K``, shape ``(K, d)``."""
    K = checks.integer("K", K)
    d = K if d is None else checks.integer("d", d)
    if d < K:
        raise checks.InputError(f"an orthogonal frame of K={K} vectors needs d >= {K}, got d={d}")
    if generator is None:
        return torch.eye(K, d, dtype=dtype)
    return random_rotation(d, K, generator=generator, dtype=dtype).T


def nc2_floor(K, d):
    """Smallest NC2 (distance of a centred Gram to the ETF's) of any K vectors in dimension d.

    Zero for ``d >= K-1``, else ``√(2 - 2√(d/(K-1)))`` (claim 4.G9).
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    return max(0.0, 2 - 2 * min(1.0, d / (K - 1)) ** 0.5) ** 0.5
