"""A word that a mapping names for a state, and that the jobs' own table contradicts."""

from dataclasses import dataclass

from unstick.domain.job import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtedWord:
    """No job that was looked at holds it."""

    word: str
    state: JobState
    """What it is to mean."""
    held: tuple[str, ...] = ()
    """Words that jobs hold, that nobody mapped, and that it was most likely meant to be."""
    allowed: tuple[str, ...] = ()
    """The only words that can be stored, where the table says so; it is none of them."""
