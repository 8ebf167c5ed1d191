"""Closed forms of result 3 against reference values, convex optimisation and limits."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from nclib.checks import InputError
from nclib.losses import pick_all_labels
from nclib.results.multi_label import theory
from nclib.ufm import solve
from tests.bank import turned

REFERENCES = [
    (4, {1: 3, 2: 2}, 5e-3, 5e-4, "sum", 0.8322804329, [4.8479028684, 4.2872656418],
     [0.8843546907]),
    (4, {1: 3, 2: 2}, 5e-3, 5e-4, "mean", 0.4765553233, [4.7778335809, 3.6580656541],
     [0.7656327061]),
    (5, {1: 2, 2: 1, 3: 1}, 1e-3, 1e-3, "sum", 1.6919483191,
     [5.3367209103, 4.7635365898, 4.4344938760], [0.8925961597, 0.8309398131]),
    (4, {2: 2, 3: 1}, 2e-3, 1e-3, "sum", 1.9682243434, [4.5690469538, 4.2431248335],
     [0.9286673734]),
    (10, {1: 100, 2: 20}, 1e-3, 1e-2 / 1900, "sum", 0.8029193471, [6.2966374890, 5.7053272316],
     [0.9060911068]),
    (10, {1: 3100, 2: 200}, 2.5e-4, 0.128 / 40000, "mean", 0.3743874179,
     [5.6135616022, 4.4467778630], [0.7921491164]),
    (10, {1: 1, 2: 1, 3: 1, 4: 1}, 1e-3, 1e-3, "sum", 5.0098401964,
     [4.5003472584, 3.9573654928, 3.6479828982, 3.4327878043],
     [0.87934670, 0.81060031, 0.76278287]),
]  # fmt: skip


@pytest.mark.parametrize("case", REFERENCES)
def test_reference_values(case):
    K, counts, lambda_w, lambda_h, reduction, value, margins, scales = case
    found = theory.optimum(
        K=K, counts=counts, lambda_w=lambda_w, lambda_h=lambda_h, reduction=reduction
    )
    assert found.value == pytest.approx(value, abs=6e-11)
    assert list(found.margins.values()) == pytest.approx(margins, abs=6e-11)
    assert list(found.scales.values())[1:] == pytest.approx(scales, abs=6e-9)
    assert list(found.margins) == sorted(counts)
    assert not found.collapsed


# Settings no table lists: gaps, no singles, all labels at once, K = 2, strong imbalance.
SETTINGS = [
    (3, {1: 5, 2: 1}, 2e-3, 3e-4, "sum"),
    (3, {2: 4}, 1e-3, 1e-3, "mean"),
    (6, {1: 2, 4: 1}, 4e-4, 2e-4, "sum"),
    (5, {1: 1, 2: 40, 5: 3}, 1e-3, 1e-5, "mean"),
    (2, {1: 7, 2: 5}, 1e-2, 1e-3, "sum"),
    (5, {1: 4000, 3: 1}, 1e-3, 1e-6, "sum"),
]


def direct(K, counts, lambda_w, lambda_h, reduction):
    """Value and margins by a general optimiser on the convex function of the margins (row L8)."""
    sizes = {m: n * math.comb(K, m) for m, n in counts.items()}
    N = sum(sizes.values())
    active = [m for m in counts if m < K]

    def value(s, all_margins=None):
        total, radius = 0.0, 0.0
        margins = dict(zip(active, s, strict=True))
        for m, size in sizes.items():
            weight = 1 if reduction == "sum" else 1 / m
            s_m = margins.get(m, 0.0)
            z = np.zeros(K)
            z[:m] = s_m
            total += size / N * weight * (m * np.log(np.exp(z).sum()) - z[:m].sum())
            radius += counts[m] * math.comb(K - 2, m - 1) * s_m**2
        return total + 2 * math.sqrt(lambda_w * lambda_h) * (K - 1) * math.sqrt(radius)

    start = np.full(len(active), 2.0)
    found = minimize(value, start, method="Nelder-Mead",
                     options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 20_000})  # fmt: skip
    return found.fun, dict(zip(active, found.x, strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_against_direct_minimisation(setting):
    K, counts, lambda_w, lambda_h, reduction = setting
    found = theory.optimum(
        K=K, counts=counts, lambda_w=lambda_w, lambda_h=lambda_h, reduction=reduction
    )
    value, margins = direct(*setting)
    assert found.value == pytest.approx(value, abs=1e-12)
    for m, margin in margins.items():
        assert found.margins[m] == pytest.approx(margin, abs=2e-5)  # the oracle is flat
    if K in counts:
        assert found.margins[K] == 0


@pytest.mark.parametrize("setting", SETTINGS[:4])
def test_against_the_convex_problem_in_the_logits(setting):
    """min over Z of loss(Z) + 2 √(λ_W λ_H) ‖Z‖_* , one column a label set, by an interior point."""
    cp = pytest.importorskip("cvxpy")
    K, counts, lambda_w, lambda_h, reduction = setting
    columns = [(S, n) for m, n in counts.items() for S in combinations(range(K), m)]
    N = sum(n for _, n in columns)
    Z = cp.Variable((K, len(columns)))
    loss = 0
    for j, (S, n) in enumerate(columns):
        weight = n / N / (len(S) if reduction == "mean" else 1)
        z = Z[:, j] / math.sqrt(n)
        loss += weight * (len(S) * cp.log_sum_exp(z) - sum(z[k] for k in S))
    problem = cp.Problem(cp.Minimize(loss + 2 * math.sqrt(lambda_w * lambda_h) * cp.normNuc(Z)))
    problem.solve(solver=cp.SCS, eps=1e-7, max_iters=20_000)
    found = theory.optimum(
        K=K, counts=counts, lambda_w=lambda_w, lambda_h=lambda_h, reduction=reduction
    )
    assert found.value == pytest.approx(problem.value, abs=2e-5)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("extra", [0, 3])
def test_configuration_is_a_critical_point_with_the_value(setting, extra):
    """The objective, written out here with autograd, at the explicit minimiser."""
    K, counts, lambda_w, lambda_h, reduction = setting
    found = theory.optimum(
        K=K, counts=counts, lambda_w=lambda_w, lambda_h=lambda_h, reduction=reduction
    )
    generator = torch.Generator().manual_seed(K)
    made = turned(theory.configuration(found), K - 1 + extra, generator if extra else None)
    W, H = made.weight.clone().requires_grad_(), made.features.clone().requires_grad_()
    bias = torch.zeros(K).double().requires_grad_()
    p = made.sample_counts / made.sample_counts.sum()
    losses = torch.stack([
        pick_all_labels(z[None], y[None], reduction)
        for z, y in zip(H @ W.T + bias, made.targets, strict=True)
    ])  # fmt: skip
    decay = lambda_h * (made.sample_counts * H.square().sum(1)).sum()
    value = (p * losses).sum() + lambda_w * W.square().sum() + decay
    assert float(value.detach()) == pytest.approx(found.value, abs=1e-13)
    gradients = torch.autograd.grad(value, (W, H, bias))
    assert max(float(g.abs().max()) for g in gradients) < 1e-13
    assert found.weight_norm == pytest.approx(float(W.detach().norm()), rel=1e-12)
    for y, h in zip(made.targets, made.features, strict=True):
        m = int(y.sum())
        mass = (made.weight @ h).softmax(0) @ y
        assert theory.set_mass(found.margins[m], K=K, m=m) == pytest.approx(float(mass), rel=1e-12)


def test_scale_equation_and_its_common_constant():
    """One γ for all multiplicities, and γ = K α²/(2 N λ_H)."""
    found = theory.optimum(K=7, counts={1: 3, 2: 1, 5: 2}, lambda_w=1e-3, lambda_h=1e-4)
    gamma = 7 * found.classifier_scale / (2 * (3 * 7 + 21 + 2 * 21) * 1e-4)
    for m, s in found.margins.items():
        assert s * (m * math.exp(s) + 7 - m) == pytest.approx(gamma, rel=1e-12)
    again = theory.margins_at(gamma, K=7, multiplicities=(1, 2, 5))
    assert again == pytest.approx(found.margins, rel=1e-12)
    for m in (2, 5):
        predicted = theory.scale_at(found.margins[1], K=7, m=m)
        assert predicted == pytest.approx(found.scales[m], rel=1e-12)


def test_scales_are_relative_to_the_smallest_multiplicity():
    found = theory.optimum(K=6, counts={2: 1, 3: 2, 5: 1}, lambda_w=1e-3, lambda_h=1e-3)
    assert found.scales[2] == 1
    assert found.scales[5] == found.margins[5] / found.margins[2]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("counts", [{1: 4, 2: 1}, {2: 3, 4: 1, 6: 2}])
def test_threshold(reduction, counts):
    """Zero exactly from the threshold on, which is the norm of the loss gradient at zero logits."""
    K = 6
    rows, n = theory.balanced_sets(K, counts)
    weight = 1 / rows.sum(1) if reduction == "mean" else torch.ones(len(rows))
    gradient = (weight * n.sqrt() / n.sum())[:, None] * (rows.sum(1, keepdim=True) / K - rows)
    expected = float(torch.linalg.matrix_norm(gradient, 2))

    def solve(factor, lambda_w=2e-3):
        lambda_h = (factor * expected / 2) ** 2 / lambda_w
        return theory.optimum(
            K=K, counts=counts, lambda_w=lambda_w, lambda_h=lambda_h, reduction=reduction
        )

    below, close, above = solve(0.95), solve(1 - 1e-9), solve(1.05)
    assert below.threshold == pytest.approx(expected, rel=1e-12)
    assert not below.collapsed
    assert below.weight_norm > 0.3
    assert 0 < close.weight_norm < 3e-3
    assert above.collapsed
    assert above.weight_norm == 0
    assert all(s == 0 for s in above.margins.values())
    assert all(math.isnan(c) for c in above.scales.values())
    omega = lambda m: 1 if reduction == "sum" else 1 / m  # noqa: E731
    at_zero = sum(k * math.comb(K, m) * omega(m) * m for m, k in counts.items()) * math.log(K)
    assert above.value == pytest.approx(at_zero / float(n.sum()), rel=1e-13)
    # Square-root growth below the threshold: 4 times the distance, twice the norm.
    norms = [solve(1 - e).weight_norm for e in (1e-6, 4e-6)]
    assert norms[1] / norms[0] == pytest.approx(2, rel=1e-4)


def test_only_full_label_sets_is_the_zero_solution():
    found = theory.optimum(K=3, counts={3: 5}, lambda_w=1e-9, lambda_h=1e-9)
    assert found.collapsed
    assert found.threshold == 0
    assert found.value == pytest.approx(3 * math.log(3))


@settings(max_examples=30, deadline=None)
@given(st.floats(-12, 6), st.integers(3, 40), st.data())
def test_margin_solves_its_equation(log_gamma, K, data):
    m = data.draw(st.integers(1, K - 1))
    gamma = 10.0**log_gamma
    way, weight = data.draw(st.sampled_from([("sum", 1), ("mean", 1 / m)]))
    (s,) = theory.margins_at(gamma, K=K, multiplicities=[m], reduction=way).values()
    oracle = brentq(
        lambda t: t * (m * math.exp(t) + K - m) - weight * gamma, 0, 700, xtol=1e-300, rtol=1e-15
    )
    assert s == pytest.approx(oracle, rel=1e-12)


def test_scale_curve():
    """Row L18: limits, dip, monotone order, and no overflow."""
    s1 = np.array([0.0, 1e-9, 1.0, 1e4, 1e12])
    total, mean = (theory.scale_at(s1, K=10, m=2, reduction=r) for r in ("sum", "mean"))
    assert total[[0, 1]] == pytest.approx([1, 1], abs=1e-8)
    assert mean[[0, 1]] == pytest.approx([0.5, 0.5], abs=1e-8)
    assert total[-1] == pytest.approx(1, abs=1e-9)
    assert mean[-1] == pytest.approx(1, abs=1e-9)
    assert theory.scale_dip(10, 2) == pytest.approx((2.530, 0.85244), abs=5e-3)
    assert theory.scale_dip(10, 2)[1] == pytest.approx(0.852437, abs=1e-6)
    assert theory.scale_dip(10, 3)[1] == pytest.approx(0.769358, abs=1e-6)
    grid = np.linspace(0.01, 30, 500)
    assert theory.scale_at(grid, K=10, m=2).min() >= theory.scale_dip(10, 2)[1] - 1e-12
    curves = [theory.scale_at(grid, K=10, m=m) for m in (1, 2, 3, 4)]
    assert all((b < a).all() for a, b in zip(curves, curves[1:], strict=False))
    assert (np.diff(theory.scale_at(grid, K=10, m=3, reduction="mean")) > 0).all()
    assert theory.scale_at([0.0, 3.0], K=4, m=4).tolist() == [0, 0]
    assert isinstance(theory.scale_at(3.0, K=4, m=2), float)


@pytest.mark.parametrize(("reduction", "limit"), [("sum", 1), ("mean", 2)])
def test_small_decay_limit_of_the_margin_gap(reduction, limit):
    s1 = np.array([1e2, 1e4, 1e6])
    gap = s1 * (1 - theory.scale_at(s1, K=10, m=2, reduction=reduction))
    assert gap[-1] == pytest.approx(limit * math.log(2), rel=1e-3)
    assert (np.abs(gap - limit * math.log(2)) < 10 / s1).all()
    found = theory.optimum(K=10, counts={1: 1, 2: 1}, lambda_w=1e-8, lambda_h=1e-8)
    assert 0.64 < found.margins[1] - found.margins[2] < math.log(2)


def test_frozen_reference_and_formula():
    decay = 1e-2 / 1900
    found = theory.frozen_optimum(K=10, counts={1: 100, 2: 20}, lambda_h=decay)
    assert list(found.margins.values()) == pytest.approx([4.69448, 4.14371], abs=5e-6)
    other = theory.frozen_optimum(K=10, counts={1: 190}, lambda_h=decay)  # the same N
    assert other.margins[1] == pytest.approx(found.margins[1], rel=1e-13)
    mass = theory.set_mass(found.margins[1], K=10, m=1)
    assert mass == pytest.approx(0.92, abs=0.01)
    made = theory.configuration(found)
    assert made.weight.norm(dim=1) == pytest.approx(torch.ones(10), rel=1e-12)
    H = made.features.clone().requires_grad_()
    p = made.sample_counts / made.sample_counts.sum()
    losses = torch.stack([
        pick_all_labels(z[None], y[None])
        for z, y in zip(H @ made.weight.T, made.targets, strict=True)
    ])  # fmt: skip
    value = (p * losses).sum() + decay * (made.sample_counts * H.square().sum(1)).sum()
    assert float(value.detach()) == pytest.approx(found.value, rel=1e-13)
    (gradient,) = torch.autograd.grad(value, H)
    assert float(gradient.abs().max()) < 1e-15
    assert found.threshold is None


def test_nonnegative_reference():
    found = theory.nonnegative_optimum(
        K=10, counts={1: 100, 2: 20}, lambda_w=1e-3, lambda_h=1e-2 / 1900
    )
    assert found.value == pytest.approx(0.8141594151, abs=6e-11)
    assert list(found.margins.values()) == pytest.approx([6.26685590, 5.57482438], abs=6e-9)
    assert found.scales[2] == pytest.approx(0.88957277, abs=6e-9)


NONNEGATIVE = [
    (5, {1: 4, 2: 1}, [1]),  # all m <= K/2: one axis per class
    (4, {3: 1}, [3]),  # all m >= K/2: one axis per class outside
    (5, {1: 1, 3: 1}, [2]),  # one axis per pair of classes
    (3, {1: 1, 2: 1}, [1, 2]),
    (6, {1: 1, 4: 1}, [2, 5]),
    (5, {1: 2, 5: 1}, [1]),
]


@pytest.mark.parametrize(("K", "counts", "sizes"), NONNEGATIVE)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_nonnegative_configuration(K, counts, sizes, reduction):
    """Value, first-order conditions of the constrained problem and ETF at the explicit point, with
    the objective written out; no direction u >= 0 improves, among 100 000 random ones."""
    case = {"K": K, "counts": counts, "lambda_w": 5e-3, "lambda_h": 2e-4}
    found = theory.nonnegative_optimum(**case, reduction=reduction)
    if reduction == "sum":
        assert list(found.blocks) == sizes
    made = theory.configuration(found)
    W, H = made.weight.clone().requires_grad_(), made.features.clone().requires_grad_()
    assert (H >= 0).all()
    p = made.sample_counts / made.sample_counts.sum()
    logits = (H @ W.T).detach().requires_grad_()
    each = lambda Z: torch.stack([
        pick_all_labels(z[None], y[None], reduction) for z, y in zip(Z, made.targets, strict=True)
    ])  # fmt: skip
    value = p @ each(H @ W.T) + 5e-3 * W.square().sum()
    value = value + 2e-4 * (made.sample_counts * H.square().sum(1)).sum()
    assert float(value.detach()) == pytest.approx(found.value, abs=1e-13)
    gradient_w, gradient_h = torch.autograd.grad(value, (W, H))
    assert float(gradient_w.abs().max()) < 1e-12
    assert float(gradient_h[made.features > 0].abs().max()) < 1e-12
    assert (gradient_h[made.features == 0] > -1e-12).all()
    etf = found.classifier_scale * (torch.eye(K).double() - 1 / K)
    assert torch.allclose(made.weight @ made.weight.T, etf, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(p @ each(logits), logits)
    push = -slope / made.sample_counts.sqrt()[:, None]
    v = torch.randn(100_000, K, generator=torch.Generator().manual_seed(0)).double()
    v = torch.nn.functional.normalize(v, dim=1)
    best = float((v @ push.T).relu().norm(dim=1).max())
    assert best <= 2 * math.sqrt(5e-3 * 2e-4) * (1 + 1e-7)
    problem = theory.balanced(W.shape[1], **case, reduction=reduction, nonnegative=True)
    gap = theory.certificate(problem, {"weight": made.weight, "features": made.features})
    assert abs(gap) < 1e-13


@pytest.mark.parametrize(("K", "counts", "d"), [(4, {3: 1}, 5), (3, {1: 1, 2: 1}, 7)])
def test_nonnegative_optimiser_meets_the_blocks(K, counts, d):
    """The optimiser, which knows no blocks, ends at the same value, below the frame's."""
    case = {"K": K, "counts": counts, "lambda_w": 5e-3, "lambda_h": 2e-4}
    problem = theory.balanced(d, **case, nonnegative=True)
    found = solve.best(problem, 4, seed=1, refine=True)
    exact = theory.nonnegative_optimum(**case)
    assert found.value == pytest.approx(exact.value, abs=1e-10)
    assert abs(theory.certificate(problem, found.point)) < 1e-6


