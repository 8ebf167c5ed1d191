"""Generalized neural collapse, K classes in d dimensions with K as large as you like (result 4).

Features and classifier are row-normalised first: result 4 lives on the sphere.  With normalised
features h, ``g`` their mean over all samples, class means ``mu_k``,

    S_W = (1/N) sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})',   S_B = (1/K) sum_k (mu_k - g)(mu_k - g)',

so S_B weighs all classes alike.  Everything is float64 (collapse lies far below half precision).

The released code differs in ways that change numbers: it measures with networks in train mode
(batch norm uses batch statistics and keeps learning), prints GNC2 through an absolute value, and
bounds GNC2 with a float32 subgradient descent from a random start, which may be too small.
"""

import warnings
from functools import lru_cache
from math import isnan, nan

import numpy as np
import torch

from nclib import checks, frames
from nclib.metrics import _rows, margins
from nclib.metrics._classes import cdnv_by_class, squared_distances
from nclib.metrics.geometry import class_means, etf_error, nc1, sample_mean
from nclib.metrics.known_margins import best_known
from nclib.metrics.precision import Storage, exact

EXACT_CLASSES = 2048  # above this, per-class quantities are averaged over a sample of classes
SAMPLED_CLASSES = 256  # so many
_TILE = 2**20  # numbers held at a time, about a cache
# What only class means that differ define.
_BETWEEN = ("cdnv", "gnc3_centered", "ncc_accuracy", "agreement", "uniform_duality")
_BETWEEN += ("log_kernel_mean", "log_kernel_variance")


