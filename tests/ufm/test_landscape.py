"""Critical points: spectra and ways out against numerical derivatives, orbits against nullities."""

import numpy as np
import pytest
import torch

from nclib import losses
from nclib.checks import InputError
from nclib.losses import ExactCrossEntropy, PickAllLabels
from nclib.ufm import landscape
from nclib.ufm.model import UFM
from nclib.ufm.solve import best
from tests import bank

CE, MSE = losses.get("ce"), losses.get("mse")
SETS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
ONE_LAYER = {
    "ce": UFM.classes([3] * 4, CE, widths=5, decays=(0.004, 0.011), bias=0.0),
    "unequal classes, bias decay": UFM.classes(
        [4, 2, 1], CE, widths=4, decays=(0.01, 0.02), bias=0.1
    ),
    "mse, no bias": UFM.classes([2] * 4, MSE, widths=6, decays=(0.01, 0.01)),
    "label sets with counts": UFM(
        PickAllLabels(), SETS, 4, (0.003, 0.02), counts=[3, 3, 3, 1, 1, 1], bias=0.02
    ),
    "a scale": UFM.classes([2] * 4, CE, widths=4, decays=(0.01, 0.05), scale=1.9),
}  # fmt: skip


def second_derivative(problem, x, direction, step=1e-3):
    """Of the plainly written objective by central differences of fourth order."""

    def f(t):
        point = problem.place({name: x[name] + t * direction[name] for name in x})
        return float(bank.plain(problem, **point))

    weights = {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12}
    return sum(w * f(i * step) for i, w in weights.items()) / step**2


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_the_way_out_has_the_curvature_that_the_certificate_predicts(name, rank):
    problem = ONE_LAYER[name]
    point = landscape.saddle(problem, rank, newton=3)
    x = problem.coordinates(point)
    slopes = problem.gradient(x)
    assert max(float(slope.abs().max()) for slope in slopes.values()) < 1e-10
    assert int(torch.linalg.matrix_rank(point["weight"], rtol=1e-6)) == rank
    direction, predicted = landscape.escape(problem, point)
    assert predicted < 0
    assert predicted == -2 * problem.certificate(point)
    assert landscape.curvature(problem, point, direction) == pytest.approx(predicted, rel=1e-8)
    assert second_derivative(problem, x, direction) == pytest.approx(predicted, rel=1e-5)


def dense_hessian(problem, x, step=1e-4):
    """Central differences of the gradient of the plainly written objective."""
    names = list(x)
    flat = torch.cat([x[n].flatten() for n in names])

    def gradient(vector):
        parts = torch.split(vector.clone().requires_grad_(), [x[n].numel() for n in names])
        y = {
            n: p.reshape(x[n].shape).detach().requires_grad_()
            for n, p in zip(names, parts, strict=True)
        }
        value = bank.plain(problem, **problem.place(y))
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(y.values()))])

    rows = [
        (gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step)
        for e in torch.eye(len(flat), dtype=torch.float64)
    ]
    return (torch.stack(rows) + torch.stack(rows).T) / 2


@pytest.mark.parametrize("name", ["ce", "label sets with counts", "a scale"])
def test_spectrum_and_the_zeros_of_the_rotations(name):
    problem = ONE_LAYER[name]
    point = best(problem, newton=3).point
    values = landscape.spectrum(problem, point)
    want = torch.linalg.eigvalsh(dense_hessian(problem, problem.coordinates(point)))
    torch.testing.assert_close(values, want, rtol=1e-5, atol=1e-7)
    # rotations, and for a free bias the shift of all logits
    flat = landscape.orbit(problem.widths[0], problem.K - 1) + (problem.bias == 0.0)
    assert int((values.abs() < 1e-9).sum()) == flat
    assert float(values[flat]) > 1e-5


@pytest.mark.parametrize("side", [1, -1])
def test_radial_zeros_of_the_spheres_are_left_out(side):
    """At the minimum, and at the saddle with every feature opposite to its classifier."""
    K, n, d = 3, 2, 4
    problem = UFM.classes([n] * K, ExactCrossEntropy(), widths=d, decays=(0, 0), scale=1.3,
                          sphere=("features", "weight"))  # fmt: skip
    point = best(problem, 4, newton=3).point
    point["features"] *= side
    values = landscape.spectrum(problem, point)
    assert len(values) == (K + n * K) * (d - 1)
    assert (values.min() < -0.1) == (side < 0)
    # all that is left are rotations, for which the Hessian along the spheres is zero too
    assert int((values.abs() < 1e-10).sum()) == landscape.orbit(d, K - 1)
    tangent = tangent_hessian(problem, point)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(tangent), rtol=1e-5, atol=1e-7)


