import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from nclib.deep import collect, data, nets


def test_digits_are_split_without_overlap_and_standardised():
    train, test = data.load("digits", train_per_class=60)
    assert (len(train), len(test)) == (600, 1197)
    assert torch.bincount(train.labels).tolist() == [60] * 10
    assert float(train.inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.inputs.std()) == pytest.approx(1, abs=1e-5)
    rows = {tuple(row.tolist()) for row in train.inputs.flatten(1)}
    assert not rows & {tuple(row.tolist()) for row in test.inputs.flatten(1)}


def test_the_split_depends_on_the_seed_alone():
    one, two, other = (data.load("digits", seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(one.inputs, two.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_class_sizes_can_be_chosen():
    train, _ = data.load("digits")
    part = train.per_class([3, 1] + [2] * 8)
    assert torch.bincount(part.labels).tolist() == [3, 1] + [2] * 8
    with pytest.raises(ValueError, match="has 60 samples of class 0, 61 were asked for"):
        train.per_class(61)
    with pytest.raises(ValueError, match="2 class sizes for 10 classes"):
        train.per_class([1, 2])
    assert len(train.per_class(np.int64(2))) == 20
    assert torch.equal(train.per_class(1).inputs[3], train.inputs[train.labels == 3][0])
    draws = [train.per_class(2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    first, same, other = (data.checksum(part) for part in draws)
    assert first == same != other
    rolled = data.Data("digits", draws[0].inputs, draws[0].labels.roll(1), 10)
    assert data.checksum(rolled) != first
    with pytest.raises(ValueError, match="samples per class must be at least 0, got -1"):
        train.per_class(-1)
    with pytest.raises(ValueError, match="train_per_class must be at least 1, got 0"):
        data.load("digits", train_per_class=0)


def write_idx(folder, packed, images=40):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    opener = gzip.open if packed else open
    for part, count in (("train", images), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        suffix = ".gz" if packed else ""
        with opener(folder / f"{part}-images-idx3-ubyte{suffix}", "wb") as file:
            file.write(struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes())
        with opener(folder / f"{part}-labels-idx1-ubyte{suffix}", "wb") as file:
            file.write(struct.pack(">ii", 2049, count) + labels.tobytes())


def write_cifar(root, coarse):
    folder = root / ("cifar-100-python" if coarse else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = (
        ["train", "test"] if coarse else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    )
    for name in names:
        entry = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8)}
        entry["fine_labels" if coarse else "labels"] = [i % 10 for i in range(20)]
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names": ["x"] * 100} if coarse else {"label_names": ["x"] * 10}
    (folder / ("meta" if coarse else "batches.meta")).write_bytes(pickle.dumps(meta))


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_laid_out_from_a_folder_of_idx_files(tmp_path, monkeypatch, packed):
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path / "root"))
    write_idx(tmp_path / "source", packed)
    data.fetch("fashion_mnist", source=tmp_path / "source")
    assert (tmp_path / "root/FashionMNIST/raw/train-images-idx3-ubyte").exists()
    train, test = data.load("fashion_mnist", train_per_class=3)
    assert tuple(train.inputs.shape) == (30, 1, 28, 28)
    assert len(test) == 10
    assert data.check("fashion_mnist").startswith("fashion_mnist: 40")


@pytest.mark.parametrize("coarse", [False, True])
def test_cifar_is_read_in_torchvisions_layout(tmp_path, monkeypatch, coarse):
    from torchvision import datasets

    # The small files have other checksums than the real ones; only their format matters here.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    write_cifar(tmp_path, coarse)
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path))
    train, test = data.load("cifar100" if coarse else "cifar10")
    assert tuple(train.inputs.shape) == ((20 if coarse else 100), 3, 32, 32)
    (folder,) = tmp_path.iterdir()
    names = ["train"] if coarse else [f"data_batch_{i}" for i in range(1, 6)]
    parts = [names, ["test" if coarse else "test_batch"]]
    read = lambda name: torch.tensor(pickle.loads((folder / name).read_bytes())["data"])
    raw = [torch.cat([read(name) for name in some]).view(-1, 3, 32, 32) / 255 for some in parts]
    std, mean = torch.std_mean(raw[0], (0, 2, 3), keepdim=True)  # of the train part, both
    for part, pixels in zip((train, test), raw, strict=True):
        torch.testing.assert_close(part.inputs, (pixels - mean) / std, atol=1e-4, rtol=0)
    assert train.num_classes == (100 if coarse else 10)


def test_a_missing_set_says_how_to_fetch_it_and_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path))
    for name, folder in (("fashion_mnist", "FashionMNIST/raw"), ("cifar10", "cifar-10-batches-py")):
        with pytest.raises(ValueError, match=f"nclib data fetch {name}.*{folder}"):
            data.load(name)
    with pytest.raises(ValueError, match="dataset must be one of digits, mnist"):
        data.load("imagenet")


def test_a_truncated_file_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path))
    write_idx(tmp_path / "source", False)
    data.fetch("fashion_mnist", source=tmp_path / "source")
    path = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="fashion_mnist is damaged .*fetch it again"):
        data.load("fashion_mnist")


