"""`unstick alert`: what alerts are open, and whether those who are to be told of them can be."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, source_settings_of
from unstick.cli.output import plain, say, say_json, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unstick.config import Settings
    from unstick.domain.alert import Alert
    from unstick.domain.errors import NotDeliveredError
    from unstick.domain.events import PipelineEvent
    from unstick.ports import Channel

app = typer.Typer(help="Show open alerts, and try the channels that tell of them.", no_args_is_help=True)


@app.command("list")
def list_alerts(
    ctx: typer.Context,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="The source's name; without it all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what alerts are open, the oldest first; exit code 1 if any is."""
    from unstick.cli.running import run
    from unstick.pipeline.alert_shapes import alert_shape

    alerts = run(_standing(source_settings_of(ctx), source))
    if as_json:
        say_json({"alerts": [alert_shape(alert) for alert in alerts]})
    else:
        say("\n".join(_line(alert) for alert in alerts) or "No alert is open.")
    if alerts:
        raise typer.Exit(1)


@app.command("test")
def try_channels(
    ctx: typer.Context,
    channel: Annotated[
        str | None, typer.Argument(metavar="CHANNEL", help="The one to try; without it all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send each channel a test message now, and tell what came of it; exit code 2 if one couldn't be told."""
    from unstick.cli.options import settings_of
    from unstick.cli.running import run
    from unstick.wiring import open_channels

    settings = settings_of(ctx)
    channels = _chosen(open_channels(settings), channel)
    failures = run(_try(channels))
    if as_json:
        told = [
            {"channel": name, "delivered": error is None, "problem": None if error is None else str(error)}
            for name, error in failures.items()
        ]
        say_json({"channels": told})
    else:
        say("\n".join(f"{name}: {_came_of(error)}" for name, error in failures.items()))
    if any(failures.values()):
        raise typer.Exit(2)


class Warner:
    """Says on stderr which channel couldn't be told: a command ends before anybody looks into a log."""

    async def hear(self, event: "PipelineEvent") -> None:
        """Warn."""
        from unstick.domain.events import Delivered, Notified

        if isinstance(event, Notified) and event.outcome is not Delivered.DELIVERED:
            again = "" if event.outcome is Delivered.GAVE_UP else ", and is tried again next time"
            warn(f"channel {event.channel!r} could not be told of an alert{again}: {event.problem}")


async def _standing(settings: "Settings", source: str | None) -> "Sequence[Alert]":
    from unstick.wiring import chosen_source, open_watched

    names = list(settings.sources) if source is None else [chosen_source(settings, source)[0]]
    found: list[Alert] = []
    for name in names:
        async with open_watched(settings, name) as watched:
            if watched.alerts is not None:
                found += await watched.alerts.standing(name)
    return sorted(found, key=lambda alert: alert.opened_at)


def _chosen(channels: "Sequence[Channel]", name: str | None) -> "Sequence[Channel]":
    from unstick.domain.errors import ConfigurationError

    if not channels:
        raise ConfigurationError("Nobody is told of alerts: there is no [alerts.channels.NAME] in the configuration.")
    if name is None:
        return channels
    chosen = [channel for channel in channels if channel.name == name]
    if not chosen:
        names = ", ".join(channel.name for channel in channels)
        raise ConfigurationError(f"There is no channel {name!r}; configured are: {names}.")
    return chosen


async def _try(channels: "Sequence[Channel]") -> "Mapping[str, NotDeliveredError | None]":
    import asyncio
    from datetime import UTC, datetime

    from unstick.domain.alert import sample
    from unstick.pipeline.courier import send

    delivery = sample(datetime.now(UTC))
    results = await asyncio.gather(*(send(channel, delivery) for channel in channels))
    return dict(zip((channel.name for channel in channels), results, strict=True))


def _came_of(error: "NotDeliveredError | None") -> str:
    if error is None:
        return "delivered"
    doubt = " (it may have arrived all the same)" if error.may_have_arrived else ""
    return f"not delivered: {plain(error)}{doubt}"


def _line(alert: "Alert") -> str:
    from unstick.domain.wording import say_instant

    told = "nobody was told yet" if alert.notified_at is None else f"told at {say_instant(alert.notified_at)}"
    return f"{say_instant(alert.opened_at)}  {alert.subject.what.value}  {plain(alert.sentence)} ({told})"
