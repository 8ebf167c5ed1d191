"""Image data sets as one tensor in memory, from scikit-learn and torchvision.

Nothing is downloaded unless asked: a missing set is one error that says how to fetch it and where
it belongs.
"""

import gzip
import hashlib
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nclib import checks, files, paths

# name -> (torchvision class, folder below the data root, classes)
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", 10),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", 10),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", 10),
    "cifar100": ("CIFAR100", "cifar-100-python", 100),
}
NAMES = ("digits", *_TORCHVISION)
# Where Debian's package dataset-fashion-mnist puts the four files.
_LOCAL_COPIES = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_DIGITS_TRAIN = 60  # default images per class in the train part of digits
# name -> images of the smallest class in the train and the test part (digits: in both together)
_SMALLEST_CLASS = {
    "digits": (174, 0),
    "mnist": (5421, 892),
    "fashion_mnist": (6000, 1000),
    "cifar10": (5000, 1000),
    "cifar100": (500, 100),
}


@dataclass(frozen=True)
class Data:
    """Images or vectors and their labels: ``inputs`` float32 ``(N, …)``, ``labels`` ``(N,)``."""

    name: str
    inputs: torch.Tensor
    labels: torch.Tensor
    num_classes: int

    def __len__(self):
        return len(self.labels)

    def __str__(self):
        shape = "×".join(map(str, self.inputs.shape[1:]))
        return f"{self.name}: {len(self)} × {shape}, {self.num_classes} classes"

    def to(self, device):
        """The same data on another device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def flat(self):
        """Inputs as rows ``(N, D)``."""
        return replace(self, inputs=self.inputs.flatten(1))

    def take(self, index):
        """The samples with these indices, in this order."""
        return replace(self, inputs=self.inputs[index], labels=self.labels[index])

    def per_class(self, n, *, generator=None):
        """The first ``n`` samples of each class (at random with a ``generator``), sorted by class.

        ``n`` is one number or a list with one number per class.  Raises
        :class:`~nclib.checks.InputError` if a class has fewer.
        """
        wanted = list(n) if hasattr(n, "__len__") else [n] * self.num_classes
        if len(wanted) != self.num_classes:
            raise checks.InputError(f"{len(wanted)} class sizes for {self.num_classes} classes")
        # On the CPU, where the generator is: the draw is the same on every device.
        order, labels = torch.arange(len(self)), self.labels.cpu()
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        chosen = []
        for k, count in enumerate(wanted):
            count = checks.integer("samples per class", count, 0)
            own = order[labels[order] == k]
            if len(own) < count:
                raise checks.InputError(
                    f"{self.name} has {len(own)} samples of class {k}, {count} were asked for"
                )
            chosen.append(own[:count])
        return self.take(torch.cat(chosen))

    def split(self, fraction, *, generator):
        """Two random parts, the first with ``fraction`` of the samples."""
        checks.real("fraction", fraction, above=0, below=1)
        order = torch.randperm(len(self), generator=generator)
        cut = round(fraction * len(self))
        return self.take(order[:cut]), self.take(order[cut:])


def load(name, *, train_per_class=None, seed=0):
    """``(train, test)`` of the data set called ``name``, one of :data:`NAMES`.

    ``digits`` (8×8, scikit-learn, embedded) has no official split: ``train_per_class`` (default
    60) images of each class are drawn with ``seed``, the rest is the test part.  For the others it
    limits the official train part.  Inputs are ``(N, C, H, W)``, standardised by the scalar mean
    and standard deviation of the train part (digits, MNIST, Fashion-MNIST) or per channel (CIFAR).

    Raises :class:`~nclib.checks.InputError` if the files are missing (how to fetch them, where
    they belong) or damaged.
    """
    checks.choice("dataset", name, NAMES)
    if train_per_class is not None:
        checks.integer("train_per_class", train_per_class)
    generator = torch.Generator().manual_seed(seed)
    if name == "digits":
        train, test = _digits(train_per_class or _DIGITS_TRAIN, generator)
    else:
        train, test = (_torchvision(name, part) for part in (True, False))
        if train_per_class is not None:
            train = train.per_class(train_per_class, generator=generator)
    note(name, checksum(train, test))
    dims = (0, 2, 3) if name.startswith("cifar") else (0, 1, 2, 3)
    mean = train.inputs.mean(dims, keepdim=True)
    std = train.inputs.std(dims, keepdim=True)
    return tuple(replace(part, inputs=(part.inputs - mean) / std) for part in (train, test))


_USED = {}


def note(name, digest):
    """Remember that this process used the data set ``name`` with this checksum."""
    _USED[name] = digest


def used():
    """Data sets that this process used, name -> checksum, sorted: for a run's manifest."""
    return dict(sorted(_USED.items()))


