import itertools
import math

import pytest
import torch

from nclib import frames


@pytest.mark.parametrize(("K", "d"), [(2, 1), (3, 2), (4, 3), (4, 7), (10, 9), (10, 64)])
@pytest.mark.parametrize("turned", [False, True])
def test_simplex_etf_has_unit_rows_and_equal_cosines(K, d, turned):
    generator = torch.Generator().manual_seed(3) if turned else None
    frame = frames.simplex_etf(K, d, generator=generator)
    assert frame.shape == (K, d)
    for i, j in itertools.product(range(K), range(K)):
        want = 1.0 if i == j else -1 / (K - 1)
        assert float(frame[i] @ frame[j]) == pytest.approx(want, abs=1e-13)


def test_gram_targets_are_the_normalised_grams_of_their_frames():
    etf, orthogonal = frames.simplex_etf(5), torch.eye(5, 8, dtype=torch.float64)
    for gram, frame in [(frames.etf_gram(5), etf), (frames.orthogonal_gram(5), orthogonal)]:
        want = frame @ frame.T
        assert torch.allclose(gram, want / want.norm(), atol=1e-14)


def test_random_rotation_is_orthonormal_and_not_always_the_same():
    g = torch.Generator().manual_seed(0)
    a, b = (frames.random_rotation(6, 4, generator=g) for _ in range(2))
    assert torch.allclose(a.T @ a, torch.eye(4, dtype=a.dtype), atol=1e-13)
    assert (a - b).abs().max() > 0.1


def test_nc2_floor_is_reached_by_a_polygon():
    K = 10
    angles = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
    polygon = torch.stack([angles.cos(), angles.sin()], 1)
    gram = polygon @ polygon.T
    distance = (gram / gram.norm() - frames.etf_gram(K)).norm()
    assert float(distance) == pytest.approx(frames.nc2_floor(K, 2), abs=1e-13)
    assert frames.nc2_floor(K, 9) == 0.0 == frames.nc2_floor(K, 50)


def largest_cosine(code):
    cosines = code @ code.T
    return float(cosines.fill_diagonal_(-1).max())


@pytest.mark.parametrize(
    ("code", "shape", "cosine"),
    [
        (frames.polygon(2), (2, 2), -1.0),
        (frames.polygon(7), (7, 2), math.cos(2 * math.pi / 7)),
        (frames.polygon(4, 3), (4, 3), 0.0),
        (frames.cross_polytope(3), (6, 3), 0.0),
        (frames.cross_polytope(4, 6), (6, 4), 0.0),
        (frames.icosahedron(), (12, 3), 5**-0.5),
        (frames.bipyramid(4), (4, 3), 0.0),
        (frames.bipyramid(5), (5, 3), 0.0),
        (frames.bipyramid(8), (8, 3), 0.5),
    ],
)
def test_codes_have_unit_rows_and_their_largest_cosine(code, shape, cosine):
    assert code.shape == shape and code.dtype == torch.float64
    torch.testing.assert_close(code.norm(dim=1), torch.ones(shape[0]).double())
    assert largest_cosine(code) == pytest.approx(cosine, abs=1e-14)
    assert len(torch.unique(code.round(decimals=9), dim=0)) == shape[0]


def test_each_vertex_of_a_regular_code_sees_the_same():
    for code, size in (
        (frames.polygon(9), 9),
        (frames.icosahedron(), 12),
        (frames.cross_polytope(5), 10),
    ):
        rows = (code @ code.T).sort(1).values
        torch.testing.assert_close(rows, rows[:1].expand(size, -1))
        torch.testing.assert_close(
            code.sum(0), torch.zeros(code.shape[1]).double(), atol=1e-14, rtol=0
        )


def test_pairs_are_the_edges_of_the_complete_graph():
    found = frames.pairs(5)
    want = [[float(i in pair) for i in range(5)] for pair in itertools.combinations(range(5), 2)]
    assert found.tolist() == want


def test_impossible_frames_say_which_dimension_is_needed():
    with pytest.raises(ValueError, match="needs d >= 4, got d=3"):
        frames.simplex_etf(5, 3)
    with pytest.raises(ValueError, match="K must be at least 2"):
        frames.simplex_etf(1)
    with pytest.raises(ValueError, match="in d=3 has 6 vertices, got K=7"):
        frames.cross_polytope(3, 7)
    with pytest.raises(ValueError, match="d must be at least 2"):
        frames.polygon(5, 1)
    with pytest.raises(ValueError, match="points must be at least 2"):
        frames.pairs(1)
