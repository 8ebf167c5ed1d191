"""Input checks: one clear error that says what came, what was expected, and the way out.

Every public function of nclib validates through these helpers, so a mistake reads the same
everywhere.  All of them raise :class:`InputError`, a ``ValueError``.  PyTorch is imported by the
checks that need it: the command line and the batch runner, which do not, start ten times faster.
"""

import math
import re
from numbers import Integral, Real


class InputError(ValueError):
    """A value that nclib cannot work with; the message names it and says what to do."""


def require(condition, message):
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def integer(name, value, minimum=1):
    """``value`` as an int, at least ``minimum``; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise InputError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def real(name, value, *, above=None, at_least=None, below=None, at_most=None):
    """``value`` as a finite float inside the given (open or closed) bounds."""
    try:
        finite = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise InputError(f"{name} must be a finite number, got {value!r}")
    for bound, broken, word in (
        (above, above is not None and value <= above, "greater than"),
        (at_least, at_least is not None and value < at_least, "at least"),
        (below, below is not None and value >= below, "less than"),
        (at_most, at_most is not None and value > at_most, "at most"),
    ):
        if broken:
            raise InputError(f"{name} must be {word} {bound}, got {value}")
    return float(value)


def choice(name, value, accepted):
    """``value`` if it is one of ``accepted``; the error lists them all."""
    if value not in accepted:
        raise InputError(f"{name} must be one of {', '.join(map(str, accepted))}; got {value!r}")
    return value


def tensor(name, value):
    """``value`` as a dense tensor; Python numbers and lists stay float64, which torch would round.

    Arrays that torch cannot read as they lie (foreign byte order, negative strides, read-only,
    sparse, data frames, extended precision) are copied.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value if value.layout == torch.strided else value.to_dense()
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        try:
            return torch.stack([torch.as_tensor(v) for v in value])
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{name} cannot be read as an array: {error}") from None
    value = _array(name, value)
    if value.dtype.kind == "O":  # such as nullable columns of pandas
        try:
            value = value.astype(np.float64)
        except (ValueError, TypeError):
            pass
    if value.dtype.kind not in "biufc":
        raise InputError(f"{name} must hold numbers, got an array of {value.dtype}")
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    if not value.flags.writeable or any(stride < 0 for stride in value.strides):
        value = value.copy()
    return torch.as_tensor(value)


def _array(name, value):
    """``value`` as a numpy array, of whatever it holds."""
    import numpy as np

    if hasattr(value, "toarray"):  # sparse, of scipy
        value = value.toarray()
    if np.ma.is_masked(value):
        raise InputError(f"{name} has masked entries; leave those samples out")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read as an array: {error}") from None


def matrix(name, value, *, rows=None, columns=None, dtype=None):
    """``value`` as a finite 2-d floating tensor of the given size.

    Lists and numpy arrays are converted; integers become float64; half precision is upcast to
    float32, because collapse lives far below its rounding error.
    """
    import torch

    value = tensor(name, value)
    if value.ndim != 2:
        maps = "; pool maps (B, C, H, W) with .mean((2, 3)), or take their positions as samples"
        raise InputError(
            f"{name} must be a matrix (rows, columns), got shape {tuple(value.shape)}"
            + maps * (value.ndim == 4)
        )
    if value.is_complex():
        raise InputError(f"{name} must hold real numbers, got {value.dtype}")
    if not value.is_floating_point():
        value = value.to(torch.float64)
    elif torch.finfo(value.dtype).bits < 32:
        value = value.float()
    for axis, wanted, word in ((0, rows, "rows"), (1, columns, "columns")):
        if wanted is not None and value.shape[axis] != wanted:
            raise InputError(f"{name} must have {wanted} {word}, got shape {tuple(value.shape)}")
    if value.shape[1] == 0:
        raise InputError(f"{name} is empty: it has no column")
    finite(name, value)
    return value.to(dtype) if dtype else value


