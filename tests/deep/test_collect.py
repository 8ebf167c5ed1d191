"""Any model, any loader: the features that enter the last linear layer, or one error."""

import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nclib import checks
from nclib.deep import collect, nets
from nclib.metrics import nc_metrics

K, N = 3, 24


def images(size=32, channels=3):
    x = torch.randn(N, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(N) % K


def vectors(d=5):
    x = torch.randn(N, d, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(N) % K


def batches(*tensors, size=7):
    return DataLoader(TensorDataset(*tensors), batch_size=size)


def check(statistics, features, labels):
    """Class means and within-class covariance against plain float64."""
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    means = np.stack([features[labels == k].mean(0) for k in range(statistics.num_classes)])
    residual = features - means[labels]
    assert np.allclose(statistics.means.numpy(), means, atol=1e-6)
    want = residual.T @ residual / len(features)
    assert np.allclose(statistics.within_covariance.numpy(), want, atol=1e-6)
    assert np.abs(want).max() > 1e-4  # the comparison can fail


def entering(model, layer, x):
    """What enters ``layer``, by a hook set by hand, all data in one batch."""
    taken = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return taken[0]


TORCHVISION = {
    "densenet": lambda: torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, num_classes=K),
    "convnext": lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, 12, 1),
         torchvision.models.convnext.CNBlockConfig(12, None, 1)], num_classes=K),
    "swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=K),
    "resnet": lambda: torchvision.models.resnet18(num_classes=K),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=K),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_features_of_torchvision_nets_are_what_enters_their_head(name):
    model = nets.seeded(0, TORCHVISION[name])
    nn.init.normal_([m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight)  # ViT's: 0
    x, y = images()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    found = collect.statistics(model, batches(x, y))
    check(found, entering(model, head, x), y)
    with torch.no_grad():
        logits = found.means @ head.weight.double().T + head.bias
        want = torch.stack([model(x)[y == k].mean(0) for k in range(K)])
    assert torch.allclose(logits.float(), want, atol=1e-4)  # W on the means: mean logits


class Net(nn.Module):
    """Features, a nonlinearity and a head called in the way the test asks for."""

    def __init__(self, how="plain"):
        super().__init__()
        torch.manual_seed(3)
        self.how, self.body, self.fc = how, nn.Linear(5, 4), nn.Linear(4, K)
        self.unused = nn.Linear(4, K)

    def forward(self, x, scale=1.0):
        h = self.features(x)
        if self.how == "keyword":
            return self.fc(input=h)
        if self.how == "functional":
            return F.linear(h, self.fc.weight, self.fc.bias)
        if self.how == "softmax":
            return self.fc(h).log_softmax(1)
        if self.how == "softcap":
            return 30 * torch.tanh(self.fc(h) / 30)
        if self.how == "twice":
            return self.fc(h) + 0 * self.fc(2 * h)
        if self.how == "two outputs":
            return self.fc(h), self.unused(h)
        if self.how == "tuple":
            return self.fc(h), h
        if self.how == "in place":
            logits = self.fc(h)
            h.zero_()
            return logits
        if self.how == "auxiliary":
            logits = self.fc(h)
            return {"aux": self.unused(h).mean(), "out": logits}
        return self.fc(h)

    def features(self, x):
        return self.body(x).relu()


@pytest.mark.parametrize("how", ["plain", "keyword", "tuple", "in place", "auxiliary"])
def test_the_head_is_found_however_it_is_called(how):
    model, (x, y) = Net(how), vectors()
    want = model.features(x).detach()
    check(collect.statistics(model, batches(x, y)), want, y)
    for layer in ("fc", model.fc, "module.fc", "_orig_mod.fc"):
        check(collect.statistics(model, batches(x, y), K, features_of=layer), want, y)
    check(collect.statistics(model, batches(x, y), K, features_of=model.features), want, y)
    found = collect.statistics(model, batches(x, y), K, features_of="body:out")
    check(found, model.body(x).detach(), y)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("functional", "no linear layer's .* output: body 5→4"),
        ("softmax", "no linear layer's .* output: body 5→4, fc 4→3"),
        ("softcap", "no linear layer's .* output: body 5→4, fc 4→3"),
        ("twice", r"fc was called 2 time\(s\)"),
        ("two outputs", "several linear layer's .* output: fc, unused"),
    ],
)
def test_no_head_or_several_is_an_error_with_the_candidates(how, message):
    with pytest.raises(checks.InputError, match=message):
        collect.statistics(Net(how), batches(*vectors()))


