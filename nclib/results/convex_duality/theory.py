r"""Result 6: where neural collapse is a closed form (Ergen and Pilanci, ICML 2021).

Weight decay is an l1-type norm on neurons, and the dual of the resulting convex problem says which
neurons can be used.  On whitened inputs, and behind a batch-normalised last hidden layer, with
one-hot targets, those neurons are exactly the collapsed features: one per class.

Objective everywhere: :math:`\tfrac12\|f-Y\|_F^2+\tfrac\beta2\sum\|\text{weights}\|^2`, **no 1/n**;
:func:`pytorch_beta` converts.  Rows are samples and weights have torch layout (out, in): the
paper's :math:`XW_1` is ``inputs @ layers[0].T`` here.  ``beta`` is weight decay, K classes of n_k
samples, n in all.  The linear, one-dimensional and planar parts live in ``linear_networks``,
``splines`` and ``relu_program`` and can be imported from here.

Sources: the paper for claims 6.C1-C14 and C16-C23; claims 6.C8 (the gap), C13 (the
counterexample), C15, C19 (where it stops), the dual bound and the free-bias and cross-entropy
values are this project's.
"""

import math
from dataclasses import dataclass

import torch

from nclib import checks
from nclib.metrics.certified import collapsed_value as collapsed_value
from nclib.metrics.certified import cross_entropy_dual_bound as cross_entropy_dual_bound
from nclib.metrics.certified import cross_entropy_margin as cross_entropy_margin
from nclib.metrics.certified import cross_entropy_value as cross_entropy_value
from nclib.metrics.certified import dual_bound as dual_bound
from nclib.metrics.certified import free_bias_bounds as free_bias_bounds
from nclib.metrics.certified import root_counts
from nclib.results.convex_duality.linear import LinearMap as LinearMap
from nclib.results.convex_duality.linear import depth_scalar as depth_scalar
from nclib.results.convex_duality.linear import fixed_norm_values as fixed_norm_values
from nclib.results.convex_duality.linear import linear_dual_bound as linear_dual_bound
from nclib.results.convex_duality.linear import linear_map as linear_map
from nclib.results.convex_duality.linear import linear_value as linear_value
from nclib.results.convex_duality.linear import minimum_norm_certificate as minimum_norm_certificate
from nclib.results.convex_duality.linear import minimum_norm_layers as minimum_norm_layers
from nclib.results.convex_duality.linear import minimum_norm_value as minimum_norm_value
from nclib.results.convex_duality.linear import rank_one_value as rank_one_value
from nclib.results.convex_duality.linear import scalar_output as scalar_output
from nclib.results.convex_duality.linear import whitened_linear_value as whitened_linear_value
from nclib.results.convex_duality.linear import whitened_singular_values as whitened_singular_values
from nclib.results.convex_duality.linear import zero_threshold as zero_threshold
from nclib.results.convex_duality.relu_program import PlanarNetwork as PlanarNetwork
from nclib.results.convex_duality.relu_program import largest_activation as largest_activation
from nclib.results.convex_duality.relu_program import relu_dual_bound as relu_dual_bound
from nclib.results.convex_duality.relu_program import two_layer_relu as two_layer_relu
from nclib.results.convex_duality.splines import Spline as Spline
from nclib.results.convex_duality.splines import constant_threshold as constant_threshold
from nclib.results.convex_duality.splines import deep_spline as deep_spline
from nclib.results.convex_duality.splines import fit_spline as fit_spline
from nclib.results.convex_duality.splines import interpolation_norm as interpolation_norm
from nclib.results.convex_duality.splines import interpolation_spline as interpolation_spline
from nclib.results.convex_duality.splines import lasso_1d as lasso_1d
from nclib.results.convex_duality.splines import spline_dual_bound as spline_dual_bound
from nclib.ufm.scalar import thresholds as thresholds

# --- the collapsed network -----------------------------------------------------------------------


@dataclass(frozen=True)
class Collapse:
    """Geometry of the collapsed network, one entry per class (claims 6.C11-6.C13).

    ``strengths``: singular values t_k of the end-to-end map, 0 for a dropped class.  ``outputs``:
    output of class k on its own samples, ``t_k / sqrt(n_k)``; all other outputs are 0.
    ``mean_norms``: norm of the class mean of the last hidden layer in balanced scaling; the class
    means are orthogonal.  ``weight_norms``: norm of each row of the last layer.  ``alive``: bool.
    """

    class_counts: torch.Tensor
    strengths: torch.Tensor
    outputs: torch.Tensor
    mean_norms: torch.Tensor
    weight_norms: torch.Tensor
    alive: torch.Tensor
    value: float

    def gram(self, labels):
        """Gram matrix ``H H'`` (N, N) of the hidden features for these ``labels``."""
        norms = self.mean_norms.to(labels.device)
        rows = norms[labels][:, None] * torch.nn.functional.one_hot(labels, len(norms))
        return rows @ rows.T


