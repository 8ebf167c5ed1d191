"""Explicit spherical codes: unit rows ``(K, d)`` whose one-vs-rest margin is known.

Every builder returns a float64 tensor with one code word per row.  They serve as exact optima
(orthogonal simplices), as reference values for the search (sharp codes), and as certified
constructions where no search reaches (Gold sequences), and as the evidence behind lower bounds
(codes that long searches found).
"""

from functools import cache
from itertools import combinations, permutations, product
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import block_diag, null_space

from nclib import checks, frames
from nclib.metrics.known_margins import gold_degree

GOLDEN = (1 + sqrt(5)) / 2


def orthogonal_simplices(sizes):
    """Regular simplices with ``sizes`` vertices in mutually orthogonal subspaces.

    They need ``sum(m - 1 for m in sizes)`` dimensions.  For ``d + 2 <= K <= 2 d`` each
    such code has margin 1 exactly (claim 4.G3).
    """
    sizes = [checks.integer("a simplex size", m, 2) for m in sizes]
    checks.require(sizes, "sizes must name at least one simplex")
    blocks = [frames.simplex_etf(m).numpy() for m in sizes]
    return _rows(block_diag(*blocks))


def tilted_cross_polytope(singles, tilt, height=None):
    """``(q + 4, q + 2)``: two pairs of opposite vertices and ``q`` without opposite, all tilted.

    The pairs sink to ``-tilt`` along an axis above which the ``q = singles`` others stand at
    ``height`` (default ``1/sqrt(q)``), spread as a simplex.  At tilt 0 and the default height these
    are vertices of the cross-polytope; the cold minimiser for K = d + 2 (claim 4.G12).  One single:
    a square pyramid, its apex at height 1.
    """
    q = checks.integer("singles", singles)
    tilt = checks.real("tilt", tilt, at_least=0, below=1)
    height = q**-0.5 if height is None else checks.real("height", height, above=0, at_most=1)
    pairs = np.zeros((4, q + 2))
    pairs[:, :2] = sqrt(1 - tilt**2) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    pairs[:, 2] = -tilt
    rest = np.zeros((q, q + 2))
    rest[:, 2] = height
    if q > 1:
        rest[:, 3:] = sqrt(1 - height**2) * frames.simplex_etf(q).numpy()
    return _rows(np.concatenate([pairs, rest]))


def cell_24():
    """(24, 4): the roots of D4, largest cosine 1/2."""
    return _rows(_root_system_d(4))


def cell_600():
    """(120, 4): largest cosine (1 + sqrt(5)) / 4."""
    even = [p for p in permutations(range(4)) if np.linalg.det(np.eye(4)[list(p)]) > 0]
    signed = [(a * GOLDEN, b, c / GOLDEN, 0) for a, b, c in product((1, -1), repeat=3)]
    mixed = [np.array(v)[list(p)] for v in signed for p in even]
    half = list(product((1, -1), repeat=4))
    return _rows(np.concatenate([mixed, half, 2 * np.eye(4), -2 * np.eye(4)]))


def half_cube():
    """(16, 5): the half 5-cube, largest cosine 1/5."""
    signs = np.array([s for s in product((1, -1), repeat=5) if np.prod(s) > 0])
    return _rows(signs)


def e8_roots():
    """(240, 8): the E8 root system, largest cosine 1/2."""
    half = [s for s in product((1, -1), repeat=8) if np.prod(s) > 0]
    return _rows(np.concatenate([_root_system_d(8), np.array(half) / 2]))


def derived(code, cosine):
    """The words at ``cosine`` from the first word, projected on its complement (d - 1).

    Applied to a sharp code this gives the next one: (240, 8) -> (56, 7) -> (27, 6) -> (16, 5) ->
    (10, 4), each at the largest cosine c of the code before and with new largest cosine
    ``c / (1 + c)``.
    """
    code = checks.matrix("code", code, dtype=torch.float64).numpy()
    centre = code[0]
    chosen = code[np.abs(code @ centre - cosine) < 1e-9]
    if not len(chosen) or not abs(cosine) < 1:
        raise checks.InputError(f"no word of the code has cosine {cosine} with the first one")
    return _rows(chosen @ null_space(centre[None]))


@cache
def leech_vectors():
    """The 196560 shortest vectors of the Leech lattice as int8 rows of squared norm 32."""
    generator = [int(bit) for bit in "110001110101"]
    cyclic = np.array([np.roll(generator + [0] * 11, shift) for shift in range(12)])
    words = _span(np.hstack([cyclic, cyclic.sum(1, keepdims=True) % 2]), 4096)  # Golay code
    signs = 1 - 2 * words
    threes = (signs[:, None, :] * (1 - 4 * np.eye(24, dtype=int))).reshape(-1, 24)
    octads = words[words.sum(1) == 8]
    even = np.array([s for s in product((2, -2), repeat=8) if np.prod(s) > 0])
    twos = np.zeros((len(octads), len(even), 24), dtype=int)
    for block, octad in zip(twos, octads, strict=True):
        block[:, octad.nonzero()[0]] = even
    fours = 4 * _root_system_d(24).astype(int)
    return np.concatenate([threes, twos.reshape(-1, 24), fours]).astype(np.int8)


