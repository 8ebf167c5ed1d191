"""Neural-collapse metrics: collapse (NC1-NC4) and what the six results add to them.

Measuring a model loads neither scipy nor pandas: what needs them imports them when it is called.
"""

from nclib.metrics._classes import cdnv_by_class
from nclib.metrics.agreement import Agreement
from nclib.metrics.certified import Certificate, certified_gap
from nclib.metrics.collapse import REFERENCE, by_class, nc_metrics
from nclib.metrics.generalized import generalized_nc
from nclib.metrics.geometry import frame_distances
from nclib.metrics.multi_label import multi_label_metrics
from nclib.metrics.ood import nc5, nci, neco
from nclib.metrics.statistics import ClassStatistics

__all__ = [
    "REFERENCE",
    "Agreement",
    "Certificate",
    "ClassStatistics",
    "by_class",
    "cdnv_by_class",
    "certified_gap",
    "frame_distances",
    "generalized_nc",
    "multi_label_metrics",
    "nc5",
    "nc_metrics",
    "nci",
    "neco",
]