def test_saddles_are_those_of_the_seed():
    problem = ONE_LAYER["ce"]
    one, same, other = (landscape.saddle(problem, 1, seed=seed)["weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-3)


def tangent_hessian(problem, point):
    """Second derivatives along the spheres, from differences in orthonormal tangent bases."""
    x = {name: point[name] for name in ("features", "weight")}
    H, at = dense_hessian(problem, x), 0
    rows = torch.cat([x["features"], x["weight"]])
    basis = torch.zeros(len(H), 0, dtype=torch.float64)
    for row in rows:
        _, _, right = torch.linalg.svd(row[None])
        block = torch.zeros(len(H), len(row) - 1, dtype=torch.float64)
        block[at : at + len(row)] = right[1:].T
        basis, at = torch.cat([basis, block], 1), at + len(row)
    return basis.T @ H @ basis


@pytest.mark.parametrize(("d", "r"), [(5, 3), (4, 4), (3, 1), (2, 0), (7, 2)])
def test_orbit_is_the_dimension_of_the_rotations_that_move_the_point(d, r):
    basis = torch.zeros(d, d, dtype=torch.float64)
    basis[range(r), range(r)] = torch.arange(1.0, r + 1, dtype=torch.float64)  # rank r
    moves = [basis @ torch.from_numpy(skew(d, i, j)) for i in range(d) for j in range(i)]
    rank = np.linalg.matrix_rank(torch.stack([m.flatten() for m in moves]).numpy())
    assert landscape.orbit(d, r) == rank


def skew(d, i, j):
    found = np.zeros((d, d))
    found[i, j], found[j, i] = 1, -1
    return found


@pytest.mark.parametrize("relu", [False, True])
def test_layers_are_balanced_at_critical_points_and_elsewhere_not(relu):
    decays = (0.01, 0.03, 0.02)
    problem = UFM.classes([3, 3, 3], MSE, widths=(5, 8), decays=decays, relu=relu)
    found = best(problem, 8, scale=(0.5, 0.8), refine=True)
    layers = [found.point["features"].T, found.point["hidden_1"], found.point["weight"]]
    first, second = landscape.balancedness(layers, decays, relu=relu)
    assert max(first, second) < 1e-9
    # by hand, for a point that is not critical
    layers = [found.point["features"].T, 2 * found.point["hidden_1"], found.point["weight"]]
    H, W = layers[0].numpy().T, layers[1].numpy()
    gap = 0.03 * W.T @ W - 0.01 * H.T @ H
    gap = gap.diagonal() if relu else gap
    found = landscape.balancedness(layers, decays, relu=relu)
    assert found[0] == pytest.approx(abs(gap).max(), rel=1e-12)
    assert landscape.balancedness([torch.eye(2), 2 * torch.eye(2)]) == [3.0]
    skewed = torch.tensor([[1.0, 0.8], [0.0, 0.6]])  # columns of length one, cosine 0.8
    found = landscape.balancedness([torch.eye(2), skewed], relu=relu)
    assert found[0] == pytest.approx(0.0 if relu else 0.8, abs=1e-6)


def test_what_has_no_such_saddle_is_refused():
    problem = ONE_LAYER["ce"]
    with pytest.raises(InputError, match=r"rank must be in 0\.\.2, got 3"):
        landscape.saddle(problem, 3)
    with pytest.raises(InputError, match="rank must be at least 0"):
        landscape.saddle(problem, -1)
    deep = UFM.classes([2] * 3, MSE, widths=(4, 4), decays=(1, 1, 1))
    with pytest.raises(InputError, match="one layer"):
        landscape.saddle(deep, 1)
    tight = UFM.classes([2] * 3, CE, widths=2, decays=(0.01, 0.01))
    with pytest.raises(InputError, match="no spare dimension; use d > 2"):
        landscape.escape(tight, best(tight).point)
    without = UFM.classes([2] * 3, CE, widths=4, decays=(0.0, 0.01))
    with pytest.raises(InputError, match="positive decays"):
        landscape.escape(without, without.place(without.start(torch.Generator())))
    with pytest.raises(InputError, match="rank at most 3"):
        landscape.orbit(3, 4)
    with pytest.raises(InputError, match="2 layers need as many decays, got 3"):
        landscape.balancedness([torch.eye(2)] * 2, (1, 1, 1))
    with pytest.raises(InputError, match=r"\(2, 3\) cannot follow \(2, 3\)"):
        landscape.balancedness([torch.ones(2, 3)] * 2)
