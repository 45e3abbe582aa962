"""What is answered about tokens and sessions. Every face answers with these."""

from collections.abc import Sequence

from typing_extensions import TypedDict  # pydantic reads TypedDicts only from here below Python 3.12

from unstick.domain.access import Credential, User


class TokenShape(TypedDict):
    """A token, without what its bearer sends; `used_at` is exact to the minute, null where it never was."""

    id: str
    name: str
    role: str
    made_by: str
    made_at: str
    expires_at: str
    used_at: str | None


class MadeTokenShape(TypedDict):
    """A new token: `secret` is what its bearer sends, and is told this once."""

    token: TokenShape
    secret: str


class RevokedTokenShape(TypedDict):
    """A token that opens nothing any more."""

    id: str
    revoked: bool


class TokensShape(TypedDict):
    """The tokens that haven't expired, the newest first."""

    tokens: list[TokenShape]


class UserShape(TypedDict):
    """Somebody who signs in by a password."""

    name: str
    role: str
    made_by: str
    made_at: str


def token_shape(token: Credential) -> TokenShape:
    """Render a token."""
    return TokenShape(
        id=token.id,
        name=token.principal.name,
        role=token.principal.role.value,
        made_by=token.made_by,
        made_at=token.made_at.isoformat(),
        expires_at=token.expires_at.isoformat(),
        used_at=None if token.used_at is None else token.used_at.isoformat(),
    )


def made_token_shape(token: Credential, secret: str) -> MadeTokenShape:
    """Render a new token with what its bearer sends."""
    return MadeTokenShape(token=token_shape(token), secret=secret)


def tokens_shape(tokens: Sequence[Credential]) -> TokensShape:
    """Render the tokens there are."""
    return TokensShape(tokens=[token_shape(each) for each in tokens])


def user_shape(user: User) -> UserShape:
    """Render a user."""
    return UserShape(name=user.name, role=user.role.value, made_by=user.made_by, made_at=user.made_at.isoformat())