@cache
def _leech_sections():
    """Sharp codes cut out of the Leech vectors: name -> unit rows."""
    vectors = leech_vectors().astype(np.float64)
    first = vectors[0]
    second = vectors[(vectors @ first) == 8][0]
    third = first - second  # squared norm 48, a "type 3" vector
    near = vectors[vectors @ third == 24]
    code_552 = _project(near, third[None])
    code_275 = derived(code_552, 1 / 5)
    fourth = vectors[vectors @ third == 16][0]  # with `third` a triangle of types 2, 3, 3
    code_100 = _project(near[near @ fourth == 16], np.stack([third, fourth]))
    code_4600 = derived(_rows(vectors), 1 / 2)
    return {
        (4600, 23): code_4600,
        (891, 22): derived(code_4600, 1 / 3),
        (552, 23): code_552,
        (275, 22): code_275,
        (162, 21): derived(code_275, 1 / 6),
        (112, 21): derived(code_275, -1 / 4),
        (100, 22): code_100,
    }


def gold_code(K, d):
    """``K`` Gold sequences as unit rows in ``d`` dimensions, with few and small cosines.

    For odd ``m`` with ``2**m - 1 <= d`` and ``K <= 4**m`` the words spanned by an m-sequence and
    its decimation by 3 have cosines ``(-1, -1 +- 2**((m + 1) / 2)) / (2**m - 1)``: the margin is at
    least :func:`nclib.metrics.known_margins.gold_margin` without any optimisation.  The largest
    such ``m`` is used.
    """
    from scipy.signal import max_len_seq  # slow to import, needed for these codes only

    m = gold_degree(K, d)
    if m is None:
        raise checks.InputError(
            f"no Gold code with K={K} words fits d={d}: they need an odd m with 2^m - 1 <= d and "
            "K <= 4^m; use search.solve(K, d)"
        )
    sequence = max_len_seq(m)[0].astype(int)
    decimated = sequence[3 * np.arange(len(sequence)) % len(sequence)]
    basis = [np.roll(s, shift) for s in (sequence, decimated) for shift in range(m)]
    return _pad(1 - 2 * _span(np.array(basis), K), d)


def sharp_code(K, d):
    """The explicitly known sharp code with ``K`` words in ``d`` dimensions, or None.

    Sharp codes are universally optimal, hence optimal Tammes codes; their margin is
    ``1 - max cosine`` because the nearest words of each word average to a multiple of it.
    """
    builders = {
        (12, 3): frames.icosahedron,
        (24, 4): cell_24,  # not sharp (not universally optimal), but an optimal kissing code
        (120, 4): cell_600,
        (16, 5): half_cube,
        (240, 8): e8_roots,
        (56, 7): lambda: derived(e8_roots(), 1 / 2),
        (27, 6): lambda: derived(derived(e8_roots(), 1 / 2), 1 / 3),
        (10, 4): lambda: derived(half_cube(), 1 / 5),
        (196560, 24): lambda: _rows(leech_vectors()),
    }
    if (K, d) in builders:
        return builders[K, d]()
    return _leech_sections()[K, d].clone() if (K, d) in LEECH_SECTIONS else None


LEECH_SECTIONS = ((4600, 23), (891, 22), (552, 23), (275, 22), (162, 21), (112, 21), (100, 22))


def _rows(matrix):
    matrix = torch.as_tensor(np.asarray(matrix, dtype=np.float64))
    return matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)


def _pad(matrix, d):
    used = matrix.shape[1]
    if checks.integer("d", d) < used:
        raise checks.InputError(f"this code needs d >= {used} dimensions, got d={d}")
    return _rows(np.pad(matrix, ((0, 0), (0, d - used))))


def _root_system_d(d):
    """The 2 d (d - 1) roots ``+-e_i +- e_j`` of D_d."""
    return np.array(
        [
            s * np.eye(d)[i] + t * np.eye(d)[j]
            for i, j in combinations(range(d), 2)
            for s, t in product((1, -1), repeat=2)
        ]
    )


def _span(basis, count):
    """The first ``count`` binary words spanned by the rows of ``basis``."""
    bits = (np.arange(count)[:, None] >> np.arange(len(basis))) & 1
    return bits @ basis % 2


def _project(vectors, normals):
    return _rows(vectors @ null_space(normals))


def good_code(K, d):
    """Unit rows ``(K, d)`` with the margin of
    :data:`~nclib.metrics.known_margins.LOWER_BOUNDS`, else None.

    Kept in single precision; found by :func:`nclib.results.large_class.search.search` with several
    seeds and up to 20 000 steps, then perturbed and cooled again.
    """
    with np.load(Path(__file__).with_name("good_codes.npz")) as kept:
        name = f"{K}_{d}"
        return _rows(kept[name]) if name in kept else None