def test_the_certificate_sees_a_point_that_is_not_the_minimum():
    """Triples of four classes on the best orthogonal frame: a critical point, but not global."""
    case = {"K": 4, "counts": {3: 1}, "lambda_w": 5e-3, "lambda_h": 2e-4}
    frame = theory.nonnegative_optimum(**case | {"counts": {1: 1}})
    made = theory.configuration(frame)
    problem = theory.balanced(4, **case, nonnegative=True)
    start = {"weight": made.weight, "features": theory.label_sets(4, 3) @ torch.eye(4).double()}
    # zeros of x² stay zeros
    found = solve.minimize(problem, problem.coordinates(start), newton=3)
    point = problem.place(found.variables)
    assert found.gradient_norm < 1e-8
    assert found.value > theory.nonnegative_optimum(**case).value + 0.02
    assert theory.certificate(problem, point) > 1e-3


def test_mixtures_with_a_better_direction_are_refused():
    """Three values, one class against one against five, beat all subsets here; not one-sided."""
    case = {"K": 7, "lambda_w": 3e-4, "lambda_h": 1e-7}
    with pytest.raises(InputError, match="other than those of subsets"):
        theory.nonnegative_optimum(**case, counts={2: 8, 4: 12, 6: 199})
    with pytest.raises(InputError, match="may be better"):  # and no search over 10^8 sets
        theory.nonnegative_optimum(**case | {"K": 30, "counts": {1: 5, 16: 1}})
    assert list(theory.nonnegative_optimum(**case, counts={4: 12, 6: 199}).blocks) == [6]
    problem = theory.balanced(3, K=3, counts={1: 1}, lambda_w=1e-3, lambda_h=1e-3)
    with pytest.raises(InputError, match="nonnegative"):
        theory.certificate(problem, {"features": -torch.eye(3).double()})


