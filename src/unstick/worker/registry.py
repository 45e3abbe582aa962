"""Which function runs which kind of job."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from unstick.domain.errors import ConfigurationError
from unstick.domain.work import ClaimedJob
from unstick.worker.heartbeat import Heartbeat

Results = Mapping[str, object] | None
"""What a handler returns: values to write into its job's row as it finishes, by column name."""
Handler = Callable[[ClaimedJob, Heartbeat], Results] | Callable[[ClaimedJob, Heartbeat], Awaitable[Results]]

_Handler = TypeVar("_Handler", bound=Handler)


class Registry:
    """Handlers by kind. An async one runs on the loop, any other in a thread.

    registry = Registry()

    @registry.job("thesis.outline")
    async def outline(job: ClaimedJob, beat: Heartbeat) -> Mapping[str, object]:
        ...
        beat.progress(50)
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that have a handler."""
        return tuple(self._handlers)

    def job(self, kind: str) -> Callable[[_Handler], _Handler]:
        """Register the decorated function for a kind.

        Raises:
            ConfigurationError: the kind has one already.
        """
        if kind in self._handlers:
            raise ConfigurationError(f"Jobs of kind {kind!r} have a handler already.")

        def register(handler: _Handler) -> _Handler:
            self._handlers[kind] = handler
            return handler

        return register

    def handler(self, kind: str | None) -> Handler:
        """Return what runs a kind; raise `ConfigurationError` where nothing does."""
        try:
            return self._handlers[kind or ""]
        except KeyError:
            raise ConfigurationError(f"No handler is registered for jobs of kind {kind!r}.") from None
