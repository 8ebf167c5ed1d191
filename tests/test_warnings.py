"""Warnings of our own modules are errors in the test run, those of other packages are not."""

import warnings

import pytest
import torch

from nclib.metrics import margins


@pytest.mark.parametrize(
    "module", ["nclib", "nclib.ufm.solve", "tests.metrics.test_angles", "tests.benchmarks.rows"]
)
def test_a_warning_of_an_own_module_is_an_error(module):
    with pytest.raises(UserWarning, match="said"):
        warnings.warn_explicit("said", UserWarning, "a.py", 1, module=module)


@pytest.mark.parametrize(
    "module", ["torch._inductor.compile_fx", "pytest_benchmark.logger", "nclibrary", "my.tests"]
)
def test_a_warning_of_another_package_is_not(module):
    with warnings.catch_warnings(record=True) as heard:  # keeps the filters of the test run
        warnings.warn_explicit("said", UserWarning, "a.py", 1, module=module)
    assert [str(warning.message) for warning in heard] == ["said"]


def test_warnings_as_modules_really_give_them():
    """The name of this file as pytest imports it, and a warning laid on whoever calls nclib."""
    with pytest.raises(UserWarning, match="said"):
        warnings.warn("said", stacklevel=1)
    with pytest.raises(UserWarning, match="duplicate rows"):
        margins.one_vs_rest(torch.ones(2, 3))
