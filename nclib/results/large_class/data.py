"""Data of result 4: many real classes, pairs of similar classes, image folders, words."""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch

from nclib import checks
from nclib.deep import data as images
from nclib.deep.data import Data

CONTEXT, PER_WORD = 6, 5  # words before the one to predict; contexts of each balanced word
MOTIONS = 12  # what `moved` does to each image
NOISE = 0.5  # standard deviation of what `spoiled` adds
DIGITS = 130  # digits of each kind to train on; the smallest kind then leaves 44 for the test
SIMILAR = {  # data set -> four of its classes, of which the first two and the last two are alike
    "fashion_mnist": ((6, 0, 7, 9), ("shirt", "T-shirt", "sneaker", "boot")),
    "digits": ((1, 8, 0, 6), ("1", "8", "0", "6")),
    "cifar10": ((1, 9, 3, 5), ("automobile", "truck", "cat", "dog")),
}


def moved(name, *, per_class, test_per_class, seed=0):
    """``(train, test)`` with 120 real classes: ten kinds of images times twelve motions.

    Class ``10 m + k`` is kind k under motion m: a quarter turn or none, the negative or not, and a
    cyclic shift by half the image down, to the right, or none.  Each part shows its ``per_class``
    images of a kind in all motions; no image is in both parts.
    """
    generator = torch.Generator().manual_seed(seed)
    limit = DIGITS if name == "digits" else None
    parts = images.load(name, train_per_class=limit, seed=seed)
    sizes = (per_class, test_per_class)
    return tuple(
        _moved(part.per_class(n, generator=generator)) for part, n in zip(parts, sizes, strict=True)
    )


def _moved(part):
    half, inputs = part.inputs.shape[-1] // 2, []
    for turn in (0, 1):
        for sign in (1, -1):
            for shift in ((0, 0), (half, 0), (0, half)):
                rolled = torch.roll(sign * part.inputs, shift, (2, 3))
                inputs.append(torch.rot90(rolled, turn, (2, 3)))
    labels = [part.labels + part.num_classes * m for m in range(MOTIONS)]
    count = MOTIONS * part.num_classes
    return Data(f"{part.name} x {MOTIONS}", torch.cat(inputs), torch.cat(labels), count)


def similar_images(name, *, per_class=200, seed=0):
    """``(train, test, names)``: the four classes of :data:`SIMILAR` as rows of pixels.

    Classes 0 and 1, and 2 and 3, are similar.
    """
    kept, names = SIMILAR[checks.choice("dataset", name, SIMILAR)]
    kept, parts = torch.tensor(kept), []
    limit = per_class if name == "digits" else None
    generator = torch.Generator().manual_seed(seed)
    for part, size in zip(
        images.load(name, train_per_class=limit, seed=seed), (per_class, None), strict=True
    ):
        chosen = torch.isin(part.labels, kept).nonzero().flatten()
        labels = (part.labels[chosen, None] == kept).long().argmax(1)
        part = Data(f"four of {name}", part.inputs[chosen].flatten(1), labels, 4)
        parts.append(part if size is None else part.per_class(size, generator=generator))
    return *parts, names


def image_folder(path, *, size, test_share, seed=0):
    """``(train, test)`` of a folder with one sub-folder of images per class, as uint8 tensors.

    For face identities and the like: images are resized and cropped to ``size`` pixels and kept as
    bytes ``(N, 3, size, size)``; put :class:`~nets.Standardize` in front of the network.
    """
    from torchvision import transforms

    checks.real("test_share", test_share, above=0, below=1)
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
    folder = open_folder(path, transforms.Compose(steps))
    pixels = torch.stack([image for image, _ in folder])
    data = Data("image folder", pixels, torch.tensor(folder.targets), len(folder.classes))
    return data.split(1 - test_share, generator=torch.Generator().manual_seed(seed))


def open_folder(path, transform=None):
    """torchvision's ``ImageFolder``, nothing read yet.

    Raises :class:`~nclib.checks.InputError` if there are not at least two sub-folders of images.
    """
    from torchvision import datasets

    try:
        folder = datasets.ImageFolder(path, transform)
        if len(folder.classes) < 2:
            raise FileNotFoundError("a single class")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise checks.InputError(
            f"no image folder at {str(path)!r} ({error}); expected one sub-folder of images per "
            "class"
        ) from None
    return folder