@pytest.mark.parametrize("exponent", [-170, 170])
def test_decays_whose_product_leaves_double_precision(exponent):
    """Only their product enters the margins; their ratio is the square of that of α²."""
    a, b = (
        theory.optimum(K=4, counts={1: 1, 2: 1}, lambda_w=10.0**w, lambda_h=10.0**h)
        for w, h in ((exponent, exponent), (exponent - 30, exponent + 30))
    )
    assert a.margins == pytest.approx(b.margins, rel=1e-12)
    assert a.value == pytest.approx(b.value, rel=1e-12)
    assert b.classifier_scale == pytest.approx(1e30 * a.classifier_scale, rel=1e-12)


def test_nonnegative_threshold():
    """Zero from the threshold on: below it the zero solution has a descent direction."""
    for factor, collapsed in ((0.99, False), (1.01, True)):
        probe = theory.nonnegative_optimum(K=4, counts={1: 3, 2: 1}, lambda_w=1e-3, lambda_h=1e-3)
        lambda_h = (factor * probe.threshold / 2) ** 2 / 1e-3
        found = theory.nonnegative_optimum(
            K=4, counts={1: 3, 2: 1}, lambda_w=1e-3, lambda_h=lambda_h
        )
        assert found.collapsed is collapsed
    sizes = {1: 12, 2: 6}  # samples of each multiplicity
    pull = sum(n * m * (4 - m) ** 2 for m, n in sizes.items())
    assert probe.threshold == pytest.approx(math.sqrt(pull / 3) / (18 * 4), rel=1e-12)


