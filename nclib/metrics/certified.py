"""How far is *your* network from the best its last layers could do?  A certificate in one call.

For a head ``Linear -> BatchNorm1d -> ReLU -> Linear`` trained with squared loss or cross-entropy
and weight decay, result 6 knows a lower bound on the training objective that **no** backbone can
beat.  :func:`certified_gap` evaluates your objective and the bound in the units that PyTorch logs.
"""

import math
from dataclasses import dataclass

import torch

from nclib import checks
from nclib.metrics.precision import exact
from nclib.results.convex_duality import theory

LOSSES = ("mse", "half_mse", "cross_entropy")


@dataclass(frozen=True)
class Certificate:
    """Objective of a BN-ReLU-linear head and lower bounds on it, in the units of its loss.

    ``objective``: loss + decay of the head, measured in training mode on the batch given.
    ``optimum``: closed form that bounds every network from below, reached by wide enough
    backbones; NaN where there is none (cross-entropy on unequal classes).
    ``dual``: the bound that this network's own residual certifies; it rises to the optimum as
    training converges.  NaN for cross-entropy with an output bias, or if not asked for.
    ``beta``: weight decay in the paper's units.
    ``dropped``: classes whose outputs are zero at the optimum, because ``beta >= sqrt(n_k)``.
    """

    objective: float
    optimum: float
    dual: float
    beta: float
    dropped: tuple

    @property
    def lower_bound(self):
        """The better of the two bounds."""
        return max(bound for bound in (self.optimum, self.dual) if not math.isnan(bound))

    @property
    def gap(self):
        """Certified gap: the head cannot be improved by more than this, with any backbone."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self):
        """``gap / lower_bound``; infinite if the bound is zero."""
        return self.gap / self.lower_bound if self.lower_bound > 0 else math.inf

    @property
    def duality_gap(self):
        """``objective - dual``: needs nothing but the network's own residual; NaN without it."""
        return self.objective - self.dual


@exact
def certified_gap(
    features,
    labels,
    weight,
    *,
    bn_weight,
    bn_bias,
    weight_decay,
    bias=None,
    loss="mse",
    eps=1e-5,
    dual=True,
):
    """Certified optimality gap of a head ``BatchNorm1d -> ReLU -> Linear``: a :class:`Certificate`.

    Args:
        features: ``(N, m)``, the *inputs* of the BatchNorm1d layer, of one batch or of the whole
            training set.  They are normalised with their own mean and variance, as in training.
        labels: ``(N,)`` class indices; a class may be absent from the batch.
        weight: ``(K, m)`` weight of the last linear layer.
        bn_weight, bn_bias: ``(m,)`` weight and bias of the BatchNorm1d layer.
        weight_decay: as in ``torch.optim.SGD`` or ``Adam``, on ``bn_weight``, ``bn_bias`` and
            ``weight``; or a pair ``(batch norm, last layer)``.  (AdamW's decoupled decay is not an
            objective.)  Decay of other parameters, or of ``bias``, only adds to the objective.
        bias: ``(K,)`` of the last layer, or ``None``.
        loss: ``"mse"`` (``nn.MSELoss()`` on one-hot targets, a mean over N·K), ``"half_mse"``
            (``½‖·‖²``, mean over N), ``"cross_entropy"`` (mean over N).
        eps: of the BatchNorm1d layer; the bounds hold for every value.
        dual: ``False`` skips the network's own bound, the only part that costs N² operations.

    Raises :class:`~nclib.checks.InputError` for shapes that do not fit, zero weight decay (the
    optimum is then 0), or cross-entropy with a bias on unequal classes (no bound is known).
    Claims 6.C14, 6.C15, 6.C22.
    """
    z = _detached("features", features)
    W = _detached("weight", weight, columns=z.shape[1]).to(z.device)
    K = len(W)
    labels, _ = checks.labels(labels, K, length=len(z))
    gamma, shift = (
        _vector(name, value, z.shape[1]).to(z.device)
        for name, value in (("bn_weight", bn_weight), ("bn_bias", bn_bias))
    )
    checks.choice("loss", loss, LOSSES)
    eps = checks.real("eps", eps, at_least=0)
    decay_bn, decay_head = _decays(weight_decay)
    n = len(z)
    # objective = unit * (paper's objective); the paper's data term is half a sum, or a sum of CE.
    unit = {"mse": 2 / (n * K), "half_mse": 1 / n, "cross_entropy": 1 / n}[loss]
    beta = (decay_bn * decay_head / n) ** 0.5 / unit

    outputs = _batch_norm(z, gamma, shift, eps).clamp(min=0) @ W.mT
    if bias is not None:
        outputs = outputs + _vector("bias", bias, K).to(z.device)
    counts = torch.bincount(labels, minlength=K)
    penalty = decay_bn * (gamma @ gamma + shift @ shift) + decay_head * W.square().sum()
    judge = _cross_entropy if loss == "cross_entropy" else _squared
    data, optimum, bound = judge(outputs, labels.to(z.device), counts, beta, bias is not None, dual)
    if math.isnan(optimum) and math.isnan(bound):
        raise checks.InputError(
            "no lower bound is known for cross-entropy on unequal classes "
            + ("with an output bias" if bias is not None else "with dual=False")
            + "; use a batch with equally many samples of each class, or "
            + ("a head without bias" if bias is not None else "dual=True")
        )
    small = (counts > 0) & (counts.double().sqrt() <= beta)
    dropped = () if loss == "cross_entropy" or bias is not None else small.nonzero().flatten()
    return Certificate(
        objective=unit * data + float(penalty) / 2,
        optimum=unit * optimum,
        dual=unit * bound,
        beta=beta,
        dropped=tuple(int(k) for k in dropped),
    )


