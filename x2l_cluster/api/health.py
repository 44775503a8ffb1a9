"""Whether the process lives, whether the service works, what it has counted. Needs no key."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from x2l_cluster.api.deps import Work
from x2l_cluster.messages import Readiness

router = APIRouter(tags=["health"])


@router.get("/livez", response_model=dict[str, str])
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": Readiness, "description": "No question can be answered now."}})
async def ready(service: Work, response: Response) -> Readiness:
    """Whether questions are answered and videos indexed, and what is amiss."""
    readiness = await service.ready()
    if not readiness.answering:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return readiness


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Prometheus exposition."""
    # Gauges ask stores how they are: not on the event loop.
    return Response(await run_in_threadpool(generate_latest), media_type=CONTENT_TYPE_LATEST)
