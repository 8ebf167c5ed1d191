"""Features of a trained network: in eval mode, without gradients, on the data as given.

:func:`statistics` and :func:`measure` take any model and any loader.  Features are what enters the
last linear layer, found on the first batch as the layer whose ``W h + b`` *is* the model's output;
where no layer or several do, one error names the candidates.  What is understood:

=========  =====================================================================================
batch      ``(inputs, labels)``; a dict with ``"labels"`` (Hugging Face); ``(x, y, more…)`` where
           ``forward`` takes one input, ``(x1, x2, y)`` where it requires two; else pass ``unpack``
inputs     a tensor; a dict or tuple, whose entries become the arguments that ``forward`` names
layer      ``"fc"`` or ``model.fc``: what enters it; ``"fc:out"``: what leaves it; a function of the
           inputs; prefixes of ``DataParallel`` and ``torch.compile`` may be left out
features   ``(B, d)``; ``(B, T, d)`` with labels ``(B, T)``; maps ``(B, C, H, W)`` with labels
           ``(B, H, W)``, or with ``maps="pool"`` (mean over positions) or ``maps="positions"``
           (each position a sample); labels equal to ``ignore_index`` are left out
=========  =====================================================================================
"""

import contextlib
import inspect
import itertools
import math
from collections.abc import Mapping

import torch
from torch import nn

from nclib import checks
from nclib.metrics import ClassStatistics

_LABELS = ("labels", "label", "targets", "target", "y")
_SEVERAL = nn.DataParallel | nn.parallel.DistributedDataParallel
_CHANNELS_FIRST = nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.GroupNorm | nn.MaxPool2d
_CHANNELS = ("in_channels", "out_channels", "num_features", "num_channels")  # attributes of layers


@contextlib.contextmanager
def evaluation(net):
    """The network in eval mode, no gradients; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            yield net
    finally:
        for module, mode in modes:  # from the root on: layers that merge weights in eval undo it
            if module.training != mode:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


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


def statistics(model, loader, num_classes=None, *, features_of=None, **options):
    """One pass over a data loader: :class:`~nclib.metrics.ClassStatistics` of the features.

    Args:
        model: any ``nn.Module``.
        loader: yields batches, such as a torch ``DataLoader``.
        num_classes: K; default: the rows of the last linear layer.
        features_of: layer, name or function (see above); a list of layers gives a dict
            ``{name: statistics}`` in the same single pass.  Default: what enters the last linear
            layer, verified.
        options: those of :class:`Taps`.

    Raises :class:`~nclib.checks.InputError` if the loader is empty, a layer is unknown, not called
    or called twice, no layer gives the model's output, or shapes do not fit; the error names the
    way out.
    """
    result = Taps(model, features_of, **options).statistics(loader, num_classes)
    return result if isinstance(features_of, list | tuple) else next(iter(result.values()))


def measure(model, loader, num_classes=None, *, features_of=None, layers=None, **options):
    """NC1-NC4 of any model on a data loader: ``{layer: metrics}``; arguments as above, and
    ``layers``, another name of ``features_of``, as in :class:`~nclib.tracker.Tracker`.

    Classifier metrics (NC2-NC4 of W) are those of the last linear layer.  A second pass is made
    only if the features do not fit in the memory that :class:`ClassStatistics` may keep.
    """
    chosen = features_of if layers is None else layers
    return Taps(model, chosen, **options).measure(loader, num_classes)


def next_token(batch):
    """``unpack`` for causal language models: the label of a position is the token after it."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"].roll(-1, dims=1)
    labels[:, -1] = -100
    return inputs, labels


