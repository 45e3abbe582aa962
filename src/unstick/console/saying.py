"""What is said of jobs, in the viewer's language: from the values of findings, so that every language says the same."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

from unstick.console.language import Words
from unstick.domain.access import Role
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobState
from unstick.domain.record import Recorded
from unstick.domain.recovery import Action, Outcome
from unstick.domain.standing import Standing
from unstick.domain.wording import Fact, Phrase, say_worker

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def duration(words: Words, span: timedelta) -> Markup:
    """Say a duration in its two largest units, short: `4 min 50 s`."""
    seconds = max(0, int(span.total_seconds()))
    units = (
        (_DAY, words.gettext("%(n)s d", n=seconds // _DAY)),
        (_HOUR, words.gettext("%(n)s h", n=seconds % _DAY // _HOUR)),
        (_MINUTE, words.gettext("%(n)s min", n=seconds % _HOUR // _MINUTE)),
        (1, words.gettext("%(n)s s", n=seconds % _MINUTE)),
    )
    first = next((place for place, (size, _) in enumerate(units) if seconds >= size), len(units) - 1)
    rest = seconds % units[first][0]
    second = first + 1
    has_second = second < len(units) and rest >= units[second][0]
    return units[first][1] + (Markup("\N{NO-BREAK SPACE}") + units[second][1] if has_second else Markup())


def clock(at: datetime) -> Markup:
    """Say an instant: in UTC, and where scripts run in the viewer's own zone."""
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" data-clock title="{} UTC">{} UTC</time>').format(
        utc.isoformat(timespec="milliseconds"), f"{utc:%Y-%m-%d %H:%M:%S}", f"{utc:%Y-%m-%d %H:%M:%S}"
    )


def ago(words: Words, at: datetime, now: datetime) -> Markup:
    """Say how long ago an instant was, with the exact time on hover."""
    utc = at.astimezone(UTC)
    is_now = now - at < timedelta(seconds=1)
    said = (
        words.gettext("just now") if is_now else words.gettext("%(duration)s ago", duration=duration(words, now - at))
    )
    return Markup('<time datetime="{}" data-ago title="{} UTC">{}</time>').format(
        utc.isoformat(timespec="milliseconds"), f"{utc:%Y-%m-%d %H:%M:%S}", said
    )


def said(words: Words, what: Fact) -> Markup:
    """Say what the product said, in the viewer's language; what is no phrase of ours is told as it was said."""
    match what:
        case Phrase(text=text, facts=facts):
            return words.phrase(text, **{name: said(words, fact) for name, fact in facts.items()})
        case Role():
            return role(words, what)
        case datetime():
            return clock(what)
        case timedelta():
            return duration(words, what)
        case _:
            return escape(what)


def role(words: Words, value: str) -> Markup:
    """Name a role."""
    _ = words.gettext
    names = {Role.VIEWER.value: _("viewer"), Role.OPERATOR.value: _("operator"), Role.ADMIN.value: _("admin")}
    return names.get(value, escape(value))


def reason(words: Words, value: Reason) -> Markup:
    """Name a reason."""
    return _reasons(words)[value]


def _reasons(words: Words) -> Mapping[Reason, Markup]:
    _ = words.gettext
    return {
        Reason.WORKER_GONE: _("Worker gone"),
        Reason.HUNG: _("Hung"),
        Reason.MESSAGE_LOST: _("Message lost"),
        Reason.SILENT: _("Silent"),
        Reason.NEVER_CLAIMED: _("Never claimed"),
        Reason.OVERTAKEN: _("Passed over"),
        Reason.UNSERVED: _("Queue without a worker"),
        Reason.LEASE_EXPIRED: _("Worker stopped beating"),
        Reason.POISON: _("Poison"),
        Reason.HELD: _("Held"),
        Reason.BEATING: _("Beating"),
        Reason.BACKLOG: _("Waiting its turn"),
        Reason.PAUSED: _("Paused"),
        Reason.BLOCKED: _("Blocked by another job"),
        Reason.SCHEDULED: _("Scheduled"),
    }


def reason_word(words: Words, value: str) -> Markup:
    """Name a reason by its word."""
    return reason(words, Reason(value))


def witness(words: Words, value: str) -> Markup:
    """Name who saw something: a time in the job's own row, or a witness by its name in the settings."""
    _ = words.gettext
    names = {
        "row.enqueued_at": _("its row: enqueued"),
        "row.scheduled_at": _("its row: due"),
        "row.started_at": _("its row: started"),
        "row.heartbeat_at": _("its row: last beat"),
        "lease": _("its worker's lease"),
    }
    return names.get(value, Markup("<code>{}</code>").format(value))


def state_word(words: Words, value: str) -> Markup:
    """Name a state by its word."""
    return state(words, JobState(value))


def parameter(words: Words, value: str) -> Markup:
    """Name what an operation was asked with."""
    _ = words.gettext
    names = {
        "action": _("What to do"),
        "queued_after_seconds": _("May wait"),
        "running_after_seconds": _("May be silent"),
        "unattended": _("Unattended"),
        "operation": _("Undoes"),
        "job": _("Job"),
        "job_id": _("Job"),
        "reason": _("Why"),
        "plan": _("Plan"),
        "jobs": _("Jobs"),
    }
    return names.get(value, Markup("<code>{}</code>").format(value))


