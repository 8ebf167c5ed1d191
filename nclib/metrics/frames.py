"""Distances of class means to an orthogonal frame and to a simplex ETF, and the trace-ratio NC1.

Conventions of result 5 (Tirer & Bruna 2022; Dang et al. 2023): the orthogonal-frame distance looks
at uncentred means, the ETF distance at centred ones, and NC1 is a ratio of traces without 1/K.
Rows are classes or samples.  All work is float64; what zero features leave undefined is ``nan``.
"""

import math

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

from nclib import checks, frames
from nclib.metrics.collapse import nc_metrics
from nclib.metrics.precision import Storage, exact

__all__ = [
    "class_means",
    "effective_rank",
    "frame_distances",
    "layer_table",
    "obtuse_distance",
    "obtuse_projection",
    "self_duality",
    "trace_ratio",
]


@exact
def frame_distances(means, *, centre=True):
    """``{"of": …, "etf": …}``: distance of a Gram matrix to an orthogonal frame and to an ETF.

    ``means`` (K, d): class means, or a classifier's weight.  With G the Gram matrix of the rows,

        of  = ‖G/‖G‖ − I/√K‖ (rows as they are),
        etf = ‖G/‖G‖ − (I − J/K)/√(K−1)‖ (rows centred first; ``centre=False``: as they are,
        the usual choice for a weight).

    Both lie in [0, 2].  An orthogonal frame has of = 0, and etf = 0 since centring makes it an ETF;
    an ETF has etf = 0 and of = √(2 − 2√((K−1)/K)).  For K = 2 the centred etf is identically 0.
    ``nan`` where the (centred) rows vanish.  Claims 5.E1–5.E3.
    """
    means = _rows("means", means, 2)
    K, rows = len(means), _centred(means) if centre else means
    return {
        "of": _gram_distance(means, frames.orthogonal_gram(K)),
        "etf": _gram_distance(rows, frames.etf_gram(K)),
    }


def _rows(name, value, minimum):
    value = checks.matrix(name, value).detach().to("cpu", torch.float64)
    if len(value) < minimum:
        raise checks.InputError(f"{name} must have at least {minimum} rows, got {len(value)}")
    return value


def _centred(means):
    """Rows minus their mean; exactly zero where they differ by rounding only."""
    centred = means - means.mean(0)
    return centred if float(centred.norm()) > 1e-14 * float(means.norm()) else centred * 0


def _gram_distance(rows, target):
    size = rows.abs().max()
    if size == 0:
        return math.nan
    gram = (rows / size) @ (rows / size).T
    return float((gram / gram.norm() - target).norm())


@exact
def self_duality(weight, means, *, centre=False):
    """``{"a": …, "b": …}``: NC3 in both published forms, for a weight (K, d) and means (K, d).

    a = ‖W/‖W‖ − H̄/‖H̄‖‖; b = ‖WH̄ᵀ/‖WH̄ᵀ‖ − T‖ with T = I/√K.  ``centre=True`` (models with a
    bias): centred means, T = (I − J/K)/√(K−1).  For the deep NC3 of depth M pass the product
    W_M⋯W_j as the weight.  ``nan`` for zero tensors.
    """
    means = _rows("means", means, 2)
    K, d = means.shape
    weight = checks.matrix("weight", weight, rows=K, columns=d).detach().to("cpu", torch.float64)
    means = _centred(means) if centre else means
    target = frames.etf_gram(K) if centre else frames.orthogonal_gram(K)

    def distance(x, y):
        if x.abs().max() == 0 or y.abs().max() == 0:
            return math.nan
        return float((x / x.norm() - y / y.norm()).norm())

    return {"a": distance(weight, means), "b": distance(weight @ means.T, target)}


@exact
def trace_ratio(features, labels, num_classes=None):
    """NC1~ = Tr Σ_W / Tr Σ_B of ``features`` (N, d), ``labels`` (N,); a float ≥ 0.

    Σ_W = (1/N) Σ (h − h̄_k)(h − h̄_k)ᵀ over samples, Σ_B = (1/K) Σ (h̄_k − h_G)(h̄_k − h_G)ᵀ with h_G
    the mean of the class means.  Unlike Tr(Σ_W Σ_B⁺)/K it sees noise orthogonal to the span of the
    means.  ``nan`` if all class means coincide.  Claim 5.E10.
    """
    features = _rows("features", features, 1)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    means = _class_means(features, labels.cpu(), K)
    between = float(_centred(means).square().sum()) / K
    within = float((features - means[labels.cpu()]).square().sum()) / len(features)
    return within / between if between > 0 else math.nan