def _squared(outputs, labels, counts, beta, free_bias, dual):
    """Data term, closed-form bound and dual bound of half the summed squares."""
    Y = torch.nn.functional.one_hot(labels, len(counts)).to(outputs)
    residual, present = Y - outputs, counts[counts > 0]
    if not free_bias:
        optimum = theory.collapsed_value(present, beta)
    else:
        optimum = theory.free_bias_bounds(present, beta)[0] if len(present) > 1 else 0.0
    # A free bias adds the constraint that the dual point sums to zero over the samples.
    point = residual - residual.mean(0) if free_bias else residual
    bound = theory.dual_bound(point, Y, beta) if dual else math.nan
    return float(residual.square().sum()) / 2, optimum, bound


def _cross_entropy(outputs, labels, counts, beta, free_bias, dual):
    """The same for summed cross-entropy."""
    balanced = int(counts.min()) == int(counts.max())
    optimum = (
        theory.cross_entropy_value(int(counts[0]), len(counts), beta) if balanced else math.nan
    )
    bound = math.nan
    if dual and not free_bias:
        bound = theory.cross_entropy_dual_bound(outputs, labels, beta)
    return (
        float(torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")),
        optimum,
        bound,
    )


def _batch_norm(z, weight, bias, eps):
    centred = z - z.mean(0)
    deviation = (centred.square().mean(0) + eps).sqrt()
    return torch.where(deviation > 0, weight * centred / deviation, 0.0) + bias


def _decays(weight_decay):
    pair = weight_decay if isinstance(weight_decay, tuple | list) else (weight_decay, weight_decay)
    if len(pair) != 2:
        raise checks.InputError(
            "weight_decay must be one number or a pair (batch norm, last layer), "
            f"got {weight_decay!r}"
        )
    return tuple(checks.real("weight_decay", decay, above=0) for decay in pair)


def _detached(name, value, **shape):
    return checks.matrix(name, checks.tensor(name, value).detach(), dtype=torch.float64, **shape)


def _vector(name, value, length):
    return checks.vector(name, checks.tensor(name, value).detach(), length, torch.float64)
