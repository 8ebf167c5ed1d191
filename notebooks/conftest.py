"""What nbval needs to compare stored notebooks on any machine: `pytest --nbval notebooks`."""

import os
from pathlib import Path

HERE = Path(__file__).parent


def pytest_configure(config):
    if not getattr(config.option, "nbval", False):
        return
    config.option.nbval_current_env = True  # the kernel is the interpreter that runs pytest
    config.option.nbval_cell_timeout = 900
    config.option.nbval_sanitize_with = str(HERE / "nbval.cfg")
    # A cell fails if its table is not the stored one, the last one if a verdict is not.
    os.environ["NCLIB_REPRODUCE"] = "1"
