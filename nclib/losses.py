"""The losses of the six results, as functions of logits.

:func:`get` builds a loss from its name and parameters; what it returns maps ``logits (N, K)`` and
``labels (N,)`` to the mean loss, differentiable, in the dtype and on the device of the logits.
Each loss also has ``per_sample``, the same without the mean; like
``torch.nn.functional.cross_entropy`` it takes ``(N, K, …)`` and ``(N, …)`` too, classes second.
Some have ``slope``, its gradient in the logits, or ``log_per_sample``, its logarithm.
"""

import inspect
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from nclib import checks


class _Loss:
    """Mean over samples of ``per_sample``; each loss is a frozen dataclass of its parameters."""

    sets = False  # whether the targets are label sets (N, K)

    def __call__(self, logits, labels):
        return self.per_sample(logits, labels).mean()

    def __str__(self):
        values = ", ".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self))
        return f"{self.name}({values})" if values else self.name


_NONE = -(2**62)  # torch ignores labels of -100, and would count their losses as 0 here


def _own(logits, labels):
    """The labels as places among the logits ``(N, 1, …)``; torch would repeat a single one."""
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        shapes = f"{tuple(labels.shape)} for logits {tuple(logits.shape)}"
        raise checks.InputError(f"labels must be one per row of logits, got shape {shapes}")
    return labels.unsqueeze(1)


@dataclass(frozen=True)
class CrossEntropy(_Loss):
    """``-log p_y`` with ``p = softmax(logits)``."""

    name = "ce"

    def per_sample(self, logits, labels):
        """Losses ``(N,)``."""
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=_NONE)


@dataclass(frozen=True)
class LabelSmoothing(_Loss):
    """Cross-entropy against ``(1-alpha) e_y + alpha/K``, ``0 <= alpha < 1``."""

    alpha: float = 0.1
    name = "ls"

    def __post_init__(self):
        checks.real("alpha", self.alpha, at_least=0, below=1)

    def per_sample(self, logits, labels):
        """Losses ``(N,)``."""
        return F.cross_entropy(
            logits, labels, label_smoothing=self.alpha, reduction="none", ignore_index=_NONE
        )


@dataclass(frozen=True)
class Focal(_Loss):
    """``-(1-p_y)^gamma log p_y``, ``gamma >= 0``; gradients stay finite at ``p_y = 1``.

    ``1 - p_y`` comes from the logits of the other classes (a log-sum-exp), never from ``1 - p``:
    that difference is 0 in float32 from a logit gap of 17 on, and its power has a NaN gradient
    there for ``gamma < 1``.
    """

    gamma: float = 3.0
    name = "fl"

    def __post_init__(self):
        checks.real("gamma", self.gamma, at_least=0)

    def per_sample(self, logits, labels):
        """Losses ``(N,)``."""
        target = _own(logits, labels)
        own = logits.gather(1, target).squeeze(1)
        others = logits.scatter(1, target, -torch.inf).logsumexp(1)
        margin = own - others
        # log p_y = -softplus(-margin), log(1 - p_y) = -softplus(margin); torch's softplus(x) is x
        # from its threshold on, by default 20: 2e-9 off in float64.
        wrong, right = (F.softplus(x, threshold=50) for x in (margin, -margin))
        return torch.exp(-self.gamma * wrong) * right


@dataclass(frozen=True)
class MeanSquaredError(_Loss):
    """``(tau/2) [kappa (z_y - scale)² + Σ_{j≠y} z_j²]``: targets ``scale`` times one-hot.

    ``tau=None`` means ``2/K``, the mean over all N·K entries (``torch.nn.MSELoss`` against
    ``scale`` times one-hot); ``kappa`` weighs the target entry (Hui & Belkin's rescaling).
    """

    tau: float | None = 1.0
    scale: float = 1.0
    kappa: float = 1.0
    name = "mse"

    def __post_init__(self):
        if self.tau is not None:
            checks.real("tau", self.tau, above=0)
        checks.real("scale", self.scale, above=0)
        checks.real("kappa", self.kappa, above=0)

    def __str__(self):
        tau = "2/K" if self.tau is None else f"{self.tau:g}"
        return f"mse(tau={tau}, scale={self.scale:g}, kappa={self.kappa:g})"

    def weight(self, K):
        """The factor tau for K classes."""
        return 2.0 / K if self.tau is None else self.tau

    def per_sample(self, logits, labels):
        """Losses ``(N,)``."""
        target, tau = _own(logits, labels), self.weight(logits.shape[1])
        own = logits.gather(1, target).squeeze(1)
        others = logits.scatter(1, target, 0.0).square().sum(1)  # of a difference little is left
        return tau / 2 * (self.kappa * (own - self.scale).square() + others)

    def slope(self, logits, labels):
        """Gradient of :meth:`per_sample` in the logits, of their shape."""
        own, tau = _own(logits, labels), self.weight(logits.shape[1])
        if self.kappa == 1:
            target = torch.full_like(own, -self.scale, dtype=logits.dtype)
            return logits.scatter_add(1, own, target).mul_(tau)
        at = logits.gather(1, own)
        return tau * logits.scatter(1, own, self.kappa * (at - self.scale))


