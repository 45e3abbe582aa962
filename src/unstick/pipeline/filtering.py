"""Scopes narrowed to the jobs that somebody asked for: what can be said to the source is, so that it costs no more."""

from collections.abc import Sequence
from dataclasses import replace

from unstick.domain.filter import StuckFilter
from unstick.domain.suspect import Look
from unstick.pipeline.looking import Scope
from unstick.pipeline.watched import Watched


async def narrow(watched: Watched, scopes: Sequence[Scope], wanted: StuckFilter) -> tuple[Scope, ...]:
    """Return the scopes, each with those of its jobs that can be meant; what they don't tell is left to each job."""
    classes = None
    if wanted.names_classes:
        classes = frozenset(filter(wanted.takes_class, (await watched.source.open_classes()).found))
    found = []
    for scope in scopes:
        states = tuple(state for state in scope.look.states if wanted.takes_state(state, scope.waiting))
        look = narrow_by_age(replace(scope.look, states=states), wanted)
        if classes is not None:
            look = replace(look, classes=classes if look.classes is None else look.classes & classes)
        if states and look.classes != frozenset():
            found.append(replace(scope, look=look))
    return tuple(found)


def narrow_by_age(look: Look, wanted: StuckFilter) -> Look:
    """Return a look at those jobs that are as old as is asked for."""
    if wanted.older_than is None:
        return look
    queued, running = (max(wanted.older_than, each) for each in (look.queued_after, look.running_after))
    return replace(look, queued_after=queued, running_after=running)
