"""Alerts as a signed POST to an address of your own; `docs/how-to/alerts.md` has a receiver.

Guarantee: the body and the time it was sent are signed with each secret, the address and the secrets are in no error,
and no redirect, proxy or password file sends it elsewhere. `delivery` in the body is the same however often a message
is tried: it is what a receiver knows a repetition by.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property

import httpx
from pydantic import SecretStr

from unstick.domain.alert import Change, Delivery
from unstick.domain.errors import NotDeliveredError
from unstick.telemetry.messages import Templates, change_facts

ANSWER_WITHIN = timedelta(seconds=10)
_GATEWAY = frozenset({502, 504})
"""Somebody between answered: the receiver may have been told."""
_THIS_ONE = frozenset({400, 413, 422})
"""What the message itself is refused with; others may be taken."""


class Webhook:
    """A receiver of signed POSTs.

    Args:
        name: what the channel is called.
        url: where it listens.
        secrets: what is signed with: more than one while the receiver goes from one to the next.
        templates: what the title and the text say.
        within: how long it may take in all.
    """

    def __init__(
        self,
        name: str,
        url: SecretStr,
        secrets: Sequence[SecretStr],
        templates: Templates,
        within: timedelta = ANSWER_WITHIN,
    ) -> None:
        self.name = name
        self._url = url
        self._secrets = [secret.get_secret_value().encode() for secret in secrets]
        self._templates = templates
        self._within = within.total_seconds()

    async def send(self, delivery: Delivery) -> None:
        """Send it, and read no more of the answer than its head.

        Raises:
            NotDeliveredError: it wasn't taken, or nobody knows whether it was.
        """
        title, text = await asyncio.to_thread(self._templates.message, delivery)
        document = {
            "delivery": delivery.id,
            "test": delivery.is_test,
            "title": title,
            "text": text,
            "alerts": [_alert(change) for change in delivery.changes],
        }
        body = json.dumps(document).encode()
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "unstick",
            "Unstick-Timestamp": timestamp,
            "Unstick-Signature": signature(self._secrets, timestamp, body),
            "Unstick-Delivery": delivery.id,
        }
        answer = await self._post(body, headers)
        if not answer.is_success:
            raise NotDeliveredError(
                f"the receiver answered HTTP {answer.status_code}"
                + (", and redirects aren't followed" if answer.is_redirect else ""),
                retry_after=_retry_after(answer),
                may_have_arrived=answer.status_code in _GATEWAY,
                others_too=answer.status_code not in _THIS_ONE,
            )

    async def _post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        late = NotDeliveredError(f"no answer within {self._within:g} seconds", may_have_arrived=True)
        request = httpx.Request(
            "POST",
            self._url.get_secret_value(),
            content=body,
            headers=headers,
            extensions={"timeout": httpx.Timeout(self._within).as_dict()},
        )
        try:
            # By the transport itself: a client asks the environment for proxies, and writes the address into the log,
            # which may hold a key.
            async with (
                asyncio.timeout(self._within),
                httpx.AsyncHTTPTransport(verify=self._trusted) as transport,
            ):
                response = await transport.handle_async_request(request)
                await response.aclose()
                return response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotDeliveredError(f"no connection: {str(error) or type(error).__name__}") from None
        except (TimeoutError, httpx.TimeoutException):
            raise late from None
        except httpx.HTTPError as error:
            raise NotDeliveredError(f"no answer: {type(error).__name__}", may_have_arrived=True) from None

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """The authorities that this system trusts, or that SSL_CERT_FILE names; slow to read, so once."""
        return ssl.create_default_context()


def signature(secrets: Sequence[bytes], timestamp: str, body: bytes) -> str:
    """Sign a body and the time it is sent, once with each secret."""
    signed = timestamp.encode() + b"." + body
    return ",".join(f"v1={hmac.new(secret, signed, hashlib.sha256).hexdigest()}" for secret in secrets)


def _alert(change: Change) -> dict[str, object]:
    alert = change.alert
    facts = {key: value for key, value in change_facts(change).items() if key not in {"word", "where", "lasted"}}
    return facts | {"opened_at": alert.opened_at.isoformat(), "at": (alert.resolved_at or alert.seen_at).isoformat()}


def _retry_after(answer: httpx.Response) -> timedelta | None:
    """Return how long the receiver wants to be left alone: seconds, or a date."""
    said = answer.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return timedelta(seconds=min(int(said), 10**9))
    try:
        until = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(timedelta(0), until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC))
