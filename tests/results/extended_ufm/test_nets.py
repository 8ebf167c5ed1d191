"""Block features and the regularised head."""

import pytest
import torch
from torch import nn

from nclib.checks import InputError
from nclib.deep import nets
from nclib.results.extended_ufm import nets as layers
from nclib.results.extended_ufm import theory


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# --- head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [None, 0.0, 0.4])
@pytest.mark.parametrize("M", [1, 2, 3])
def test_head_loss_is_the_objective(bias, M):
    setting = {"widths": [5 + j for j in range(M)], "bias": bias}
    arguments = [3, 2, 4], [0.05, 0.1, 0.2, 0.3][: M + 1]
    head = layers.RegularisedHead(*arguments, **setting).double()
    problem = theory.problem(*arguments, **setting)
    point = problem.start(gen(), 0.7)
    with torch.no_grad():
        for name, layer in zip(problem.layers, head.layers, strict=True):
            layer.weight.copy_(point[name])
        if bias is not None:
            head.bias.copy_(point["bias"])
        loss = head.loss(point["features"], problem.targets)
    assert float(loss) == pytest.approx(float(problem.value(point)))
    assert len(list(head.parameters())) == M + (bias is not None)


def test_head_loss_is_unbiased_for_mini_batches():
    head = layers.RegularisedHead([6, 6], [0.2, 0.1], widths=4, bias=0.0).double()
    features = torch.randn(12, 4, generator=gen(), dtype=torch.float64)
    labels = torch.arange(2).repeat(6)
    parts = [head.loss(f, y) for f, y in zip(features.split(3), labels.split(3), strict=True)]
    assert (sum(parts) / 4).item() == pytest.approx(head.loss(features, labels).item())


def test_feature_penalty_has_a_gradient():
    head = layers.RegularisedHead([8] * 3, [0.02, 0.02], widths=5, bias=0.0)
    features = torch.randn(24, 5, generator=gen()).requires_grad_()
    with torch.no_grad():
        head.layers[0].weight.zero_()
    head.loss(features, torch.arange(3).repeat(8)).backward()
    torch.testing.assert_close(features.grad, 0.02 * features.detach())


def test_head_shows_its_product():
    head = layers.RegularisedHead([2, 2], [0.1] * 3, widths=(4, 3))
    features = torch.randn(5, 4, generator=gen())
    torch.testing.assert_close(head(features), features @ head.weight.T)
    assert head.weight.shape == (2, 4)


# --- block features ------------------------------------------------------------------------------


def test_blocks_of_common_networks():
    net = nets.resnet(18, 4, width=1 / 16, in_channels=1)
    assert layers.blocks(net) == [f"backbone.layer{i}" for i in range(1, 5)]
    found = layers.block_features(net, torch.randn(3, 1, 8, 8, generator=gen()))
    assert [f.shape for f in found.values()] == [(3, 4), (3, 8), (3, 16), (3, 32)]
    assert len(layers.blocks(nets.mlp([4, 5, 6], 3))) == 2
    linear = nets.mlp([4, 5, 6], 3, final_relu=False, final_norm=False)
    assert layers.blocks(linear) == ["backbone.3", "backbone.4"]
    with pytest.raises(InputError, match="no ReLU"):
        layers.blocks(nn.Linear(2, 2))


def test_block_features_are_the_activations():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    net.train()
    inputs = torch.randn(7, 3, generator=gen())
    found = layers.block_features(net, inputs, ["1", "2", "3"])
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
    net.spare = nn.Linear(4, 4)
    net.forward = lambda x: net[1](net[0](x))
    with pytest.raises(InputError, match="no part"):
        layers.block_features(net, torch.ones(2, 3), ["spare"])
    used = iter((net.spare, nn.Identity()))  # in the first batch only
    net.forward = lambda x: next(used)(net[1](net[0](x)))
    with pytest.raises(InputError, match="no part"):
        layers.block_features(net, torch.ones(2000, 3), ["spare"])