def test_balance_identity():
    """Σ_S n P y yᵀ P = q P, by brute force."""
    for K, m in [(4, 1), (5, 2), (6, 3), (4, 4), (2, 1)]:
        rows = theory.label_sets(K, m)
        P = torch.eye(K).double() - 1 / K
        total = 3 * P @ rows.T @ rows @ P
        assert torch.allclose(total, theory.balance_weight(K, m, 3) * P, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="n must be at least 0"):
        theory.balance_weight(4, 2, -1)


def test_label_sets_are_all_subsets_in_order():
    rows = [tuple(row.nonzero().flatten().tolist()) for row in theory.label_sets(5, 3)]
    assert rows == list(combinations(range(5), 3))


def test_sample_loss_and_floor():
    for m, reduction in [(1, "sum"), (2, "sum"), (3, "mean"), (5, "sum")]:
        y = torch.zeros(1, 5).double()
        y[0, :m] = 1
        for s in (0.0, 1.3, 9.0):
            expected = float(pick_all_labels(s * y, y, reduction))
            found = theory.sample_loss(s, K=5, m=m, reduction=reduction)
            assert found == pytest.approx(expected, abs=1e-13)
        limit = theory.sample_loss(80.0, K=5, m=m, reduction=reduction)
        floor = theory.loss_floor(m, reduction)
        assert limit == pytest.approx(floor, abs=1e-13) or m == 5
    assert theory.loss_floor(1) == 0
    assert theory.loss_floor(3, "mean") == math.log(3)


