"""NC3 in both forms, the obtuse projection and the layer table against hand-made oracles."""

import math

import numpy as np
import pytest
import torch

from nclib.checks import InputError
from nclib.metrics.geometry import trace_ratio
from nclib.results.extended_ufm.metrics import (
    layer_table,
    obtuse_distance,
    obtuse_projection,
    self_duality,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=gen(seed), dtype=torch.float64)).Q


def test_self_duality_by_hand():
    W = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    M = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    found = self_duality(W, M)
    assert found["a"] == pytest.approx(
        np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M))
    )
    P = W @ M.T
    assert found["b"] == pytest.approx(
        np.linalg.norm(P / np.linalg.norm(P) - np.eye(2) / np.sqrt(2))
    )
    centred = self_duality(W, M, centre=True)
    C = M - M.mean(0)
    P = W @ C.T
    target = np.array([[0.5, -0.5], [-0.5, 0.5]])
    assert centred["a"] == pytest.approx(
        np.linalg.norm(W / np.linalg.norm(W) - C / np.linalg.norm(C))
    )
    assert centred["b"] == pytest.approx(np.linalg.norm(P / np.linalg.norm(P) - target))
    frame = rotation(5)[:3]
    assert self_duality(2 * frame, 0.1 * frame) == pytest.approx({"a": 0, "b": 0}, abs=1e-12)


def test_no_scale_and_no_rounding_of_a_gram_matrix_matters():
    W, M = (torch.randn(3, 5, generator=gen(s)) for s in (0, 1))
    dual, obtuse = self_duality(W, M, centre=True), obtuse_distance(M)
    for scale in (1e-300, 1e-170, 1e160, 1e300):
        assert self_duality(W, scale * M.double(), centre=True) == pytest.approx(dual, rel=1e-6)
        assert self_duality(scale * W.double(), M, centre=True) == pytest.approx(dual, rel=1e-6)
        assert obtuse_distance(scale * M.double()) == pytest.approx(obtuse, abs=1e-7)
    gram = M @ M.T
    rounded = gram + 1e-6 * torch.tensor([[0, 1, 0], [-1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(
        obtuse_projection(rounded), obtuse_projection(gram), atol=1e-6, rtol=0
    )


def test_trace_ratio_sees_noise_that_the_pseudo_inverse_does_not():
    means = torch.eye(3, 5, dtype=torch.float64)
    features = means.repeat(2, 1)
    features[:3, 4], features[3:, 4] = 0.1, -0.1
    table = layer_table({"H1": features}, [0, 1, 2, 0, 1, 2])
    assert table.nc1_pinv[0] < 1e-15
    assert table.nc1[0] == pytest.approx(0.01 / (2 / 3))


def test_layer_table():
    generator = gen()
    labels = torch.arange(3).repeat(4)
    layers = {
        "shallow": torch.randn(12, 6, generator=generator),
        "deep": torch.eye(3, 4)[labels],
        "dead": torch.zeros(12, 2),
    }
    table = layer_table(layers, labels)
    assert list(table.layer) == list(layers)
    assert table.nc1[0] == pytest.approx(trace_ratio(layers["shallow"], labels))
    assert table.of[1] == pytest.approx(0, abs=1e-12)
    assert table["rank"].tolist() == [3, 3, 0]
    assert table.norm_sq[1] == 1
    assert table.loc[2, ["nc1", "nc1_pinv", "of", "etf"]].isna().all()


@pytest.mark.parametrize("seed", range(4))
def test_obtuse_projection_against_cvxpy(seed):
    cp = pytest.importorskip("cvxpy")
    K = 4
    raw = torch.randn(K, K, generator=gen(seed), dtype=torch.float64)
    gram = raw @ raw.T
    gram = gram * (K / gram.trace())
    found = obtuse_projection(gram)
    S = cp.Variable((K, K), symmetric=True)
    off = 1 - np.eye(K)
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(S - gram.numpy())),
        [S >> 0, cp.diag(S) == 1, cp.multiply(off, S) <= 0],
    )
    problem.solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(found.numpy(), S.value, atol=1e-5)
    assert torch.linalg.eigvalsh(found)[0] > -1e-12
    assert (found.diagonal() - 1).abs().max() < 1e-8
    assert (found - torch.diag(found.diagonal())).max() < 1e-8


def test_obtuse_distance():
    frame = rotation(6)[:4]
    simplex = (torch.eye(4) - 1 / 4).double() @ frame
    pairs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    for means in (frame, simplex, pairs):
        assert obtuse_distance(7 * means) < 1e-8
    acute = frame + 0.5 * frame.mean(0)
    assert obtuse_distance(acute) > 0.05
    # two unit vectors at 60 degrees: S = I is nearest, distance √(2/4) / √(2 + 2/4)
    sixty = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert obtuse_distance(sixty) == pytest.approx(math.sqrt(0.5 / 2.5), abs=1e-6)


def test_zero_is_nan_and_bad_input_is_an_error():
    assert math.isnan(obtuse_distance(torch.zeros(3, 4)))
    assert math.isnan(self_duality(torch.zeros(3, 4), torch.ones(3, 4))["a"])
    for call, message in (
        (lambda: self_duality(torch.ones(2, 3), torch.ones(3, 3)), "3 rows"),
        (lambda: obtuse_projection(torch.ones(2, 3)), "symmetric"),
        (lambda: obtuse_projection(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
    ):
        with pytest.raises(InputError, match=message):
            call()
