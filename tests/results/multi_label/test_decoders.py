"""Decoders against brute force and at the exact optimum, where all of them are right."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.checks import InputError
from nclib.results.multi_label import decoders, theory
from tests.bank import turned


@pytest.fixture(params=["sum", "mean"])
def exact(request):
    optimum = theory.optimum(
        K=5, counts={1: 4, 2: 2, 3: 1}, lambda_w=1e-3, lambda_h=1e-4, reduction=request.param
    )
    made = turned(theory.configuration(optimum), 7, torch.Generator().manual_seed(0))
    return optimum, made


def test_codewords_are_the_features_of_the_optimum(exact):
    """Also around another centre: only the singles and the classifier are used."""
    optimum, made = exact
    singles = made.targets.sum(1) == 1
    shift = torch.linspace(-1, 1, 7).double()
    book = decoders.tagwise_codebook(
        made.features[singles] + shift, made.targets[singles], made.weight,
        multiplicities=(1, 2, 3), reduction=optimum.reduction,
    )  # fmt: skip
    assert torch.equal(book.label_sets, made.targets.bool())
    assert torch.allclose(book.codewords, made.features + shift, rtol=0, atol=1e-12)
    assert torch.allclose(book.centre, shift, rtol=0, atol=1e-12)
    means = made.features[singles] + shift
    assert decoders.single_margin(means, made.weight) == pytest.approx(optimum.margins[1])


def test_all_decoders_are_right_at_the_optimum(exact):
    optimum, made = exact
    logits = made.features @ made.weight.T + 0.3
    book = decoders.tagwise_codebook(
        made.features[:5], made.targets[:5], made.weight, multiplicities=(1, 2, 3),
        reduction=optimum.reduction,
    )  # fmt: skip
    predictions = {
        "euclidean": decoders.nearest_codeword(made.features, book),
        "gap": decoders.largest_gap(logits),
        "sign": decoders.sign(logits),
        "top": decoders.top_m(logits, made.targets.sum(1).long()),
    }
    table = decoders.score_table(predictions, made.targets)
    assert (table[["exact_match", "jaccard", "multiplicity_right"]] == 1).all().all()
    assert sorted(table["m"].unique()) == [1, 2, 3]
    assert table.query("decoder == 'gap'")["samples"].tolist() == [5, 10, 10]


def test_nearest_codeword_is_the_nearest():
    generator = torch.Generator().manual_seed(1)
    book = decoders.Codebook(
        theory.label_sets(5, 2).bool(),
        torch.randn(10, 3, generator=generator).double(),
        torch.randn(3, generator=generator).double(),
    )
    features = torch.randn(50, 3, generator=generator).double()
    found = decoders.nearest_codeword(features, book)
    for h, one in zip(features, found, strict=True):
        distances = (h - book.codewords).norm(dim=1)
        assert torch.equal(one, book.label_sets[distances.argmin()])


def test_largest_gap_by_hand():
    logits = torch.tensor([[5.0, 4.9, 1.0, 0.8], [5.0, 1.0, 0.9, 0.8], [3.0, 2.9, 2.8, 0.0]])
    expected = [[0, 1], [0], [0, 1, 2]]
    for most, sets in ((None, expected), (2, [[0, 1], [0], [0]])):
        found = decoders.largest_gap(logits, most=most)
        if most == 2:
            sets[2] = found[2].nonzero().flatten().tolist()
            assert len(sets[2]) <= 2
        assert [row.nonzero().flatten().tolist() for row in found] == sets


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_gap_and_top_against_loops(seed, K):
    logits = torch.randn(9, K, generator=torch.Generator().manual_seed(seed)).double()
    found = decoders.largest_gap(logits)
    for z, y in zip(logits.tolist(), found, strict=True):
        order = sorted(range(K), key=lambda k: -z[k])
        gaps = [z[order[i]] - z[order[i + 1]] for i in range(K - 1)]
        assert set(y.nonzero().flatten().tolist()) == set(order[: int(np.argmax(gaps)) + 1])
    m = torch.arange(9) % (K + 1)
    for z, y, size in zip(logits.tolist(), decoders.top_m(logits, m), m.tolist(), strict=True):
        best = sorted(range(K), key=lambda k: -z[k])[:size]
        assert set(y.nonzero().flatten().tolist()) == set(best)


def test_top_m_with_ties_has_exactly_m_labels():
    assert decoders.top_m(torch.zeros(3, 4), 2).sum(1).tolist() == [2, 2, 2]


def test_sign():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.5], [-1.0, -2.0, -3.0, -4.0]])
    assert decoders.sign(logits).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
    ]
    assert decoders.sign(logits, centred=False).sum(1).tolist() == [4, 0]


def test_scores_against_sets():
    rng = np.random.default_rng(0)
    targets = rng.random((40, 5)) < 0.4
    targets[:, 0] |= ~targets.any(1)
    predicted = rng.random((40, 5)) < 0.4
    for y, p, e, j in zip(
        targets, predicted, decoders.exact_match(predicted, targets),
        decoders.jaccard(predicted, targets), strict=True,
    ):  # fmt: skip
        a, b = set(np.flatnonzero(y)), set(np.flatnonzero(p))
        assert bool(e) == (a == b)
        assert float(j) == pytest.approx(len(a & b) / len(a | b))


def test_score_table_by_multiplicity():
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1]])
    predicted = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0]])
    table = decoders.score_table({"x": predicted}, targets).set_index("m")
    assert table.loc[1, "exact_match"] == 0.5
    assert table.loc[1, "jaccard"] == pytest.approx(0.75)
    assert table.loc[2, "jaccard"] == pytest.approx(0.75)
    assert table.loc[2, "multiplicity_right"] == 0.5
    assert table["samples"].tolist() == [2, 2]


def test_codewords_for_label_sets_never_seen():
    """Singles only in training: pairs are decoded all the same."""
    generator = torch.Generator().manual_seed(2)
    optimum = theory.optimum(K=6, counts={1: 10, 2: 3}, lambda_w=1e-3, lambda_h=1e-4)
    made = turned(theory.configuration(optimum), 8)
    noisy = made.features + 0.05 * torch.randn(made.features.shape, generator=generator).double()
    book = decoders.tagwise_codebook(noisy[:6], made.targets[:6], made.weight)
    found = decoders.nearest_codeword(noisy, book)
    assert decoders.exact_match(found, made.targets).all()
    assert len(book.codewords) == 6 + len(list(combinations(range(6), 2)))


def test_fitted_codewords_need_no_theory():
    """Pairs scaled and shifted at will: the fitted codebook has them, the theory's has not."""
    optimum = theory.optimum(K=5, counts={1: 4, 2: 2}, lambda_w=1e-3, lambda_h=1e-4)
    made = turned(theory.configuration(optimum), 7)
    pairs = made.targets.sum(1) == 2
    odd = torch.where(pairs[:, None], 0.4 * made.features + 3.0, made.features)
    for fitted, right in ((True, True), (False, False)):
        book = decoders.tagwise_codebook(odd, made.targets, made.weight, fitted=fitted)
        found = decoders.exact_match(decoders.nearest_codeword(odd, book), made.targets)
        assert bool(found[pairs].all()) is right


