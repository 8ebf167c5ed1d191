"""Derivatives on the product of spheres by finite differences, and the solvers by closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import frames
from nclib.checks import InputError
from nclib.results.normalized import sphere, theory


def point(counts, d, seed=0):
    return sphere.random_point(counts, d, generator=torch.Generator().manual_seed(seed))


def tangent(rows, seed):
    vector = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)).double()
    return vector - (vector * rows).sum(1, keepdim=True) * rows


def geodesic(rows, direction, t):
    """Great circles of the rows in the given tangent directions, by their definition."""
    speed = direction.norm(dim=1, keepdim=True)
    return (speed * t).cos() * rows + (speed * t).sin() * direction / speed


def autograd(features, weight, labels, scale):
    """Gradient and Hessian in tangent coordinates of the cross-entropy of the rows x/|x|."""
    K, d, rows = len(weight), weight.shape[1], torch.cat([weight, features])
    own = F.one_hot(labels, K).bool()

    def fun(x):
        x = F.normalize(x.view(-1, d), dim=1)
        logits = scale * x[K:] @ x[:K].T
        gaps = (logits - logits[own][:, None])[~own].view(-1, K - 1)
        right = gaps.exp().sum(1).log1p()  # its derivatives keep their digits if p of the true
        wrong = logits.logsumexp(1) - logits[own]  # class is 1 up to rounding, and if it is 0
        return torch.where(gaps.amax(1) < 0, right, wrong).mean()

    basis = torch.block_diag(*sphere.tangent_bases(rows))
    gradient, matrix = torch.func.grad(fun), torch.func.hessian(fun)
    return gradient(rows.flatten()) @ basis, basis.T @ matrix(rows.flatten()) @ basis


def assert_blocks_close(found, expected, width, *, rows=None, tolerance=1e-10):
    """Every block of ``width`` columns and ``rows`` rows agrees relative to its largest entry."""
    rows = rows or width
    parts = [m.unfold(0, rows, rows).unfold(1, width, width) for m in (found, expected)]
    size = parts[1].abs().amax((2, 3))
    miss = (parts[0] - parts[1]).abs().amax((2, 3))
    assert bool((miss <= tolerance * size).all()), float((miss / size).nan_to_num().max())


SIZES = [([2, 1, 3], 4, 1.7), ([1, 1], 2, 0.3), ([3, 2, 2, 1, 1], 3, 6.0)]


class TestDerivatives:
    @pytest.mark.parametrize(("counts", "d", "scale"), SIZES)
    def test_loss_is_the_cross_entropy(self, counts, d, scale):
        features, weight, labels = point(counts, d)
        expected = F.cross_entropy(scale * features @ weight.T, labels)
        assert abs(float(sphere.sphere_loss(features, weight, labels, scale) - expected)) < 1e-14

    @pytest.mark.parametrize(("counts", "d", "scale"), SIZES)
    def test_gradient_and_hessian_along_geodesics(self, counts, d, scale):
        features, weight, labels = point(counts, d, 1)
        E, D = tangent(features, 2), tangent(weight, 3)
        loss = lambda t: float(
            sphere.sphere_loss(geodesic(features, E, t), geodesic(weight, D, t), labels, scale)
        )
        step = 5e-4  # fourth-order differences
        slope = (8 * (loss(step) - loss(-step)) - loss(2 * step) + loss(-2 * step)) / (12 * step)
        grad_features, grad_weight = sphere.sphere_gradient(features, weight, labels, scale)
        assert abs(float((grad_features * E).sum() + (grad_weight * D).sum()) - slope) < 1e-10
        bend = 16 * (loss(step) + loss(-step)) - loss(2 * step) - loss(-2 * step) - 30 * loss(0)
        bend /= 12 * step**2
        out_features, out_weight = sphere.sphere_hessian_product(
            features, weight, labels, scale, E, D
        )
        assert abs(float((out_features * E).sum() + (out_weight * D).sum()) - bend) < 1e-7

    @pytest.mark.parametrize(("counts", "d", "scale"), SIZES)
    def test_gradient_is_tangent_and_matches_autograd(self, counts, d, scale):
        features, weight, labels = point(counts, d, 4)
        grad_features, grad_weight = sphere.sphere_gradient(features, weight, labels, scale)
        assert float((grad_features * features).sum(1).abs().max()) < 1e-15
        assert float((grad_weight * weight).sum(1).abs().max()) < 1e-15
        rows = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
        logits = scale * F.normalize(rows[0], dim=1) @ F.normalize(rows[1], dim=1).T
        auto = torch.autograd.grad(F.cross_entropy(logits, labels), rows)
        assert float((auto[0] - grad_features).abs().max()) < 1e-14
        assert float((auto[1] - grad_weight).abs().max()) < 1e-14

    @pytest.mark.parametrize(("counts", "d", "scale"), SIZES)
    def test_dense_hessian_is_the_product(self, counts, d, scale):
        features, weight, labels = point(counts, d, 5)
        matrix = sphere.sphere_hessian(features, weight, labels, scale)
        E, D = tangent(features, 6), tangent(weight, 7)
        U, V = sphere.tangent_bases(weight), sphere.tangent_bases(features)
        coordinates = torch.cat(
            [torch.einsum("kdx,kd->kx", U, D).flatten(), torch.einsum("idx,id->ix", V, E).flatten()]
        )
        out = sphere.sphere_hessian_product(features, weight, labels, scale, E, D)
        expected = torch.cat(
            [
                torch.einsum("kdx,kd->kx", U, out[1]).flatten(),
                torch.einsum("idx,id->ix", V, out[0]).flatten(),
            ]
        )
        assert float((matrix @ coordinates - expected).abs().max()) < 1e-14
        assert float((matrix - matrix.T).abs().max()) < 1e-15

    @pytest.mark.parametrize(("counts", "d", "scale"), SIZES)
    def test_eigenvalues_by_autograd(self, counts, d, scale):
        """Away from critical points too: normalisation is a second-order retraction."""
        features, weight, labels = point(counts, d, 8)
        expected = torch.linalg.eigvalsh(autograd(features, weight, labels, scale)[1])
        found = sphere.sphere_hessian_eigenvalues(features, weight, labels, scale)
        assert found.shape == ((d - 1) * (len(weight) + len(features)),)
        assert float((found - expected).abs().max()) < 1e-13

    @pytest.mark.parametrize("scale", [0.3, 6.0, 30.0, 45.0, 60.0])
    @pytest.mark.parametrize("noise", [0.03, 0.3, None])
    @pytest.mark.parametrize(("counts", "d"), [([2, 1, 3], 4), ([1, 1], 2), ([2, 2, 1, 1, 1], 5)])
    def test_every_block_off_the_minimum(self, counts, d, scale, noise):
        """From next to the minimum, where all of it is as small as e^-scale, to random rows.

        Each block of two rows, relative to its own size: the worst sample must not hide the others.
        """
        features, weight, labels = point(counts, d, 9)
        if noise:
            etf = frames.simplex_etf(len(counts), d)
            features = F.normalize(etf[labels] + noise * features, dim=1)
            weight = F.normalize(etf + noise * weight, dim=1)
        gradient, expected = autograd(features, weight, labels, scale)
        found = sphere.sphere_hessian(features, weight, labels, scale)
        assert_blocks_close(found, expected, d - 1)
        slopes = sphere.sphere_gradient(features, weight, labels, scale)
        bases = sphere.tangent_bases(torch.cat([weight, features]))
        slopes = torch.einsum("mdx,md->mx", bases, torch.cat(slopes[::-1]))
        assert_blocks_close(slopes.flatten()[None], gradient[None], d - 1, rows=1)
        columns = []  # the product with every tangent basis vector, in the same coordinates
        for vector in torch.block_diag(*bases).T.reshape(-1, len(bases), d):
            D, E = vector[: len(weight)], vector[len(weight) :]
            out = sphere.sphere_hessian_product(features, weight, labels, scale, E, D)
            columns.append(torch.einsum("mdx,md->mx", bases, torch.cat(out[::-1])).flatten())
        assert_blocks_close(torch.stack(columns, 1), expected, d - 1, rows=len(expected))

    def test_hessian_product_ignores_radial_parts(self):
        features, weight, labels = point([2, 2], 3)
        E, D = tangent(features, 1), tangent(weight, 2)
        expected = sphere.sphere_hessian_product(features, weight, labels, 2.0, E, D)
        found = sphere.sphere_hessian_product(
            features, weight, labels, 2.0, E + 3 * features, D - weight
        )
        for a, b in zip(expected, found, strict=True):
            assert float((a - b).abs().max()) < 1e-14

    def test_loss_is_differentiable_by_every_means(self):
        features, weight, labels = point([2, 1, 3], 3)
        loss = lambda h, w: sphere.sphere_loss(h, w, labels, 2.0)
        assert torch.autograd.gradcheck(loss, (features.requires_grad_(), weight.requires_grad_()))
        assert torch.func.hessian(loss)(features.detach(), weight.detach()).shape == (6, 3, 6, 3)

    @pytest.mark.parametrize("scale", [30.0, 80.0, 400.0])
    def test_large_scales_keep_their_digits(self, scale):
        """F.cross_entropy is exactly 0 here; the loss is (K-1) e^{-margin}."""
        etf, labels = frames.simplex_etf(4, 5), torch.arange(4)
        expected = theory.optimum(4, scale).value
        assert abs(float(sphere.sphere_loss(etf, etf, labels, scale)) / expected - 1) < 1e-11
        spectrum = sphere.sphere_hessian_eigenvalues(etf, etf, labels, scale)
        assert abs(float(spectrum[-1] / theory.hessian_spectrum(4, 1, 5, scale)[-1]) - 1) < 1e-10

    def test_log_objective(self):
        features, weight, labels = point([2, 1, 3], 3)
        for scale in (0.5, 10.0, 60.0):
            plain = sphere.normalized(labels, scale).objective(features, weight)
            logged = sphere.normalized(labels, scale, log_objective=True).objective(
                features, weight
            )
            assert abs(float(logged - plain.log())) < 1e-13
        etf = frames.simplex_etf(3)
        logged = sphere.normalized(torch.arange(3), 800.0, log_objective=True).objective(etf, etf)
        assert abs(float(logged) - (math.log(2) - 1200)) < 1e-9

    @given(st.integers(0, 10**6), st.floats(0.1, 10))
    @settings(max_examples=20, deadline=None)
    def test_invariances(self, seed, scale):
        features, weight, labels = point([3, 1, 2], 4, seed)
        generator = torch.Generator().manual_seed(seed)
        turn = frames.random_rotation(4, generator=generator)
        order, classes = (
            torch.randperm(6, generator=generator),
            torch.randperm(3, generator=generator),
        )
        renamed = torch.empty(3, 4, dtype=torch.float64)
        renamed[classes] = weight @ turn
        moved = (features @ turn)[order], renamed, classes[labels][order], scale
        original = features, weight, labels, scale
        assert abs(float(sphere.sphere_loss(*moved) - sphere.sphere_loss(*original))) < 1e-13
        spectra = [sphere.sphere_hessian_eigenvalues(*p) for p in (moved, original)]
        assert float((spectra[0] - spectra[1]).abs().max()) < 1e-12


class TestBadInput:
    @pytest.mark.parametrize(
        "call",
        [sphere.sphere_loss, sphere.sphere_gradient, sphere.sphere_hessian_eigenvalues],
    )
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"features": 1.01 * frames.simplex_etf(3, 3)}, r"features.*norm 1.01 \(off by 0.01"),
            ({"weight": torch.zeros(3, 3)}, r"weight.*norm 0 \(off by 1"),
            ({"scale": 0}, "scale must be greater than 0, got 0"),
            ({"scale": -2.0}, "scale must be greater than 0"),
            ({"labels": [0, 0, 1]}, "class 2 has no sample"),
            ({"labels": [0, 1, 2, 2]}, "4 entries for 3 samples"),
            ({"features": torch.ones(3, 1), "weight": torch.ones(3, 1)}, "d >= 2"),
            ({"weight": frames.simplex_etf(3, 3)[:1], "labels": [0, 0, 0]}, "K >= 2"),
        ],
    )
    def test_points(self, call, change, message):
        etf = frames.simplex_etf(3, 3)
        arguments = {"features": etf, "weight": etf, "labels": [0, 1, 2], "scale": 1.0} | change
        with pytest.raises(InputError, match=message):
            call(**arguments)

    def test_hessian_too_large(self):
        features, weight, labels = point([5] * 50, 32)
        with pytest.raises(InputError, match=r"side .* = 9300 > 6000; use sphere_hessian_product"):
            sphere.sphere_hessian_eigenvalues(features, weight, labels, 1.0)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda y: sphere.normalized(y, 0.0), "scale must be greater than 0"),
            (lambda y: sphere.normalized([0, 2], 1.0), "class 1 has no sample"),
            (lambda y: sphere.hybrid(y, -1.0), "feature_decay must be greater than 0"),
            (lambda y: sphere.regularized(y, 0.0, 1.0), "lambda_w must be greater than 0"),
            (lambda y: sphere.regularized(y, 1.0, 0.0), "lambda_h must be greater than 0"),
            (lambda y: sphere.random_point([2, 0], 3), "counts must be at least 1"),
            (lambda y: sphere.random_point([2, 2], 1), "d must be at least 2"),
            (lambda y: sphere.multistart([1, 1], 2, -1.0, starts=3), "scale must be greater"),
            (lambda y: sphere.multistart([1, 1], 2, 1.0, starts=0), "starts must be at least 1"),
        ],
    )
    def test_problems(self, call, message):
        with pytest.raises(InputError, match=message):
            call(torch.tensor([0, 0, 1, 1]))

    def test_solvers(self):
        features, weight, labels = point([2, 2], 3)
        problem = sphere.normalized(labels, 1.0)
        with pytest.raises(InputError, match="method must be one of trust-region"):
            sphere.minimize(problem, features, weight, method="newton")
        with pytest.raises(InputError, match="step must be greater than 0"):
            sphere.descend(problem, features, weight, step=0.0, steps=3)


class TestSolvers:
    @pytest.mark.parametrize("method", sphere.METHODS)
    def test_normalized_optimum(self, method):
        features, weight, labels = point([3] * 4, 6)
        found = sphere.minimize(sphere.normalized(labels, 2.0), features, weight, method=method)
        assert abs(found.value - theory.optimum(4, 2.0).value) < 1e-12
        assert found.gradient_norm < 1e-8
        assert float((found.weight.norm(dim=1) - 1).abs().max()) < 1e-12
        assert float((found.features - found.weight[labels]).abs().max()) < 1e-6
        gram = found.weight @ found.weight.T
        assert float((gram - frames.simplex_etf(4) @ frames.simplex_etf(4).T).abs().max()) < 1e-6
        grad = sphere.sphere_gradient(found.features, found.weight, labels, 2.0)
        assert abs(math.hypot(*[float(g.norm()) for g in grad]) - found.gradient_norm) < 1e-12

    def test_trust_region_reaches_machine_precision(self):
        features, weight, labels = point([5] * 10, 20)
        found = sphere.minimize(sphere.normalized(labels, 1.0), features, weight)
        assert found.iterations <= 30
        assert found.gradient_norm < 1e-12
        assert abs(found.value - theory.optimum(10, 1.0).value) < 1e-14
        values = [value for value, _ in found.history]
        assert values == sorted(values, reverse=True)
        first = float(sphere.sphere_loss(features, weight, labels, 1.0))
        assert abs(values[0] - first) < 1e-14
        grad = sphere.sphere_gradient(features, weight, labels, 1.0)
        assert abs(found.history[0][1] - math.hypot(*[float(g.norm()) for g in grad])) < 1e-13

    @pytest.mark.parametrize("method", ["trust-region", "lbfgs"])
    def test_regularized_and_hybrid_optimum(self, method):
        features, weight, labels = point([2] * 5, 6)
        found = sphere.minimize(
            sphere.regularized(labels, 1e-2, 5e-3), features, weight, method=method
        )
        expected = theory.regularized_optimum(5, 2, 1e-2, 5e-3)
        assert abs(found.value - expected.value) < 1e-12
        assert float((found.features.norm(dim=1) - expected.feature_norm).abs().max()) < 1e-4
        found = sphere.minimize(sphere.hybrid(labels, 0.02), features, weight, method=method)
        expected = theory.hybrid_optimum(5, 0.02)
        assert abs(found.value - expected.value) < 1e-12
        assert float((found.features.norm(dim=1) - expected.feature_norm).abs().max()) < 1e-4
        assert float((found.weight.norm(dim=1) - 1).abs().max()) < 1e-12

    def test_matched_problems_have_the_same_logits(self):
        features, weight, labels = point([2] * 4, 5)
        matched = theory.matched_penalties(4, 2, 2.5)
        problems = [
            (2.5, sphere.normalized(labels, 2.5)),
            (1.0, sphere.hybrid(labels, matched.feature_decay)),
            (1.0, sphere.regularized(labels, matched.lambda_w, matched.lambda_h)),
        ]
        found = [(s, sphere.minimize(p, features, weight)) for s, p in problems]
        logits = [s * f.features @ f.weight.T for s, f in found]
        assert float((logits[0] - logits[1]).abs().max()) < 1e-6
        assert float((logits[0] - logits[2]).abs().max()) < 1e-6

    def test_nonnegative_optimum(self):
        features, weight, labels = point([2] * 3, 4)
        found = sphere.minimize(
            sphere.nonnegative(labels, 2.0), features, weight, method="lbfgs", max_iter=5000
        )
        assert abs(found.value - theory.optimum(3, 2.0, nonnegative=True).value) < 1e-9
        assert float(found.features.min()) >= 0
        same = found.features[::2]
        assert float((same @ same.T - torch.eye(3)).abs().max()) < 1e-4
        cosine = theory.optimum(3, 2.0, nonnegative=True).cosine
        assert float(((found.features * found.weight[labels]).sum(1) - cosine).abs().max()) < 1e-4

    def test_log_objective_solves_large_scales(self):
        features, weight, labels = point([1] * 4, 5)
        problem = sphere.normalized(labels, 40.0, log_objective=True)
        found = sphere.minimize(problem, features, weight, method="lbfgs", max_iter=5000)
        value = float(sphere.sphere_loss(found.features, found.weight, labels, 40.0))
        assert abs(value / theory.optimum(4, 40.0).value - 1) < 1e-8

    def test_start_at_the_optimum_returns_it(self):
        etf = frames.simplex_etf(4, 5)
        found = sphere.minimize(sphere.normalized(torch.arange(4), 2.0), etf, etf)
        assert found.iterations == 0
        assert torch.equal(found.weight, F.normalize(etf, dim=1))

    def test_start_off_the_sphere_is_placed(self):
        features, weight, labels = point([2] * 3, 4)
        problem = sphere.normalized(labels, 2.0)
        expected = sphere.minimize(problem, features, weight)
        found = sphere.minimize(problem, 7 * features, 0.1 * weight)
        assert abs(found.value - expected.value) < 1e-12


class TestMultistart:
    def test_circle_has_a_spurious_minimum_and_space_has_none(self):
        found = sphere.multistart(
            [1] * 3, 2, 12.0, starts=100, generator=torch.Generator().manual_seed(0)
        )
        stuck = found.values > 0.05
        assert 0.02 < float(stuck.double().mean()) < 0.3
        assert float((found.values[stuck] - 0.4569019405).abs().max()) < 1e-8
        assert float(found.min_eigenvalues[stuck].min()) > -1e-9
        assert float(found.relative_gradient.max()) < 1e-9
        space = sphere.multistart(
            [1] * 3, 3, 12.0, starts=50, generator=torch.Generator().manual_seed(0)
        )
        best = theory.optimum(3, 12.0).value
        assert float((space.values / best - 1).abs().max()) < 1e-9

    def test_reports_what_the_single_point_functions_say(self):
        found = sphere.multistart([2, 1, 1], 3, 2.0, starts=3, max_iter=4)
        for j in range(3):
            args = found.features[j], found.weight[j], found.labels, 2.0
            assert abs(float(sphere.sphere_loss(*args) - found.values[j])) < 1e-14
            lowest = sphere.sphere_hessian_eigenvalues(*args)[0]
            assert abs(float(lowest - found.min_eigenvalues[j])) < 1e-13

    @pytest.mark.parametrize(("K", "scale", "highest"), [(3, 1.0, -0.28397), (4, 2.0, -0.46032)])
    def test_other_critical_points_are_strict_saddles(self, K, scale, highest):
        found = sphere.multistart(
            [1] * K,
            K + 1,
            scale,
            starts=60,
            generator=torch.Generator().manual_seed(0),
            critical=True,
        )
        critical = found.relative_gradient < 1e-9
        other = critical & (found.values - theory.optimum(K, scale).value > 1e-9)
        assert int(other.sum()) > 30
        assert float(found.min_eigenvalues[other].max()) < highest + 1e-4
        for j in other.nonzero().flatten()[:10].tolist():
            args = found.features[j], found.weight[j], found.labels, scale
            norms = [float(g.norm()) for g in sphere.sphere_gradient(*args)]
            assert math.hypot(*norms) < 1e-8


class TestDescend:
    def test_records_and_retraction(self):
        features, weight, labels = point([2] * 4, 6)
        problem = sphere.normalized(labels, 2.0)
        measure = lambda h, w: {"alignment": float((h * w[labels]).sum(1).min())}
        h, w, records = sphere.descend(
            problem, features, weight, step=1.0, block_steps=2, steps=301, measure=measure, every=50
        )
        assert [r["iteration"] for r in records] == [0, 50, 100, 150, 200, 250, 300, 301]
        values = [r["value"] for r in records]
        assert max(np.diff(values)) < 1e-15
        assert abs(values[-1] - theory.optimum(4, 2.0).value) < 1e-10
        assert records[-1]["alignment"] > 1 - 1e-9
        assert float((h.norm(dim=1) - 1).abs().max()) < 1e-14
        assert records[-1]["gradient_norm"] < 1e-5 < records[0]["gradient_norm"]

    def test_one_step_by_hand(self):
        features, weight, labels = point([2, 1], 3)
        h, w, _ = sphere.descend(
            sphere.normalized(labels, 1.5), features, weight, step=0.3, block_steps=4, steps=1
        )
        grad_features, grad_weight = sphere.sphere_gradient(features, weight, labels, 1.5)
        assert torch.allclose(h, F.normalize(features - 1.2 * grad_features), atol=1e-14)
        assert torch.allclose(w, F.normalize(weight - 0.3 * grad_weight), atol=1e-14)

    def test_free_variables_move_freely(self):
        features, weight, labels = point([2, 1], 3)
        h, w, _ = sphere.descend(sphere.hybrid(labels, 0.1), features, weight, step=0.3, steps=1)
        rows = features.clone().requires_grad_()
        loss = F.cross_entropy(rows @ weight.T, labels) + 0.05 * rows.square().sum() / 3
        (g,) = torch.autograd.grad(loss, rows)
        assert torch.allclose(h, features - 0.3 * g, atol=1e-14)
        assert float((w.norm(dim=1) - 1).abs().max()) < 1e-15
        h, w, _ = sphere.descend(
            sphere.regularized(labels, 0.2, 0.3), features, weight, step=0.1, steps=1
        )
        rows = weight.clone().requires_grad_()
        loss = F.cross_entropy(features @ rows.T, labels) + 0.1 * rows.square().sum()
        (g,) = torch.autograd.grad(loss, rows)
        assert torch.allclose(w, weight - 0.1 * g, atol=1e-14)

    def test_block_steps_make_the_rate_independent_of_n(self):
        """K=6, d=9, scale 3: the spec counts 33/35/35 steps, against 33/116/1036 without."""

        def steps_to(n, block):
            generator = torch.Generator().manual_seed(0)
            etf, labels = frames.simplex_etf(6, 9), torch.arange(6).repeat_interleave(n)
            noise = lambda m: 0.1 * torch.randn(m, 9, generator=generator, dtype=torch.float64)
            high = theory.curvature_range(6, n, 9, 3.0, block_steps=block)[1]
            _, _, records = sphere.descend(
                sphere.normalized(labels, 3.0),
                etf[labels] + noise(6 * n),
                etf + noise(6),
                step=1 / high,
                block_steps=n if block else 1,
                steps=700,
            )
            best, gaps = theory.optimum(6, 3.0).value, [r["value"] for r in records]
            below = np.array(gaps) - best < 1e-10
            return int(np.argmax(below)) if below.any() else len(below)

        assert steps_to(50, True) < 1.5 * steps_to(1, True)
        assert steps_to(50, False) > 5 * steps_to(50, True)
