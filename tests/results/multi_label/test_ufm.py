"""The pick-all-label unconstrained-features problem: solvers, identities, landscape, imbalance."""

import math
from itertools import combinations

import pytest
import torch

from nclib import frames
from nclib.checks import InputError
from nclib.losses import pick_all_labels
from nclib.results.multi_label import theory, ufm


def seeded(seed):
    return torch.Generator().manual_seed(seed)


CASES = [
    ({"K": 4, "counts": {1: 3, 2: 2}, "lambda_w": 5e-3, "lambda_h": 5e-4, "reduction": "sum"}, 3),
    ({"K": 4, "counts": {1: 3, 2: 2}, "lambda_w": 5e-3, "lambda_h": 5e-4, "reduction": "mean"}, 5),
    ({"K": 4, "counts": {2: 2, 3: 1}, "lambda_w": 2e-3, "lambda_h": 1e-3, "reduction": "sum"}, 6),
    ({"K": 5, "counts": {1: 1, 3: 1, 5: 2}, "lambda_w": 1e-3, "lambda_h": 1e-3,
      "reduction": "mean"}, 4),
    ({"K": 3, "counts": {1: 40, 2: 1}, "lambda_w": 1e-3, "lambda_h": 1e-4, "reduction": "sum"}, 4),
]  # fmt: skip


@pytest.mark.parametrize(("case", "d"), CASES)
def test_optimisation_from_a_random_start_meets_the_closed_form(case, d):
    """Rows L2-L8: value, ETF, zero bias, self-duality, tag-wise average."""
    K = case["K"]
    exact = theory.optimum(**case)
    found = ufm.minimize(ufm.balanced(**case, lambda_b=1e-2), d, generator=seeded(d), newton=3)
    assert found.value == pytest.approx(exact.value, abs=1e-13)
    assert found.gradient_norm < 1e-14
    P = frames.centring(K)
    assert torch.allclose(
        found.weight @ found.weight.T, exact.classifier_scale * P, rtol=0, atol=1e-11
    )
    assert float(found.bias.abs().max()) < 1e-12
    margins = [exact.margins[int(m)] for m in found.problem.targets.sum(1)]
    y = found.problem.targets
    expected = (
        torch.tensor(margins, dtype=torch.float64)[:, None]
        * y
        @ found.weight
        / exact.classifier_scale
    )
    assert torch.allclose(found.features, expected, rtol=0, atol=1e-10)
    if 1 in case["counts"]:
        for m in case["counts"]:
            rows = y.sum(1) == m
            tagwise = exact.scales[m] * y[rows] @ found.features[:K]
            assert torch.allclose(found.features[rows], tagwise, rtol=0, atol=1e-10)


def test_samples_of_one_label_set_share_their_feature():
    """Row L2, one variable a sample; same value as one a label set."""
    case = {"K": 3, "counts": {1: 4, 2: 3}, "lambda_w": 3e-3, "lambda_h": 1e-3}
    found = ufm.minimize(ufm.balanced(**case, per_sample=True), 3, generator=seeded(0), newton=3)
    assert found.features.shape == (21, 3)
    assert found.value == pytest.approx(theory.optimum(**case).value, abs=1e-13)
    for row in found.problem.targets.unique(dim=0):
        same = found.features[(found.problem.targets == row).all(1)]
        assert float((same - same[0]).abs().max()) < 1e-12