def test_the_problem_is_the_definition():
    """Counts stand for repeated samples, λ has no ½; loss by nclib.losses, norms by hand."""
    table = {(0,): 3, (1,): 1, (0, 2): 2, (0, 1, 2): 1}
    generator = torch.Generator().manual_seed(3)
    for reduction in ("sum", "mean"):
        problem = theory.from_table(
            table, 4, K=3, lambda_w=2e-3, lambda_h=5e-4, lambda_b=0.1, reduction=reduction
        )
        W, H, b = (torch.randn(s, generator=generator).double() for s in ((3, 4), (4, 4), (3,)))
        n = torch.tensor(list(table.values()))
        H_all, y_all = H.repeat_interleave(n, 0), problem.targets.repeat_interleave(n, 0)
        expected = pick_all_labels(H_all @ W.T + b, y_all, reduction)
        expected += 2e-3 * W.square().sum() + 5e-4 * H_all.square().sum() + 0.1 * b.square().sum()
        found = problem.value({"weight": W, "features": H, "bias": b})
        assert float(found) == pytest.approx(float(expected), rel=1e-13)


GOOD = {"K": 4, "counts": {1: 1}, "lambda_w": 1e-3, "lambda_h": 1e-3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {5: 1}}, "at most 4 labels"),
        ({"counts": {0: 1}}, "at least 1"),
        ({"counts": {1: -1}}, "at least 0"),
        ({"counts": {1: 1.5}}, "integer"),
        ({"counts": {1: 0}}, "no sample"),
        ({"counts": {}}, "no sample"),
        ({"counts": [1, 2]}, "map multiplicity"),
        ({"K": 1}, "at least 2"),
        ({"K": 4.0}, "integer"),
        ({"K": 1200, "counts": {600: 1}}, "more samples"),
        ({"lambda_w": 0}, "greater than 0"),
        ({"lambda_h": -1e-3}, "greater than 0"),
        ({"lambda_h": float("nan")}, "finite"),
        ({"reduction": "max"}, "sum, mean"),
    ],
)
def test_bad_input(change, message):
    for function in (theory.optimum, theory.nonnegative_optimum):
        with pytest.raises(InputError, match=message):
            function(**(GOOD | change))


