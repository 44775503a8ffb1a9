"""The answerer: engines that answer, as Serve replicas. ``serve run services.answerer.main:app``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from x2l_cluster.cluster import answerer


def app(args: Mapping[str, Any]) -> serve.Application:
    """What Serve starts (``import_path: services.answerer.main:app``).

    Args:
        args: settings that win over those of the nodes' environment.

    Raises InvalidInput.
    """
    return answerer(args)
