"""Collapse of features stored in files: what ``nclib measure`` prints and draws.

A file holds arrays under these names (or aliases; case and a prefix such as ``fc.`` do not
matter):

============  =====================================  =======================================
``features``  feature, embeddings, embedding, h, x   ``(N, d)``
``labels``    label, targets, target, y              ``(N,)``
``weight``    w (optional)                           ``(K, d)``
``bias``      b (optional)                           ``(K,)``
============  =====================================  =======================================

``.npz``, ``.pt``/``.pth`` (a dict of tensors) and ``.safetensors`` are read without pickle.  In
``.parquet``, the features are one column of lists, or all numeric columns but the labels.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nclib import checks, files, metrics
from nclib.metrics import geometry

ALIASES = {
    "features": ("features", "feature", "embeddings", "embedding", "h", "x"),
    "labels": ("labels", "label", "targets", "target", "y"),
    "weight": ("weight", "w"),
    "bias": ("bias", "b"),
}


def load(path):
    """``{"features", "labels", "weight", "bias"}`` of a file; the last two may be ``None``.

    Raises :class:`~nclib.checks.InputError` if the file is missing, damaged, of another kind, holds
    Python objects, or names no features or labels.
    """
    path = Path(path)
    checks.choice(f"the ending of {path}", path.suffix.lower(), _READERS)
    try:
        arrays = _READERS[path.suffix.lower()](path)
    except ImportError as error:
        raise checks.InputError(
            f"{path} needs a package: pip install {error.name or 'pyarrow'}"
        ) from None
    except checks.InputError:
        raise
    except Exception as error:  # every reader has its own kinds for damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise checks.InputError(f"{path} cannot be read: {reason[0]}") from None
    result = {}
    for role, names in ALIASES.items():
        found = [n for n in arrays if str(n).lower().rpartition(".")[2] in names]
        if len(found) > 1:
            raise checks.InputError(f"{path}: several arrays could be the {role}: {found}")
        result[role] = arrays[found[0]] if found else None
    for role in ("features", "labels"):
        if result[role] is None:
            raise checks.InputError(
                f"{path} has no {role} (one of {', '.join(ALIASES[role])}); it has "
                f"{', '.join(map(str, arrays)) or 'nothing'}"
            )
    return result


def _npz(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _torch(path):
    arrays = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(arrays, dict):
        raise checks.InputError(f"{path} must hold a dict of tensors, not {type(arrays).__name__}")
    return arrays


def _safetensors(path):
    from safetensors.torch import load_file

    return load_file(path)


def _parquet(path):
    table = pd.read_parquet(path)
    names = {str(name).lower(): name for name in table}
    labels = [names[n] for n in ALIASES["labels"] if n in names]
    lists = [names[n] for n in ALIASES["features"] if n in names and table[names[n]].dtype == "O"]
    arrays = {name: table[name].to_numpy() for name in labels}
    if lists:
        return arrays | {name: np.stack(table[name].to_list()) for name in lists}
    rest = table.drop(columns=labels).select_dtypes("number")
    return arrays | ({"features": rest.to_numpy()} if rest.shape[1] else {})


_READERS = {
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}


def table(paths, *, by_class=False, missing="error"):
    """DataFrame: a row per file, or per file and class with ``by_class``; a column per metric.

    ``missing``: as in :func:`nclib.metrics.nc_metrics`; by class, empty classes are rows of NaN.
    """
    checks.choice("missing", missing, ("error", "skip"))
    rows = {}
    for path in paths:
        arrays = load(path)
        try:
            if by_class:
                rows[str(path)] = metrics.by_class(**arrays)
            else:
                shape = checks.tensor("features", arrays["features"]).shape
                sizes = dict(zip(("N", "d"), shape, strict=False))
                rows[str(path)] = sizes | metrics.nc_metrics(**arrays, missing=missing)
        except checks.InputError as error:
            raise checks.InputError(f"{path}: {error}") from None
    if by_class:
        return pd.concat(rows, names=["file", "class"])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("file")


def as_text(found):
    """``table`` for people: with the values of an untrained and of a collapsed network beside."""
    if found.index.nlevels == 1:
        hints = pd.DataFrame(metrics.REFERENCE).reindex(columns=found.columns)
        found = pd.concat([found, hints.loc[["untrained", "collapsed"]]])
        found = found.T if len(found) == 3 else found  # one file: metrics are the rows
    return found.to_string(float_format=lambda value: f"{value:.4g}", na_rep="")


def as_json(found):
    """``{file: {metric: value}}``, or ``{file: {class: {metric: value}}}``; what is not
    finite is ``null``."""
    if found.index.nlevels == 1:
        return json.dumps(_plain(found), indent=1)
    each = {name: _plain(found.loc[name]) for name in found.index.unique("file")}
    return json.dumps(each, indent=1)


def _plain(frame):
    frame = frame.replace([float("inf"), float("-inf")], float("nan"))
    return frame.astype(object).where(frame.notna(), None).to_dict(orient="index")


SAMPLES = 2000  # drawn of each file


def figure(paths):
    """For each file: cosines of the centred class means, and samples in the plane that separates
    the class means best.
    """
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(
        len(paths), 2, figsize=(7.5, 3.2 * len(paths)), squeeze=False, layout="constrained"
    )
    for path, (left, right) in zip(paths, axes, strict=True):
        arrays = load(path)
        labels, K = checks.labels(arrays["labels"])
        features = checks.matrix("features", arrays["features"]).double()
        statistics = metrics.ClassStatistics(max(K, 2), features.shape[1], keep=0).update(
            features, labels
        )
        present = statistics.counts > 0
        means = (statistics.means - statistics.global_mean)[present]
        cosines = left.imshow(geometry.cosines(means), vmin=-1, vmax=1, cmap="RdBu_r")
        picture.colorbar(cosines, ax=left, label="cosine")
        left.set(title=f"class means (collapsed: {-1 / (len(means) - 1):.2g})", xlabel="class")
        plane = torch.linalg.svd(means, full_matrices=False).Vh[: min(2, len(means) - 1)]
        chosen = torch.linspace(0, len(features) - 1, min(SAMPLES, len(features))).long()
        spots = (features[chosen] - statistics.global_mean) @ plane.T
        spots = torch.nn.functional.pad(spots, (0, 2 - spots.shape[1]))  # K = 2: a line
        right.scatter(*spots.T, c=labels[chosen], s=6, cmap="turbo")
        right.set(title=Path(path).name, aspect="equal", xticks=[], yticks=[])
    return picture


def write_figure(target, paths):
    """Write :func:`figure` to ``target``: .png, .pdf or .svg."""
    picture = figure(paths)
    with files.replacing(target) as temporary:
        picture.savefig(temporary, format=Path(target).suffix.lower()[1:], dpi=150)
