"""What may be done about a diagnosed job: thresholds, action, and how often a job may be recovered."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from unstick.domain.diagnosis import Diagnosis, Reason, diagnose
from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import JobClass, JobId, JobState
from unstick.domain.recovery import CHANGES, Action, Decision
from unstick.domain.suspect import Look, Suspect
from unstick.domain.wording import Phrase, say_instant

MAX_THRESHOLD_MINUTES = 525_600
"""A year: the largest threshold a request may ask for."""

_LONGEST_BACKOFF = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What holds for some jobs in place of the policy; what is None stays as it is there."""

    source: str = "*"
    """A glob, as those below; `*` matches everything, a job of which nothing is known too."""
    queue: str = "*"
    kind: str = "*"
    queued_after: timedelta | None = None
    running_after: timedelta | None = None
    hung_after: timedelta | None = None
    action: Action | None = None
    max_attempts: int | None = None
    max_recoveries: int | None = None
    recovery_window: timedelta | None = None
    retry_backoff: timedelta | None = None
    ask: bool | None = None
    looks: int | None = None

    def governs(self, source: str, jobs: JobClass) -> bool:
        """Tell whether this rule is about these jobs of this source; letter case counts."""
        patterns = ((self.source, source), (self.queue, jobs.queue), (self.kind, jobs.kind))
        return all(pattern == "*" or fnmatchcase(said or "", pattern) for pattern, said in patterns)

    @property
    def said(self) -> Mapping[str, object]:
        """What it says in place of the policy, by the policy's names."""
        return {name: value for name in _RULED if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules in force; the defaults are the contract's."""

    queued_after: timedelta = timedelta(minutes=5)
    running_after: timedelta = timedelta(minutes=30)
    hung_after: timedelta | None = None
    """How long the progress of a job that beats may stand still; None asks nobody."""
    action: Action = Action.MARK_FAILED
    max_recoveries: int = 3
    """The recovery budget: retries of one job within `recovery_window`, apart from the app's own attempts."""
    recovery_window: timedelta = timedelta(hours=72)
    retry_backoff: timedelta = timedelta(seconds=30)
    """Wait before the first retry; it doubles with each one, up to an hour, and is spread by ±25 %."""
    max_attempts: int | None = None
    """A retry is for jobs that were begun less often than this; None asks nothing of that."""
    ask: bool = False
    """Unattended sweeps leave the job to a person."""
    looks: int = 1
    """At how many unattended sweeps in a row a job must be found stuck before one acts on it."""
    rules: tuple[Rule, ...] = ()
    """What holds for some jobs instead: the first rule that governs a job."""

    def rule_of(self, source: str, jobs: JobClass) -> Rule | None:
        """Return the rule that governs these jobs of a source, None where there is none."""
        return next((rule for rule in self.rules if rule.governs(source, jobs)), None)

    def action_for(self, source: str) -> Action:
        """Return what is done to jobs of a source unless a rule about their kind or queue says otherwise."""
        return self.under(self.rule_of(source, JobClass(None, None))).action

    def under(self, rule: Rule | None) -> "Policy":
        """Return what holds for the jobs that a rule governs."""
        said: Mapping[str, Any] = {} if rule is None else rule.said
        return replace(self, rules=(), **said)

    def longest_recovery_window(self, source: str) -> timedelta:
        """Return how far back a recovery of any job of a source may still count."""
        rules = [rule for rule in self.rules if fnmatchcase(source, rule.source)]
        return max([self.recovery_window, *(rule.recovery_window for rule in rules if rule.recovery_window)])


_RULED = tuple(each.name for each in fields(Rule) if each.name not in {"source", "queue", "kind"})


def requested_threshold(minutes: object) -> timedelta:
    """Return a requested threshold; raise `InvalidRequestError` where it is no whole number from 1 to a year's."""
    if isinstance(minutes, bool) or not isinstance(minutes, int) or not 1 <= minutes <= MAX_THRESHOLD_MINUTES:
        raise InvalidRequestError(
            f"A threshold is a whole number of minutes from 1 to {MAX_THRESHOLD_MINUTES}, not {minutes!r}."
        )
    return timedelta(minutes=minutes)


def requested_action(action: str) -> Action:
    """Return a requested action; raise `InvalidRequestError` where there is none of that name."""
    if action not in CHANGES:
        raise InvalidRequestError(f"There is no action {action!r}; there are: {', '.join(CHANGES)}.")
    return Action(action)


def decide(suspect: Suspect, diagnosis: Diagnosis, policy: Policy, action: Action, spent: int) -> Decision:
    """Decide what is done to a diagnosed job whose budget has `spent` recoveries on it."""
    if action is not Action.RETRY:
        return Decision(suspect, action, diagnosis.reason, diagnosis.sentence)
    if spent >= policy.max_recoveries:
        sentence = Phrase(
            "%(said)s; it was recovered %(times)s within %(window)s and got stuck again",
            said=diagnosis.sentence,
            times=_times(spent),
            window=policy.recovery_window,
        )
        return Decision(suspect, Action.MARK_FAILED, Reason.POISON, sentence)
    if policy.max_attempts is not None and _begun(suspect) >= policy.max_attempts:
        sentence = Phrase(
            "%(said)s; it was begun %(times)s, and its policy allows no more",
            said=diagnosis.sentence,
            times=_times(_begun(suspect)),
        )
        return Decision(suspect, Action.MARK_FAILED, diagnosis.reason, sentence)
    wait = backoff(suspect.job_id, spent, policy.retry_backoff)
    return Decision(suspect, action, diagnosis.reason, diagnosis.sentence, wait)


def _times(number: int) -> Phrase:
    return Phrase("once") if number == 1 else Phrase("%(n)s times", n=number)


def _begun(suspect: Suspect) -> int:
    """Return how often a suspect was begun: the attempts before this one, and this one where it runs."""
    return (suspect.attempt or 0) + (suspect.state is JobState.RUNNING)


class Ruling(NamedTuple):
    """One decision for all suspects of a state: where age is the only witness, they differ in their times alone."""

    state: JobState
    action: Action
    reason: Reason
    sentence: str
    """The diagnosis of them all, with `SINCE` where each one's sign of life is said."""
    message: str
    """What their error columns are to say, likewise."""


SINCE = "{since}"
"""Stands in a sentence about several jobs for the sign of life of each, as `say_instant` says it, without its zone."""


def rule(
    state: JobState, look: Look, policy: Policy, action: Action, waiting: Reason = Reason.NEVER_CLAIMED
) -> Ruling | None:
    """Return the ruling for a state, or None where a job's own history has a say, as the budget of a retry has."""
    if action is not Action.MARK_FAILED:
        return None
    suspect = Suspect("", state, look.horizon(state))
    decision = decide(suspect, diagnose(state, suspect.since, waiting=waiting), policy, action, 0)
    said = say_instant(suspect.since).removesuffix(" UTC")
    sentence, message = (text.replace(said, SINCE) for text in (decision.sentence, decision.error_message(look)))
    return Ruling(state, action, decision.reason, sentence, message)


def backoff(job_id: JobId, spent: int, first: timedelta) -> timedelta:
    """Return how long a retry waits: doubling, capped, and spread by the job's own id so that herds part."""
    spread = 0.75 + zlib.crc32(f"{job_id}:{spent}".encode()) / 2**33
    return min(first * (1 << min(spent, 16)), _LONGEST_BACKOFF) * spread
