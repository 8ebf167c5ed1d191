import numpy as np
import pytest
import torch

from nclib import frames, losses
from nclib.metrics import nc_metrics
from nclib.results.multi_loss import experiments as ufm
from nclib.results.multi_loss import theory
from nclib.ufm import solve as solver


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(name="ce", *, K=4, n=3, d=6, w=0.01, h=0.004, b=0.0, **params):
    return ufm.Problem(losses.get(name, **params), K, n, d, w, h, b)


CASES = [
    problem(),
    problem("ls", alpha=0.1, d=3),
    problem("fl", gamma=3.0, b=0.05),
    problem("fl", gamma=0.5, K=3, d=2),
    problem("mse"),
    problem("mse", b=0.05),
    problem("mse", b=None),
    problem("mse", b=None, d=3),
    problem("mse", tau=0.4, scale=2.0, kappa=5.0, b=0.3),
    problem("mse", tau=0.4, scale=2.0, kappa=5.0, b=None),
    problem("ce", K=2, n=1, d=1, b=None),
    problem("ce", w=0.3, h=0.3),  # beyond the threshold: zero
]


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.loss}-K{p.K}-d{p.d}-b{p.lambda_b}")
def test_the_stacked_objective_is_the_objective_of_each(case):
    starts = [case.start(generator(seed), 1.0) for seed in range(3)]
    stacked = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    want = torch.stack([case(**start) for start in starts])
    torch.testing.assert_close(case.many(**stacked), want)


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.loss}-K{p.K}-d{p.d}-b{p.lambda_b}")
def test_optimiser_reaches_the_closed_form_and_never_goes_below(case):
    best = case.optimum()
    found = [ufm.solve(case, generator=generator(s), scale=0.5) for s in range(3)]
    values = [f.value for f in found]
    assert min(values) == pytest.approx(best.value, abs=1e-11)
    at = found[int(np.argmin(values))].variables
    assert float(at["weight"].norm()) == pytest.approx(best.weight_norm, abs=2e-5)
    assert float(at["features"].norm()) == pytest.approx(best.feature_norm, abs=2e-5)
    logits = case.logits(**at)
    centred = logits - logits.mean(1, keepdim=True)
    if case.lambda_b is not None or case.d >= case.K:
        want = best.margin * frames.centring(case.K)[case.labels]
        np.testing.assert_allclose(centred, want, atol=1e-5)
    if not np.isnan(best.mean_component) and isinstance(case.loss, losses.MeanSquaredError):
        np.testing.assert_allclose(logits.mean(1), best.mean_logit, atol=1e-5)
        if "bias" in at:
            np.testing.assert_allclose(at["bias"], best.bias, atol=1e-5)


@pytest.mark.parametrize("case", CASES[:7] + CASES[8:10], ids=lambda p: str(p.loss))
def test_the_explicit_minimiser_is_critical_optimal_and_collapsed(case):
    point = ufm.optimal_point(case, generator=generator())
    assert float(case(**point)) == pytest.approx(case.optimum().value, abs=1e-13)
    for part in solver.gradient(case, point).values():
        assert part.abs().max() < 1e-14
    assert ufm.certificate(case, point) == pytest.approx(0, abs=1e-13)
    got = nc_metrics(point["features"], case.labels, point["weight"], point.get("bias"))
    assert got["nc1"] < 1e-20
    assert got["nc2_centered"] < 1e-7
    assert got["nc3_centered"] < 1e-7


