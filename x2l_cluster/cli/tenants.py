"""``x2l tenants``: who uses a service, how much, and how much they may. Works on its state, whether it is up or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from x2l_cluster.cli.options import AsJson, Data
from x2l_cluster.cli.show import columns, emit, line, out
from x2l_cluster.cli.text import size
from x2l_cluster.errors import UnknownTenant

if TYPE_CHECKING:
    from x2l_cluster.state.open import State
    from x2l_cluster.state.tenants import Quotas

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_BYTES = ("source_bytes", "kv_bytes")

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Who owns videos, jobs and keys.")]
tenants = typer.Typer(help="Who uses a service: what they hold, what they may.", no_args_is_help=True)


def _amount(text: str) -> int:
    """A number, with ``k``, ``M``, ``G`` or ``T`` behind it; ``none`` is -1, no bound."""
    if text.lower() == "none":
        return -1
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no amount: give a number (50G, 1000, …), or none")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def _option(name: str, help: str) -> Any:
    return typer.Option(name, parser=_amount, metavar="N|none", show_default=False, help=help)


@contextmanager
def _state(data: Path | None) -> Iterator[State]:
    from x2l_cluster.cli.ground import service_state
    from x2l_cluster.state.open import State

    with service_state(data) as url, State.open(url) as state:
        yield state


@tenants.command("list")
def list_(data: Data = None, as_json: AsJson = False) -> None:
    """List tenants and what they hold."""
    with _state(data) as state:
        named = {tenant.name for tenant in state.tenants.tenants()} | set(state.manifests.tenants())
        facts = [_facts(state, name) for name in sorted(named)]
    if as_json:
        emit(facts)
        return
    table = columns("tenant", "videos", "blocks", "originals", "questions")
    for one in facts:
        held, may = one["held"], one["quotas"]
        cells = [_of(held[name], may[name], name) for name in ("videos", "kv_bytes", "source_bytes")]
        table.add_row(one["tenant"], *cells, str(one["usage"]["questions"]))
    out.print(table)


@tenants.command()
def show(tenant: TenantName, data: Data = None, as_json: AsJson = False) -> None:
    """Show what a tenant holds, has used, and may."""
    with _state(data) as state:
        if tenant not in state.manifests.tenants():
            state.tenants.tenant(tenant)  # an unknown one is told
        facts = _facts(state, tenant)
    if as_json:
        emit(facts)
        return
    for name, most in facts["quotas"].items():
        held = facts["held"].get(name)
        line(f"{name}  {_of(held, most, name) if held is not None else 'no bound' if most is None else most}")
    for name, value in facts["usage"].items():
        line(f"used {name}  {size(value) if name.endswith('bytes') else f'{value:g}'}")
    line(f"keys  {facts['keys']}")


@tenants.command("set")
def set_(
    tenant: TenantName,
    videos: Annotated[int | None, _option("--videos", "Videos it may have.")] = None,
    kv_bytes: Annotated[int | None, _option("--kv-bytes", "Bytes of stored blocks it may hold.")] = None,
    source_bytes: Annotated[int | None, _option("--source-bytes", "Bytes of kept originals.")] = None,
    active_jobs: Annotated[int | None, _option("--active-jobs", "Jobs that have not ended, at a time.")] = None,
    questions: Annotated[int | None, _option("--questions-per-min", "Questions a minute.")] = None,
    keep_days: Annotated[
        int | None, _option("--keep-days", "Days a video is kept after it was indexed (by the janitor).")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Say how much a tenant may; what is not named stays. A new tenant is created."""
    given = {
        "videos": videos,
        "kv_bytes": kv_bytes,
        "source_bytes": source_bytes,
        "active_jobs": active_jobs,
        "questions_per_min": questions,
        "keep_s": keep_days if keep_days in (None, -1) else keep_days * 86400,
    }
    changes = {name: None if value == -1 else value for name, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter("say what it may have: --videos, --kv-bytes, …; `x2l tenants show` tells what it is")
    with _state(data) as state:
        try:
            old = state.tenants.tenant(tenant)
        except UnknownTenant:
            old = state.tenants.create(tenant)
        new = state.tenants.change(tenant, replace(old.quotas, **changes))
    _told(tenant, new.quotas, as_json=as_json)


def _told(tenant: str, quotas: Quotas, *, as_json: bool) -> None:
    if as_json:
        emit({"tenant": tenant, "quotas": asdict(quotas)})
        return
    bounds = [f"{f.name} {getattr(quotas, f.name)}" for f in fields(quotas) if getattr(quotas, f.name) is not None]
    line(f"{tenant}  {', '.join(bounds) or 'no bounds'}")


def _facts(state: State, tenant: str) -> dict[str, Any]:
    from x2l_cluster.service.quota import held_by
    from x2l_cluster.state.tenants import Quotas, Usage

    held = held_by(state.manifests.videos(tenant))
    try:
        known, used, keys = state.tenants.tenant(tenant), state.tenants.usage(tenant), state.tenants.keys(tenant)
        quotas, count = known.quotas, len(keys)
    except UnknownTenant:  # deleted, or never created where nobody is asked for keys; its videos are here
        quotas, used, count = Quotas(), Usage(), 0
    return {
        "tenant": tenant,
        "held": asdict(held),
        "quotas": asdict(quotas),
        "usage": asdict(used),
        "keys": count,
    }


def _of(held: int, most: int | None, name: str) -> str:
    shown = size if name in _BYTES else str
    return shown(held) if most is None else f"{shown(held)} of {shown(most)}"
