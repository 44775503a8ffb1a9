"""What routes are written with: ids in addresses, and what they ask for by type."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.convertors import Convertor, register_url_convertor

from x2l_cluster.api.auth import Authenticator
from x2l_cluster.api.settings import ApiSettings
from x2l_cluster.service.base import Service


class _Id(Convertor[str]):
    """``{name:id}`` in an address. Without ':' and '/' in it, ``/v1/jobs/j1:cancel`` can be no id of a job."""

    regex = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _Id())


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _auth(request: Request) -> Authenticator:
    auth: Authenticator = request.app.state.auth
    return auth


def _settings(request: Request) -> ApiSettings:
    settings: ApiSettings = request.app.state.settings
    return settings


def _tenant(request: Request) -> str:
    tenant: str = request.state.tenant
    return tenant


Access = Annotated[Authenticator, Depends(_auth)]
Work = Annotated[Service, Depends(_service)]
Limits = Annotated[ApiSettings, Depends(_settings)]
Tenant = Annotated[str, Depends(_tenant)]
