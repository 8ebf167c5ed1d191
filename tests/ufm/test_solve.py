import numpy as np
import pytest
import torch

from nclib import losses
from nclib.checks import InputError
from nclib.ufm import flow, solve
from nclib.ufm.model import UFM
from nclib.ufm.solve import best


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(seed=0, size=6):
    A = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    A = A @ A.T + 0.1 * torch.eye(size, dtype=torch.float64)
    b = torch.randn(size, generator=generator(seed + 1), dtype=torch.float64)
    return (
        A,
        b,
        lambda x, y: (
            0.5 * torch.cat([x, y.flatten()]) @ A @ torch.cat([x, y.flatten()])
            - (b @ torch.cat([x, y.flatten()]))
        ),
    )


START = {"x": torch.zeros(2), "y": torch.ones(2, 2)}


def test_a_quadratic_is_solved_and_its_hessian_is_its_matrix():
    A, b, f = quadratic()
    want = torch.linalg.solve(A, b)
    found = solve.minimize(f, START)
    assert torch.allclose(torch.cat([found.variables["x"], found.variables["y"].flatten()]), want)
    assert found.value == pytest.approx(float(-0.5 * b @ want), abs=1e-13)
    assert torch.allclose(solve.hessian(f, START), A)
    np.testing.assert_allclose(solve.hessian_eigenvalues(f, START), np.linalg.eigvalsh(A))
    d = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[0.0, 1.0], [-1.0, 0.5]])}
    v = torch.tensor([1.0, 2.0, 0.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    assert solve.curvature(f, START, d) == pytest.approx(float(v @ A @ v))
    g = flow.slopes(f, {name: x.double() for name, x in START.items()})
    z = torch.tensor([0.0, 0, 1, 1, 1, 1], dtype=torch.float64)
    assert torch.allclose(torch.cat([g["x"], g["y"].flatten()]), A @ z - b)


def test_one_newton_step_solves_a_quadratic():
    A, b, f = quadratic()
    found = solve.newton_polish(f, START, steps=1)
    assert found.gradient_norm < 1e-12


def test_a_newton_step_finds_a_saddle_as_well():
    found = solve.newton_polish(lambda x: x[0] ** 2 - 3 * x[1] ** 2, {"x": torch.ones(2)}, steps=1)
    assert found.variables["x"].abs().max() < 1e-15


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_many_starts_of_rosenbrocks_valley_reach_the_minimum_together():
    starts = 2 * torch.rand(20, 5, generator=generator(), dtype=torch.float64)
    found = solve.minimize_many(rosenbrock, {"x": starts}, gtol=1e-8)
    assert found.gradient_norms.max() < 1e-8
    assert found.values.max() < 1e-12
    assert torch.allclose(found.variables["x"], torch.ones(20, 5, dtype=torch.float64), atol=1e-6)
    # a working quasi-Newton method needs tens of iterations here, steepest descent thousands
    assert found.iterations < 150


def test_many_starts_equal_single_starts():
    A, b, f = quadratic(3)
    starts = {
        "x": torch.randn(7, 2, generator=generator()),
        "y": torch.randn(7, 2, 2, generator=generator(1)),
    }
    many = solve.minimize_many(f, starts)
    for i in range(7):
        one = solve.minimize(f, {name: value[i] for name, value in starts.items()})
        assert float(many.values[i]) == pytest.approx(one.value, abs=1e-13)
    assert many.variables["y"].shape == (7, 2, 2)


def test_a_start_that_is_done_does_not_move():
    starts = torch.ones(3, 5, dtype=torch.float64)
    starts[1:] = 0.0
    found = solve.minimize_many(rosenbrock, {"x": starts})
    assert torch.equal(found.variables["x"][0], starts[0])


def test_starts_without_a_way_down_leave():
    def kink(x):  # no gradient below gtol anywhere
        return (x - 0.3).abs().sum() + 0.1 * x.square().sum()

    starts = torch.randn(5, 2, generator=generator(5), dtype=torch.float64)
    found = solve.minimize_many(kink, {"x": starts}, max_iter=2000)
    assert found.iterations < 500
    assert float(found.gradient_norms.min()) > 0.01


def test_a_start_without_a_step_down_stays():
    edge = lambda x: torch.where(x < 1, torch.nan, x).sum()
    found = solve.minimize_many(edge, {"x": torch.ones(2, 1)})
    assert found.values.tolist() == [1, 1]


def test_starts_with_nan_are_named():
    with pytest.raises(ValueError, match="x has 1 NaN"):
        solve.minimize(rosenbrock, {"x": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ValueError, match="x has 1 NaN"):
        solve.minimize_many(rosenbrock, {"x": torch.tensor([[1.0, float("nan")]])})


def test_steps_that_overshoot_are_cut_back():
    # Far left the slope is almost constant: a quasi-Newton step from there is enormous.
    steep = lambda x: (torch.exp(x) - x).sum()
    found = solve.minimize_many(steep, {"x": torch.tensor([[-20.0], [-8.0], [3.0]])})
    assert torch.allclose(found.variables["x"], torch.zeros(3, 1).double(), atol=1e-7)
    assert found.values.max() == pytest.approx(1.0, abs=1e-13)


def test_steps_out_of_the_domain_are_cut_back():
    barrier = lambda x: (
        0.01 * x - torch.log(x)
    ).sum()  # NaN below 0, infinite at 0, minimum at 100
    starts = torch.tensor([[1e-3, 500.0], [900.0, 2.0], [50.0, 3000.0]])
    found = solve.minimize_many(barrier, {"x": starts})
    torch.testing.assert_close(
        found.variables["x"], torch.full((3, 2), 100.0).double(), rtol=1e-6, atol=0
    )


def test_iterations_are_those_of_a_quasi_newton_method():
    from scipy.optimize import minimize

    scales = torch.logspace(0, 4, 30, dtype=torch.float64)
    f = lambda x: (scales * x.square()).sum() / 2 + x.square().square().sum()
    start = torch.ones(1, 30, dtype=torch.float64)
    ours = solve.minimize_many(f, {"x": start}, gtol=1e-8).iterations
    jac = lambda x: scales.numpy() * x + 4 * x**3
    value = lambda x: float(f(torch.from_numpy(x)))
    options = {"gtol": 1e-8, "ftol": 0, "maxcor": 10}
    theirs = minimize(value, start[0].numpy(), jac=jac, method="L-BFGS-B", options=options).nit
    assert ours < 1.25 * theirs


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_the_compact_inverse_hessian_is_that_of_the_bfgs_updates(count):
    memory, B, P = 4, 3, 7
    draw = lambda: torch.randn(B, P, generator=rng, dtype=torch.float64)
    rng, pairs, history = generator(count), solve._Pairs(memory), []
    for _ in range(count):
        s = draw()
        y = 0.3 * s + 0.2 * draw()
        y[1] = -s[1] if len(history) % 3 == 1 else y[1]  # start 1: some pairs without curvature
        pairs.add(s, y)
        history.append((s, y))
    g = draw()
    for b in range(B):
        usable = [(s[b], y[b]) for s, y in history if s[b] @ y[b] > 0]
        gamma = usable[-1][0] @ usable[-1][1] / (usable[-1][1] @ usable[-1][1]) if usable else 1.0
        H = gamma * torch.eye(P, dtype=torch.float64)
        for s, y in history[-memory:]:
            if s[b] @ y[b] > 0:
                rho = 1 / (s[b] @ y[b])
                V = torch.eye(P, dtype=torch.float64) - rho * torch.outer(y[b], s[b])
                H = V.T @ H @ V + rho * torch.outer(s[b], s[b])
        torch.testing.assert_close(pairs.apply(g)[b], H @ g[b])


def test_a_stacked_objective_gives_the_minima_of_the_vmapped_one():
    class Stacked:
        calls = 0

        def __call__(self, x):
            return rosenbrock(x)

        def many(self, x):
            Stacked.calls += 1
            return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)

    starts = {"x": 2 * torch.rand(4, 3, generator=generator(), dtype=torch.float64)}
    ours, theirs = solve.minimize_many(Stacked(), starts), solve.minimize_many(rosenbrock, starts)
    assert Stacked.calls >= ours.iterations
    torch.testing.assert_close(ours.values, theirs.values)


# best: the lowest of many ------------------------------------------------------------------------


class Wells:
    """``(x² - 1)² + x/4`` in each entry: a minimum near -1, a worse one near 1; y = 3 stays."""

    def start(self, generator, scale=1.0, batch=()):
        scale = torch.as_tensor(scale).reshape(-1, 1)
        return {"x": scale * torch.randn(*batch, 1, generator=generator, dtype=torch.float64)}

    def place(self, coordinates):
        return {"doubled": 2 * coordinates["x"], "y": torch.tensor(3.0)}

    def __call__(self, x):
        return ((x**2 - 1) ** 2 + x / 4).sum()


def well(side):
    """The minimum on this side: root of 4x³ - 4x + 1/4 and its value."""
    roots = np.roots([4, 0, -4, 0.25]).real
    x = roots.max() if side > 0 else roots.min()
    return x, (x**2 - 1) ** 2 + x / 4


@pytest.mark.parametrize("together", [True, False])
def test_the_lowest_of_many_starts_and_the_share_that_found_it(together):
    starts = {"x": torch.tensor([[2.0], [0.9], [-0.4], [1.5], [-3.0]])}
    found = best(Wells(), starts, together=together)
    (low, value), (high, worse) = well(-1), well(1)
    assert found.value == pytest.approx(value, abs=1e-14)
    assert float(found.point["doubled"]) == pytest.approx(2 * low, abs=1e-6)
    sides = [high, high, low, high, low]
    torch.testing.assert_close(
        found.points["doubled"][:, 0], 2 * torch.tensor(sides), rtol=0, atol=1e-6
    )
    assert found.values.tolist() == pytest.approx([worse, worse, value, worse, value], abs=1e-13)
    assert (
        found.share(value) == 0.4 and found.share(worse) == 1.0 and found.share(value - 1e-4) == 0.0
    )


def test_refining_and_newton_steps_never_go_up_and_reach_the_variables():
    problem = UFM.classes([3] * 4, losses.get("ce"), widths=5, decays=(0.01, 0.02), bias=0.1)
    rough = best(problem, 4, gtol=1e-3)
    fine, exact = best(problem, 4, gtol=1e-3, refine=True), best(problem, 4, gtol=1e-3, newton=3)
    assert rough.gradient_norm > 1e-6 > fine.gradient_norm
    assert exact.gradient_norm < 1e-13
    assert fine.value < rough.value and abs(exact.value - fine.value) < 1e-15
    i = int(fine.values.argmin())
    for name, tensor in fine.point.items():
        assert torch.equal(fine.points[name][i], tensor)


def test_a_refined_point_that_is_worse_is_not_taken(monkeypatch):
    starts, astray = {"x": torch.tensor([[0.9], [-0.4]])}, {"x": torch.tensor([9.0]).double()}
    plain = best(Wells(), starts)
    worse = solve.Solution(astray, plain.value + 1e-9, 0.0, 1)
    monkeypatch.setattr(solve, "minimize", lambda *arguments, **options: worse)
    found = best(Wells(), starts, refine=True)
    assert found.value == plain.value and torch.equal(
        found.point["doubled"], plain.point["doubled"]
    )


def test_starts_are_those_of_the_seed_and_of_the_size():
    problem = UFM.classes([20] * 3, losses.get("ce"), widths=8, decays=(0.1, 0.1))
    still = {"gtol": 1e9}  # every start is done at once
    a, b, c = (best(problem, 3, seed=seed, **still) for seed in (0, 0, 1))
    assert torch.equal(a.values, b.values) and not torch.equal(a.values, c.values)
    spread = best(problem, 3, scale=(0.01, 100.0), **still).points["features"].flatten(1).std(1)
    torch.testing.assert_close(
        spread.log10(), torch.tensor([-2.0, 0.0, 2.0]).double(), rtol=0, atol=0.1
    )
    one = best(problem, 2, scale=0.5, **still).points["features"].std()
    assert float(one) == pytest.approx(0.5, rel=0.1)


def test_one_start_and_fixed_variables():
    weight = torch.eye(3, 4)
    problem = UFM.classes(
        [2] * 3, losses.get("ce"), widths=4, decays=(0.1, 0), fixed={"weight": weight}
    )
    for starts in (1, 3):
        found = best(problem, starts)
        assert torch.equal(found.point["weight"], weight.double())
        assert found.values.shape == (starts,)
        assert float(problem.value(found.point)) == pytest.approx(found.value, rel=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": 0}, "starts must be at least 1"),
        ({"starts": 2.5}, "starts must be an integer"),
        ({"scale": 0.0}, "scale must be greater than 0"),
        ({"scale": (1.0, -1.0)}, "scale must be greater than 0"),
        ({"starts": {"features": torch.ones(2, 2, 3)}}, "coordinates must be features, weight"),
        ({"starts": {"features": torch.full((2, 2, 3), torch.nan)}}, "features has 12 NaN"),
    ],
)
def test_bad_arguments_of_best(change, message):
    problem = UFM.classes([1, 1], losses.get("ce"), widths=3, decays=(0.1, 0.1))
    with pytest.raises(InputError, match=message):
        best(problem, **change)
