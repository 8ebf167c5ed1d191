"""Full precision inside every metric, and what the rounding of stored features can fake.

A metric that inverts a covariance must not invert rounding noise.  How large that noise is depends
on the precision in which the features were *stored*, often half, not on the one they are computed
in.
"""

import contextlib
import functools
import math
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch

from nclib import checks


def exact(function):
    """``function`` without autocast, gradients and inference mode."""

    @functools.wraps(function)
    def inside(*arguments, **options):
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda", "mps", "xpu"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            return function(*arguments, **options)

    return inside


def _parts(value):
    """The arrays in a list, the columns of a data frame; none of anything else."""
    if hasattr(value, "columns"):
        return [column for _, column in value.items()]
    return [v for v in value if hasattr(v, "dtype")] if isinstance(value, list | tuple) else []


class Storage(NamedTuple):
    """Numbers stored with relative spacing ``eps``, and absolute spacing ``eps·tiny`` near 0."""

    eps: float
    tiny: float

    @classmethod
    def of(cls, value, precision=None):
        """How the entries of the array ``value`` were stored: by its dtype (of lists of arrays and
        data frames the coarsest), or as told.

        ``precision``: a dtype of torch or numpy, its name, or the relative spacing as a number; for
        values that were rounded before they came, such as ``"bfloat16"``.
        """
        if isinstance(precision, cls):
            return precision
        if isinstance(precision, Real) and not isinstance(precision, bool):
            return cls(checks.real("precision", precision, at_least=0, below=1), 0.0)
        if precision is None and (parts := _parts(value)):
            return max(map(cls.of, parts))
        dtype = getattr(value, "dtype", None) if precision is None else precision
        dtype = np.dtype(dtype) if isinstance(dtype, type) else dtype
        name = str(getattr(dtype, "name", dtype)).removeprefix("torch.").lower()
        found = getattr(torch, name, None)
        if isinstance(found, torch.dtype) and found.is_floating_point:
            info = torch.finfo(found)
            return cls(info.eps, info.smallest_normal)
        if precision is not None:
            raise checks.InputError(
                f"precision must be a float dtype such as 'bfloat16', or its spacing, {precision!r}"
                " is not"
            )
        info = np.finfo(np.float64)  # lists, integers
        return cls(float(info.eps), float(info.smallest_normal))

    def coarser(self, other):
        """The coarser of two."""
        return max(self, other)

    def cut(self, means):
        """Singular values, relative to the largest, that the computation of features can fake.

        Class means ``(K, d)`` of lower rank than they should have get directions of about
        ``√max(K, d)·ε`` from products of matrices in float32.  An eighth of that in float64, which
        may hold features that were computed in single precision.
        """
        single = torch.finfo(torch.float32).eps
        return math.sqrt(max(means.shape)) * max(single / 8, min(self.eps, single))

    def floor(self, means, samples, spread, directions):
        """Singular values ``(r,)`` of centred class means ``(K, d)`` that rounding alone can reach
        along the unit ``directions (d, r)``.

        The rounding errors of column j have a standard deviation ``s_j = ε·rms_j/√12``.  As
        independent ones they give a K×d matrix of norm about ``√K·max_j s_j + ‖s‖``, and along v
        at most ``(√K + √d)·‖s∘v‖``, little where one large column has nothing to say; twice the
        smaller, but never more than the largest errors possible.  Errors of samples average out in
        a class mean if the samples spread over more than a spacing (``spread``: tr Σ_W of all
        ``samples``), and repeat themselves if the features have collapsed below it.  The means
        themselves are computed in float64, whose rounding does not average out.
        """
        K, d = means.shape
        errors = self.eps * (means.square().mean(0) + self.tiny**2).sqrt() / math.sqrt(12)
        norm = float(errors.norm())
        along = (math.sqrt(K) + math.sqrt(d)) * (errors[:, None] * directions).norm(dim=0)
        together = 2 * along.clamp(max=math.sqrt(K) * float(errors.max()) + norm)
        alike = math.exp(-2 * math.pi**2 * min(spread / (12 * norm**2), 100.0)) if norm else 1.0
        averaged = min(1.0, 2 * math.sqrt(K / samples) + alike)
        own = 8 * torch.finfo(torch.float64).eps * float(means.abs().max()) * math.sqrt(K)
        return (together.clamp(max=math.sqrt(3 * K) * norm) * averaged).clamp(min=own)
