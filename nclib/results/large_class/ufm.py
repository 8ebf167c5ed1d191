"""Cross-entropy and HardMax over unit rows W (K, d) and H (N, d): the problems of result 4.

``CE(W, H) = (1/N) sum_i log(1 + sum_{j != y_i} exp(<w_j - w_{y_i}, h_i> / T))``, all rows on the
sphere, N = n K balanced samples sorted by class.  At low temperature CE is 1e-5 ... 1e-100, so
everything works with ``T log CE``, whose limit for T -> 0 is the HardMax loss ``-rho`` (claim
4.G1).  Rows are normalised inside the objectives: start from any nonzero rows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nclib import checks
from nclib.metrics import margins
from nclib.ufm import solve


def scaled_log_ce(temperature, labels, K, *, margin=0.0):
    """The objective ``T log CE`` of one pair ``(weight, features)``, differentiable.

    ``margin`` is CosFace's: the true cosine is lowered by it.  The loss can then only tend to zero
    if ``margin < rho*(K, d)``; HardMax is shifted but has the same minimisers.
    """
    temperature = checks.real("temperature", temperature, above=0)
    shift = checks.real("margin", margin, at_least=0) / temperature
    own = torch.nn.functional.one_hot(labels, K).bool()

    def objective(weight, features):
        weight = torch.nn.functional.normalize(weight, dim=-1)
        features = torch.nn.functional.normalize(features, dim=-1)
        logits = features @ weight.T / temperature
        gaps = logits - (logits * own).sum(1, keepdim=True)
        rivals = torch.logsumexp(gaps.masked_fill(own, -torch.inf), 1) + shift
        return temperature * (torch.logsumexp(_log_softplus(rivals), 0) - np.log(len(labels)))

    return objective


def _log_softplus(x):
    """log log(1 + e^x): x - e^x / 2 + ... where the inner logarithm would underflow."""
    safe = torch.nn.functional.softplus(x.clamp(min=-20)).log()
    return torch.where(x < -20, x - x.clamp(max=-20).exp() / 2, safe)


@dataclass(frozen=True)
class CeMinimum:
    """A stationary point of CE: unit ``weight`` (K, d), ``features`` (N, d), ``labels`` (N,)."""

    weight: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor
    temperature: float
    log_ce: float
    gradient_norm: float

    @property
    def scaled(self):
        """``T log CE``, which tends to ``-rho*``."""
        return self.temperature * self.log_ce

    @cached_property
    def margin(self):
        """``rho(W)``."""
        return margins.margin(self.weight, tol=1e-11).value

    @cached_property
    def hard_margin(self):
        """``m(W, H)``, at most ``rho(W)``."""
        return margins.hard_margin(self.weight, self.features, self.labels)

    @property
    def duality_gap(self):
        """Largest ``1 - <w_{y_i}, h_i>``: 0 when self-dual (GNC3)."""
        return float((self.weight[self.labels] - self.features).square().sum(1).max() / 2)

    @property
    def within_class(self):
        """Mean squared distance of the features to their class mean (GNC1)."""
        K = len(self.weight)
        sums = torch.zeros_like(self.weight).index_add_(0, self.labels, self.features)
        means = sums / torch.bincount(self.labels, minlength=K)[:, None]
        return float((self.features - means[self.labels]).square().sum(1).mean())


def minimize_ce(
    K, d, temperature, *, samples=1, margin=0.0, starts=32, seed=0, start=None, gtol=1e-13
):
    """The lowest minimum of CE found: :class:`CeMinimum`.

    ``samples``: n per class.  ``margin``: CosFace's.  ``start``: unit rows (K, d) to start W and H
    from (with a nudge when n > 1) instead of ``starts`` random pairs.  ``gtol``: where the gradient
    of ``T log CE`` is small enough; flat minima (large K, high temperature) need thousands of steps
    to reach the default.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    n = checks.integer("samples", samples)
    generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))
    noise = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(K).repeat_interleave(n)
    objective = scaled_log_ce(temperature, labels, K, margin=margin)
    if start is None:
        starts = checks.integer("starts", starts)
        many = {"weight": noise(starts, K, d), "features": noise(starts, K * n, d)}
        rough = solve.minimize_many(objective, many, gtol=1e-4, max_iter=40)
        best = int(rough.values.argmin())
        begin = {name: tensor[best] for name, tensor in rough.variables.items()}
    else:
        weight = margins.unit_rows("start", start)
        features = margins.optimal_features(weight)[labels]
        begin = {"weight": weight, "features": features + (n > 1) * 0.1 * noise(K * n, d)}
    found = solve.minimize(objective, _normalized(begin), gtol=gtol)
    unit = _normalized(found.variables)
    weight, features = unit["weight"], unit["features"]
    log_ce = found.value / temperature
    return CeMinimum(weight, features, labels, temperature, log_ce, found.gradient_norm)


