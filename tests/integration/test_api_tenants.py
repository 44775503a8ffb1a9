"""Two tenants and each other's ids: whatever is asked, nothing of the other comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http import Server, serving

SECRET = "secretfilm"
ANNA, BERT = ({"Authorization": f"Bearer key-{key}"} for key in "ab")


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Server, httpx.Client, dict[str, str]]]:
    with serving(keys=True) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        server.service.add("anna", SECRET, chunks=5)
        job = http.post("/v1/videos", json={"path": f"/videos/{SECRET}.mp4"}, headers=ANNA).json()["id"]
        session = http.post("/v1/sessions", json={"videos": [SECRET]}, headers=ANNA).json()["id"]
        yield server, http, {"video": SECRET, "job": job, "session": session}


def requests(ids: dict[str, str]) -> list[tuple[str, str, Any]]:
    video, job, session = ids["video"], ids["job"], ids["session"]
    part = {"type": "video_url", "video_url": {"url": video}}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": [part, {"type": "text", "text": "Who?"}]}]}
    return [
        ("GET", "/v1/videos", None),
        ("GET", f"/v1/videos/{video}", None),
        ("GET", f"/v1/videos/{video}/chunks", None),
        ("GET", f"/v1/videos/{video}/frames?t=1", None),
        ("DELETE", f"/v1/videos/{video}", None),
        ("GET", "/v1/jobs", None),
        ("GET", f"/v1/jobs/{job}", None),
        ("GET", f"/v1/jobs/{job}?wait=5", None),
        ("GET", f"/v1/jobs/{job}/events", None),
        ("POST", f"/v1/jobs/{job}:cancel", None),
        ("POST", f"/v1/jobs/{job}:retry", None),
        ("POST", "/v1/answers", {"question": "Who?", "videos": [video]}),
        ("POST", "/v1/answers", {"question": "Who?", "videos": [video], "stream": True, "synthesis": True}),
        ("POST", "/v1/answers", {"question": "Who?", "session": session}),
        ("POST", "/v1/search", {"question": "Who?"}),
        ("POST", "/v1/search", {"question": "Who?", "videos": [video]}),
        ("POST", "/v1/sessions", {"videos": [video]}),
        ("GET", f"/v1/sessions/{session}", None),
        ("DELETE", f"/v1/sessions/{session}", None),
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/chat/completions", chat | {"stream": True}),
    ]


def test_the_other_tenants_ids_are_as_unknown_as_any(
    world: tuple[Server, httpx.Client, dict[str, str]],
) -> None:
    server, http, ids = world
    before = (
        dict(server.service.all_videos["anna"]),
        dict(server.service.all_jobs["anna"]),
        dict(server.service.sessions),
    )
    nobodys = {kind: "x" * len(id) for kind, id in ids.items()}
    for (method, path, body), (_, other_path, other_body) in zip(requests(ids), requests(nobodys), strict=True):
        real = http.request(method, path, json=body, headers=BERT)
        none = http.request(method, other_path, json=other_body, headers=BERT)
        assert real.status_code == none.status_code, path
        # But for the id that was sent, both answers are the same, byte for byte; answers have numbers of their own.
        plain = real.text
        for kind, id in ids.items():
            plain = plain.replace(id, nobodys[kind])
        assert "answers" in path or "chat" in path or plain == none.text
        assert real.headers.keys() == none.headers.keys()
    after = (
        dict(server.service.all_videos["anna"]),
        dict(server.service.all_jobs["anna"]),
        dict(server.service.sessions),
    )
    assert before == after


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_the_other_tenant_comes_back(
    world: tuple[Server, httpx.Client, dict[str, str]], data: st.DataObject
) -> None:
    _, http, ids = world
    mixed = {
        kind: data.draw(st.sampled_from([ids[kind], *ids.values(), "anna", "..", "%2e%2e", "a/b"])) for kind in ids
    }
    method, path, body = data.draw(st.sampled_from(requests(mixed)))
    method = data.draw(st.sampled_from([method, "GET", "POST", "DELETE", "PUT"]))
    response = http.request(method, path, json=body, headers=BERT)
    assert response.status_code < 500
    for trace in (f"{SECRET}.mp4", "0123456789abcdef", b"picture of anna".decode(), '"chunk":', "decode_s"):
        assert trace not in response.text


def test_without_a_key_there_is_nothing(world: tuple[Server, httpx.Client, dict[str, str]]) -> None:
    _, http, ids = world
    wrong = [{}, {"Authorization": "Bearer nobody"}, {"Authorization": "Basic a2V5LWE6"}, {"Authorization": "key-a"}]
    for method, path, body in requests(ids):
        for headers in wrong:
            refused = http.request(method, path, json=body, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert http.get("/nowhere").status_code == 401  # not even what there is
    assert http.get("/v1/videos", headers={"Authorization": "Bearer key-locked"}).status_code == 403
    fast = http.get("/v1/videos", headers={"Authorization": "Bearer key-fast"})
    assert (fast.status_code, fast.headers["retry-after"]) == (429, "1")
