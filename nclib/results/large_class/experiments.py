"""Tables behind the figures of result 4: codes, bounds, cold limits, phases.  No training."""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from nclib.results.large_class import codes, theory, ufm
from nclib.results.large_class import energies as code_energies
from nclib.results.large_class import search as solver


def vertices(named_codes):
    """One row per class of each code: ``code, x, y, z, distance, rattler`` (d <= 3)."""
    rows = []
    for name, code in named_codes.items():
        found = theory.hull_projections(code)
        places = torch.nn.functional.pad(code, (0, 3 - code.shape[1])).tolist()
        margin = float(found.distance.min())
        for (x, y, z), distance in zip(places, found.distance.tolist(), strict=True):
            loose = distance > margin + 1e-8
            row = {"code": name, "x": x, "y": y, "z": z, "distance": distance, "rattler": loose}
            rows.append(row | {"dimension": code.shape[1]})
    return pd.DataFrame(rows)


def known_margins(dimensions, largest=24):
    """``rho*`` where it is known, and the bounds of claim 4.G8: one row per (K, d)."""
    rows = []
    for d in dimensions:
        for K in range(2, largest + 1):
            best, stated = theory.best_known(K, d), theory.bound_threshold(d) <= K
            known = best is not None and best.status != "lower bound"
            rows.append(
                {
                    "d": d,
                    "K": K,
                    "margin": best.value if known else np.nan,
                    "status": best.status if known else "unknown",
                    "lower": theory.lower_bound(K, d),
                    "upper": theory.upper_bound(K, d),
                    "stated": stated,
                }
            )
    return pd.DataFrame(rows)


def solved(sizes, *, seed=0, starts=None):
    """The search against the table: margins, Tammes gap, self-duality and rattlers per (K, d).

    ``angle_margin`` is ``1 - cos theta`` after a polish of the angle alone (small codes only).
    """
    rows = []
    for K, d in sizes:
        code = best_of_search(K, d, seed=seed, starts=starts)
        found = theory.hull_projections(code)
        margin = float(found.distance.min())
        tight = found.distance <= margin + 1e-8
        gap = (code - found.direction).square().sum(1)[tight].max() / 2
        reference = theory.best_known(K, d)
        angled = solver.polish(code, goal="angle") if K * d <= solver.POLISH_SIZE else code
        rows.append(
            {
                "K": K,
                "d": d,
                "margin": margin,
                "reference": reference.value if reference else np.nan,
                "status": reference.status if reference else "unknown",
                "width": float((found.upper - found.lower).max()),
                "angle_margin": 1 - theory.max_cosine(angled),
                "duality_gap": float(gap),
                "rattlers": int((~tight).sum()),
                "hard_margin": theory.hard_margin(code, found.direction),
            }
        )
    return pd.DataFrame(rows)


@lru_cache(maxsize=64)
def best_of_search(K, d, *, seed=0, starts=None):
    """The best code of the random search alone, also where a construction is known."""
    return solver.best(solver.search(K, d, seed=seed, starts=starts))


def cold_limit(named_codes, temperatures):
    """CE minima near each cold code, temperature by temperature, with the theory beside them.

    Columns: ``code, temperature, margin_ratio, hard_margin, slack`` (``(rho* - m) / T``),
    ``value_rate`` (``(T log CE + rho*) / T``), their predicted limits ``slack_limit,
    value_limit``, the sandwich ``floor, scaled_low, scaled, scaled_high`` and ``duality_gap``.
    """
    rows = []
    for name, code in named_codes.items():
        K, d = code.shape
        rho = theory.known_margin(K, d)
        slack_limit, value_limit = ufm.approach_rate(code)
        for found in ufm.follow(code, temperatures):
            T = found.temperature
            low, high = theory.log_ce_range(K, K, rho, T)
            rows.append(
                {
                    "code": name,
                    "temperature": T,
                    "margin_ratio": found.margin / rho,
                    "hard_margin": found.hard_margin,
                    "rho": rho,
                    "slack": (rho - found.hard_margin) / T,
                    "value_rate": (found.scaled + rho) / T,
                    "slack_limit": slack_limit,
                    "value_limit": value_limit,
                    "floor": theory.hard_margin_floor(K, K, rho, T),
                    "scaled_low": T * low,
                    "scaled": found.scaled,
                    "scaled_high": T * high,
                    "duality_gap": found.duality_gap,
                }
            )
    return pd.DataFrame(rows)


