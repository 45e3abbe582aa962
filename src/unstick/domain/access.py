"""Who may do what, and what they show for it: a session, a token or a sign-in link."""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from unstick.domain.errors import InvalidRequestError

SESSION_LASTS = timedelta(hours=12)
LINK_LASTS = timedelta(minutes=10)
TOKEN_LASTS = timedelta(days=90)
LONGEST_TOKEN = timedelta(days=365)
LONGEST_NAME = 64
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 1_024

TOKEN_PREFIX = "unstick_"  # noqa: S105 - what every token begins with, so that scanners know one that leaked
_ID, _KEY = "[0-9a-f]{16}", "[A-Za-z0-9_-]{43}"
_SHOWN = re.compile(f"({_ID})({_KEY})", re.ASCII)


class Role(StrEnum):
    """What a caller may do, from least to most; each may do all that those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def allows(self, needed: "Role") -> bool:
        """Tell whether this role includes the needed one."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller."""

    name: str
    role: Role


class CredentialKind(StrEnum):
    """What a caller can show."""

    SESSION = "session"
    TOKEN = "token"  # noqa: S105 - the word for it
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What the bearer of a credential shows: the id it is found by, and 256 random bits that are kept nowhere."""

    id: str
    key: str = field(repr=False)

    @property
    def text(self) -> str:
        """What is shown, once."""
        return self.id + self.key

    @property
    def digest(self) -> str:
        """What is kept."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    def opens(self, digest: str) -> bool:
        """Tell whether this is the secret of what is kept; it takes as long either way."""
        return hmac.compare_digest(self.digest, digest)


def read_secret(shown: str) -> Secret | None:
    """Return the secret that somebody shows, None where it can't be one."""
    match = _SHOWN.fullmatch(shown)
    return None if match is None else Secret(id=match[1], key=match[2])


def token_text(secret: Secret) -> str:
    """Return a token as its bearer sends it."""
    return TOKEN_PREFIX + secret.text


def read_token(sent: str) -> Secret | None:
    """Return the secret of a token, None where that is no token of ours."""
    return read_secret(sent.removeprefix(TOKEN_PREFIX)) if sent.startswith(TOKEN_PREFIX) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Where a caller comes from."""

    address: str
    browser: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """Who sends a token, and how far what it opens may reach."""

    principal: Principal
    until: datetime
    token_id: str | None = None
    """None where it is a signed one, which nobody keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCredential:
    """A credential to be kept for so long."""

    kind: CredentialKind
    secret: Secret
    principal: Principal
    """Whom its bearer is taken for."""
    made_by: str
    lasting: timedelta
    until: datetime | None = None
    """It ends then at the latest, as what it was opened by does."""
    opened_by: str | None = None
    """The id of the token that opened it, and that it ends with."""
    password_hash: str | None = field(default=None, repr=False)
    """What was kept of the password that opened it."""
    visit: Visit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A session, token or sign-in link as it is kept: without its secret."""

    id: str
    kind: CredentialKind
    principal: Principal
    made_by: str
    made_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    """To the minute."""
    visit: Visit | None = None
    """Where a session was opened from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who signs in by a password."""

    name: str
    role: Role
    made_by: str
    made_at: datetime


def requested_name(said: str) -> str:
    """Return a name for a user or a token.

    Raises:
        InvalidRequestError: it can't be one; a colon would make it look like `token:…` or `cli:…`.
    """
    if re.fullmatch(rf"[^\W_][\w.@+-]{{0,{LONGEST_NAME - 1}}}", said) is None:
        raise InvalidRequestError(
            f"A name has at most {LONGEST_NAME} letters, digits and `_.@+-`, and begins with a letter or digit."
        )
    return said


def requested_password(said: str) -> str:
    """Return a new password.

    Raises:
        InvalidRequestError: it is too short to withstand being guessed, or too long.
    """
    if not SHORTEST_PASSWORD <= len(said) <= LONGEST_PASSWORD:
        raise InvalidRequestError(
            f"A password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters; this one has {len(said)}."
        )
    return said


def requested_lifetime(lasting: timedelta) -> timedelta:
    """Return how long a token is good for.

    Raises:
        InvalidRequestError: that is longer than any may be.
    """
    if not timedelta(0) < lasting <= LONGEST_TOKEN:
        raise InvalidRequestError(f"A token is good for at most {LONGEST_TOKEN.days} days.")
    return lasting
