"""The bank: closed forms against oracles that are not nclib, every solver against closed forms."""

import pytest
import torch

from nclib.ufm import flow
from nclib.ufm.solve import best
from tests import bank

EACH = pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=r.name, marks=[pytest.mark.slow] * r.slow) for r in bank.ROWS],
)


@EACH
def test_the_closed_form_is_what_the_oracle_finds(row):
    if row.convex:
        pytest.importorskip("cvxpy")
        assert bank.by_cvxpy(row.problem) == pytest.approx(row.value, abs=1e-7)
    else:
        found = bank.by_scipy(row.problem, row.few, scale=row.scale[1])
        assert found == pytest.approx(row.value, abs=1e-11)


@EACH
def test_all_starts_together(row):
    found = best(row.problem, row.starts, scale=row.scale, refine=True)
    assert abs(found.value - row.value) <= row.tolerance
    assert float(row.problem.value(found.point)) == pytest.approx(found.value, abs=1e-15)
    assert float(bank.plain(row.problem, **found.point)) == pytest.approx(row.value, abs=1e-11)
    if row.convex:
        assert row.problem.certificate(found.point) < 1e-7


@EACH
def test_one_start_after_the_other(row):
    found = best(row.problem, row.few, scale=row.scale, together=False)
    assert abs(found.value - row.value) <= row.tolerance


@EACH
def test_descent_and_polish(row):
    size = sum(row.scale) / 2
    start = row.problem.start(torch.Generator().manual_seed(1), size, batch=(row.starts,))
    path = flow.descend(row.problem, start, rate=0.05, steps=150, optimizer="adam", record=2)
    assert bool((path.values[-1] < path.values[0]).all())
    order, end = path.values[-1].argsort()[: row.few], path.points[-1]
    near = {name: x if name in row.problem.fixed else x[order] for name, x in end.items()}
    found = best(row.problem, row.problem.coordinates(near), together=False)
    assert abs(found.value - row.value) <= row.tolerance
