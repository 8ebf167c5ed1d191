"""Multi-label images: composed from any single-label image set, arbitrarily named, and full SVHN
numbers.

The recipes are those of the multi-label paper's code: images of side h go onto a black canvas of
side 2h, two of them on the diagonal.  Everything is drawn from one generator, so a table of label
sets, a recipe and a seed give the same tensor everywhere.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from nclib import checks, paths
from nclib.deep import data as single
from nclib.results.multi_label import theory

RECIPES = ("mnist", "cifar", "grid")
MAX_LABELS = 3  # of a house number
SOURCES = ("digits", "fashion_mnist", "mnist", "cifar10", "svhn")
_SOURCE_IMAGES = {"digits": 130}  # per class, of which training images are composed; else all


@dataclass(frozen=True)
class MultiLabelData:
    """Images ``inputs (N, C, H, W)`` in [0, 1], multi-hot ``labels (N, K)``, float32; ``left_out``
    says what of the source is not in it."""

    name: str
    inputs: torch.Tensor
    labels: torch.Tensor
    left_out: str = ""

    def __len__(self):
        return len(self.labels)

    def __str__(self):
        shape = "×".join(map(str, self.inputs.shape[1:]))
        sizes = self.labels.sum(1).long()
        parts = ", ".join(f"{int((sizes == m).sum())} with {m}" for m in sizes.unique().tolist())
        text = f"{self.name}: {len(self)} × {shape}, {self.num_classes} classes; labels: {parts}"
        return text + (f"; left out: {self.left_out}" if self.left_out else "")

    @property
    def num_classes(self):
        return self.labels.shape[1]

    def to(self, device):
        """The same data on another device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def take(self, index):
        """The samples with these indices (or this boolean mask), in this order."""
        return replace(self, inputs=self.inputs[index], labels=self.labels[index])

    def keep(self, table):
        """Only the samples whose label set is a key of ``table``."""
        kept = [labels in table for labels in label_tuples(self.labels)]
        return self.take(torch.tensor(kept, device=self.labels.device))

    @property
    def singles(self):
        """Only the samples with one label: what a control that never saw a pair is trained on."""
        return self.take(self.labels.sum(1) == 1)

    def table(self):
        """``{label tuple: samples}``, ordered by size and then by labels."""
        sets, counts = self.labels.unique(dim=0, return_counts=True)
        return dict(sorted(zip(label_tuples(sets), counts.tolist(), strict=True), key=_by_size))


def label_tuples(targets):
    """The label sets of multi-hot rows ``(R, K)`` as tuples of classes."""
    return [tuple(row.nonzero().flatten().tolist()) for row in targets]


def _by_size(item):
    return len(item[0]), item[0]


def label_set_table(K, counts, *, generator=None):
    """``{label tuple: samples}`` for all label sets of the given multiplicities.

    ``counts``: ``{m: n}`` gives each m-subset n samples; ``{m: [n_1, n_2, …]}`` cuts the m-subsets,
    shuffled by ``generator``, into groups of (nearly) equal size with n_1, n_2, … samples each: the
    paper's imbalanced pairs are ``{1: 3100, 2: [500, 50, 5]}``.  Sets with 0 samples are left out.
    """
    K = checks.integer("K", K, 2)
    table = {}
    for m in sorted(counts):
        if checks.integer("multiplicity", m) > K:
            raise checks.InputError(f"a label set of K={K} classes cannot have {m} labels")
        sets, sizes = list(combinations(range(K), m)), counts[m]
        if not isinstance(sizes, list | tuple):
            sizes = [sizes]
        elif not sizes:
            raise checks.InputError(f"counts[{m}] is an empty list")
        elif generator is not None:
            sets = [sets[i] for i in torch.randperm(len(sets), generator=generator).tolist()]
        for size in sizes:
            checks.integer(f"counts[{m}]", size, 0)
        groups = torch.arange(len(sets)) * len(sizes) // len(sets)
        table |= {S: sizes[g] for S, g in zip(sets, groups.tolist(), strict=True) if sizes[g] > 0}
    if not table:
        raise checks.InputError("counts has no sample: give at least one multiplicity a count >= 1")
    return dict(sorted(table.items(), key=_by_size))


