"""`unstick token`: a bearer token for the API."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import Annotated

import typer

from unstick.cli.options import AsJson, duration_of, os_user, settings_of
from unstick.cli.output import say, say_json
from unstick.domain.access import Role
from unstick.domain.errors import ConfigurationError


def token(
    ctx: typer.Context,
    role: Annotated[Role, typer.Option(help="What its bearer may do.")],
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom the audit log names; without it the user of this system.")
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="DURATION", help="How long it is valid, as 90s, 5m, 12h or 3d.")
    ] = "12h",
    as_json: AsJson = False,
) -> None:
    """Make a token for the API, signed with the secret key of the settings."""
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
