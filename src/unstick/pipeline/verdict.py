"""What is to be said of one job now: whether it is stuck and why, and what a sweep would do to it."""

from dataclasses import dataclass, replace

from unstick.domain.brake import say_grace
from unstick.domain.diagnosis import Reason, evidence_of
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import JobClass, JobId, JobState
from unstick.domain.policy import Rule
from unstick.domain.recovery import Action, Decision
from unstick.domain.snooze import Snooze
from unstick.domain.standing import Standing, why_not_stuck
from unstick.domain.story import JobRow
from unstick.domain.suspect import Look, Page, Suspect
from unstick.domain.wording import Phrase, say_duration
from unstick.pipeline.braking import expected_pass
from unstick.pipeline.charges import graces_of
from unstick.pipeline.gather import gather
from unstick.pipeline.judging import Convicted, Judged
from unstick.pipeline.judging import judge as judge_page
from unstick.pipeline.looking import Scope, take_look, take_scopes_of
from unstick.pipeline.rescue import decide_page
from unstick.pipeline.snoozing import standing
from unstick.pipeline.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one job stands at a look of its own, by the policy that governs it."""

    row: JobRow
    standing: Standing
    sentence: str
    """One sentence for a person, which names the job."""
    scope: Scope | None
    """Whose look judges this job alone, snoozed or not; None where nothing tells which policy governs it."""
    page: Page
    """The job as a suspect, where it is one."""
    reason: Reason | None
    evidence: tuple[Evidence, ...]
    rule: Rule | None
    """Of its policy, the rule that governs it."""
    snooze: Snooze | None

    @property
    def suspect(self) -> Suspect | None:
        """The job as a suspect, None where it isn't one."""
        return next(iter(self.page.suspects), None)


async def judge(watched: Watched, job_id: JobId) -> Verdict | None:
    """Look at one job; None where its source has none of that id."""
    row = await watched.source.find(job_id)
    if row is None:
        return None
    look = replace(await take_look(watched), left_alone=frozenset(), only=frozenset({row.job_id}))
    snooze = await standing(watched, row.job_id, look.taken_at)
    if row.job is None:
        return _not_stuck(row, look, snooze)
    jobs = JobClass(row.job.kind, row.job.queue)
    scopes, rule = await take_scopes_of(watched, look, jobs), watched.policy.rule_of(watched.source.name, jobs)
    found = [await _judged(watched, scope) for scope in scopes]
    stuck = next((each for each in found if each.judged.convicted), None)
    if stuck is not None:
        return _stuck(row, look, stuck, rule, snooze)
    spared = next((each for each in found if each.judged.spared), None)
    if spared is not None:
        return _spared(row, look, spared, rule, snooze)
    # Read again: what was read before may have been stuck then.
    again = await watched.source.find(row.job_id)
    if again is None:
        return None
    scope, found_now = scopes[0], _not_stuck(again, scopes[0].look, snooze)
    evidence = (*found_now.evidence, *await _words(watched, again, look))
    return replace(found_now, scope=scope, rule=rule, evidence=evidence)


async def _words(watched: Watched, row: JobRow, look: Look) -> tuple[Evidence, ...]:
    """Ask the witnesses of a running job that nothing accuses, for whoever wants to know all of it."""
    if row.job is None or row.job.state is not JobState.RUNNING or not watched.witnesses:
        return ()
    return (await gather(watched.witnesses, [row.job], look.taken_at))[row.job.id]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    scope: Scope
    page: Page
    judged: Judged


async def _judged(watched: Watched, scope: Scope) -> _Judged:
    page = await _page(watched, scope.look)
    return _Judged(scope=scope, page=page, judged=await judge_page(watched, page, scope))


def _stuck(row: JobRow, look: Look, found: _Judged, rule: Rule | None, snooze: Snooze | None) -> Verdict:
    (convicted,) = found.judged.convicted
    suspect, scope = convicted.suspect, found.scope
    return Verdict(
        row=row,
        standing=Standing.STUCK,
        sentence=f"Job {row.job_id} is stuck in {suspect.state.value}{_for_how_long(convicted, scope)}: "
        f"{convicted.diagnosis.sentence}{_blocks(row)}.",
        scope=scope,
        page=found.page,
        reason=convicted.diagnosis.reason,
        evidence=(*_evidence(row, look), *convicted.words),
        rule=rule,
        snooze=snooze,
    )


