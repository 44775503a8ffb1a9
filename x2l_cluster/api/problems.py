"""Errors as HTTP: ``application/problem+json`` (RFC 9457) with the codes of ``errors.py``; OpenAI's shape where its
clients talk to us.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.types import Scope

from x2l_cluster.api.wire import dump
from x2l_cluster.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidInput,
    ManifestCorrupt,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    RateLimited,
    RecordCorrupt,
    StoreFull,
    StoreUnavailable,
    Unauthenticated,
    UploadBroken,
    X2LError,
)
from x2l_cluster.messages import Problem
from x2l_cluster.metrics import REFUSED

log: Final = logging.getLogger(__name__)
PROBLEM_JSON: Final = "application/problem+json"
OPENAI_PATHS: Final = ("/v1/chat/", "/v1/models")
_ALWAYS: Final = (
    InvalidInput,
    UploadBroken,
    BodyTooLarge,
    Unauthenticated,
    Forbidden,
    RateLimited,
    Overloaded,
    StoreUnavailable,
    StoreFull,
    ManifestCorrupt,
    RecordCorrupt,
)
_TURNED_AWAY: Final = (401, 403, 413, 429, 503)
_RETRY_AFTER_S: Final = 1.0
_BUG: Final = Problem(
    code="internal",
    title="The service has a bug.",
    detail="something went wrong that should not; the id of this request (X-Request-Id) finds it in the log",
    status=500,
    type="urn:x2l:problem:internal",
)

_OPENAI_SCHEMA: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "null"},
                "code": {"type": "string"},
            },
        }
    },
}


def install(app: FastAPI) -> None:
    """From now on every error of a route, and every address without one, is answered with a problem."""
    app.add_exception_handler(X2LError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def raises(*kinds: type[X2LError]) -> dict[int | str, dict[str, Any]]:
    """The documentation of a route's problems: those it names, and those any route may answer with."""
    return _documented((*kinds, *_ALWAYS), "Problem", PROBLEM_JSON)


def raises_openai(*kinds: type[X2LError]) -> dict[int | str, dict[str, Any]]:
    """As :func:`raises`, for routes that answer in OpenAI's shape."""
    return _documented((*kinds, *_ALWAYS), "OpenAIError", "application/json")


def _documented(kinds: tuple[type[X2LError], ...], schema: str, media: str) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[type[X2LError]]] = {}
    for kind in kinds:
        status = _openai_status(kind.http_status) if schema == "OpenAIError" else kind.http_status
        by_status.setdefault(status, []).append(kind)
    return {
        status: {
            "description": "; ".join(dict.fromkeys(f"`{kind.code}`: {_title(kind)}" for kind in same)),
            "content": {media: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        }
        for status, same in sorted(by_status.items())
    }


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """Adds to an OpenAPI document what the documentation of problems refers to, and how to show a key."""
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {}).update(Problem=TypeAdapter(Problem).json_schema(), OpenAIError=_OPENAI_SCHEMA)
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}, {}]
    return schema


def _title(kind: type[X2LError]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def problem_of(scope: Scope, error: Exception) -> Problem:
    """Of a bug the caller learns that there is one, the log where.

    Neither its message nor any value is logged: they may hold what was asked.
    """
    if isinstance(error, X2LError):
        return Problem.of(error)
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    log.error("bug id=%s kind=%s at=%s", scope["state"]["request_id"], type(error).__name__, places)
    return _BUG


def respond(scope: Scope, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as a response, in the shape that clients of the address expect."""
    sent = dict(headers or {})
    if problem.status in _TURNED_AWAY:
        REFUSED.labels(problem.code).inc()
    if problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        sent["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s or _RETRY_AFTER_S)))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    if scope["path"].startswith(OPENAI_PATHS):
        return JSONResponse(openai_error(problem), status_code=_openai_status(problem.status), headers=sent)
    return Response(dump(problem), status_code=problem.status, headers=sent, media_type=PROBLEM_JSON)


def openai_error(problem: Problem) -> dict[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind_of = kind.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"message": problem.detail, "type": kind_of, "param": None, "code": problem.code}}


def _openai_status(status: int) -> int:
    """OpenAI knows no 422."""
    return 400 if status == HTTPStatus.UNPROCESSABLE_ENTITY else status


async def _ours(request: Request, error: Exception) -> Response:
    return respond(request.scope, problem_of(request.scope, error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # What was sent is not repeated: it may hold a question.
    told = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:20])
    return respond(request.scope, Problem.of(InvalidInput(f"the request is not as it should be: {told}")))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, X2LError):  # raised while the framework read a body
        return respond(request.scope, Problem.of(error.__cause__))
    known: dict[int, X2LError] = {
        404: NotFound("nothing has this address; see /openapi.json for what there is"),
        405: MethodNotAllowed(f"{request.method} is no method of this address; see the Allow header"),
    }
    told = known.get(error.status_code) or InvalidInput(str(error.detail))
    return respond(request.scope, Problem.of(told), error.headers)