@exact
def generalized_nc(
    features,
    labels,
    weight,
    bias=None,
    *,
    reference=None,
    random_draws=None,
    exact_classes=None,
    tol=1e-9,
    precision=None,
):
    """Generalized neural-collapse metrics GNC1-GNC3 and their variants.

    Args:
        features: ``(N, d)`` last-layer features, any float dtype (half precision is upcast).
        labels: ``(N,)`` class indices below K.
        weight: ``(K, d)`` classifier.
        bias: ``(K,)`` or None; only ``accuracy`` and ``agreement`` know it.
        reference: the margin ``rho*`` to compare with; default the best known for (K, d).
        random_draws: random classifiers behind ``gnc2_random`` (default 3 for K d <= 200 000 and
            d > 1).
        exact_classes: with more classes than this, ``gnc2_mean`` and ``gnc3_projection`` are means
            over that many random classes (said in ``notes``); ``gnc2`` is always over all.  By
            default all classes count up to 2048, else 256 random ones.
        tol: width of the certified bracket behind ``gnc2``.
        precision: dtype in which the features were stored, if it is not theirs, as in
            :func:`~nclib.metrics.nc_metrics`.

    Classes without samples are dropped, from the hulls and from K, but not from what is predicted,
    and listed in ``dropped_classes``.  What needs class means that differ is NaN where all are
    equal.  Duplicate rows of the classifier are named in ``notes`` and in a warning.
    Returns a dict; smaller is more collapsed unless said otherwise:

    ======================  =====================================================================
    ``gnc1``                ``tr(S_W S_B^+) / K`` (the paper's)
    ``gnc1_raw``            the same without normalising the features
    ``gnc1_ratio``          ``tr S_W / tr S_B``
    ``cdnv``                mean over pairs of ``(v_i + v_j) / (2 |mu_i - mu_j|^2)``
    ``gnc2``                ``rho(W) = min_k dist_k``, exact; *larger* is better
    ``gnc2_mean``           mean of ``dist_k``
    ``gnc2_means``          ``rho`` of the normalised class means
    ``hard_margin``         ``min_k min_j <w_k - w_j, mu_k / |mu_k|>``, at most ``gnc2``
    ``one_vs_one``          ``1 - max cosine`` between rows of W, at most ``gnc2``
    ``min_angle``           smallest angle between rows of W, in degrees
    ``gnc2_reference``      ``rho*(K, d)``, and ``reference_status`` says what it is worth
    ``gnc2_ratio``          ``gnc2 / gnc2_reference``
    ``gnc2_random``         mean ``rho`` of random classifiers of this size
    ``gnc2_calibrated``     0 at ``gnc2_random``, 1 at ``gnc2_reference``
    ``gnc3``                mean of ``1 - cos(mu_k, w_k)`` (what the theory speaks of)
    ``gnc3_centered``       mean of ``1 - cos(mu_k - g, w_k)`` (official code)
    ``gnc3_projection``     mean of ``1 - cos(mu_k, u_k)``, u_k the HardMax feature of W
    ``ncc_accuracy``        accuracy of the nearest class mean on these samples
    ``accuracy``            accuracy of ``argmax(W h + b)``, W and h as given
    ``agreement``           share of samples on which those two agree
    ``etf_error``           distance of the Gram matrix of W to the simplex ETF's
    ``etf_floor``           the smallest value of ``etf_error`` for this (K, d) (claim 4.G9)
    ``log_kernel_mean``     mean over pairs of ``log(1 / |a_i - a_j|)``, a centred normalised means
    ``log_kernel_variance`` its variance over pairs (hyperspherical uniformity)
    ``uniform_duality``     variance over k of ``cos(mu_k - g, w_k)``
    ======================  =====================================================================

    and ``num_classes`` (with samples), ``dropped_classes``, ``notes``.  The last three metrics are
    those of the language-model literature (Wu & Papyan, arXiv 2405.17767).
    """
    notes = _notes(features=features, weight=weight)
    storage = Storage.of(features, precision)
    raw, labels, raw_weight, predicted, kept, dropped = _with_samples(
        features, labels, weight, bias
    )
    if dropped:
        total = len(kept) + len(dropped)
        notes.append(
            f"{len(dropped)} of {total} classes have no sample: dropped from means, hulls and K"
        )
    K, d = raw_weight.shape
    if exact_classes is None:
        exact_classes = K if K <= EXACT_CLASSES else SAMPLED_CLASSES
    checks.integer("exact_classes", exact_classes)
    if random_draws is not None:
        checks.integer("random_draws", random_draws, 0)
    W, H = margins.unit_rows("weight", raw_weight), margins.unit_rows("features", raw)

    means, counts = class_means(H, labels, K)
    g, squares = sample_mean(means, counts), (H - means[labels]).square().sum(1)
    variances = torch.zeros_like(means[:, 0]).index_add_(0, labels, squares) / counts
    centred = torch.nn.functional.normalize(means - g, dim=1)
    within = float(squares.mean())
    between = float((means - g).square().sum() / K) or nan
    nearest = nearest_mean(H, means)
    cut = max(K, d) * torch.finfo(torch.float64).eps
    result = {
        "gnc1": nc1(H, labels, cut=cut, K=K, precision=Storage(storage.eps, 0.0)),
        "gnc1_raw": nc1(raw, labels, cut=cut, K=K, precision=storage),
        "gnc1_ratio": within / between,
        "cdnv": float(cdnv_by_class(means, variances).mean()),
        **_margins(W, means, kept, notes, exact_classes=exact_classes, tol=tol),
        "gnc3": _mean_gap(means, W),
        "gnc3_centered": _mean_gap(means - g, W),
        "ncc_accuracy": _share(nearest == labels),
        "accuracy": _share(predicted == labels),
        "agreement": _share(nearest == predicted),
        "etf_error": etf_error(W),
        "etf_floor": frames.nc2_floor(K, d),
        **log_kernel(centred),
        "uniform_duality": float((centred * W).sum(1).var(correction=0)),
    }
    if isnan(between):  # all class means are equal
        result |= dict.fromkeys(_BETWEEN, nan)
    result |= _calibrate(result["gnc2"], K, d, reference, random_draws, notes)
    return result | {"num_classes": K, "dropped_classes": dropped, "notes": notes}


def _with_samples(features, labels, weight, bias):
    """Checked arguments, less the classes without samples: ``(features, labels, weight, predicted,
    kept, dropped)``, the last two the classes with and without.  ``predicted (N,)``: by the whole
    classifier, -1 where that is a class without samples."""
    weight = checks.matrix("weight", weight).detach()
    features = checks.matrix("features", features, columns=weight.shape[1]).detach()
    labels, K = checks.labels(labels, len(weight), length=len(features))
    labels = labels.to(features.device)
    if bias is not None:
        bias = checks.vector("bias", bias, K).detach().double().to(features.device)
    counts = torch.bincount(labels, minlength=K)
    kept, dropped = _rows.measured(counts, "skip"), (counts == 0).nonzero().flatten().tolist()
    weight, place = weight.double().to(features.device), _rows.places(kept, K)
    predicted = place[_argmax(features.double(), weight, bias)]
    return features, place[labels], weight[kept], predicted, kept.cpu(), dropped


