"""`unstick worker`: run the jobs of a source with handlers of your own."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import SourceName, source_settings_of
from unstick.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.worker import Registry


def worker(
    ctx: typer.Context,
    handlers: Annotated[str, typer.Argument(metavar="MODULE:REGISTRY", help="Where the registry of handlers is.")],
    concurrency: Annotated[int, typer.Option(min=1, help="How many jobs run at a time.")] = 4,
    source: SourceName = None,
) -> None:
    """Run queued jobs until it is stopped; SIGTERM lets those that run come to their end."""
    import asyncio

    from unstick.cli.logs import configure_logging

    settings = source_settings_of(ctx)
    registry = _registry(handlers)
    configure_logging()
    asyncio.run(_run(settings, source, registry, concurrency))


async def _run(settings: "Settings", source: str | None, registry: "Registry", concurrency: int) -> None:
    import asyncio

    from unstick.wiring import open_worker
    from unstick.worker import Runner

    async with open_worker(settings, source) as opened:
        runner = Runner(opened, registry, concurrency=concurrency)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, runner.stop)
        await runner.run()


def _registry(named: str) -> "Registry":
    """Import a registry from the working directory or what is installed."""
    import importlib
    import sys

    from unstick.worker import Registry

    module, _, name = named.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigurationError(f"{module!r} can't be imported: {error}.") from error
    if not isinstance(found, Registry):
        raise ConfigurationError(f"{named!r} is no registry of handlers; name it as module:registry.")
    return found