@pytest.mark.parametrize(
    ("case", "mean"),
    [
        (problem(b=0.01), False),
        (problem(b=0.0), False),
        (problem("ls", alpha=0.1, K=3, n=2, d=2), False),
        (problem("fl", gamma=2.0, b=0.02), False),
        (problem("mse", d=5), False),
        (problem("mse", d=5, b=None), True),
    ],
)
def test_the_minimum_is_nondegenerate_up_to_symmetry(case, mean):
    eigenvalues = solver.hessian_eigenvalues(case, ufm.optimal_point(case, generator=generator()))
    shift = case.lambda_b == 0 and not isinstance(case.loss, losses.MeanSquaredError)
    want = theory.hessian_nullity(case.K, case.d, mean_component=mean, free_shift=shift)
    assert int((eigenvalues.abs() < 1e-7).sum()) == want
    assert float(eigenvalues[0]) > -1e-12


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("case", [problem(), problem("fl", gamma=3.0), problem("mse", b=0.1)])
def test_saddles_have_the_predicted_negative_curvature(case, rank):
    point = ufm.saddle(case, rank, generator=generator(rank)).variables
    assert max(float(g.abs().max()) for g in solver.gradient(case, point).values()) < 1e-7
    direction, predicted = ufm.negative_curvature(case, point)
    assert predicted < -1e-3
    assert solver.curvature(case, point, direction) == pytest.approx(predicted, rel=1e-6)
    # an oracle that shares no code with autograd's second derivative
    step = 1e-3
    moved = [{k: v + t * direction[k] for k, v in point.items()} for t in (step, 0.0, -step)]
    up, here, down = (float(case(**m)) for m in moved)
    assert (up - 2 * here + down) / step**2 == pytest.approx(predicted, rel=1e-3)
    assert ufm.certificate(case, point) == pytest.approx(-predicted / 2, rel=1e-9)
    assert float(case(**point)) > case.optimum().value + 1e-4


@pytest.mark.parametrize(
    ("name", "params"), [("ce", {}), ("ls", {"alpha": 0.2}), ("fl", {"gamma": 3.0}), ("mse", {})]
)
@pytest.mark.parametrize("n", [1, 5])
def test_gradient_norm_at_zero(name, params, n):
    case = problem(name, n=n, K=5, **params)
    point = ufm.saddle(case, 0, generator=generator()).variables
    gradient = ufm.data_gradient(case, point)
    want = theory.gradient_norm_at_zero(name, K=5, n=n, **params)
    assert float(torch.linalg.matrix_norm(gradient, 2)) == pytest.approx(want, rel=1e-9)


def test_focal_loss_has_a_spurious_minimum_between_its_thresholds():
    K, n = 30, 2
    local, glob, _ = theory.focal_thresholds(K, 3.0)
    c = 1.006 * local
    assert c < glob
    lam = c / n**0.5
    case = ufm.Problem(losses.get("fl", gamma=3.0), K, n, 32, lam, lam, 0.01)
    zero = ufm.saddle(case, 0, generator=generator()).variables
    assert float(case(**zero)) - case.optimum().value == pytest.approx(7.16e-3, abs=1e-5)
    # smallest eigenvalue of the Hessian at zero: lambda - |psi(1/K)|/(K sqrt n)
    assert -ufm.negative_curvature(case, zero)[1] / 2 < 0
    returned = solver.minimize(
        case, {k: v + 1e-4 * torch.randn(v.shape, generator=generator()) for k, v in zero.items()}
    )
    assert returned.value == pytest.approx(float(case(**zero)), abs=1e-9)


def test_contrastive_property():
    for name, params in (("ce", {}), ("ls", {"alpha": 0.1}), ("fl", {"gamma": 3.0})):
        loss = losses.get(name, **params)
        lower, shift = ufm.contrastive_violation(loss, 6)
        assert lower < 1e-12
        assert shift < 1e-9
    assert ufm.contrastive_violation(losses.get("mse"), 6)[1] > 1


def test_newton_polish_brings_the_variables_to_machine_precision():
    case = problem(b=0.01)
    found = ufm.solve(case, generator=generator(), newton=3)
    assert found.gradient_norm < 1e-15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: problem(d=0), "d must be at least 1"),
        (lambda: problem(w=0.0), "lambda_w must be greater than 0"),
        (lambda: problem(b=-0.1), "lambda_b must be at least 0"),
        (lambda: ufm.saddle(problem(), 3, generator=generator()), r"rank must be in 0\.\.2, got 3"),
        (lambda: problem(d=2).optimum(), "no closed form for d=2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
