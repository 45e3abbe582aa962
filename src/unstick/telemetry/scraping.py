"""Metrics over HTTP where there is no service: on a port of their own, by prometheus_client's server."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from pydantic import SecretStr

from unstick.config import Address
from unstick.domain.errors import ConfigurationError
from unstick.telemetry.metrics import Metrics

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def bears(authorization: str | None, token: SecretStr) -> bool:
    """Tell whether an `Authorization` header bears this token."""
    scheme, _, sent = (authorization or "").partition(" ")
    expected = token.get_secret_value().encode()
    return secrets.compare_digest(sent.strip().encode(), expected) and scheme.lower() == "bearer"


@contextmanager
def listening(metrics: Metrics, address: Address, token: SecretStr | None = None) -> Iterator[None]:
    """Serve metrics there meanwhile; with a token, a scrape must bear it.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    # Where a token is wanted, nothing is there to read until it is asked for.
    registry = metrics.registry if token is None else CollectorRegistry()
    try:
        server, thread = start_http_server(address.port, addr=address.host, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"`[metrics] listen`: can't listen on {address.host} port {address.port}: {error.strerror}."
        ) from error
    if token is not None:
        server.set_app(_asking(make_wsgi_app(metrics.registry), token))
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _asking(answer: _Application, token: SecretStr) -> _Application:
    def asking(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if bears(environ.get("HTTP_AUTHORIZATION"), token):
            return answer(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"Send the token that `[metrics] token` says: `Authorization: Bearer <token>`.\n"]

    return asking
