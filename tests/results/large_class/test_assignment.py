"""Quadratic assignment of classes to vertices: brute force, a planted solution."""

import itertools

import numpy as np
import pytest
import torch

from nclib import checks, frames
from nclib.results.large_class import assignment
from nclib.results.large_class.assignment import SQUARE, assign_classes


def score_of(distances, code, order):
    vertices = torch.cdist(code, code)[list(order)][:, list(order)]
    return float((distances * vertices).sum())


def brute_force(distances, code):
    vertices = torch.cdist(code, code)
    K = len(code)
    return max(
        sum(float(distances[i, j] * vertices[o[i], o[j]]) for i in range(K) for j in range(K))
        for o in itertools.permutations(range(K))
    )


def test_assignment_is_optimal_for_few_classes(monkeypatch):
    monkeypatch.setattr(assignment, "quadratic_assignment", None)  # all orders are tried
    for K, code in ((4, frames.polygon(4)), (6, frames.cross_polytope(3))):
        points = torch.randn(K, 3, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
        distances = torch.cdist(points, points)
        order = assign_classes(distances, code)
        assert sorted(order) == list(range(K))
        score = score_of(distances, code, order)
        assert score == pytest.approx(brute_force(distances, code), rel=1e-9)


def test_assignment_of_many_classes_beats_random_ones():
    code = frames.icosahedron()
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    distances = torch.cdist(code, code)[shuffled][:, shuffled]  # a perfect placement exists
    order = assign_classes(distances, code)
    perfect = float(torch.cdist(code, code).square().sum())
    score = score_of(distances, code, order)
    assert score == pytest.approx(perfect, rel=1e-9)
    rng = np.random.default_rng(0)
    others = [score_of(distances, code, rng.permutation(12)) for _ in range(50)]
    assert max(others) < score


def test_square_orders_say_who_is_opposite():
    for opposite, order in SQUARE.items():
        square = frames.polygon(4)[list(order)]
        assert float(square[0] @ square[opposite]) == pytest.approx(-1)


def test_assignment_bad_input():
    square = frames.polygon(4)
    with pytest.raises(checks.InputError, match="symmetric"):
        assign_classes(torch.arange(16.0).view(4, 4), square)
    with pytest.raises(checks.InputError, match="rows"):
        assign_classes(torch.zeros(4, 4), frames.polygon(5))
