"""What every use case works on."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from unstick.domain.policy import Policy
from unstick.ports import JobSource, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A source with the ledger its changes are recorded in and the policy in force for it."""

    source: JobSource
    ledger: Ledger
    policy: Policy


OpenWatched = Callable[[], AbstractAsyncContextManager[Watched]]
"""Opens a source for one use: in a service the same each time, in a host app on a session of its own."""
