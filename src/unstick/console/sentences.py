"""The sentence on a row and on a job's page: verdict, evidence with times, threshold, and what comes next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup

from unstick.console.language import DEFAULT, Words
from unstick.console.saying import ago, clock, duration, reason, said, witness, worker
from unstick.domain.diagnosis import Reason
from unstick.domain.evidence import Evidence, Holding, weigh
from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action
from unstick.domain.standing import Standing
from unstick.domain.story import Event
from unstick.pipeline.report import Found
from unstick.pipeline.story import Story


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One job that is stuck, and what the sentence about it is made of."""

    job: Job
    reason: Reason
    since: datetime
    now: datetime
    policy: Policy
    said: str
    """The same in the product's own words, for what is said in no other."""
    evidence: tuple[Evidence, ...] = ()

    @property
    def threshold(self) -> timedelta:
        """How long it may be as it is."""
        if self.reason is Reason.HUNG and self.policy.hung_after is not None:
            return self.policy.hung_after
        return self.policy.queued_after if self.job.state is JobState.QUEUED else self.policy.running_after


def case_of(found: Found, now: datetime) -> Case:
    """Return the case of a stuck job in a list."""
    finding = found.finding
    return Case(
        job=finding.job,
        reason=finding.diagnosis.reason,
        since=finding.since,
        now=now,
        policy=found.policy,
        said=finding.diagnosis.sentence,
        evidence=finding.evidence,
    )


def stuck_sentence(words: Words, case: Case) -> Markup:
    """Say why a job is stuck, with the times that prove it."""
    text = _stuck_texts(words).get(case.reason)
    if text is None:
        return said(words, case.said)
    sentence = text % {
        "at": clock(case.since),
        "ago": ago(words, case.since, case.now),
        "may": duration(words, case.threshold),
        "name": worker(case.job.worker or "?"),
        "queue": case.job.queue or "?",
        "said": _word(words, weigh(case.evidence)),
        "how": said(words, case.job.lost or "?"),
    }
    names_worker = case.reason is Reason.LEASE_EXPIRED or case.job.worker is None
    return sentence if names_worker else sentence + " " + _on_worker(words, case.job.worker or "?")


def _stuck_texts(words: Words) -> Mapping[Reason, Markup]:
    _ = words.text
    return {
        Reason.LEASE_EXPIRED: _("Worker %(name)s stopped beating at %(at)s, %(ago)s; this job was on it."),
        Reason.SILENT: _("Its last sign of life was at %(at)s, %(ago)s; it may be silent for %(may)s."),
        Reason.NEVER_CLAIMED: _("No worker has claimed it since %(at)s, %(ago)s; it may wait for %(may)s."),
        Reason.OVERTAKEN: _("It could have been claimed since %(at)s, %(ago)s, and jobs that came later were."),
        Reason.UNSERVED: _("It has waited since %(at)s, %(ago)s, and no living worker serves queue %(queue)s."),
        Reason.HUNG: _("It beats, but its progress has stood still since %(at)s, %(ago)s; it may for %(may)s."),
        Reason.WORKER_GONE: _("Its last sign of life was at %(at)s, %(ago)s, and its worker is gone: %(said)s."),
        Reason.MESSAGE_LOST: _("It has waited since %(at)s, %(ago)s, and its message is lost: %(how)s."),
    }


def _word(words: Words, word: Evidence | None) -> Markup:
    """Quote a witness."""
    if word is None or word.value is None:
        return Markup("?") if word is None else witness(words, word.witness)
    return words.gettext(
        "%(witness)s says: %(said)s", witness=witness(words, word.witness), said=said(words, word.value)
    )


def _on_worker(words: Words, name: str) -> Markup:
    return words.gettext("Worker %(name)s had it.", name=worker(name))


def next_step(words: Words, policy: Policy, outlook: str | None) -> Markup:
    """Say what a sweep would do to a stuck job."""
    _ = words.gettext
    if policy.action is Action.LEAVE:
        return _("Sweeps leave it to you.")
    if policy.ask:
        return _("Unattended sweeps leave it to you.")
    if policy.action is Action.RETRY and outlook is None:
        return _("A sweep would queue it again.")
    if outlook is not None and "poison" in outlook:
        return _("Its recovery budget is spent: a sweep would mark it failed as poison.")
    return _("A sweep would mark it failed.")


def story_sentence(words: Words, story: Story) -> Markup:
    """Say how a job stands, from its story."""
    verdict = story.verdict
    if verdict is None or verdict.row.job is None:
        return said(words, story.sentence)
    job, now, evidence = verdict.row.job, verdict.row.read_at, verdict.evidence
    if verdict.standing is Standing.STUCK and verdict.scope is not None and verdict.suspect and verdict.reason:
        return stuck_sentence(
            words,
            Case(
                job=job,
                reason=verdict.reason,
                since=verdict.suspect.since,
                now=now,
                policy=verdict.scope.policy,
                said=story.sentence,
                evidence=evidence,
            ),
        )
    since = sign_of_life(job)
    policy = None if verdict.scope is None else verdict.scope.policy
    if since is None or policy is None:
        return said(words, story.sentence)
    return _healthy(
        words,
        verdict.standing,
        Case(
            job=job,
            reason=Reason.BEATING,
            since=since,
            now=now,
            policy=policy,
            said=story.sentence,
            evidence=evidence,
        ),
    )


