"""Closed forms of result 2 against autograd Hessians, brute-force minimisation and an SDP.

The oracle for every Hessian is ``torch.func.hessian`` of the plain cross-entropy of normalised
rows: x/‖x‖ is a second-order retraction, so at unit rows its Hessian on tangent vectors is the
Riemannian one.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nclib import frames
from nclib.checks import InputError
from nclib.results.normalized import theory


def balanced(K, n):
    return torch.arange(K).repeat_interleave(n)


def plain_loss(features, weight, labels, scale):
    features, weight = F.normalize(features, dim=1), F.normalize(weight, dim=1)
    return F.cross_entropy(scale * features @ weight.T, labels)


def oracle(features, weight, labels, scale):
    """Riemannian gradient norm and all Riemannian Hessian eigenvalues, by autograd."""
    K, rows = len(weight), torch.cat([weight, features])
    m, d = rows.shape
    fun = lambda x: plain_loss(x.view(m, d)[K:], x.view(m, d)[:K], labels, scale)
    gradient = torch.func.grad(fun)(rows.flatten())
    matrix = torch.func.hessian(fun)(rows.flatten())
    bases = [torch.linalg.svd(row[None]).Vh[1:].T for row in rows]
    basis = torch.block_diag(*bases)
    return float(gradient.norm()), torch.linalg.eigvalsh(basis.T @ matrix @ basis)


def random_rows(m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(m, d, generator=generator, dtype=torch.float64), dim=1)


def solve(K, d, labels, scale, seed, nonnegative=False):
    """Best of plain scipy L-BFGS on normalised rows: (value, features, weight)."""
    rows = random_rows(K + len(labels), d, seed)

    def split(x):
        x = torch.as_tensor(x).view(-1, d)
        features = x[K:].square() if nonnegative else x[K:]
        return F.normalize(features, dim=1), F.normalize(x[:K], dim=1)

    def fun(x):
        x = torch.tensor(x, requires_grad=True)
        value = F.cross_entropy(scale * torch.matmul(split(x)[0], split(x)[1].T), labels)
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    options = {"maxiter": 20000, "maxfun": 50000, "ftol": 0, "gtol": 1e-12, "maxcor": 40}
    found = minimize(fun, rows.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return found.fun, *split(found.x)


class TestOptimum:
    @pytest.mark.parametrize(
        ("K", "scale", "nonnegative", "value"),
        [
            (10, 1, False, 1.3769349205),
            (10, 1, True, 1.4198685933),
            (100, 1, False, 3.6123773059),
            (100, 1, True, 3.6173041933),
            (10, 3, False, 0.2784389411),
            (10, 3, True, 0.3227810650),
            (4, 2, False, 0.1893388394),
            (3, 12, False, 3.05e-8),
        ],
    )
    def test_reference_values(self, K, scale, nonnegative, value):
        assert abs(theory.optimum(K, scale, nonnegative=nonnegative).value - value) < 1e-10

    @pytest.mark.parametrize("K", [2, 3, 7, 20])
    @pytest.mark.parametrize("scale", [0.05, 1.0, 8.0])
    def test_is_the_loss_of_the_etf(self, K, scale):
        labels, etf = balanced(K, 2), frames.simplex_etf(K)
        optimum = theory.optimum(K, scale)
        logits = scale * etf[labels] @ etf.T
        assert abs(optimum.value - float(F.cross_entropy(logits, labels))) < 1e-14
        p = logits.softmax(1)
        wrong = p[F.one_hot(labels, K) == 0]
        assert (wrong - optimum.wrong_probability).abs().max() < 1e-15
        assert abs(math.exp(-optimum.value) - float(p[0, 0])) < 1e-14
        assert abs(float(logits[0, 0] - logits[0, 1]) - optimum.margin) < 1e-13

    @pytest.mark.parametrize("K", [2, 3, 6])
    @pytest.mark.parametrize("scale", [0.3, 2.0, 9.0])
    def test_nonnegative_optimum_is_attained_by_orthonormal_features(self, K, scale):
        """ETF classifiers are the centred features; plain code, no closed form."""
        features = torch.eye(K, dtype=torch.float64)
        weight = F.normalize(features - 1 / K, dim=1)
        optimum = theory.optimum(K, scale, nonnegative=True)
        loss = F.cross_entropy(scale * features @ weight.T, torch.arange(K))
        assert abs(float(loss) - optimum.value) < 1e-14
        assert abs(float((features * weight).sum(1)[0]) - optimum.cosine) < 1e-14
        p = (scale * features @ weight.T).softmax(1)
        assert abs(float(p[0, 1]) - optimum.wrong_probability) < 1e-15

    @pytest.mark.parametrize(
        ("K", "n", "d", "scale"), [(2, 3, 2, 1.0), (3, 2, 2, 2.0), (5, 2, 6, 3.0)]
    )
    def test_nothing_lower_by_minimisation(self, K, n, d, scale):
        value, *_ = solve(K, d, balanced(K, n), scale, seed=1)
        assert abs(value - theory.optimum(K, scale).value) < 1e-12

    @pytest.mark.parametrize(("K", "n", "d", "scale"), [(3, 2, 4, 2.0), (4, 1, 4, 1.0)])
    def test_nonnegative_by_minimisation(self, K, n, d, scale):
        value, features, _ = solve(K, d, balanced(K, n), scale, seed=0, nonnegative=True)
        assert abs(value - theory.optimum(K, scale, nonnegative=True).value) < 1e-9
        means = torch.stack([features[balanced(K, n) == k].mean(0) for k in range(K)])
        assert (means @ means.T - torch.eye(K)).abs().max() < 1e-4

    @given(st.integers(2, 6), st.integers(2, 7), st.floats(0.05, 20), st.integers(0, 10**6))
    @settings(max_examples=40, deadline=None)
    def test_lower_bound_for_every_point_and_dimension(self, K, d, scale, seed):
        labels = balanced(K, 2)
        rows = random_rows(3 * K, d, seed)
        loss = float(plain_loss(rows[K:], rows[:K], labels, scale))
        assert loss > theory.optimum(K, scale).value
        relu = float(plain_loss(rows[K:].abs(), rows[:K], labels, scale))
        assert relu > theory.optimum(K, scale, nonnegative=True).value

    def test_extreme_scales_stay_finite_and_precise(self):
        tiny, huge = theory.optimum(5, 1e-9), theory.optimum(5, 400.0)
        assert abs(tiny.value - (math.log(5) - 1e-9)) < 1e-15
        assert abs(huge.value / (4 * math.exp(-500)) - 1) < 1e-12
        assert abs(huge.wrong_probability / math.exp(-500) - 1) < 1e-12
        assert theory.optimum(5, 1e6).value == 0.0

    @pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "1", True])
    def test_bad_scale(self, scale):
        with pytest.raises(InputError, match="scale"):
            theory.optimum(4, scale)

    @pytest.mark.parametrize("K", [1, 0, 2.5, "3"])
    def test_bad_number_of_classes(self, K):
        with pytest.raises(InputError, match="K must be"):
            theory.optimum(K, 1.0)


class TestCodes:
    @pytest.mark.parametrize("K", [2, 3, 4, 5, 8, 12])
    @pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
    def test_polygon_value(self, K, scale):
        code = frames.polygon(K)
        loss = F.cross_entropy(scale * code @ code.T, torch.arange(K))
        assert abs(theory.polygon_value(K, scale) - float(loss)) < 1e-13
        assert abs(theory.code_value(code, scale) - float(loss)) < 1e-13

    @pytest.mark.parametrize(("K", "scale"), [(4, 60.0), (6, 300.0), (2, 200.0)])
    def test_large_scales_keep_their_digits(self, K, scale):
        """Two neighbours (one for K = 2) at the largest cosine decide: a sum of tiny terms."""
        gap = scale * (1 - math.cos(2 * math.pi / K))
        leading = (2 if K > 2 else 1) * math.exp(-gap)
        assert abs(theory.polygon_value(K, scale) / leading - 1) < 1e-10
        assert abs(theory.code_value(frames.polygon(K), scale) / leading - 1) < 1e-10

    def test_polygon_is_the_etf_up_to_three_classes(self):
        for K in (2, 3):
            difference = theory.polygon_value(K, 2.5) - theory.optimum(K, 2.5).value
            assert abs(difference) < 1e-15

    @pytest.mark.parametrize(("K", "scale"), [(4, 1.0), (5, 3.0), (8, 0.5)])
    def test_polygon_is_the_floor_on_the_circle(self, K, scale):
        found = min(solve(K, 2, balanced(K, 1), scale, seed)[0] for seed in range(6))
        assert abs(found - theory.polygon_value(K, scale)) < 1e-9

    @pytest.mark.parametrize(
        ("K", "code"), [(6, frames.cross_polytope(3)), (12, frames.icosahedron())]
    )
    def test_polytopes_are_the_floor_on_the_sphere(self, K, code):
        found = min(solve(K, 3, balanced(K, 1), 2.0, seed)[0] for seed in range(8))
        assert abs(found - theory.code_value(code, 2.0)) < 1e-9

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.polygon_value(1, 1.0), "K must be at least 2"),
            (lambda: theory.code_value(torch.ones(3, 2), 1.0), "unit sphere"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


SIZES = [(2, 1, 2), (2, 3, 4), (3, 1, 2), (3, 2, 2), (3, 3, 5), (4, 1, 3), (4, 2, 4), (5, 2, 6)]
SIZES += [(6, 1, 5), (6, 3, 7)]


class TestSpectrum:
    @pytest.mark.parametrize(("K", "n", "d"), SIZES)
    @pytest.mark.parametrize("scale", [0.2, 1.7, 9.0])
    def test_every_eigenvalue_by_autograd(self, K, n, d, scale):
        weight, labels = frames.simplex_etf(K, d), balanced(K, n)
        _, expected = oracle(weight[labels], weight, labels, scale)
        found = theory.hessian_spectrum(K, n, d, scale)
        assert found.shape == ((d - 1) * (K + n * K),)
        assert (found - expected).abs().max() < 1e-13

    @pytest.mark.parametrize(("K", "n", "d"), SIZES)
    def test_null_space_is_the_rotations(self, K, n, d):
        spectrum = theory.hessian_spectrum(K, n, d, 2.0)
        assert int((spectrum == 0).sum()) == d * (K - 1) - K * (K - 1) // 2
        assert float(spectrum.min()) == 0.0

    @pytest.mark.parametrize(("K", "n", "d"), [(3, 2, 4), (5, 3, 6), (2, 4, 3), (4, 3, 3)])
    def test_block_steps_by_rescaling_the_autograd_hessian(self, K, n, d):
        """Steps (1, n) for (W, H) see D^½ Hess D^½ with D = n on the features."""
        weight, labels = frames.simplex_etf(K, d), balanced(K, n)
        rows = torch.cat([weight, weight[labels]])
        fun = lambda x: plain_loss(x.view(-1, d)[K:], x.view(-1, d)[:K], labels, 1.5)
        basis = torch.block_diag(*[torch.linalg.svd(row[None]).Vh[1:].T for row in rows])
        matrix = basis.T @ torch.func.hessian(fun)(rows.flatten()) @ basis
        size = torch.ones(len(matrix), dtype=torch.float64)
        size[K * (d - 1) :] = n
        expected = torch.linalg.eigvalsh(size.sqrt()[:, None] * matrix * size.sqrt())
        low, high = theory.curvature_range(K, n, d, 1.5, block_steps=True)
        assert abs(high - float(expected[-1])) < 1e-13
        positive = expected[expected > 1e-9]
        assert abs(low - float(positive[0])) < 1e-13

    @pytest.mark.parametrize(
        ("K", "n", "d", "scale", "kappa"),
        [
            (10, 5, 20, 1, 18.944),
            (10, 5, 20, 0.1, 164.61),
            (10, 5, 20, 10, 12.667),
            (100, 5, 128, 1, 180.81),
        ],
    )
    def test_condition_numbers_of_the_spec(self, K, n, d, scale, kappa):
        assert abs(theory.condition_number(K, n, d, scale) / kappa - 1) < 5e-5

    @pytest.mark.parametrize(("K", "n", "d"), [(4, 3, 4), (2, 3, 5), (7, 1, 9)])
    def test_condition_number_where_both_curvatures_underflow(self, K, n, d):
        """Without a wrong probability: c(1+t)(1+1/n), for K = 2 c(1+1/n), over c/n."""
        scale = 2000.0
        kappa = (n + 1) * (1 + scale / (K - 1) if K > 2 else 1)
        assert theory.curvature_range(K, n, d, scale) == (0.0, 0.0)
        assert theory.condition_number(K, n, d, scale) == pytest.approx(kappa)
        assert theory.descent_rate(K, n, d, scale) == pytest.approx(1 - 1 / kappa)

    def test_curvatures_of_the_spec(self):
        low, high = theory.curvature_range(10, 5, 20, 1)
        assert abs(low - 0.00584677) < 5e-9
        assert abs(high - 0.11076284) < 5e-9

    @pytest.mark.parametrize(("K", "n", "d"), [(4, 1, 4), (10, 5, 20), (6, 3, 5)])
    def test_asymptotics(self, K, n, d):
        low, _ = theory.curvature_range(K, n, d, 1e-4)
        assert abs(low / (4e-8 / (K * (K - 1) * (n + 1))) - 1) < 1e-3
        if d >= K:
            scale = 40.0
            low, _ = theory.curvature_range(K, n, d, scale)
            assert abs(low / (scale / n * theory.optimum(K, scale).wrong_probability) - 1) < 1e-12

    def test_tiny_scales_do_not_cancel(self):
        low, high = theory.curvature_range(10, 5, 20, 1e-9)
        assert abs(high / low / (36 * 9 / (20 * 1e-9)) - 1) < 1e-6

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.hessian_spectrum(4, 2, 2, 1.0), "d >= 3 for K=4, got d=2"),
            (lambda: theory.hessian_spectrum(2, 2, 1, 1.0), "d must be at least 2"),
            (lambda: theory.hessian_spectrum(3, 0, 4, 1.0), "n must be at least 1"),
            (lambda: theory.hessian_spectrum(3, 1, 4, -1.0), "scale must be greater than 0"),
            (lambda: theory.hessian_spectrum(1, 1, 4, 1.0), "K must be at least 2"),
            (lambda: theory.best_scale(5, 1, 3), "d >= 4 for K=5, got d=3"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


class TestRates:
    @pytest.mark.parametrize(
        ("scale", "rate"), [(0.3, 0.95820319), (1, 0.88188131), (3, 0.84375), (6, 0.88636364)]
    )
    def test_rates_of_the_spec(self, scale, rate):
        assert abs(theory.descent_rate(6, 3, 9, scale) - rate) < 1e-8

    @pytest.mark.parametrize(("block_steps", "after"), [(False, 100), (True, 40)])
    def test_plain_gradient_descent_has_this_rate(self, block_steps, after):
        K, n, d, scale = 4, 3, 5, 2.0
        weight, labels = frames.simplex_etf(K, d), balanced(K, n)
        rows = F.normalize(
            torch.cat([weight, weight[labels]]) + 1e-4 * random_rows(K + K * n, d, 0)
        )
        size = torch.ones(len(rows), 1, dtype=torch.float64)
        if block_steps:
            size[K:] = n
        low, high = theory.curvature_range(K, n, d, scale, block_steps=block_steps)
        norms = []
        for _ in range(after + 1):
            rows.requires_grad_()
            (g,) = torch.autograd.grad(plain_loss(rows[K:], rows[:K], labels, scale), rows)
            norms.append(float((g * size.sqrt()).norm()))
            rows = F.normalize(rows.detach() - size / high * g)
        assert abs((norms[after] / norms[after - 10]) ** 0.1 - (1 - low / high)) < 1e-4
        if not block_steps:
            assert theory.descent_rate(K, n, d, scale) == pytest.approx(1 - low / high)

    def test_escape_growth(self):
        assert abs(theory.escape_growth(4, 3, 2.0, 1.0) - 1.2886751345948129) < 1e-12


class TestBestScale:
    @pytest.mark.parametrize(
        ("sizes", "curvature", "conditioning"),
        [((10, 5, 20), 2.55, 3.21), ((100, 5, 128), 4.35, 35.4)],
    )
    def test_values_of_the_spec(self, sizes, curvature, conditioning):
        found = theory.best_scale(*sizes)
        assert abs(found[0] - curvature) < 5e-3
        assert abs(found[1] / conditioning - 1) < 2e-3

    @pytest.mark.parametrize(("K", "n", "d"), [(4, 2, 4), (3, 1, 2), (3, 2, 4), (5, 2, 4)])
    def test_no_scale_is_better_by_autograd(self, K, n, d):
        weight, labels = frames.simplex_etf(K, d), balanced(K, n)
        null = d * (K - 1) - K * (K - 1) // 2

        def measured(scale):
            spectrum = oracle(weight[labels], weight, labels, scale)[1]
            return float(spectrum[null]), float(spectrum[-1] / spectrum[null])

        curved, conditioned = theory.best_scale(K, n, d)
        grid = [f * s for s in (curved, conditioned) for f in (0.2, 0.7, 0.98, 1.02, 1.3, 3.0)]
        values = [measured(scale) for scale in grid]
        assert measured(curved)[0] > max(low for low, _ in values)
        assert measured(conditioned)[1] < min(kappa for _, kappa in values)

    @pytest.mark.parametrize(("K", "n"), [(4, 1), (10, 5), (50, 3)])
    def test_best_conditioning_has_a_closed_form(self, K, n):
        expected = (K - 1) * n / (3 * n - 1)
        assert theory.best_conditioning(K, n) == pytest.approx(expected)
        assert abs(theory.best_scale(K, n, K)[1] / expected - 1) < 1e-9

    @pytest.mark.parametrize(("K", "n", "d"), [(5, 2, 4), (10, 5, 9), (3, 2, 4), (3, 1, 3)])
    def test_elsewhere_the_closed_form_is_wrong(self, K, n, d):
        assert abs(theory.best_scale(K, n, d)[1] * (3 * n - 1) / ((K - 1) * n) - 1) > 0.05

    def test_two_classes_tie(self):
        curved, conditioned = theory.best_scale(2, 3, 4)
        assert curved == conditioned
        # maximum of s/(e^{2s}+1): e^{2s}(2s-1) = 1
        assert abs(math.exp(2 * curved) * (2 * curved - 1) - 1) < 1e-6
        assert abs(theory.condition_number(2, 3, 4, 0.1) - 4) < 1e-12


def assert_critical_with(point, tolerance=1e-12):
    """Logits are rounded to eps * scale, their gradient is ``scale`` times as wide as the loss."""
    eps, scale = torch.finfo(torch.float64).eps, point.scale
    norm, spectrum = oracle(point.features, point.weight, point.labels, scale)
    assert norm < 1e-13 + 4 * eps * scale**2
    loss = plain_loss(point.features, point.weight, point.labels, scale)
    assert abs(float(loss) - point.value) < 1e-13 + 4 * eps * scale
    if point.min_eigenvalue is not None:
        assert abs(float(spectrum[0]) - point.min_eigenvalue) < tolerance
    return spectrum


class TestDerivatives:
    """Gradient and Hessian product anywhere, against automatic differentiation of x/|x|."""

    @pytest.mark.parametrize(
        ("K", "N", "d", "scale"), [(3, 6, 4, 1.7), (2, 2, 2, 0.3), (5, 9, 3, 6.0)]
    )
    def test_by_autograd(self, K, N, d, scale):
        weight, features, labels = random_rows(K, d, 1), random_rows(N, d, 2), torch.arange(N) % K
        along = [x - (x * r).sum(1, keepdim=True) * r for x, r in (
            (random_rows(N, d, 3), features), (random_rows(K, d, 4), weight))]  # fmt: skip

        def slope(h, w):
            return torch.func.grad(plain_loss, argnums=(0, 1))(h, w, labels, scale)

        found = theory.multipliers(features, weight, labels, scale)[:2]
        for a, b in zip(found, slope(features, weight), strict=True):
            assert (a - b).abs().max() < 1e-14
        _, expected = torch.func.jvp(slope, (features, weight), tuple(along))
        product = theory.hessian_product(features, weight, labels, scale, *along)
        for a, b, rows in zip(product, expected, (features, weight), strict=True):
            b = b - (b * rows).sum(1, keepdim=True) * rows
            assert (a - b).abs().max() < 1e-13

    def test_rows_and_directions_of_other_kinds(self):
        """Single precision, lists and strides are read; other shapes are an error."""
        weight, features, labels = random_rows(3, 4, 1), random_rows(6, 4, 2), [0, 0, 1, 1, 2, 2]
        along = theory.tangent(features, random_rows(6, 4, 3)), theory.tangent(weight, weight + 1)
        expected = theory.multipliers(features, weight, labels, 2.0)
        for convert in (torch.Tensor.float, torch.Tensor.tolist, lambda x: x.T.contiguous().T):
            found = theory.multipliers(convert(features), convert(weight), labels, 2.0)
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == torch.float64
                assert (a - b).abs().max() < 1e-6
            point = convert(features), convert(weight), labels, 2.0
            product = theory.hessian_product(*point, *map(convert, along))
            plain = theory.hessian_product(features, weight, labels, 2.0, *along)
            assert (product[0] - plain[0]).abs().max() < 1e-6
        beyond = along[0] + 0.3 * features, along[1] - 2.0 * weight
        for a, b in zip(theory.hessian_product(*point, *beyond), product, strict=True):
            assert (a - b).abs().max() < 1e-6  # only the tangent part counts
        with pytest.raises(InputError, match="along_features must have 6 rows"):
            theory.hessian_product(features, weight, labels, 2.0, weight, weight)
        with pytest.raises(InputError, match="along_weight must have 4 columns"):
            theory.hessian_product(features, weight, labels, 2.0, features, weight[:, :3])

    def test_keeps_its_digits_where_everything_is_classified(self):
        """Along a geodesic near an ETF at scale 40, where f is 1e-23: fifty digits of mpmath."""
        mp = pytest.importorskip("mpmath").mp
        K, N, d, scale, labels = 3, 6, 4, 40.0, torch.arange(6) % 3
        weight = F.normalize(frames.simplex_etf(K, d) + 0.05 * random_rows(K, d, 1), dim=1)
        features = F.normalize(weight[labels] + 0.05 * random_rows(N, d, 2), dim=1)
        along = [x - (x * r).sum(1, keepdim=True) * r for x, r in (
            (random_rows(N, d, 3), features), (random_rows(K, d, 4), weight))]  # fmt: skip

        def moved(rows, tangents, t):
            for row, tangent in zip(rows.tolist(), tangents.tolist(), strict=True):
                row, tangent = mp.matrix(row), mp.matrix(tangent)
                speed = mp.norm(tangent)
                yield row * mp.cos(t * speed) + tangent * (mp.sin(t * speed) / speed)

        def value(t):
            h, w = list(moved(features, along[0], t)), list(moved(weight, along[1], t))
            z = [[scale * (x.T * y)[0] for y in w] for x in h]
            terms = [mp.fsum(mp.exp(z[i][k] - z[i][y]) for k in range(K) if k != y)
                     for i, y in enumerate(labels.tolist())]  # fmt: skip
            return mp.fsum(mp.log1p(term) for term in terms) / N

        product = theory.hessian_product(features, weight, labels, scale, *along)
        found = sum(float((a * b).sum()) for a, b in zip(product, along, strict=True))
        with mp.workdps(60):
            expected = float(mp.diff(value, 0, 2))
        assert abs(expected) < 1e-12
        assert found == pytest.approx(expected, rel=1e-9, abs=0)


class TestZoo:
    @pytest.mark.parametrize(
        ("K", "n", "d", "scale"),
        [
            (4, 3, 6, 2.0),
            (6, 2, 7, 0.5),
            (3, 1, 4, 1.0),
            (5, 2, 3, 4.0),
            (2, 2, 3, 1.5),
            (6, 1, 4, 9.0),
        ],
    )
    def test_members_are_strict_saddles_with_the_stated_curvature(self, K, n, d, scale):
        points = theory.zoo(K, n, d, scale)
        assert len(points) >= 3
        for point in points:
            assert_critical_with(point)
            assert point.min_eigenvalue < 0
            assert point.value > theory.optimum(K, scale).value

    def test_zoo_is_complete_where_everything_exists(self):
        names = [point.name for point in theory.zoo(6, 3, 8, 2.0)]
        expected = ["total collapse", "2 groups of 3", "3 groups of 2", "orthoplex"]
        expected += ["regular polygon", "antipodal ETF", "1 of 3 features flipped"]
        assert names == [*expected, "2 of 3 features flipped"]
        assert theory.zoo(3, 1, 4, 1.0)[-1].name == "collinear"

    def test_zoo_in_few_dimensions(self):
        """Each member needs one more dimension than it spans."""
        names = ["total collapse", "2 groups of 3", "3 groups of 2", "orthoplex", "regular polygon"]
        assert [point.name for point in theory.zoo(6, 1, 4, 2.0)] == names
        assert [point.name for point in theory.zoo(6, 1, 3, 2.0)] == [*names[:3], names[4]]
        assert [point.name for point in theory.zoo(6, 1, 2, 2.0)] == names[:2]
        assert [point.name for point in theory.zoo(5, 1, 3, 2.0)] == [*names[::4], "collinear"]

    @pytest.mark.parametrize(
        ("K", "d", "bound"), [(4, 6, 8.0), (2, 2, 0.0), (3, 5, 4.5), (5, 8, 10.0), (100, 102, 200)]
    )
    def test_temperature_bound(self, K, d, bound):
        assert theory.temperature_bound(K, d) == pytest.approx(bound)

    @pytest.mark.parametrize(
        ("name", "value", "curvature", "negative"),
        [
            ("total collapse", 1.3862943611, -0.2886751346, 15),
            ("2 groups of 2", 0.7112971085, -0.2767465796, 10),
            ("orthoplex", 0.2538560221, -0.0481128070, 4),
            ("antipodal ETF", None, -0.8687672402, None),
            ("1 of 3 features flipped", 1.3889512120, -0.4021885603, None),
        ],
    )
    def test_table_of_the_spec(self, name, value, curvature, negative):
        point = {p.name: p for p in theory.zoo(4, 3, 6, 2.0)}[name]
        spectrum = assert_critical_with(point)
        assert abs(point.min_eigenvalue - curvature) < 1e-10
        assert value is None or abs(point.value - value) < 1e-10
        assert negative is None or int((spectrum < -1e-9).sum()) == negative
        if name == "antipodal ETF":
            assert abs(float(spectrum[-1]) - 0.4863502275) < 1e-10

    @pytest.mark.parametrize(
        ("d", "angle"), [(2, 0.0), (2, 0.4), (2, 1.3), (3, 0.9), (4, math.pi / 2), (2, math.pi)]
    )
    def test_total_collapse_at_an_angle(self, d, angle):
        point = theory.total_collapse(3, 2, d, 1.7, angle=angle)
        spectrum = assert_critical_with(point)
        if angle in (0.0, math.pi):
            count = int((spectrum < point.min_eigenvalue + 1e-9).sum())
            assert count == (3 - 1) * (d - 1)

    def test_total_collapse_at_a_right_angle_on_the_circle_is_degenerate(self):
        point = theory.total_collapse(4, 2, 2, 2.0, angle=math.pi / 2)
        spectrum = assert_critical_with(point)
        assert abs(point.min_eigenvalue) < 1e-15
        assert float(spectrum[0]) > -1e-12

    @pytest.mark.parametrize(("K", "n", "d"), [(4, 2, 5), (6, 1, 8)])
    @pytest.mark.parametrize("scale", [0.5, 40.0, 380.0, 700.0])
    def test_digits_where_everything_is_classified(self, K, n, d, scale):
        """Values and curvatures down to e^-1400 from the certificate with forty digits."""
        mp, labels = pytest.importorskip("mpmath").mp, balanced(K, n).tolist()
        points = [
            p for p in theory.zoo(K, n, d, scale) if torch.equal(p.features, p.weight[labels])
        ]
        assert len(points) >= 3
        for point in points:
            # cosines are 1, 0, -1 and ±1/2 here
            cosines = ((2 * point.features @ point.weight.T).round() / 2).tolist()
            with mp.workdps(40):
                S, total = mp.zeros(K + K * n), mp.mpf(0)
                for i, (row, y) in enumerate(zip(cosines, labels, strict=True)):
                    terms = [
                        mp.exp(scale * (c - mp.mpf(row[y]))) * (k != y) for k, c in enumerate(row)
                    ]
                    others = mp.fsum(terms)
                    total += mp.log1p(others) / len(labels)
                    terms[y] = -others
                    for k, term in enumerate(terms):
                        g = scale * term / (1 + others) / len(labels)
                        S[K + i, k] = S[k, K + i] = g
                        S[k, k] -= row[k] * g
                        S[K + i, K + i] -= row[k] * g
                low = min(mp.eigsy(S, eigvals_only=True))
            assert point.value == pytest.approx(float(total), rel=1e-12, abs=0), point.name
            assert point.min_eigenvalue == pytest.approx(float(low), rel=1e-11, abs=0), point.name
            assert point.min_eigenvalue < 0

    def test_no_closed_form_without_a_free_direction(self):
        assert theory.polygon_point(5, 2, 2, 1.0).min_eigenvalue is None
        assert theory.orthoplex_point(6, 1, 3, 1.0).min_eigenvalue is None
        assert theory.flipped_features(3, 2, 2, 1.0, flips=1).min_eigenvalue is None
        for point in (theory.polygon_point(5, 2, 2, 1.0), theory.orthoplex_point(6, 1, 3, 1.0)):
            assert_critical_with(point)

    def test_all_sign_patterns_on_a_line(self):
        curvatures = []
        for code in range(64):
            signs = torch.tensor([1.0 if code >> j & 1 else -1.0 for j in range(6)])
            point = theory.collinear(signs[:3], signs[3:], torch.arange(3), 4, 1.0)
            assert_critical_with(point)
            curvatures.append(point.min_eigenvalue)
        assert abs(min(curvatures) + 1.26198) < 5e-6
        assert abs(max(curvatures) + 0.28397) < 5e-6

    @pytest.mark.parametrize(("K", "n", "d"), [(3, 2, 4), (4, 5, 3), (2, 3, 3)])
    @pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
    def test_equal_classifiers_are_strict_at_every_scale(self, K, n, d, scale):
        generator = torch.Generator().manual_seed(K)
        point = theory.equal_classifiers(K, n, d, scale, generator=generator)
        spectrum = assert_critical_with(point)
        assert float(spectrum[0]) < -0.01
        assert theory.certificate(point.features, point.weight, point.labels, scale) < -0.01

    def test_nearly_critical_points_are_not(self):
        """One flipped sample, and orthonormal W = H, look symmetric but move."""
        weight, labels = frames.simplex_etf(4, 6), balanced(4, 3)
        features = weight[labels].clone()
        features[0] *= -1
        assert oracle(features, weight, labels, 2.0)[0] > 1e-2
        frame = torch.eye(4, 6, dtype=torch.float64)
        assert oracle(frame, frame, torch.arange(4), 2.0)[0] > 1e-2

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.merged_classes(6, 1, 5, 1.0, groups=4), "proper divisor"),
            (lambda: theory.merged_classes(6, 1, 5, 1.0, groups=6), "proper divisor"),
            (lambda: theory.merged_classes(6, 1, 5, 1.0, groups=1), "at least 2"),
            (lambda: theory.merged_classes(8, 1, 2, 1.0, groups=4), "needs d >= 3"),
            (lambda: theory.flipped_features(3, 2, 3, 1.0, flips=2), "less than n=2"),
            (lambda: theory.polygon_point(3, 2, 3, 1.0), "K must be at least 4"),
            (lambda: theory.orthoplex_point(5, 2, 5, 1.0), "even"),
            (lambda: theory.collinear([1, 2], [1, 1], [0, 1], 3, 1.0), r"\+1 and -1"),
            (lambda: theory.equal_classifiers(3, 1, 3, 1.0), "n must be at least 2"),
            (lambda: theory.equal_classifiers(3, 2, 2, 1.0), "needs d >= 3"),
            (lambda: theory.antipodal_etf(4, 1, 2, 1.0), "needs d >= 3"),
            (lambda: theory.total_collapse(3, 2, 1, 1.0), "d must be at least 2"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


# Claim 2.L5: the spurious minimum on the circle (K=3, n=1, scale 12).
@pytest.fixture(scope="module")
def spurious():
    labels = torch.arange(3)
    for seed in range(200):  # one start in about ten
        value, features, weight = solve(3, 2, labels, 12.0, seed)
        if value > 0.05:
            return value, features, weight, labels
    pytest.fail("no start ended at the spurious minimum")


def sdp_value(counts, scale):
    """min over Gram matrices Z ⪰ 0 with unit diagonal, any dimension (independent solver)."""
    cp = pytest.importorskip("cvxpy")
    K, N = len(counts), sum(counts)
    labels = np.repeat(np.arange(K), counts)
    Z = cp.Variable((K + N, K + N), PSD=True)
    losses = [cp.log_sum_exp(scale * (Z[:K, K + i] - Z[labels[i], K + i])) for i in range(N)]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.hstack(losses)) / N), [cp.diag(Z) == 1])
    problem.solve(solver="CLARABEL")
    return problem.value


class TestCertificate:
    @pytest.mark.parametrize(("K", "n", "d"), SIZES)
    @pytest.mark.parametrize("scale", [0.2, 3.0, 30.0])
    def test_zero_at_the_global_minimum(self, K, n, d, scale):
        weight, labels = frames.simplex_etf(K, d), balanced(K, n)
        assert abs(theory.certificate(weight[labels], weight, labels, scale)) < 1e-12
        assert theory.gap_bound(weight[labels], weight, labels, scale) < 1e-10

    def test_matrix_by_autograd(self):
        features, weight = random_rows(7, 4, 0), random_rows(3, 4, 1)
        labels, scale = torch.tensor([0, 0, 1, 2, 2, 2, 1]), 2.5
        cosines = (features @ weight.T).requires_grad_()
        (G,) = torch.autograd.grad(F.cross_entropy(scale * cosines, labels), cosines)
        S = theory.dual_matrix(features, weight, labels, scale)
        assert (S[3:, :3] - G).abs().max() < 1e-15
        assert (S[:3, 3:] - G.T).abs().max() < 1e-15
        rows = torch.cat([weight, features]).requires_grad_()
        loss = F.cross_entropy(scale * rows[3:] @ rows[:3].T, labels)
        (euclidean,) = torch.autograd.grad(loss, rows)
        radial = (euclidean * rows.detach()).sum(1)
        assert (S.diagonal() + radial).abs().max() < 1e-15
        assert float((S - torch.diag(S.diagonal()))[:3, :3].abs().max()) == 0.0

    @pytest.mark.parametrize("d", [4, 6])
    def test_bounds_the_hessian_when_a_direction_is_free(self, d):
        for point in theory.zoo(4, 2, d, 2.0):
            lowest = theory.certificate(point.features, point.weight, point.labels, 2.0)
            spectrum = oracle(point.features, point.weight, point.labels, 2.0)[1]
            assert float(spectrum[0]) <= lowest + 1e-12
            assert lowest < 0

    def test_spurious_minimum_on_the_circle(self, spurious):
        value, features, weight, labels = spurious
        assert abs(value - 0.4569019405) < 1e-8
        spectrum = oracle(features, weight, labels, 12.0)[1]
        assert abs(float(spectrum[0])) < 1e-7
        assert abs(float(spectrum[1]) - 1.55e-3) < 1e-5
        assert abs(float(spectrum[2]) - 6.6e-2) < 1e-3
        assert abs(theory.certificate(features, weight, labels, 12.0) + 4.349) < 1e-3
        lifted = oracle(F.pad(features, (0, 1)), F.pad(weight, (0, 1)), labels, 12.0)[1]
        assert abs(float(lifted[0]) + 4.349) < 1e-3

    @pytest.mark.parametrize(
        ("counts", "d", "scale", "value"),
        [([5, 3, 1], 5, 2.0, 0.0894508790), ([8, 1, 1, 1, 1], 8, 5.0, 0.0057161426)],
    )
    def test_imbalanced_minimum_is_certified(self, counts, d, scale, value):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        found, features, weight = solve(len(counts), d, labels, scale, seed=3)
        assert abs(found - value) < 1e-9
        assert theory.certificate(features, weight, labels, scale, gtol=1e-4) > -1e-5
        assert theory.gap_bound(features, weight, labels, scale) < 1e-4
        assert abs(sdp_value(counts, scale) - value) < 1e-8

    def test_relaxation_has_the_closed_form_value(self):
        assert abs(sdp_value([1, 1, 1, 1], 2.0) - theory.optimum(4, 2.0).value) < 1e-8

    @given(st.integers(0, 10**6), st.floats(0.1, 15.0), st.integers(2, 5))
    @settings(max_examples=30, deadline=None)
    def test_gap_bound_holds_anywhere(self, seed, scale, d):
        features, weight, labels = (
            random_rows(6, d, seed),
            random_rows(3, d, seed + 1),
            balanced(3, 2),
        )
        loss = float(plain_loss(features, weight, labels, scale))
        gap = loss - theory.optimum(3, scale).value
        assert gap <= theory.gap_bound(features, weight, labels, scale) + 1e-12

    def test_gap_bound_is_tight_near_the_minimum(self):
        weight, labels = frames.simplex_etf(4, 5), balanced(4, 2)
        features = F.normalize(weight[labels] + 1e-5 * random_rows(8, 5, 0))
        assert theory.gap_bound(features, weight, labels, 2.0) < 1e-3

    def test_gap_bound_is_the_trace_bound(self):
        """Sharp for total collapse with n = 1: S has rows of sum zero and the smallest eigenvalue
        -scale/K, so that the bound is scale."""
        point = theory.total_collapse(4, 1, 5, 1.7)
        where = point.features, point.weight, point.labels
        assert theory.gap_bound(*where, 1.7) == pytest.approx(1.7)

    @pytest.mark.parametrize(("size", "critical"), [(1e-9, True), (3e-5, False)])
    def test_what_counts_as_critical(self, size, critical):
        """The gradient may be a millionth of G, or of 0.01 where G is smaller."""
        weight, labels = frames.simplex_etf(4, 5), balanced(4, 2)
        features = F.normalize(weight[labels] + size * random_rows(8, 5, 0))
        if critical:
            assert abs(theory.certificate(features, weight, labels, 2.0)) < 1e-8
            return
        with pytest.raises(InputError, match="not critical"):
            theory.certificate(features, weight, labels, 2.0)

    @pytest.mark.parametrize("off", [3e-5, -3e-5])
    def test_one_row_off_the_sphere(self, off):
        weight = frames.simplex_etf(4, 5)
        rows = weight.clone()
        rows[2] *= 1 + off
        with pytest.raises(InputError, match="row 2 has norm .* 1 of 4 rows"):
            theory.multipliers(rows, weight, torch.arange(4), 1.0)

    def test_rotation_and_order_do_not_matter(self):
        point = theory.zoo(4, 2, 5, 2.0)[2]
        turn = frames.random_rotation(5, generator=torch.Generator().manual_seed(1))
        order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
        expected = theory.certificate(point.features, point.weight, point.labels, 2.0)
        found = theory.certificate(
            (point.features @ turn)[order], point.weight @ turn, point.labels[order], 2.0
        )
        assert abs(found - expected) < 1e-12

    def test_accepts_float32_rows(self):
        weight, labels = frames.simplex_etf(4, 5).float(), balanced(4, 2)
        assert abs(theory.certificate(weight[labels], weight, labels, 2.0, gtol=1e-5)) < 1e-6

    def test_non_critical_points_are_refused_with_their_gradient(self):
        features, weight = random_rows(6, 4, 0), random_rows(3, 4, 1)
        norm = oracle(features, weight, balanced(3, 2), 2.0)[0]
        with pytest.raises(InputError, match=rf"norm {norm:.3g}.*critical points only"):
            theory.certificate(features, weight, balanced(3, 2), 2.0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"features": 2 * frames.simplex_etf(3, 3)}, r"row \d has norm 2 \(off by 1, 3 of 3"),
            (
                {"weight": 0.5 * frames.simplex_etf(3, 3)},
                "weight must have rows on the unit sphere",
            ),
            ({"scale": 0.0}, "scale must be greater than 0"),
            ({"labels": [0, 1, 1]}, "class 2 has no sample"),
            ({"labels": [0, 1]}, "2 entries for 3 samples"),
            ({"labels": [0, 1, 3]}, r"0\.\.2, found 3"),
            ({"features": torch.ones(3, 1), "weight": torch.ones(3, 1)}, "dimension d >= 2"),
            ({"weight": frames.simplex_etf(3, 4)}, "weight must have 3 columns"),
            ({"features": torch.full((3, 3), torch.nan)}, "NaN"),
        ],
    )
    def test_bad_points(self, change, message):
        etf = frames.simplex_etf(3, 3)
        point = {"features": etf, "weight": etf, "labels": [0, 1, 2], "scale": 1.0} | change
        with pytest.raises(InputError, match=message):
            theory.certificate(**point)


class TestSlices:
    def test_circle_slice_is_the_loss(self):
        for turn, offset in ((0.3, 1.1), (2.0, -0.5), (0.0, 0.7)):
            angles = turn * torch.arange(4, dtype=torch.float64)
            weight = torch.stack([angles.cos(), angles.sin()], 1)
            features = torch.stack([(angles + offset).cos(), (angles + offset).sin()], 1)
            loss = plain_loss(features, weight, torch.arange(4), 2.0)
            assert abs(float(theory.circle_slice(turn, offset, 4, 2.0)) - float(loss)) < 1e-13

    def test_circle_slice_of_three_classes(self):
        third = 2 * math.pi / 3
        values = theory.circle_slice([third, -third], [0, 0], 3, 2.0)
        assert np.abs(values - theory.optimum(3, 2.0).value).max() < 1e-14
        assert np.abs(theory.circle_slice(0, [0, 1, 2], 3, 2.0) - math.log(3)).max() < 1e-14
        assert abs(theory.circle_slice(math.pi, math.pi, 3, 2.0) - 4.258072) < 1e-6
        assert theory.circle_slice(np.zeros((5, 1)), np.zeros(7), 3, 2.0).shape == (5, 7)

    @pytest.mark.parametrize(
        ("K", "n", "scale"), [(3, 1, 4.0), (3, 2, 1.0), (5, 3, 4.0), (5, 1, 9.0)]
    )
    def test_antipode_curvature_by_autograd(self, K, n, scale):
        """Second derivative of the mean loss when one feature turns away from -w_0 in span W."""
        etf = frames.simplex_etf(K)
        along = F.normalize(etf[1] - etf[2], dim=0)

        def loss(angle):
            h = -angle.cos() * etf[0] + angle.sin() * along
            return F.cross_entropy(scale * (etf @ h)[None], torch.tensor([0])) / (K * n)

        angle = torch.zeros((), dtype=torch.float64)
        measured = torch.func.hessian(loss)(angle)
        assert abs(float(measured) - theory.antipode_curvature(K, n, scale)) < 1e-13

    def test_antipode_turns_into_a_well_at_scale_K_minus_1(self):
        assert theory.antipode_curvature(4, 2, 2.999) < 0 < theory.antipode_curvature(4, 2, 3.001)


def penalised(K, n, d, lambda_w, lambda_h, decay=None, seed=0):
    """Plain L-BFGS minimum of the regularized (or, with ``decay``, the hybrid) problem."""
    labels = balanced(K, n)

    def fun(x):
        x = torch.tensor(x, requires_grad=True)
        W, H = x.view(-1, d)[:K], x.view(-1, d)[K:]
        if decay is None:
            penalty = lambda_w / 2 * (W**2).sum() + lambda_h / 2 * (H**2).sum()
        else:
            W, penalty = F.normalize(W, dim=1), decay / 2 * (H**2).sum() / (n * K)
        value = F.cross_entropy(H @ W.T, labels) + penalty
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    start = random_rows(K + K * n, d, seed).flatten().numpy()
    options = {"maxiter": 20000, "maxfun": 50000, "ftol": 0, "gtol": 1e-12, "maxcor": 40}
    found = minimize(fun, start, jac=True, method="L-BFGS-B", options=options)
    x = torch.from_numpy(found.x).view(-1, d)
    return found.fun, x[:K].norm(dim=1), x[K:].norm(dim=1)


class TestProblems:
    def test_values_by_hand(self):
        rows, weight, labels = (
            random_rows(5, 4, 0),
            random_rows(2, 4, 1),
            torch.tensor([0] * 3 + [1] * 2),
        )
        point, counts = {"features": 2 * rows, "weight": weight}, [3, 2]
        plain = F.cross_entropy(2 * rows @ weight.T, labels)
        found = theory.hybrid(counts, 0.3, 4).value(point)
        assert abs(float(found - plain - 0.15 * 4)) < 1e-14
        found = theory.regularized(counts, 0.1, 0.2, 4).value(point)
        assert abs(float(found - plain - 0.05 * 2 - 0.1 * 20)) < 1e-14
        unit = {"features": rows, "weight": weight}
        found = theory.normalized(counts, 3.0, 4).value(unit)
        assert abs(float(found - plain_loss(rows, weight, labels, 3.0))) < 1e-14

    @pytest.mark.parametrize("scale", [0.5, 2.0])
    def test_matched_points_are_minima_with_the_same_logits(self, scale):
        problems = theory.matched_problems(4, 2, scale, 5)
        points = theory.matched_points(4, 2, scale, 5)
        logits = {name: problem.logits(points[name]) for name, problem in problems.items()}
        for name, problem in problems.items():
            assert (logits[name] - logits["normalized"]).abs().max() < 1e-14
            slopes = problem.gradient(problem.coordinates(points[name]))
            assert max(float(g.abs().max()) for g in slopes.values()) < 1e-14

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.normalized([1, 1], 0.0, 2), "scale must be greater than 0"),
            (lambda: theory.normalized([2, 0], 1.0, 3), "must be at least 1"),
            (lambda: theory.hybrid([1, 1], -1.0, 3), "feature_decay must be greater than 0"),
            (lambda: theory.regularized([1, 1], 0.0, 1.0, 3), "lambda_w must be greater than 0"),
            (lambda: theory.regularized([1, 1], 1.0, 0.0, 3), "lambda_h must be greater than 0"),
            (lambda: theory.hybrid([], 1.0, 3), "counts|classes|K"),
            (lambda: theory.hybrid(3, 1.0, 3), "counts"),
            (lambda: theory.matched_points(3, 2, -1.0, 3), "scale must be greater than 0"),
            (lambda: theory.matched_problems(3, 2, 1000.0, 3), "penalties that underflow"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


class TestPenalised:
    @pytest.mark.parametrize(
        ("K", "n", "lambda_w", "lambda_h", "value", "scale"),
        [(5, 2, 1e-2, 5e-3, 0.2233959222, 3.65148), (10, 3, 5e-4, 1e-4, 0.0308642433, 7.06754)],
    )
    def test_regularized_values_of_the_spec(self, K, n, lambda_w, lambda_h, value, scale):
        found = theory.regularized_optimum(K, n, lambda_w, lambda_h)
        assert abs(found.value - value) < 1e-10
        assert abs(found.scale - scale) < 1e-5

    @pytest.mark.parametrize("lambdas", [(1e-2, 5e-3), (0.02, 0.1), (1e-3, 1e-3)])
    def test_regularized_by_minimisation(self, lambdas):
        value, w, h = penalised(3, 2, 4, *lambdas)
        expected = theory.regularized_optimum(3, 2, *lambdas)
        assert abs(value - expected.value) < 1e-12
        assert (w - expected.weight_norm).abs().max() < 1e-5
        assert (h - expected.feature_norm).abs().max() < 1e-5
        assert abs(expected.weight_norm * expected.feature_norm - expected.scale) < 1e-12

    @pytest.mark.parametrize(
        ("K", "decay", "norm"), [(5, 0.02, 3.394715734), (10, 0.0128, 4.577), (100, 0.0128, 6.875)]
    )
    def test_hybrid_norms_of_the_spec(self, K, decay, norm):
        found = theory.hybrid_optimum(K, decay)
        assert abs(found.feature_norm - norm) < (1e-9 if K == 5 else 5e-4)
        assert found.scale == found.feature_norm
        assert found.weight_norm == 1.0

    @pytest.mark.parametrize("decay", [0.02, 0.5])
    def test_hybrid_by_minimisation(self, decay):
        value, _, h = penalised(4, 2, 5, 0, 0, decay=decay)
        expected = theory.hybrid_optimum(4, decay)
        assert abs(value - expected.value) < 1e-12
        assert (h - expected.feature_norm).abs().max() < 1e-5

    @pytest.mark.parametrize(
        ("lambda_w", "lambda_h"), [(1e-200, 1e-180), (1e-300, 1e-10), (1e-290, 1e288)]
    )
    def test_regularized_with_extreme_penalties(self, lambda_w, lambda_h):
        """The margin that balances cross-entropy and penalty, with forty digits; norms as roots."""
        mp = pytest.importorskip("mpmath").mp
        found = theory.regularized_optimum(3, 2, lambda_w, lambda_h)
        with mp.workdps(400):
            w, h = mp.mpf(lambda_w), mp.mpf(lambda_h)
            scale = mp.mpf(2) / 3 * mp.log(1 / mp.sqrt(2 * w * h) - 2)
            norms = [mp.sqrt(scale * mp.sqrt(2 * h / w)), mp.sqrt(scale * mp.sqrt(w / 2 / h))]
            expected = [float(scale), *map(float, norms)]
        got = [found.scale, found.weight_norm, found.feature_norm]
        assert got == pytest.approx(expected, rel=1e-12, abs=0)

    @pytest.mark.parametrize("lambdas", [(1e200, 1e200), (1e-300, 1e305), (1.0, 1e300)])
    def test_huge_penalties_leave_zero(self, lambdas):
        found = theory.regularized_optimum(3, 2, *lambdas)
        assert (found.value, found.weight_norm, found.feature_norm) == (math.log(3), 0.0, 0.0)

    @pytest.mark.parametrize("K", [2, 7])
    @pytest.mark.parametrize("decay", [1e-300, 1e-60, 1e-12, 0.3, 1.0, 50.0, 1e16, 1e290])
    def test_hybrid_norm_solves_its_equation(self, K, decay):
        mp = pytest.importorskip("mpmath").mp
        b = theory.hybrid_optimum(K, decay).feature_norm
        with mp.workdps(60):
            pull = K / (mp.exp(mp.mpf(b) * K / (K - 1)) + K - 1)
            assert abs(float(pull / (mp.mpf(decay) * b)) - 1) < 1e-12

    def test_strong_penalty_collapses_to_zero(self):
        # the switch is at (K-1)√(n λ_w λ_h) = (K-1)/K, that is λ = 1/(K√n) for equal penalties
        edge = 1 / (3 * math.sqrt(2))
        below = theory.regularized_optimum(3, 2, 0.99 * edge, 0.99 * edge)
        above = theory.regularized_optimum(3, 2, 1.01 * edge, 1.01 * edge)
        assert below.scale > 0
        assert (above.scale, above.weight_norm, above.feature_norm) == (0, 0, 0)
        assert above.value == math.log(3)
        value, *_ = penalised(3, 2, 4, 1.01 * edge, 1.01 * edge)
        assert abs(value - math.log(3)) < 1e-9

    @given(st.integers(2, 40), st.integers(1, 20), st.floats(0.2, 12.0))
    @settings(max_examples=40, deadline=None)
    def test_matched_penalties_give_back_the_scale(self, K, n, scale):
        matched = theory.matched_penalties(K, n, scale)
        free = theory.regularized_optimum(K, n, matched.lambda_w, matched.lambda_h)
        assert abs(free.scale / scale - 1) < 1e-9
        assert abs(free.weight_norm / free.feature_norm - 1) < 1e-9
        assert abs(theory.hybrid_optimum(K, matched.feature_decay).scale / scale - 1) < 1e-9

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: theory.regularized_optimum(3, 2, 0.0, 0.1), "lambda_w must be greater than 0"),
            (lambda: theory.regularized_optimum(3, 2, 0.1, -1), "lambda_h must be greater than 0"),
            (lambda: theory.hybrid_optimum(3, 0), "feature_decay must be greater than 0"),
            (lambda: theory.matched_penalties(3, 2, -1), "scale must be greater than 0"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


def test_no_certificate_where_all_gradients_are_tiny():
    """Far from collapse's value, at a scale at which every gradient is below rounding."""
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(
        frames.simplex_etf(3, 4) + 0.1 * torch.randn(3, 4, generator=generator).double(), dim=1
    )
    with pytest.raises(InputError, match="the point is not critical"):
        theory.certificate(W, W, torch.arange(3), 30.0)
