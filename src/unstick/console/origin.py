"""The guard against requests that another site makes a person's browser send."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import Request

from unstick.api.call import SAFE_METHODS
from unstick.api.problems import RefusedError

_PORTS = {"http": 80, "https": 443}


async def from_here(request: Request) -> None:
    """Refuse a change that doesn't come from a page of this server's: the dependency of the whole console."""
    if not is_from_here(request.method, request.headers):
        raise RefusedError(403, "This was sent from elsewhere. Open the page on this server, and send it from there.")


def is_from_here(method: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a request may change something: its browser says that a page of this server's sent it.

    `Sec-Fetch-Site` decides where a browser sends it, which over plain HTTP it does to this machine only; else the
    `Origin`, whose host must be the one that was asked. A bearer's token isn't sent by a browser by itself, so nobody
    can make one send it. The scheme isn't compared: behind a proxy nobody knows it for sure.
    """
    if method in SAFE_METHODS or headers.get("authorization", "").lower().startswith("bearer "):
        return True
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site == "same-origin":
        return True
    # `none` is a person's own doing, such as sending a form anew from the history.
    if site not in (None, "none") or origin is None:
        return False
    return _is_same_host(origin, headers.get("host", ""))


def _is_same_host(origin: str, host: str) -> bool:
    try:
        sent = urlsplit(origin)
        asked = urlsplit(f"//{host}")
        default = _PORTS.get(sent.scheme)
        return bool(sent.hostname) and (sent.hostname, sent.port or default) == (asked.hostname, asked.port or default)
    except ValueError:
        return False