def log_kernel(directions):
    """Mean and population variance over pairs of ``log(1 / |a_i - a_j|)`` (hyperspherical
    uniformity) of unit rows ``(K, d)``; infinite and NaN when two coincide."""
    first = second = 0.0
    K = len(directions)
    for rows in torch.arange(K).split(max(32, _TILE // K)):
        kernel = -squared_distances(directions, rows).log() / 2
        kernel[torch.arange(len(rows)), rows] = 0
        first += float(kernel.sum())
        second += float(kernel.square().sum())
    pairs = K * (K - 1)
    mean = first / pairs
    variance = max(0.0, second / pairs - mean**2) if np.isfinite(mean) else nan
    return {"log_kernel_mean": mean, "log_kernel_variance": variance}


def nearest_mean(features, means):
    """Index ``(N,)`` of the class mean nearest to each row of ``features``."""
    return _argmax(features, means, -means.square().sum(1) / 2)


@lru_cache(maxsize=64)
def random_margin(K, d, draws=3):
    """Mean ``rho`` of ``draws`` Gaussian classifiers ``(K, d)`` with normalised rows."""
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(K, d, generator=generator, dtype=torch.float64) for _ in range(draws)]
    return float(np.mean([margins.margin(W, tol=1e-4).value for W in samples]))


def _notes(**tensors):
    half = [f"{n} ({t.dtype})" for n, t in tensors.items() if _is_half(t)]
    return [f"upcast from half precision: {', '.join(half)}; use float32 or better"] if half else []


def _is_half(value):
    return getattr(value, "dtype", None) in (torch.float16, torch.bfloat16, np.dtype(np.float16))


def _margins(W, means, kept, notes, *, exact_classes, tol):
    K = len(W)
    M = torch.nn.functional.normalize(means, dim=1)
    has_means = bool((M != 0).any(1).all())
    if not has_means:
        notes.append("a class mean is zero: gnc2_means and hard_margin are undefined")
    chosen = torch.arange(K)
    if exact_classes < K:
        shuffled = torch.randperm(K, generator=torch.Generator().manual_seed(0))
        chosen = shuffled[:exact_classes].sort().values
        notes.append(f"gnc2_mean and gnc3_projection: means over {len(chosen)} random classes")
    found = margins.hull_projections(W, tol=tol, classes=chosen)
    if exact_classes < K:
        rho = margins.margin(W, tol=tol).value
    else:
        rho = 0.0 if found.duplicates else float(found.distance.min())
    if found.duplicates:
        names = [int(kept[k]) for k in found.duplicates]
        text = (
            f"weight has duplicate rows (classes {', '.join(map(str, names[:8]))}): their margin "
        )
        text += "is 0, they have no optimal feature, gnc3_projection leaves them out"
        notes.append(text)
        warnings.warn(text, stacklevel=3)
    usable = ~found.direction.isnan().any(1)
    aligned = (M[chosen].cpu() * found.direction).sum(1)[usable]
    cosine = margins.max_cosine(W)
    return {
        "gnc2": rho,
        "gnc2_mean": float(found.distance.mean()),
        "gnc2_means": margins.margin(M, tol=tol).value if has_means else nan,
        "hard_margin": margins.hard_margin(W, M) if has_means else nan,
        "one_vs_one": 1 - cosine,
        "min_angle": float(np.degrees(margins.min_angle(W))),
        "gnc3_projection": float((1 - aligned).mean()) if bool(usable.any()) else nan,
    }


def _calibrate(rho, K, d, reference, draws, notes):
    known = best_known(K, d)
    status = "given" if reference is not None else known.status if known else "unknown"
    if reference is None:
        reference = known.value if known else nan
    else:
        reference = checks.real("reference", reference, above=0, at_most=2)
    if status == "unknown":
        notes.append(f"no reference margin is known for K={K}, d={d}: pass reference=")
    if draws is None:
        draws = 3 if K * d <= 200_000 and d > 1 else 0
    baseline = random_margin(K, d, draws) if draws else nan
    scale = reference - baseline or nan  # d = 1: every classifier is the best one
    return {
        "gnc2_reference": reference,
        "reference_status": status,
        "gnc2_ratio": rho / reference if reference else nan,
        "gnc2_random": baseline,
        "gnc2_calibrated": (rho - baseline) / scale,
    }


def _mean_gap(rows, targets):
    """Mean of ``1 - cos`` to unit ``targets``, accurate near 0; a zero row counts as cos = 0."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    return float(((unit - targets).square().sum(1) + 1 - unit.square().sum(1)).mean() / 2)


def _argmax(features, weight, offset=None):
    found = torch.empty(len(features), dtype=torch.int64, device=features.device)
    shift = 0.0 if offset is None else offset
    size = max(32, _TILE // len(weight))
    # Written in place: small results that live on between the tiles would scatter the memory.
    for h, out in zip(features.split(size), found.split(size), strict=True):
        out.copy_((h @ weight.T + shift).argmax(1))
    return found


def _share(hits):
    return float(hits.double().mean())
