"""Real classes in numbers, similar images, folders, words."""

from collections import Counter

import pytest
import torch
from torchvision.datasets import FashionMNIST

from nclib import checks
from nclib.deep import data as images
from nclib.results.large_class import data, experiments, nets


def test_moved_classes_are_what_they_say():
    train, test = data.moved("digits", per_class=3, test_per_class=2, seed=1)
    assert len(train) == 360 and len(test) == 240 and train.num_classes == 120
    assert torch.bincount(train.labels).tolist() == [3] * 120
    plain = train.inputs[train.labels == 7]
    image = plain[0, 0]
    rolled = train.inputs[train.labels == 17][0, 0]
    assert torch.equal(rolled, torch.cat([image[4:], image[:4]]))  # half the image down
    negative = train.inputs[train.labels == 37][0, 0]
    assert torch.equal(negative, -image)
    turned = train.inputs[train.labels == 67][0, 0]
    assert torch.equal(turned, image.flip(1).T)  # a quarter turn
    whole = images.load("digits", train_per_class=data.DIGITS, seed=1)
    for part, of in zip((train, test), whole, strict=True):
        known = {tuple(row.tolist()) for row in of.inputs.flatten(1)}
        assert {tuple(row.tolist()) for row in part.inputs[part.labels < 10].flatten(1)} <= known


def test_similar_images():
    train, test, names = data.similar_images("digits", per_class=5)
    assert len(train) == 20 and names == ("1", "8", "0", "6") and train.inputs.shape[1] == 64
    whole, rest = images.load("digits", train_per_class=5)
    assert len(test) == sum(int((rest.labels == k).sum()) for k in (1, 8, 0, 6))
    eights = whole.inputs[whole.labels == 8].flatten(1)
    own = train.inputs[train.labels == 1]
    assert torch.equal(own.sort(0).values, eights.sort(0).values)
    with pytest.raises(checks.InputError, match="dataset"):
        data.similar_images("mnist")


def test_similar_classes_have_their_official_names():
    official = {"digits": "0123456789", "fashion_mnist": FashionMNIST.classes}
    official["cifar10"] = {1: "automobile", 3: "cat", 5: "dog", 9: "truck"}
    for name, (kept, names) in data.SIMILAR.items():
        for k, word in zip(kept, names, strict=True):
            assert word.lower() in official[name][k].lower()


TEXT = list("abcabdabcabcxyzxyz")


def test_next_words_of_a_small_text(monkeypatch):
    monkeypatch.setattr(data, "CONTEXT", 2)
    found = data.next_words(TEXT, vocabulary=3)
    words = [word for word, _ in Counter(TEXT).most_common()]
    assert found.num_classes == 3 and int(found.labels.max()) == 2
    first = [words[i] for i in (*found.inputs[0], found.labels[0])]
    assert first == ["a", "b", "c"]
    with pytest.raises(checks.InputError, match="different words"):
        data.next_words(TEXT, vocabulary=100)
    with pytest.raises(checks.InputError, match="too short"):
        data.next_words(TEXT[:3], vocabulary=2)


def test_balanced_words_have_one_follower_and_equal_counts(monkeypatch):
    monkeypatch.setattr(data, "CONTEXT", 4)
    monkeypatch.setattr(data, "PER_WORD", 3)
    tokens = data.words()[:6000]
    followers = {}
    ids = {word: i for i, (word, _) in enumerate(Counter(tokens).most_common())}
    for i in range(len(tokens) - 4):
        context = tuple(ids[word] for word in tokens[i : i + 4])
        followers.setdefault(context, set()).add(ids[tokens[i + 4]])
    count = Counter(word for found in followers.values() if len(found) == 1 for word in found)
    chosen = [word for word in sorted(count) if count[word] >= 3]
    K = len(chosen)
    found = data.balanced_words(tokens, vocabulary=K)
    assert torch.bincount(found.labels).tolist() == [3] * K
    for context, label in zip(found.inputs.tolist(), found.labels.tolist(), strict=True):
        assert followers[tuple(context)] == {chosen[label]}
    assert len(set(map(tuple, found.inputs.tolist()))) == 3 * K
    assert not found.inputs.equal(data.balanced_words(tokens, vocabulary=K, seed=1).inputs)
    with pytest.raises(checks.InputError, match="unambiguous contexts"):
        data.balanced_words(tokens, vocabulary=K + 1)


def test_spoiled_images_are_blurred_and_noisy(monkeypatch):
    _, test = images.load("digits")
    spoiled = data.spoiled(test).inputs
    assert not spoiled.equal(data.spoiled(test, seed=1).inputs)
    monkeypatch.setattr(data, "NOISE", 0.0)
    blurred = data.spoiled(test).inputs
    assert float(blurred[0, 0, 3, 3]) == pytest.approx(float(test.inputs[0, 0, 2:5, 2:5].mean()))
    assert float((spoiled - blurred).std()) == pytest.approx(0.5, rel=0.02)


def test_image_folder(tmp_path):
    from PIL import Image

    for k, name in enumerate(("ann", "bob")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (20, 14), (40 * k, 10 * i, 0)).save(tmp_path / name / f"{i}.png")
    faces, test = data.image_folder(tmp_path, size=8, test_share=0.2)
    assert faces.inputs.shape == (8, 3, 8, 8) and faces.inputs.dtype == torch.uint8
    assert len(test) == 2 and faces.num_classes == 2
    layer = nets.Standardize(faces.inputs)
    assert abs(float(layer(faces.inputs)[:, 0].mean())) < 1e-5
    build = experiments.builder("resnet18", faces, 3)
    assert build()(faces.inputs[:2]).shape == (2, 2)
    with pytest.raises(checks.InputError, match="one sub-folder of images per class"):
        data.image_folder(tmp_path / "missing", size=8, test_share=0.2)
    with pytest.raises(checks.InputError, match="resnet18"):
        experiments.require("folder", {}, folder=str(tmp_path), architecture="mlp")
    with pytest.raises(checks.InputError, match="say many_dataset=folder"):
        experiments.require("digits", {}, folder=str(tmp_path))
    experiments.require("digits x 12", {"many_per_class": 130})
    for count in (None, 131):
        with pytest.raises(checks.InputError, match="parameter many_per_class must be a number"):
            experiments.require("digits x 12", {"many_per_class": count})


def test_as_many_images_as_the_smallest_class_of_the_train_part_has(monkeypatch):
    monkeypatch.setattr(images, "require", lambda name: None)  # is not here
    experiments.require("mnist x 12", {"n": 5421})
    with pytest.raises(checks.InputError, match="at most 5421"):
        experiments.require("mnist x 12", {"n": 5422})
