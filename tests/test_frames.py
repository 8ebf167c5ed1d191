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
    etf, orthogonal = frames.simplex_etf(5), frames.orthogonal_frame(5, 8)
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


def test_impossible_frames_say_which_dimension_is_needed():
    with pytest.raises(ValueError, match="needs d >= 4, got d=3"):
        frames.simplex_etf(5, 3)
    with pytest.raises(ValueError, match="needs d >= 5"):
        frames.orthogonal_frame(5, 4)
    with pytest.raises(ValueError, match="K must be at least 2"):
        frames.simplex_etf(1)
