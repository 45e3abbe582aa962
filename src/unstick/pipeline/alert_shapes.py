"""Alerts as JSON tells them."""

from typing import TypedDict

from unstick.domain.alert import Alert


class AlertShape(TypedDict):
    """An alert."""

    id: str
    source: str
    queue: str | None
    what: str
    jobs: int
    sentence: str
    opened_at: str
    seen_at: str
    notified_at: str | None
    """When it was last decided to tell somebody of it."""


def alert_shape(alert: Alert) -> AlertShape:
    """Return an alert as JSON tells it."""
    source, queue, what = alert.subject
    return AlertShape(
        id=alert.id,
        source=source,
        queue=queue,
        what=what.value,
        jobs=alert.jobs,
        sentence=alert.sentence,
        opened_at=alert.opened_at.isoformat(),
        seen_at=alert.seen_at.isoformat(),
        notified_at=None if alert.notified_at is None else alert.notified_at.isoformat(),
    )
