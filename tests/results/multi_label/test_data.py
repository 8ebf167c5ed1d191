"""Composed multi-label images and the SVHN loader, against counts, coverage and a loop."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.checks import InputError
from nclib.deep import data
from nclib.results.multi_label import data as multi


def source(h=8, K=4, n=30, channels=1, ones=False):
    """n images per class; unless all-ones, image i of the set is the constant (i+1)/total."""
    labels = torch.arange(K).repeat_interleave(n)
    values = torch.ones(K * n) if ones else torch.arange(1, K * n + 1) / (K * n)
    inputs = values[:, None, None, None].expand(-1, channels, h, h).contiguous()
    return SimpleNamespace(inputs=inputs, labels=labels, num_classes=K, name="toy")


@pytest.mark.parametrize("recipe", multi.RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_counts_shapes_and_order(recipe, channels):
    table = multi.label_set_table(4, {1: 5, 2: 3})
    made = multi.compose(source(channels=channels), table, recipe=recipe)
    assert made.inputs.shape == (4 * 5 + 6 * 3, channels, 16, 16)
    assert made.labels.shape == (38, 4)
    assert made.table() == table
    sizes = made.labels.sum(1)
    assert torch.equal(sizes, sizes.sort().values)
    assert float(made.inputs.min()) == 0
    assert "20 with 1, 18 with 2" in str(made)


@pytest.mark.parametrize("recipe", multi.RECIPES)
def test_every_image_comes_from_its_class_without_repetition(recipe):
    K, n, h = 4, 30, 8
    table = multi.label_set_table(K, {1: 20, 2: 6})
    made = multi.compose(source(h, K, n), table, recipe=recipe, seed=3)
    for S in table:
        own = made.inputs[(made.labels[:, list(S)].all(1)) & (made.labels.sum(1) == len(S))]
        seen = []
        for image in own:
            values = image.unique()
            index = (values[values > 0] * K * n).round().long() - 1
            classes = sorted((index // n).tolist())
            assert classes == sorted(S)
            seen += index.tolist()
        assert len(seen) == len(set(seen))


def brute_paste(images, pick, corner):
    h = images.shape[2]
    canvas = np.zeros((images.shape[1], 2 * h, 2 * h), dtype=np.float32)
    for i, (top, left) in zip(pick, corner, strict=True):
        for c in range(images.shape[1]):
            for r in range(h):
                for q in range(h):
                    y, x = (top + r) % (2 * h), (left + q) % (2 * h)
                    canvas[c, y, x] = max(canvas[c, y, x], images[i, c, r, q])
    return canvas


def test_paste_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, 4, 4, generator=generator)
    picks = torch.randint(0, 5, (6, 3), generator=generator)
    corners = torch.randint(0, 8, (6, 3, 2), generator=generator)
    found = multi._paste(images, picks, corners)
    for j in range(6):
        expected = brute_paste(images.numpy(), picks[j].tolist(), corners[j].tolist())
        assert np.array_equal(found[j].numpy(), expected)


def coverage(recipe, h, m, n=4000):
    K = max(m, 2)
    table = {tuple(range(m)): n}
    made = multi.compose(source(h, K, n, ones=True), table, recipe=recipe, seed=1)
    return made.inputs.mean((1, 2, 3))


@pytest.mark.parametrize("recipe", multi.RECIPES)
@pytest.mark.parametrize("h", [8, 28])
def test_single_coverage_is_a_quarter(recipe, h):
    assert torch.all(coverage(recipe, h, 1, n=50) == 0.25)


@pytest.mark.parametrize("h", [8, 28])
def test_pair_coverage_of_the_mnist_recipe(h):
    k = h // 4
    expected = 0.5 - ((k * k - 1) / (3 * k)) ** 2 / (4 * h * h)
    values = coverage("mnist", h, 2).double()
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / 4000**0.5)
    if h == 28:
        assert expected == pytest.approx(0.498334, abs=1e-6)


@pytest.mark.parametrize("h", [8, 32])
def test_pair_coverage_of_the_cifar_recipe(h):
    k = h // 4
    expected = 0.5 - (2 * (k * k - 1) / 12 + (k - 1) ** 2) / (4 * h * h)
    values = coverage("cifar", h, 2).double()
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / 4000**0.5)
    if h == 32:
        assert expected == pytest.approx(0.485474, abs=1e-6)


def corner_of(image):
    """Top and left of the bounding box of the non-zero pixels."""
    rows, columns = image[0].nonzero().unbind(1)
    return int(rows.min()), int(columns.min())


def test_single_positions_of_the_recipes():
    h, n = 8, 200
    images = source(h, 2, n, ones=True)
    cifar = multi.compose(images, {(0,): n}, recipe="cifar")
    assert {corner_of(i) for i in cifar.inputs} == {(0, 0), (1, 1), (7, 7), (8, 8)}
    grid = multi.compose(images, {(0,): n}, recipe="grid")
    ends = (0, 1, 7, 8)
    assert {corner_of(i) for i in grid.inputs} == {(r, c) for r in ends for c in ends}
    mnist = multi.compose(images, {(0,): n}, recipe="mnist")
    # Bottom right, rolled by 0 or 1 in each direction with wrap-around.
    wrapped = {(int(i[0, 0].any()), int(i[0, :, 0].any())) for i in mnist.inputs}
    assert wrapped == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(bool(i[0, 9:, 9:].all()) for i in mnist.inputs)


def test_pairs_sit_on_the_diagonal_in_both_orders():
    h, n = 8, 100
    images = source(h, 2, n)
    for recipe in ("mnist", "cifar"):
        made = multi.compose(images, {(0, 1): n}, recipe=recipe)
        top_left, bottom_right = made.inputs[:, 0, 5, 5], made.inputs[:, 0, 10, 10]
        first = top_left < bottom_right  # class 0 has the smaller values
        assert 0.3 < float(first.double().mean()) < 0.7
        assert torch.all(made.inputs[:, 0, 3, 12] == 0)


def test_three_and_four_labels_use_distinct_quadrants():
    images = source(8, 4, 10, ones=True)
    for m in (3, 4):
        made = multi.compose(images, {S: 2 for S in combinations(range(4), m)}, recipe="mnist")
        blocks = made.inputs[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4))
        assert torch.all((blocks > 0.6).sum((1, 2)) == m)
    wide = source(8, 6, 4)
    with pytest.raises(InputError, match="at most 4"):
        multi.compose(wide, {tuple(range(5)): 1})


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_same_seed_same_images(seed):
    table = {(0,): 3, (1, 2): 4}
    a = multi.compose(source(), table, seed=seed)
    b = multi.compose(source(), table, seed=seed)
    other = multi.compose(source(), table, seed=seed + 1)
    assert torch.equal(a.inputs, b.inputs)
    assert not torch.equal(a.inputs, other.inputs)


def test_table_with_groups():
    generator = torch.Generator().manual_seed(0)
    table = multi.label_set_table(10, {1: 3100, 2: [500, 50, 5]}, generator=generator)
    pairs = [n for S, n in table.items() if len(S) == 2]
    assert sorted(pairs) == [5] * 15 + [50] * 15 + [500] * 15
    assert pairs != sorted(pairs, reverse=True)
    assert list(table)[:3] == [(0,), (1,), (2,)]
    ordered = multi.label_set_table(10, {2: [500, 50, 5]})
    assert list(ordered.values()) == [500] * 15 + [50] * 15 + [5] * 15
    assert multi.label_set_table(3, {1: 2, 2: 0}) == {(0,): 2, (1,): 2, (2,): 2}


def test_hold_out():
    table = multi.label_set_table(6, {1: 4, 2: 2})
    kept, unseen = multi.hold_out(table, 0.33, generator=torch.Generator().manual_seed(0))
    assert len(unseen) == 5
    assert set(kept) | set(unseen) == set(table)
    assert not set(kept) & set(unseen)
    assert all(len(S) == 2 for S in unseen)


def test_unit_range_undoes_standardisation():
    train, test = data.load("digits", train_per_class=20)
    a, b = multi.unit_range(train, test)
    assert float(a.inputs.min()) == 0
    assert float(a.inputs.max()) == 1
    sixteenths = torch.cat([a.inputs, b.inputs]) * 16
    assert float((sixteenths - sixteenths.round()).abs().max()) < 1e-4
    assert multi.half_size(a).inputs.shape == (200, 1, 4, 4)
    block = multi.half_size(a).inputs[0, 0, 1, 2]
    assert float(block) == pytest.approx(float(a.inputs[0, 0, 2:4, 4:6].mean()))


def test_prepare_draws_what_is_asked_for():
    train, test = multi.prepare(
        "digits", {1: 4, 2: [3, 2, 1], 3: 1}, {1: 2, 2: 1}, recipe="grid", seed=3
    )
    sizes = {m: sorted(n for S, n in train.table().items() if len(S) == m) for m in (1, 2, 3)}
    assert sizes == {1: [4] * 10, 2: [1] * 15 + [2] * 15 + [3] * 15, 3: [1] * 120}
    assert set(test.table().values()) == {1, 2}
    again = multi.prepare("digits", {1: 4, 2: 1}, {1: 2, 2: 1}, recipe="grid", seed=3)[0]
    assert torch.equal(again.singles.inputs, train.singles.inputs)  # one control fits both


def test_arbitrary_label_sets():
    train, _ = multi.arbitrary("digits")
    assert train.table() == {
        S: 130 for S in [(k,) for k in range(4)] + list(combinations(range(4), 2))
    }
    assert torch.equal(train.inputs, multi.load("digits")[0].inputs)
    few, test = multi.arbitrary("digits", per_class=7)
    assert set(few.table().values()) == {7} and few.table().keys() == train.table().keys()
    assert len(test.labels) == len(multi.load("digits")[1].labels)


def test_take_and_device():
    made = multi.compose(source(), {(0,): 3, (1, 2): 4})
    assert made.take(made.labels.sum(1) == 2).table() == {(1, 2): 4}
    assert made.to("cpu").num_classes == 4
    assert made.singles.table() == {(0,): 3}


@pytest.mark.parametrize(
    ("table", "message"),
    [({(0,): 31}, "31 images of class 0, which has 30"), ({(0, 7): 1}, "class 7, which does not")],
)
def test_too_few_sources(table, message):
    with pytest.raises((InputError, RuntimeError), match=message):
        multi.compose(source(), table)


def test_bad_input():
    with pytest.raises(InputError, match="mnist, cifar, grid"):
        multi.compose(source(), {(0,): 1}, recipe="svhn")
    flat = source()
    flat.inputs = flat.inputs.flatten(1)
    with pytest.raises(InputError, match="h, h"):
        multi.compose(flat, {(0,): 1})
    with pytest.raises(InputError, match="cannot have 5"):
        multi.label_set_table(4, {5: 1})
    with pytest.raises(InputError, match="integer"):
        multi.label_set_table(4, {1: [2, 0.5]})
    with pytest.raises(InputError, match="no sample"):
        multi.label_set_table(4, {1: 0})
    with pytest.raises(InputError, match="empty list"):
        multi.label_set_table(4, {2: []})
    for table in ({}, {(1, 1): 2}, {(): 1}, {(0,): 0}):
        with pytest.raises(InputError, match="distinct classes"):
            multi.compose(source(), table)


# SVHN -------------------------------------------------------------------------------------------

NUMBERS = [[1], [2, 5], [10, 3], [7], [7], [7], [4, 4], [1, 2, 3], [1, 2, 3, 4], [9, 9, 8]]


@pytest.fixture
def svhn_root(tmp_path):
    """A folder in SVHN's format 1: PNG files and a digitStruct.mat with MATLAB's references."""
    h5py = pytest.importorskip("h5py")
    from PIL import Image

    folder = tmp_path / "train"
    folder.mkdir()
    with h5py.File(folder / "digitStruct.mat", "w") as file:
        references = file.create_group("#refs#")
        names, boxes = [], []
        for i, digits in enumerate(NUMBERS):
            Image.new("RGB", (40 + i, 20), (25 * i, 100, 255)).save(folder / f"{i + 1}.png")
            codes = np.array([[ord(c)] for c in f"{i + 1}.png"], dtype=np.uint16)
            names.append(references.create_dataset(f"name{i}", data=codes).ref)
            box = references.create_group(f"box{i}")
            for key in ("label", "height", "left", "top", "width"):
                values = digits if key == "label" else [20.0] * len(digits)
                if len(values) == 1:
                    box.create_dataset(key, data=np.array([[float(values[0])]]))
                else:
                    parts = [
                        references.create_dataset(f"{key}{i}_{j}", data=np.array([[float(v)]])).ref
                        for j, v in enumerate(values)
                    ]
                    box.create_dataset(key, data=np.array(parts, dtype=h5py.ref_dtype)[:, None])
            boxes.append(box.ref)
        struct = file.create_group("digitStruct")
        struct.create_dataset("name", data=np.array(names, dtype=h5py.ref_dtype)[:, None])
        struct.create_dataset("bbox", data=np.array(boxes, dtype=h5py.ref_dtype)[:, None])
    return tmp_path


def test_digit_struct(svhn_root):
    found = multi.read_digit_struct(svhn_root / "train" / "digitStruct.mat")
    assert found[0] == ("1.png", [1])
    assert found[2] == ("3.png", [0, 3])
    assert [digits for _, digits in found] == [[d % 10 for d in digits] for digits in NUMBERS]


def test_svhn(svhn_root, monkeypatch):
    found = multi.svhn(svhn_root, "train")
    assert found.inputs.shape == (8, 3, 32, 32)  # without "03" and the four-digit set
    sets = [tuple((row.nonzero().flatten() + 1).tolist()) for row in found.labels]
    assert sets == [(1,), (2, 5), (7,), (7,), (7,), (4,), (1, 2, 3), (8, 9)]
    assert found.num_classes == 9
    assert "1 with a 0, 1 with more digits" in str(found)
    colours = found.inputs[:, :, 5, 5] * 255
    assert torch.allclose(colours[1], torch.tensor([25.0, 100.0, 255.0]), rtol=0, atol=0.6)
    monkeypatch.setattr(multi, "MAX_LABELS", 2)
    capped = multi.svhn(svhn_root, "train", singles_per_class=1)
    assert capped.table() == {(0,): 1, (3,): 1, (6,): 1, (1, 4): 1, (7, 8): 1}


def test_svhn_missing(svhn_root, tmp_path):
    with pytest.raises(InputError, match="format 1"):
        multi.svhn(svhn_root, "test")
    with pytest.raises(InputError, match="train, test, extra"):
        multi.svhn(svhn_root, "validation")
    (svhn_root / "train" / "2.png").unlink()
    with pytest.raises(InputError, match=r"2.png is listed but missing"):
        multi.svhn(svhn_root, "train")
