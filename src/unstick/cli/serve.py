"""`unstick serve`: the service."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import settings_of, unconfigured
from unstick.domain.errors import ConfigurationError

if TYPE_CHECKING:
    import socket
    from types import FrameType

_ERROR = 2


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
    from unstick.wiring import check_sources, create_service

    settings = settings_of(ctx)
    service = create_service(settings)
    asyncio.run(check_sources(settings))
    listener = _listen(host, port)
    configure_logging()
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
