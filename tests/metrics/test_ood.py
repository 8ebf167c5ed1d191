"""NC5, NECO and NCI against loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from nclib import frames
from nclib.checks import InputError
from nclib.metrics import ClassStatistics, nc5, nci, neco


def sample(seed, K=4, d=7, n=9):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(K), rng.integers(2, n, K)))
    F = 1 + 2 * rng.standard_normal((K, d))[y] + 0.5 * rng.standard_normal((len(y), d))
    outliers = 0.5 + rng.standard_normal((11, d))
    return F, y, outliers, rng.standard_normal((K, d)), rng.standard_normal(K)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(2, 6), d=st.integers(2, 9))
def test_against_the_formulas(seed, K, d):
    F, y, outliers, W, b = sample(seed, K, d)
    statistics = ClassStatistics(K, d).update(F, y)
    outlier, cosines = outliers.mean(0), []
    for k in range(K):
        mean = F[y == k].mean(0)
        cosines.append(abs(mean @ outlier) / np.linalg.norm(mean) / np.linalg.norm(outlier))
    assert nc5(statistics, outliers) == pytest.approx(np.mean(cosines), rel=1e-9)

    logits = outliers @ W.T + b
    for alpha in (0.0, 0.3):
        for h, score in zip(outliers, nci(statistics, outliers, W, b, alpha=alpha), strict=True):
            z, w = h - F.mean(0), W[np.argmax(W @ h + b)]
            want = z @ w / math.sqrt(z @ z) + alpha * np.abs(h).sum()
            assert float(score) == pytest.approx(want, rel=1e-9)

    components = min(K - 1, d)
    for standardize in (True, False):
        scaler = StandardScaler(with_std=standardize).fit(F)
        pca = PCA(components, svd_solver="full").fit(scaler.transform(F))
        z = scaler.transform(outliers)
        want = np.linalg.norm(pca.transform(z), axis=1) / np.linalg.norm(z, axis=1)
        got = neco(statistics, outliers, standardize=standardize)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        times = neco(statistics, outliers, standardize=standardize, logits=logits)
        np.testing.assert_allclose(times, want * logits.max(1), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_invariances(seed):
    F, y, outliers, W, _ = sample(seed)
    base = ClassStatistics(4, 7).update(F, y)
    Q = frames.random_rotation(7, generator=torch.Generator().manual_seed(seed)).numpy()
    turned = ClassStatistics(4, 7).update(3 * F @ Q, y)
    far = 3 * outliers @ Q
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7)
    same(nc5(turned, far), nc5(base, outliers))
    same(nci(turned, far, W @ Q), nci(base, outliers, W))
    same(neco(turned, far, standardize=False), neco(base, outliers, standardize=False))
    # Standardised columns: their units and origins do not matter.
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.2, 5, 7), rng.standard_normal(7)
    there = ClassStatistics(4, 7).update(F * scale + shift, y)
    same(neco(there, outliers * scale + shift), neco(base, outliers))
    # Labels only weigh: another order of the classes changes nothing.
    relabelled = ClassStatistics(4, 7).update(F, 3 - y)
    same(neco(relabelled, outliers), neco(base, outliers))
    same(nc5(relabelled, outliers), nc5(base, outliers))


def test_collapse_is_told_from_orthogonal_outliers():
    K, d = 5, 12
    etf = frames.simplex_etf(K, d, generator=torch.Generator().manual_seed(0))
    y = torch.arange(K).repeat(6)
    statistics = ClassStatistics(K, d).update(etf[y], y)
    basis = torch.linalg.svd(etf)[2]
    outliers = basis[K:] + 0.0
    np.testing.assert_allclose(neco(statistics, etf, standardize=False), 1, rtol=1e-12)
    assert float(neco(statistics, outliers, standardize=False).max()) < 1e-6
    assert nc5(statistics, outliers) < 1e-12
    assert float(nci(statistics, etf, etf).min()) > 0.99 * float(etf.norm(dim=1)[0])
    assert float(nci(statistics, outliers, etf).abs().max()) < 1e-12


def test_bad_input():
    F, y, outliers, W, b = sample(0)
    statistics = ClassStatistics(4, 7).update(F, y)
    with pytest.raises(ValueError, match="features must have 7 columns"):
        neco(statistics, outliers[:, :3])
    with pytest.raises(ValueError, match="components must be at most d=7, got 8"):
        neco(statistics, outliers, components=8)
    with pytest.raises(ValueError, match="NCI needs the weight"):
        nci(statistics, outliers, None)
    with pytest.raises(ValueError, match="the statistics hold no sample"):
        nci(ClassStatistics(4, 7), outliers, W)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        nci(statistics, outliers, W, b, alpha=-1)
    with pytest.raises(ValueError, match="weight must have 4 rows"):
        nci(statistics, outliers, W[:3])
    with pytest.raises(ValueError, match="class 3 has no sample"):
        nc5(ClassStatistics(4, 7).update(F[y < 3], y[y < 3]), outliers)
    with pytest.raises(ValueError, match="no sample"):
        nc5(statistics, outliers[:0])


@pytest.mark.parametrize("value", [0.1, 1.1, 123.456])
@pytest.mark.parametrize("batch", [7, 60])
def test_a_constant_column_is_not_divided_by_its_rounding(value, batch):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    F = rng.standard_normal((3, 4))[y] + 0.2 * rng.standard_normal((60, 4))
    F[:, 2], outliers = value, rng.standard_normal((5, 4))
    statistics = ClassStatistics(3, 4, keep=0)
    for part in np.split(np.arange(60), range(batch, 60, batch)):
        statistics.update(F[part], y[part])
    deviation = F.std(0)
    deviation[2] = 1.0
    Z, z = ((x - F.mean(0)) / deviation for x in (F, outliers))
    Z[:, 2] = 0
    axes = np.linalg.svd(Z, full_matrices=False)[2][:2]
    want = np.linalg.norm(z @ axes.T, axis=1) / np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(neco(statistics, outliers), want, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-140, 1e-100, 1e100, 1e139])
def test_scores_do_not_depend_on_the_scale(scale):
    F, y, outliers, W, b = sample(3)
    scores = []
    for s in (1.0, scale):
        statistics = ClassStatistics(4, 7).update(s * F, y)
        scores.append([nc5(statistics, s * outliers), *nci(statistics, s * outliers, W, s * b)])
        if 1e-130 < s < 1e130:
            scores[-1] += neco(statistics, s * outliers).tolist()
    np.testing.assert_allclose(scores[1], scores[0][: len(scores[1])], rtol=1e-9)
    for s in (1e-160, 1e200):
        with pytest.raises(InputError, match="leave double precision"):
            neco(ClassStatistics(4, 7).update(s * F, y), outliers)


def test_neco_ignores_the_unit_of_a_column_that_varies_little():
    F, y, outliers, *_ = sample(4)
    want = neco(ClassStatistics(4, 7).update(F, y), outliers)
    unit, origin = np.array([1e-7, *[1.0] * 6]), np.array([1.0, *[0.0] * 6])
    found = neco(ClassStatistics(4, 7).update(unit * F + origin, y), unit * outliers + origin)
    np.testing.assert_allclose(found, want, rtol=1e-5)
