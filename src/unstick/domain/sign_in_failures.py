"""How guessing is slowed down: who failed lately waits, at most a minute, before they may try again.

Known weakness: somebody who guesses from many addresses can keep a name slow for those who never signed in as it
from where they are; a token or a sign-in link lets them in all the same.
"""

import hashlib
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

FREE = 5
"""So many failures cost nothing."""
LONGEST_WAIT = timedelta(minutes=1)
FORGOTTEN_AFTER = timedelta(hours=1)
"""How long after the last failure all of them are forgotten."""
KNOWN_FOR = timedelta(days=30)
"""How long after a name signed in from an address it isn't slowed there by what others do elsewhere."""
_IPV6_NETWORK = 64
"""What one customer of a provider has of IPv6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInTry:
    """One try to sign in: from where, and as whom where a name was given."""

    address: str
    name: str | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """What its failures are counted for: the address, the name, and the name from this address.

        They are fingerprints: what people type as a name may be their password.
        """
        network = _network(self.address)
        named = () if self.name is None else ((None, self.name), (network, self.name))
        return tuple(_fingerprint(subject) for subject in ((network, None), *named))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often one subject failed in a row."""

    number: int = 0
    failed_at: datetime | None = None
    succeeded_at: datetime | None = None

    def again(self, now: datetime) -> "Failures":
        """Count another failure."""
        return replace(self, number=1 if self._is_forgotten(now) else self.number + 1, failed_at=now)

    def wait(self, now: datetime) -> timedelta:
        """Return how long it is until the next try: nothing, a second, two, four, and at most a minute."""
        if self.failed_at is None or self.number < FREE or self._is_forgotten(now):
            return timedelta(0)
        pause = min(LONGEST_WAIT, timedelta(seconds=2 ** min(self.number - FREE, 10)))
        return max(timedelta(0), self.failed_at + pause - now)

    def is_known(self, now: datetime) -> bool:
        """Tell whether it succeeded not long ago."""
        return self.succeeded_at is not None and now - self.succeeded_at < KNOWN_FOR

    def _is_forgotten(self, now: datetime) -> bool:
        return self.failed_at is None or now - self.failed_at >= FORGOTTEN_AFTER


def time_to_wait(failures: Iterable[Failures], now: datetime) -> timedelta:
    """Return how long a try has to wait, by the failures of each of its subjects, in their order.

    Whoever has signed in from here before isn't slowed by those who try the same name from elsewhere.
    """
    match tuple(failures):
        case (address, _, pair) if pair.is_known(now):
            return address.wait(now)
        case all_of_them:
            return max(each.wait(now) for each in all_of_them)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped is not None:  # noqa: PLR2004 - the protocol's own number
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK), strict=False))


def _fingerprint(subject: tuple[str | None, str | None]) -> str:
    return hashlib.sha256(json.dumps(subject).encode()).hexdigest()