def test_layers_that_are_not_called_or_called_twice_are_named():
    x, y = vectors()
    with pytest.raises(checks.InputError, match="fc was not called .* called were: body\\."):
        collect.statistics(Net("functional"), batches(x, y), K, features_of="fc")
    model = Net("twice")
    with pytest.raises(checks.InputError, match=r"fc was called 2 time\(s\)"):
        collect.statistics(model, batches(x, y), K, features_of="fc")
    want = model.features(x).detach()
    for which, factor in ((0, 1), (1, 2), (-1, 2)):
        found = collect.statistics(model, batches(x, y), K, features_of="fc", which=which)
        check(found, factor * want, y)
    with pytest.raises(checks.InputError, match="fc was called 2 time"):
        collect.statistics(model, batches(x, y), K, features_of="fc", which=2)
    with pytest.raises(checks.InputError, match="no layer 'head'; .* are body, fc, unused"):
        collect.statistics(model, batches(x, y), features_of="head")
    with pytest.raises(checks.InputError, match="the model's own input"):
        collect.statistics(nn.Sequential(nn.Tanh(), model), batches(x, y), K, features_of="0")


def test_wrapped_models():
    x, y = vectors()
    model = Net()
    want = model.features(x).detach()
    wrapped = {
        "parallel": nn.DataParallel(model),
        "compiled": torch.compile(model, backend="eager"),
        "both": torch.compile(nn.DataParallel(model), backend="eager"),
        "by name": nn.Sequential(OrderedDict(module=model)),
        "inside": nn.Sequential(OrderedDict(net=torch.compile(Net(), backend="eager"))),
    }
    wrapped["in place"] = Net()
    wrapped["in place"].compile(backend="eager")
    for name, wrapper in wrapped.items():
        with collect.evaluation(wrapper):
            wrapper(x)  # compiled before the hooks come, in the same mode
        names = (
            ("net.fc",)
            if name == "inside"
            else ("fc", "module.fc", wrapper.fc if name == "in place" else model.fc)
        )
        for layer in (None, *names):
            check(collect.statistics(wrapper, batches(x, y), features_of=layer), want, y)


Sample = namedtuple("Sample", "x y")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.fc = nn.Linear(5, K)

    def forward(self, left, right):
        return self.fc(left * right)


class Keywords(TwoInputs):
    """As Hugging Face models: keywords, a dict comes back."""

    def forward(self, left=None, right=None, labels=None, **more):
        assert labels is None
        return {"logits": super().forward(left, right)}


class OneDict(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["left"], batch["right"])


def as_dicts(make, *tensors):
    return [make(*part) for part in zip(*(t.split(7) for t in tensors), strict=True)]


@pytest.mark.parametrize(
    ("model", "make"),
    [
        (Net, lambda x, z, y: (x, y)),
        (Net, lambda x, z, y: [x, y]),
        (Net, lambda x, z, y: Sample(x, y)),
        (Net, lambda x, z, y: {"x": x, "labels": y, "index": y + 100}),
        (Net, lambda x, z, y: {"pixel_values": x, "label": y}),
        (Net, lambda x, z, y: [{"x": x, "targets": y}]),
        (Net, lambda x, z, y: ({"x": x}, y)),
        (Net, lambda x, z, y: (x, y.unsqueeze(1))),
        (Net, lambda x, z, y: (x, y.numpy())),
        (TwoInputs, lambda x, z, y: (x, z, y)),
        (TwoInputs, lambda x, z, y: (x, z, y, y + 100)),
        (TwoInputs, lambda x, z, y: ((x, z), y)),
        (TwoInputs, lambda x, z, y: ({"right": z, "left": x}, y)),
        (Keywords, lambda x, z, y: {"left": x, "right": z, "labels": y, "id": y}),
        (OneDict, lambda x, z, y: ({"left": x, "right": z}, y)),
    ],
)
def test_batches_of_every_form(model, make):
    (x, y), model = vectors(), model()
    z = x.flip(0)
    want = model.features(x).detach() if isinstance(model, Net) else x * z
    check(collect.statistics(model, as_dicts(make, x, z, y)), want, y)