def test_value_is_the_objective_of_the_definition():
    """Counts stand for repeated samples; loss by nclib.losses, norms by hand."""
    table = {(0,): 3, (1,): 1, (0, 2): 2, (0, 1, 2): 1}
    generator = seeded(3)
    for reduction in ("sum", "mean"):
        problem = ufm.from_table(
            table, K=3, lambda_w=2e-3, lambda_h=5e-4, lambda_b=0.1, reduction=reduction
        )
        W, H, b = (torch.randn(s, generator=generator).double() for s in ((3, 4), (4, 4), (3,)))
        n = torch.tensor(list(table.values()))
        H_all, y_all = H.repeat_interleave(n, 0), problem.targets.repeat_interleave(n, 0)
        expected = pick_all_labels(H_all @ W.T + b, y_all, reduction)
        expected += 2e-3 * W.square().sum() + 5e-4 * H_all.square().sum() + 0.1 * b.square().sum()
        assert float(problem.value(W, H, b)) == pytest.approx(float(expected), rel=1e-13)
        Z = (H_all @ W.T + b).requires_grad_()
        (gradient,) = torch.autograd.grad(pick_all_labels(Z, y_all, reduction), Z)
        compact = problem.logit_gradient(H @ W.T + b)
        assert torch.allclose(
            torch.linalg.svdvals(compact)[:3], torch.linalg.svdvals(gradient), rtol=0, atol=1e-13
        )


def test_free_bias_is_a_multiple_of_ones():
    found = ufm.minimize(ufm.balanced(**CASES[0][0], lambda_b=0.0), 4, generator=seeded(1))
    assert float(found.bias.std()) < 1e-6
    assert found.value == pytest.approx(theory.optimum(**CASES[0][0]).value, abs=1e-12)


@pytest.mark.parametrize(("d", "excess"), [(1, 0.667), (2, 0.241), (3, 0.0)])
def test_too_small_dimension(d, excess):
    """Row L7, the best of six starts."""
    case = {"K": 4, "counts": {1: 2, 2: 1, 3: 1}, "lambda_w": 1e-3, "lambda_h": 1e-3}
    problem = ufm.balanced(**case, lambda_b=1e-3)
    best = min(ufm.minimize(problem, d, generator=seeded(s)).value for s in range(6))
    assert best - theory.optimum(**case).value == pytest.approx(
        excess, abs=6e-3 if d < 3 else 1e-12
    )


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_threshold_by_optimisation(factor):
    """Row L9."""
    base = {"K": 4, "counts": {1: 2, 2: 1}, "lambda_w": 1e-2}
    threshold = theory.optimum(**base, lambda_h=1e-3).threshold
    case = base | {"lambda_h": (factor * threshold / 2) ** 2 / 1e-2}
    found = ufm.minimize(ufm.balanced(**case), 4, generator=seeded(0))
    exact = theory.optimum(**case)
    assert found.value == pytest.approx(exact.value, abs=1e-12)
    assert float(found.weight.norm()) == pytest.approx(exact.weight_norm, abs=1e-5)
    assert exact.collapsed is (factor > 1)


def test_every_random_start_reaches_the_minimum():
    """Row L10."""
    case = CASES[0][0]
    problem, exact = ufm.balanced(**case, lambda_b=1e-3), theory.optimum(**case).value
    values = [ufm.minimize(problem, 5, generator=seeded(s)).value for s in range(10)]
    assert max(abs(v - exact) for v in values) < 1e-12


@pytest.mark.parametrize("rank", [1, 2])
def test_saddles_have_the_predicted_negative_curvature(rank):
    """Row L10; the direction is also checked by finite differences of the value."""
    case = {"K": 4, "counts": {1: 2, 2: 1, 3: 1}, "lambda_w": 1e-3, "lambda_h": 4e-3}
    problem = ufm.balanced(**case, lambda_b=1e-2)
    for seed in range(3):
        saddle = ufm.saddle(problem, rank, 5, generator=seeded(seed))
        predicted, measured = ufm.escape(saddle)
        assert predicted < -1e-2
        assert measured == pytest.approx(predicted, abs=1e-9)
        assert saddle.certificate_gap == pytest.approx(-predicted / 2, rel=1e-12)
        d_weight, d_spread = theory.escape_direction(
            saddle.weight, problem.logit_gradient(saddle.logits), lambda_w=1e-3, lambda_h=4e-3
        )
        d_features = d_spread / problem.sample_counts.sqrt()[:, None]
        along = [
            float(problem.value(saddle.weight + t * d_weight, saddle.features + t * d_features,
                                saddle.bias))
            for t in (-1e-3, 0.0, 1e-3)
        ]  # fmt: skip
        second = (along[0] - 2 * along[1] + along[2]) / 1e-6
        assert second == pytest.approx(predicted, abs=1e-5)


