"""From features or logits to label sets, and how good the sets are.

Decoders return multi-hot predictions ``(N, K)``, bool.  The one of the paper's theory is
:func:`nearest_codeword`: since the mean of a label set is the scaled sum of its labels' means, the
class means of *single-label* samples make a codeword for every label set, also for sets that never
occurred in training.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch

from nclib import checks
from nclib.metrics.multi_label import LabelSetStatistics, tagwise_fit
from nclib.results.multi_label import theory


@dataclass(frozen=True)
class Codebook:
    """``codewords (R, d)`` of ``label_sets (R, K)`` bool, and the ``centre (d,)`` around them."""

    label_sets: torch.Tensor
    codewords: torch.Tensor
    centre: torch.Tensor


def tagwise_codebook(
    features, targets, weight, *, multiplicities=(1, 2), reduction="sum", fitted=False
):
    """One codeword ``μ + C_m Σ_{k∈S} (M_k - μ)`` for *every* label set of the given multiplicities.

    M_k are the means of the single-label samples, μ is their mean, and C_m is not fitted: it is the
    theory's value at the margin that the singles reach in these features (row 3.L18), so samples
    with several labels are not needed.  ``features (N, d)``, ``targets (N, K)`` and ``weight (K,
    d)`` are those of the training set; ``reduction`` that of the training loss.  ``fitted`` takes
    C_m and the centre from the samples with m labels instead, for losses without a theory of C_m.
    """
    statistics = LabelSetStatistics.of(features, targets)
    means = statistics.class_means
    centre = means.mean(0)
    margin = single_margin(means, weight)
    if not (fitted or margin > 0):
        raise checks.InputError(
            f"the single-label means have margin {margin:.3g} <= 0 under this classifier: they do "
            "not separate the classes, so there is no codebook"
        )
    if not (isinstance(multiplicities, Iterable) and (multiplicities := list(multiplicities))):
        raise checks.InputError(f"multiplicities must be some, such as (1, 2); {multiplicities!r}")
    K, sets, words = len(means), [], []
    for m in multiplicities:
        rows, middle = theory.label_sets(K, m).to(means), centre
        if m == 1:
            scale = 1.0
        elif fitted:
            fit = tagwise_fit(statistics, m)
            scale, middle = fit.scale, fit.offset
        else:
            scale = theory.scale_at(margin, K=K, m=m, reduction=reduction)
        sets.append(rows.bool())
        words.append(middle + scale * rows @ (means - centre))
    return Codebook(torch.cat(sets), torch.cat(words), centre)


def single_margin(means, weight):
    """Mean over classes of (logit of the own class - mean logit of the others) at class means
    ``(K, d)`` around their centre: the s_1 of the theory, measured."""
    means = checks.matrix("means", means)
    weight = checks.matrix("weight", weight, rows=len(means), columns=means.shape[1]).to(means)
    logits = (means - means.mean(0)) @ (weight - weight.mean(0)).T
    K = len(means)
    return float(logits.diagonal().mean() * K / (K - 1))


def nearest_codeword(features, codebook):
    """Label set of the nearest codeword."""
    words = codebook.codewords - codebook.centre
    features = checks.matrix("features", features, columns=words.shape[1]).to(words)
    offset = words.square().sum(1) / 2
    nearest = [
        ((block - codebook.centre) @ words.T - offset).argmax(1) for block in features.split(8192)
    ]
    return codebook.label_sets[torch.cat(nearest)]


def largest_gap(logits, *, most=None):
    """The top logits down to the largest drop between consecutive ones; 1..``most`` labels
    (default K-1)."""
    logits = checks.matrix("logits", logits)
    K = logits.shape[1]
    most = K - 1 if most is None else checks.integer("most", most)
    if not 1 <= most <= K - 1:
        raise checks.InputError(f"the largest gap needs 1 <= most <= K-1 = {K - 1}, got {most}")
    ordered = logits.sort(1, descending=True).values
    gaps = ordered[:, :most] - ordered[:, 1 : most + 1]
    return top_m(logits, gaps.argmax(1) + 1)


def sign(logits, *, centred=True):
    """Labels with positive logit; ``centred`` subtracts the row mean first (PAL logits are only
    defined up to a constant; for binary cross-entropy use ``centred=False``).  May be empty."""
    logits = checks.matrix("logits", logits)
    return (logits - logits.mean(1, keepdim=True) if centred else logits) > 0


def top_m(logits, m):
    """The m largest logits; ``m`` is a number or one number per sample ``(N,)``."""
    logits = checks.matrix("logits", logits)
    m = torch.as_tensor(m, device=logits.device)
    if m.ndim not in (0, 1) or (m.ndim == 1 and len(m) != len(logits)):
        raise checks.InputError(f"m must be one number or {len(logits)}, got {tuple(m.shape)}")
    if not bool(((m == m.long()) & (m >= 0) & (m <= logits.shape[1])).all()):
        raise checks.InputError(f"m must hold integers in 0..K={logits.shape[1]}")
    order = logits.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(logits.shape[1], device=logits.device).expand_as(order)
    )
    return rank < m.reshape(-1, 1)


def exact_match(predicted, targets):
    """``(N,)`` bool: the predicted label set is the true one."""
    predicted, targets = _pair(predicted, targets)
    return (predicted == targets).all(1)


def jaccard(predicted, targets):
    """``(N,)``: |predicted ∩ true| / |predicted ∪ true|."""
    predicted, targets = _pair(predicted, targets)
    return (predicted & targets).sum(1).double() / (predicted | targets).sum(1)


def score_table(predictions, targets):
    """Exact match and Jaccard of several decoders by multiplicity, as a tidy DataFrame.

    ``predictions``: ``{decoder: (N, K)}``.  Columns: decoder, m, samples, exact_match, jaccard,
    multiplicity_right (the number of labels is predicted correctly).
    """
    targets = checks.label_sets(targets).bool()
    sizes, rows = targets.sum(1), []
    for name, predicted in predictions.items():
        right, overlap = exact_match(predicted, targets), jaccard(predicted, targets)
        counted = _pair(predicted, targets)[0].sum(1) == sizes
        for m in sizes.unique().tolist():
            own = sizes == m
            rows.append(
                {
                    "decoder": name,
                    "m": m,
                    "samples": int(own.sum()),
                    "exact_match": float(right[own].double().mean()),
                    "jaccard": float(overlap[own].mean()),
                    "multiplicity_right": float(counted[own].double().mean()),
                }
            )
    return pd.DataFrame(rows)


def _pair(predicted, targets):
    targets = checks.label_sets(targets).bool()
    predicted = checks.tensor("predictions", predicted).to(targets.device)
    if predicted.shape != targets.shape:
        raise checks.InputError(
            f"predictions have shape {tuple(predicted.shape)}, targets {tuple(targets.shape)}"
        )
    if not bool(((predicted == 0) | (predicted == 1)).all()):
        raise checks.InputError("predictions must be 0 and 1; from logits make them by a decoder")
    return predicted.bool(), targets
