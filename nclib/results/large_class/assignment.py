"""Which class goes to which vertex of a code: the quadratic assignment of claim 4.G18."""

from itertools import permutations

import numpy as np
import torch
from scipy.optimize import quadratic_assignment

from nclib import checks

# The three ways to put four classes on a square, by who is opposite class 0; class k on order[k].
SQUARE = {1: (0, 2, 1, 3), 2: (0, 1, 2, 3), 3: (0, 1, 3, 2)}


def assign_classes(distances, code):
    """``order`` with class k on row ``order[k]`` of ``code`` that maximises
    ``sum_ij D_ij |v_order(i) - v_order(j)|``: similar classes come to lie next to each other.

    ``distances``: symmetric ``(K, K)``, such as those between class means.  Exact for K <= 7, else
    the best of scipy's FAQ, refined by 2-opt, from several starts.  Returns a tuple.
    """
    distances = checks.matrix("distances", distances, dtype=torch.float64)
    K = len(distances)
    if distances.shape != (K, K) or not torch.allclose(distances, distances.T):
        raise checks.InputError("distances must be a symmetric (K, K) matrix")
    code = checks.matrix("code", code, rows=K, dtype=torch.float64)
    first, second = (d.numpy(force=True) for d in (distances, pairwise(code)))
    if K <= 7:
        orders = np.array(list(permutations(range(K))))
        scores = (first * second[orders[:, :, None], orders[:, None, :]]).sum((1, 2))
        return tuple(orders[scores.argmax()].tolist())
    options = {"maximize": True, "rng": np.random.default_rng(0)}
    found = []
    for _ in range(4):
        rough = quadratic_assignment(first, second, options=options | {"P0": "randomized"})
        guess = np.column_stack([np.arange(K), rough.col_ind])
        refine = options | {"partial_guess": guess}
        found.append(quadratic_assignment(first, second, method="2opt", options=refine))
    return tuple(max(found, key=lambda f: f.fun).col_ind.tolist())


def pairwise(rows):
    """Euclidean distances between rows, without the cancellation of a matrix product."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
