"""The OpenAPI document and the service agree: whatever is sent, what comes back is written down, and is no bug."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.engines import mosaic
from tests.http import Keys, serving
from tests.service import MemoryService
from tests.services import indexed, local_service, run
from x2l_cluster.api import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
DOCUMENT = create_app(MemoryService(), Keys()).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_wait_s=0.01, heartbeat_s=0.05) as server:
        for video in ("clip", "0", "A"):
            server.service.add("local", video)
        yield server.url


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_comes_back_is_written_down(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_service() as service, serving(service=service, max_wait_s=0.01, heartbeat_s=0.05) as server:
        film = mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 4)
        for video in ("clip", "0", "A"):
            run(indexed(service, "local", film, video=video))
        yield server.url


@schema.parametrize()
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_real_service_does_what_is_written_down(case: schemathesis.Case, real: str) -> None:
    case.call_and_validate(base_url=real, checks=CHECKS, timeout=60)


def test_every_route_documents_its_problems() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            if path.startswith("/v1/"):
                assert statuses >= {"401", "403", "413", "429", "503"}
                assert "422" in statuses or path.startswith(("/v1/chat", "/v1/models"))
            assert "internal" not in str(operation["responses"])  # a bug is nothing to rely on
            assert operation["description"]
