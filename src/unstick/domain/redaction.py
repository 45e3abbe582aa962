"""Payloads as they may be shown: what stands under a key that names a secret is left out."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

REDACTED = "\N{BULLET}\N{BULLET}\N{BULLET}"
SECRET_KEYS = (
    "*password*", "*passwd*", "*passphrase*", "pwd", "*_pwd", "*secret*", "token", "*_token", "*authorization*",
    "*api_key*", "*apikey*", "*access_key*", "*private_key*", "*encryption_key*", "*credential*", "*cookie*",
    "session_id", "jwt", "*_jwt", "bearer", "otp", "cvv", "cvc", "*card_number*", "ssn", "iban",
)  # fmt: skip
"""Globs of the keys that are left out where nothing else is configured, in lower case with `_` between the words."""
LONGEST_PAYLOAD = 16_384
"""Characters of a payload that are looked at; of a longer one none is shown, for it can't be read."""
_DEEPEST = 50


def shown_payload(text: str, keys: Sequence[str] = SECRET_KEYS) -> object:
    """Return a payload that is kept as text as it may be shown: what isn't JSON has no keys to go by, and isn't.

    Where no key is to be left out, it is shown as it is.
    """
    if len(text) > LONGEST_PAYLOAD:
        return f"({LONGEST_PAYLOAD} characters or more)"
    try:
        return redacted(json.loads(text), keys)
    except (ValueError, RecursionError):
        return REDACTED if keys else text


def redacted(payload: object, keys: Sequence[str] = SECRET_KEYS) -> object:
    """Return a payload without its secrets, however deep they are; JSON kept as text is read, and is text again.

    What is nested deeper than anybody nests on purpose is left out whole.
    """
    return _redacted(payload, tuple(keys), 0)


def _redacted(value: object, keys: tuple[str, ...], depth: int) -> object:
    if depth > _DEEPEST:
        return REDACTED
    if isinstance(value, Mapping):
        return {
            _plain(str(key)): REDACTED
            if _is_secret(str(key), keys) and said is not None
            else _redacted(said, keys, depth + 1)
            for key, said in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(each, keys, depth + 1) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # which JSON has no number for
    return _redacted_text(_plain(value), keys, depth) if isinstance(value, str) else value


def _plain(text: str) -> str:
    """Return text as it can be sent: JSON may escape half a character, which is no text anywhere else."""
    return text.encode("utf-8", "replace").decode()


def _redacted_text(text: str, keys: tuple[str, ...], depth: int) -> str:
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        nested = json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        return REDACTED
    shown = _redacted(nested, keys, depth + 1)
    return text if shown == nested else json.dumps(shown, ensure_ascii=False)


@lru_cache(maxsize=4_096)
def _is_secret(key: str, globs: tuple[str, ...]) -> bool:
    name = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    return any(fnmatchcase(name, glob.lower()) for glob in globs)
