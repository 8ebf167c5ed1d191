r"""Result 6: where neural collapse is a closed form (Ergen & Pilanci, ICML 2021).

Weight decay is an l1-type norm on neurons, and the dual of the resulting convex problem says which
neurons can be used.  On whitened inputs, and behind a batch-normalised last hidden layer, with
one-hot targets, those neurons are exactly the collapsed features: one per class.

Objective everywhere: :math:`\tfrac12\|f-Y\|_F^2+\tfrac\beta2\sum\|\text{weights}\|^2`, **no 1/n**
(:func:`ufm_beta` and :func:`weight_decay_for` convert).  Rows are samples and weights have torch
layout (out, in): the paper's :math:`XW_1` is ``inputs @ layers[0].T`` here.  ``beta`` is weight
decay, K classes of n_k samples, n in all, ``depth`` L the number of weight matrices.

The value of the collapsed network, :func:`~nclib.metrics.certified.collapsed_value`, and the bounds
on any network are in :mod:`nclib.metrics.certified`; linear networks in ``linear``, one-dimensional
and planar ones in ``ramps``.  Sources: the paper for claims 6.C10-C12 and C14; the counterexample
of 6.C13 is this project's, after Súkeník et al. 2024.
"""

import math
from dataclasses import dataclass

import torch

from nclib import checks, frames
from nclib.metrics.certified import root_counts
from nclib.ufm.scalar import shrink

# --- the collapsed network -----------------------------------------------------------------------


@dataclass(frozen=True)
class Collapse:
    """Geometry of the collapsed network, one entry per class (claims 6.C11-6.C13).

    ``strengths``: singular values t_k of the end-to-end map, 0 for a dropped class.  ``outputs``:
    output of class k on its own samples, ``t_k / sqrt(n_k)``; all other outputs are 0.
    ``mean_norms``: norm of the class mean of the last hidden layer in balanced scaling; the class
    means are orthogonal.  ``weight_norms``: norm of each row of the last layer.  ``value``: its
    cost, :func:`~nclib.metrics.certified.collapsed_value`.
    """

    strengths: torch.Tensor
    outputs: torch.Tensor
    mean_norms: torch.Tensor
    weight_norms: torch.Tensor
    value: float

    def gram(self, labels):
        """Gram matrix ``H H'`` (N, N) of the hidden features for these ``labels``."""
        labels, _ = checks.labels(labels)
        norms = self.mean_norms.to(labels.device)
        checks.require(
            int(labels.max()) < len(norms),
            f"labels must lie in 0..{len(norms) - 1}, found {int(labels.max())}",
        )
        rows = norms[labels][:, None] * torch.nn.functional.one_hot(labels, len(norms))
        return rows @ rows.T


def collapse(counts, beta, depth=2):
    """The :class:`Collapse` of classes with ``counts`` (K,) samples."""
    roots = root_counts(counts)
    values, t = shrink(roots, checks.real("beta", beta, above=0), depth)
    norms = t ** (1 - 1 / depth) / roots, t ** (1 / depth)
    return Collapse(t, t / roots, *norms, float(values.sum()))


# --- whitened inputs -----------------------------------------------------------------------------


def whitening(inputs):
    """Matrix ``V S^-1 V'`` (d, d) for ``inputs = U S V'`` (n, d) of full row rank.

    ``inputs @ matrix`` is whitened, ``X X' = I_n``; test inputs get the same matrix.  Needs n <= d:
    for more samples than dimensions the closed form is only a lower bound (claim 6.C21).
    """
    X = checks.matrix("inputs", inputs, dtype=torch.float64)
    n, d = X.shape
    if n > d:
        raise checks.InputError(
            f"whitening needs at most as many samples as dimensions, got {n} samples in "
            f"{d} dimensions; take a subset of {d} samples"
        )
    _, S, Vh = torch.linalg.svd(X, full_matrices=False)
    _full_row_rank(S, X)
    return Vh.mT / S @ Vh


def whitened_prediction(inputs, labels, beta, new_inputs):
    """Outputs (M, K) on ``new_inputs`` of the depth-2 collapsed net trained on whitened ``inputs``.

    ``inputs`` and ``new_inputs`` are *raw*.  The net is rectified minimum-norm least squares:
    :math:`f_k(x) = (1-\\beta/\\sqrt{n_k})_+ (x X^+ y_k)_+` (claim 6.C23).
    """
    X = checks.matrix("inputs", inputs, dtype=torch.float64)
    new = checks.matrix("new_inputs", new_inputs, columns=X.shape[1], dtype=torch.float64)
    _full_row_rank(torch.linalg.svdvals(X), X)
    Y, counts = _one_hot(labels, X)
    fit = new @ (torch.linalg.pinv(X) @ Y)
    return fit.clamp(min=0) * collapse(counts, beta).outputs.to(X)


