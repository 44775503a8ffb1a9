"""``x2l tenants`` on a disk: what it says, what it changes, what it refuses."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.kept import kept
from x2l_cluster.cli.run import run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("X2L_STATE", f"disk:{tmp_path / 'store'}")
    return tmp_path


def value(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert run(["tenants", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_quotas_are_set_one_at_a_time_and_lifted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = value(capsys, "set", "anna", "--kv-bytes", "50G", "--keep-days", "2")
    bounds = {name: bound for name, bound in made["quotas"].items() if bound is not None}
    assert (made["tenant"], bounds) == ("anna", {"kv_bytes": 50_000_000_000, "keep_s": 172_800})
    value(capsys, "set", "anna", "--videos", "3", "--kv-bytes", "1.5 MB", "--keep-days", "none")
    quotas = value(capsys, "show", "anna")["quotas"]
    assert {name: bound for name, bound in quotas.items() if bound is not None} == {"kv_bytes": 1_500_000, "videos": 3}
    assert run(["tenants", "set", "local", "--questions-per-min", "60"]) == 0
    assert capsys.readouterr().out == "local  questions_per_min 60\n"


def test_what_tenants_hold_and_have_used_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from x2l_cluster.state.tenants import Usage

    with kept("disk", here) as stores:
        stores.index("v1", "anna")
        stores.index("v2", "anna", chunks=2)
        stores.index("v1", "bert")  # who was never created
        stores.state.tenants.create("anna")
        stores.state.tenants.create_key("anna")
        stores.state.tenants.add("anna", Usage(questions=7, reloaded_bytes=5000))
        assert stores.stores.sources.put("cleo", BytesIO(b"kept, and not indexed"))
    anna, bert = value(capsys, "list")
    assert (anna["tenant"], anna["held"]) == ("anna", {"videos": 2, "source_bytes": 4, "kv_bytes": 15_000})
    assert (anna["keys"], anna["usage"]["questions"]) == (1, 7)
    assert (bert["tenant"], bert["held"]["kv_bytes"], bert["keys"]) == ("bert", 9000, 0)
    value(capsys, "set", "anna", "--kv-bytes", "30k")
    assert run(["tenants", "list"]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["anna", "2", "15.0", "kB", "of", "30.0", "kB", "4", "B", "7"]
    assert run(["tenants", "show", "anna"]) == 0
    told = capsys.readouterr().out
    assert "kv_bytes  15.0 kB of 30.0 kB" in told and "used reloaded_bytes  5.0 kB" in told and "keys  1" in told
    assert value(capsys, "show", "bert")["held"]["videos"] == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("set", "anna"), 2, "say what it may have"),
        (("set", "anna", "--videos", "many"), 2, "'many' is no amount"),
        (("set", "anna", "--videos", "-1"), 2, "is no amount"),
        (("set", "an/na", "--videos", "1"), 3, "tenant must be"),
        (("set", "anna", "--kv-bytes", "9999999999G"), 3, "kv_bytes is a number"),
        (("show", "nobody"), 4, "there is no tenant nobody"),
    ],
)
def test_what_cannot_be_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    assert says in value(capsys, *words, code=code)["error"]["message"]