def test_an_incomplete_source_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path))
    write_idx(tmp_path / "source", False)
    (tmp_path / "source/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="holds neither t10k-labels-idx1-ubyte.gz nor"):
        data.fetch("fashion_mnist", source=tmp_path / "source")


def test_crop_and_flip_moves_pixels_and_nothing_else():
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6) + 1
    many = images.repeat(50, 1, 1, 1)
    moved = data.crop_and_flip(many, torch.Generator().manual_seed(1))
    assert moved.shape == (100, 3, 6, 6)
    for out, image in zip(moved, many, strict=True):
        assert set(out.unique().tolist()) <= set(image.unique().tolist()) | {0.0}
    padded = torch.nn.functional.pad(many, (4, 4, 4, 4))
    windows = padded.unfold(2, 6, 1).unfold(3, 6, 1)  # (B, C, 9, 9, 6, 6)
    for out, own in zip(moved, windows, strict=True):
        places = own.permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(out, place) or torch.equal(out, place.flip(2)) for place in places)
    again = data.crop_and_flip(many, torch.Generator().manual_seed(1))
    assert torch.equal(moved, again)


@pytest.mark.parametrize(
    ("net", "shape", "dim"),
    [
        (lambda: nets.mlp([12, 8, 7], 5), (3, 4), 7),
        (lambda: nets.cnn([4, 8, 6], 5), (1, 16, 16), 6),
        (lambda: nets.resnet(18, 5, width=0.125), (3, 32, 32), 64),
        (lambda: nets.resnet(50, 5, width=0.25), (3, 32, 32), 2048),
    ],
)
def test_nets_show_their_features(net, shape, dim):
    net = nets.seeded(0, net).eval()
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    features = net.features(inputs)
    assert tuple(features.shape) == (2, dim)
    assert torch.allclose(net(inputs), features @ net.weight.T + net.bias, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "sizes", "options", "dim"),
    [
        ("mlp", [9, 7], {"final_relu": False, "strides": [1], "bias": False}, 7),
        ("cnn", [4, 6], {"strides": [1, 1], "final_relu": False}, 6),
        ("resnet18", 0.125, {"bias": False}, 64),
        ("resnet50", 0.25, {}, 2048),
    ],
)
def test_build_fits_the_data(architecture, sizes, options, dim):
    images = data.Data("x", torch.randn(4, 3, 8, 8), torch.arange(4) % 2, 2)
    net = nets.build(architecture, images, sizes, **options).eval()
    assert tuple(net.features(images.inputs).shape) == (4, dim)
    assert tuple(net(images.inputs).shape) == (4, 2)
    assert (net.bias is None) == (options.get("bias") is False)
    if architecture == "mlp":
        assert (net.features(images.inputs) < 0).any()
    if architecture == "cnn":
        assert [m.stride for m in net.modules() if hasattr(m, "stride")] == [(1, 1)] * 2


def test_build_refuses_what_no_architecture_has():
    images = data.Data("x", torch.randn(4, 1, 8, 8), torch.arange(4) % 2, 2)
    with pytest.raises(ValueError, match="no architecture has the option relu"):
        nets.build("mlp", images, [4], relu=False)
    with pytest.raises(ValueError, match="architecture must be one of mlp, cnn"):
        nets.build("vgg", images, [4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nets.cnn([4, 8], 3, strides=[1]), r"channels \[4, 8\] and strides \[1\] must be"),
        (lambda: nets.cnn([], 3), "must be as many, not 0"),
        (lambda: nets.mlp([], 3), "widths must hold the number of inputs"),
        (lambda: data.smallest_class("digits", 174), "train_per_class must be less than 174"),
    ],
)
def test_sizes_that_fit_nothing_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_resnet_of_width_one_is_torchvisions():
    from torchvision.models import resnet18

    ours, theirs = nets.resnet(18, 10), resnet18(num_classes=10)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert nets.parameter_count(ours) == nets.parameter_count(theirs)
    with pytest.raises(ValueError, match="depth must be one of 18, 50"):
        nets.resnet(34, 10)


def test_seeded_nets_leave_the_global_generator_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    one = nets.seeded(0, nets.mlp, [4, 3, 2], 2)
    assert torch.equal(torch.rand(3), want)
    two = nets.seeded(0, nets.mlp, [4, 3, 2], 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_statistics_of_a_foreign_model_match_its_stored_features():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat(10)
    loader = list(zip(inputs.split(7), labels.split(7), strict=True))
    named = collect.statistics(model, loader, 3, features_of="2")
    called = collect.statistics(model, loader, 3, features_of=model[:2])
    want = model[:2](inputs).detach().double()
    for got in (named, called):
        assert torch.allclose(got.means[1], want[labels == 1].mean(0), atol=1e-6)
    (one,), (two,) = (
        collect.measure(model, loader, **{name: [model[2]]}).values()
        for name in ("layers", "features_of")
    )
    assert one == two and one["nc1"] == pytest.approx(named.metrics()["nc1"], rel=1e-5)
    with pytest.raises(ValueError, match="no layer .fc.; the model.s layers are 0, 1, 2"):
        collect.statistics(model, loader, 3, features_of="fc")
    with pytest.raises(ValueError, match="no batch"):
        collect.statistics(model, [], 3, features_of="2")
