"""`unstick user`: who signs in to the console by a password."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, os_user, settings_of
from unstick.cli.output import is_watched, plain, say, say_json
from unstick.domain.access import SHORTEST_PASSWORD, Role
from unstick.domain.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unstick.config import Settings
    from unstick.domain.access import User

app = typer.Typer(help="Add, list and remove those who sign in by a password.", no_args_is_help=True)

UserName = Annotated[str, typer.Argument(metavar="NAME", help="The name to sign in with.")]


@app.command()
def add(ctx: typer.Context, name: UserName, role: Annotated[Role, typer.Option(help="What they may do.")]) -> None:
    """Add a user; the password is asked for, or read from the first line of stdin where that is no terminal."""
    import asyncio

    asyncio.run(_add(settings_of(ctx), name, role, _password()))
    say(plain(f"{name} signs in as {role.value} from now on."))


@app.command("list")
def list_users(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the users by name."""
    import asyncio

    from unstick.domain.wording import say_instant
    from unstick.pipeline.credential_shapes import user_shape

    users = asyncio.run(_users(settings_of(ctx)))
    if as_json:
        say_json({"users": [user_shape(each) for each in users]})
    else:
        lines = [
            f"{each.name}: {each.role.value}, since {say_instant(each.made_at)}, by {each.made_by}" for each in users
        ]
        say("\n".join(plain(line) for line in lines) or "There is no user.")


@app.command()
def remove(ctx: typer.Context, name: UserName) -> None:
    """Remove a user, and end all their sessions."""
    import asyncio

    asyncio.run(_remove(settings_of(ctx), name))
    say(plain(f"{name} can't sign in any more."))


def _password() -> str:
    if is_watched(sys.stdin):
        said: str = typer.prompt(
            f"Password, {SHORTEST_PASSWORD} characters or more", hide_input=True, confirmation_prompt=True, err=True
        )
        return said
    line = "" if sys.stdin is None else sys.stdin.readline()
    if not line.strip():
        raise InvalidRequestError("There is no password on stdin: give it on the first line, or run it in a terminal.")
    return line.rstrip("\r\n")


async def _add(settings: "Settings", name: str, role: Role, password: str) -> None:
    from unstick.pipeline.users import add_user
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        await add_user(watched, name, role, password, by=f"cli:{os_user()}")


async def _users(settings: "Settings") -> "Sequence[User]":
    from unstick.pipeline.users import list_users as read
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        return await read(watched)


async def _remove(settings: "Settings", name: str) -> None:
    from unstick.pipeline.users import remove_user
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        await remove_user(watched, name, by=f"cli:{os_user()}")