def hold_out(table, fraction, *, generator):
    """``(kept table, held-out sets)``: a random ``fraction`` of the pairs taken out."""
    checks.real("fraction", fraction, at_least=0, below=1)
    sets = [S for S in table if len(S) == 2]
    order = torch.randperm(len(sets), generator=generator).tolist()
    unseen = sorted(sets[i] for i in order[: round(fraction * len(sets))])
    return {S: n for S, n in table.items() if S not in set(unseen)}, unseen


def unit_range(train, *others):
    """The same data sets with pixels in [0, 1], black at 0, whatever standardisation they have had.

    Every channel is mapped linearly so that the train part fills [0, 1].
    """
    low = train.inputs.amin((0, 2, 3), keepdim=True)
    width = train.inputs.amax((0, 2, 3), keepdim=True) - low
    parts = [
        replace(part, inputs=((part.inputs - low) / width).clamp(0, 1)) for part in (train, *others)
    ]
    return parts[0] if not others else tuple(parts)


def half_size(data):
    """The same images averaged over 2×2 blocks."""
    return replace(data, inputs=torch.nn.functional.avg_pool2d(data.inputs, 2))


def load(source, *, half=False, seed=0):
    """``(train, test)`` single-label images in [0, 1] of one of :data:`SOURCES`; ``half`` averages
    over 2×2 blocks.  Digits: 130 images per class for training."""
    parts = unit_range(*single.load(source, train_per_class=_SOURCE_IMAGES.get(source), seed=seed))
    return tuple(half_size(part) if half else part for part in parts)


def prepare(source, counts, test_counts, *, recipe, half=False, seed=0):
    """``(train, test)`` multi-label sets from a data set by name, one of :data:`SOURCES`.

    ``counts``, ``test_counts``: samples per label set by multiplicity, as in
    :func:`label_set_table`.  Training images come from the train part of the source, test images
    from its test part.  "svhn" reads full house numbers of up to three different digits from the
    data folder ``SVHN_full``, with at most ``counts[1]`` training images per single digit.
    """
    checks.choice("source", source, SOURCES)
    if source == "svhn":
        root = paths.data() / "SVHN_full"
        train = svhn(root, "train", singles_per_class=counts[1], seed=seed)
        return train, svhn(root, "test")
    parts = load(source, half=half, seed=seed)
    generator, K = torch.Generator().manual_seed(seed), parts[0].num_classes
    tables = [
        label_set_table(K, wanted, generator=generator if isinstance(wanted.get(2), list) else None)
        for wanted in (counts, test_counts)
    ]
    return tuple(
        compose(part, table, recipe=recipe, seed=2 * seed + i)
        for i, (part, table) in enumerate(zip(parts, tables, strict=True))
    )


def arbitrary(source, *, per_class=None, half=False, seed=0):
    """``(train, test)`` in which the ten classes of a data set stand for the label sets of K = 4.

    ``per_class``: training images of each, default all that :func:`load` gives.

    Classes 0-3 are the single labels, 4-9 the pairs in lexicographic order: nothing in the image of
    a pair shows its labels, so a network that never saw it cannot know them.
    """
    names = torch.cat([theory.label_sets(4, m) for m in (1, 2)]).float()
    train, test = load(source, half=half, seed=seed)
    if train.num_classes != len(names):
        raise checks.InputError(f"{source} has {train.num_classes} classes, 10 are needed")
    if per_class is not None:
        train = train.per_class(per_class, generator=torch.Generator().manual_seed(seed))
    return tuple(
        MultiLabelData(
            f"arbitrary {source}", part.inputs, names.to(part.labels.device)[part.labels]
        )
        for part in (train, test)
    )


def require(source, **counts):
    """Say now what :func:`prepare` would say later: for the first cell of a notebook.

    ``counts``: parameter name -> samples per label set, a number or a list; names that begin with
    ``test`` are about the test part.  Raises :class:`~nclib.checks.InputError` naming the parameter
    for counts that the source has not enough images for, and if the source is not here.
    """
    if source == "svhn":
        _h5py()
        for split in ("train", "test"):
            _struct_file(paths.data() / "SVHN_full", split)
        return
    train, test = single.smallest_class(source, _SOURCE_IMAGES.get(source))
    for parameter, wanted in counts.items():
        largest = max(wanted) if isinstance(wanted, list) else wanted
        most = test if parameter.startswith("test") else train
        if largest > most:
            raise checks.InputError(
                f"parameter {parameter} must be at most {most} for {source}: that many images has "
                f"its smallest class; got {largest}"
            )
    single.require(source)


