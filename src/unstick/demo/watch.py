"""Waiting for what is to be seen, with one patience for the whole run."""

import time
from collections.abc import Callable
from typing import TypeVar

from unstick.demo.children import Child
from unstick.demo.faces import AnswerError, NoAnswerError

T = TypeVar("T")

_EVERY = 0.05


class NotYetError(Exception):
    """What is looked for isn't there yet; the message says what was seen instead."""


class NotSeenError(Exception):
    """What was to be seen wasn't, and the demo can't go on; the message says which stage and what was seen instead."""


class Watch:
    """A clock that started with the run, and looks until it sees or runs out."""

    def __init__(self, patience: float) -> None:
        self._began = time.monotonic()
        self._patience = patience
        self._children: list[Child] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def guard(self, child: Child) -> None:
        """Give up at once, from now on, when this process ends by itself."""
        self._children.append(child)

    def check(self) -> None:
        """Raise an error if a guarded process has ended by itself."""
        for child in self._children:
            child.check()

    def until(self, stage: str, look: Callable[[], T]) -> T:
        """Look until `look` returns what it sees; it raises `NotYetError` as long as there is nothing to see."""
        while True:
            self.check()
            try:
                return look()
            except (NotYetError, NoAnswerError) as error:
                if self.elapsed > self._patience:
                    seen = f"{error}, {self._patience:g} s after the start"
                    raise NotSeenError(f"Not seen: {stage}. Instead: {seen}.") from error
            except AnswerError as error:
                raise NotSeenError(f"Not seen: {stage}. Instead: {error}.") from error
            time.sleep(_EVERY)
