"""Several tiers as one store: reads go from the fastest to the slowest, copies come up by use.

::

    get ── near ─ hit ─▶ done                                    (host memory, in the caller's thread)
            └ miss ─▶ flights ── one fetch a block and process   (threads of a pool; callers wait as long as they like)
                        └─ node ── one fetch a block and node    (a kernel lock beside the arena)
                             └─ down the tiers ─▶ checked ─▶ landed in the tiers above, unless it was deleted meanwhile

    put ── home ─▶ done          heat ──── which fine blocks deserve room in host memory
            └─ behind ─▶ copies  fence ─── what still may bring a copy, and what must not any more
                                 ahead ─── hints
"""

from x2l_cluster.kv.tiered.rungs import Rung, ladder
from x2l_cluster.kv.tiered.store import TieredKV

__all__ = ["Rung", "TieredKV", "ladder"]
