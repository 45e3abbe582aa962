"""A plan: what a dry run saw and would do, kept and signed, so that exactly that can be done later.

What is signed is the text that is kept, to the letter; nothing of it is read before its signature was found genuine.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobClass, JobState
from unstick.domain.recovery import Action, Decision
from unstick.domain.suspect import Look, Suspect

PLAN_LIFETIME = timedelta(minutes=15)
"""How long a plan can be applied: long enough to read it, short enough that it is about what is the case."""

_MICROSECOND = timedelta(microseconds=1)
_KEY_CONTEXT = b"unstick plan signature, version 1"


class PlanState(StrEnum):
    """What can still become of a plan."""

    OPEN = "open"
    APPLIED = "applied"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDraft:
    """What is known of a plan before it is kept."""

    id: str
    source: str
    made_by: str
    terms: str
    """What it is made by, as `terms_text` writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan's head, as it is kept."""

    id: str
    source: str
    made_by: str
    made_at: datetime
    expires_at: datetime
    terms: str
    """What it was made by, as `terms_text` writes it."""
    jobs: int = 0
    pages: int = 0
    signature: str | None = None
    """None as long as it is being made, and for ever where that was cut off."""
    applied_by: str | None = None
    applied_at: datetime | None = None
    operation_id: int | None = None
    """The operation that applied it, in the audit log."""
    is_expired: bool = False
    """By the clock of the database it is kept in, as it was read."""

    @property
    def state(self) -> PlanState:
        """Tell what can still become of it."""
        if self.operation_id is not None:
            return PlanState.APPLIED
        return PlanState.EXPIRED if self.is_expired else PlanState.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPage:
    """A part of a plan, as it is kept."""

    number: int
    content: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScope:
    """What some jobs of a plan were judged by, and how often those may be retried."""

    look: Look
    max_recoveries: int
    recovery_window: timedelta
    hung_after: timedelta | None = None
    """They were found because their progress stood still for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a plan was made by."""

    look: Look
    action: Action
    mapping: str
    """What the source's columns and words meant then."""
    scopes: tuple[PlannedScope, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPage:
    """Some decisions of a plan, all of one scope."""

    scope: int
    decisions: tuple[Decision, ...]


def derive_key(secret: bytes, context: bytes = _KEY_CONTEXT) -> bytes:
    """Return the key that plans are signed with, so that no other use of the secret can be made to sign one.

    It is HKDF (RFC 5869) with SHA-256 and no salt.
    """
    extracted = hmac.digest(bytes(hashlib.sha256().digest_size), secret, "sha256")
    return hmac.digest(extracted, context + b"\x01", "sha256")


def sign_plan(key: bytes, plan: Plan) -> str:
    """Return the signature of a head: everything in it but what became of it."""
    times = (plan.made_at.isoformat(), plan.expires_at.isoformat())
    return _sign(key, "plan", plan.id, plan.source, plan.made_by, *times, plan.terms, plan.jobs, plan.pages)


def sign_page(key: bytes, plan_id: str, number: int, content: str) -> str:
    """Return the signature of a page, which is good for its own place in its own plan only."""
    return _sign(key, "page", plan_id, number, content)


def is_genuine(signature: str | None, expected: str) -> bool:
    """Tell whether a signature that was kept is the right one, in a time that doesn't tell how much of it is."""
    return signature is not None and hmac.compare_digest(signature.encode(), expected.encode())


def _sign(key: bytes, *parts: object) -> str:
    # Each with its length, so that nothing can move from one part to the next.
    said = [str(part).encode() for part in parts]
    return hmac.new(key, b"".join(b"%d:%b" % (len(part), part) for part in said), "sha256").hexdigest()


def terms_text(terms: Terms) -> str:
    """Write terms as they are kept."""
    return _text(
        {
            "look": _look_values(terms.look),
            "action": terms.action.value,
            "mapping": terms.mapping,
            "scopes": [
                [
                    _look_values(each.look),
                    each.max_recoveries,
                    each.recovery_window // _MICROSECOND,
                    None if each.hung_after is None else each.hung_after // _MICROSECOND,
                ]
                for each in terms.scopes
            ],
        }
    )


def read_terms(text: str) -> Terms:
    """Read what `terms_text` wrote."""
    said = json.loads(text)
    return Terms(
        look=_look(said["look"]),
        action=Action(said["action"]),
        mapping=said["mapping"],
        scopes=tuple(
            PlannedScope(
                look=_look(look),
                max_recoveries=most,
                recovery_window=window * _MICROSECOND,
                hung_after=None if hung is None else hung * _MICROSECOND,
            )
            for look, most, window, hung in said["scopes"]
        ),
    )


def page_text(scope: int, decisions: Iterable[Decision]) -> str:
    """Write decisions as they are kept: a fence in the very form in which a write is bound to it."""
    return _text([scope, [_decision_values(each) for each in decisions]])


def read_page_text(text: str) -> PlannedPage:
    """Read what `page_text` wrote."""
    scope, rows = json.loads(text)
    return PlannedPage(scope=scope, decisions=tuple(_decision(*row) for row in rows))


def _decision_values(decision: Decision) -> Sequence[object]:
    suspect = decision.suspect
    seen = (suspect.job_id, suspect.state.value, suspect.since.isoformat(), suspect.seen, suspect.lease_expired)
    done = (decision.action.value, decision.reason.value, decision.sentence, decision.wait // _MICROSECOND)
    return (*seen, *done)


def _decision(
    job_id: Any,  # noqa: ANN401 - a number or text
    state: str,
    since: str,
    seen: Sequence[object],
    lease_expired: bool,
    *done: Any,  # noqa: ANN401 - what `_decision_values` adds
) -> Decision:
    suspect = Suspect(job_id, JobState(state), datetime.fromisoformat(since), tuple(seen), lease_expired)
    action, reason, sentence, wait = done
    return Decision(suspect, Action(action), Reason(reason), sentence, wait * _MICROSECOND)


def _look_values(look: Look) -> dict[str, object]:
    return {
        "taken_at": look.taken_at.isoformat(),
        "queued_after": look.queued_after // _MICROSECOND,
        "running_after": look.running_after // _MICROSECOND,
        "classes": None if look.classes is None else sorted(look.classes, key=str),
        "draining": [(queue, reached.isoformat()) for queue, reached in look.draining.items()],
        "left_alone": sorted(look.left_alone, key=str),
        "only": None if look.only is None else sorted(look.only, key=str),
        "by_start": look.by_start,
        "states": look.states,
    }


def _look(said: dict[str, Any]) -> Look:
    return Look(
        taken_at=datetime.fromisoformat(said["taken_at"]),
        queued_after=said["queued_after"] * _MICROSECOND,
        running_after=said["running_after"] * _MICROSECOND,
        classes=None if said["classes"] is None else frozenset(JobClass(*each) for each in said["classes"]),
        draining={queue: datetime.fromisoformat(reached) for queue, reached in said["draining"]},
        left_alone=frozenset(said["left_alone"]),
        only=None if said["only"] is None else frozenset(said["only"]),
        by_start=said["by_start"],
        states=tuple(JobState(state) for state in said["states"]),
    )


def _text(values: object) -> str:
    # As `writes.bound_rows` does it: what JSON doesn't know becomes the text that the database reads it from.
    return json.dumps(values, default=str, separators=(",", ":"))
