"""The seam to who may use the service, and how much: tenants, their API keys, what they have used.

The tenant ``local`` is always there, without bounds unless it was given some, and needs no key; whether somebody
without a key is let in as ``local`` is for the door to say. Implementation: :mod:`~x2l_cluster.state.tenancy`, over any
:class:`~x2l_cluster.state.ledger.Ledger`; the rules are the functions here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Protocol, Self

from x2l_cluster.errors import InvalidInput, QuotaExceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What a tenant may have at a time, or do in a minute; None is no bound.

    Attributes:
        videos: indexes that are kept.
        source_bytes: of kept originals.
        kv_bytes: of stored blocks.
        active_jobs: jobs that have not ended.
        questions_per_min: over time; after a pause so many at once.
        keep_s: seconds a video is kept after it was indexed; None: as long as the service keeps any.
    """

    videos: int | None = None
    source_bytes: int | None = None
    kv_bytes: int | None = None
    active_jobs: int | None = None
    questions_per_min: int | None = None
    keep_s: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and not 0 <= value < 1 << 62:
                raise InvalidInput(f"quota {one.name} is a number from 0, or none; got {value}")

    def check(self, tenant: str, *, videos: int = 0, source_bytes: int = 0, kv_bytes: int = 0) -> None:
        """Whether a tenant may have so much in all. What is held is counted where it lies, never here: a second count
        would drift. Raises QuotaExceeded."""
        for what, wanted, most in (
            ("videos", videos, self.videos),
            ("bytes of originals", source_bytes, self.source_bytes),
            ("bytes of stored blocks", kv_bytes, self.kv_bytes),
        ):
            if most is not None and wanted > most:
                raise QuotaExceeded(
                    f"tenant {tenant} would have {wanted} {what} and may have {most}: delete videos, or ask for a "
                    "larger quota"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who owns videos, jobs and sessions. ``born`` tells it from one of the same name that was deleted before."""

    name: str
    quotas: Quotas = field(default_factory=Quotas)
    created_s: float = 0.0
    born: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What can be known of a key: all but its secret."""

    id: str
    tenant: str
    label: str
    created_s: float
    expires_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key just made; ``secret`` is what a caller sends, and is kept nowhere: it can be told this once."""

    key: ApiKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tenant has used since it was created, or some more of it."""

    questions: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    reloaded_bytes: int = 0
    indexed_videos: int = 0
    indexed_s: float = 0.0

    def __add__(self, more: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(more, f.name) for f in fields(Usage)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Questions a tenant had left at a moment; it fills with time up to a minute's worth."""

    left: float
    at_s: float

    def filled(self, per_min: int, now_s: float) -> Bucket:
        gained = max(now_s - self.at_s, 0.0) * per_min / 60.0
        return Bucket(left=min(self.left + gained, float(per_min)), at_s=max(now_s, self.at_s))


def take(bucket: Bucket | None, per_min: int, now_s: float, count: int) -> tuple[Bucket, float]:
    """The bucket without ``count``, and 0; or as it is, and the seconds until there are so many (``inf``: never)."""
    now = bucket.filled(per_min, now_s) if bucket else Bucket(left=float(per_min), at_s=now_s)
    if count <= now.left + 1e-9:
        return replace(now, left=max(now.left - count, 0.0)), 0.0
    return now, (count - now.left) * 60.0 / per_min if count <= per_min else float("inf")


class TenantStore(Protocol):
    """Keeps tenants, keys and usage. Any method may raise StoreUnavailable, StoreFull, RecordCorrupt, InvalidInput.

    Safe to use from several threads, and by several processes where the place is shared.
    """

    def create(self, tenant: str, quotas: Quotas | None = None) -> Tenant:
        """Creating it again with equal quotas changes nothing. Raises TenantConflict."""
        ...

    def change(self, tenant: str, quotas: Quotas) -> Tenant:
        """Gives a tenant other quotas. Raises UnknownTenant."""
        ...

    def tenant(self, tenant: str) -> Tenant:
        """Raises UnknownTenant."""
        ...

    def tenants(self) -> list[Tenant]:
        """By age; ``local`` only if it was given quotas."""
        ...

    def delete(self, tenant: str) -> None:
        """Forgets a tenant with its keys and usage, not what it owns elsewhere. Raises UnknownTenant."""
        ...

    def create_key(self, tenant: str, *, label: str = "", ttl_s: float | None = None) -> NewKey:
        """A key that is good at once, for ``ttl_s`` or until it is revoked. Raises UnknownTenant."""
        ...

    def rotate_key(self, tenant: str, key: str, *, grace_s: float = 0.0, ttl_s: float | None = None) -> NewKey:
        """A new key in place of another, which stays good for ``grace_s``. Raises UnknownKey."""
        ...

    def revoke_key(self, tenant: str, key: str) -> None:
        """The key is good for nothing from now on. Raises UnknownKey."""
        ...

    def keys(self, tenant: str) -> list[ApiKey]:
        """By age, without secrets. Raises UnknownTenant."""
        ...

    def authenticate(self, secret: str) -> Tenant:
        """Whose key that is. Takes as long whatever is wrong with it. Raises Unauthenticated."""
        ...

    def ask(self, tenant: str, questions: int = 1) -> None:
        """Takes questions out of the tenant's minute.

        Raises RateLimited, which says when to try again; QuotaExceeded for more than a minute ever has; UnknownTenant.
        """
        ...

    def add(self, tenant: str, more: Usage) -> Usage:
        """Counts more usage; returns all of it. Raises UnknownTenant."""
        ...

    def usage(self, tenant: str) -> Usage:
        """Raises UnknownTenant."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
