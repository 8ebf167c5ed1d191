"""Input checks: one clear error that says what came, what was expected, and the way out.

Every public function of nclib validates through these helpers, so a mistake reads the same
everywhere.  All of them raise :class:`InputError`, a ``ValueError``.  PyTorch is imported by the
checks that need it: the command line and the batch runner, which do not, start ten times faster.
"""

import math
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
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
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
    """``value`` as a tensor; Python numbers and lists stay float64, which torch would round."""
    import numpy as np
    import torch

    if not isinstance(value, torch.Tensor | np.ndarray):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{name} cannot be read as an array: {error}") from None
        if value.dtype.kind not in "biufc":
            raise InputError(f"{name} must hold numbers, got an array of {value.dtype}")
    return torch.as_tensor(value)


def matrix(name, value, *, rows=None, columns=None, dtype=None):
    """``value`` as a finite 2-d floating tensor of the given size.

    Lists and numpy arrays are converted; integers become float64; half precision is upcast to
    float32, because collapse lives far below its rounding error.
    """
    import torch

    value = tensor(name, value)
    if value.ndim != 2:
        raise InputError(f"{name} must be a matrix (rows, columns), got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        value = value.to(torch.float64)
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    for axis, wanted, word in ((0, rows, "rows"), (1, columns, "columns")):
        if wanted is not None and value.shape[axis] != wanted:
            raise InputError(f"{name} must have {wanted} {word}, got shape {tuple(value.shape)}")
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

    ``num_classes=None`` takes ``K = max + 1``.  Float labels are accepted only if integral.
    """
    import torch

    value = torch.as_tensor(value)
    if value.ndim != 1:
        raise InputError(
            f"{name} must be a vector of class indices, got shape {tuple(value.shape)}; "
            "for one-hot rows use targets.argmax(1)"
        )
    if length is not None and len(value) != length:
        raise InputError(f"{name} has {len(value)} entries for {length} samples")
    if value.numel() == 0:
        raise InputError(f"{name} is empty: there is no sample")
    fractional = value.is_floating_point() and not bool((value == value.round()).all())
    if fractional or value.dtype == torch.bool:
        raise InputError(f"{name} must be integer class indices, got dtype {value.dtype}")
    value = value.long()
    low, high = int(value.min()), int(value.max())
    K = high + 1 if num_classes is None else integer("num_classes", num_classes, 2)
    if low < 0 or high >= K:
        raise InputError(f"{name} must lie in 0..{K - 1}, found {low if low < 0 else high}")
    return value, K


def class_counts(labels, num_classes):
    """Samples per class, int64 ``(K,)``; every class must occur."""
    import torch

    counts = torch.bincount(labels, minlength=num_classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"class {', '.join(map(str, empty[:8]))}{'…' if len(empty) > 8 else ''} has no sample; "
            "relabel the classes 0..K-1 without gaps, or pass samples of every class"
        )
    return counts


def label_sets(value, *, shape=None, columns=None, name="targets"):
    """``value`` as a multi-hot tensor ``(N, K)`` of 0 and 1 with at least one label in each row.

    The dtype is kept.  ``shape`` or ``columns`` fix the size.
    """
    import torch

    value = torch.as_tensor(value)
    if value.ndim != 2 or 0 in value.shape:
        raise InputError(
            f"{name} must be a non-empty multi-hot matrix (N, K), got shape {tuple(value.shape)}"
        )
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise InputError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if columns is not None and value.shape[1] != columns:
        raise InputError(f"{name} must have {columns} columns (classes), got {value.shape[1]}")
    if value.dtype != torch.bool and not bool(((value == 0) | (value == 1)).all()):
        raise InputError(
            f"{name} must contain only 0 and 1; for soft targets use (targets > 0), for class "
            "indices torch.nn.functional.one_hot"
        )
    empty = (~value.bool().any(1)).nonzero().flatten()
    if len(empty):
        raise InputError(
            f"{name} has {len(empty)} samples without a label (first: row {int(empty[0])}); "
            "drop them, or add a class for 'none'"
        )
    return value