class Taps:
    """What a loader's batches make enter or leave the layers of a model.

    Args:
        model, layers: see :func:`statistics`.
        head: name of the last linear layer, where its output is not the model's (a softmax, say).
        device: where batches go; default: where the model's parameters are.
        which: which call of a layer counts if a forward pass calls it several times (0, -1, …).
        maps: ``"pool"`` or ``"positions"``, for maps whose positions have no labels of their own.
        unpack: function from a batch to ``(inputs, labels)``.
        ignore_index: label of samples to leave out, as in torch's cross-entropy.
        missing: of :meth:`ClassStatistics.metrics`; ``"skip"`` leaves empty classes out.
    """

    def __init__(
        self, model, layers=None, *, head=None, device=None, which=None, maps=None, unpack=None,
        ignore_index=-100, missing="error",
    ):  # fmt: skip
        while isinstance(model, _SEVERAL) or hasattr(model, "_orig_mod"):
            model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        self.model, self.which, self.ignore_index = model, which, ignore_index
        self.missing = checks.choice("missing", missing, ("error", "skip"))
        self.maps = checks.choice("maps", maps, (None, "pool", "positions"))
        self.unpack = unpack or self._unpack
        held = [x.device for x in (*model.parameters(), *model.buffers())] if device is None else []
        self.device = torch.device(device) if device else next(iter(held), None)
        self.head = None if head is None else self._find(head)[:2]
        self.function, self.layers = None, None
        if isinstance(layers, list | tuple):
            self.layers = [self._find(layer) for layer in layers]
            if not layers:
                raise checks.InputError("layers is empty: name a layer, or pass None for the head")
        elif isinstance(layers, str) or layers in list(model.modules()):
            self.layers = [self._find(layers)]
        elif layers is not None:
            self.function = layers

    def _find(self, wanted):
        """``(name, module, side)`` of a layer: what enters (``"in"``) or leaves it (``"out"``)."""
        exact = dict(self.model.named_modules())
        modules = {_plain(name): module for name, module in exact.items()} | exact
        if isinstance(wanted, nn.Module):
            found = [name for name, module in modules.items() if module is wanted]
            if not found:
                raise checks.InputError(f"{type(wanted).__name__} is not a layer of this model")
            return found[0], wanted, "in"
        name, colon, side = wanted.partition(":")
        name = name if name in exact else _plain(name)
        if not name or name not in modules or (colon and side != "out"):
            accepted = ", ".join(filter(None, exact))
            raise checks.InputError(f"no layer {wanted!r}; the model's layers are {accepted}")
        return name + colon + side, modules[name], side or "in"

    def statistics(self, loader, num_classes=None, *, find_head=False):
        """``{layer: ClassStatistics}`` in one pass."""
        result = {}

        def add(name, x, y):
            if name not in result:
                # One logit tells two classes apart.
                K = max(2, len(self.head[1].weight)) if num_classes is None else num_classes
                device = "cpu" if x.device.type == "mps" else x.device  # no float64 there
                result[name] = ClassStatistics(K, x.shape[1], device=device)
            result[name].update(x, y)

        self.run(loader, add, find_head or num_classes is None)
        return result

    def measure(self, loader, num_classes=None):
        """``{layer: metrics}``; see :func:`measure`."""
        found = self.statistics(loader, num_classes, find_head=self.function is None)
        classifiers = {name: self._classifier(name) for name in found}
        seconds = {
            name: s.agreement(*classifiers[name], missing=self.missing)
            for name, s in found.items()
            if classifiers[name] and not s.complete
        }
        if seconds:
            self.run(loader, lambda name, x, _: name in seconds and seconds[name].update(x))
        return {
            name: s.metrics(*classifiers[name], agreement=seconds.get(name), missing=self.missing)
            for name, s in found.items()
        }

    def _classifier(self, name):
        """Weight and bias if ``name`` is the head; one logit for two classes has no rows of W."""
        if self.head is None or name != self.head[0] or len(self.head[1].weight) == 1:
            return ()
        return self.head[1].weight, self.head[1].bias

    def run(self, loader, consume, find_head=False):
        """``consume(layer, features (n, d), labels (n,))`` for every batch and layer."""
        calls, empty = {}, True
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation(self.model))
            if isinstance(self.function, nn.Module):
                stack.enter_context(evaluation(self.function))
            if any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in self.model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))  # hooks must run
            for batch in loader:
                inputs, labels = self.unpack(batch)
                _refuse_unshifted(inputs, labels, self.ignore_index)
                inputs = _moved(inputs, self.device)
                if empty:
                    empty = False
                    wanted = self.function is None and self.layers is None
                    if self.head is None and (wanted or find_head):
                        self.head = _find_head(self.model, inputs)
                    layers = self.layers or ([(*self.head, "in")] if wanted else [])
                    for name, module, side in layers:
                        stack.callback(_tap(module, side, calls.setdefault(name, [])).remove)
                if self.function is not None:
                    taken = {"features": (_only(_call(self.function, inputs)), None)}
                else:
                    for kept in calls.values():
                        kept.clear()
                    _call(self.model, inputs)
                    taken = {n: (self._one(n, m, calls[n], inputs), m) for n, m, _ in layers}
                for name, (x, module) in taken.items():
                    x, y = _rows(name, x, labels, module, self.maps, self.model)
                    keep = y != self.ignore_index if y.ndim == 1 else slice(None)
                    if len(y[keep]):
                        consume(name, x[keep], y[keep])
        if empty:
            raise checks.InputError("the loader yielded no batch")

    def _one(self, name, module, kept, inputs):
        if not kept:
            called = ", ".join(dict.fromkeys(call[0] for call in _trace(self.model, inputs)[1]))
            raise checks.InputError(
                f"layer {name} was not called as a layer in the forward pass; called were: "
                f"{called}.  Name one of them, or pass features_of=a function of the inputs"
            )
        which = 0 if self.which is None and len(kept) == 1 else self.which
        if which is None or not -len(kept) <= which < len(kept):
            raise checks.InputError(
                f"layer {name} was called {len(kept)} time(s) in one forward pass; say which call "
                "counts: which=0 for the first, which=-1 for the last"
            )
        taken = kept[which]
        raw = any(taken.shape == x.shape and taken.equal(x) for x in _leaves(inputs))
        if raw and not isinstance(module, nn.Linear):
            raise checks.InputError(
                f"what enters {name} is the model's own input; for what leaves it: {name}:out"
            )
        return taken

    def _unpack(self, batch):
        if isinstance(batch, Mapping):
            found = [name for name in _LABELS if name in batch]
            if len(found) == 1:
                return {n: v for n, v in batch.items() if n != found[0]}, batch[found[0]]
            raise checks.InputError(
                f"which entry of the batch are the labels? It has {', '.join(map(str, batch))}; "
                "pass unpack=lambda batch: (inputs, labels)"
            )
        if not isinstance(batch, tuple | list) or not batch:
            raise checks.InputError(
                f"a batch must be (inputs, labels) or a dict, got {type(batch).__name__}; "
                "pass unpack=lambda batch: (inputs, labels)"
            )
        if len(batch) < 3:
            return batch if len(batch) == 2 else self._unpack(batch[0])
        takes, required, any_number = _positional(self.model)
        if not 0 < required < len(batch) or takes > required or any_number:
            raise checks.InputError(
                f"which of the {len(batch)} entries of a batch are inputs, which labels? "
                "Pass unpack=lambda batch: (inputs, labels)"
            )
        return batch[0] if required == 1 else tuple(batch[:required]), batch[required]


