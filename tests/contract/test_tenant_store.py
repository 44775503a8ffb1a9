"""What every TenantStore promises, run over all of them; the remote one against a real server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ledgers import Clock, LedgerMaker
from x2l_cluster.errors import (
    InvalidInput,
    QuotaExceeded,
    RateLimited,
    TenantConflict,
    Unauthenticated,
    UnknownKey,
    UnknownTenant,
)
from x2l_cluster.state.tenancy import Tenants
from x2l_cluster.state.tenants import Quotas, Tenant, TenantStore, Usage

Maker = Callable[[], TenantStore]


@pytest.fixture
def maker(ledgers: LedgerMaker, clock: Clock) -> Maker:
    return lambda: Tenants(ledgers("tenants"), clock=clock)


@pytest.fixture
def store(maker: Maker) -> TenantStore:
    return maker()


# --- tenants --------------------------------------------------------------------------------------------------------


def test_a_tenant_is_created_once_and_everyone_knows_it(maker: Maker, clock: Clock) -> None:
    here, there = maker(), maker()
    made = here.create("ada", Quotas(videos=3))
    clock.now_s += 1
    assert there.create("ada", Quotas(videos=3)) == made == there.tenant("ada")
    with pytest.raises(TenantConflict):
        there.create("ada", Quotas(videos=4))
    other = there.create("bob")
    assert here.tenants() == [made, other]
    changed = there.change("ada", Quotas(kv_bytes=5))
    assert here.tenant("ada") == changed == replace(made, quotas=Quotas(kv_bytes=5))
    for unknown in (lambda: here.tenant("cy"), lambda: here.change("cy", Quotas()), lambda: here.delete("cy")):
        with pytest.raises(UnknownTenant):
            unknown()


def test_the_local_tenant_is_always_there_and_can_be_bounded(store: TenantStore) -> None:
    assert store.tenant("local") == Tenant(name="local")
    assert store.tenants() == []
    store.ask("local", 10_000)
    made = store.create_key("local")
    assert store.change("local", Quotas(questions_per_min=2)).quotas.questions_per_min == 2
    assert store.authenticate(made.secret) == store.tenant("local")
    store.ask("local", 2)
    with pytest.raises(RateLimited):
        store.ask("local")


@pytest.mark.parametrize("wrong", [{"videos": -1}, {"kv_bytes": 1 << 62}])
def test_quotas_are_numbers_that_can_be(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        Quotas(**wrong)


def test_what_is_held_is_checked_against_the_quotas() -> None:
    quotas = Quotas(videos=2, source_bytes=100, kv_bytes=0)
    quotas.check("ada", videos=2, source_bytes=100)
    Quotas().check("ada", videos=10**9, source_bytes=10**15, kv_bytes=10**15)
    for over in ({"videos": 3}, {"source_bytes": 101}, {"kv_bytes": 1}):
        with pytest.raises(QuotaExceeded, match="ada"):
            quotas.check("ada", **over)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_opens_its_tenant_and_its_secret_is_told_once(maker: Maker, clock: Clock) -> None:
    here, there = maker(), maker()
    made = here.create("ada")
    new = here.create_key("ada", label="laptop – ü")
    assert there.authenticate(new.secret) == made
    assert there.keys("ada") == [new.key]
    assert (new.key.label, new.key.created_s, new.key.expires_s) == ("laptop – ü", 1000.0, None)
    assert new.secret not in repr(new)
    clock.now_s += 1
    second = there.create_key("ada")
    assert [key.id for key in here.keys("ada")] == [new.key.id, second.key.id]
    with pytest.raises(UnknownTenant):
        here.create_key("cy")
    with pytest.raises(UnknownTenant):
        here.keys("cy")


def test_no_secret_is_stored(store: TenantStore, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store.create("ada")
    secret = store.create_key("ada").secret
    half = secret.rpartition("_")[2][:32].encode()
    assert all(half not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    ledger = store._ledger  # type: ignore[attr-defined]
    names = [name for group in ledger.groups("keys")[0] for name in ledger.names("keys", group, limit=9)]
    assert names
    assert all(half not in raw for raw in ledger.get_many(names))


def test_what_is_no_good_key_opens_nothing(store: TenantStore) -> None:
    store.create("ada")
    good = store.create_key("ada").secret
    x2l, id, secret = good.split("_")
    wrong_digit = "0" if secret[0] != "0" else "1"
    for bad in (
        "",
        "x",
        good[:-1],
        good + "0",
        good + "\n",
        good.upper(),
        f"{x2l}_{id}_{wrong_digit}{secret[1:]}",
        f"{x2l}_{'0' * 12}_{secret}",
        f"{x2l}_../../{id}_{secret}",
        "\ud800",
        "x2l_" + "0" * 12 + "_" + "0" * 64,
    ):
        with pytest.raises(Unauthenticated) as told:
            store.authenticate(bad)
        assert secret not in str(told.value)
    assert store.authenticate(good).name == "ada"


def test_a_revoked_key_opens_nothing_and_another_tenants_cannot_be_touched(maker: Maker) -> None:
    store = maker()
    for name in ("ada", "bob"):
        store.create(name)
    new = store.create_key("ada")
    for step in (store.revoke_key, store.rotate_key):
        with pytest.raises(UnknownKey):
            step("bob", new.key.id)
    maker().revoke_key("ada", new.key.id)
    with pytest.raises(Unauthenticated):
        store.authenticate(new.secret)
    assert store.keys("ada") == []
    with pytest.raises(UnknownKey):
        store.revoke_key("ada", new.key.id)


def test_a_rotated_key_stays_good_for_its_grace(store: TenantStore, clock: Clock) -> None:
    store.create("ada")
    first = store.create_key("ada", label="laptop")
    second = store.rotate_key("ada", first.key.id, grace_s=60.0)
    assert second.key.label == "laptop"
    clock.now_s += 59.9
    assert store.authenticate(first.secret) == store.authenticate(second.secret)
    clock.now_s += 0.1
    with pytest.raises(Unauthenticated, match="expired"):
        store.authenticate(first.secret)
    third = store.rotate_key("ada", second.key.id)
    with pytest.raises(Unauthenticated):
        store.authenticate(second.secret)
    assert store.authenticate(third.secret).name == "ada"


def test_a_key_with_an_end_ends(store: TenantStore, clock: Clock) -> None:
    store.create("ada")
    new = store.create_key("ada", ttl_s=10.0)
    store.authenticate(new.secret)
    clock.now_s += 10.0
    with pytest.raises(Unauthenticated, match=new.key.id):
        store.authenticate(new.secret)


def test_keys_end_with_their_tenant_and_open_no_later_one_of_its_name(maker: Maker) -> None:
    store = maker()
    store.create("ada")
    new = store.create_key("ada")
    stays = store.create_key("local")
    store.add("ada", Usage(questions=1))
    store.delete("ada")
    with pytest.raises(Unauthenticated):
        store.authenticate(new.secret)
    store.create("ada")
    with pytest.raises(Unauthenticated):
        maker().authenticate(new.secret)
    assert store.keys("ada") == []
    assert store.usage("ada") == Usage()
    assert store.authenticate(stays.secret).name == "local"


def test_a_key_made_while_its_tenant_is_deleted_is_dead(store: TenantStore) -> None:
    store.create("ada")
    new = store.create_key("ada")
    # what a deletion leaves that was cut off, or overtaken by the making of a key
    store._tenants.change("tenant/ada", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(Unauthenticated):
        store.authenticate(new.secret)
    store.create("ada")
    with pytest.raises(Unauthenticated):
        store.authenticate(new.secret)


def test_a_tenant_has_so_many_keys(store: TenantStore) -> None:
    store.create("ada")
    for _ in range(100):
        last = store.create_key("ada")
    with pytest.raises(QuotaExceeded):
        store.create_key("ada")
    store.revoke_key("ada", last.key.id)
    store.create_key("ada")


# --- use ------------------------------------------------------------------------------------------------------------


def test_questions_of_a_minute_run_out_and_come_back_with_time(maker: Maker, clock: Clock) -> None:
    store = maker()
    store.create("ada", Quotas(questions_per_min=6))
    for _ in range(6):
        maker().ask("ada")
    for _ in range(3):
        with pytest.raises(RateLimited) as told:
            store.ask("ada")
        assert told.value.retry_after_s == pytest.approx(10.0)
    clock.now_s += 4.0
    with pytest.raises(RateLimited) as told:
        store.ask("ada")
    assert told.value.retry_after_s == pytest.approx(6.0)
    clock.now_s += 6.0
    store.ask("ada")
    clock.now_s += 3600.0
    store.ask("ada", 6)
    with pytest.raises(RateLimited):
        store.ask("ada")
    with pytest.raises(QuotaExceeded, match="never 7"):
        store.ask("ada", 7)
    clock.now_s -= 100.0  # a clock that was set back gives and takes nothing
    with pytest.raises(RateLimited):
        store.ask("ada")


def test_a_crowd_asks_no_more_than_its_minute_has(maker: Maker) -> None:
    maker().create("ada", Quotas(questions_per_min=5))

    def ask(_: int) -> bool:
        try:
            maker().ask("ada")
        except RateLimited:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(ask, range(15))) == 5


def test_usage_adds_up_whoever_counts(maker: Maker) -> None:
    maker().create("ada")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: maker().add("ada", Usage(questions=1, answer_tokens=n, indexed_s=0.5)), range(10)))
    assert maker().usage("ada") == Usage(questions=10, answer_tokens=45, indexed_s=5.0)
    assert maker().usage("local") == Usage()
    with pytest.raises(UnknownTenant):
        maker().add("cy", Usage(questions=1))


@pytest.mark.parametrize("name", ["", "..", "a/b", "a:b", "{a}", "x" * 129])
def test_names_that_could_leave_their_place_are_refused(store: TenantStore, name: str) -> None:
    for step in (
        lambda: store.create(name),
        lambda: store.tenant(name),
        lambda: store.delete(name),
        lambda: store.create_key(name),
        lambda: store.revoke_key("local", name),
        lambda: store.ask(name),
        lambda: store.usage(name),
    ):
        with pytest.raises(InvalidInput):
            step()