def whitened_relu_value(targets, beta):
    """Optimal cost of a two-layer ReLU net with one output on whitened inputs (claim 6.C10).

    ``targets`` (n,): two neurons, one for the positive and one for the negative part.  With several
    outputs no closed form is known.
    """
    y = checks.tensor("targets", targets)
    y = checks.vector("targets", y, y.numel(), torch.float64)
    norms = torch.stack([y.clamp(min=0).norm(), y.clamp(max=0).norm()])
    return float(shrink(norms, checks.real("beta", beta, above=0), 2)[0].sum())


# --- batch-normalised head -----------------------------------------------------------------------


def batch_norm_head(features, labels, beta):
    """Globally optimal BN-ReLU-linear head on ``features`` (n, p), at a cost of
    :func:`~nclib.metrics.certified.collapsed_value` whatever the features are (claim 6.C14).

    Returns the point ``hidden_weight`` (K, p), ``gamma``, ``alpha`` (K,), ``weight`` (K, K) of a
    :class:`~nclib.results.convex_duality.nets.BatchNormNetwork`, in the paper's units.  Every
    centred class indicator must be a linear function of the features (true for p >= n-1 generic
    ones); otherwise that value is only a lower bound, and an :class:`~nclib.checks.InputError` says
    so.
    """
    A = checks.matrix("features", features, dtype=torch.float64)
    Y, counts = _one_hot(labels, A)
    n, shape = len(A), collapse(counts, beta)
    if len(counts) < 2:
        raise checks.InputError("a BN head needs at least two classes: one class has no variation")
    centred, wanted = A - A.mean(0), Y - Y.mean(0)
    centred = centred - centred.mean(0)  # what rounding left of a large mean
    W = torch.linalg.pinv(centred, rtol=max(A.shape) * torch.finfo(A.dtype).eps) @ wanted
    miss = torch.linalg.vector_norm(centred @ W - wanted, dim=0)
    if (miss > 1e-7 * torch.linalg.vector_norm(wanted, dim=0)).any():
        raise checks.InputError(
            f"features of rank {int(torch.linalg.matrix_rank(centred))} after centring cannot "
            f"separate all {len(counts)} classes of {n} samples linearly: the closed form is not "
            f"attained and its value, {shape.value:.6g}, is only a lower bound; use wider features "
            "or fewer samples, or certified_gap for the bound"
        )
    share, root = counts.to(A) / n, shape.weight_norms.to(A)
    norms = {"gamma": root * (1 - share).sqrt(), "alpha": root * share.sqrt()}
    return {"hidden_weight": W.mT, **norms, "weight": torch.diag(root)}


# --- one input dimension: where the deep spline law stops -----------------------------------------


def odd_pair_value(beta, depth):
    """Optimal cost on the points (-1, -1) and (1, 1), biases in the last hidden layer and the
    output only, ``depth`` L >= 3 (claim 6.C19).

    From one point to the other the first layer moves by ``|w|``, since ``w`` and ``-w`` are cut to
    disjoint halves, and the others by at most their norm: the output moves by at most the product
    of the norms, which half the decay bounds.  The spline law believes in twice that product.
    """
    beta, depth = checks.real("beta", beta, at_least=0), checks.integer("depth", depth, 3)
    return shrink(math.sqrt(2), beta * 2 ** (1 / depth), depth)[0]


def hat_network(beta, shift=0.0):
    """Depth-3 network for the values (0, 0, 1, 0, 0) at -2, …, 2, all moved by ``shift`` (6.C19).

    One neuron that sees ``|x|`` makes all three kinks, which the spline law pays one by one.  The
    point of a :class:`~nclib.results.convex_duality.nets.Network` of widths 2 and 1, at the best
    scale; its ``bias_1`` is zero without a shift.
    """
    beta, shift = checks.real("beta", beta, at_least=0), checks.real("shift", shift)
    height = shrink(math.sqrt(0.8), beta * 5 ** (1 / 3), 3)[1] / math.sqrt(0.8)
    norm = (2 * height) ** (1 / 3)
    fold = torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * norm / math.sqrt(2)
    bias = torch.tensor([norm**2 / 2], dtype=torch.float64)
    return {
        "hidden_1": fold, "bias_1": -shift * fold[:, 0], "hidden_2": -fold.mT.abs(),
        "bias_2": bias, "weight": torch.full_like(fold[:1], norm),
        "bias": torch.full_like(bias, (1 - height) / 5),
    }  # fmt: skip


# --- deeper than the theorem: collapse is not optimal --------------------------------------------


def pair_layers(points, depth):
    """ReLU layers that map I_K to itself through rank s = ``points`` (6.C13), ``depth`` L >= 3.

    The K = s(s-1)/2 classes are the pairs of s points.  :func:`norm_ratio`
    ``s/2 (2/(s-1))^(L-3)``: below one from L = 5 and s = 4 on.
    """
    points, depth = checks.integer("points", points, 3), checks.integer("depth", depth, 3)
    A = frames.pairs(points)
    return [A.mT, *_identities(points, depth - 3), A - 0.5, *_identities(len(A), 1)]


