"""Plans: a dry run's findings kept and signed, and how they are read again.

Guarantee: what is kept is a page at a time, and nothing of it is believed before its signature was found genuine.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from unstick.domain.errors import InvalidRequestError, PlanRefusedError, UnknownPlanError
from unstick.domain.plan import (
    KeptPage,
    Plan,
    PlanDraft,
    PlannedPage,
    PlannedScope,
    Terms,
    is_genuine,
    read_page_text,
    read_terms,
    sign_page,
    sign_plan,
    terms_text,
)
from unstick.domain.plan import page_text as text_of
from unstick.domain.recovery import Action, Decision
from unstick.domain.suspect import Look
from unstick.domain.wording import Phrase
from unstick.pipeline.charges import Charge
from unstick.pipeline.rescue import Decided
from unstick.pipeline.watched import Planning, Watched

PAGE = 1_000
"""Jobs a page: what is in memory and in a statement at once, and changed in one transaction."""
KEPT_FOR = timedelta(days=1)
"""How long a plan can be looked up after it expired: who applies it again hears which operation did it."""
STRUCK_AT_ONCE = 10
"""More than one, so that old plans become fewer however often new ones are made."""
_CHANGED = (
    "was changed since it was made, or was signed with another secret key; nothing of it is done. Make a new one."
)


def kept_plans(watched: Watched) -> Planning:
    """Return where plans are kept; raise `InvalidRequestError` where nothing keeps them."""
    if watched.planning is None:
        raise InvalidRequestError(f"Source {watched.source.name!r} has nowhere to keep a plan: leave out `plan`.")
    return watched.planning


@dataclass(slots=True, kw_only=True)
class Draft:
    """A plan that is being made."""

    planning: Planning
    key: bytes
    plan: Plan
    jobs: int = field(default=0)
    pages: int = field(default=0)

    async def add(self, scope: int, decided: Decided) -> None:
        """Keep decisions on jobs of a scope."""
        for start in range(0, len(decided.decisions), PAGE):
            await self._add_page(scope, decided.decisions[start : start + PAGE])

    async def _add_page(self, scope: int, decisions: Sequence[Decision]) -> None:
        content = text_of(scope, decisions)
        signature = sign_page(self.key, self.plan.id, self.pages, content)
        page = KeptPage(number=self.pages, content=content, signature=signature)
        await self.planning.plans.add(self.plan.id, page)
        self.pages, self.jobs = self.pages + 1, self.jobs + len(decisions)

    async def finish(self) -> Plan:
        """Sign the plan, which is good from here on."""
        plan = replace(self.plan, jobs=self.jobs, pages=self.pages)
        signed = replace(plan, signature=sign_plan(self.key, plan))
        await self.planning.plans.finish(signed)
        return signed


async def begin_plan(watched: Watched, actor: str, look: Look, action: Action, charges: Sequence[Charge]) -> Draft:
    """Begin a plan of what is to be done to the suspects of these charges; forget those that expired long ago.

    Raises:
        ConfigurationError: there is no secret key to sign it with.
    """
    planning = kept_plans(watched)
    key = planning.key()
    await planning.plans.strike(KEPT_FOR, STRUCK_AT_ONCE)
    terms = Terms(look=look, action=action, mapping=planning.mapping, scopes=tuple(map(_planned, charges)))
    draft = PlanDraft(
        id=secrets.token_hex(16), source=watched.source.name, made_by=actor[:255], terms=terms_text(terms)
    )
    return Draft(planning=planning, key=key, plan=await planning.plans.begin(draft, planning.lifetime))


def _planned(charge: Charge) -> PlannedScope:
    policy = charge.scope.policy
    return PlannedScope(
        look=charge.scope.look,
        max_recoveries=policy.max_recoveries,
        recovery_window=policy.recovery_window,
        hung_after=charge.scope.hung_after,
    )


async def find_plan(watched: Watched, plan_id: str) -> Plan:
    """Return a plan whose head is as it was made.

    Raises:
        UnknownPlanError: there is none of that id.
        PlanRefusedError: it was changed, never finished, or is another source's.
    """
    planning, name = watched.planning, watched.source.name
    plan = None if planning is None else await planning.plans.find(plan_id)
    if planning is None or plan is None:
        raise UnknownPlanError(
            Phrase(
                "There is no plan %(plan)s for source %(source)s, or none any more: a day after it expired it is "
                "forgotten. Make one by a dry run with `plan`.",
                plan=repr(plan_id),
                source=repr(name),
            )
        )
    if not is_genuine(plan.signature, sign_plan(planning.key(), plan)):
        raise PlanRefusedError(
            f"Plan {plan_id} was never finished: make a new one."
            if plan.signature is None
            else f"Plan {plan_id} {_CHANGED}"
        )
    if plan.source != name:
        raise PlanRefusedError(f"Plan {plan_id} is about source {plan.source!r}: name that one, not {name!r}.")
    return plan


async def read_page(watched: Watched, plan: Plan, number: int) -> PlannedPage:
    """Return a page of a plan, if it is as it was made; raise `PlanRefusedError` where it isn't."""
    planning = kept_plans(watched)
    page = await planning.plans.page(plan.id, number)
    if page is None or not is_genuine(page.signature, sign_page(planning.key(), plan.id, number, page.content)):
        raise PlanRefusedError(f"Plan {plan.id} {_CHANGED}")
    return read_page_text(page.content)


async def pages_of(watched: Watched, plan: Plan) -> AsyncIterator[PlannedPage]:
    """Yield the pages of a plan in the order they were made."""
    for number in range(plan.pages):
        yield await read_page(watched, plan, number)


def terms_of(plan: Plan) -> Terms:
    """Return what a plan was made by."""
    return read_terms(plan.terms)