def test_other_bad_input():
    with pytest.raises(InputError, match="non-negative"):
        theory.scale_at(-1.0, K=4, m=2)
    with pytest.raises(InputError, match="non-negative"):
        theory.margins_at(float("nan"), K=4, multiplicities=[1])
    with pytest.raises(InputError, match="2 <= m < K"):
        theory.scale_dip(4, 4)
    with pytest.raises(InputError, match="finite"):
        theory.scale_at(np.inf, K=4, m=2)
    with pytest.raises(InputError, match="finite"):
        theory.margins_at([1.0, np.inf], K=4, multiplicities=[1])
    for function in (theory.sample_loss, theory.set_mass):
        for m, message in ((5, "at most 4"), (0, "at least 1"), (2.5, "integer")):
            with pytest.raises(InputError, match=message):
                function(1.0, K=4, m=m)
    with pytest.raises(InputError, match="at least 1"):
        theory.loss_floor(0)
    with pytest.raises(InputError, match="without a label"):
        theory.logit_margins(np.eye(3), np.zeros((3, 3)))
    for change, message in (
        ({"lambda_w": 0.0}, "lambda_w"),
        ({"lambda_b": -1.0}, "lambda_b"),
        ({"reduction": "none"}, "sum, mean"),
    ):
        with pytest.raises(InputError, match=message):
            theory.balanced(3, **(GOOD | change))
    for table, message in (({(0, 4): 1}, r"0\.\.3"), ({(): 2}, "distinct"), ({(0,): 0}, "count")):
        with pytest.raises(InputError, match=message):
            theory.from_table(table, 3, K=4, lambda_w=1e-3, lambda_h=1e-3)


