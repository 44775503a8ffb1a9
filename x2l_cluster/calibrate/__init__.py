"""Finds the attention heads of a model that retrieve, and the threshold of ``auto``, on synthetic probes."""

from x2l_cluster.calibrate.calibrate import calibrate
from x2l_cluster.calibrate.probes import Probe, make_probes
from x2l_cluster.calibrate.search import find_heads, margin_for

__all__ = ["Probe", "calibrate", "find_heads", "make_probes", "margin_for"]
