"""Networks that show their last-layer features: a backbone and a linear head.

The backbones come from torchvision or are a few ``nn.Sequential`` lines; every builder returns a
:class:`Classifier`, whose ``features`` are what neural collapse is measured on.
"""

import inspect

import torch
from torch import nn

from nclib import checks

ARCHITECTURES = ("mlp", "cnn", "resnet18", "resnet50")


class Classifier(nn.Module):
    """``head(backbone(x))``; ``features(x)`` ``(N, d)`` are the head's inputs.

    Under autocast the backbone runs in half precision; features are float32 and so is the head:
    collapse lives below the rounding error of bfloat16.
    """

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def features(self, inputs):
        """Last-layer features ``(N, d)``."""
        found = self.backbone(inputs)
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found

    def forward(self, inputs):
        """Logits ``(N, K)``."""
        features = self.features(inputs)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    @property
    def weight(self):
        """Classifier W ``(K, d)``, detached."""
        return self.head.weight.detach()

    @property
    def bias(self):
        """Bias ``(K,)``, detached, or ``None``."""
        return None if self.head.bias is None else self.head.bias.detach()


def mlp(widths, num_classes, *, bias=True, final_relu=True, final_norm=True):
    """Fully connected net: ``widths = [inputs, hidden…, feature_dim]``.

    Every hidden layer is Linear-BatchNorm-ReLU.  The feature layer has batch norm and ReLU only
    if ``final_norm`` / ``final_relu``; ``bias`` is the head's.
    """
    for width in widths:
        checks.integer("width", width)
    if not widths:
        raise checks.InputError("widths must hold the number of inputs")
    checks.integer("num_classes", num_classes, 2)
    layers = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(inputs, outputs))
        if not last or final_norm:
            layers.append(nn.BatchNorm1d(outputs))
        if not last or final_relu:
            layers.append(nn.ReLU())
    return Classifier(nn.Sequential(*layers), nn.Linear(widths[-1], num_classes, bias=bias))


def cnn(channels, num_classes, *, in_channels=1, strides=None, bias=True):
    """Small convolutional net: 3×3 convolution, batch norm, ReLU per entry of ``channels``, then
    global average pooling; the feature dimension is ``channels[-1]``.

    ``strides`` defaults to 1 for the first convolution and 2 for the others.
    """
    strides = strides or [1] + [2] * (len(channels) - 1)
    if not 0 < len(channels) == len(strides):
        raise checks.InputError(f"channels {channels} and strides {strides} must be as many, not 0")
    layers, before = [], in_channels
    for channel, stride in zip(channels, strides, strict=True):
        checks.integer("channels", channel)
        layers += [
            nn.Conv2d(before, channel, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channel),
            nn.ReLU(),
        ]
        before = channel
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Classifier(nn.Sequential(*layers), nn.Linear(before, num_classes, bias=bias))


def resnet(depth, num_classes, *, width=1.0, in_channels=3, bias=True):
    """torchvision's ResNet-18 or -50 for small images: 3×3 stem with stride 1, no max-pooling.

    ``width`` scales the inner bottleneck channels of ResNet-50 (the feature dimension stays 2048,
    as in the multi-loss paper) and all channels of ResNet-18 (feature dimension 512·width).
    """
    from torchvision.models import resnet as models

    checks.choice("depth", depth, (18, 50))
    checks.real("width", width, above=0)
    if depth == 50:
        net = models.ResNet(models.Bottleneck, [3, 4, 6, 3], width_per_group=round(64 * width))
        base, dim = 64, 2048
    else:
        base = max(1, round(64 * width))
        net, dim = _wide_resnet18(models, base), 8 * base
    net.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool, net.fc = nn.Identity(), nn.Identity()
    return Classifier(net, nn.Linear(dim, num_classes, bias=bias))


def _wide_resnet18(models, base):
    net = models.resnet18(weights=None)
    net.inplanes = base
    net.bn1 = nn.BatchNorm2d(base)
    for i in range(4):
        layer = net._make_layer(models.BasicBlock, base * 2**i, 2, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", layer)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def build(architecture, data, sizes, **options):
    """A :class:`Classifier` of one of :data:`ARCHITECTURES` for :class:`~nclib.deep.data.Data`.

    ``sizes``: for ``mlp`` the widths after the input, the last one being the feature dimension; for
    ``cnn`` the channels; for ``resnet18`` and ``resnet50`` the factor ``width``.  ``options`` are
    those of :func:`mlp`, :func:`cnn` and :func:`resnet`; an architecture passes over what only
    another one has.
    """
    checks.choice("architecture", architecture, ARCHITECTURES)
    kinds = {"mlp": mlp, "cnn": cnn, "resnet": resnet}
    known = {name: inspect.signature(make).parameters for name, make in kinds.items()}
    unknown = options.keys() - set().union(*known.values())
    if unknown:
        raise checks.InputError(f"no architecture has the option {', '.join(sorted(unknown))}")
    kind = architecture.rstrip("0123456789")
    own = {name: value for name, value in options.items() if name in known[kind]}
    if kind == "mlp":
        return mlp([data.inputs[0].numel(), *sizes], data.num_classes, **own)
    own = {"in_channels": data.inputs.shape[1]} | own
    if kind == "cnn":
        return cnn(sizes, data.num_classes, **own)
    return resnet(int(architecture[len(kind) :]), data.num_classes, width=sizes, **own)


def require_widths(architecture, **widths):
    """Raise :class:`~nclib.checks.InputError` for widths that ``architecture`` does not have.

    ``widths``: name of a parameter -> its value, a number or a list.  Those of an mlp or cnn are
    neurons or channels, so whole numbers; those of a ResNet are factors.
    """
    for name, value in widths.items():
        for width in value if isinstance(value, list) else [value]:
            if not architecture.startswith("resnet") and (width < 1 or width != int(width)):
                raise checks.InputError(
                    f"parameter {name} must hold whole numbers >= 1 for architecture "
                    f"{architecture}, got {width}"
                )


def seeded(seed, build, *arguments, **options):
    """``build(*arguments, **options)`` with initial weights drawn from ``seed`` alone.

    torch's layers take no generator; the global one is set inside and restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments, **options)


def parameter_count(net):
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
