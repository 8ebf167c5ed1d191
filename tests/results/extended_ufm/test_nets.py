"""Block features, the regularised head and the nn.MSELoss factor."""

import pytest
import torch
from torch import nn

from nclib.checks import InputError
from nclib.deep import nets
from nclib.results.extended_ufm import nets as layers
from nclib.results.extended_ufm import theory
from nclib.results.extended_ufm.ufm import ExtendedUFM


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# --- conventions ---------------------------------------------------------------------------------


def test_half_squared_error_by_hand():
    logits = torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    labels = torch.tensor([0, 0])
    assert float(layers.half_squared_error(logits, labels)) == pytest.approx((0.25 + 1 + 4) / 4)


@pytest.mark.parametrize("K", [2, 3, 7])
def test_mse_loss_is_two_over_k_times_the_theory(K):
    """MSELoss + λ'/2‖·‖² has gradients 2/K times those of the theory at λ = Kλ'/2."""
    features = torch.randn(3 * K, 4, generator=gen(), dtype=torch.float64)
    labels = torch.arange(K).repeat(3)
    weight = torch.randn(K, 4, generator=gen(1), dtype=torch.float64, requires_grad=True)
    decay = 0.3
    targets = torch.eye(K).double()[labels]
    theirs = nn.MSELoss()(features @ weight.T, targets) + decay / 2 * weight.square().sum()
    lam = layers.decay_from_mse_loss(decay, K)
    ours = layers.half_squared_error(features @ weight.T, labels) + lam / 2 * weight.square().sum()
    assert theirs.item() == pytest.approx(2 / K * ours.item())
    (a,) = torch.autograd.grad(theirs, weight)
    (b,) = torch.autograd.grad(ours, weight)
    torch.testing.assert_close(a, 2 / K * b)
    assert layers.decay_to_mse_loss(lam, K) == pytest.approx(decay)


def test_weight_decay_of_sgd_is_the_decay_of_the_theory():
    """Trained with nn.MSELoss and SGD's weight_decay, free features reach the predicted floor."""
    K, n, d, lam = 3, 2, 4, 0.03
    decay = layers.decay_to_mse_loss(lam, K)
    features = nn.Parameter(0.5 * torch.randn(K * n, d, generator=gen(), dtype=torch.float64))
    weight = nn.Parameter(0.5 * torch.randn(K, d, generator=gen(1), dtype=torch.float64))
    labels = torch.arange(K).repeat(n)
    targets = torch.eye(K).double()[labels]
    optimizer = torch.optim.SGD([features, weight], lr=1.0, weight_decay=decay)
    for _ in range(1500):
        optimizer.zero_grad()
        nn.MSELoss()(features @ weight.T, targets).backward()
        optimizer.step()
    point = theory.optimum(class_counts=[n] * K, lambdas=[lam], lambda_h=lam)
    torch.testing.assert_close(
        features.detach().square().sum(1), point.feature_norms_sq.repeat(n), atol=1e-6, rtol=0
    )


# --- head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["none", "free", 0.4])
@pytest.mark.parametrize(("M", "relu"), [(1, False), (2, False), (3, True)])
def test_head_loss_is_the_objective(bias, M, relu):
    counts, lambdas = [3, 2, 4], [0.1, 0.2, 0.3][:M]
    head = layers.RegularisedHead(
        range(5, 5 + M), counts, lambdas=lambdas, lambda_h=0.05, bias=bias, relu=relu
    ).double()
    problem = ExtendedUFM(counts, lambdas, 0.05, bias=bias, relu=relu, widths=range(5, 5 + M))
    variables = problem.start(0.7, generator=gen())
    with torch.no_grad():
        for j, layer in enumerate(head.layers, start=1):
            layer.weight.copy_(variables[f"weight_{j}"])
        if "bias" in variables:
            variables["bias"] += 0.3
            head.bias.copy_(variables["bias"])
        loss = head.loss(variables["features"], problem.labels)
    assert float(loss) == pytest.approx(float(problem.objective(**variables)))
    if bias != 0.4:  # no closed form for unequal classes
        assert head.floor == pytest.approx(problem.optimum().value)
    assert len(list(head.parameters())) == M + (bias != "none")