def compose(data, table, *, recipe="mnist", seed=0):
    """Multi-label images from a single-label set: :class:`MultiLabelData` with ``table[S]`` images
    of every label set S, in the order of the table.

    ``data``: ``inputs (n, C, h, h)`` with pixels in [0, 1], ``labels (n,)``, ``num_classes`` (as
    :class:`nclib.deep.data.Data`).  The images of a label set are drawn without replacement from
    each of its classes, anew for every set, and combined by the pixelwise maximum on a black 2h×2h
    canvas.  With k = max(1, h//4) and independent uniform integers in 0..k-1, ``recipe`` is

    ``"mnist"``  single labels bottom right, pairs on the diagonal in random order; every image
                 is then rolled down and right, with wrap-around, by two integers;
    ``"cifar"``  single labels on either end of the diagonal, pairs on both; every image
                 moves along the diagonal towards the centre by one integer;
    ``"grid"``   m distinct quadrants at random; every image moves towards the centre by one integer
                 down and one across.

    Sets of three and four labels always use ``"grid"``; more do not fit.
    """
    checks.choice("recipe", recipe, RECIPES)
    images, K = data.inputs, data.num_classes
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise checks.InputError(f"images must be (n, C, h, h), got {tuple(images.shape)}")
    if not table or any(len(set(S)) < max(1, len(S)) or n < 1 for S, n in table.items()):
        raise checks.InputError(f"a table has label sets of distinct classes, n >= 1; got {table}")
    generator = torch.Generator().manual_seed(seed)
    pools = [(data.labels == k).nonzero().flatten().cpu() for k in range(K)]
    inputs, labels = [], []
    for m in sorted({len(S) for S in table}):
        sets = [(S, n) for S, n in table.items() if len(S) == m]
        picks = torch.cat([_draw(pools, S, n, generator) for S, n in sets])
        target = torch.zeros(len(sets), K).scatter_(1, torch.tensor([S for S, _ in sets]), 1.0)
        labels.append(target.repeat_interleave(torch.tensor([n for _, n in sets]), 0))
        corners = _corners(recipe, m, len(picks), images.shape[2], generator)
        for part, corner in zip(picks.split(4096), corners.split(4096), strict=True):
            inputs.append(_paste(images, part.to(images.device), corner.to(images.device)))
    labels = torch.cat(labels).to(images.device)
    return MultiLabelData(
        f"multi-label {getattr(data, 'name', 'images')}", torch.cat(inputs), labels
    )


def _draw(pools, S, n, generator):
    """``(n, m)`` source indices: column j without replacement from class ``S[j]``."""
    columns = []
    for k in S:
        if not 0 <= k < len(pools) or len(pools[k]) < n:
            have = f"has {len(pools[k])} images" if 0 <= k < len(pools) else "does not exist"
            raise checks.InputError(
                f"label set {S} needs {n} images of class {k}, which {have}; lower the counts or "
                "give more source images"
            )
        columns.append(pools[k][torch.randperm(len(pools[k]), generator=generator)[:n]])
    return torch.stack(columns, 1)