def global_minima(sizes, temperatures, *, starts=16, seed=0, samples=1):
    """Multi-start CE minima: ``K, d, temperature, log_ce, margin_ratio, within_class``..."""
    rows = []
    for K, d in sizes:
        rho = theory.known_margin(K, d)
        for T in temperatures:
            found = ufm.minimize_ce(K, d, T, samples=samples, starts=starts, seed=seed)
            low, high = ufm.soft_bracket(found.weight, found.features[::samples], T)
            distance = theory.hull_projections(found.weight).distance
            rows.append(
                {
                    "K": K,
                    "d": d,
                    "temperature": T,
                    "log_ce": found.log_ce,
                    "margin": found.margin,
                    "margin_ratio": found.margin / rho if rho else np.nan,
                    "max_cosine": theory.max_cosine(found.weight),
                    "within_class": found.within_class,
                    "duality_gap": found.duality_gap,
                    "stationarity": ufm.stationarity(found.weight, found.features[::samples], T),
                    "bracket_violation": float(
                        torch.maximum(low - distance, distance - high).max()
                    ),
                }
            )
    return pd.DataFrame(rows)


def family_energies(families, temperatures):
    """``family, temperature, scaled`` with ``scaled = T log CE`` of each explicit code."""
    return pd.DataFrame(
        {"family": family.name, "temperature": T, "scaled": T * family.log_energy(T)}
        for family in families
        for T in temperatures
    )


def random_against_rattlers(code, *, size=1e-3, draws=200, seed=0):
    """How the hard margin reacts when the features of one class are moved by ``size``.

    Largest loss over random directions for a rattler, smallest *average* loss for a tight class:
    ``{"rattler": ..., "tight": ...}`` (claim 4.G4).
    """
    found = theory.hull_projections(code)
    margin = float(found.distance.min())
    loose = (found.distance > margin + 1e-8).nonzero().flatten().tolist()
    tight = (found.distance <= margin + 1e-8).nonzero().flatten().tolist()
    generator = torch.Generator().manual_seed(seed)
    loss = {}
    for k in loose + tight:
        noise = torch.randn(draws, code.shape[1], generator=generator, dtype=torch.float64)
        moved = found.direction[k] + size * torch.nn.functional.normalize(noise, dim=1)
        moved = torch.nn.functional.normalize(moved, dim=1)
        others = torch.cat([code[:k], code[k + 1 :]])
        reached = (moved @ code[k])[:, None] - moved @ others.T
        loss[k] = (margin - reached.amin(1)).clamp(min=0)
    return {
        "rattler": max((float(loss[k].max()) for k in loose), default=np.nan),
        "tight": min(float(loss[k].mean()) for k in tight),
    }


def two_orthogonal_families(samples=200, *, d=4, K=6, seed=0):
    """Margins of random classifiers with d + 2 <= K <= 2 d (at most 1) and of all splits (1)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(samples, K, d, generator=generator, dtype=torch.float64)
    random = max(theory.margin(W).upper for W in weights)
    explicit = [
        theory.margin(codes.orthogonal_simplices(sizes)).value
        for sizes in code_energies.splits(K, d)
    ]
    return random, explicit


def distances(named_weights, *, sample=300, seed=0):
    """``dist_k`` of up to ``sample`` random classes each: columns ``classifier, distance``."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name, weight in named_weights.items():
        chosen = torch.randperm(len(weight), generator=generator)[:sample]
        found = theory.hull_projections(weight, classes=chosen)
        rows += [{"classifier": name, "distance": value} for value in found.distance.tolist()]
    return pd.DataFrame(rows)


def certificates(named_weights, *, tol=1e-6):
    """The certified margin of whole classifiers and how little had to be solved exactly.

    Columns ``classifier, K, d, lower, upper, one_vs_one, solved``.
    """
    rows = []
    for name, weight in named_weights.items():
        bracket = theory.margin(weight, tol=tol)
        K, d = weight.shape
        rows.append(
            {
                "classifier": name,
                "K": K,
                "d": d,
                "lower": bracket.lower,
                "upper": bracket.upper,
                "one_vs_one": 1 - theory.max_cosine(weight),
                "solved": bracket.solved,
            }
        )
    return pd.DataFrame(rows)


def random_classifier(K, d, *, seed=0):
    """Gaussian rows ``(K, d)``, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, d, generator=generator, dtype=torch.float64)


@lru_cache(maxsize=32)
def reference(K, d, *, seed=0):
    """The best margin known for (K, d), or else the certified margin of a short search."""
    best = theory.best_known(K, d)
    if best is not None and (best.status != "lower bound" or (K, d) in theory.LOWER_BOUNDS):
        return best.value
    return theory.margin(solver.solve(K, d, seed=seed, starts=2)).lower


def largest_cosine_of_gold(K, d, *, sample=200, seed=0):
    """Largest cosine between ``sample`` random Gold words and all others, in one tile."""
    code = codes.gold_code(K, d)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(K, generator=generator)[:sample]
    cosines = code[chosen] @ code.T
    cosines[torch.arange(len(chosen)), chosen] = -1
    return float(cosines.max())