def checksum(*parts):
    """SHA-256 (16 hex digits) of inputs and labels, for manifests."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.inputs.contiguous().numpy(force=True).tobytes())
        digest.update(part.labels.contiguous().numpy(force=True).tobytes())
    return digest.hexdigest()[:16]


def _digits(per_class, generator):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    whole = Data("digits", inputs, torch.tensor(bunch.target), 10)
    order = torch.randperm(len(whole), generator=generator)
    whole = whole.take(order)
    rank = torch.zeros(len(whole), dtype=torch.int64)
    for k in range(10):
        own = whole.labels == k
        rank[own] = torch.arange(int(own.sum()))
    smallest = int(torch.bincount(whole.labels).min())
    if not 1 <= per_class < smallest:
        raise checks.InputError(
            f"digits: train_per_class must be in 1..{smallest - 1}, got {per_class}"
        )
    return whole.take(rank < per_class), whole.take(rank >= per_class)


def _torchvision(name, train):
    dataset = _open(name, train)
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Data(name, pixels.float() / 255, labels.long(), _TORCHVISION[name][2])


def _open(name, train):
    """torchvision's data set; one error that says what to do if it is missing or damaged."""
    from torchvision import datasets

    kind, folder, _ = _TORCHVISION[name]
    root = paths.data()
    try:
        dataset = getattr(datasets, kind)(root, train=train, download=False)
        if len(dataset.data) != len(dataset.targets):
            raise ValueError(f"{len(dataset.data)} images, {len(dataset.targets)} labels")
        return dataset
    except Exception as error:
        here = root / folder
        broken = f"damaged ({error}); delete {here} and fetch it again"
        state = broken if here.exists() else f"not at {here}"
        raise checks.InputError(
            f"data set {name} is {state}: run `nclib data fetch {name}`, or put torchvision's "
            f"files for {kind} into {here}"
        ) from None


def smallest_class(name, train_per_class=None):
    """``(train, test)``: images of the smallest class in the parts that :func:`load` gives."""
    train, test = _SMALLEST_CLASS[checks.choice("dataset", name, NAMES)]
    if name == "digits":
        wanted = checks.integer("train_per_class", train_per_class or _DIGITS_TRAIN)
        checks.real("train_per_class", wanted, below=train)
        return wanted, train - wanted
    return min(train, train_per_class or train), test


def require(name, train_per_class=None, *, taken=None):
    """Say now what :func:`load` would say later: for the first cell of a notebook.

    ``train_per_class`` and ``taken``: name of a parameter -> its value, images per class (a list:
    the largest counts; None: all).  The first are limits for :func:`load`, the others are taken
    from the train part of ``load(name)``.  Raises :class:`~nclib.checks.InputError` if a class is
    too small, and if the data set is not here or damaged.
    """
    whole = _SMALLEST_CLASS[checks.choice("dataset", name, NAMES)][0]
    limit = whole - 1 if name == "digits" else whole  # the rest of digits is the test part
    for wanted, most in ((train_per_class, limit), (taken, smallest_class(name)[0])):
        for parameter, count in (wanted or {}).items():
            count = max(count) if isinstance(count, list) else count
            if count is not None and count > most:
                raise checks.InputError(
                    f"parameter {parameter} must be at most {most} for {name}, got {count}"
                )
    if name != "digits":
        for train in (True, False):
            _open(name, train)


def fetch(name, *, source=None):
    """Bring the data set ``name`` to its place below :func:`nclib.paths.data`; returns its folder.

    ``source``: a folder that holds the four IDX files, gzipped or not (MNIST, Fashion-MNIST).  By
    default Debian's ``dataset-fashion-mnist`` is used if it is installed, else torchvision
    downloads the files.
    """
    checks.choice("dataset", name, NAMES)
    if name == "digits":
        return None  # ships with scikit-learn
    kind, folder, _ = _TORCHVISION[name]
    root = paths.data()
    source = Path(source) if source is not None else _LOCAL_COPIES.get(name)
    if source is not None and source.exists():
        _copy_idx(source, root / folder)
    else:
        from torchvision import datasets

        try:
            for train in (True, False):
                getattr(datasets, kind)(root, train=train, download=True)
        except Exception as error:
            raise checks.InputError(
                f"could not download {name} ({error}); put torchvision's files for {kind} into "
                f"{root / folder}, or pass --from FOLDER with the IDX files"
            ) from None
    check(name)
    return root / folder


def _copy_idx(source, target):
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]
    for stem in stems:
        name = f"{stem}-idx{3 if 'images' in stem else 1}-ubyte"
        packed, plain = source / f"{name}.gz", source / name
        if not packed.exists() and not plain.exists():
            raise checks.InputError(f"{source} holds neither {name}.gz nor {name}")
        opener = gzip.open if packed.exists() else open
        with (
            opener(packed if packed.exists() else plain, "rb") as read,
            files.replacing(target / name) as temporary,
            open(temporary, "wb") as write,
        ):
            shutil.copyfileobj(read, write)


def check(name):
    """``(train, test)`` sizes and checksum of a data set on disk, as one line of text."""
    checks.choice("dataset", name, NAMES)
    if name == "digits":
        train, test = _digits(_DIGITS_TRAIN, torch.Generator().manual_seed(0))
    else:
        train, test = (_torchvision(name, part) for part in (True, False))
    return f"{train}; test {len(test)}; sha256 {checksum(train, test)}"


def crop_and_flip(inputs, generator):
    """Random crop after zero-padding by four pixels, and horizontal flip: ``(B, C, H, W)``.

    On the device of the inputs; drawn from ``generator``, which lives on the CPU.
    """
    (B, _, H, W), pad = inputs.shape, 4
    draw = partial(torch.randint, size=(B,), generator=generator)
    down, right, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    padded = torch.nn.functional.pad(inputs, (pad, pad, pad, pad))
    rows = (down[:, None] + torch.arange(H)).to(inputs.device)
    columns = right[:, None] + torch.arange(W)
    columns = torch.where(flip[:, None], columns.flip(1), columns).to(inputs.device)
    batch = torch.arange(B, device=inputs.device)
    # One gather: padded[b, :, rows[b], columns[b]] for every sample.
    picked = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
