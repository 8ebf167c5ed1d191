"""Depth in trained networks: a head whose loss has a known floor, and the features of every block.

The head puts the objective of :mod:`~nclib.results.extended_ufm.theory` on top of any backbone:
with linear layers its loss can never go below the closed form, whatever the network and the data.
"""

import contextlib

import torch
from torch import nn

from nclib import checks
from nclib.deep.collect import evaluation
from nclib.results.extended_ufm import theory

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class RegularisedHead(nn.Module):
    """M linear layers with the decays of the theory, features penalised over the full data set.

    Arguments as for :func:`theory.problem`: ``counts`` of the *whole* training set, ``decays``
    λ_H, λ_1, …, λ_M, ``widths`` d, d_1, …, ``bias`` None, 0.0 (free) or its decay.
    ``head(features)`` are logits; ``head.loss(features, labels)`` is the objective f, unbiased for
    a mini-batch: the feature term of B samples is scaled by N/B.  The loss of the full data is
    never below ``head.optimum().value``.
    """

    def __init__(self, counts, decays, *, widths, bias=None):
        super().__init__()
        self.problem = theory.problem(counts, decays, widths=widths, bias=bias)
        sizes = [*self.problem.widths, self.problem.K]
        self.layers = nn.ModuleList(
            nn.Linear(i, o, bias=False) for i, o in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.bias = None if bias is None else nn.Parameter(torch.zeros(self.problem.K))

    def optimum(self):
        """Closed-form optimum of this head's loss over all features."""
        return theory.optimum(self.problem)

    @property
    def weight(self):
        """(K, d) product W_M⋯W_1."""
        product = self.layers[-1].weight
        for layer in reversed(self.layers[:-1]):
            product = product @ layer.weight
        return product

    def forward(self, features):
        """Logits (B, K) of features (B, d)."""
        for layer in self.layers:
            features = layer(features)
        return features if self.bias is None else features + self.bias

    def loss(self, features, labels):
        """f on a batch: features (B, d), labels (B,)."""
        lambda_h, *lambdas = self.problem.decays
        loss = self.problem.loss(self(features), labels)
        loss = loss + lambda_h / 2 * len(self.problem.targets) * features.square().sum(1).mean()
        for lam, layer in zip(lambdas, self.layers, strict=True):
            loss = loss + lam / 2 * layer.weight.square().sum()
        decay = self.problem.bias
        return loss + decay / 2 * self.bias.square().sum() if decay else loss


def blocks(net):
    """Names of the blocks of a backbone, in order: stages of a ResNet, else every ReLU, and the
    features if they are linear."""
    modules = list(net.named_modules())
    stages = [n for n, _ in modules if n.rpartition(".")[2] in _STAGES]
    found = stages or [n for n, m in modules if isinstance(m, nn.ReLU)]
    checks.require(
        found, f"no residual stages and no ReLU found; name modules among {dict(modules).keys()}"
    )
    last = f"backbone.{len(getattr(net, 'backbone', ())) - 1}" if not stages else ""
    return found + [last] * isinstance(dict(modules).get(last), nn.Linear)


def block_features(net, inputs, names=None):
    """Output of every named block (default: :func:`blocks`) on ``inputs``, in eval mode and in
    batches: mapping name -> (N, d_block).

    Feature maps (B, C, h, w) are averaged over positions.  A block that runs several times per pass
    is taken at its last call; one that takes no part raises :class:`~nclib.checks.InputError`.
    """
    modules = dict(net.named_modules())
    taken = {checks.choice("names", name, modules): [] for name in names or blocks(net)}
    latest = {}

    def keep(name):
        def hook(_module, _inputs, output):
            pooled = output.mean((2, 3)) if output.ndim == 4 else output
            latest[name] = pooled.flatten(1).clone()  # a later in-place ReLU must not reach it

        return hook

    with contextlib.ExitStack() as stack:
        for name in taken:
            stack.callback(modules[name].register_forward_hook(keep(name)).remove)
        with evaluation(net):
            for batch in inputs.split(1024):
                latest.clear()
                net(batch)
                for name, parts in taken.items():
                    checks.require(name in latest, f"block {name} took no part in the forward pass")
                    parts.append(latest[name])
    return {name: torch.cat(parts) for name, parts in taken.items()}