def _spared(row: JobRow, look: Look, found: _Judged, rule: Rule | None, snooze: Snooze | None) -> Verdict:
    """Tell of a job that witnesses acquit, or that age accuses and no witness knows of."""
    (spared,) = found.judged.spared
    held = spared.diagnosis.reason is Reason.HELD
    told = Phrase("it isn't stuck") if held else Phrase("nobody knows whether it is stuck, so it is left alone")
    said = spared.diagnosis.sentence
    return Verdict(
        row=row,
        standing=Standing.HELD if held else Standing.UNDECIDED,
        sentence=Phrase("Job %(job)s is running, %(said)s; %(told)s.", job=row.job_id, said=said, told=told),
        scope=found.scope,
        page=Page(suspects=()),
        reason=None,
        evidence=(*_evidence(row, look), *spared.words),
        rule=rule,
        snooze=snooze,
    )


def _blocks(row: JobRow) -> str:
    return "" if row.blocks is None else f"; jobs that can't be claimed before it is over: {row.blocks}"


async def _page(watched: Watched, look: Look) -> Page:
    async for page in watched.source.suspects(look):
        return page
    return Page(suspects=())


def _for_how_long(convicted: Convicted, scope: Scope) -> str:
    state, by_age = convicted.suspect.state, scope.look.running_after == scope.policy.running_after
    suspect = convicted.suspect
    if suspect.lease_expired or suspect.lost is not None or (scope.hung_after is None and not by_age):
        return ""  # not age has convicted it
    age, limit = scope.look.taken_at - convicted.since, scope.look.threshold(state)
    return f" for {say_duration(age)}, where {say_duration(limit)} may pass"


def _not_stuck(row: JobRow, look: Look, snooze: Snooze | None) -> Verdict:
    why = why_not_stuck(row, look)
    known = why.standing is not Standing.UNKNOWN
    return Verdict(
        row=row,
        standing=why.standing,
        sentence=_stands(row, why.words, known=known),
        scope=None,
        page=Page(suspects=()),
        reason=None,
        evidence=_evidence(row, look),
        rule=None,
        snooze=snooze,
    )


def _stands(row: JobRow, why: Phrase, *, known: bool) -> Phrase:
    if known:
        return Phrase("Job %(job)s %(why)s; it isn't stuck.", job=row.job_id, why=why)
    return Phrase("Job %(job)s %(why)s.", job=row.job_id, why=why)


def _evidence(row: JobRow, look: Look) -> tuple[Evidence, ...]:
    if row.job is None:
        return ()
    said = evidence_of(row.job)
    if row.lease is None or not row.lease.holds(look.taken_at):
        return said
    return (*said, Evidence(witness="lease", holding=Holding.HELD, at=row.lease.beat_at))


async def foretell(watched: Watched, verdict: Verdict) -> str:
    """Say what a sweep would do to the job now."""
    if verdict.suspect is None or verdict.scope is None:
        return Phrase("A sweep would do nothing to it.")
    if verdict.snooze is not None:
        said = verdict.snooze
        return Phrase(
            "Sweeps leave it alone until %(at)s: %(who)s snoozed it (%(why)s).",
            at=said.until,
            who=said.by,
            why=said.reason,
        )
    policy = verdict.scope.policy
    if policy.action is Action.LEAVE:
        return Phrase("A sweep would leave it alone, as its policy says.")
    decided = await decide_page(watched, verdict.page, verdict.scope, policy.action)
    deed, but = _deed(decided.decisions[0]), await _unattended(watched, verdict, verdict.scope)
    return Phrase("A sweep would %(deed)s%(but)s.", deed=deed, but=but)


def _deed(decision: Decision) -> Phrase:
    if decision.action is Action.RETRY:
        return Phrase("queue it again, due %(time)s later", time=decision.wait)
    if decision.reason is Reason.POISON:
        return Phrase("mark it failed as poison: %(why)s", why=decision.sentence)
    return Phrase("mark it failed")


async def _unattended(watched: Watched, verdict: Verdict, scope: Scope) -> str:
    """Say what keeps sweeps that nobody watches from it."""
    if scope.policy.ask:
        return Phrase("; one that nobody watches would leave it to a person")
    if scope.waiting is Reason.UNSERVED and verdict.suspect is not None and verdict.suspect.state is JobState.QUEUED:
        return Phrase("; one that nobody watches would leave it, for nobody serves its queue")
    if scope.policy.looks > 1:
        return Phrase(
            "; those that nobody watches do so once %(n)s of them in a row have found it stuck", n=scope.policy.looks
        )
    brake = None if watched.brakes is None else await watched.brakes.find(watched.source.name)
    if brake is not None and brake.is_held:
        return Phrase("; those that nobody watches are held by the brake since %(at)s", at=brake.at)
    grace = graces_of(scope, await expected_pass(watched, scope.look.taken_at))
    if verdict.suspect is not None and verdict.suspect.state in grace:
        until = say_grace(grace[verdict.suspect.state])
        return Phrase("; those that nobody watches leave it alone %(until)s", until=until)
    return ""
