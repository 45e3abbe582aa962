"""One look at a source, and which policy judges which of its jobs by it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial

from unstick.domain.diagnosis import Reason
from unstick.domain.job import Job, JobClass, JobState
from unstick.domain.policy import Policy, Rule
from unstick.domain.queue import Flows
from unstick.domain.suspect import Look, is_suspect
from unstick.pipeline.snoozing import left_alone
from unstick.pipeline.watched import Watched

ASKED_AFTER = timedelta(minutes=1)
"""How long a job must have been silent before witnesses are asked of it: they may know sooner than age that it is dead,
but a worker that has just taken a job must have had time to say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Jobs that are judged alike: by one policy, and waiting for one reason where they wait."""

    look: Look
    policy: Policy
    waiting: Reason = Reason.NEVER_CLAIMED
    """Why its queued suspects haven't been claimed."""
    hung_after: timedelta | None = None
    """Its suspects are running jobs whose progress may stand still for so long, whatever life they show."""


async def take_look(watched: Watched, queued_after: timedelta | None = None) -> Look:
    """Read the source's clock and fix the policy's thresholds, and who is left alone, for one pass."""
    now = await watched.source.clock()
    return Look(
        taken_at=now,
        queued_after=watched.policy.queued_after if queued_after is None else queued_after,
        running_after=watched.policy.running_after,
        left_alone=await left_alone(watched, now),
    )


async def take_scopes_of(watched: Watched, look: Look, jobs: JobClass) -> tuple[Scope, ...]:
    """Return the scopes by which jobs of one class are judged, the one that judges them by age first."""
    scope = _scope_of(watched, look, await watched.source.flows(look), jobs)
    return _with_witnesses(watched, (scope,))


def _scope_of(watched: Watched, look: Look, flows: Flows, jobs: JobClass) -> Scope:
    rule = watched.policy.rule_of(watched.source.name, jobs)
    return _scope(watched.policy, rule, look, flows, flows.waiting_reason(jobs.queue), frozenset({jobs}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges jobs one by one as their rows tell, without being told which kinds and queues there are."""

    look: Look
    """Sees whomever any rule accuses, and others."""
    scope_of: Callable[[JobClass], Scope]

    def scope_accusing(self, job: Job) -> Scope | None:
        """Return the scope that judges a job which the look sees, None where it doesn't accuse it."""
        scope = self.scope_of(JobClass(job.kind, job.queue))
        told = job.lease_beat_at is not None or job.lost is not None
        return scope if told or is_suspect(job, scope.look) else None


async def take_judge(watched: Watched, look: Look) -> Judge:
    """Return what judges single jobs at a look, but for what witnesses say of running ones."""
    flows = await watched.source.flows(look)
    rules = watched.policy.rules
    wide = replace(
        look,
        queued_after=min([look.queued_after, *(each.queued_after for each in rules if each.queued_after is not None)]),
        running_after=min(watched.policy.under(rule).running_after for rule in (*rules, None)),
        draining=flows.draining(),
    )
    return Judge(look=wide, scope_of=cache(partial(_scope_of, watched, look, flows)))


async def take_scopes(watched: Watched, look: Look) -> tuple[Scope, ...]:
    """Part the source's jobs by the rule that governs them and by how their queue moves.

    Where the policy has no rules and all queues are alike, all jobs are one scope. Where there are witnesses, they are
    asked of running jobs long before age accuses these; and of jobs that show life, where progress is asked for.
    """
    return _with_witnesses(watched, await _by_rule(watched, look))


def _with_witnesses(watched: Watched, scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    if not watched.witnesses:
        return scopes
    asked = [
        replace(scope, look=replace(scope.look, running_after=min(scope.look.running_after, ASKED_AFTER)))
        for scope in scopes
    ]
    hung = (
        replace(scope, look=look, hung_after=scope.policy.hung_after)
        for scope in scopes
        if (look := look_for_hung(scope)) is not None
    )
    return (*asked, *hung)


def look_for_hung(scope: Scope) -> Look | None:
    """Return the look at those of a scope's jobs that may hang, None where its policy doesn't ask for them."""
    hung_after = scope.policy.hung_after
    if hung_after is None:
        return None
    return replace(scope.look, running_after=hung_after, by_start=True, states=(JobState.RUNNING,))


def look_by_age(scope: Scope) -> Look:
    """Return the look by which the running jobs of a scope of hung ones are judged by their signs of life."""
    return replace(scope.look, running_after=min(scope.policy.running_after, ASKED_AFTER), by_start=False)


async def _by_rule(watched: Watched, look: Look) -> tuple[Scope, ...]:
    flows = await watched.source.flows(look)
    if not watched.policy.rules and flows.alike:
        return (Scope(look=look, policy=watched.policy.under(None), waiting=flows.waiting_reason(None)),)
    parted: defaultdict[tuple[int, Reason], set[JobClass]] = defaultdict(set)
    rules: list[Rule | None] = [*watched.policy.rules, None]
    for jobs in (await watched.source.open_classes()).found:
        rule = watched.policy.rule_of(watched.source.name, jobs)
        parted[rules.index(rule), flows.waiting_reason(jobs.queue)].add(jobs)
    return tuple(
        _scope(watched.policy, rules[place], look, flows, reason, frozenset(classes))
        for (place, reason), classes in sorted(parted.items())
    )


def _scope(
    policy: Policy, rule: Rule | None, look: Look, flows: Flows, reason: Reason, classes: frozenset[JobClass]
) -> Scope:
    """Judge some classes of jobs by what holds for them: what was asked for goes before a policy, not before a rule."""
    queues = {jobs.queue for jobs in classes}
    governing = policy.under(rule)
    return Scope(
        look=replace(
            look,
            queued_after=look.queued_after if rule is None or rule.queued_after is None else rule.queued_after,
            running_after=governing.running_after,
            classes=classes,
            draining={queue: reached for queue, reached in flows.draining().items() if queue in queues},
        ),
        policy=governing,
        waiting=reason,
    )
