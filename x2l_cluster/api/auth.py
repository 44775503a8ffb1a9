"""Who asks, and how much they may: from an API key to a tenant, and from a tenant to its bounds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Protocol, cast

import anyio
import anyio.to_thread

from x2l_cluster.errors import QuotaExceeded, Unauthenticated, X2LError
from x2l_cluster.messages import AnswerCompleted, AnswerEvent
from x2l_cluster.service.base import Service
from x2l_cluster.state.tenants import TenantStore, Usage
from x2l_cluster.types import LOCAL_TENANT

_LOOKUPS = 8


class Authenticator(Protocol):
    """Knows keys and bounds. Safe for many concurrent calls. Any call may raise StoreUnavailable."""

    async def tenant(self, key: str | None) -> str:
        """The tenant a key belongs to; asked once for every request, before its body is read. None is no key.

        Raises Unauthenticated, Forbidden, RateLimited.
        """
        ...

    async def may_ask(self, tenant: str, questions: int) -> None:
        """Raises RateLimited (with ``retry_after_s``), QuotaExceeded."""
        ...

    async def may_index(
        self, tenant: str, service: Service, more_bytes: int, *, anew: bool = False, instead: str | None = None
    ) -> None:
        """Whether the tenant may bring in one more video, of so many bytes as far as is known; or have one ``anew``, or
        a longer file ``instead`` of that of a video.

        Raises QuotaExceeded.
        """
        ...

    async def used(self, tenant: str, usage: Usage) -> None:
        """Counts what was used."""
        ...


class OpenAccess:
    """Everybody is the tenant ``local`` and may do everything: for a laptop, on a loopback address."""

    async def tenant(self, key: str | None) -> str:
        return LOCAL_TENANT

    async def may_ask(self, tenant: str, questions: int) -> None:
        return

    async def may_index(
        self, tenant: str, service: Service, more_bytes: int, *, anew: bool = False, instead: str | None = None
    ) -> None:
        return

    async def used(self, tenant: str, usage: Usage) -> None:
        return


class KeyAccess:
    """Keys, quotas and usage as the state keeps them. A revoked key opens nothing from the next request on.

    Args:
        anonymous: whether whoever has no key is the tenant ``local``.
    """

    def __init__(self, tenants: TenantStore, *, anonymous: bool = False) -> None:
        self._tenants, self._anonymous = tenants, anonymous
        # Threads of their own: keys are looked up however much else is waiting.
        self._limiter = anyio.CapacityLimiter(_LOOKUPS)

    async def tenant(self, key: str | None) -> str:
        if key is None and self._anonymous:
            return LOCAL_TENANT
        if key is None:
            raise Unauthenticated("the service wants an API key; send it as 'Authorization: Bearer KEY'")
        return (await anyio.to_thread.run_sync(self._tenants.authenticate, key, limiter=self._limiter)).name

    async def may_ask(self, tenant: str, questions: int) -> None:
        await anyio.to_thread.run_sync(self._tenants.ask, tenant, questions, limiter=self._limiter)

    async def may_index(
        self, tenant: str, service: Service, more_bytes: int, *, anew: bool = False, instead: str | None = None
    ) -> None:
        quotas = (await anyio.to_thread.run_sync(self._tenants.tenant, tenant, limiter=self._limiter)).quotas
        if not anew and (quotas.videos, quotas.source_bytes, quotas.kv_bytes) != (None, None, None):
            all_videos = await service.videos(tenant)
            videos = [video for video in all_videos if video.id != instead]
            held = sum(video.source_bytes or 0 for video in videos)
            stored = sum(video.stored_bytes for video in all_videos)
            # How many bytes of blocks it will take, the worker knows after the first chunk; here only whether any may.
            quotas.check(tenant, videos=len(videos) + 1, source_bytes=held + more_bytes, kv_bytes=stored + 1)
        if quotas.active_jobs is not None:
            active = sum(not job.state.final for job in await service.jobs(tenant))
            if active >= quotas.active_jobs:
                raise QuotaExceeded(
                    f"tenant {tenant} has {active} jobs that have not ended, and may have {quotas.active_jobs}: "
                    "wait for one, or cancel one"
                )

    async def used(self, tenant: str, usage: Usage) -> None:
        await anyio.to_thread.run_sync(self._tenants.add, tenant, usage, limiter=self._limiter)


async def counted(
    auth: Authenticator, tenant: str, events: AsyncIterator[AnswerEvent]
) -> AsyncGenerator[AnswerEvent, None]:
    """The events of an answer; what each part has cost is counted when it is done."""
    async with aclosing(cast(AsyncGenerator[AnswerEvent, None], events)) as said:
        async for event in said:
            if isinstance(event, AnswerCompleted) and event.answer is not None:
                cost = event.answer.usage
                usage = Usage(
                    questions=1,
                    prompt_tokens=cost.prompt_tokens,
                    answer_tokens=cost.answer_tokens,
                    reloaded_bytes=cost.reload_bytes,
                )
                with suppress(X2LError):  # an answer is not lost for want of its bill
                    await auth.used(tenant, usage)
            yield event
