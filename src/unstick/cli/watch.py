"""`unstick watch`: the runner alone, without the service around it."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import signal
from typing import TYPE_CHECKING

import typer

from unstick.cli.options import source_settings_of

if TYPE_CHECKING:
    from unstick.config import Settings


def watch(ctx: typer.Context) -> None:
    """Observe and sweep all sources again and again, until it is stopped; of several that do, one leads each source."""
    import asyncio

    from unstick.cli.logs import configure_logging

    settings = source_settings_of(ctx)
    configure_logging()
    asyncio.run(_watch(settings))


async def _watch(settings: "Settings") -> None:
    import asyncio

    from unstick.wiring import check_sources, keep_watch_alone

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await check_sources(settings)
    async with keep_watch_alone(settings):
        await stopped.wait()
