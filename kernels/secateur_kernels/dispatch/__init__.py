"""From a problem and measured times to backend and config: a pure function that explains."""

from secateur_kernels.dispatch.choice import Choice, Policy
from secateur_kernels.dispatch.choose import choose, gain_over_dense, wants_dense_copy
from secateur_kernels.dispatch.problem import CPU, DeviceFacts, Problem
from secateur_kernels.dispatch.table import Entry, Measurement, Table

__all__ = [
    "CPU",
    "Choice",
    "DeviceFacts",
    "Entry",
    "Measurement",
    "Policy",
    "Problem",
    "Table",
    "choose",
    "gain_over_dense",
    "wants_dense_copy",
]