def test_head_loss_is_unbiased_for_mini_batches():
    head = layers.RegularisedHead([4], [6, 6], lambdas=[0.1], lambda_h=0.2, bias="free").double()
    features = torch.randn(12, 4, generator=gen(), dtype=torch.float64)
    labels = torch.arange(2).repeat(6)
    parts = [head.loss(f, y) for f, y in zip(features.split(3), labels.split(3), strict=True)]
    assert (sum(parts) / 4).item() == pytest.approx(head.loss(features, labels).item())


def test_head_never_goes_below_its_floor_and_feature_penalty_has_a_gradient():
    torch.manual_seed(0)
    net = nets.mlp([6, 16, 5], 3, final_relu=False, final_norm=False)
    head = layers.RegularisedHead([5], [8] * 3, lambdas=[0.02], lambda_h=0.02, bias="free")
    inputs = torch.randn(24, 6, generator=gen())
    labels = torch.arange(3).repeat(8)
    optimizer = torch.optim.Adam([*net.backbone.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = head.loss(net.backbone(inputs), labels)
        loss.backward()
        optimizer.step()
    assert head.floor - 1e-6 <= loss.item() < 1.2 * head.floor
    features = torch.randn(24, 5, generator=gen()).requires_grad_()
    with torch.no_grad():
        head.layers[0].weight.zero_()
    head.loss(features, labels).backward()
    torch.testing.assert_close(features.grad, 0.02 * features.detach())


def test_head_shows_its_product():
    head = layers.RegularisedHead([4, 3], [2, 2], lambdas=[0.1, 0.1], lambda_h=0.1)
    features = torch.randn(5, 4, generator=gen())
    torch.testing.assert_close(head(features), features @ head.weight.T)
    assert head.weight.shape == (2, 4)
    rectified = layers.RegularisedHead([4, 3], [2, 2], lambdas=[0.1, 0.1], lambda_h=0.1, relu=True)
    assert rectified.weight.shape == (2, 3)


# --- block features ------------------------------------------------------------------------------


def test_blocks_of_common_networks():
    net = nets.resnet(18, 4, width=1 / 16, in_channels=1)
    assert layers.blocks(net) == [f"backbone.layer{i}" for i in range(1, 5)]
    found = layers.block_features(net, torch.randn(3, 1, 8, 8, generator=gen()))
    assert [f.shape for f in found.values()] == [(3, 4), (3, 8), (3, 16), (3, 32)]
    flat = layers.block_features(
        net, torch.randn(3, 1, 8, 8, generator=gen()), ["backbone.layer1"], reduce="flatten"
    )
    assert flat["backbone.layer1"].shape == (3, 4 * 64)
    assert len(layers.blocks(nets.mlp([4, 5, 6], 3))) == 2
    with pytest.raises(InputError, match="no ReLU"):
        layers.blocks(nn.Linear(2, 2))


def test_block_features_are_the_activations():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    net.train()
    inputs = torch.randn(7, 3, generator=gen())
    found = layers.block_features(net, inputs, ["1", "2", "3"], batch_size=3)
    assert net.training
    with torch.no_grad():
        net.eval()
        before = net[1](net[0](inputs))
        torch.testing.assert_close(found["1"], before)  # not overwritten by the in-place ReLU
        torch.testing.assert_close(found["2"], before.relu())
        torch.testing.assert_close(found["3"], net(inputs))
    assert not any(m._forward_hooks for m in net.modules())
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    pixels = torch.randn(2, 1, 5, 5, generator=gen())
    pooled = layers.block_features(image, pixels)["1"]
    torch.testing.assert_close(pooled, image(pixels).mean((2, 3)).detach())


def test_bad_blocks():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(InputError, match="names must be one of"):
        layers.block_features(net, torch.ones(2, 3), ["nope"])
    with pytest.raises(InputError, match="reduce"):
        layers.block_features(net, torch.ones(2, 3), reduce="max")
    net.spare = nn.Linear(4, 4)
    net.forward = lambda x: net[1](net[0](x))
    with pytest.raises(InputError, match="no part"):
        layers.block_features(net, torch.ones(2, 3), ["spare"])
