"""Cross-entropy of explicit codes at temperature ``T``, and where one code overtakes another.

The spherical problem: unit rows W (K, d) and H, one feature per class, loss
``(1/K) sum_k log(1 + sum_{j != k} exp(<w_j - w_k, h_k> / T))``.  All families below have H = W
(they are self-dual), so a class only needs its *gaps* ``1 - <w_j, w_k>``.  Spec 3.3 and 3.5, claims
4.G11 and 4.G12.  ``T`` divides the logits (the released code's "temperature" is 1 / T).
"""

from dataclasses import dataclass
from math import cos, inf, log, pi

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp

from nclib import checks


@dataclass(frozen=True)
class Family:
    """A code up to symmetry: one ``(classes, ((gap, count), ...))`` per orbit of classes.

    ``count`` other classes lie at ``gap = 1 - cosine`` from each class of the orbit.
    """

    name: str
    orbits: tuple

    @property
    def num_classes(self):
        return sum(classes for classes, _ in self.orbits)

    def log_energy(self, temperature):
        """Logarithm of the cross-entropy; exact also where the energy itself underflows."""
        temperature = checks.real("temperature", temperature, above=0)
        terms = []
        for classes, gaps in self.orbits:
            rivals = logsumexp([log(count) - gap / temperature for gap, count in gaps])
            terms.append(log(classes / self.num_classes) + _log_softplus(rivals))
        return float(logsumexp(terms))

    def energy(self, temperature):
        """The cross-entropy per sample."""
        return float(np.exp(self.log_energy(temperature)))


def simplex(K):
    """Regular simplex, the global minimiser for K <= d + 1 at every temperature."""
    K = checks.integer("K", K, 2)
    return Family(f"{K}-simplex", ((K, ((K / (K - 1), K - 1),)),))


def polygon(K):
    """Regular K-gon, the minimiser for d = 2 found at every temperature tried."""
    K = checks.integer("K", K, 2)
    gaps = tuple((1 - cos(2 * pi * j / K), 1) for j in range(1, K))
    return Family(f"{K}-gon", ((K, gaps),))


def cross_polytope(d):
    """All 2 d vertices, the minimiser for K = 2 d found at every temperature tried."""
    d = checks.integer("d", d)
    rest = ((1.0, 2 * d - 2),) if d > 1 else ()
    return Family(f"{2 * d} vertices of the cross-polytope", ((2 * d, ((2.0, 1), *rest)),))


def orthogonal_simplices(sizes):
    """Regular simplices with ``sizes`` vertices in orthogonal subspaces."""
    sizes = [checks.integer("a simplex size", m, 2) for m in sizes]
    K = sum(sizes)
    orbits = [
        (m, ((m / (m - 1), m - 1),) + (((1.0, K - m),) if m < K else ())) for m in sorted(sizes)
    ]
    return Family("+".join(map(str, sorted(sizes))) + " simplices", tuple(orbits))


def pentagonal_bipyramid():
    """(7, 3): the hot minimiser."""
    near, far = 1 - cos(2 * pi / 5), 1 - cos(4 * pi / 5)
    equator = (5, ((near, 2), (far, 2), (1.0, 2)))
    return Family("pentagonal bipyramid", (equator, (2, ((1.0, 5), (2.0, 1)))))


def tilted_square_pyramid(tilt):
    """(5, 3): an apex and a square at height ``-tilt``."""
    s = checks.real("tilt", tilt, at_least=0, below=1)
    square = (4, ((1 - s * s, 2), (2 * (1 - s * s), 1), (1 + s, 1)))
    return Family("tilted square pyramid", (square, (1, ((1 + s, 4),))))


def best_tilt(temperature):
    """The tilt in [0, 1/2] with the lowest energy; positive at low temperature."""
    found = minimize_scalar(
        lambda s: tilted_square_pyramid(s).log_energy(temperature),
        bounds=(0, 0.5),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return float(found.x)


def splits(K, d):
    """All sizes ``m_1 <= m_2 <= ...`` of orthogonal simplices with K vertices spanning d.

    There are ``K - d`` of them in each split; for ``d + 2 <= K <= 2 d`` all have margin 1.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)

    def partitions(total, parts, smallest):
        if parts == 1:
            return [(total,)] if total >= smallest else []
        return [
            (m, *rest)
            for m in range(smallest, total // parts + 1)
            for rest in partitions(total - m, parts - 1, m)
        ]

    return partitions(K, K - d, 2) if d < K <= 2 * d else []


def exchange_temperature(first, second, *, low=0.02, high=3.0):
    """The highest temperature in ``[low, high]`` at which two codes have equal energy.

    ``first``, ``second``: families, or functions ``T -> log energy`` (for families optimised at
    each T).  Returns None when one of them is below the other throughout.
    """
    low = checks.real("low", low, above=0)
    high = checks.real("high", high, above=low)
    energies = [getattr(f, "log_energy", f) for f in (first, second)]
    # Energies span hundreds of decades; their difference is compared on the scale T log E.
    gap = lambda T: T * (energies[0](T) - energies[1](T))
    scan = np.geomspace(low, high, 100)
    signs = np.sign([gap(T) for T in scan])
    changes = np.flatnonzero(signs[1:] * signs[:-1] < 0)
    if not len(changes):
        return None
    at = changes[-1]
    return float(brentq(gap, scan[at], scan[at + 1], xtol=1e-14))


def hot_cold_exchange(d):
    """Where the segment + simplex (2, d) overtakes the balanced pair of simplices, K = d + 2."""
    d = checks.integer("d", d, 4)
    half = (d + 2) // 2
    balanced = orthogonal_simplices([half, d + 2 - half])
    return exchange_temperature(orthogonal_simplices([2, d]), balanced)


def tilt_exchange():
    """Where the tilted square pyramid overtakes the orthogonal 2 + 3 simplices, (5, 3)."""
    tilted = lambda T: tilted_square_pyramid(best_tilt(T)).log_energy(T)
    return exchange_temperature(tilted, orthogonal_simplices([2, 3]), high=1.0)


def _log_softplus(x):
    """log log(1 + e^x) without underflow."""
    if x == -inf:
        return -inf
    return x - np.exp(x) / 2 if x < -20 else log(np.logaddexp(0.0, x))
