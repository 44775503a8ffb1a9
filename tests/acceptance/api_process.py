"""A whole service behind HTTP, as a process: ``python -m tests.acceptance.api_process MODEL STORE ROOT``.

Prints its port and the key of tenant ``anna`` as one JSON line, then serves until it is told to stop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path

from x2l_cluster.api import ApiSettings, KeyAccess, create_app
from x2l_cluster.api.serve import server_of
from x2l_cluster.service.local import LocalOptions, LocalService
from x2l_cluster.state.open import open_ledger
from x2l_cluster.state.tenancy import Tenants


def main(model: str, store: str, root: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
    options = LocalOptions(roots=(Path(root),), drain_s=1.0, lease_s=3.0)
    with (
        Tenants(open_ledger(store, "tenants")) as tenants,
        LocalService.open(model, store=store, options=options) as service,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        tenants.create("anna")
        key = tenants.create_key("anna").secret
        sys.stdout.write(json.dumps({"port": listener.getsockname()[1], "key": key}) + "\n")
        sys.stdout.flush()
        app = create_app(service, KeyAccess(tenants), ApiSettings(heartbeat_s=0.2))
        asyncio.run(server_of(app).serve(sockets=[listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
