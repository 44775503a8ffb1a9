"""``x2l keys``: who may use a service that asks for keys. Works on its state, whether it is up or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from x2l_cluster.cli.options import AsJson, Data
from x2l_cluster.cli.show import columns, emit, err, line, out
from x2l_cluster.cli.text import plain
from x2l_cluster.errors import UnknownTenant

if TYPE_CHECKING:
    from x2l_cluster.state.tenancy import Tenants

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="Whose key; videos belong to a tenant.")]

keys = typer.Typer(help="API keys, for `x2l up --api-keys required`.", no_args_is_help=True)


@contextmanager
def _tenants(data: Path | None) -> Iterator[Tenants]:
    from x2l_cluster.cli.ground import service_state
    from x2l_cluster.state.open import open_ledger
    from x2l_cluster.state.tenancy import Tenants

    with service_state(data) as url, Tenants(open_ledger(url, "tenants")) as tenants:
        yield tenants


@keys.command()
def create(
    tenant: TenantName,
    label: Annotated[str, typer.Option(help="For people: what it is for.")] = "",
    days: Annotated[float | None, typer.Option(min=0, help="How long it is good; by default until revoked.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and its tenant if it is new. The key is printed this once and kept nowhere."""
    with _tenants(data) as tenants:
        try:
            tenants.tenant(tenant)
        except UnknownTenant:
            tenants.create(tenant)
        new = tenants.create_key(tenant, label=label, ttl_s=None if days is None else days * 86400)
    if as_json:
        emit(asdict(new.key) | {"secret": new.secret})
        return
    line(new.secret)
    err.print(f"key {new.key.id} of tenant {plain(tenant)}; commands take it from X2L_API_KEY", soft_wrap=True)


@keys.command("list")
def list_(tenant: TenantName, data: Data = None, as_json: AsJson = False) -> None:
    """List a tenant's keys, without what is secret."""
    with _tenants(data) as tenants:
        known = tenants.keys(tenant)
    if as_json:
        emit([asdict(key) for key in known])
        return
    table = columns("key", "label")
    for key in known:
        table.add_row(key.id, plain(key.label))
    out.print(table)


@keys.command()
def revoke(
    tenant: TenantName,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of a key, as `x2l keys list` has it.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a key good for nothing from now on."""
    with _tenants(data) as tenants:
        tenants.revoke_key(tenant, key)
    if as_json:
        emit({"tenant": tenant, "key": key})
    else:
        line(f"revoked {key}")
