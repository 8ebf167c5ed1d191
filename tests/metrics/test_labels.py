"""Labels and targets as they come: the same numbers as from plain class indices, or one error."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.metrics import ClassStatistics, multi_label_metrics, nc_metrics

Y = np.array([0, 2, 1, 0, 1, 2, 2, 0])
NAMES = ["cat", "dog", "emu"]
TEXTS = [NAMES[y] for y in Y]
CATEGORIES = pd.Categorical(TEXTS, categories=NAMES)

FORMS = {
    "list": Y.tolist(),
    "tuple": tuple(Y.tolist()),
    "column": Y[:, None],
    "column of floats": torch.tensor(Y, dtype=torch.float32)[:, None],
    "list of lists": Y[:, None].tolist(),
    "list of tensors": list(torch.tensor(Y)),
    "uint8": Y.astype(np.uint8),
    "uint16 tensor": torch.tensor(Y.astype(np.uint16)),
    "big-endian": Y.astype(">i4"),
    "negative strides": Y[::-1].copy()[::-1],
    "read-only": np.frombuffer(Y.tobytes(), Y.dtype),
    "series": pd.Series(Y),
    "series, other index": pd.Series(Y, index=range(100, 108)),
    "series, texts as index": pd.Series(Y, index=list("abcdefgh")),
    "nullable series": pd.Series(Y, dtype="Int64"),
    "data frame": pd.DataFrame({"y": Y}),
    "one-hot": np.eye(3)[Y],
    "one-hot bool": np.eye(3, dtype=bool)[Y],
    "one-hot lists": np.eye(3, dtype=int)[Y].tolist(),
    "one-hot sparse": scipy.sparse.csr_array(np.eye(3)[Y]),
    "one-hot frame": pd.get_dummies(pd.Series(TEXTS)),
    "one-hot torch sparse": torch.eye(3)[Y].to_sparse(),
    "texts": TEXTS,
    "column of texts": np.array(TEXTS)[:, None],
    "bytes": np.array(TEXTS, "S"),
    "series of texts": pd.Series(TEXTS, index=range(5, 13)),
    "categories": CATEGORIES,
    "series of categories": pd.Series(CATEGORIES, index=range(8, 0, -1)),
    "digits as texts": [str(y) for y in Y],
    "integer categories": pd.Series(Y).astype("category"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_labels_gives_the_same_numbers(form):
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((8, 4)), rng.standard_normal((3, 4))
    assert nc_metrics(features, FORMS[form], weight) == nc_metrics(features, Y, weight)
    assert nc_metrics(features, FORMS[form]) == nc_metrics(features, Y)
    got, K = checks.labels(FORMS[form])
    assert got.dtype == torch.int64 and got.tolist() == Y.tolist() and K == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=12, max_size=40), st.randoms(use_true_random=False))
def test_names_number_the_classes_as_their_list_does(indices, random):
    names = [f"n{i}" for i in range(12)]
    random.shuffle(names)
    texts = [names[i] for i in indices]
    for value in (texts, np.array(texts), pd.Series(texts), pd.Series(texts).astype("category")):
        assert checks.labels(value, names)[0].tolist() == indices
    assert checks.labels(pd.Categorical(texts, categories=names))[0].tolist() == indices
    # Digits as texts are numbers, also beyond 9, where sorting texts would mix them up.
    assert checks.labels([str(i) for i in indices], 12)[0].tolist() == indices
    present = sorted(set(texts))
    assert checks.named(texts)[1] == present
    assert [present[i] for i in checks.labels(texts)[0]] == texts


def test_batches_of_names_keep_the_numbers_of_the_list():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8, 4))
    statistics = ClassStatistics(NAMES, 4)
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        statistics.update(features[part], TEXTS[part])
    want = ClassStatistics(3, 4).update(features, Y).metrics()
    for name, value in statistics.metrics().items():
        assert value == pytest.approx(want[name], rel=1e-10), name


def test_booleans_are_two_classes():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((6, 3))
    y = np.array([True, False, True, True, False, False])
    assert nc_metrics(features, y) == nc_metrics(features, y.astype(int))
    assert nc_metrics(features, y[:, None]) == nc_metrics(features, y.astype(int))


@pytest.mark.parametrize(
    ("value", "K", "message"),
    [
        (["cat", "emu"], 3, r"2 classes, expected 3: which row .* num_classes=\[the names"),
        (["cat", "yak"], NAMES, "yak, which is none of the classes"),
        (["cat", None, "dog"], None, "1 entries that are no names"),
        ([0, 1, np.nan], None, "integer class indices"),
        (pd.Series([0, 1, None], dtype="Int64"), None, "NaN|integer|numbers"),
        ([[0.5, 0.5], [1, 0]], None, r"soft labels use targets.argmax\(1\)"),
        ([[1, 1], [1, 0]], None, "multi_label_metrics"),
        ([[0, 1], [0]], None, "cannot be read as an array"),
        ([0, 1, -100], None, "-100 .padding"),
        ([0, 3], 3, r"must lie in 0\.\.2, found 3"),
        (np.eye(3), 4, "one-hot rows of 3 classes, expected 4"),
        ([1 + 2j, 0], None, "integer class indices"),
        ([0, 1], "ab", "list of names"),
        ([0, 1], ["a", "a"], "all different"),
        ([], None, "empty"),
        ([[[0]], [[1]]], None, "vector of class indices"),
    ],
)
def test_other_labels_are_one_error(value, K, message):
    with pytest.raises(checks.InputError, match=message):
        checks.labels(value, K)


TARGETS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.tolist(),
        lambda t: t.astype(bool),
        lambda t: t.astype(">f4"),
        lambda t: t[::-1].copy()[::-1],
        lambda t: pd.DataFrame(t, index=range(50, 57), columns=NAMES),
        lambda t: pd.DataFrame(t.astype(bool), columns=NAMES),
        lambda t: pd.DataFrame(t).astype("Int64"),
        scipy.sparse.csr_array,
        scipy.sparse.coo_matrix,
        lambda t: torch.tensor(t).to_sparse(),
        lambda t: [torch.tensor(row) for row in t],
    ],
)
def test_every_form_of_multi_label_targets(form):
    rng = np.random.default_rng(1)
    features, weight = rng.standard_normal((7, 4)), rng.standard_normal((3, 4))
    got = multi_label_metrics(features, form(TARGETS), weight)
    assert str(got) == str(multi_label_metrics(features, TARGETS, weight))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0, 2], [1], [0]], "MultiLabelBinarizer"),
        ([["cat"], ["dog"]], "must hold numbers"),
        ([[0, 2], [1, 2]], "only 0 and 1"),
        ([[0, 1], [0, 0]], "1 samples without a label"),
    ],
)
def test_other_targets_are_one_error(targets, message):
    with pytest.raises(checks.InputError, match=message):
        checks.label_sets(targets)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(">f8"),
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: x.astype(np.longdouble),
        lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
        lambda x: pd.DataFrame(x, index=range(40, 48)),
        lambda x: x.tolist(),
        lambda x: list(torch.tensor(x)),
        scipy.sparse.csr_array,
    ],
)
def test_every_form_of_features(form):
    features = np.random.default_rng(2).standard_normal((8, 4))
    assert nc_metrics(form(features), Y) == nc_metrics(features, Y)


def test_features_that_are_no_numbers_are_one_error():
    with pytest.raises(checks.InputError, match="features must hold numbers"):
        nc_metrics(pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}), [0, 1])
