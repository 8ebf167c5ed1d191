"""Neural-collapse metrics: collapse (NC1-NC4) and the ones of each result."""

from nclib.metrics.angles import sphere_metrics as sphere_metrics
from nclib.metrics.certified import Certificate as Certificate
from nclib.metrics.certified import certified_gap as certified_gap
from nclib.metrics.collapse import ClassStatistics as ClassStatistics
from nclib.metrics.collapse import nc_metrics as nc_metrics
from nclib.metrics.frames import frame_distances as frame_distances
from nclib.metrics.generalized import generalized_nc as generalized_nc
from nclib.metrics.multi_label import multi_label_metrics as multi_label_metrics
