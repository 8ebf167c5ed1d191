"""UFM against the objective as it is written in the papers, its gradient, places, and errors."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import losses
from nclib.checks import InputError
from nclib.losses import ExactCrossEntropy, PickAllLabels
from nclib.ufm.model import UFM
from tests import bank

LOSSES = [losses.get("ce"), losses.get("ls", alpha=0.2), losses.get("fl", gamma=1.7)]
LOSSES += [losses.get("mse", tau=0.6, scale=1.4, kappa=2.2), losses.get("mse", tau=None)]
LOSSES += [PickAllLabels(), PickAllLabels("mean"), ExactCrossEntropy(0.3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def problems(draw):
    """Any problem: every loss, depth 1 to 3, class sizes, kinds of bias, flags and fixed parts."""
    K, R, depth = draw(st.integers(2, 4)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    loss, rng = draw(st.sampled_from(LOSSES)), generator(draw(st.integers(0, 999)))
    if isinstance(loss, PickAllLabels):
        targets = torch.rand(R, K, generator=rng) < 0.5
        targets[torch.arange(R), torch.randint(K, (R,), generator=rng)] = True
    else:
        targets = torch.randint(K, (R,), generator=rng)
    widths = tuple(draw(st.lists(st.integers(1, 4), min_size=depth, max_size=depth)))
    log = isinstance(loss, ExactCrossEntropy) and draw(st.booleans())
    decays = (
        [0.0] * (depth + 1)
        if log
        else [0.1 * (j + draw(st.integers(0, 1))) for j in range(depth + 1)]
    )
    bias = draw(st.sampled_from([None, 0.0, torch.randn(K, generator=rng)] + [0.3] * (not log)))
    fixed = {"weight": torch.randn(K, widths[-1], generator=rng)} if draw(st.booleans()) else {}
    names = ["features"] + ["weight"] * (not fixed)
    return UFM(
        loss, targets, widths, tuple(decays), K=K, bias=bias, fixed=fixed, log=log,
        counts=draw(st.sampled_from([None, torch.randint(1, 4, (R,), generator=rng)])),
        scale=draw(st.sampled_from([1.0, 2.5])), relu=draw(st.booleans()),
        sphere=tuple(draw(st.lists(st.sampled_from(names), unique=True))),
        nonnegative=draw(st.booleans()),
    )  # fmt: skip


def one_of(point, i, fixed=()):
    return {name: x if name in fixed else x[i] for name, x in point.items()}


def still(problem):
    """Names of the variables that do not move."""
    return {*problem.fixed} | ({"bias"} if torch.is_tensor(problem.bias) else set())


@given(problems(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_value_is_the_formula_of_the_papers_for_stacks_of_any_shape(problem, seed):
    x = problem.start(generator(seed), 0.7, batch=(3,))
    point, values = problem.place(x), problem(**x)
    assert values.shape == (3,)
    for i in range(3):
        one = one_of(point, i, still(problem))
        want = bank.plain(problem, **one)
        torch.testing.assert_close(values[i], want, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(problem.value(one), want, rtol=1e-11, atol=1e-13)
    stack = {
        name: t.reshape(3, 1, *t.shape[1:]).expand(3, 2, *t.shape[1:]) for name, t in x.items()
    }
    torch.testing.assert_close(problem(**stack), values[:, None].expand(3, 2))
    torch.testing.assert_close(problem.value(point), values)


@given(problems(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_gradient_is_that_of_finite_differences(problem, seed):
    x = problem.start(generator(seed), 0.7, batch=(2,))
    slopes = problem.gradient(x)
    assert list(slopes) == list(x)
    way = problem.start(generator(seed + 1), 1.0, batch=(2,))
    # Where a hidden unit is close to its kink no difference quotient is a slope.
    hidden = torch.cat([a.flatten() for a in pre_activations(problem, x)] or [torch.ones(1)])
    if problem.relu and hidden.abs().min() < 1e-3:
        return
    step = 1e-6
    there, back = ({n: x[n] + s * way[n] for n in x} for s in (step, -step))
    quotient = (problem(**there) - problem(**back)) / (2 * step)
    along = sum((slopes[n] * way[n]).flatten(1).sum(1) for n in x)
    torch.testing.assert_close(along, quotient, rtol=1e-6, atol=1e-8)


def pre_activations(problem, x):
    linear = replace(problem, relu=False)
    point = problem.place(x)
    inputs = problem.activations(point)
    return [inputs[j] @ point[name].mT for j, name in enumerate(linear.layers[:-1])]


@pytest.mark.parametrize(
    "options", [{}, {"bias": 0.0}, {"bias": 0.2, "relu": True}, {"scale": 3.0}]
)
@pytest.mark.parametrize("loss", [l for l in LOSSES if l.name == "mse"], ids=str)
def test_the_gradient_by_hand_is_that_of_autograd(loss, options):
    problem = UFM.classes([2, 3, 4], loss, widths=(5, 6), decays=(0.1, 0.2, 0.3), **options)
    x = problem.start(generator(1), 0.5, batch=(3,))
    y = {name: t.clone().requires_grad_() for name, t in x.items()}
    found = torch.autograd.grad(problem(**y).sum(), list(y.values()))
    for slope, want in zip(problem.gradient(x).values(), found, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-14)


@given(problems(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_coordinates_undo_place(problem, seed):
    point = problem.place(problem.start(generator(seed), 0.7, batch=(2,)))
    again = problem.place(problem.coordinates(point))
    assert again.keys() == point.keys()
    for name in point:
        torch.testing.assert_close(again[name], point[name], rtol=1e-12, atol=1e-14)
    for name in problem.sphere:
        torch.testing.assert_close(
            point[name].norm(dim=-1), torch.ones(2, len(point[name][0])).double()
        )
    if problem.nonnegative:
        assert float(point["features"].min()) >= 0


def test_rows_with_counts_are_that_many_samples():
    loss, options = losses.get("ce"), {"widths": 3, "decays": (0.1, 0.2), "bias": 0.0}
    shared = UFM.classes([3, 1, 2], loss, shared=True, **options)
    single = UFM.classes([3, 1, 2], loss, **options)
    point = shared.place(shared.start(generator(), 1.0))
    spread = point | {"features": point["features"][single.targets]}
    assert float(shared.value(point)) == pytest.approx(float(single.value(spread)), rel=1e-14)


def test_logits_and_data_agree_on_where_the_classes_are():
    problem = UFM.classes(
        [2, 2], losses.get("ce"), widths=3, decays=(0.1, 0.2), scale=2.0, bias=0.0
    )
    point = problem.place(problem.start(generator(), 1.0, batch=(5,)))
    logits = problem.logits(point)
    want = 2 * torch.einsum("brd,bkd->brk", point["features"], point["weight"])
    torch.testing.assert_close(logits, want + point["bias"][:, None])
    want = torch.stack([problem.loss(z, problem.targets) for z in logits])
    torch.testing.assert_close(problem.data(logits), want)
    torch.testing.assert_close(problem.data(logits[0]), want[0])


def test_the_start_has_the_size_asked_for():
    problem = UFM.classes([50] * 4, losses.get("ce"), widths=20, decays=(1, 1), nonnegative=True)
    sizes = torch.tensor([0.1, 10.0])
    x = problem.start(generator(), sizes, batch=(2,))
    features = problem.place(x)["features"]
    for i in range(2):
        assert float(x["weight"][i].std()) == pytest.approx(float(sizes[i]), rel=0.3)
        assert float(features[i].square().mean().sqrt()) == pytest.approx(float(sizes[i]), rel=0.1)


def test_logit_gradient_and_certificate():
    counts, scale = torch.tensor([3.0, 1, 2]).double(), 1.7
    problem = UFM(losses.get("ls"), [0, 1, 2], 4, (0.1, 0.2), counts=counts, bias=0.0, scale=scale)
    point = problem.place(problem.start(generator(), 1.0))
    # ∇g in the logits times √n_r, from softmax: p_r (softmax - targets) / √n_r.
    target = 0.9 * torch.eye(3).double() + 0.1 / 3
    want = (problem.logits(point).softmax(1) - target) * (counts.sqrt() / 6)[:, None]
    torch.testing.assert_close(problem.logit_gradient(point), want)
    norm = scale * float(torch.linalg.svdvals(want)[0])
    assert problem.certificate(point) == pytest.approx(norm - math.sqrt(0.02), rel=1e-12)
    two = {name: torch.stack([x, 2 * x]) for name, x in point.items()}
    torch.testing.assert_close(problem.logit_gradient(two)[0], want)


def test_log_survives_where_the_loss_underflows():
    problem = UFM.classes([1, 1], ExactCrossEntropy(), widths=1, decays=(0, 0), scale=900.0,
                          sphere=("features", "weight"), log=True)  # fmt: skip
    code = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert float(problem.value({"features": code, "weight": code})) == pytest.approx(
        -1800, rel=1e-15
    )


CE, MSE, SETS = losses.get("ce"), losses.get("mse"), torch.tensor([[1, 0], [1, 1]])
GOOD = {"loss": CE, "targets": [0, 1, 1], "widths": 3, "decays": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "ce"}, "loss must be one of nclib.losses"),
        ({"targets": [0, 1, 5], "K": 3}, r"targets must lie in 0\.\.2, found 5"),
        ({"targets": [0, -1, 1]}, "targets must lie in"),
        ({"targets": [0, 0]}, "K must be at least 2"),
        ({"targets": []}, "targets is empty"),
        ({"targets": SETS}, "takes label sets|takes labels"),
        ({"loss": PickAllLabels()}, r"takes label sets \(R, K\)"),
        ({"loss": PickAllLabels(), "targets": SETS, "K": 3}, "must have 3 columns"),
        ({"loss": PickAllLabels(), "targets": 2 * SETS}, "only 0 and 1"),
        ({"decays": (0.1,)}, "decays must be λ_H"),
        ({"decays": 0.1}, "decays must be a list"),
        ({"decays": (0.1, -0.2)}, r"decays\[1\] must be at least 0"),
        ({"decays": (0.1, math.nan)}, r"decays\[1\] must be a finite number"),
        ({"decays": (0.1, 0.2, 0.3), "widths": (3,)}, "3 decays .* need 2 widths"),
        ({"widths": (3, 3)}, "2 decays .* need 1 widths"),
        ({"widths": 0}, r"widths\[0\] must be at least 1"),
        ({"widths": 2.5}, r"widths\[0\] must be an integer"),
        ({"counts": [1, 2]}, r"counts must have shape \(3,\)"),
        ({"counts": [1, 2, 0]}, "counts must be at least 1, got 0"),
        ({"bias": -0.1}, "bias must be at least 0"),
        ({"bias": [0.0, 1.0, 2.0]}, r"fixed bias must have shape \(2,\)"),
        ({"scale": 0.0}, "scale must be greater than 0"),
        ({"sphere": ("feature",)}, "sphere must be one of features, weight"),
        ({"log": True}, "log=True needs a loss with log_per_sample"),
        ({"log": True, "loss": ExactCrossEntropy()}, "and decays 0"),
        ({"fixed": {"weights": torch.ones(2, 3)}}, "fixed must be one of features, weight"),
        ({"fixed": {"weight": torch.ones(3, 3)}}, r"fixed weight must have shape \(2, 3\)"),
        ({"fixed": {"weight": torch.full((2, 3), math.inf)}}, "fixed weight has 6 NaN"),
        ({"fixed": {"weight": torch.ones(2, 3)}, "sphere": "weight"}, "give rows of norm 1"),
        ({"fixed": {"features": -torch.ones(3, 3)}, "nonnegative": True}, "negative entries"),
        ({"fixed": {"weight": torch.eye(2, 3), "features": torch.eye(3)}}, "everything is fixed"),
    ],
)
def test_what_does_not_fit_together_is_named(change, message):
    UFM(**GOOD)
    with pytest.raises(InputError, match=message):
        UFM(**GOOD | change)


def test_class_counts_are_checked():
    for counts, message in (
        ([2, 0], r"counts\[1\]"),
        ([2.5, 1], "integer"),
        (4, "a list"),
        ([3], "K"),
        ([], "at least one"),
    ):
        with pytest.raises(InputError, match=message):
            UFM.classes(counts, CE, widths=3, decays=(1, 1))


def test_points_and_coordinates_with_other_names_are_refused():
    problem = UFM(**GOOD, bias=0.0)
    point = problem.place(problem.start(generator(), 1.0))
    for call in (problem.value, problem.logits, problem.coordinates, problem.logit_gradient):
        with pytest.raises(InputError, match="has features, weight, bias; got features, weight"):
            call({name: point[name] for name in ("features", "weight")})
    with pytest.raises(InputError, match="coordinates must be features, weight, bias"):
        problem(features=point["features"])
    negative = UFM(**GOOD, nonnegative=True)
    with pytest.raises(InputError, match="negative entries"):
        negative.coordinates({"features": -torch.ones(3, 3), "weight": torch.ones(2, 3)})
    for other in (
        UFM(**GOOD | {"decays": (0.1, 0.1, 0.1)}), UFM(**GOOD, sphere=("weight",)), negative,
        UFM(**GOOD, fixed={"weight": torch.ones(2, 3)}),
    ):  # fmt: skip
        with pytest.raises(InputError, match="certificate exists for one layer"):
            other.certificate(point)
