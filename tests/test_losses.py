import decimal
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import losses

ALL = [("ce", {}), ("ls", {"alpha": 0.1}), ("fl", {"gamma": 0.5}), ("fl", {"gamma": 3.0})]
ALL += [("mse", {"tau": 0.7, "scale": 2.0, "kappa": 3.0}), ("mse", {"tau": None, "scale": 15.0})]


def reference_input():
    rng = np.random.default_rng(20221004)
    logits = rng.normal(0, 2, (6, 5))
    return torch.tensor(logits), torch.tensor(rng.integers(0, 5, 6))


def brute_force(name, params, z, k):
    """One sample, from the definition, in plain Python floats."""
    z = [float(v) for v in z]
    K = len(z)
    p = np.exp(z) / np.exp(z).sum()
    if name == "ce":
        return -np.log(p[k])
    if name == "ls":
        t = [params["alpha"] / K + (1 - params["alpha"]) * (j == k) for j in range(K)]
        return -sum(t[j] * np.log(p[j]) for j in range(K))
    if name == "fl":
        return -((1 - p[k]) ** params["gamma"]) * np.log(p[k])
    tau = 2 / K if params["tau"] is None else params["tau"]
    own = params.get("kappa", 1.0) * (z[k] - params["scale"]) ** 2
    return tau / 2 * (own + sum(z[j] ** 2 for j in range(K) if j != k))


@pytest.mark.parametrize(("name", "params"), ALL)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(2, 7))
def test_every_loss_matches_its_definition(name, params, seed, K):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 3, (4, K)), rng.integers(0, K, 4)
    got = losses.get(name, **params).per_sample(torch.tensor(z), torch.tensor(y))
    want = [brute_force(name, params, z[i], y[i]) for i in range(4)]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "params"), ALL)
def test_classes_come_second_in_stacked_logits(name, params):
    loss = losses.get(name, **params)
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64)
    labels = torch.randint(4, (2, 5), generator=rng)
    rows = loss.per_sample(logits.mT.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss.per_sample(logits, labels), rows.view(2, 5))


@pytest.mark.parametrize(("name", "params"), [*ALL, ("exact_ce", {})])
def test_one_label_for_many_rows_is_refused(name, params):
    z, y = reference_input()
    loss = losses.get(name, **params) if name in losses.LOSSES else losses.ExactCrossEntropy()
    with pytest.raises(ValueError, match="got shape|batch_size"):
        loss(z, y[:1])


