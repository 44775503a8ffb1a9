"""Videos on their way in: named by a URL or path, or the file itself, in a form or as the whole body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from x2l_cluster.api import upload
from x2l_cluster.api.guard import is_upload
from x2l_cluster.service.base import Service
from x2l_cluster.service.requests import IndexRequest
from x2l_cluster.types import SourceRef

FILE: Final = {"type": "string", "format": "binary"}
_NAME: Final = 255


class Fields(Protocol):
    """What goes with an upload; a pydantic model."""

    @property
    def name(self) -> str | None: ...

    @classmethod
    def model_validate(cls, obj: Any) -> Any: ...


F = TypeVar("F", bound=Fields)


async def wanted(
    request: Request,
    service: Service,
    tenant: str,
    fields: F,
    *,
    named: Callable[[bytes], IndexRequest],
    uploaded: Callable[[F, SourceRef], IndexRequest],
) -> IndexRequest:
    """What is wanted of the service; an upload is kept by then. Nothing is left of one that is refused.

    Args:
        fields: of the query, for an upload that is no form.
        named: makes a request of a JSON body. May raise ValidationError.
        uploaded: makes a request of an upload and its fields.
    """
    if not is_upload(request.headers):
        try:
            return named(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from None
    nothing = SourceRef(id="0" * 64, name="", size_bytes=0)  # raises what no source would make right
    if not request.headers["content-type"].lower().startswith("multipart/"):
        uploaded(fields, nothing)
        return uploaded(fields, await service.keep(tenant, upload.body(request), name=_plain(fields.name)))
    form = upload.Form(request)
    await form.until_file()

    def of_form() -> F:
        try:
            return type(fields).model_validate(form.fields)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from None

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in form.pieces():
            yield piece
        uploaded(of_form(), nothing)  # here, so that a form that is refused leaves no file behind

    source = await service.keep(tenant, pieces(), name=_plain(form.fields.get("name") or form.name))
    return uploaded(of_form(), source)


def body_schema(named: type[BaseModel], fields: type[BaseModel]) -> dict[str, Any]:
    """The request body, for OpenAPI."""
    form = fields.model_json_schema()["properties"] | {upload.FILE_FIELD: FILE}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": named.model_json_schema()},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": form, "required": [upload.FILE_FIELD]}
                },
                "application/octet-stream": {"schema": FILE},
            },
        }
    }


def _plain(name: str | None) -> str | None:
    """A file's own name, for people to read; never a way to anywhere."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:_NAME] or None