def follow(start, temperatures, *, samples=1):
    """CE minima at falling ``temperatures``, each started from ``start`` (a cold code).

    Starting each temperature from the hot solution before locks into the hot geometry.
    """
    K, d = start.shape
    return [minimize_ce(K, d, T, samples=samples, start=start) for T in temperatures]


def _normalized(variables):
    return {n: torch.nn.functional.normalize(t, dim=-1) for n, t in variables.items()}


def soft_bracket(weight, features, temperature):
    """Certified ``(lower, upper)`` (K,) of ``dist_k`` from one unit feature per class (spec 3.2).

    With softmax probabilities p and ``q_kj = p_kj / (1 - p_kk)``: the hard margin of ``h_k`` bounds
    ``dist_k`` from below, ``|w_k - sum_j q_kj w_j|`` from above, at any temperature.
    """
    lower, residual = _soft_residual(weight, features, temperature)
    return lower, torch.linalg.vector_norm(residual, dim=1)


def _soft_residual(weight, features, temperature):
    gaps = features @ weight.T - (features * weight).sum(1, keepdim=True)
    gaps.fill_diagonal_(-torch.inf)
    return -gaps.amax(1), weight - torch.softmax(gaps / temperature, 1) @ weight


def stationarity(weight, features, temperature):
    """Largest violation of the stationarity conditions of spec 3.2, n = 1.

    ``h_k`` is parallel to ``w_k - sum_j q_kj w_j`` and ``w_k`` to
    ``(1 - p_kk) h_k - sum_{j != k} p_jk h_j``: max-norm of the difference of the unit vectors.
    """
    _, residual = _soft_residual(weight, features, temperature)
    gaps = (features @ weight.T - (features * weight).sum(1, keepdim=True)) / temperature
    gaps.fill_diagonal_(-torch.inf)
    log_p = gaps - torch.nn.functional.softplus(torch.logsumexp(gaps, 1, keepdim=True))
    p = (log_p - log_p.max()).exp()  # a common factor does not change the direction
    pull = p.sum(1, keepdim=True) * features - p.T @ features
    errors = [
        torch.nn.functional.normalize(residual, dim=1) - features,
        torch.nn.functional.normalize(pull, dim=1) - weight,
    ]
    return float(torch.cat(errors).abs().max())


def approach_rate(weight, *, tol=1e-5, ridge=1e-7):
    """``(margin rate, value rate)``: how CE approaches its cold limit (this project, claim 4.G13).

    Near a cold optimum W with active pairs (k, j), moving rows by ``T x`` changes each margin by
    ``T (J x)_kj`` to first order, and CE minimisation becomes the convex problem
    ``min_x log sum exp(-J x)``.  Its dual picks the multipliers y of largest entropy S(y) among
    all those that prove optimality (``J'y = 0, sum y = 1``).  Hence, as T -> 0,

        (rho* - m(W_T, H_T)) / T  ->  S(y) + log max y,
        (T log CE + rho*) / T     ->  S(y) - log K.

    The first is 0 exactly when y is uniform over the active pairs.  This needs a rigid code: where
    optimal codes form a continuum (d + 2 <= K < 2 d) second-order moves matter and the approach is
    slower.  ``tol`` decides which pairs are
    active; ``ridge`` |x|^2 / 2 keeps x bounded when W carries rounding errors.
    """
    weight = margins.unit_rows("weight", weight)
    features = margins.optimal_features(weight)
    gaps = (features * weight).sum(1, keepdim=True) - features @ weight.T
    gaps.fill_diagonal_(torch.inf)
    k, j = (gaps < gaps.min() + tol).nonzero(as_tuple=True)

    def change(weight_move, feature_move):
        move_w = weight_move - (weight_move * weight).sum(1, keepdim=True) * weight
        move_h = feature_move - (feature_move * features).sum(1, keepdim=True) * features
        along_w = ((move_w[k] - move_w[j]) * features[k]).sum(1)
        return along_w + ((weight[k] - weight[j]) * move_h[k]).sum(1)

    def smooth(**moves):
        size = sum(move.square().sum() for move in moves.values())
        return torch.logsumexp(-change(**moves), 0) + ridge / 2 * size

    zero = {"weight_move": torch.zeros_like(weight), "feature_move": torch.zeros_like(weight)}
    found = solve.minimize(smooth, zero)
    y = torch.softmax(-change(**found.variables), 0)
    entropy = float(-(y * y.log()).sum())
    return entropy + float(y.log().max()), entropy - float(np.log(len(weight)))