@pytest.mark.parametrize(("name", "params"), ALL)
def test_gradients_match_finite_differences(name, params):
    z, y = reference_input()
    loss = losses.get(name, **params)
    assert torch.autograd.gradcheck(lambda t: loss(t, y), z.clone().requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_gradient_is_finite_when_the_sample_is_certain(gamma, dtype):
    z = torch.tensor([[100.0, 0.0], [800.0, -5.0], [-100.0, 0.0]], dtype=dtype, requires_grad=True)
    value = losses.get("fl", gamma=gamma)(z, torch.tensor([0, 0, 0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_focal_keeps_small_probabilities_in_float32():
    z = torch.tensor([[20.0, 0.0]])
    got = losses.get("fl", gamma=1.0)(z, torch.tensor([0]))
    assert float(got) == pytest.approx(np.exp(-20.0) ** 2, rel=1e-4)


@pytest.mark.parametrize("params", [params for name, params in ALL if name == "mse"])
def test_the_slope_is_the_gradient(params):
    loss, (z, y) = losses.get("mse", **params), reference_input()
    stack = torch.stack([z.T, 2 * z.T])  # classes second, samples last
    stack.requires_grad_()
    labels = y.expand(2, -1)
    (want,) = torch.autograd.grad(loss.per_sample(stack, labels).sum(), stack)
    torch.testing.assert_close(loss.slope(stack.detach(), labels), want)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_exact_cross_entropy_keeps_every_digit(size):
    """Against 400-digit decimals, where softmax has long rounded to one."""
    context = decimal.Context(prec=400, Emin=-10_000, Emax=10_000)
    z, y = size * reference_input()[0], reference_input()[1]
    loss = losses.ExactCrossEntropy(0.7)
    got, logs = loss.per_sample(z, y), loss.log_per_sample(z, y)
    for i, k in enumerate(y.tolist()):
        powers = [context.exp(decimal.Decimal(v - z[i, k].item())) for v in z[i].tolist()]
        rivals = sum(p for j, p in enumerate(powers) if j != k) * context.exp(
            decimal.Decimal("0.7")
        )
        exact = context.ln(1 + rivals)
        assert float(got[i]) == pytest.approx(float(exact), rel=1e-13)
        assert float(logs[i]) == pytest.approx(float(context.ln(exact)), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("margin", [-60.0, -45.0, -25.0, -21.0, -19.0, 0.3, 19.0, 21.0, 25.0, 45.0])
def test_losses_keep_every_digit_on_both_sides_of_any_switch(margin):
    """Two classes, plain double arithmetic: no formula may switch where digits are still lost."""
    logits, label = torch.tensor([[margin, 0.0]], dtype=torch.float64), torch.tensor([0])
    cost = math.log1p(math.exp(-margin))
    focal = (1 + math.exp(margin)) ** -1.7 * cost
    found = losses.Focal(1.7).per_sample(logits, label).item()
    assert found == pytest.approx(focal, rel=1e-13, abs=0)
    exact = losses.ExactCrossEntropy()
    assert exact.per_sample(logits, label).item() == pytest.approx(cost, rel=1e-13, abs=0)
    assert exact.log_per_sample(logits, label).item() == pytest.approx(
        math.log(cost), rel=1e-13, abs=0
    )


def test_exact_cross_entropy_never_underflows_in_its_logarithm():
    z = torch.tensor([[900.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss, label = losses.ExactCrossEntropy(), torch.tensor([0])
    assert float(loss.per_sample(z.detach(), label)) == 0.0
    value = loss.log_per_sample(z, label)
    assert float(value.detach()) == pytest.approx(math.log(2) - 900, rel=1e-15)
    (slope,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(slope, torch.tensor([[-1.0, 0.5, 0.5]]).double())
    assert torch.autograd.gradcheck(
        lambda t: loss.log_per_sample(t, label), z.detach() / 40 + 0.1 * z.sign()
    )


def test_losses_say_who_they_are():
    named = {str(losses.PickAllLabels("mean")), str(losses.ExactCrossEntropy(0.5))}
    assert named == {"pal(reduction=mean)", "exact_ce(margin=0.5)"}
    defaults = {str(losses.get(name)) for name in ("ls", "fl", "mse")}  # as documented
    assert defaults == {"ls(alpha=0.1)", "fl(gamma=3)", "mse(tau=1, scale=1, kappa=1)"}
    with pytest.raises(ValueError, match="reduction must be one of sum, mean"):
        losses.PickAllLabels("none")
    with pytest.raises(ValueError, match="margin must be a finite number"):
        losses.ExactCrossEntropy(float("inf"))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("hinge", {}, "must be one of ce, ls, fl, mse; got 'hinge'"),
        ("ce", {"alpha": 0.1}, "'ce' has no parameter 'alpha'; it accepts: none"),
        ("ls", {"alpha": 1.0}, "alpha must be less than 1"),
        ("ls", {"alpha": -0.1}, "alpha must be at least 0"),
        ("fl", {"gamma": -1}, "gamma must be at least 0"),
        ("fl", {"gamma": float("nan")}, "gamma must be a finite number"),
        ("mse", {"tau": 0}, "tau must be greater than 0"),
        ("mse", {"scale": -1}, "scale must be greater than 0"),
    ],
)
def test_bad_parameters_are_named(name, params, message):
    with pytest.raises(ValueError, match=message):
        losses.get(name, **params)


@pytest.mark.parametrize("name", ["ce", "ls", "fl", "mse"])
def test_padding_is_no_label(name):
    """torch's cross-entropy counts -100 as a loss of 0 in a mean of all."""
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        losses.get(name)(torch.randn(4, 3), torch.tensor([0, 1, 2, -100]))


def test_mse_near_collapse_in_single_precision():
    logits = torch.zeros(1, 10)
    logits[0, 0], logits[0, 1:] = 15.0, 1e-3
    loss = losses.get("mse", tau=None, scale=15.0)
    assert float(loss(logits, torch.tensor([0]))) == pytest.approx(9e-7, rel=1e-5)