def triple_layers(depth):
    """ReLU layers that map I_3 to itself through a plane (6.C13), ``depth`` L >= 3.

    The classes sit at (1, 0), (0, 1) and (b, b); the last hidden layer tells the first two apart
    and adds up, the output corrects the third.  :func:`norm_ratio` 58.28 2^(L-3) / 3^L at the best
    scales: below one from L = 5 on.
    """
    b2 = 0.7  # the best is close
    A, B = 2 + 1 / (2 * b2), 1 / (4 * b2)
    r, b = (2 * B / A) ** 0.25, math.sqrt(b2)
    first, last = [[1, 0, b], [0, 1, b]], [[1, -1], [-1, 1], [r, r]]
    head = [[1, 0, 0], [0, 1, 0], [-1 / (2 * b), -1 / (2 * b), 1 / (2 * b * r)]]
    first, last, head = (torch.tensor(w, dtype=torch.float64) for w in (first, last, head))
    return [first, *_identities(2, checks.integer("depth", depth, 3) - 3), last, head]


def norm_ratio(layers):
    """``prod ||W_l||_F^2`` of layers that map I_K to itself, over the K^L of collapse; < 1 means
    cheaper.

    Raises :class:`~nclib.checks.InputError` for layers, with ReLUs between, that do not."""
    checks.require(len(layers), "layers is empty: give at least one matrix")
    out = identity = torch.eye(len(layers[-1])).to(layers[-1])
    for layer in layers[:-1]:
        out = (out @ layer.mT).relu()
    out = out @ layers[-1].mT
    checks.require(
        torch.allclose(out, identity, atol=1e-6), "these layers do not map I_K to itself"
    )
    norms = math.prod(float(layer.square().sum()) for layer in layers)
    return norms / len(layers[-1]) ** len(layers)


def bottleneck_value(layers, beta):
    """Cost of :func:`best_scaled` layers: ``K h_{beta',L}(1)``, beta' = beta norm_ratio^(1/L)."""
    cost, _ = _best_scale(layers, beta)
    return len(layers[-1]) * cost


def best_scaled(layers, beta):
    """The same layers at equal norms and the best scale for X = Y = I_K: they map I_K to the
    multiple of it that costs least."""
    _, height = _best_scale(layers, beta)
    K, depth = len(layers[-1]), len(layers)
    norm = math.sqrt(K) * (norm_ratio(layers) ** 0.5 * height) ** (1 / depth)
    return [layer * (norm / float(layer.norm())) for layer in layers]


def _best_scale(layers, beta):
    ratio, beta = norm_ratio(layers), checks.real("beta", beta, above=0)
    return shrink(1.0, beta * ratio ** (1 / len(layers)), len(layers))


def _identities(size, count):
    return [torch.eye(size, dtype=torch.float64) for _ in range(count)]


# --- units ---------------------------------------------------------------------------------------


def weight_decay_for(K, rho):
    """PyTorch weight decay of a BN head at which ``beta`` is ``rho`` times the root of the class
    size, for K balanced classes and every batch size: ``2 rho / K^(3/2)``.

    Loss ``nn.MSELoss()``, decay on BN weight, BN bias and last layer; at ``rho`` = 1 every output
    is zero.
    """
    return 2 * checks.real("rho", rho, above=0) / checks.integer("K", K) ** 1.5


def ufm_beta(n, lambda_w, lambda_h):
    """``beta = n sqrt(lambda_w lambda_h)`` of the unconstrained-features model (claim 6.C21).

    Its objective ``1/(2n) ||HW'-Y||^2 + lambda_w/2 ||W||^2 + lambda_h/2 ||H||^2`` is the paper's
    value divided by n.
    """
    n = checks.integer("n", n)
    lambda_w = checks.real("lambda_w", lambda_w, at_least=0)
    return n * math.sqrt(lambda_w * checks.real("lambda_h", lambda_h, at_least=0))


# --- helpers -------------------------------------------------------------------------------------


def _one_hot(labels, like):
    """One-hot targets (n, K), in dtype and on the device of ``like``, and class sizes (K,)."""
    labels, K = checks.labels(labels, length=len(like))
    return torch.nn.functional.one_hot(labels, K).to(like), checks.class_counts(labels, K)


def _full_row_rank(singular, X):
    checks.require(X.numel(), f"inputs is empty, got shape {tuple(X.shape)}")
    cut = max(X.shape) * torch.finfo(X.dtype).eps * float(singular.max())
    rank = int((singular > cut).sum())
    if rank < len(X):
        raise checks.InputError(
            f"inputs must have full row rank to be whitened: {len(X)} samples span only {rank} "
            "dimensions; drop repeated samples or take fewer"
        )
