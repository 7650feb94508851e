"""Who may speak to a gateway: those with the key, and no web page of another site.

A browser lets any page send requests to localhost, and lets a page whose own name points at
127.0.0.1 read the answers too. So the names by which a request calls this host and its own page are
looked at before anything else.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pinfer.api.gateway import Access
from p2pinfer.api.problems import Problem

OPEN_PATHS = {"/", "/earnings", "/health", "/version"}
"""Besides the page's files. What needs no key: nothing there tells of the swarm or asks it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host of that name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Turns away requests that are not allowed; what it raises becomes the reply."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise Problem."""
        if scope["type"] == "http":
            self._check(scope["path"], Headers(scope=scope))
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name, hosts = name_of(f"//{host}"), self._access.hosts
        if self._access.only_local_names and not is_loopback(name) and name not in hosts:
            text = (
                f"This gateway does not answer to the name {name[:100] or '(none)'}: behind a proxy"
                " or a tunnel, start it with --allow-host NAME."
            )
            raise Problem(403, text, "host_not_allowed")
        origin = headers.get("origin")
        # A proxy may have put localhost in place of its own name, which the page still has.
        is_own = origin and (_is_own(origin, host) or name_of(origin) in hosts)
        if origin and not ({"*", origin} & {*self._access.origins}) and not is_own:
            text = f"Pages of {origin[:100]} may not use this gateway; see --cors-origin."
            raise Problem(403, text, "origin_not_allowed")
        is_open = path in OPEN_PATHS or path.startswith("/static/")
        if self._access.api_key and not is_open:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            key = headers.get("x-api-key", key if scheme.lower() == "bearer" else "")
            if not hmac.compare_digest(key.strip().encode(), self._access.api_key.encode()):
                raise Problem(401, "Incorrect API key provided.", "invalid_api_key")


def _is_own(origin: str, host: str) -> bool:
    """Whether the page came from this very gateway."""
    return origin.partition("://")[2] == host


def name_of(url: str) -> str:
    """Return the host's name in a URL, in lower case and without its port; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
