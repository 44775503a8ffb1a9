"""What a store URL says: where the server is, and how to be let in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from x2l_cluster.errors import InvalidInput

_PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a connection does before its first command. Never shows the password."""

    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None


def parse(url: str) -> tuple[Address, Access]:
    """``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``, read as redis-py reads them.

    User and password stand before the host (or come as ``username`` and ``password`` behind ``?``), the database behind
    it (or as ``db``); for TLS ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_check_hostname`` and
    ``ssl_cert_reqs``. Certificates are checked, names included, unless the URL says not to.

    Raises:
        InvalidInput: it cannot be used.
    """
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        is_unix = parts.scheme == "unix"
        db = query.get("db") or ("" if is_unix else parts.path.strip("/")) or "0"
        access = Access(
            username=unquote(parts.username or query.get("username", "")),
            password=unquote(parts.password or query.get("password", "")),
            db=int(db),
            tls=_tls(query) if parts.scheme in ("rediss", "valkeys") else None,
        )
        if is_unix:
            address = Address(path=unquote(parts.path))
        else:
            address = Address(host=parts.hostname or "localhost", port=parts.port or _PORT)
    except (ValueError, OSError) as error:  # a broken number, or a certificate that cannot be read
        raise InvalidInput(f"the store URL {shown(url)} cannot be used: {error}") from error
    if is_unix and not address.path:
        raise InvalidInput(f"the store URL {shown(url)} names no socket: unix:///run/valkey.sock")
    return address, access


def shown(url: str) -> str:
    """The URL without credentials and options, for messages."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0]
    if "@" in rest and "@" not in place:  # a password with a question mark, perhaps
        return f"{scheme}://…"
    return f"{scheme}://{place.rpartition('@')[2]}"


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"), capath=query.get("ssl_ca_path"))
    if (certificate := query.get("ssl_certfile")) is not None:
        context.load_cert_chain(certificate, query.get("ssl_keyfile"))
    checked = query.get("ssl_cert_reqs", "required")
    if checked not in ("required", "none"):
        raise ValueError(f"ssl_cert_reqs is required or none, got {checked}")
    if checked == "none" or query.get("ssl_check_hostname", "true").lower() in ("false", "no", "0"):
        context.check_hostname = False
    if checked == "none":
        context.verify_mode = ssl.CERT_NONE
    return context