def finite(name, value):
    """Raise if the tensor ``value`` holds NaN or infinity; the error counts and locates them."""
    import torch

    # A sum is finite only if every entry is (overflow aside): one cheap pass for the usual case.
    if value.numel() and not torch.isfinite(value.sum()):
        bad = ~torch.isfinite(value)
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise InputError(
                f"{name} has {int(bad.sum())} NaN or infinite values of {value.numel()} (first at "
                f"index {where}); drop those samples, or look at the training that made them"
            )
    return value


def vector(name, value, length, dtype=None):
    """``value`` as a finite 1-d floating tensor with ``length`` entries."""
    import torch

    value = tensor(name, value)
    if tuple(value.shape) != (length,):
        raise InputError(f"{name} must have shape ({length},), got {tuple(value.shape)}")
    value = value if value.is_floating_point() else value.to(torch.float64)
    finite(name, value)
    return value.to(dtype) if dtype else value


def labels(value, num_classes=None, *, length=None, name="labels"):
    """``(labels, K)``: labels as an int64 vector with entries in 0..K-1.

    Accepts class indices (integers, integral floats) of shape ``(N,)`` or ``(N, 1)``; booleans, two
    classes; one-hot rows ``(N, K)``; and class names, see :func:`named`.  ``num_classes`` is K or
    the list of the K names in order; ``None`` takes ``K = max + 1``, or the number of names.

    Raises :class:`InputError` for anything else.
    """
    import torch

    value, names = named(value, num_classes, name=name)
    K = num_classes if names is None else len(names)
    value = tensor(name, value)
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim == 2 and one_hot(value):
        if K is not None and integer("num_classes", K, 2) != value.shape[1]:
            raise InputError(f"{name} are one-hot rows of {value.shape[1]} classes, expected {K}")
        K, value = value.shape[1], value.to(torch.uint8).argmax(1)
    if value.ndim != 1:
        raise InputError(
            f"{name} must be a vector of class indices or one-hot rows, got shape "
            f"{tuple(value.shape)}; for soft labels use targets.argmax(1), for several labels per "
            "sample nclib.metrics.multi_label_metrics"
        )
    if length is not None and len(value) != length:
        raise InputError(f"{name} has {len(value)} entries for {length} samples")
    if value.numel() == 0:
        raise InputError(f"{name} is empty: there is no sample")
    if value.dtype == torch.bool and K is None:
        K = 2
    fractional = value.is_floating_point() and not bool((value == value.round()).all())
    if fractional or value.is_complex():
        raise InputError(f"{name} must be integer class indices, got dtype {value.dtype}")
    value = value.long()
    low, high = (int(v) for v in value.aminmax())
    if K is None:
        if high >= max(len(value), 2**20):
            raise InputError(
                f"{name} go up to {high} for {len(value)} samples: relabel the classes 0..K-1 "
                "without gaps, numpy.unique(labels, return_inverse=True)[1] does it"
            )
        K = high + 1
    elif names is None:
        integer("num_classes", K, 2)
    if low < 0 or high >= K:
        raise InputError(
            f"{name} must lie in 0..{K - 1}, found {low if low < 0 else high}"
            + (" (padding? leave those samples out)" if low < 0 else "")
        )
    return value, K