def test_bad_input():
    book = decoders.Codebook(torch.eye(3).bool(), torch.eye(3).double(), torch.zeros(3).double())
    with pytest.raises(InputError, match="3 columns"):
        decoders.nearest_codeword(torch.zeros(2, 4), book)
    with pytest.raises(InputError, match="K-1 = 2"):
        decoders.largest_gap(torch.zeros(2, 3), most=3)
    with pytest.raises(InputError, match=r"0\.\.K=3"):
        decoders.top_m(torch.zeros(2, 3), 4)
    for m in (1.5, float("nan"), torch.tensor([1, -1])):
        with pytest.raises(InputError, match="integers"):
            decoders.top_m(torch.zeros(2, 3), m)
    with pytest.raises(InputError, match="K-1 = 0"):
        decoders.largest_gap(torch.zeros(2, 1))
    with pytest.raises(InputError, match="0 and 1"):
        decoders.jaccard(torch.full((3, 3), 0.5), torch.eye(3))
    for sizes in ((), 2):
        with pytest.raises(InputError, match="multiplicities must be"):
            decoders.tagwise_codebook(np.eye(3), np.eye(3), np.eye(3), multiplicities=sizes)
    with pytest.raises(InputError, match="one number or 2"):
        decoders.top_m(torch.zeros(2, 3), torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match="shape"):
        decoders.exact_match(torch.zeros(2, 4), torch.eye(3)[:2])
    with pytest.raises(InputError, match="no codebook"):
        decoders.tagwise_codebook(torch.eye(3), torch.eye(3), -torch.eye(3))
    with pytest.raises(InputError, match="class 2 has no sample"):
        decoders.tagwise_codebook(torch.eye(2), torch.eye(3)[:2], torch.eye(3, 2))
