"""A draft written slice by slice, and what it comes to in its job's row: the same whichever way jobs are run."""

from time import monotonic
from typing import Any

from unstick.demo.text import Draft, Steps

_SLICE = 0.2
"""Seconds of work between two reports of progress."""
_PRICE_PER_TOKEN = 0.000_002


def advance(steps: Steps) -> int | Draft:
    """Work for one slice; return the progress made, or the draft when it is done."""
    until = monotonic() + _SLICE
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            draft: Draft = end.value
            return draft
        if monotonic() >= until:
            return progress


def outcome(draft: Draft) -> dict[str, Any]:
    """Return what a job's row is to hold of its draft, by column."""
    return {"progress": 100, "result": draft.text, "tokens_used": draft.words, "cost": draft.words * _PRICE_PER_TOKEN}