def test_batches_that_can_be_read_in_two_ways_are_refused():
    x, y = vectors()
    for make, message in (
        (lambda x, y: (x, y, y), "which of the 3 entries"),  # forward has an optional argument
        (lambda x, y: {"x": x, "class": y}, "which entry .* It has x, class"),
        (lambda x, y: {"x": x, "label": y, "target": y}, "which entry"),
        (lambda x, y: x, "got Tensor"),
    ):
        with pytest.raises(checks.InputError, match=message):
            collect.statistics(Net(), as_dicts(make, x, y))
    with pytest.raises(checks.InputError, match=r"\(7, 4\) for labels \(6,\): expected a label"):
        collect.statistics(Net(), [(x[:7], y[:6])])
    with pytest.raises(checks.InputError, match="the model's output has 21 NaN"):
        collect.statistics(Net(), [(x[:7] * torch.nan, y[:7])])
    unpack = lambda batch: (batch["x"], batch["class"])
    loader = as_dicts(lambda x, y: {"x": x, "class": y}, x, y)
    model = Net()
    check(collect.statistics(model, loader, unpack=unpack), model.features(x).detach(), y)
    with pytest.raises(checks.InputError, match="no batch"):
        collect.statistics(model, [])


def test_functions_may_return_dicts_and_tuples_of_one_tensor():
    model, (x, y) = Net(), vectors()
    want = model.features(x).detach()
    with_more = lambda h: {"features": h, "mean": h.mean()}
    for wrap in (lambda h: {"last": h}, lambda h: (h,), with_more):
        function = lambda inputs, wrap=wrap: wrap(model.features(inputs))
        check(collect.statistics(model, batches(x, y), K, features_of=function), want, y)
    with pytest.raises(checks.InputError, match=r"returned 2 \(a, b\); pick one"):
        function = lambda inputs: {"a": inputs, "b": inputs}
        collect.statistics(model, batches(x, y), K, features_of=function)
    separate = nn.Sequential(nn.Dropout(0.5), model.body, nn.ReLU())  # its own mode counts too
    check(collect.statistics(model, batches(x, y), K, features_of=separate), want, y)
    assert separate.training and separate[0].training


def test_a_model_without_parameters_and_builtins():
    x, y = vectors()
    check(collect.statistics(nn.Identity(), batches(x, y), K, features_of=torch.tanh), x.tanh(), y)
    with pytest.raises(checks.InputError, match="no linear layer"):
        collect.statistics(nn.Identity(), batches(x, y))