@pytest.mark.parametrize(("lambda_b", "more"), [(1e-2, 0), (None, 0), (0.0, 1)])
def test_hessian_at_the_minimum(lambda_b, more):
    """Exactly the rotations are flat, the rest is positive."""
    problem = ufm.balanced(**CASES[0][0], lambda_b=lambda_b)
    found = ufm.minimize(problem, 5, generator=seeded(2), newton=3)
    eigenvalues = ufm.hessian_eigenvalues(found)
    flat = theory.flat_directions(4, 5) + more
    assert float(eigenvalues[:flat].abs().max()) < 1e-12
    assert float(eigenvalues[flat]) > 1e-4


def random_table(K, seed):
    generator = seeded(seed)
    sets = [S for m in (1, 2, 3) for S in combinations(range(K), m)]
    keep = torch.randperm(len(sets), generator=generator)[:9].tolist()
    counts = torch.randint(1, 30, (9,), generator=generator).tolist()
    return {sets[i]: n for i, n in zip(keep, counts, strict=True)}


@pytest.mark.parametrize("seed", range(3))
def test_certificate_and_identities_without_balance(seed):
    """Rows L10, L17: any data; certified value equals the convex problem's (dual bound)."""
    table = random_table(4, seed)
    N = sum(table.values())
    problem = ufm.from_table(table, K=4, lambda_w=1e-3, lambda_h=0.05 / N, lambda_b=1e-2)
    found = ufm.minimize(problem, 6, generator=seeded(seed), newton=3)
    assert abs(found.certificate_gap) < 1e-12
    assert max(found.identity_residuals()) < 1e-11
    # The certificate is a proof: no other start is better.
    other = ufm.minimize(problem, 6, generator=seeded(100 + seed))
    assert other.value >= found.value - 1e-12


def test_identities_by_autograd_definition():
    """h_S = -∂loss/∂z_S W / (2 λ_H) with the gradient of the mean loss per sample."""
    problem = ufm.from_table(random_table(4, 7), K=4, lambda_w=1e-3, lambda_h=1e-3,
                             reduction="mean")  # fmt: skip
    found = ufm.minimize(problem, 5, generator=seeded(0), newton=3)
    m = problem.targets.sum(1, keepdim=True)
    p = found.logits.softmax(1)
    h = (problem.targets / m - p) @ found.weight / (2 * problem.num_samples * 1e-3)
    assert torch.allclose(h, found.features, rtol=0, atol=1e-11)


def test_frozen_classifier():
    """Row L20."""
    problem = ufm.balanced(K=10, counts={1: 100, 2: 20}, lambda_w=1e-3, lambda_h=1e-2 / 1900)
    exact = theory.frozen_optimum(K=10, counts={1: 100, 2: 20}, lambda_h=1e-2 / 1900)
    found = ufm.minimize_frozen(problem, frames.simplex_etf(10, 10))
    assert found.value == pytest.approx(exact.value, abs=1e-13)
    with pytest.raises(InputError, match="10 rows"):
        ufm.minimize_frozen(problem, torch.eye(9))


def test_nonnegative_features():
    """Row L19: no start beats the formula, some start meets it."""
    case = {"K": 4, "counts": {1: 5, 2: 2}, "lambda_w": 2e-3, "lambda_h": 5e-4}
    exact = theory.nonnegative_optimum(**case).value
    problem = ufm.balanced(**case)
    found = [ufm.minimize_nonnegative(problem, 6, generator=seeded(s)) for s in range(4)]
    best = min(found, key=lambda s: s.value)
    assert all((s.features >= 0).all() for s in found)
    assert best.value == pytest.approx(exact, abs=1e-11)
    assert min(s.value for s in found) >= exact - 1e-11
    gram = best.features[:4] @ best.features[:4].T
    assert torch.allclose(gram, gram[0, 0] * torch.eye(4).double(), rtol=0, atol=1e-4)


