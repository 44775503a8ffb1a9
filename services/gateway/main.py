"""The gateway: the HTTP face of the service on Ray Serve. ``serve run services.gateway.main:app``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from x2l_cluster.cluster import gateway


def app(args: Mapping[str, Any]) -> serve.Application:
    """What Serve starts (``import_path: services.gateway.main:app``).

    Args:
        args: settings that win over those of the nodes' environment.

    Raises InvalidInput.
    """
    return gateway(args)
