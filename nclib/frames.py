"""Target geometries: the simplex equiangular tight frame, the orthogonal frame, and others.

A *Gram target* is the matrix of inner products that a collapsed classifier or set of class means
reaches, scaled to Frobenius norm 1, so that it can be compared with any Gram matrix after the same
scaling (metrics NC2 and NC3).
"""

import math

import torch

from nclib import checks


def centring(K):
    """The projector ``I - 11ᵀ/K``, shape ``(K, K)``: subtracts the mean over classes."""
    K = checks.integer("K", K)
    return torch.eye(K, dtype=torch.float64) - 1.0 / K


def etf_gram(K):
    """Gram matrix of a simplex ETF with Frobenius norm 1: ``(I - 11ᵀ/K)/√(K-1)``, ``(K, K)``."""
    K = checks.integer("K", K, 2)
    return centring(K) / (K - 1) ** 0.5


def orthogonal_gram(K):
    """Gram matrix of an orthogonal frame with Frobenius norm 1: ``I/√K``, ``(K, K)``."""
    K = checks.integer("K", K)
    return torch.eye(K, dtype=torch.float64) / K**0.5


def random_rotation(d, columns=None, *, generator=None):
    """Haar-distributed ``(d, columns)`` matrix with orthonormal columns (``columns <= d``)."""
    d = checks.integer("d", d)
    columns = d if columns is None else checks.integer("columns", columns)
    if columns > d:
        raise checks.InputError(f"no {columns} orthonormal columns exist in dimension {d}")
    gaussian = torch.randn(d, columns, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return q * torch.sign(torch.diagonal(r))


def simplex_etf(K, d=None, *, generator=None):
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
    basis = torch.zeros(K, K - 1, dtype=torch.float64)
    for j in range(1, K):
        basis[:j, j - 1] = 1
        basis[j, j - 1] = -j
        basis[:, j - 1] /= (j * (j + 1)) ** 0.5
    frame = basis * (K / (K - 1)) ** 0.5
    if generator is None:
        return torch.nn.functional.pad(frame, (0, d - K + 1))
    return frame @ random_rotation(d, K - 1, generator=generator).T


def polygon(K, d=2):
    """The regular K-gon on the unit circle of the first two coordinates, ``(K, d)``."""
    K, d = checks.integer("K", K, 2), checks.integer("d", d, 2)
    angles = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
    return torch.nn.functional.pad(torch.stack([angles.cos(), angles.sin()], 1), (0, d - 2))


def cross_polytope(d, K=None):
    """The first ``K`` (default all) of the vertices ``e_1, …, e_d, -e_1, …, -e_d``, ``(K, d)``."""
    d = checks.integer("d", d)
    K = 2 * d if K is None else checks.integer("K", K, 2)
    if 2 * d < K:
        raise checks.InputError(f"the cross-polytope in d={d} has {2 * d} vertices, got K={K}")
    axes = torch.eye(d, dtype=torch.float64)
    return torch.cat([axes, -axes])[:K]


def bipyramid(K):
    """The regular (K-2)-gon on the equator, and the two poles, ``(K, 3)``; ``K >= 4``."""
    K = checks.integer("K", K, 4)
    poles = torch.tensor([[0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    return torch.cat([polygon(K - 2, 3), poles])


def icosahedron():
    """The 12 vertices of the icosahedron on the unit sphere, ``(12, 3)``; cosines ±1/√5 and ±1."""
    golden = (1 + 5**0.5) / 2
    corners = torch.tensor(
        [(0.0, s, t * golden) for s in (1, -1) for t in (1, -1)], dtype=torch.float64
    )
    rows = torch.cat([corners.roll(shift, 1) for shift in range(3)])
    return rows / rows.norm(dim=1, keepdim=True)


def pairs(points):
    """All pairs of ``points`` points: each row holds a 1 for its two, ``(K, points)``.

    K = points (points - 1) / 2: the incidence matrix of the complete graph (Súkeník et al. 2024).
    """
    both = torch.combinations(torch.arange(checks.integer("points", points, 2)))
    return torch.zeros(len(both), points, dtype=torch.float64).scatter_(1, both, 1.0)


def nc2_floor(K, d):
    """Smallest NC2 (distance of a centred Gram to the ETF's) of any K vectors in dimension d.

    Zero for ``d >= K-1``, else ``√(2 - 2√(d/(K-1)))`` (claim 4.G9).
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    return max(0.0, 2 - 2 * min(1.0, d / (K - 1)) ** 0.5) ** 0.5