def collapse(class_counts, beta, depth=2):
    """The :class:`Collapse` that attains :func:`collapsed_value`."""
    sizes = root_counts(class_counts)
    values, t = depth_scalar(sizes, beta, depth)
    return Collapse(
        class_counts=(sizes**2).round().long(),
        strengths=t,
        outputs=t / sizes,
        mean_norms=t ** (1 - 1 / depth) / sizes,
        weight_norms=t ** (1 / depth),
        alive=t > 0,
        value=float(values.sum()),
    )


def class_thresholds(class_counts, depth=2):
    """``beta`` at and above which each class is dropped, (K,): sqrt(n_k) at depth 2 (6.C11)."""
    return thresholds(root_counts(class_counts), depth)[0]


# --- whitened inputs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Whitening:
    """The linear map that made the training inputs whitened: call it on test inputs too."""

    matrix: torch.Tensor

    def __call__(self, inputs):
        """``inputs @ matrix``; whitened training inputs have ``X X' = I_n``."""
        width = len(self.matrix)
        return checks.matrix("inputs", inputs, columns=width, dtype=torch.float64) @ self.matrix


def whitening(inputs):
    """:class:`Whitening` with matrix ``V S^-1 V'`` for ``inputs = U S V'`` (n, d) of full row rank.

    Needs n <= d: X'X = I_d for more samples than dimensions is a different problem, for which the
    closed form is only a lower bound (claim 6.C21).
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
    return Whitening(Vh.mT / S @ Vh)


def whitened_layers(inputs, labels, beta, depth=2, *, num_classes=None):
    """Collapsed ReLU network on whitened ``inputs`` (n, d): list of ``depth`` torch-layout layers.

    Hidden width K, one neuron per class (claims 6.C11, 6.C13): cost :func:`collapsed_value`.
    """
    X = checks.matrix("inputs", inputs, dtype=torch.float64)
    identity = torch.eye(len(X), dtype=X.dtype, device=X.device)
    if not torch.allclose(X @ X.mT, identity, atol=1e-8):
        raise checks.InputError("inputs are not whitened (X X' = I); use whitening(inputs)(inputs)")
    Y, counts = _one_hot(labels, num_classes, length=len(X))
    shape = collapse(counts, beta, depth)
    root = (shape.strengths ** (1 / depth)).to(X.device)
    first = (root / counts.to(X) ** 0.5)[:, None] * (Y.to(X).mT @ X)
    return [first, *[torch.diag(root) for _ in range(depth - 1)]]


def whitened_prediction(inputs, labels, beta, new_inputs, *, num_classes=None):
    """Outputs (M, K) on ``new_inputs`` of the depth-2 collapsed net trained on whitened ``inputs``.

    ``inputs`` and ``new_inputs`` are *raw*.  The net is rectified minimum-norm least squares:
    :math:`f_k(x) = (1-\\beta/\\sqrt{n_k})_+ (x X^+ y_k)_+` (section 3.9c).
    """
    X = checks.matrix("inputs", inputs, dtype=torch.float64)
    new = checks.matrix("new_inputs", new_inputs, columns=X.shape[1], dtype=torch.float64)
    _full_row_rank(torch.linalg.svdvals(X), X)
    Y, counts = _one_hot(labels, num_classes, length=len(X))
    fit = new @ (torch.linalg.pinv(X) @ Y.to(X))
    return fit.clamp(min=0) * collapse(counts, beta).outputs.to(X)


def whitened_relu_value(targets, beta, depth=2):
    """Optimal cost of a ReLU net with one output on whitened inputs (claim 6.C10).

    ``targets`` (n,) or (n, 1).  Two neurons, one for the positive and one for the negative part.
    InputError for several outputs: see `whitened_relu_bracket`.
    """
    y = checks.tensor("targets", targets)
    if y.ndim == 2:
        y = checks.matrix("targets", y, columns=1)[:, 0]
    y = checks.vector("targets", y, y.numel(), torch.float64)
    return float(
        sum(depth_scalar(_norm(part), beta, depth)[0] for part in (y.clamp(min=0), y.clamp(max=0)))
    )


def whitened_relu_bracket(targets, beta):
    """``(lower, upper)`` for two-layer whitened ReLU with any ``targets`` (n, K) (section 3.3).

    No closed form is known; they are the linear network's value and one neuron pair per output.
    Equal when the columns have disjoint supports and one sign, as one-hot columns do.
    """
    Y = checks.matrix("targets", targets, dtype=torch.float64)
    return whitened_linear_value(Y, beta), sum(whitened_relu_value(y, beta) for y in Y.mT)


# --- batch-normalised head -----------------------------------------------------------------------


@dataclass(frozen=True)
class BatchNormHead:
    """Optimal BN-ReLU-linear head: ``hidden_weight`` (K, p), ``gamma``, ``alpha`` (K,), ``weight``.

    Paper's units: BN output ``gamma (z - mean)/norm + alpha/sqrt(n)``, with ``mean`` and ``norm``
    of the training batch kept, so calling the head on other features applies the same network.
    :meth:`pytorch` converts to the parameters of torch modules.
    """

    hidden_weight: torch.Tensor
    gamma: torch.Tensor
    alpha: torch.Tensor
    weight: torch.Tensor
    mean: torch.Tensor
    norm: torch.Tensor
    num_samples: int
    value: float

    def hidden(self, features):
        """Last-layer features (M, K), after BN and ReLU."""
        z = torch.as_tensor(features).to(self.hidden_weight) @ self.hidden_weight.mT - self.mean
        return (self.gamma * z / self.norm + self.alpha / math.sqrt(self.num_samples)).clamp(min=0)

    def __call__(self, features):
        """Outputs (M, K)."""
        return self.hidden(features) @ self.weight.mT

    def pytorch(self):
        """``(bn_weight, bn_bias, weight)`` of BatchNorm1d and Linear, optimal for equal decay.

        BN's unit variance turns gamma into ``gamma/sqrt(n)``; balancing equal decay on both
        modules then moves a factor ``n^(1/4)`` between them.
        """
        scale = self.num_samples**-0.25
        return scale * self.gamma, scale * self.alpha, scale * self.weight


def batch_norm_head(features, labels, beta, *, num_classes=None):
    """Globally optimal BN-ReLU-linear head, a :class:`BatchNormHead`, on ``features`` (n, p).

    Claim 6.C14.  Its cost, ``value``, is :func:`collapsed_value` whatever the features are, if
    every centred class indicator is a linear function of them (true for p >= n-1 generic features).
    Otherwise that value is only a lower bound, and an :class:`~nclib.checks.InputError` says so.
    """
    A = checks.matrix("features", features, dtype=torch.float64)
    n = len(A)
    Y, counts = _one_hot(labels, num_classes, length=n)
    Y, counts = Y.to(A), counts.to(A)
    if len(counts) < 2:
        raise checks.InputError("a BN head needs at least two classes: one class has no variation")
    shape = collapse(counts, beta)
    centred, wanted = A - A.mean(0), Y - counts / n
    W = torch.linalg.pinv(centred, rtol=max(A.shape) * torch.finfo(A.dtype).eps) @ wanted
    miss = torch.linalg.vector_norm(centred @ W - wanted, dim=0) / torch.linalg.vector_norm(
        wanted, dim=0
    )
    if (miss > 1e-7).any():
        raise checks.InputError(
            f"features of rank {int(torch.linalg.matrix_rank(centred))} after centring cannot "
            f"separate all {len(counts)} classes of {n} samples linearly: the closed form is not "
            f"attained and its value, {shape.value:.6g}, is only a lower bound; use wider features "
            "or fewer samples, or certified_gap for the bound"
        )
    share, root = counts / n, shape.weight_norms.to(A)
    return BatchNormHead(
        hidden_weight=W.mT,
        gamma=root * (1 - share).sqrt(),
        alpha=root * share.sqrt(),
        weight=torch.diag(root),
        mean=A.mean(0) @ W,
        norm=(counts * (1 - share)).sqrt(),
        num_samples=n,
        value=shape.value,
    )


# --- deeper than the theorem: collapse is not optimal --------------------------------------------


def pair_network(points, depth):
    """Interpolating ReLU network on X = Y = I_K that can be cheaper than collapse (claim 6.C13).

    The K = s(s-1)/2 classes are the pairs of s = ``points`` points; the information goes through a
    bottleneck of rank s.  Cheaper from depth 5 and s = 4 on (:func:`pair_ratio`); at depth 4 it is
    a start from which descent wins for K >= 10.  Returns ``depth`` >= 3 torch-layout layers,
    unscaled; :func:`scaled_pair_network` scales them.
    """
    s, depth = checks.integer("points", points, 3), checks.integer("depth", depth, 3)
    pairs = torch.combinations(torch.arange(s))
    incidence = torch.zeros(len(pairs), s, dtype=torch.float64).scatter_(1, pairs, 1.0)
    middle = [torch.eye(s, dtype=torch.float64) for _ in range(depth - 3)]
    return [incidence.mT, *middle, incidence - 0.5, torch.eye(len(pairs), dtype=torch.float64)]


def pair_value(points, depth, beta):
    """Cost of :func:`pair_network` at its best scaling: ``K h_{beta',L}(1)`` (section 3.7)."""
    ratio, K = pair_ratio(points, depth), math.comb(points, 2)
    return (
        K * depth_scalar(1.0, checks.real("beta", beta, above=0) * ratio ** (1 / depth), depth)[0]
    )


def pair_ratio(points, depth):
    """``prod ||W_l||_F^2`` of the pair network over the collapsed ``K^L``; < 1 means cheaper."""
    s, depth = checks.integer("points", points, 3), checks.integer("depth", depth, 3)
    return s / 2 * (2 / (s - 1)) ** (depth - 3)


def balanced_layers(layers, strength=1.0):
    """``layers`` rescaled to one Frobenius norm; the function is multiplied by ``strength``."""
    strength = checks.real("strength", strength, at_least=0)
    norms = [float(torch.linalg.matrix_norm(layer)) for layer in layers]
    common = math.prod(norm ** (1 / len(layers)) for norm in norms) * strength ** (1 / len(layers))
    return [layer * (common / norm) for layer, norm in zip(layers, norms, strict=True)]


def scaled_pair_network(points, depth, beta):
    """The :func:`pair_network` with the scaling that attains :func:`pair_value`."""
    ratio = pair_ratio(points, depth)
    t = depth_scalar(1.0, checks.real("beta", beta, above=0) * ratio ** (1 / depth), depth)[1]
    return balanced_layers(pair_network(points, depth), t)


# --- units ---------------------------------------------------------------------------------------


def pytorch_beta(num_samples, num_classes, weight_decay):
    """``beta`` of MSELoss (mean over n·K) + ``weight_decay`` on BN weight, BN bias and last layer.

    ``beta = sqrt(n) K weight_decay / 2`` (section 3.9b); ``weight_decay`` as in torch.optim, that
    is ``weight_decay/2 ||.||^2`` in the objective.
    """
    n, K = checks.integer("num_samples", num_samples), checks.integer("num_classes", num_classes)
    return math.sqrt(n) * K * checks.real("weight_decay", weight_decay, above=0) / 2


def pytorch_objective(value, num_samples, num_classes):
    """``value`` in the paper's units as MSELoss + decay: ``2/(nK) value`` (section 3.9b)."""
    n, K = checks.integer("num_samples", num_samples), checks.integer("num_classes", num_classes)
    return 2 * value / (n * K)


def collapse_weight_decay(num_classes):
    """Weight decay at and above which a balanced PyTorch BN head outputs zero: ``2/K^(3/2)``."""
    return 2 / checks.integer("num_classes", num_classes) ** 1.5


def ufm_beta(num_samples, lambda_w, lambda_h):
    """``beta = n sqrt(lambda_w lambda_h)`` of the unconstrained-features model (section 3.9a).

    Its objective ``1/(2n) ||HW'-Y||^2 + lambda_w/2 ||W||^2 + lambda_h/2 ||H||^2`` is the paper's
    value divided by n.
    """
    n = checks.integer("num_samples", num_samples)
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    return n * math.sqrt(lambda_w * checks.real("lambda_h", lambda_h, above=0))


def layer_beta(decays):
    """One ``beta`` for layers with different weight decays: their geometric mean (section 3.9a)."""
    decays = [checks.real("decays", decay, above=0) for decay in decays]
    if not decays:
        raise checks.InputError("decays is empty: give one weight decay per layer")
    return math.exp(sum(map(math.log, decays)) / len(decays))


# --- helpers -------------------------------------------------------------------------------------


def _one_hot(labels, num_classes, *, length):
    labels, K = checks.labels(labels, num_classes, length=length)
    counts = checks.class_counts(labels, K)
    return torch.nn.functional.one_hot(labels, K).to(torch.float64), counts


def _full_row_rank(singular, X):
    cut = max(X.shape) * torch.finfo(X.dtype).eps * float(singular.max())
    rank = int((singular > cut).sum())
    if rank < len(X):
        raise checks.InputError(
            f"inputs must have full row rank to be whitened: {len(X)} samples span only {rank} "
            "dimensions; drop repeated samples or take fewer"
        )


def _norm(vector):
    return float(torch.linalg.vector_norm(vector))