def meaning(words: Words, value: Reason) -> Markup:
    """Say what a reason means, of several jobs."""
    _ = words.gettext
    return {
        Reason.WORKER_GONE: _("A witness says that their worker is there no more."),
        Reason.HUNG: _("They beat, but their progress stands still."),
        Reason.MESSAGE_LOST: _("The broker has no message for them, so no worker will hear of them."),
        Reason.SILENT: _("They run, show no sign of life for longer than they may, and there is nobody to ask."),
        Reason.NEVER_CLAIMED: _("They have waited for longer than they may, and no worker has claimed them."),
        Reason.OVERTAKEN: _("They were passed over: jobs of their queue that came later were claimed."),
        Reason.UNSERVED: _("They wait, and no living worker serves their queue: start one, or they wait for ever."),
        Reason.LEASE_EXPIRED: _("Their worker stopped beating and let its lease run out with these jobs on it."),
        Reason.POISON: _("They were recovered as often as their budget allows, and got stuck again."),
    }.get(value, Markup())


def standing(words: Words, value: Standing) -> Markup:
    """Name how a job stands."""
    _ = words.gettext
    return {
        Standing.STUCK: _("Stuck"),
        Standing.BEATING: _("Healthy"),
        Standing.HELD: _("Healthy"),
        Standing.UNDECIDED: _("Nobody knows"),
        Standing.WAITING: _("Waiting"),
        Standing.BACKLOG: _("Waiting its turn"),
        Standing.PAUSED: _("Paused"),
        Standing.BLOCKED: _("Blocked by another job"),
        Standing.SCHEDULED: _("Scheduled"),
        Standing.OVER: _("Over"),
        Standing.UNKNOWN: _("Unknown"),
        Standing.GONE: _("Gone"),
    }[value]


def state(words: Words, value: JobState) -> Markup:
    """Name a state."""
    _ = words.gettext
    return {
        JobState.QUEUED: _("queued"),
        JobState.RUNNING: _("running"),
        JobState.SUCCEEDED: _("succeeded"),
        JobState.FAILED: _("failed"),
        JobState.SCHEDULED: _("scheduled"),
        JobState.CANCELLED: _("cancelled"),
    }[value]


def action(words: Words, value: str) -> Markup:
    """Name what is done to a job."""
    _ = words.gettext
    names = {
        Action.MARK_FAILED.value: _("mark failed"),
        Action.RETRY.value: _("queue again"),
        Action.LEAVE.value: _("leave alone"),
        "undo": _("undo"),
    }
    return names.get(value, escape(value))


def outcome(words: Words, value: str) -> Markup:
    """Name what came of a decision, or of a call."""
    _ = words.gettext
    names = {
        Outcome.APPLIED.value: _("recovered"),
        Outcome.LOST_RACE.value: _("left: it changed meanwhile"),
        Outcome.FAILED.value: _("failed"),
        Outcome.LEFT.value: _("left alone"),
        Outcome.BRAKED.value: _("held by the brake"),
        "started": _("started"),
        "done": _("done"),
        "refused": _("refused"),
    }
    return names.get(value, escape(value))


def call_name(words: Words, value: str) -> Markup:
    """Name a call, as the audit log has it."""
    _ = words.gettext
    names = {
        "overview": _("Overview"),
        "jobs.stuck": _("List of stuck jobs"),
        "jobs.cleanup": _("Sweep"),
        "plans.apply": _("Cleanup by a plan"),
        "plans.read": _("A plan"),
        "jobs.recover": _("Recovery of one job"),
        "jobs.undo": _("Undo of a recovery"),
        "jobs.snooze": _("Snoozing of a job"),
        "jobs.unsnooze": _("End of a snooze"),
        "jobs.story": _("A job's story"),
        "operations.read": _("An operation"),
        "brake.show": _("The brake"),
        "brake.release": _("Release of the brake"),
        "stats": _("Figures"),
        "sweeps": _("Sweeps"),
        "audit": _("Audit log"),
        "audit.export": _("Export of the audit log"),
        "policy": _("Policies"),
        "suggestions": _("Suggestions"),
        "late_finishes": _("Late finishes"),
        "replay": _("Replay"),
        "sources": _("Sources"),
        "events": _("Live updates"),
        "snoozes": _("List of snoozes"),
        "operations.undo": _("Undo of a recovery"),
        "tokens": _("Tokens"),
        "tokens.make": _("Making of a token"),
        "tokens.revoke": _("Revoking of a token"),
        "sessions": _("Sessions"),
        "sessions.revoke": _("End of a session"),
        "sessions.revoke_all": _("End of all sessions of a name"),
        "access.make_link": _("Making of a sign-in link"),
        "access.sign_in": _("Signing in"),
        "access.sign_out": _("Signing out"),
        "alerts.notify": _("Telling of an alert"),
        "db.prune": _("Striking of old records"),
        "jobs.follow_up": _("Follow-up of recovered jobs"),
        "users.add": _("Adding of a user"),
        "users.remove": _("Removal of a user"),
    }
    return names.get(value, escape(value))


def entry_name(words: Words, entry: Recorded) -> Markup:
    """Name what an entry of the audit log is about; a cleanup that changed nothing was a preview."""
    if "would_clean" in entry.result:
        return words.gettext("Preview of a cleanup")
    return call_name(words, entry.call)


def instant(said: str) -> datetime:
    """Read an instant as shapes and the audit log say it."""
    return datetime.fromisoformat(said)


def worker(name: str) -> Markup:
    """Say a worker's name as a person looks for it, in one piece where a line has room for it."""
    return Markup('<span class="named">{}</span>').format(say_worker(name))