def test_zero_counts_are_absent_and_numpy_integers_welcome():
    a = theory.optimum(K=4, counts={2: np.int64(2), 1: 3, 3: 0}, lambda_w=5e-3, lambda_h=5e-4)
    assert a.value == pytest.approx(0.8322804329, abs=6e-11)
    assert a.counts == {1: 3, 2: 2}


@pytest.mark.parametrize("margin", [50.0, 800.0, -800.0])
@pytest.mark.parametrize(("K", "m"), [(10, 1), (10, 3)])
def test_sample_loss_of_large_margins(K, m, margin):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(400):
        known = float(m * mpmath.log(m + (K - m) * mpmath.exp(-mpmath.mpf(margin))))
    assert theory.sample_loss(margin, K=K, m=m) == pytest.approx(known, rel=1e-14)


def test_the_nonnegative_certificate_knows_the_scale_and_its_problems():
    options = {"lambda_w": 0.25, "lambda_h": 0.25}
    zero = {"features": torch.zeros(3, 4).double(), "weight": torch.zeros(3, 4).double()}
    known = theory.problem(torch.eye(3), 4, **options, nonnegative=True, scale=5.0)
    assert theory.certificate(known, zero) > 0.5  # f falls from zero
    for other in ({"nonnegative": False}, {"fixed": {"weight": torch.ones(3, 4)}}):
        problem = theory.problem(torch.eye(3), 4, **options, **{"nonnegative": True} | other)
        with pytest.raises(InputError, match="one layer, free features"):
            theory.certificate(problem, zero)
