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
    """A stage that was to be seen wasn't, and the demo can't go on."""

    def __init__(self, stage: str, instead: str) -> None:
        super().__init__(f"Not seen: {stage}. Instead: {instead}.")


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
                    raise NotSeenError(stage, f"{error}, {self._patience:g} s after the start") from error
            except AnswerError as error:
                raise NotSeenError(stage, str(error)) from error
            time.sleep(_EVERY)

    def at_once(self, stage: str, act: Callable[[], T]) -> T:
        """Do what can't be repeated, and return what came of it."""
        try:
            return act()
        except (AnswerError, NoAnswerError) as error:
            self.check()  # an end of the process explains more
            raise NotSeenError(stage, str(error)) from error
