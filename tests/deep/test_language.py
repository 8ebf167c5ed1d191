"""The language model: contexts, vocabulary, one short training."""

import math

import pytest
import torch

from nclib import checks
from nclib.deep import language, train

TEXT = ["the", "cat", "sat", ".", "the", "dog", "sat", ".", "a", "cat", "ran", "."] * 20


def test_contexts_and_targets_by_hand():
    tokens = list("abacabdab")
    data, test, names = language.next_words(tokens, vocabulary=2, context=2, test_share=0.2)
    assert names == ["a", "b"]
    ids = [0, 1, 0, 2, 0, 1, 2, 0, 1]  # c and d share the id K = 2
    windows = [(ids[i : i + 2], ids[i + 2]) for i in range(7)]
    expected = [(c, y) for c, y in windows[:6] if y < 2]
    assert data.inputs.tolist() == [c for c, _ in expected]
    assert data.labels.tolist() == [y for _, y in expected]
    assert len(test) == 0 and data.num_classes == 2


def test_train_and_test_do_not_share_words():
    tokens = [f"w{i}" for i in range(100)]
    data, test, _ = language.next_words(tokens, vocabulary=100, context=3, test_share=0.3)
    seen = set(data.inputs.flatten().tolist()) | set(data.labels.tolist())
    later = set(test.inputs.flatten().tolist()) | set(test.labels.tolist())
    assert seen and later and not seen & later


def test_corpus_ships_with_python():
    tokens = language.words()
    assert len(tokens) > 50_000 and "the" in tokens
    data, test, names = language.next_words(tokens, vocabulary=300, limit=500)
    assert len(data) == 500 and len(names) == 300 and int(data.labels.max()) < 300


@pytest.mark.parametrize("temperature", [None, 0.2])
def test_a_deterministic_text_is_learned_and_collapses(temperature):
    """Every context has one continuation: complete collapse is possible."""
    data, test, _ = language.next_words(list("abcdefgh") * 60, vocabulary=8, context=1)
    recipe = train.Recipe(epochs=12, lr=0.01, optimizer="adam", batch_size=50)
    history, net = language.study(
        data, test, recipe, dim=3, embedding=8, hidden=32, temperature=temperature
    )
    assert history["epoch"].tolist() == [0, 12]
    assert history["accuracy"].iloc[-1] == 1.0 and history["test_accuracy"].iloc[-1] == 1.0
    assert history["gnc1"].iloc[-1] < 1e-6
    assert history["test_loss"].iloc[-1] < history["test_loss"].iloc[0]
    assert math.isfinite(history["gnc2_random"].iloc[0])


def test_correlations():
    import pandas as pd

    table = pd.DataFrame({"epoch": [0, 1, 2, 3], "a": [9, 3, 2, 1], "b": [9, 1, 2, 3]})
    table["test_loss"] = [0.0, 30.0, 20.0, 10.0]
    found = language.correlations(table, ["a", "b"])
    assert found["correlation"].tolist() == pytest.approx([1.0, -1.0])


def test_bad_input():
    with pytest.raises(checks.InputError, match="7 words"):
        language.next_words(TEXT, vocabulary=50)
    with pytest.raises(checks.InputError, match="too short"):
        language.next_words(TEXT[:4], vocabulary=2, context=4)
    with pytest.raises(checks.InputError, match="test_share"):
        language.next_words(TEXT, vocabulary=3, test_share=0)
    net = language.language_net(5, context=2, embedding=4, hidden=8, dim=3)
    assert net(torch.zeros(2, 2, dtype=torch.long)).shape == (2, 5)
