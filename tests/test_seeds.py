"""Theory holds at any seed: the cells without the tag `networks` of one notebook at one seed.

The number of commits says whose turn it is; ``NCLIB_SEEDS="1 2 3" NCLIB_SEED_BOOKS="02 05"`` asks
for others.
"""

import json
import os

import pytest

from nclib import notebook, paths, runs
from tests.run import commits

BOOKS, TURN = runs.notebooks(), commits()
ASKED = os.environ.get("NCLIB_SEED_BOOKS", BOOKS[TURN % len(BOOKS)][:2]).split()
SEEDS = os.environ.get("NCLIB_SEEDS", str(1 + TURN // len(BOOKS) % 19)).split()


def run_theory(book, seed):
    """The claims of the cells of ``book`` that need no trained network, at ``seed``."""
    content = json.loads((paths.NOTEBOOKS / f"{book}.ipynb").read_text(encoding="utf-8"))
    names = {"__name__": "__main__"}
    # Without the last cell, which demands that every row was checked.
    for cell in [cell for cell in content["cells"] if cell["cell_type"] == "code"][:-1]:
        tags = cell["metadata"].get("tags", [])
        if "networks" not in tags:
            exec(compile("".join(cell["source"]), f"{book}, {cell['id']}", "exec"), names)
        if "parameters" in tags:
            names["seed"] = seed
    return names["run"].ledger.claims


@pytest.mark.slow
@pytest.mark.parametrize("seed", [int(seed) for seed in SEEDS])
@pytest.mark.parametrize("book", [book for book in BOOKS if book.startswith(tuple(ASKED))])
def test_no_claim_of_the_theory_fails(book, seed, tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FOLDER, str(tmp_path))
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path / "figures"))
    found = run_theory(book, seed)
    assert any(claim.verdict == "holds" for claim in found)
    failed = [claim for claim in found if claim.verdict == "fails"]
    assert not failed, [(claim.id, claim.measured, claim.expected) for claim in failed]
