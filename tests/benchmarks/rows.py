"""All rows, by name."""

from tests.benchmarks import codes, metrics, nets, ufm

ROWS = {row.name: row for module in (metrics, ufm, nets, codes) for row in module.ROWS}
