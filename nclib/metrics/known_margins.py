"""The largest one-vs-rest margin ``rho*(K, d)`` of K unit rows in dimension d, as far as known.

What a measured margin (``gnc2`` of :func:`~nclib.metrics.generalized_nc`) is compared with.
"""

from dataclasses import dataclass
from math import cos, pi, sqrt

from nclib import checks

# Best codes found, (K, d) -> rho* = 1 - cos theta*.  For d = 3 and K <= 14 or K = 24, and for the
# sharp codes, theta* is a proven Tammes angle; elsewhere it is a certified lower bound that no
# search has beaten.  Certified by `margins.hull_projections` at 1e-12 after the polish by linear
# programmes of results/large_class/search.  Cells with a closed form are left out.
# fmt: off
TABLE = {
    (7, 3): 0.7898616872694, (8, 3): 0.7387961250363, (9, 3): 2 / 3, (10, 3): 0.5956056747838,
    (11, 3): 1 - 1 / sqrt(5), (12, 3): 1 - 1 / sqrt(5), (13, 3): 0.4573635131704,
    (14, 3): 0.4360496996395, (15, 3): 0.4073940970749, (16, 3): 0.3877053835173,
    (17, 3): 0.3719055849300, (18, 3): 0.3513041677769, (19, 3): 0.3268831124399,
    (20, 3): 0.3235228618704, (21, 3): 0.3005015689336, (22, 3): 0.2896937414203,
    (23, 3): 0.2771530151316, (24, 3): 0.2769215316665,
    (9, 4): 0.8379848003884, (10, 4): 5 / 6, (11, 4): 0.7695944364054, (12, 4): 0.75,
    (13, 4): 0.6927043460190, (14, 4): 0.6804814057874, (15, 4): 0.6490078240546,
    (20, 4): 0.5657414540893, (24, 4): 0.5, (120, 4): (3 - sqrt(5)) / 4,
    (11, 5): 0.8671464574014, (12, 5): 0.8460683949670, (13, 5): 0.8127401481171, (14, 5): 0.8,
    (15, 5): 0.8, (16, 5): 0.8, (20, 5): 0.7006143071009,
    (13, 6): 0.8869202478525, (14, 6): 0.8675090796765, (16, 6): 0.8288523505706, (27, 6): 3 / 4,
    (56, 7): 2 / 3, (240, 8): 1 / 2, (112, 21): 8 / 9, (162, 21): 6 / 7,
    (100, 22): 10 / 11, (275, 22): 5 / 6, (891, 22): 3 / 4, (552, 23): 4 / 5, (4600, 23): 2 / 3,
    (196560, 24): 1 / 2,
}
# fmt: on

# Certified margins of codes that are merely good: lower bounds on rho*.  The codes are kept, see
# `codes.good_code` of results/large_class.
LOWER_BOUNDS = {
    (100, 10): 0.66881,
    (200, 10): 0.54680,
    (100, 20): 0.85267,
    (100, 30): 0.91518,
    (120, 5): 0.28931,
    (120, 10): 0.63530,
    (120, 20): 0.82441,
    (200, 20): 0.76996,
    (200, 30): 0.85241,
    (300, 32): 0.82890,
}


@dataclass(frozen=True)
class KnownMargin:
    """A value for ``rho*(K, d)`` and what it is worth.

    ``status``: ``"proven"`` (closed form), ``"tabulated"`` (best code known), ``"lower bound"``.
    """

    value: float
    status: str


def known_margin(K, d):
    """``rho*(K, d)`` where it is proven or tabulated, else None (claim 4.G3).

    Proven: ``K / (K - 1)`` for K <= d + 1, ``1 - cos(2 pi / K)`` for d = 2, 1 for
    d + 2 <= K <= 2 d, and 0 for more than two classes on the line.
    """
    closed = closed_form(K, d)
    return TABLE.get((int(K), int(d))) if closed is None else closed


def best_known(K, d):
    """:class:`KnownMargin`: :func:`known_margin`, else the best certified lower bound, or None.

    A lower bound, of this size or by Gold sequences, is raised to that of any known code of more
    classes or fewer dimensions, since some of its rows are a code of this size.
    """
    closed = closed_form(K, d)
    if closed is not None:
        return KnownMargin(closed, "proven")
    if (K, d) in TABLE:
        return KnownMargin(TABLE[K, d], "tabulated")
    if (K, d) not in LOWER_BOUNDS and gold_degree(K, d) is None:
        return None
    known = TABLE | LOWER_BOUNDS
    bounds = (value for (many, few), value in known.items() if many >= K and few <= d)
    return KnownMargin(max([gold_margin(K, d) or 0.0, *bounds]), "lower bound")


def closed_form(K, d):
    """``rho*(K, d)`` where it is proven, else None (claim 4.G3; Jiang et al. 2024)."""
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    if d >= K - 1:
        return K / (K - 1)
    if d == 1:
        return 0.0
    if d == 2:
        return 1 - cos(2 * pi / K)
    return 1.0 if 2 * d >= K else None


def gold_margin(K, d):
    """``1 - (2**((m + 1) / 2) - 1) / (2**m - 1)``, at most the margin of K Gold sequences of degree
    m in dimension d; None if none fits."""
    m = gold_degree(K, d)
    return None if m is None else 1 - (2 ** ((m + 1) // 2) - 1) / (2**m - 1)


def gold_degree(K, d):
    """Largest odd m with ``2**m - 1 <= d`` and ``4**m >= K``, or None."""
    checks.integer("K", K, 2)
    fitting = [m for m in range(3, 22, 2) if 2**m - 1 <= checks.integer("d", d) and 4**m >= K]
    return max(fitting, default=None)
