"""The connection to the broker: plain commands, plain answers, and one kind of error."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from unstick.domain.errors import ConfigurationError, SourceUnavailableError

Word: TypeAlias = str | int | float
Command: TypeAlias = Sequence[Word]
Answer: TypeAlias = "str | int | list[Answer] | None"

_PATIENCE_SECONDS = 5
"""How long the broker may take to answer."""
_AT_ONCE = 1_000
"""Commands that are sent together: what is in memory at once, here and there."""


class _Client(Protocol):
    async def execute_command(self, *command: Word) -> Answer: ...


class Broker:
    """A Redis or Valkey server."""

    def __init__(self, client: Redis) -> None:
        self._redis = client
        self._client: _Client = client

    async def ask(self, *command: Word) -> Answer:
        """Return the answer to one command.

        Raises:
            SourceUnavailableError: there was none, or it was an error.
        """
        with _explained():
            return await self._client.execute_command(*command)

    async def ask_all(self, commands: Sequence[Command]) -> list[Answer]:
        """Return the answers to many commands, in their order; they aren't one transaction."""
        answers: list[Answer] = []
        for start in range(0, len(commands), _AT_ONCE):
            answers += await self._ask_together(commands[start : start + _AT_ONCE])
        return answers

    async def _ask_together(self, commands: Sequence[Command]) -> list[Answer]:
        with _explained():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return await pipeline.execute()

    async def clock(self) -> datetime:
        """Return the broker's own time."""
        seconds, microseconds = texts(await self.ask("TIME"))
        return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(microseconds))


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[Broker]:
    """Open a broker by its address: `redis://`, `rediss://` or `unix://`, with user, password and number as usual.

    Raises:
        ConfigurationError: the address can't be understood.
    """
    try:
        client = Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="surrogateescape",
            protocol=2,
            socket_timeout=_PATIENCE_SECONDS,
            socket_connect_timeout=_PATIENCE_SECONDS,
            retry=Retry(NoBackoff(), 0),  # a script that is run again finds its own change, and takes it for another's
        )
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The broker's address can't be understood: {error}.") from None
    client.response_callbacks.clear()  # the answers as they came
    try:
        yield Broker(client)
    finally:
        await client.aclose()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise SourceUnavailableError(f"The broker doesn't answer as it should: {error}.") from error


def text(answer: Answer) -> str | None:
    """Return an answer that is text, or nothing."""
    if answer is None or isinstance(answer, str):
        return answer
    raise SourceUnavailableError(f"The broker answered {answer!r} where text was expected.")


def texts(answer: Answer) -> list[str]:
    """Return an answer that is a list of texts."""
    return [each for each in parts(answer) if isinstance(each, str)]


def parts(answer: Answer) -> "list[Answer]":
    """Return an answer that is a list; nothing is an empty one."""
    if answer is None or isinstance(answer, list):
        return answer or []
    raise SourceUnavailableError(f"The broker answered {answer!r} where a list was expected.")


def number(answer: Answer) -> int:
    """Return an answer that is a number."""
    if isinstance(answer, int):
        return answer
    raise SourceUnavailableError(f"The broker answered {answer!r} where a number was expected.")


def pairs(answer: Answer) -> list[tuple[str, str]]:
    """Return an answer that lists names and values in turn."""
    flat = texts(answer)
    return list(zip(flat[::2], flat[1::2], strict=True))