def _plain(name):
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _positional(function):
    """How many positional arguments it takes and requires, and whether it takes any number."""
    try:
        found = _parameters(function)
    except ValueError:  # a builtin
        return 1, 1, False
    named = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in named)
    return len(named), required, any(p.kind == p.VAR_POSITIONAL for p in found)


def _parameters(function):
    forward = function.forward if isinstance(function, nn.Module) else function
    return list(inspect.signature(forward).parameters.values())


def _call(function, inputs):
    """``function(inputs)``; entries of a dict or tuple become arguments where it takes them."""
    if isinstance(inputs, Mapping):
        found = _parameters(function)
        named = {p.name for p in found}.intersection(inputs)
        if any(p.kind == p.VAR_KEYWORD for p in found):
            named = set(inputs)
        if named:
            return function(**{name: inputs[name] for name in inputs if name in named})
        return function(*inputs.values()) if len(inputs) == 1 else function(inputs)
    if isinstance(inputs, tuple | list):
        takes, _, any_number = _positional(function)
        return function(*inputs) if takes >= max(len(inputs), 2) or any_number else function(inputs)
    return function(inputs)


def _leaves(value):
    """All tensors inside dicts, tuples and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(entry)


def _moved(value, device):
    if isinstance(value, torch.Tensor) and device is not None:
        narrow = device.type == "mps" and value.dtype == torch.float64  # which it does not have
        return value.to(device, torch.float32 if narrow else None)
    if isinstance(value, Mapping):
        return {name: _moved(entry, device) for name, entry in value.items()}
    return [_moved(entry, device) for entry in value] if isinstance(value, tuple | list) else value


def _only(found):
    """The one tensor of what a function returned."""
    tensors = list(_leaves(found))
    if isinstance(found, Mapping) and isinstance(found.get("features"), torch.Tensor):
        return found["features"]
    if len(tensors) != 1:
        names = f" ({', '.join(map(str, found))})" if isinstance(found, Mapping) else ""
        raise checks.InputError(
            f"features_of must return one tensor, it returned {len(tensors)}{names}; pick one: "
            "features_of=lambda inputs: f(inputs)[…]"
        )
    return tensors[0]


def _tap(module, side, kept):
    """A hook that appends to ``kept``.  A copy: what follows may work in place."""

    def enters(module, arguments, keywords):
        kept.extend(x.clone() for x in itertools.islice(_leaves((arguments, keywords)), 1))

    if side == "in":
        return module.register_forward_pre_hook(enters, with_kwargs=True)
    return module.register_forward_hook(lambda m, a, output: kept.append(_only(output).clone()))


def _trace(model, inputs):
    """The output, and the calls of leaf modules: ``(name, module, first rows entered, rows)``.

    The rows of a linear layer are in the precision it computed in, as under autocast.
    """
    calls = []

    def note(name):
        def hook(module, arguments, keywords, output):
            entered = next(_leaves((arguments, keywords)), None)
            if isinstance(module, nn.Linear):
                rows, given = entered.flatten(0, -2), next(_leaves(output), entered)
                calls.append((name, module, rows[:64].to(given.dtype, copy=True), len(rows)))
            else:
                calls.append((name, module, None, 0))

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or next(module.children(), None) is None:
                hook = module.register_forward_hook(note(_plain(name)), with_kwargs=True)
                stack.callback(hook.remove)
        return _call(model, inputs), calls


def _find_head(model, inputs):
    """``(name, module)`` of the linear layer whose ``W h + b`` is (part of) the model's output."""
    output, calls = _trace(model, inputs)
    outputs = [x for x in _leaves(output) if x.is_floating_point() and x.ndim > 1]
    linear = {call[0]: call[1] for call in calls if isinstance(call[1], nn.Linear)}
    found = {call[0] for call in calls if any(_gives(call, x) for x in outputs)}
    if len(found) == 1:
        return (name := found.pop()), linear[name]
    for x in outputs:
        checks.finite("the model's output", x)
    candidates = [f"{n} {m.in_features}→{m.out_features}" for n, m in linear.items()]
    if not candidates:  # a convolution, say
        candidates = list(dict.fromkeys(call[0] for call in calls))
    raise checks.InputError(
        f"{'several' if found else 'no'} linear layer's W h + b {'are' if found else 'is'} the "
        f"model's output: {', '.join(sorted(found) or candidates[-6:]) or 'no layer was called'}.  "
        "Name the layer whose input counts (features_of=…, or head=… for the classifier, too), or "
        "pass features_of=a function"
    )