def words():
    """The language reference inside every Python installation: lower-case words and marks in order.

    About 80 000 (``pydoc_data.topics``), a little different from one Python version to the next.
    """
    from pydoc_data import topics

    text = "\n".join(topics.topics[key] for key in sorted(topics.topics))
    return re.findall(r"[a-z]+|[.,;:()]", text.lower())


def next_words(tokens, *, vocabulary):
    """Next-word prediction as it is: contexts ``(N, CONTEXT)`` of word ids, the word that follows.

    Classes 0..K-1 are the ``vocabulary`` most frequent words; rarer words keep their ids in
    contexts but are never a target.  Classes are very unequal, and the same context may be followed
    by different words: two hypotheses of the theory fail.
    """
    K = checks.integer("vocabulary", vocabulary, 2)
    windows = _windows(tokens)
    checks.require(
        int(windows.max()) + 1 >= K,
        f"the text has {int(windows.max()) + 1} different words, vocabulary={K} were asked for",
    )
    windows = windows[windows[:, -1] < K]
    return Data("text as it is", windows[:, :-1].clone(), windows[:, -1].clone(), K)


def balanced_words(tokens, *, vocabulary, seed=0):
    """The same with the hypotheses of the theory: ``PER_WORD`` contexts of each of K words.

    Only contexts that occur with a single follower count, each once; the K words are the most
    frequent ones that have enough of them.
    """
    K = checks.integer("vocabulary", vocabulary, 2)
    windows = _windows(tokens).unique(dim=0)
    _, which, followers = windows[:, :-1].unique(dim=0, return_inverse=True, return_counts=True)
    windows = windows[followers[which] == 1]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    windows = windows[order]
    targets = windows[:, -1]
    chosen = (torch.bincount(targets) >= PER_WORD).nonzero().flatten()[:K]
    checks.require(
        len(chosen) == K,
        f"only {len(chosen)} words have {PER_WORD} unambiguous contexts, vocabulary={K} were asked "
        "for",
    )
    rows = torch.cat([windows[targets == word][:PER_WORD] for word in chosen])
    labels = (rows[:, -1:] == chosen).long().argmax(1)
    return Data("balanced contexts", rows[:, :-1].clone(), labels, K)


def _windows(tokens):
    """All ``(N, CONTEXT + 1)`` runs of word ids, the most frequent word having id 0."""
    if len(tokens) <= CONTEXT + 1:
        raise checks.InputError(
            f"a text of {len(tokens)} words is too short for contexts of {CONTEXT}"
        )
    index = {word: i for i, (word, _) in enumerate(Counter(tokens).most_common())}
    return torch.tensor([index[word] for word in tokens]).unfold(0, CONTEXT + 1, 1)


def spoiled(data, *, seed=0):
    """The same classes out of distribution: images ``(N, C, H, W)`` blurred 3 x 3, with noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.nn.functional.avg_pool2d(data.inputs, 3, stride=1, padding=1)
    inputs = inputs + NOISE * torch.randn(inputs.shape, generator=generator).to(inputs)
    return Data(f"{data.name}, spoiled", inputs, data.labels, data.num_classes)


def character_head():
    """Last layer ``(6625, 120)`` of the pretrained text recogniser that ships in a package.

    Raises :class:`~nclib.checks.InputError` without ``pip install onnx`` and ``pip install
    --no-deps rapidocr-onnxruntime``; nothing of the latter is executed.
    """
    shipped = find_spec("rapidocr_onnxruntime")
    checks.require(
        shipped and find_spec("onnx"),
        "pretrained=True needs the packages rapidocr-onnxruntime and onnx: "
        "pip install onnx, then pip install --no-deps rapidocr-onnxruntime",
    )
    import onnx

    (path,) = Path(shipped.submodule_search_locations[0]).glob("models/*rec*.onnx")
    graph = onnx.load(path).graph
    name = [node.input[1] for node in graph.node if node.op_type == "MatMul"][-1]
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.attribute}
    tensors = constants | {tensor.name: tensor for tensor in graph.initializer}
    return torch.tensor(onnx.numpy_helper.to_array(tensors[name])).T.double()