def test_descent_reaches_the_minimum_and_keeps_snapshots():
    """The path of the concept figure: 7e-3 above the minimum at 100 steps, 3e-9 at 1000."""
    case = {"K": 3, "counts": {1: 20, 2: 20}, "lambda_w": 5e-3, "lambda_h": 0.015 / 120}
    problem = ufm.balanced(**case, lambda_b=1e-3, per_sample=True)
    snapshots, values = ufm.descend(
        problem, 10, steps=1000, keep=(10, 100), rate=0.5, feature_rate=0.5 * 120 / 20,
        generator=seeded(0),
    )  # fmt: skip
    exact = theory.optimum(**case).value
    assert sorted(snapshots) == [10, 100, 1000]
    assert values.shape == (1000,)
    assert 1e-4 < float(values[99]) - exact < 5e-2
    assert -1e-13 < float(values[-1]) - exact < 1e-7
    assert snapshots[1000].value == float(values[-1])
    assert snapshots[10].value == float(problem.value(
        snapshots[10].weight, snapshots[10].features, snapshots[10].bias))  # fmt: skip


def test_imbalanced_pairs_stay_close_to_the_tag_wise_average():
    """Row L12 at small size: not exact, W no longer an ETF, but certified optimal."""
    pairs = list(combinations(range(5), 2))
    table = {(k,): 60 for k in range(5)} | {S: (30, 3)[i % 2] for i, S in enumerate(pairs)}
    N = sum(table.values())
    problem = ufm.from_table(table, K=5, lambda_w=1e-3, lambda_h=1e-2 / N)
    found = ufm.minimize(problem, 6, generator=seeded(0), newton=2)
    assert abs(found.certificate_gap) < 1e-10
    gram = found.weight @ found.weight.T
    assert float((gram / gram.norm() - frames.etf_gram(5)).norm()) > 1e-2
    sums = problem.targets[5:] @ found.features[:5]
    cosines = torch.nn.functional.cosine_similarity(sums, found.features[5:])
    assert math.degrees(math.acos(float(cosines.min()))) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": torch.zeros(2, 3)}, "without a label"),
        ({"targets": torch.ones(2, 1)}, "at least 2 columns"),
        ({"targets": torch.eye(3) / 2}, "only 0 and 1"),
        ({"lambda_w": 0.0}, "lambda_w"),
        ({"lambda_h": -1.0}, "lambda_h"),
        ({"lambda_b": -1.0}, "lambda_b"),
        ({"reduction": "none"}, "sum, mean"),
        ({"sample_counts": [1.0, 2.0]}, "shape"),
        ({"sample_counts": [1.0, 0.0, 1.0]}, "positive"),
    ],
)
def test_bad_problem(arguments, message):
    good = {"targets": torch.eye(3), "lambda_w": 1e-3, "lambda_h": 1e-3}
    with pytest.raises(InputError, match=message):
        ufm.MultiLabelProblem(**(good | arguments))


@pytest.mark.parametrize(
    ("table", "message"),
    [({(0, 4): 1}, "0..3"), ({(): 2}, "distinct"), ({(1, 1): 2}, "distinct"), ({(0,): 0}, "count")],
)
def test_bad_table(table, message):
    with pytest.raises(InputError, match=message):
        ufm.from_table(table, K=4, lambda_w=1e-3, lambda_h=1e-3)


def test_bad_saddle():
    problem = ufm.balanced(**CASES[0][0])
    with pytest.raises(InputError, match="at most K-2"):
        ufm.saddle(problem, 3, 5)
    with pytest.raises(InputError, match="at least 3"):
        ufm.saddle(problem, 2, 2)
