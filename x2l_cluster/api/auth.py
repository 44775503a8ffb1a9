"""Who asks: from an API key to a tenant."""

from __future__ import annotations

from typing import Protocol

from x2l_cluster.types import LOCAL_TENANT


class Authenticator(Protocol):
    """Knows the keys. Safe for many concurrent calls; asked once for every request, before its body is read."""

    async def tenant(self, key: str | None) -> str:
        """The tenant a key belongs to; ``key`` is None when the request has none.

        Raises Unauthenticated, Forbidden, RateLimited (with ``retry_after_s``), StoreUnavailable.
        """
        ...


class OpenAccess:
    """Everybody is the tenant ``local``: for a laptop, on a loopback address."""

    async def tenant(self, key: str | None) -> str:
        return LOCAL_TENANT
