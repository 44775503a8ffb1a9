"""The host tier: one arena of shared memory a node."""

from x2l_cluster.kv.host.arena import remove
from x2l_cluster.kv.host.store import HostKV, HostStats

__all__ = ["HostKV", "HostStats", "remove"]