def _gives(call, output):
    """Whether this call's ``W h + b`` is ``output``, compared on its first rows."""
    _, module, entered, rows = call
    if not isinstance(module, nn.Linear) or output.shape[-1] != module.out_features:
        return False
    if output.numel() != rows * module.out_features:
        return False
    weight, bias = (x if x is None else x.to(entered.dtype) for x in (module.weight, module.bias))
    product = nn.functional.linear(entered, weight, bias)
    output = output.flatten(0, -2)[: len(product)]
    # Rounding: of the sum over h, in single precision at least, and of the result.
    size = entered.float().abs() @ weight.float().abs().T
    single = torch.finfo(torch.float32).eps
    kinds = [x.dtype for x in (module.weight, product, output) if x.is_floating_point()]
    coarsest = max(torch.finfo(kind).eps for kind in kinds)
    allowed = 8 * (single * size.max() + coarsest * output.abs().max())
    return bool(((product - output).abs() <= allowed).all())


def _refuse_unshifted(inputs, labels, ignore_index):
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.is_floating_point():
        return
    if getattr(labels, "shape", None) != ids.shape:
        return
    labels = labels.to(ids.device)
    if bool(((labels == ids) | (labels == ignore_index)).all()) and bool((labels == ids).any()):
        raise checks.InputError(
            "the labels are the input tokens themselves; in a causal language model the label of "
            "a position is the next token: pass unpack=collect.next_token"
        )


