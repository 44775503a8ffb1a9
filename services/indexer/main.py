"""The indexer: a Serve application that looks after the prefill workers. Everything it does is in ``x2l_cluster``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from x2l_cluster.cluster import indexer


def app(args: Mapping[str, Any]) -> serve.Application:
    """What Serve starts (``import_path: services.indexer.main:app``).

    Args:
        args: settings that win over those of the nodes' environment.

    Raises InvalidInput.
    """
    return indexer(args)
