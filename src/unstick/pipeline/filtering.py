"""Scopes narrowed to the jobs that somebody asked for: what can be said to the source is, so that it costs no more."""

from collections.abc import Sequence
from dataclasses import replace

from unstick.domain.filter import StuckFilter
from unstick.domain.suspect import Look
from unstick.pipeline.looking import Scope
from unstick.pipeline.watched import Watched


async def narrow(watched: Watched, scopes: Sequence[Scope], wanted: StuckFilter) -> tuple[Scope, ...]:
    """Return the scopes, each with those of its jobs that can be meant; what they don't tell is left to each job."""
    aged = narrow_by_age(scopes, wanted)
    if not wanted.names_classes:
        return aged
    classes = frozenset(filter(wanted.takes_class, (await watched.source.open_classes()).found))
    looks = (
        replace(scope.look, classes=classes if scope.look.classes is None else scope.look.classes & classes)
        for scope in aged
    )
    return tuple(replace(scope, look=look) for scope, look in zip(aged, looks, strict=True) if look.classes)


def narrow_by_age(scopes: Sequence[Scope], wanted: StuckFilter) -> tuple[Scope, ...]:
    """Return the scopes, each with those of its jobs whose state and age can be meant, which costs nothing to know."""
    found = []
    for scope in scopes:
        states = tuple(state for state in scope.look.states if wanted.takes_state(state, scope.waiting))
        if states:
            found.append(replace(scope, look=_aged(replace(scope.look, states=states), wanted)))
    return tuple(found)


def _aged(look: Look, wanted: StuckFilter) -> Look:
    if wanted.older_than is None:
        return look
    queued, running = (max(wanted.older_than, each) for each in (look.queued_after, look.running_after))
    return replace(look, queued_after=queued, running_after=running)