def _channels_last(x, module, model):
    """Whether the sizes of the model's layers speak for ``(B, H, W, C)`` where H is not W."""
    if x.ndim < 4 or x.shape[-2] == x.shape[-1] or isinstance(module, _CHANNELS_FIRST):
        return False
    layers = list(model.modules())
    channels = [getattr(layer, name, None) for layer in layers for name in _CHANNELS]
    norms = [getattr(layer, "normalized_shape", None) for layer in layers]
    first = x.shape[1] in channels or x.shape[1] >= x.shape[-1]
    return (x.shape[-1],) in norms or not first


def _rows(name, x, labels, module, maps, model):
    """Features as rows ``(n, d)`` and their labels ``(n,)``."""
    labels = checks.tensor("labels", labels).to(x.device)
    last = type(module) in (nn.Linear, nn.LayerNorm)  # layers that work on the last axis
    shape = f"{name} gave features of shape {tuple(x.shape)} for labels {tuple(labels.shape)}"
    if x.ndim < 2:
        raise checks.InputError(f"{shape}: expected a row of features for each sample")
    square = x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3]  # (B, H, W, C), it seems
    unclear = square or _channels_last(x, module, model)
    if x.ndim > 3 and not last and not square:
        x = x.movedim(1, -1)
    places = math.prod(x.shape[1:-1])
    as_positions = labels.ndim == 2 and labels.shape == x.shape[:-1] and min(x.shape) > 1
    if as_positions and checks.one_hot(labels):
        raise checks.InputError(
            f"{shape}: these may be one-hot rows of as many classes as there are positions, or "
            "labels of the positions; for the first pass indices, labels.argmax(1)"
        )
    if places == 1 or labels.shape == x.shape[:-1]:
        x = x.flatten(0, -2)
        labels = labels.flatten() if labels.numel() == len(x) else labels
        if len(labels) != len(x):
            raise checks.InputError(f"{shape}: expected a label for each sample")
        return x, labels
    if maps is None or (x.ndim == 3 or unclear) and not last:
        raise checks.InputError(
            f"{shape}: average the positions (maps='pool'), take each as a sample "
            "(maps='positions'); both need (B, C, H, W), for another layout pass a function that "
            "returns (B, d)"
        )
    if maps == "pool":
        return x.flatten(1, -2).mean(1), labels
    return x.flatten(0, -2), labels.repeat_interleave(places)
