"""`unstick token`: tokens for the API: those the ledger keeps, which can be revoked, and signed ones."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, duration_of, os_user, settings_of
from unstick.cli.output import plain, say, say_json
from unstick.domain.access import LONGEST_TOKEN, TOKEN_LASTS, Role
from unstick.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unstick.config import Settings
    from unstick.domain.access import Credential
    from unstick.pipeline.credentials import TokenOrder

app = typer.Typer(help="Make, list and revoke tokens for the API.", no_args_is_help=True, rich_markup_mode=None)

TokenRole = Annotated[Role, typer.Option(help="What its bearer may do.")]


@app.command()
def make(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What its bearer is called in the audit log.")],
    role: TokenRole,
    lasting: Annotated[
        str,
        typer.Option(
            "--for", metavar="DURATION", help=f"How long it is good for, as 12h or 3d; {LONGEST_TOKEN.days}d at most."
        ),
    ] = f"{TOKEN_LASTS.days}d",
    as_json: AsJson = False,
) -> None:
    """Make a token that the ledger keeps and that can be revoked, and print it: it can't be printed again."""
    import asyncio

    from unstick.pipeline.credential_shapes import made_token_shape
    from unstick.pipeline.credentials import TokenOrder

    order = TokenOrder(actor=f"cli:{os_user()}", name=name, scope=role, lasting=duration_of("--for", lasting))
    token, secret = asyncio.run(_make(settings_of(ctx), order))
    if as_json:
        say_json(made_token_shape(token, secret))
    else:
        say(secret)


@app.command("list")
def list_tokens(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the tokens that the ledger keeps, the newest first."""
    import asyncio

    from unstick.pipeline.credential_shapes import tokens_shape

    tokens = asyncio.run(_living(settings_of(ctx)))
    if as_json:
        say_json(tokens_shape(tokens))
    else:
        say("\n".join(_line(token) for token in tokens) or "There is no token.")


@app.command()
def revoke(
    ctx: typer.Context,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `unstick token list` tells it.")],
) -> None:
    """Revoke a token: it opens nothing from now on, and the sessions it opened are over."""
    import asyncio

    asyncio.run(_revoke(settings_of(ctx), token_id))
    say(plain(f"Token {token_id} is revoked."))


@app.command()
def sign(
    ctx: typer.Context,
    role: TokenRole,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom the audit log names; without it the user of this system.")
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it is valid, as 90s, 5m, 12h or 3d.")
    ] = "12h",
    as_json: AsJson = False,
) -> None:
    """Sign a token with the secret key of the settings; nobody keeps it, and it can't be revoked."""
    from unstick.api.auth import mint_token

    settings = settings_of(ctx)
    if settings.secret_key is None:
        raise ConfigurationError(
            "There is no secret key to sign a token with: set UNSTICK_SECRET_KEY to what `openssl rand -hex 32` prints."
        )
    valid, name = duration_of("--lifetime", lifetime), subject or os_user()
    minted = mint_token(settings.secret_key, role=role, subject=name, lifetime=valid, auth=settings.auth)
    if as_json:
        say_json({"token": minted, "role": role.value, "subject": name, "expires_in": int(valid.total_seconds())})
    else:
        say(minted)


async def _make(settings: "Settings", order: "TokenOrder") -> "tuple[Credential, str]":
    from unstick.pipeline.credentials import make_token
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        return await make_token(watched, order)


async def _living(settings: "Settings") -> "Sequence[Credential]":
    from unstick.pipeline.credentials import living_tokens
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        return await living_tokens(watched)


async def _revoke(settings: "Settings", token_id: str) -> None:
    from unstick.domain.access import Principal
    from unstick.pipeline.credentials import revoke_token
    from unstick.wiring import open_watched

    async with open_watched(settings) as watched:
        await revoke_token(watched, Principal(name=f"cli:{os_user()}", role=Role.ADMIN), token_id)


def _line(token: "Credential") -> str:
    from unstick.domain.wording import say_instant

    used = "never used" if token.used_at is None else f"last used {say_instant(token.used_at)}"
    until = f"until {say_instant(token.expires_at)}"
    said = f"{token.principal.role.value}, {until}, {used}, made by {token.made_by}"
    return f"{token.id}  {plain(f'{token.principal.name}: {said}')}"