@dataclass(frozen=True)
class PickAllLabels(_Loss):
    """``Σ_{k∈S} [logsumexp(z) - z_k]`` of a label set S: each label is a target in turn.

    ``reduction="sum"`` is the loss of Li et al. 2024; ``"mean"`` divides by |S| (cross-entropy
    against targets/|S|).  With m labels the infimum is ``m log m`` or ``log m``, not 0 (3.L1).
    """

    reduction: str = "sum"
    name = "pal"
    sets = True

    def __post_init__(self):
        checks.choice("reduction", self.reduction, ("sum", "mean"))

    def __str__(self):
        return f"pal(reduction={self.reduction})"

    def per_sample(self, logits, targets):
        """Losses ``(N,)`` of ``logits (N, K)`` and multi-hot ``targets (N, K)``; unchecked."""
        found = -torch.where(targets > 0, F.log_softmax(logits, 1), 0.0).sum(1)
        return found if self.reduction == "sum" else found / targets.sum(1)


@dataclass(frozen=True)
class ExactCrossEntropy(_Loss):
    """Cross-entropy that stays exact where it underflows; ``margin`` lowers the true logit.

    In the scaled logits of a problem, ``margin`` is that of CosFace times the scale.
    """

    margin: float = 0.0
    name = "exact_ce"

    def __post_init__(self):
        checks.real("margin", self.margin)

    def rivals(self, logits, labels):
        """Log-sum-exp of the wrong logits minus the true one ``(N,)``; the loss is its softplus."""
        own = _own(logits, labels)
        others = logits.scatter(1, own, -torch.inf).logsumexp(1)
        return others - logits.gather(1, own).squeeze(1) + self.margin

    def per_sample(self, logits, labels):
        """Losses ``(N,)``, with full relative precision down to the smallest float."""
        return F.softplus(self.rivals(logits, labels), threshold=50)

    def log_per_sample(self, logits, labels):
        """Logs of the losses ``(N,)``, which no loss underflows."""
        x = self.rivals(logits, labels)
        tail = x - x.clamp(max=-20).exp() / 2  # log log(1 + e^x) = x - e^x/2 + O(e^2x)
        return torch.where(x < -20, tail, F.softplus(x.clamp(min=-20), threshold=50).log())


LOSSES = {loss.name: loss for loss in (CrossEntropy, LabelSmoothing, Focal, MeanSquaredError)}


def get(name, **params):
    """The loss called ``name``: ``"ce"``, ``"ls"`` (alpha), ``"fl"`` (gamma), ``"mse"``
    (tau, scale, kappa).

    Returns a callable ``(logits (N, K), labels (N,)) -> mean loss``.  Raises
    :class:`~nclib.checks.InputError` for an unknown name, an unknown parameter, or a parameter out
    of range.
    """
    kind = LOSSES[checks.choice("loss", name, LOSSES)]
    accepted = list(inspect.signature(kind).parameters)
    for unknown in params.keys() - set(accepted):
        raise checks.InputError(
            f"loss {name!r} has no parameter {unknown!r}; it accepts: "
            f"{', '.join(accepted) or 'none'}"
        )
    return kind(**params)


def pick_all_labels(logits, targets, reduction="sum"):
    """Pick-all-label cross-entropy, mean over samples: each label of a sample is a target in turn.

    ``logits (N, K)``; ``targets (N, K)`` multi-hot, any dtype, at least one label per row.  A
    sample with label set S costs ``Σ_{k∈S} [logsumexp(z) - z_k]`` (``reduction="sum"``, the paper's
    loss), or that divided by |S| (``"mean"``: cross-entropy against targets/|S|).  With m labels
    the infimum is ``m log m`` or ``log m``, not 0 (claim 3.L1).  Raises
    :class:`~nclib.checks.InputError` for shapes that differ, targets other than 0 and 1, and
    samples without a label.
    """
    loss = PickAllLabels(reduction)
    logits = checks.tensor("logits", logits)
    logits = logits if logits.is_floating_point() else logits.double()
    return loss(logits, checks.label_sets(targets, shape=tuple(logits.shape)).to(logits))
