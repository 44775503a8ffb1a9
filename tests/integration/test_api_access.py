"""Keys and bounds out of the real tenant store: hashed, revoked, expired, rated, counted."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.http import Server, serving
from x2l_cluster.api import KeyAccess
from x2l_cluster.messages import JobState
from x2l_cluster.state.ledger_sqlite import SqliteLedger
from x2l_cluster.state.tenancy import Tenants
from x2l_cluster.state.tenants import Quotas, Usage


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tenants(clock: Clock) -> Iterator[Tenants]:
    with Tenants(SqliteLedger(), clock=clock) as opened:
        yield opened


@pytest.fixture
def server(tenants: Tenants) -> Iterator[Server]:
    with serving(auth=KeyAccess(tenants)) as running:
        yield running


def caller(server: Server, tenants: Tenants, tenant: str, **quotas: int) -> httpx.Client:
    tenants.create(tenant, Quotas(**quotas))
    server.service.add(tenant, "clip")
    key = tenants.create_key(tenant)
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key.secret}"}, timeout=20)


def told(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_key_opens_its_tenant_until_it_is_revoked(server: Server, tenants: Tenants) -> None:
    with caller(server, tenants, "anna") as anna, caller(server, tenants, "bert") as bert:
        assert anna.get("/v1/videos/clip").status_code == 200
        server.service.add("anna", "own")
        assert told(bert.get("/v1/videos/own")) == (404, "unknown_video")
        (key,) = tenants.keys("anna")
        tenants.revoke_key("anna", key.id)
        assert told(anna.get("/v1/videos")) == (401, "unauthenticated")
        assert bert.get("/v1/videos").status_code == 200


def test_a_key_ends_with_its_time(server: Server, tenants: Tenants, clock: Clock) -> None:
    tenants.create("anna")
    key = tenants.create_key("anna", ttl_s=60).secret
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) as anna:
        assert anna.get("/v1/jobs").status_code == 200
        clock.now += 61
        assert told(anna.get("/v1/jobs")) == (401, "unauthenticated")


@pytest.mark.parametrize("key", ["", "x", "x2l_0_0", "x2l_" + "0" * 12 + "_" + "0" * 64, "é" * 99])
def test_what_is_no_key_opens_nothing(server: Server, key: str) -> None:
    headers = {b"Authorization": b"Bearer " + key.encode()} if key else {}
    with httpx.Client(base_url=server.url) as nobody:
        assert told(nobody.get("/v1/videos", headers=headers)) == (401, "unauthenticated")


def test_without_a_key_one_may_be_local(tenants: Tenants) -> None:
    with serving(auth=KeyAccess(tenants, anonymous=True)) as server, httpx.Client(base_url=server.url) as http:
        server.service.add("local", "clip")
        assert len(http.get("/v1/videos").json()) == 1
        assert http.get("/v1/videos", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_questions_have_a_rate(server: Server, tenants: Tenants, clock: Clock) -> None:
    ask = {"question": "Who?", "videos": ["clip"]}
    with caller(server, tenants, "anna", questions_per_min=2) as anna, caller(server, tenants, "bert") as bert:
        assert anna.post("/v1/answers", json=ask).status_code == 200
        assert anna.post("/v1/search", json={"question": "Who?"}).status_code == 200
        refused = anna.post("/v1/answers", json=ask)
        assert told(refused) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "30"
        part = {"type": "video_url", "video_url": {"url": "clip"}}
        message = {"role": "user", "content": [part, {"type": "text", "text": "Who?"}]}
        refused = anna.post("/v1/chat/completions", json={"model": "tiny", "messages": [message]})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert bert.post("/v1/answers", json=ask).status_code == 200
        clock.now += 30
        assert anna.post("/v1/answers", json=ask).status_code == 200
        many = ask | {"videos": ["a", "b", "c"]}
        assert told(anna.post("/v1/answers", json=many)) == (429, "quota_exceeded")


def test_videos_have_a_quota_and_an_upload_over_it_is_not_read(server: Server, tenants: Tenants) -> None:
    with caller(server, tenants, "anna", videos=1) as anna:
        assert told(anna.post("/v1/videos", json={"path": "/videos/b.mp4"})) == (429, "quota_exceeded")
    with caller(server, tenants, "bert", source_bytes=1500) as bert:
        kind = {"Content-Type": "video/mp4"}
        assert told(bert.post("/v1/videos", content=b"x" * 501, headers=kind)) == (429, "quota_exceeded")
        assert not server.service.sources
        assert bert.post("/v1/videos", content=b"x" * 500, headers=kind).status_code == 202


def test_stored_bytes_have_a_quota_and_an_upload_over_it_is_not_read(server: Server, tenants: Tenants) -> None:
    with caller(server, tenants, "anna", kv_bytes=3000) as anna:  # all taken by the clip
        refused = anna.post("/v1/videos", content=b"x", headers={"Content-Type": "video/mp4"})
        assert told(refused) == (429, "quota_exceeded")
        assert "3001 bytes of stored blocks and may have 3000: delete videos" in refused.json()["detail"]
        assert not server.service.sources
        assert anna.delete("/v1/videos/clip").status_code == 200
        assert anna.post("/v1/videos", json={"path": "/videos/b.mp4"}).status_code == 202


def test_a_recording_that_grows_is_no_further_video_and_its_longer_file_is_there_instead(
    server: Server, tenants: Tenants
) -> None:
    with caller(server, tenants, "anna", videos=1, source_bytes=1500) as anna:  # of which the clip has 1000
        kind = {"Content-Type": "video/mp4"}
        assert told(anna.post("/v1/videos/clip:append", content=b"x" * 1501, headers=kind)) == (429, "quota_exceeded")
        assert not server.service.sources
        assert anna.post("/v1/videos/clip:append", content=b"x" * 1500, headers=kind).status_code == 202


def test_jobs_that_have_not_ended_have_a_quota(server: Server, tenants: Tenants) -> None:
    with caller(server, tenants, "anna", active_jobs=1) as anna:
        job = anna.post("/v1/videos", json={"path": "/videos/b.mp4"}).json()["id"]
        assert told(anna.post("/v1/videos", json={"path": "/videos/c.mp4"})) == (429, "quota_exceeded")
        server.advance(job, tenant="anna", state=JobState.READY)
        assert anna.post("/v1/videos", json={"path": "/videos/c.mp4"}).status_code == 202


def test_what_was_used_is_counted_for_whoever_used_it(server: Server, tenants: Tenants) -> None:
    with caller(server, tenants, "anna") as anna, caller(server, tenants, "bert"):
        anna.post("/v1/answers", json={"question": "Who?", "videos": ["clip", "gone"]})
        anna.post("/v1/answers", json={"question": "Who?", "videos": ["clip"], "stream": True})
    assert tenants.usage("anna") == Usage(questions=2, prompt_tokens=14, answer_tokens=6, reloaded_bytes=2000)
    assert tenants.usage("bert") == Usage()


def test_pages_of_other_sites_are_turned_away() -> None:
    with serving(hosts=("x2l.example", "localhost")) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/videos").status_code == 200  # a bare address
        for host in ("localhost:8421", "LOCALHOST", "x2l.example", "[::1]:80", "127.0.0.1"):
            assert http.get("/v1/videos", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example:8421", "localhost.evil.example", "evil.example", ""):
            assert told(http.get("/v1/videos", headers={"Host": host})) == (403, "forbidden"), host
        upload = {"file": ("a.mp4", b"film")}
        sent = http.post("/v1/videos", files=upload, headers={"Sec-Fetch-Site": "cross-site"})
        assert told(sent) == (403, "forbidden")
        assert not server.service.sources
        assert http.get("/v1/videos", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
