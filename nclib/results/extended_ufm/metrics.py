"""Metrics of result 5 alone: self-duality, the obtuse projection, and all metrics per layer.

Conventions (Tirer & Bruna 2022; Dang et al. 2023): the orthogonal-frame distance looks at uncentred
means, the ETF distance at centred ones, and NC1 is a ratio of traces without 1/K.  Rows are classes
or samples.  All work is float64; what zero features leave undefined is NaN.
"""

import math

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

from nclib import checks, frames
from nclib.metrics import frame_distances, nc_metrics
from nclib.metrics.geometry import centred, class_means, gram_distance, rank, scaled, trace_ratio
from nclib.metrics.precision import Storage, exact


@exact
def self_duality(weight, means, *, centre=False):
    """``{"a": …, "b": …}``: NC3 in both published forms, for a weight (K, d) and means (K, d).

    a = ‖W/‖W‖ − H̄/‖H̄‖‖; b = ‖WH̄ᵀ/‖WH̄ᵀ‖ − T‖ with T = I/√K.  ``centre=True`` (models with a
    bias): centred means, T = (I − J/K)/√(K−1).  For the deep NC3 of depth M pass the product
    W_M⋯W_j as the weight.  ``nan`` for zero tensors.
    """
    means = scaled(_matrix("means", means))
    K, d = means.shape
    weight = scaled(_matrix("weight", weight, rows=K, columns=d)).to(means.device)
    means = centred(means) if centre else means
    target = frames.etf_gram(K) if centre else frames.orthogonal_gram(K)

    apart = math.nan
    if weight.any() and means.any():
        apart = float((weight / weight.norm() - means / means.norm()).norm())
    return {"a": apart, "b": gram_distance(weight @ means.T, target)}


@exact
def obtuse_projection(gram):
    """Nearest S ⪰ 0 with unit diagonal, off-diagonal entries ≤ 0 (Frobenius), to ``gram`` (K, K).

    These S are the Gram shapes that class means before the ReLU may take where the two-layer model
    has the linear value (claim 5.E8).  Solved in the dual, smooth with bounds only: L-BFGS-B.
    """
    gram = _matrix("gram", gram).cpu()
    K = len(gram)
    if gram.shape != (K, K) or (gram - gram.T).abs().max() > 1e-5 * gram.abs().max():  # float32
        raise checks.InputError(f"gram must be a symmetric matrix, got shape {tuple(gram.shape)}")
    gram = (gram + gram.T) / 2
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
    means = scaled(_matrix("means", means)).cpu()
    if not means.any():
        return math.nan
    gram = means @ means.T
    gram = gram * (len(gram) / gram.trace())
    return float((gram - obtuse_projection(gram)).norm() / gram.norm())


@exact
def layer_table(layers, labels):
    """Metrics per layer, tidy: columns ``layer, nc1, nc1_pinv, of, etf, rank, norm_sq``.

    ``layers``: mapping name -> features (N, d_layer), in order (pre- and post-activations are
    different layers).  ``nc1`` is the trace ratio, ``nc1_pinv`` the Tr(Σ_W Σ_B⁺)/K of
    :func:`~nclib.metrics.nc_metrics`, ``rank`` the number of singular values of the class
    means above 1e-3 of the largest, ``norm_sq`` the mean of ‖h‖² over samples.
    """
    rows = []
    for name, features in layers.items():
        storage, features = Storage.of(features), _matrix(f"layers[{name!r}]", features)
        means, _ = class_means(features, labels)
        nc1 = trace_ratio(features, labels)
        pinv = nc1 if math.isnan(nc1) else nc_metrics(features, labels, precision=storage)["nc1"]
        rows.append(
            {"layer": name, "nc1": nc1, "nc1_pinv": pinv}
            | frame_distances(means)
            | {"rank": rank(means, cut=1e-3), "norm_sq": float(features.square().sum(1).mean())}
        )
    return pd.DataFrame(rows)


def _matrix(name, value, **shape):
    return checks.matrix(name, checks.tensor(name, value).detach(), dtype=torch.float64, **shape)
