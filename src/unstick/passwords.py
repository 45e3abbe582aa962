"""Passwords, as Argon2id hashes: so slow to try that a stolen ledger gives none of them away soon."""

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from pwdlib import PasswordHash

from unstick.domain.access import LONGEST_PASSWORD

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="unstick-password")
"""Each hash takes 64 MiB while it lasts: whoever floods the sign-in waits in a row, and nobody else waits at all."""
_ARGON2 = PasswordHash.recommended()


class Argon2Passwords:
    """Hashes and compares passwords."""

    async def hash(self, password: str) -> str:
        """Return what is kept of a password."""
        return await asyncio.get_running_loop().run_in_executor(_THREADS, _ARGON2.hash, password)

    async def matches(self, password: str, kept: str | None) -> bool:
        """Tell whether a password is the one that was kept; where none was, compare it with nobody's all the same."""
        return await asyncio.get_running_loop().run_in_executor(_THREADS, _matches, password, kept)


def _matches(password: str, kept: str | None) -> bool:
    if len(password) > LONGEST_PASSWORD:
        return False
    return _ARGON2.verify(password, kept or _nobodys())


@cache
def _nobodys() -> str:
    return _ARGON2.hash(secrets.token_urlsafe())
