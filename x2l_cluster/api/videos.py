"""Videos: bringing them in, what is kept of them, looking at them, deleting them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.requests import Request

from x2l_cluster.api import upload
from x2l_cluster.api.bodies import EstimateBody, UploadFields, VideoBody
from x2l_cluster.api.deps import Access, Tenant, Work
from x2l_cluster.api.guard import announced_bytes, is_upload
from x2l_cluster.api.problems import raises
from x2l_cluster.errors import (
    DecoderCrashed,
    DecodeTimeout,
    EmptyVideo,
    IdempotencyConflict,
    InvalidRecipe,
    PathRefused,
    QuotaExceeded,
    SourceMissing,
    SourceRefused,
    SourceTooLarge,
    UnknownVideo,
    VideoError,
)
from x2l_cluster.messages import Chunk, Deleted, Estimate, Job, Video
from x2l_cluster.service.requests import IndexRequest
from x2l_cluster.types import SourceRef

router = APIRouter(prefix="/v1/videos", tags=["videos"])
_NAME = 255
_FILE = {"type": "string", "format": "binary"}


def _form() -> dict[str, Any]:
    fields = UploadFields.model_json_schema()["properties"]
    return {"type": "object", "properties": fields | {upload.FILE_FIELD: _FILE}, "required": [upload.FILE_FIELD]}


@router.post(
    "",
    status_code=202,
    responses=raises(
        InvalidRecipe,
        PathRefused,
        SourceRefused,
        SourceTooLarge,
        EmptyVideo,
        SourceMissing,
        IdempotencyConflict,
        QuotaExceeded,
        UnknownVideo,
    )
    | {202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "of the job"}}}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": VideoBody.model_json_schema()},
                "multipart/form-data": {"schema": _form()},
                "application/octet-stream": {"schema": _FILE},
            },
        }
    },
)
async def submit(
    request: Request,
    response: Response,
    service: Work,
    tenant: Tenant,
    access: Access,
    fields: Annotated[UploadFields, Query(description="of an upload that is no form")],
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="the same key is the same job")
    ] = None,
) -> Job:
    """Takes on a video, from a URL or path, or the file itself: in a form, or as the whole body.

    Content that is indexed already under the same recipe is no new work. With `reindex` a video that is here is
    indexed anew from its kept original; its old index answers until the new one is ready, and then goes.
    """
    uploaded = is_upload(request.headers)
    if uploaded:  # before it is read
        await access.may_index(tenant, service, announced_bytes(request.headers))
    if not uploaded:
        try:
            wanted = VideoBody.model_validate_json(await request.body()).request(idempotency_key)
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from None
        await access.may_index(tenant, service, 0, anew=wanted.reindex is not None)
    elif request.headers["content-type"].lower().startswith("multipart/"):
        wanted = await _from_form(upload.Form(request), service, tenant, idempotency_key)
    else:
        _checked(fields, idempotency_key)
        source = await service.keep(tenant, upload.body(request), name=_plain(fields.name))
        wanted = fields.request(source, idempotency_key)
    job = await service.submit(tenant, wanted)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


async def _from_form(form: upload.Form, service: Work, tenant: str, key: str | None) -> IndexRequest:
    await form.until_file()

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in form.pieces():
            yield piece
        _checked(fields(), key)  # here, so that a form that is refused leaves no file behind

    def fields() -> UploadFields:
        try:
            return UploadFields.model_validate(form.fields)
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from None

    source = await service.keep(tenant, pieces(), name=_plain(form.fields.get("name") or form.name))
    return fields().request(source, key)


def _checked(fields: UploadFields, key: str | None) -> None:
    """Raises InvalidInput for what no source would make right."""
    fields.request(SourceRef(id="0" * 64, name="", size_bytes=0), key)


def _plain(name: str | None) -> str | None:
    """A file's own name, for people to read; never a way to anywhere."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:_NAME] or None


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
            "content": {"image/jpeg": {"schema": _FILE}, "image/png": {"schema": _FILE}},
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
