"""Features of a trained network: in eval mode, without gradients, on the data as given."""

import contextlib

import torch

from nclib import checks
from nclib.metrics import ClassStatistics


@contextlib.contextmanager
def evaluation(net):
    """The network in eval mode and without gradients; its mode is restored afterwards."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield net
    finally:
        net.train(was_training)


def in_batches(function, inputs, *, batch_size=1024):
    """``function`` over ``inputs`` in batches, results concatenated."""
    return torch.cat([function(batch) for batch in inputs.split(batch_size)])


def features(net, inputs, *, batch_size=1024):
    """``net.features`` of the tensor ``inputs``: ``(N, d)``, eval mode, no gradient."""
    with evaluation(net):
        return in_batches(net.features, inputs, batch_size=batch_size)


def logits(net, inputs, *, batch_size=1024):
    """``net(inputs)`` in eval mode: ``(N, K)``, no gradient."""
    with evaluation(net):
        return in_batches(net, inputs, batch_size=batch_size)


def accuracy(net, data, *, batch_size=1024):
    """Share of samples of ``data`` (see :class:`nclib.deep.data.Data`) classified correctly."""
    predicted = logits(net, data.inputs, batch_size=batch_size).argmax(1)
    return float((predicted == data.labels).double().mean())


def statistics(model, loader, num_classes, *, features_of=None, device=None):
    """One pass over a data loader: :class:`~nclib.metrics.ClassStatistics` of the features.

    Args:
        model: any ``nn.Module``.
        loader: yields ``(inputs, labels)`` batches, such as a torch ``DataLoader``.
        num_classes: K.
        features_of: maps a batch of inputs to features ``(B, d)``; default ``model.features``.
            For a torchvision model pass the name of its last linear layer, e.g. ``"fc"``: what
            enters that layer is taken.
        device: where the batches go; default: where the model's parameters are.
    """
    device = device or next(model.parameters()).device
    taken = []
    handle = None
    if isinstance(features_of, str):
        layers = dict(model.named_modules())
        checks.choice("features_of", features_of, layers)
        handle = layers[features_of].register_forward_pre_hook(
            lambda _, arguments: taken.append(arguments[0])
        )

        def extract(inputs):
            taken.clear()
            model(inputs)
            return taken[0]

    else:
        extract = features_of or model.features
    result = None
    try:
        with evaluation(model):
            for inputs, labels in loader:
                batch = extract(inputs.to(device)).flatten(1)
                if result is None:
                    result = ClassStatistics(num_classes, batch.shape[1], device=device)
                result.update(batch, labels)
    finally:
        if handle is not None:
            handle.remove()
    if result is None:
        raise checks.InputError("the loader yielded no batch")
    return result
