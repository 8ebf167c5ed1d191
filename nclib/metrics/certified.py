"""How far is *your* network from the best its last layers could do?  A certificate in one call.

For a head ``Linear -> BatchNorm1d -> ReLU -> Linear`` trained with squared loss or cross-entropy
and weight decay, result 6 (Ergen & Pilanci, ICML 2021) knows a lower bound on the training
objective that **no** backbone can beat.  :func:`certified_gap` evaluates your objective and the
bound in the units that PyTorch logs.

The bounds themselves follow below it, in the paper's units: half a sum of squares, or a sum of
cross-entropies, plus ``beta/2`` times the squared weights, **no** 1/n.
"""

import math
from dataclasses import dataclass

import torch

from nclib import checks
from nclib.metrics.precision import exact
from nclib.ufm.scalar import shrink

LOSSES = ("mse", "half_mse", "cross_entropy")
_DENSE, _BLOCK = 256, 2048  # samples of an eigenvalue problem solved whole; rows of a larger one


@dataclass(frozen=True)
class Certificate:
    """Objective of a BN-ReLU-linear head and lower bounds on it, in the units of its loss.

    ``objective``: loss + decay of the head, measured in training mode on the batch given.
    ``optimum``: closed form that bounds every network from below, reached by wide enough
    backbones; NaN where there is none (cross-entropy on unequal classes).
    ``dual``: the bound that this network's own residual certifies; it rises to the optimum as
    training converges.  NaN for cross-entropy with an output bias, or if not asked for.
    ``beta``: weight decay in the paper's units.
    ``dropped``: classes whose outputs are zero at the optimum, because ``beta >= sqrt(n_k)``
    (squared losses without output bias; else empty, which says nothing).
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
        optimum = collapsed_value(present, beta)
    else:
        optimum = free_bias_bounds(present, beta)[0] if len(present) > 1 else 0.0
    # A free bias adds the constraint that the dual point sums to zero over the samples.
    point = residual - residual.mean(0) if free_bias else residual
    bound = dual_bound(point, Y, beta) if dual else math.nan
    return float(residual.square().sum()) / 2, optimum, bound


def _cross_entropy(outputs, labels, counts, beta, free_bias, dual):
    """The same for summed cross-entropy."""
    balanced = int(counts.min()) == int(counts.max())
    optimum = cross_entropy_value(int(counts[0]), len(counts), beta) if balanced else math.nan
    bound = math.nan
    if dual and not free_bias:
        bound = cross_entropy_dual_bound(outputs, labels, beta)
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


# Bounds -----------------------------------------------------------------------------------------


def collapsed_value(counts, beta, factors=2):
    r"""Cost of the collapsed network, :math:`\sum_k h_{\beta,L}(\sqrt{n_k})`, a float.

    ``counts``: samples per class (K,), balanced or not; ``factors``: L, the number of layers.  For
    L = 2 the global optimum on whitened inputs (claim 6.C11) and of a BN-ReLU-linear head (6.C14),
    and a lower bound for every such head (6.C15).  Whitened ReLU nets with L >= 4 and many classes
    go *below* it (6.C13).
    """
    return float(shrink(root_counts(counts), beta, factors)[0].sum())


def dual_bound(residual, targets, beta):
    r"""Lower bound on the optimal cost from any network with a non-negative last hidden layer.

    ``residual`` = ``targets - outputs``, both (n, K) or (n,).  Valid for a BN-ReLU head and for
    two-layer ReLU on whitened inputs; on inputs with ``sigma_max(X) = s`` pass ``beta / s``.

    .. math:: D=\tfrac12\|Y\|^2-\tfrac12\|cE-Y\|^2,\quad
       c=\min\bigl(1,\beta/\sqrt{\lambda_{\max}(\max(EE^\top,0))}\bigr)

    because :math:`u^\top EE^\top u\le u^\top\max(EE^\top,0)u` for u >= 0.  Tight at the collapsed
    optimum.  The cost of the network minus D certifies its distance to the optimum (this project).
    """
    E, Y = _pair(residual, targets)
    beta = checks.real("beta", beta, above=0)
    point = _shrink(E, beta) * E
    return float((point * Y).sum() - (point**2).sum() / 2)


def cross_entropy_dual_bound(logits, labels, beta):
    r"""Lower bound for summed cross-entropy + beta/2 weights² of a non-negative head (6.C22).

    The constraint set is that of :func:`dual_bound`; only the conjugate changes.  With residual
    :math:`E=Y-\mathrm{softmax}(f)` shrunk by c, the bound is the summed entropy of the rows of
    :math:`Y-cE`.  ``logits`` (n, K) of a head without bias.
    """
    logits = checks.matrix("logits", logits, dtype=torch.float64)
    labels, K = checks.labels(labels, logits.shape[1], length=len(logits))
    Y = torch.nn.functional.one_hot(labels, K).to(logits)
    E = Y - torch.softmax(logits, 1)
    mixed = Y - _shrink(E, checks.real("beta", beta, above=0)) * E
    return float(torch.special.entr(mixed.clamp(min=0)).sum())


def _shrink(E, beta):
    size = float(E.abs().max())
    return min(1.0, beta / size / math.sqrt(_top_eigenvalue(E / size))) if size > 0 else 1.0


def _top_eigenvalue(E):
    """Largest eigenvalue of the non-negative matrix ``max(E E', 0)``, in blocks if it is large."""
    n = len(E)
    if n <= _DENSE:
        return float(torch.linalg.eigvalsh((E @ E.mT).clamp(min=0))[-1])

    def apply(vector):
        v = torch.as_tensor(vector.reshape(-1), dtype=E.dtype).to(E.device)
        parts = [(block @ E.mT).clamp_(min=0) @ v for block in E.split(_BLOCK)]
        return torch.cat(parts).numpy(force=True)

    # Its leading eigenvector is non-negative (Perron), so a positive start cannot miss it.
    start = torch.linalg.vector_norm(E, dim=1).numpy(force=True) + 1e-300
    from scipy.sparse.linalg import LinearOperator, eigsh  # not for measuring a model

    operator = LinearOperator((n, n), matvec=apply, dtype=start.dtype)
    value, vector = eigsh(operator, k=1, which="LA", v0=start, tol=1e-14)
    miss = apply(vector[:, 0]) - value[0] * vector[:, 0]
    return float(value[0] + math.sqrt(miss @ miss))


def free_bias_bounds(counts, beta):
    r"""``(lower, upper)`` for the optimum with an unpenalised output bias (this project).

    Upper: features stay orthogonal, rows of the last layer become multiples of
    :math:`e_k-b`, cost :math:`\min_b\sum_kh_\beta(\sqrt{n_k}\|e_k-b\|)`.  Lower: its dual point.
    They agree for balanced classes (b = 1/K, the simplex ETF) and for mild imbalance.
    """
    n, beta = root_counts(counts) ** 2, checks.real("beta", beta, above=0)
    if len(n) < 2:
        raise checks.InputError(
            "a free bias fits a single class exactly; give at least two classes"
        )
    b = n / n.sum()
    for _ in range(10_000):
        weight = n * (beta / (n.sqrt() * _distance_to_corners(b))).clamp(max=1)
        b, old = weight / weight.sum(), b
        if (b - old).abs().max() < 1e-16:
            break
    size = n.sqrt() * _distance_to_corners(b)
    upper = float(shrink(size, beta, 2)[0].sum())
    # One row per class, times sqrt(n_k): all samples of a class have the same dual row.
    rows = (weight / n.sqrt())[:, None] * (torch.eye(len(n), dtype=n.dtype) - b)
    point = _shrink(rows, beta) * rows
    targets = torch.diag(n.sqrt())
    return min(upper, float((point * targets).sum() - (point**2).sum() / 2)), upper


def _distance_to_corners(b):
    return (1 - 2 * b + b @ b).sqrt()


def cross_entropy_margin(per_class, K, beta):
    """Logit margin of the balanced optimum of summed cross-entropy with a non-negative head.

    Zero iff ``beta >= sqrt(per_class (K-1)/K)``.
    """
    n, K = checks.integer("per_class", per_class), checks.integer("K", K, 2)
    wrong = checks.real("beta", beta, above=0) * math.sqrt((K - 1) / (K * n))
    return max(0.0, math.log((K - 1) * (1 - wrong) / wrong)) if wrong < 1 else 0.0


def cross_entropy_value(per_class, K, beta):
    r"""Optimum of summed cross-entropy + beta/2 weights² for a BN or whitened ReLU head (6.C22).

    K classes of ``per_class`` samples; features an orthogonal frame, logits a simplex ETF with
    margin m: :math:`n\log(1+(K-1)e^{-m})+\beta m\sqrt{n_kK(K-1)}`.  A free output bias does not
    change it.
    """
    m = cross_entropy_margin(per_class, K, beta)
    weights = m * math.sqrt(per_class * K * (K - 1))
    return K * per_class * math.log1p((K - 1) * math.exp(-m)) + beta * weights


def _pair(residual, targets):
    E, Y = checks.tensor("residual", residual), checks.tensor("targets", targets)
    E, Y = (v[:, None] if v.ndim == 1 else v for v in (E, Y))
    Y = checks.matrix("targets", Y, dtype=torch.float64)
    E = checks.matrix("residual", E, rows=Y.shape[0], columns=Y.shape[1], dtype=torch.float64)
    return E, Y.to(E.device)


def root_counts(counts):
    """Square roots of the class sizes, float64, on the CPU: they are few."""
    given, counts = counts, checks.tensor("counts", counts).cpu()
    whole = counts.ndim == 1 and counts.numel() > 0 and counts.dtype != torch.bool
    if not whole or counts.is_complex() or not bool((counts == counts.round()).all()):
        raise checks.InputError(
            f"counts must be a list of whole numbers, one per class, got {given!r}"
        )
    if not bool((counts > 0).all()):
        index = int((counts <= 0).nonzero()[0])
        raise checks.InputError(
            f"class {index} has {int(counts[index])} samples; an empty class contributes nothing: "
            "drop it from counts"
        )
    return counts.to(torch.float64).sqrt()
