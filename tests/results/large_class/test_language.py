"""The language model: contexts, vocabulary, one short training."""

import math

import pytest
import torch

from nclib import checks
from nclib.deep import train
from nclib.results.large_class import language

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
    tokens = ["a", "b"] * 35 + ["a"] + ["b"] * 29  # cut: 68 of 97 windows, the last ends at word 70
    data, test, names = language.next_words(tokens, vocabulary=2, context=3, test_share=0.3)
    assert names == ["a", "b"] and len(data) == 68 and len(test) == 26
    assert bool((data.inputs[:, :-1] != data.inputs[:, 1:]).all())
    assert bool((test.inputs == 1).all()) and bool((test.labels == 1).all())


def test_corpus_ships_with_python():
    tokens = language.words()
    assert len(tokens) > 50_000 and "the" in tokens
    data, test, names = language.next_words(tokens[:12_000], vocabulary=300)
    assert len(names) == 300 and sorted(set(data.labels.tolist())) == list(range(300))


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


def test_bad_input():
    with pytest.raises(checks.InputError, match="7 different words"):
        language.next_words(TEXT, vocabulary=50)
    with pytest.raises(checks.InputError, match="too short"):
        language.next_words(TEXT[:4], vocabulary=2, context=4)
    with pytest.raises(checks.InputError, match="test_share"):
        language.next_words(TEXT, vocabulary=3, test_share=0)
    net = language.language_net(5, context=2, embedding=4, hidden=8, dim=3)
    assert net(torch.zeros(2, 2, dtype=torch.long)).shape == (2, 5)