def _healthy(words: Words, standing: Standing, case: Case) -> Markup:
    if standing is Standing.HELD:
        return _held(words, case)
    if standing is Standing.OVER and case.job.completed_at is not None:
        return _ended(words, case.job.state, case.job.completed_at, case.now)
    text = _healthy_texts(words).get(standing)
    if text is None:
        return said(words, case.said)
    times = {"at": clock(case.since), "ago": ago(words, case.since, case.now)}
    return text % {**times, "may": duration(words, case.threshold)}


def _healthy_texts(words: Words) -> Mapping[Standing, Markup]:
    _ = words.text
    return {
        Standing.BEATING: _(
            "It is running; its last sign of life was at %(at)s, %(ago)s, and it may be silent for %(may)s."
        ),
        Standing.UNDECIDED: _(
            "Its last sign of life was at %(at)s, %(ago)s, and no witness knows more, so it is left alone."
        ),
        Standing.WAITING: _("It has waited since %(at)s, %(ago)s, and may wait for %(may)s."),
        Standing.BACKLOG: _("It has waited since %(at)s, %(ago)s, for its turn: its queue drains in order."),
        Standing.PAUSED: _("It has waited since %(at)s, %(ago)s: its queue is paused."),
    }


def _held(words: Words, case: Case) -> Markup:
    word = next((each for each in case.evidence if each.holding is Holding.HELD), None)
    if word is not None and word.value is None and word.at is not None:
        beat = {"at": clock(word.at), "ago": ago(words, word.at, case.now)}
        return words.gettext("It is running, and its worker beat at %(at)s, %(ago)s.", **beat)
    return words.gettext("It is running, and its worker has it: %(said)s.", said=_word(words, word))


def _ended(words: Words, state: JobState, at: datetime, now: datetime) -> Markup:
    _ = words.text
    texts = {
        JobState.SUCCEEDED: _("It succeeded at %(at)s, %(ago)s."),
        JobState.FAILED: _("It failed at %(at)s, %(ago)s."),
        JobState.CANCELLED: _("It was cancelled at %(at)s, %(ago)s."),
    }
    return texts.get(state, _("It ended at %(at)s, %(ago)s.")) % {"at": clock(at), "ago": ago(words, at, now)}


def event_sentence(words: Words, event: Event) -> Markup:
    """Say what happened to a job, and why who did it says it was; what went wrong is on record in English."""
    if event.kind not in _EVENTS or (words.language == DEFAULT and event.kind in _WENT_WRONG):
        return Markup("{}").format(event.sentence)
    sentence = _EVENTS[event.kind](words, event.data)
    why = event.data.get("why")
    return sentence if not why else sentence + Markup(" <q>{}</q>").format(why)


_Data = Mapping[str, object]
_WENT_WRONG = frozenset({"completed", "recovery_failed", "refused", "failed"})
"""What the record says more of than its values tell."""


def _who(data: _Data) -> object:
    return data.get("actor") or "?"


def _started(words: Words, data: _Data) -> Markup:
    by = data.get("worker")
    if not isinstance(by, str):
        return words.gettext("It was started.")
    return words.gettext("It was started by %(worker)s.", worker=worker(by))


def _recovered(words: Words, data: _Data) -> Markup:
    values = {"who": _who(data), "reason": _reason(words, data)}
    if data.get("action") == Action.RETRY:
        return words.gettext("%(who)s queued it again: %(reason)s.", **values)
    return words.gettext("%(who)s marked it failed: %(reason)s.", **values)


def _reason(words: Words, data: _Data) -> Markup:
    word = str(data.get("reason"))
    return reason(words, Reason(word)) if word in list(Reason) else Markup("{}").format(word)


_EVENTS: Mapping[str, Callable[[Words, _Data], Markup]] = {
    "enqueued": lambda words, _data: words.gettext("It was enqueued."),
    "due": lambda words, _data: words.gettext("It is due from here on."),
    "waiting": lambda words, _data: words.gettext("It was put back to wait."),
    "started": _started,
    "heartbeat": lambda words, _data: words.gettext("It last beat."),
    "completed": lambda words, data: words.gettext(
        "It ended as %(status)s.", status=Markup("<code>{}</code>").format(data.get("status"))
    ),
    "worker_began": lambda words, data: words.gettext(
        "Worker %(worker)s began to work.", worker=worker(str(data.get("worker")))
    ),
    "worker_beat": lambda words, data: words.gettext(
        "Worker %(worker)s last beat.", worker=worker(str(data.get("worker")))
    ),
    "lease_end": lambda words, data: words.gettext(
        "The lease of %(worker)s ends.", worker=worker(str(data.get("worker")))
    ),
    "recovered": _recovered,
    "intended": lambda words, data: words.gettext(
        "%(who)s was about to change it; what came of it is not on record yet.", who=_who(data)
    ),
    "undone": lambda words, data: words.gettext("%(who)s put it back as it was.", who=_who(data)),
    "lost_race": lambda words, data: words.gettext("%(who)s left it: it had changed meanwhile.", who=_who(data)),
    "recovery_failed": lambda words, data: words.gettext(
        "%(who)s could not change it: the database refused.", who=_who(data)
    ),
    "late_finish": lambda words, data: words.gettext(
        "%(worker)s came with a result when the job was no longer its own.", worker=worker(str(data.get("worker")))
    ),
    "snoozed": lambda words, data: words.gettext(
        "%(who)s had it left alone until %(until)s.",
        who=_who(data),
        until=clock(datetime.fromisoformat(str(data.get("until")))),
    ),
    "unsnoozed": lambda words, data: words.gettext("%(who)s ended its snooze.", who=_who(data)),
    "refused": lambda words, data: words.gettext("An order by %(who)s was refused.", who=_who(data)),
    "failed": lambda words, data: words.gettext("An order by %(who)s failed.", who=_who(data)),
}
