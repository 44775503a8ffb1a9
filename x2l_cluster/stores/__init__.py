"""All that is kept of videos, together: blocks, manifests and originals. Opened, deleted, let go of, swept; no model.

Nothing here needs torch, and whoever only looks after the stores should not have to install it.
"""

from x2l_cluster.stores.stores import Stores

__all__ = ["Stores"]
