"""Bearer tokens: JWT, HS256 and nothing else, signed with one secret.

A token must say who (`sub`), until when (`exp`) and as what (`role`). Where it says who made it (`iss`) or for
whom (`aud`), that must be us; a platform's own admin tokens often say neither and are welcome.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import jwt
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from unstick.api.problems import RefusedError
from unstick.config import AuthSettings, secret_bytes
from unstick.domain.access import Principal, Role

_ALGORITHM = "HS256"
_NOT_VALID = "The token is not valid."

_bearer = HTTPBearer(
    auto_error=False, scheme_name="bearer", bearerFormat="JWT", description="A token as `unstick token` makes them."
)


def jwt_principal(secret: SecretStr, auth: AuthSettings) -> Callable[..., Awaitable[Principal]]:
    """Return the dependency that reads a caller's token.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    key = secret_bytes(secret)

    async def principal(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Principal:
        if sent is None:
            raise RefusedError(401, "Send a token: `Authorization: Bearer <token>`.")
        return _principal(_claims(sent.credentials, key, auth))

    return principal


def mint_token(secret: SecretStr, *, role: Role, subject: str, lifetime: timedelta, auth: AuthSettings) -> str:
    """Make a token.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    now = datetime.now(UTC)
    claims = {
        "sub": subject,
        "role": role.value,
        "iss": auth.issuer,
        "aud": auth.audience,
        "iat": now,
        "exp": now + lifetime,
    }
    return jwt.encode(claims, secret_bytes(secret), _ALGORITHM)


def _claims(token: str, key: bytes, auth: AuthSettings) -> dict[str, Any]:
    try:
        claims = jwt.decode(
            token,
            key,
            [_ALGORITHM],
            {
                "require": ["exp", "sub"],
                "enforce_minimum_key_length": True,
                "verify_aud": False,  # checked below: PyJWT would refuse the tokens that carry none
                "verify_iss": False,
                "verify_iat": False,  # a minter whose clock is a second ahead has done nothing wrong
            },
        )
    except jwt.ExpiredSignatureError as error:
        raise RefusedError(401, "The token has expired.") from error
    except jwt.PyJWTError as error:
        raise RefusedError(401, _NOT_VALID) from error
    if not _made_by_and_for_us(claims, auth):
        raise RefusedError(401, "The token was made by or for somebody else.")
    return claims


def _made_by_and_for_us(claims: dict[str, Any], auth: AuthSettings) -> bool:
    audience = claims.get("aud", auth.audience)
    audiences = audience if isinstance(audience, list) else [audience]
    return claims.get("iss", auth.issuer) == auth.issuer and auth.audience in audiences


def _principal(claims: dict[str, Any]) -> Principal:
    name, role = claims["sub"], claims.get("role")
    if not name:
        raise RefusedError(401, _NOT_VALID)
    if role not in list(Role):
        raise RefusedError(
            403, "The token's role opens nothing here.", actor=name, role=None if role is None else str(role)
        )
    return Principal(name=name, role=Role(role))
