"""`unstick policy`: which thresholds and which action hold for which jobs."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import say, say_json

if TYPE_CHECKING:
    from unstick.pipeline.shapes import PolicyShape

app = typer.Typer(help="Say what holds for which jobs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def policy() -> None:
    """Keep `explain` a command of its own, though it is the only one."""


@app.command()
def explain(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Option(help="The jobs' kind; without it, jobs that have none.")] = None,
    queue: Annotated[str | None, typer.Option(help="The jobs' queue; without it, jobs that have none.")] = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Print the policy that holds for jobs of a kind and queue, and the rule that says so."""
    from unstick.domain.job import JobClass
    from unstick.pipeline.shapes import policy_shape
    from unstick.wiring import chosen_source

    settings = source_settings_of(ctx)
    name, _ = chosen_source(settings, source)
    shape = policy_shape(settings.policy.policy(), name, JobClass(kind, queue))
    if as_json:
        say_json(shape)
    else:
        say(_told(shape))


def _told(shape: "PolicyShape") -> str:
    rule = shape["rule"]
    matched = "no rule matches; the policy itself holds" if rule is None else f"rule {rule} is the first that matches"
    kind = "without a kind" if shape["kind"] is None else f"of kind {shape['kind']}"
    queue = "without a queue" if shape["queue"] is None else f"queue {shape['queue']}"
    lines = [f"Jobs {kind}, {queue}, source {shape['source']}: {matched}."]
    width = max(map(len, shape["policy"]))
    lines += [f"  {name:<{width}}  {_said(value)}" for name, value in shape["policy"].items()]
    return "\n".join(lines)


def _said(value: object) -> object:
    match value:
        case None:
            return "not set"
        case bool():
            return "yes" if value else "no"
        case _:
            return value
