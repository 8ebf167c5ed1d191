"""Neural-collapse metrics: collapse (NC1-NC4) and the ones of each result.

The names below come from submodules that are imported when a name is first used: measuring a model
does not load the theory behind the other metrics.
"""

import importlib

_HOMES = {
    "Certificate": "certified",
    "certified_gap": "certified",
    "Agreement": "collapse",
    "ClassStatistics": "collapse",
    "REFERENCE": "collapse",
    "by_class": "collapse",
    "cdnv_by_class": "collapse",
    "nc_metrics": "collapse",
    "frame_distances": "geometry",
    "generalized_nc": "generalized",
    "multi_label_metrics": "multi_label",
    "nc5": "ood",
    "nci": "ood",
    "neco": "ood",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(globals() | _HOMES)
