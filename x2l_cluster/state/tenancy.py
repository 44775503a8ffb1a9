"""The one :class:`~x2l_cluster.state.tenants.TenantStore`, over any :class:`~x2l_cluster.state.ledger.Ledger`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Self
from uuid import uuid4

from x2l_cluster.errors import (
    InvalidInput,
    QuotaExceeded,
    RateLimited,
    TenantConflict,
    Unauthenticated,
    UnknownKey,
    UnknownTenant,
)
from x2l_cluster.state.ledger import GroupFull, Ledger, Marks, Room
from x2l_cluster.state.records import Records
from x2l_cluster.state.secret import digest_of, fits, id_of, new_secret
from x2l_cluster.state.tenants import ApiKey, Bucket, NewKey, Quotas, Tenant, Usage, take
from x2l_cluster.types import LOCAL_TENANT, check_name

_MOST_KEYS: Final = 100
_MOST_LABEL: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptKey:
    """``born`` is the tenant's: a key does not open a later tenant of the same name."""

    key: ApiKey
    digest: str
    born: str


class Tenants:
    """Tenants in a ledger."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock
        self._tenants = Records(ledger, Tenant, "tenant", lambda t: {("tenants", "all"): t.created_s})
        self._keys = Records(ledger, _KeptKey, "key", _key_marks)
        self._buckets = Records(ledger, Bucket, "rate", _nowhere)
        self._usage = Records(ledger, Usage, "usage", _nowhere)

    # --- tenants ----------------------------------------------------------------------------------------------------

    def create(self, tenant: str, quotas: Quotas | None = None) -> Tenant:
        born = "" if tenant == LOCAL_TENANT else uuid4().hex  # that one was always there
        new = Tenant(name=tenant, quotas=quotas or Quotas(), created_s=self._clock(), born=born)

        def step(old: Tenant | None) -> Tenant:
            if old is not None and old.quotas != new.quotas:
                raise TenantConflict(f"there is a tenant {tenant} with other quotas: change them, or take another name")
            return old or new

        return self._tenants.change(_name("tenant", tenant), step) or new

    def change(self, tenant: str, quotas: Quotas) -> Tenant:
        new = replace(self.tenant(tenant), quotas=quotas)

        def step(old: Tenant | None) -> Tenant:
            if old is None and tenant != LOCAL_TENANT:
                raise _unknown(tenant)
            return replace(old or new, quotas=quotas)

        return self._tenants.change(_name("tenant", tenant), step) or new

    def tenant(self, tenant: str) -> Tenant:
        found = self._tenants.get(_name("tenant", tenant))
        if found is None and tenant == LOCAL_TENANT:
            return Tenant(name=LOCAL_TENANT)
        if found is None:
            raise _unknown(tenant)
        return found

    def tenants(self) -> list[Tenant]:
        return self._tenants.in_group("tenants", "all")

    def delete(self, tenant: str) -> None:
        self.tenant(tenant)
        for kept in self._keys.in_group("keys", tenant):
            self._keys.change(_name("key", kept.key.id), lambda _: None)
        self._usage.change(_name("usage", tenant), lambda _: None)
        self._buckets.change(_name("rate", tenant), lambda _: None)
        self._tenants.change(_name("tenant", tenant), lambda _: None)

    # --- keys -------------------------------------------------------------------------------------------------------

    def create_key(self, tenant: str, *, label: str = "", ttl_s: float | None = None) -> NewKey:
        if len(label) > _MOST_LABEL:
            raise InvalidInput(f"a label has at most {_MOST_LABEL} characters, got {len(label)}")
        owner, now_s = self.tenant(tenant), self._clock()
        id, secret = new_secret()
        expires_s = None if ttl_s is None else now_s + ttl_s
        key = ApiKey(id=id, tenant=tenant, label=label, created_s=now_s, expires_s=expires_s)
        kept = _KeptKey(key=key, digest=digest_of(secret), born=owner.born)
        try:
            self._keys.change(_name("key", id), lambda _: kept, room=Room(("keys", tenant), _MOST_KEYS))
        except GroupFull:
            raise QuotaExceeded(f"tenant {tenant} has {_MOST_KEYS} keys: revoke some") from None
        return NewKey(key=key, secret=secret)

    def rotate_key(self, tenant: str, key: str, *, grace_s: float = 0.0, ttl_s: float | None = None) -> NewKey:
        old = self._own(self._keys.get(_name("key", key)), tenant, key)
        # The new one first: whoever is cut off in between has two good keys, never none.
        new = self.create_key(tenant, label=old.key.label, ttl_s=ttl_s)
        if grace_s <= 0:
            self.revoke_key(tenant, key)
            return new
        end_s = self._clock() + grace_s

        def step(kept: _KeptKey | None) -> _KeptKey:
            kept = self._own(kept, tenant, key)
            return replace(kept, key=replace(kept.key, expires_s=min(end_s, kept.key.expires_s or inf)))

        self._keys.change(_name("key", key), step)
        return new

    def revoke_key(self, tenant: str, key: str) -> None:
        def step(kept: _KeptKey | None) -> None:
            self._own(kept, tenant, key)

        self._keys.change(_name("key", key), step)

    def keys(self, tenant: str) -> list[ApiKey]:
        self.tenant(tenant)
        return [kept.key for kept in self._keys.in_group("keys", tenant)]

    def authenticate(self, secret: str) -> Tenant:
        id = id_of(secret) or "0" * 12
        kept = self._keys.get(_name("key", id))
        owner = self._tenants.get(_name("tenant", kept.key.tenant if kept else "none"))
        good = fits(secret, kept.digest if kept else None)
        if kept and kept.key.tenant == LOCAL_TENANT:
            owner = owner or self.tenant(LOCAL_TENANT)
        if not (good and kept and owner and owner.born == kept.born):
            raise Unauthenticated("this API key is none, or was revoked: ask for a new one")
        if kept.key.expires_s is not None and kept.key.expires_s <= self._clock():
            raise Unauthenticated(f"the API key {kept.key.id} has expired: ask for a new one")
        return owner

    # --- use --------------------------------------------------------------------------------------------------------

    def ask(self, tenant: str, questions: int = 1) -> None:
        per_min = self.tenant(tenant).quotas.questions_per_min
        if per_min is None:
            return
        wait_s = 0.0

        def step(old: Bucket | None) -> Bucket | None:
            nonlocal wait_s
            new, wait_s = take(old, per_min, self._clock(), questions)
            return old if wait_s else new

        self._buckets.change(_name("rate", tenant), step)
        if wait_s == inf:
            raise QuotaExceeded(f"tenant {tenant} may ask {per_min} questions a minute, never {questions} at once")
        if wait_s:
            raise RateLimited(
                f"tenant {tenant} may ask {per_min} questions a minute: try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )

    def add(self, tenant: str, more: Usage) -> Usage:
        self.tenant(tenant)
        return self._usage.change(_name("usage", tenant), lambda old: (old or Usage()) + more) or more

    def usage(self, tenant: str) -> Usage:
        self.tenant(tenant)
        return self._usage.get(_name("usage", tenant)) or Usage()

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @staticmethod
    def _own(kept: _KeptKey | None, tenant: str, key: str) -> _KeptKey:
        if kept is None or kept.key.tenant != tenant:
            raise UnknownKey(f"tenant {tenant} has no API key {key}: list its keys")
        return kept


def _name(what: str, name: str) -> str:
    return f"{what}/{check_name(what, name)}"


def _unknown(tenant: str) -> UnknownTenant:
    return UnknownTenant(f"there is no tenant {tenant}: create it first")


def _key_marks(kept: _KeptKey) -> Marks:
    return {("keys", kept.key.tenant): kept.key.created_s}


def _nowhere(_: object) -> Marks:
    return {}
