"""Depth in trained networks: features of every block, and a head whose loss has a known floor.

The head puts the objective of :mod:`theory` on top of any backbone: with linear
layers its loss can never go below the closed-form optimum, whatever the network and the data.
"""

import contextlib

import torch
from torch import nn

from nclib import checks
from nclib.deep.collect import evaluation
from nclib.results.extended_ufm import theory

__all__ = [
    "RegularisedHead",
    "block_features",
    "blocks",
    "decay_from_mse_loss",
    "decay_to_mse_loss",
    "half_squared_error",
]


def half_squared_error(logits, labels):
    """1/(2B) ‖logits − one-hot‖²_F for ``logits`` (B, K): the data term of the theory.

    ``nn.MSELoss()`` averages over classes too: it is 2/K times this.
    """
    targets = nn.functional.one_hot(labels, logits.shape[1]).to(logits)
    return (logits - targets).square().sum() / (2 * len(logits))


def decay_from_mse_loss(decay, num_classes):
    """λ of the theory for a network trained on ``nn.MSELoss()`` with weight decay λ': λ = Kλ'/2.

    MSELoss + λ'/2 ‖·‖² = (2/K)·(1/(2N)‖logits − Y‖² + λ/2 ‖·‖²): same minima, loss scaled by 2/K.
    ``weight_decay`` of SGD and Adam adds λ'·w to the gradient, which is this λ'; AdamW's does not.
    """
    decay = checks.real("decay", decay, at_least=0)
    return checks.integer("num_classes", num_classes, 2) * decay / 2


def decay_to_mse_loss(decay, num_classes):
    """λ' for ``nn.MSELoss()`` that matches λ of the theory: λ' = 2λ/K."""
    decay = checks.real("decay", decay, at_least=0)
    return 2 * decay / checks.integer("num_classes", num_classes, 2)


class RegularisedHead(nn.Module):
    """M linear layers with the decays of the theory, features penalised over the full data set.

    Args:
        widths: d of the features, then d_1, …, d_{M−1}.
        class_counts: n_1..n_K of the *whole* training set (their sum is N).
        lambdas, lambda_h: decays of the M layers and of the features.
        bias: ``"none"``, ``"free"`` or its decay, on the last layer.
        relu: ReLU between the layers (M ≥ 2).

    ``head(features)`` are logits; ``head.loss(features, labels)`` is the objective f, unbiased for
    a mini-batch: the feature term of B samples is scaled by N/B.  With ``relu=False`` the loss of
    the full data is never below :attr:`floor`.
    """

    def __init__(self, widths, class_counts, *, lambdas, lambda_h, bias="none", relu=False):
        super().__init__()
        lambdas, self.lambda_h = theory.check_decays(lambdas, lambda_h)
        widths = theory.check_widths(widths, len(lambdas))
        counts = [int(n) for n in theory.check_counts(class_counts)]
        self.lambdas, self.relu, self.lambda_b = tuple(lambdas), relu, theory.check_bias(bias)
        self.num_samples = sum(counts)
        self._setting = {"class_counts": counts, "bias": bias, "width": min(widths)}
        outputs = [*widths[1:], len(counts)]
        self.layers = nn.ModuleList(
            nn.Linear(i, o, bias=False) for i, o in zip(widths, outputs, strict=True)
        )
        self.bias = None if self.lambda_b is None else nn.Parameter(torch.zeros(outputs[-1]))

    def optimum(self):
        """Closed-form optimum of this head's loss over all features (linear layers)."""
        return theory.optimum(lambdas=self.lambdas, lambda_h=self.lambda_h, **self._setting)

    @property
    def floor(self):
        """f*: the smallest loss any network can reach (linear layers)."""
        return self.optimum().value

    @property
    def weight(self):
        """(K, d) product W_M⋯W_1 of linear layers; with ReLU the last W_M (K, d_{M−1})."""
        product = self.layers[-1].weight
        for layer in [] if self.relu else reversed(self.layers[:-1]):
            product = product @ layer.weight
        return product

    def forward(self, features):
        for layer in self.layers[:-1]:
            features = layer(features)
            features = features.relu() if self.relu else features
        logits = self.layers[-1](features)
        return logits if self.bias is None else logits + self.bias

    def loss(self, features, labels):
        """f on a batch: features (B, d), labels (B,)."""
        scale = self.num_samples / len(features)
        loss = half_squared_error(self(features), labels)
        loss = loss + self.lambda_h / 2 * scale * features.square().sum()
        for lam, layer in zip(self.lambdas, self.layers, strict=True):
            loss = loss + lam / 2 * layer.weight.square().sum()
        if self.lambda_b:
            loss = loss + self.lambda_b / 2 * self.bias.square().sum()
        return loss


def blocks(net):
    """Names of the blocks of a backbone, in order: stages of a ResNet, else every ReLU.

    What :func:`block_features` looks at by default.  A net without either: name the modules.
    """
    names = [name for name, _ in net.named_modules()]
    stages = [n for n in names if n.rpartition(".")[2] in ("layer1", "layer2", "layer3", "layer4")]
    if stages:
        return stages
    activations = [n for n, m in net.named_modules() if isinstance(m, nn.ReLU)]
    if not activations:
        raise checks.InputError(f"no residual stages and no ReLU found; name modules among {names}")
    return activations


def block_features(net, inputs, names=None, *, reduce="pool", batch_size=1024):
    """Output of every named block on ``inputs``: mapping name -> (N, d_block), eval mode.

    Feature maps (B, C, h, w) are averaged over positions (``reduce="pool"``) or flattened
    (``"flatten"``).  A block that runs several times per pass is taken at its last call.
    """
    checks.choice("reduce", reduce, ("pool", "flatten"))
    modules = dict(net.named_modules())
    names = blocks(net) if names is None else list(names)
    for name in names:
        checks.choice("names", name, modules)
    taken = {name: [] for name in names}
    latest = {}

    def keep(name):
        def hook(_module, _inputs, output):
            pooled = output.mean((2, 3)) if output.ndim == 4 and reduce == "pool" else output
            latest[name] = pooled.flatten(1).clone()  # a later in-place ReLU must not reach it

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(keep(name)).remove)
        with evaluation(net):
            for batch in inputs.split(batch_size):
                latest.clear()
                net(batch)
                for name in names:
                    if name not in latest:
                        raise checks.InputError(f"block {name} took no part in the forward pass")
                    taken[name].append(latest[name])
    return {name: torch.cat(parts) for name, parts in taken.items()}