@exact
def class_means(features, labels, num_classes=None):
    """Means of the rows of ``features`` (N, d) per class: (K, d), float64, on the CPU."""
    features = _rows("features", features, 1)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    return _class_means(features, labels.cpu(), K)


def _class_means(features, labels, K):
    counts = checks.class_counts(labels, K)
    sums = torch.zeros(K, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    return sums / counts[:, None]


@exact
def effective_rank(matrix, *, cut=1e-3):
    """Number of singular values above ``cut`` × the largest one; 0 for a zero matrix."""
    values = torch.linalg.svdvals(_rows("matrix", matrix, 1))
    return int((values > cut * values[0]).sum()) if values[0] > 0 else 0


@exact
def obtuse_projection(gram):
    """Nearest S ⪰ 0 with unit diagonal, off-diagonal entries ≤ 0 (Frobenius), to ``gram`` (K, K).

    These S are the Gram shapes that class means before the ReLU may take at a global minimum of the
    two-layer model (claim 5.E8).  Solved in the dual, which is smooth with bounds only: L-BFGS-B.
    """
    gram = checks.matrix("gram", gram, dtype=torch.float64).detach().cpu()
    K = len(gram)
    if gram.shape != (K, K) or not torch.allclose(gram, gram.T, rtol=1e-9, atol=1e-12):
        raise checks.InputError(f"gram must be a symmetric matrix, got shape {tuple(gram.shape)}")
    rows, columns = torch.triu_indices(K, K)
    diagonal = (rows == columns).numpy()

    def primal(multipliers):
        """The positive part of G + multipliers (free on the diagonal, ≤ 0 off it)."""
        shift = torch.zeros(K, K, dtype=torch.float64)
        shift[rows, columns] = shift[columns, rows] = torch.from_numpy(multipliers.copy())
        values, vectors = torch.linalg.eigh(gram + shift)
        return (vectors * values.clamp(min=0)) @ vectors.T

    def dual(multipliers):
        positive = primal(multipliers)
        slope = positive[rows, columns].numpy() * np.where(diagonal, 1, 2) - diagonal
        return float(positive.square().sum()) / 2 - multipliers[diagonal].sum(), slope

    bounds = [(None, None) if on_diagonal else (None, 0) for on_diagonal in diagonal]
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 30}
    found = minimize(dual, np.zeros(len(rows)), jac=True, bounds=bounds, options=options)
    return primal(found.x)


@exact
def obtuse_distance(means):
    """How far the Gram matrix of ``means`` (K, d) is from the set of :func:`obtuse_projection`.

    ‖G − S‖_F / ‖G‖_F with G scaled to trace K and S its projection: 0 at every minimiser, whatever
    the geometry of H_1.  ``nan`` for zero means.
    """
    means = _rows("means", means, 2)
    if means.abs().max() == 0:
        return math.nan
    gram = means @ means.T
    gram = gram * (len(gram) / gram.trace())
    return float((gram - obtuse_projection(gram)).norm() / gram.norm())


@exact
def layer_table(layers, labels, *, num_classes=None):
    """Metrics per layer, tidy: columns ``layer, nc1, nc1_pinv, of, etf, rank, norm_sq``.

    ``layers``: mapping name -> features (N, d_layer), in order (pre- and post-activations are
    different layers).  ``nc1`` is the trace ratio, ``nc1_pinv`` the Tr(Σ_W Σ_B⁺)/K of
    :func:`~nclib.metrics.nc_metrics`, ``rank`` the effective rank of the class means, ``norm_sq``
    the mean of ‖h‖² over samples.
    """
    rows = []
    for name, features in layers.items():
        storage, features = Storage.of(features), _rows(f"layers[{name!r}]", features, 1)
        index, K = checks.labels(labels, num_classes, length=len(features))
        means = _class_means(features, index.cpu(), K)
        nc1 = trace_ratio(features, index, K)
        pinv = nc1 if math.isnan(nc1) else _pinv_nc1(features, index, K, storage)
        rows.append(
            {"layer": name, "nc1": nc1, "nc1_pinv": pinv}
            | frame_distances(means)
            | {"rank": effective_rank(means), "norm_sq": float(features.square().sum(1).mean())}
        )
    return pd.DataFrame(rows)


def _pinv_nc1(features, labels, K, storage):
    return nc_metrics(features, labels, num_classes=K, precision=storage)["nc1"]
