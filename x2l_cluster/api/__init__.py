"""The HTTP face of a service. Knows neither ray nor torch."""

from x2l_cluster.api.app import create_app
from x2l_cluster.api.auth import Authenticator, KeyAccess, OpenAccess
from x2l_cluster.api.settings import ApiSettings

__all__ = ["ApiSettings", "Authenticator", "KeyAccess", "OpenAccess", "create_app"]
