"""Explicit codes against their published inner products, counted from scratch."""

import numpy as np
import pytest
import torch

from nclib import checks, frames
from nclib.metrics import known_margins
from nclib.results.large_class import codes


def spectrum(code):
    """cosine -> how often it occurs off the diagonal."""
    gram = (code @ code.T).numpy()
    values, counts = np.unique(gram[~np.eye(len(gram), dtype=bool)].round(9), return_counts=True)
    return dict(zip((values + 0.0).tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((12, 3), {-1: 12, -(5**-0.5): 60, 5**-0.5: 60}),
        ((24, 4), {-1: 24, -0.5: 192, 0: 144, 0.5: 192}),
        ((16, 5), {-0.6: 80, 0.2: 160}),
        ((10, 4), {-2 / 3: 30, 1 / 6: 60}),
        ((27, 6), {-0.5: 270, 0.25: 432}),
        ((56, 7), {-1: 56, -1 / 3: 56 * 27, 1 / 3: 56 * 27}),
        ((240, 8), {-1: 240, -0.5: 240 * 56, 0: 240 * 126, 0.5: 240 * 56}),
        ((100, 22), {-4 / 11: 100 * 22, 1 / 11: 100 * 77}),
        ((112, 21), {-1 / 3: 112 * 30, 1 / 9: 112 * 81}),
        ((162, 21), {-2 / 7: 162 * 56, 1 / 7: 162 * 105}),
        ((275, 22), {-0.25: 275 * 112, 1 / 6: 275 * 162}),
        ((552, 23), {-1: 552, -0.2: 552 * 275, 0.2: 552 * 275}),
        ((891, 22), {-0.5: 891 * 42, -0.125: 891 * 512, 0.25: 891 * 336}),
    ],
)
def test_sharp_codes_have_their_published_inner_products(size, expected):
    code = codes.sharp_code(*size)
    assert tuple(code.shape) == size and code.dtype == torch.float64
    torch.testing.assert_close(code.norm(dim=1), torch.ones(size[0], dtype=torch.float64))
    assert spectrum(code) == {round(c, 9) + 0.0: n for c, n in expected.items()}


def test_600_cell():
    counts = spectrum(codes.cell_600())
    assert max(counts) == pytest.approx((1 + 5**0.5) / 4, abs=1e-9)
    assert counts[max(counts)] == 120 * 12  # twelve nearest neighbours each


def test_leech_vectors():
    vectors = codes.leech_vectors().astype(np.int64)
    assert vectors.shape == (196560, 24)
    assert len(np.unique(vectors, axis=0)) == 196560
    assert set(np.unique((vectors**2).sum(1))) == {32}
    for i in (0, 100_000, 196_559):  # kissing configuration: 4600 neighbours at 60 degrees
        values, counts = np.unique(vectors @ vectors[i], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
            -32: 1, -16: 4600, -8: 47104, 0: 93150, 8: 47104, 16: 4600, 32: 1,
        }  # fmt: skip
    assert tuple(codes.sharp_code(4600, 23).shape) == (4600, 23)


def test_polygon_and_cross_polytope():
    gram = (frames.polygon(7) @ frames.polygon(7).T).numpy()
    j = np.arange(7)
    np.testing.assert_allclose(gram, np.cos(2 * np.pi * (j[:, None] - j) / 7), atol=1e-15)
    assert spectrum(frames.cross_polytope(4)) == {-1.0: 8, 0.0: 48}
    assert frames.cross_polytope(4, 6).shape == (6, 4)


def test_orthogonal_simplices():
    code = codes.orthogonal_simplices([2, 3, 4])
    assert code.shape == (9, 6)
    expected = np.zeros((9, 9))
    for start, m in ((0, 2), (2, 3), (5, 4)):
        expected[start : start + m, start : start + m] = (m * np.eye(m) - 1) / (m - 1)
    np.testing.assert_allclose(code @ code.T, expected, atol=1e-15)


def test_bipyramid():
    bipyramid = frames.bipyramid(7)
    assert bipyramid.shape == (7, 3)
    assert spectrum(bipyramid)[-1.0] == 2  # the poles


@pytest.mark.parametrize("singles", [1, 2, 3, 5])
def test_tilted_cross_polytope(singles):
    flat = codes.tilted_cross_polytope(singles, 0.0)
    assert flat.shape == (singles + 4, singles + 2)
    assert set(spectrum(flat)) == {-1.0, 0.0}  # vertices of the cross-polytope
    assert list(spectrum(flat).values())[0] == 4  # two pairs of opposite ones
    height = min(1.0, singles**-0.5 + 0.02)
    code = codes.tilted_cross_polytope(singles, 0.25, height)
    torch.testing.assert_close(code.norm(dim=1), torch.ones(len(code), dtype=torch.float64))
    np.testing.assert_allclose(code[:4, 2], -0.25)
    np.testing.assert_allclose(code[:4] @ code[4:].T, -0.25 * height, atol=1e-15)
    np.testing.assert_allclose(code[[0, 2]] @ code[[1, 3]].T, [[-0.875, 0.0625], [0.0625, -0.875]])


@pytest.mark.parametrize(("K", "d", "m"), [(60, 7, 3), (1000, 40, 5), (700, 130, 7)])
def test_gold_cosines(K, d, m):
    code = codes.gold_code(K, d)
    assert code.shape == (K, d)
    length = 2**m - 1
    cosines = {round(c * length) for c in spectrum(code)}
    assert cosines <= {-1, -1 + 2 ** ((m + 1) // 2), -1 - 2 ** ((m + 1) // 2)}
    best = max(spectrum(code))
    assert known_margins.gold_margin(K, d) == pytest.approx(1 - (2 ** ((m + 1) // 2) - 1) / length)
    assert 1 - best >= known_margins.gold_margin(K, d) - 1e-9


def test_gold_code_of_the_face_experiment():
    assert known_margins.gold_margin(10_000, 512) == pytest.approx(1 - 31 / 511, abs=1e-15)
    code = codes.gold_code(10_000, 512)
    sample = code[:: 10_000 // 50]
    gram = (sample @ code.T * 511).round()
    assert set(gram.unique().tolist()) == {-33.0, -1.0, 31.0, 511.0}
    assert int((gram == 511).sum()) == len(sample)  # no word occurs twice


def test_even_degrees_and_too_many_words_are_left_alone():
    assert known_margins.gold_margin(5000, 64) is None  # 4^5 = 1024 words only
    assert known_margins.gold_margin(65, 6) is None
    with pytest.raises(checks.InputError, match="no Gold code"):
        codes.gold_code(5000, 64)


def test_bad_input():
    with pytest.raises(checks.InputError, match="8 vertices"):
        frames.cross_polytope(4, 9)
    with pytest.raises(checks.InputError, match="no word"):
        codes.derived(frames.icosahedron(), 0.3)
    with pytest.raises(checks.InputError, match="at least one simplex"):
        codes.orthogonal_simplices([])
    assert codes.sharp_code(11, 5) is None
