"""`unstick serve`: the service."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import os_user, settings_of, unconfigured
from unstick.cli.output import note
from unstick.domain.access import LINK_LASTS, Principal, Role
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.wording import say_duration

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from unstick.config import Settings

_ERROR = 2
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on is shown as what can be asked


def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="Listen on this port.", min=0, max=65_535)] = 8000,
) -> None:
    """Run the service until it is stopped: the API, and the watch over all sources."""
    import asyncio
    import logging

    import uvicorn

    from unstick.cli.logs import configure_logging
    from unstick.console.router import PREFIX as CONSOLE
    from unstick.wiring import check_sources, create_service

    settings = settings_of(ctx)
    service = create_service(settings)
    asyncio.run(check_sources(settings))
    listener = _listen(host, port)
    configure_logging()
    address = _address(host, listener)
    logging.getLogger("unstick").info("Listening on %s; the console is at %s%s/.", address, address, CONSOLE)
    _offer_link(settings, address)
    sentence = unconfigured(ctx, settings)
    if sentence is not None:
        logging.getLogger("unstick").warning(sentence)
    # uvicorn raises the signal again when it has shut down; asyncio's own handler would at times swallow it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)

    service.state.stopping = False

    class Server(uvicorn.Server):
        """Tells endless answers that it stops, which waits for all answers to end."""

        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            service.state.stopping = True
            super().handle_exit(sig, frame)

    server = Server(uvicorn.Config(service, host=host, port=port, log_config=None))
    try:
        server.run(sockets=[listener])
    except SystemExit as ending:
        # It has logged why; a status of its own could be 1, which says that stuck jobs were found.
        raise typer.Exit(_ERROR) from ending


def _offer_link(settings: "Settings", address: str) -> None:
    """Print a link to sign in with once, where a person looks; a log would keep it."""
    import asyncio

    from unstick.cli.output import is_watched
    from unstick.wiring import make_sign_in_path

    watched = next((stream for stream in (sys.stderr, sys.stdout) if is_watched(stream)), None)
    if watched is None:
        return
    try:
        path = asyncio.run(make_sign_in_path(settings, Principal(name=f"cli:{os_user()}", role=Role.ADMIN)))
    except SourceUnavailableError as error:
        note(f"There is no link to sign in with: {error}")
        return
    typer.echo(f"Sign in once, within {say_duration(LINK_LASTS)}: {address}{path}", file=watched)


def _address(host: str, listener: "socket.socket") -> str:
    """Return where a browser on this machine finds the service."""
    shown = _LOOPBACK.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigurationError(f"Can't listen on {host} port {port}: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    """Return the system's words without the address that Python adds to them."""
    return str(error.strerror).partition(" (while")[0]