def test_every_module_is_in_its_own_mode_afterwards():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, K))
    model.train()
    model[1].eval()  # frozen
    modes = [m.training for m in model.modules()]
    mean = model[1].running_mean.clone()
    x, y = vectors()

    def failing():
        yield x, y
        raise OSError("disk")

    collect.statistics(model, batches(x, y))
    assert [m.training for m in model.modules()] == modes
    for loader, error in ((failing(), OSError), ([(x[:, :2], y)], RuntimeError)):
        with pytest.raises(error):
            collect.statistics(model, loader)
        assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Merging(nn.Linear):
    """As loralib's layers: what eval mode merges into the weights, training mode takes out."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_layers_that_merge_weights_in_eval_mode_undo_it_afterwards():
    model = nn.Sequential(Merging(5, 4), nn.BatchNorm1d(4), Merging(4, 4), nn.Linear(4, K))
    model[1].eval()  # frozen
    model[2].eval()
    for root in (True, False):
        model.training = root
        collect.statistics(model, batches(*vectors()))
        assert [m.training for m in model.modules()] == [root, True, False, False, True]
        assert not model[0].merged and model[2].merged


def test_maps_are_pooled_or_positions_are_samples_or_refused():
    x, y = images(8)
    torch.manual_seed(0)
    head = nn.Conv2d(6, K, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *head)
    with pytest.raises(checks.InputError, match="no linear layer.*: 0, 1, 2, 3, 4"):
        collect.statistics(model, batches(x, y))
    with pytest.raises(checks.InputError, match=r"2 gave features of shape \(7, 6, 6, 6\).*pool"):
        collect.statistics(model, batches(x, y), K, features_of="2")
    with torch.no_grad():
        maps = model[:2](x)
    pooled = collect.statistics(model, batches(x, y), K, features_of="2", maps="pool")
    check(pooled, maps.mean((2, 3)), y)
    places = collect.statistics(model, batches(x, y), K, features_of="2", maps="positions")
    rows = torch.stack([maps[:, :, i, j] for i in range(6) for j in range(6)], 1).flatten(0, 1)
    check(places, rows, y.repeat_interleave(36))
    dense = (torch.arange(N * 36).reshape(N, 6, 6) * 7) % 5 % K  # a label for each position
    segmented = collect.statistics(model, batches(x, dense), K, features_of="2")
    check(segmented, maps.movedim(1, -1).flatten(0, -2), dense.flatten())
    # One position is a plain feature; channels last, as in Swin, is not taken for channels first.
    single = collect.statistics(model, batches(x, y), K, features_of="4")
    check(single, model[:4](x).detach().flatten(1), y)
    with pytest.raises(checks.InputError, match="pass a function"):
        function = lambda x: model[:2](x).movedim(1, -1)[..., :5]
        collect.statistics(model, batches(x, y), K, features_of=function, maps="pool")
    with pytest.raises(checks.InputError, match="maps must be one of"):
        collect.statistics(model, batches(x, y), K, features_of="2", maps="mean")


def test_one_hot_rows_are_not_taken_for_labels_of_as_many_positions():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x, y = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    with pytest.raises(checks.InputError, match="one-hot rows of as many classes"):
        collect.statistics(model, [(x, torch.eye(3)[y].long())], 3, features_of="0:out")
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]]).repeat(3, 1)
    found = collect.statistics(model, [(x, tokens)], 3, features_of="0:out")
    assert found.counts.tolist() == [6, 3, 9]


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (64, 48)])
@pytest.mark.parametrize("maps", ["pool", "positions"])
def test_channels_last_is_not_taken_for_channels_first_where_maps_are_not_square(
    height, width, maps
):
    model = nets.seeded(0, TORCHVISION["swin"])  # maps (B, H / 8, W / 8, 16)
    x, y = torch.zeros(6, 3, height, width), torch.arange(6) % K
    with pytest.raises(checks.InputError, match="16\\).*pass a function that returns"):
        collect.statistics(model, [(x, y)], K, features_of="features:out", maps=maps)
    by_hand = lambda x: model.features(x).mean((1, 2))
    assert collect.statistics(model, [(x, y)], K, features_of=by_hand).dim == 16


@pytest.mark.parametrize("layer", ["0:out", "1:out", "2:out", "3:out", "3", "4"])
@pytest.mark.parametrize("size", [(4, 64), (9, 7), (64, 64)])
def test_few_channels_of_wide_maps_are_channels(layer, size):
    parts = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Sequential(nn.MaxPool2d(2))
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    x, y = torch.randn(6, 3, *size), torch.arange(6) % K
    assert collect.statistics(model, [(x, y)], features_of=layer, maps="pool").dim == 8


class Language(nn.Module):
    def __init__(self, words=K):
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.norm = nn.Embedding(words, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, words, bias=False)
        self.mix = nn.GRU(4, 4, batch_first=True)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.norm(self.mix(self.embedding(input_ids))[0]))}


def test_tokens_with_ignored_positions():
    ids = torch.randint(0, K, (N, 9), generator=torch.Generator().manual_seed(6))
    model, labels = Language(), ids.roll(-1, 1)
    labels[:, -2:] = -100
    labels[3] = -100
    loader = as_dicts(lambda x, y: {"input_ids": x, "labels": y}, ids, labels)
    h = entering(model, model.head, ids)
    keep = labels != -100
    check(collect.statistics(model, loader), h[keep], labels[keep])
    assert int(collect.statistics(model, loader).counts.sum()) == (N - 1) * 7
    # The labels of a causal model are its own inputs: shifted on demand, never taken as they are.
    causal = as_dicts(lambda x: {"input_ids": x, "labels": x}, ids)
    for same in (causal, as_dicts(lambda x: (x, x), ids)):
        with pytest.raises(checks.InputError, match="next_token"):
            collect.statistics(model, same)
    found = collect.statistics(model, causal, unpack=collect.next_token)
    check(found, h[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    with pytest.raises(checks.InputError, match=r"\(7, 9, 4\) for labels \(7,\)"):
        collect.statistics(model, as_dicts(lambda x: (x, x[:, 0]), ids))


def test_ignored_samples_of_a_classifier_do_not_count():
    model, (x, y) = Net(), vectors()
    y = y.clone()
    y[:7] = -100  # the whole first batch
    check(collect.statistics(model, batches(x, y)), model.features(x[7:]).detach(), y[7:])


def test_one_logit_tells_two_classes_apart():
    x, labels = vectors()
    labels = labels % 2
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    (found,) = collect.measure(model, batches(x, labels)).values()
    entered = model[:2](x).detach()
    assert found == pytest.approx(nc_metrics(entered, labels), rel=1e-6)  # no rows of W to compare
    with pytest.raises(checks.InputError, match="0..1, found 2"):
        collect.statistics(model, batches(x, labels * 2))


def test_several_layers_in_one_pass():
    model, (x, y) = Net(), vectors()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = collect.statistics(model, batches(x, y), K, features_of=["body:out", "fc"])
    assert len(passes) == 4 and list(found) == ["body:out", "fc"]
    check(found["body:out"], model.body(x).detach(), y)
    check(found["fc"], model.features(x).detach(), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_head_is_verified_in_every_precision(dtype):
    x, y = vectors()
    model = Net().to(dtype)
    check(collect.statistics(model, batches(x.to(dtype), y)),
          model.features(x.to(dtype)).detach().double(), y)  # fmt: skip
    model.how = "softmax"
    with pytest.raises(checks.InputError, match="no linear layer"):
        collect.statistics(model, batches(x.to(dtype), y))


def test_under_autocast():
    x, y = vectors()
    model = Net()
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        found = collect.statistics(model, batches(x, y))
        want = model.features(x).detach().double()
    check(found, want, y)


@pytest.mark.parametrize("enters", [torch.bfloat16, torch.float32])  # a norm gives the latter
def test_under_autocast_inside_forward(enters):
    """As Accelerate and the Hugging Face ``Trainer`` wrap a model for bf16."""
    (x, y), model = vectors(), Net()
    forward, plain = model.forward, model.features
    model.features = lambda x: plain(x).to(enters)

    def wrapped(x):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x).float()

    model.forward = wrapped
    with torch.autocast("cpu", torch.bfloat16):
        want = plain(x).detach().double()
    check(collect.statistics(model, batches(x, y)), want, y)
    found = [collect.measure(model, [(x, y)], layers=layer)["fc"] for layer in (None, "fc")]
    assert (
        found[0]
        == found[1]
        == pytest.approx(nc_metrics(want, y, model.fc.weight, model.fc.bias), rel=1e-5)
    )
    model.how = "softmax"
    with pytest.raises(checks.InputError, match="no linear layer"):
        collect.statistics(model, batches(x, y))


def test_double_inputs_are_narrowed_where_the_device_has_no_double():
    moved = collect._moved({"x": [torch.zeros(2, dtype=torch.float64)]}, torch.device("meta"))
    assert moved["x"][0].dtype == torch.float64
    mps = type("Device", (), {"type": "mps"})()

    class Double(torch.Tensor):
        def to(self, device, dtype=None):
            return dtype

    value = torch.zeros(2, dtype=torch.float64).as_subclass(Double)
    assert collect._moved(value, mps) == torch.float32


def test_what_leaves_a_layer_is_kept_though_the_next_one_works_in_place():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, K))
    x, y = vectors()
    with torch.no_grad():
        model[0].bias.fill_(-9)
    found = collect.statistics(model, [(x, y)], features_of="0:out").means
    want = torch.stack([model[0](x[y == k]).detach().mean(0) for k in range(K)]).double()
    assert want.max() < 0
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
