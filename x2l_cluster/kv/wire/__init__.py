"""The data plane of the remote tier: a small RESP client over plain sockets, for blobs and nothing else.

::

    client ── gate ────── who may move bytes now: a cap on bytes in flight, by priority
           ├─ buffers ─── memory that was touched before, for values nobody brought a place for
           └─ servers ─── who does the work: redirections, reconnection, breakers
                ├─ cluster ─── which server holds a key (slots, MOVED, ASK)
                └─ node ────── idle connections to one server, and its breaker
                     └─ connection ── log in, send, receive, everything under a deadline
                          ├─ line ──── the socket, plain or TLS
                          └─ resp ──── replies, bounded before anything is allocated; values go straight to their place
"""

from x2l_cluster.kv.wire.client import WireClient

__all__ = ["WireClient"]