def _corners(recipe, m, n, h, generator):
    """Top-left corners ``(n, m, 2)`` of the m images of n samples."""
    k = max(1, h // 4)

    def draw(*shape):
        return torch.randint(0, k, shape, generator=generator)

    if m > 4:
        raise checks.InputError(f"at most 4 images fit on a canvas, got a label set of {m}")
    if m > 2 or recipe == "grid":
        cells = torch.rand(n, 4, generator=generator).argsort(1)[:, :m]
        ends = torch.stack([cells // 2, cells % 2], 2)
        shift = draw(n, m, 2)
    else:
        first = torch.randint(0, 2, (n, 1), generator=generator)
        if m == 1 and recipe == "mnist":
            first = torch.ones_like(first)
        ends = torch.cat([first, 1 - first], 1)[:, :m, None].expand(n, m, 2)
        if recipe == "mnist":
            return ends * h + draw(n, m, 2)
        shift = draw(n, m, 1)
    return torch.where(ends == 0, shift, h - shift)


def _paste(images, picks, corners):
    """Canvases ``(n, C, 2h, 2h)``: pixelwise maximum of the picked images, wrapping around."""
    h = images.shape[2]
    n, m = picks.shape
    canvas = images.new_zeros(n, 2 * h, 2 * h, images.shape[1])
    steps = torch.arange(h, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    for j in range(m):
        rows = ((corners[:, j, :1] + steps) % (2 * h))[:, :, None]
        columns = ((corners[:, j, 1:] + steps) % (2 * h))[:, None, :]
        patch = images[picks[:, j]].permute(0, 2, 3, 1)
        canvas[sample, rows, columns] = torch.maximum(canvas[sample, rows, columns], patch)
    return canvas.permute(0, 3, 1, 2).contiguous()


# SVHN full numbers ------------------------------------------------------------------------------


def svhn(root, split, *, singles_per_class=None, seed=0):
    """Street-view house numbers (format 1, full numbers) as a multi-label set of the digits 1-9.

    ``root/split`` (``split`` "train", "test" or "extra") holds ``1.png, 2.png, …`` and
    ``digitStruct.mat``.  As in the paper: numbers with a 0 are dropped, the label set is the
    set of distinct digits (class k is digit k+1), sets above :data:`MAX_LABELS` are dropped, and of
    every digit at most ``singles_per_class`` images with that digit alone are kept (at random; the
    paper's 543).  Images are resized to 32 × 32.  Needs the package h5py.
    """
    checks.choice("split", split, ("train", "test", "extra"))
    folder = Path(root) / split
    every = [(n, sorted(set(digits))) for n, digits in read_digit_struct(_struct_file(root, split))]
    clean = [number for number in every if number[1] and 0 not in number[1]]
    numbers = [number for number in clean if len(number[1]) <= MAX_LABELS]
    left_out = f"{len(every) - len(clean)} with a 0, {len(clean) - len(numbers)} with more digits"
    if singles_per_class is not None:
        before = len(numbers)
        numbers = _cap_singles(
            numbers, checks.integer("singles_per_class", singles_per_class), seed
        )
        left_out += f", {before - len(numbers)} singles"
    if not numbers:
        raise checks.InputError(
            f"{folder} has no number without a 0 and with <= {MAX_LABELS} digits"
        )
    labels = torch.zeros(len(numbers), 9)
    for row, (_, digits) in enumerate(numbers):
        labels[row, [digit - 1 for digit in digits]] = 1.0
    inputs = torch.stack([_read_image(folder / name, 32) for name, _ in numbers])
    return MultiLabelData(f"SVHN {split}", inputs, labels, left_out)


def _struct_file(root, split):
    folder = Path(root) / split
    if not (folder / "digitStruct.mat").exists():
        raise checks.InputError(
            f"no SVHN numbers at {folder}: unpack {split}.tar.gz of SVHN's format 1 there, so that "
            f"{folder / 'digitStruct.mat'} and {folder / '1.png'} exist"
        )
    return folder / "digitStruct.mat"


def _h5py():
    try:
        import h5py
    except ImportError:
        raise checks.InputError(
            "reading SVHN's digitStruct.mat needs the package h5py: pip install h5py"
        ) from None
    return h5py


def read_digit_struct(path):
    """``[(file name, digits), …]`` of a format-1 ``digitStruct.mat`` (MATLAB 7.3, which is HDF5).

    The file stores the digit 0 as 10; here it is 0.
    """
    h5py = _h5py()
    found = []
    with h5py.File(path, "r") as file:
        struct = file["digitStruct"]
        for name, box in zip(struct["name"][:, 0], struct["bbox"][:, 0], strict=True):
            text = "".join(chr(code) for code in file[name][:].ravel())
            label = file[box]["label"]
            values = label[:].ravel()
            if label.dtype == h5py.ref_dtype:  # several digits: one reference each
                values = [file[reference][0, 0] for reference in values]
            found.append((text, [int(value) % 10 for value in values]))
    return found


def _cap_singles(numbers, most, seed):
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist()
    left = dict.fromkeys(range(1, 10), most)
    kept = set()
    for i in order:
        digits = numbers[i][1]
        if len(digits) == 1:
            left[digits[0]] -= 1
            if left[digits[0]] < 0:
                continue
        kept.add(i)
    return [number for i, number in enumerate(numbers) if i in kept]


def _read_image(path, size):
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.functional import resize

    if not path.exists():
        raise checks.InputError(f"SVHN image {path.name} is listed but missing in {path.parent}")
    image = decode_image(str(path), ImageReadMode.RGB).float() / 255
    return resize(image, [size, size], antialias=True)