def named(value, num_classes=None, *, name="labels"):
    """``(indices, names)``: labels that are texts as class indices, and the K names in order.

    Texts are numbered as the list ``num_classes`` is, or as the categories of a pandas
    ``Categorical`` are, else in sorted order (that of torchvision's ``ImageFolder`` and of
    scikit-learn's ``LabelEncoder``).  Everything else comes back as it is, with ``names=None``;
    texts of digits are indices.

    Raises :class:`InputError` for unknown names, or if K is given as a number and not all K names
    occur: their numbers would be a guess.
    """
    import numpy as np
    import torch

    names = None if num_classes is None or isinstance(num_classes, Integral) else num_classes
    if names is not None:
        listed = isinstance(names, list | tuple) or hasattr(names, "tolist") and names.ndim == 1
        if not listed or not all(isinstance(n, str) for n in names):
            raise InputError(f"num_classes must be an integer or a list of names, got {names!r}")
        names = list(names)
        if len(set(names)) < max(2, len(names)):
            raise InputError(f"class names must be at least two, all different; got {names}")
    tensors = isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value)
    if tensors or isinstance(value, torch.Tensor):
        return value, names
    categories = getattr(getattr(value, "dtype", None), "categories", None)
    value = _array(name, value)
    if value.dtype.kind not in "OUST":
        return value, names
    flat = [v.decode() if isinstance(v, bytes) else v for v in value.ravel().tolist()]
    if not any(isinstance(v, str) for v in flat):
        return value, names
    missing = sum(not isinstance(v, str) for v in flat)
    if missing:
        raise InputError(f"{name} has {missing} entries that are no names; drop or fill those")
    if names is None and all(re.fullmatch(r"\s*[+-]?\d+\s*", v) for v in flat):
        return np.array([int(v) for v in flat]).reshape(value.shape), None
    if names is None:
        names = sorted(set(flat)) if categories is None else [str(c) for c in categories]
        if num_classes is not None and integer("num_classes", num_classes, 2) != len(names):
            raise InputError(
                f"{name} are names of {len(names)} classes, expected {num_classes}: which row of "
                "the classifier is whose? Pass num_classes=[the names in order], or indices"
            )
    place = {known: i for i, known in enumerate(names)}
    unknown = sorted({v for v in flat if v not in place})
    if unknown:
        raise InputError(f"{name} holds {', '.join(unknown[:5])}, which is none of the classes")
    return np.array([place[v] for v in flat]).reshape(value.shape), names


def one_hot(value):
    """Whether the rows of ``value (N, K)`` are one-hot."""
    return bool(((value == 0) | (value == 1)).all()) and bool((value.sum(1) == 1).all())


def class_counts(labels, num_classes):
    """Samples per class, int64 ``(K,)``; every class must occur."""
    import torch

    return nonempty(torch.bincount(labels, minlength=num_classes))


def nonempty(counts, hint="pass samples of every class"):
    """The samples per class ``(K,)``, none of which may be 0.  ``hint``: another way out."""
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"class {', '.join(map(str, empty[:8]))}{'…' if len(empty) > 8 else ''} has no sample; "
            f"relabel the classes 0..K-1 without gaps, or {hint}"
        )
    return counts


def label_sets(value, *, shape=None, columns=None):
    """``value`` as a multi-hot tensor ``(N, K)`` of 0 and 1 with at least one label in each row.

    The dtype is kept.  ``shape`` or ``columns`` fix the size.
    """
    import torch

    lists = value if isinstance(value, list | tuple) else ()
    if len({len(row) for row in lists if hasattr(row, "__len__")}) > 1:
        raise InputError(
            "targets must be a multi-hot matrix (N, K), got rows of different lengths; for lists "
            "of labels use sklearn.preprocessing.MultiLabelBinarizer().fit_transform(targets)"
        )
    value = tensor("targets", value)
    if value.ndim != 2 or 0 in value.shape:
        raise InputError(
            f"targets must be a non-empty multi-hot matrix (N, K), got shape {tuple(value.shape)}"
        )
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise InputError(f"targets must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if columns is not None and value.shape[1] != columns:
        raise InputError(f"targets must have {columns} columns (classes), got {value.shape[1]}")
    if value.dtype != torch.bool and not bool(((value == 0) | (value == 1)).all()):
        raise InputError(
            "targets must contain only 0 and 1; for soft targets use (targets > 0), for class "
            "indices torch.nn.functional.one_hot"
        )
    empty = (~value.bool().any(1)).nonzero().flatten()
    if len(empty):
        raise InputError(
            f"targets has {len(empty)} samples without a label (first: row {int(empty[0])}); "
            "drop them, or add a class for 'none'"
        )
    return value
