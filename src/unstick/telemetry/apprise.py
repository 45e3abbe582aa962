"""Alerts by whatever Apprise knows an address for: e-mail, Slack, PagerDuty and 180 more.

Guarantee: an address is in no error and in no log, for it holds passwords. Known weakness: services answer Apprise
with yes or no, so that it can't be told whether a message arrived that it has lost sight of.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import apprise
from pydantic import SecretStr

from unstick.domain.alert import Delivery, Happened
from unstick.domain.errors import ConfigurationError, NotDeliveredError
from unstick.telemetry.messages import Templates

ANSWER_WITHIN = timedelta(seconds=10)


class AppriseChannel:
    """An address that Apprise knows how to reach.

    Args:
        name: what the channel is called.
        address: as Apprise writes it.
        templates: what the title and the text say.
        within: how long it may take in all.

    Raises:
        ConfigurationError: Apprise can't make anything of the address.
    """

    def __init__(self, name: str, address: SecretStr, templates: Templates, within: timedelta = ANSWER_WITHIN) -> None:
        self.name = name
        self._within = within.total_seconds()
        self._templates = templates
        self._apprise = apprise.Apprise()
        with _hushed():
            understood = self._apprise.add(address.get_secret_value())
        if not understood:
            raise ConfigurationError(
                f"[alerts.channels.{name}] `apprise` is no address that Apprise understands ({_scheme(address)}). It "
                "isn't shown, for it may hold a password; see https://appriseit.com for how it is written."
            )

    async def send(self, delivery: Delivery) -> None:
        """Send it.

        Raises:
            NotDeliveredError: the service didn't take it.
        """
        title, body = await asyncio.to_thread(self._templates.message, delivery)
        said = await self._apprise.async_notify(
            title=title,
            body=body,
            notify_type=_type_of(delivery),
            body_format=apprise.NotifyFormat.TEXT,
            timeout=self._within,
        )
        if not said:
            late = bool(said.timeout_count)
            raise NotDeliveredError(
                f"no answer within {self._within:g} seconds" if late else "Apprise's service didn't take it",
                may_have_arrived=late,
            )


def _type_of(delivery: Delivery) -> apprise.NotifyType:
    if delivery.is_test:
        return apprise.NotifyType.INFO
    over = all(change.what is Happened.RESOLVED for change in delivery.changes)
    return apprise.NotifyType.SUCCESS if over else apprise.NotifyType.WARNING


_hushed_threads: set[int] = set()


def _may_be_logged(record: logging.LogRecord) -> bool:
    """Let pass what Apprise masks: below INFO it writes passwords in full, and a part of one that it refuses."""
    return record.levelno >= logging.INFO and record.thread not in _hushed_threads


logging.getLogger("apprise").addFilter(_may_be_logged)


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep back all that Apprise logs in this thread meanwhile."""
    this = threading.get_ident()
    _hushed_threads.add(this)
    try:
        yield
    finally:
        _hushed_threads.discard(this)


def _scheme(address: SecretStr) -> str:
    scheme, found, _ = address.get_secret_value().partition("://")
    return f"{scheme}://…" if found and scheme.isalnum() else "it begins with no scheme, such as mailto://"
