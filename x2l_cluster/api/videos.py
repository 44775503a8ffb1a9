"""Videos: bringing them in, what is kept of them, looking at them, deleting them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from starlette.requests import Request

from x2l_cluster.api.bodies import AppendBody, AppendFields, EstimateBody, UploadFields, VideoBody
from x2l_cluster.api.deps import Access, Tenant, Work
from x2l_cluster.api.guard import announced_bytes, is_upload
from x2l_cluster.api.incoming import FILE, body_schema, wanted
from x2l_cluster.api.problems import raises
from x2l_cluster.errors import (
    DecoderCrashed,
    DecodeTimeout,
    EmptyVideo,
    IdempotencyConflict,
    InvalidRecipe,
    ModelMismatch,
    PathRefused,
    QuotaExceeded,
    SourceMissing,
    SourceRefused,
    SourceTooLarge,
    UnknownVideo,
    VideoError,
)
from x2l_cluster.messages import Chunk, Deleted, Estimate, Job, Video

router = APIRouter(prefix="/v1/videos", tags=["videos"])
Key = Annotated[str | None, Header(min_length=1, max_length=255, description="the same key is the same job")]
_LOCATION: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "of the job"}}}
}
_REFUSALS = (
    PathRefused,
    SourceRefused,
    SourceTooLarge,
    EmptyVideo,
    SourceMissing,
    IdempotencyConflict,
    QuotaExceeded,
)


@router.post(
    "",
    status_code=202,
    responses=raises(InvalidRecipe, UnknownVideo, *_REFUSALS) | _LOCATION,
    openapi_extra=body_schema(VideoBody, UploadFields),
)
async def submit(
    request: Request,
    response: Response,
    service: Work,
    tenant: Tenant,
    access: Access,
    fields: Annotated[UploadFields, Query(description="of an upload that is no form")],
    idempotency_key: Key = None,
) -> Job:
    """Takes on a video, from a URL or path, or the file itself: in a form, or as the whole body.

    Content that is indexed already under the same recipe is no new work. With `reindex` a video that is here is
    indexed anew from its kept original; its old index answers until the new one is ready, and then goes.
    """
    if is_upload(request.headers):  # before it is read
        await access.may_index(tenant, service, announced_bytes(request.headers))
    wants = await wanted(
        request,
        service,
        tenant,
        fields,
        named=lambda body: VideoBody.model_validate_json(body).request(idempotency_key),
        uploaded=lambda fields, source: fields.request(source, idempotency_key),
    )
    if wants.source is None:
        await access.may_index(tenant, service, 0, anew=wants.reindex is not None)
    return _accepted(await service.submit(tenant, wants), response)


@router.post(
    "/{video:id}:append",
    status_code=202,
    responses=raises(UnknownVideo, ModelMismatch, *_REFUSALS) | _LOCATION,
    openapi_extra=body_schema(AppendBody, AppendFields),
)
async def append(
    video: str,
    request: Request,
    response: Response,
    service: Work,
    tenant: Tenant,
    access: Access,
    fields: Annotated[AppendFields, Query(description="of an upload that is no form")],
    idempotency_key: Key = None,
) -> Job:
    """Goes on with a video whose recording has grown, given as long as it is by now, as a video is brought in.

    What was indexed stays, and questions are answered over it meanwhile. A file that does not begin with all of it
    fails the job with `not_a_continuation`; one with nothing new is no work.
    """
    await service.video(tenant, video)  # nothing is sent to a video that is not there
    await access.may_index(tenant, service, _upload_bytes(request), instead=video)
    wants = await wanted(
        request,
        service,
        tenant,
        fields,
        named=lambda body: AppendBody.model_validate_json(body).request(video, idempotency_key),
        uploaded=lambda fields, source: fields.request(video, source, idempotency_key),
    )
    return _accepted(await service.submit(tenant, wants), response)


def _upload_bytes(request: Request) -> int:
    return announced_bytes(request.headers) if is_upload(request.headers) else 0


def _accepted(job: Job, response: Response) -> Job:
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("", responses=raises())
async def videos(service: Work, tenant: Tenant) -> list[Video]:
    """By id."""
    return list(await service.videos(tenant))


@router.post(":estimate", responses=raises(InvalidRecipe))
async def estimate(body: EstimateBody, service: Work, tenant: Tenant) -> Estimate:
    """What indexing would take: chunks, bytes by level and tier, bytes on the device, time."""
    return await service.estimate(tenant, body.request())


@router.get("/{video:id}", responses=raises(UnknownVideo))
async def video(video: str, service: Work, tenant: Tenant) -> Video:
    """An index, finished or not."""
    return await service.video(tenant, video)


@router.get("/{video:id}/chunks", responses=raises(UnknownVideo))
async def chunks(video: str, service: Work, tenant: Tenant) -> list[Chunk]:
    """The sealed chunks and what is stored of each."""
    return list(await service.chunks(tenant, video))


@router.get(
    "/{video:id}/frames",
    response_class=Response,
    responses=raises(UnknownVideo, SourceMissing, VideoError, DecodeTimeout, DecoderCrashed)
    | {
        200: {
            "description": "The picture; `X-Frame-Time-S` is when it began to be shown.",
            "content": {"image/jpeg": {"schema": FILE}, "image/png": {"schema": FILE}},
        }
    },
)
async def frame(
    video: str,
    service: Work,
    tenant: Tenant,
    t: Annotated[float, Query(ge=0, le=1e9, allow_inf_nan=False, description="seconds from the first frame")],
    format: Annotated[str, Query(pattern="^(jpeg|png)$")] = "jpeg",
) -> Response:
    """The frame on screen at a moment, from the kept original."""
    picture, time_s = await service.frame(tenant, video, t, format=format)
    return Response(
        picture,
        media_type=f"image/{format}",
        headers={"X-Frame-Time-S": repr(time_s), "Cache-Control": "private"},
    )


@router.delete("/{video:id}", responses=raises(UnknownVideo))
async def delete(video: str, service: Work, tenant: Tenant) -> Deleted:
    """Deletes a video from every store and says how many bytes that freed."""
    return await service.delete(tenant, video)
