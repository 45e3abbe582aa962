"""Alerts and what channels are to be told of them, in tables of Unstick's own: a restart neither repeats nor forgets.

Guarantee: an alert and the word that channels are to be told of it commit together, and of several that find the same
thing one writes it. A message is delivered at least once, and by one courier at a time. Known weakness: a courier that
is halted for longer than its claim lasts may deliver a message that another delivers as well, under the same id.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.alert import (
    GIVE_UP_AFTER,
    Alert,
    AlertRules,
    Change,
    Choice,
    Delivery,
    Happened,
    Heard,
    Pending,
    Subject,
    Tellings,
    Trouble,
    choose,
    judge,
)
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.diagnosis import Reason
from unstick.ports import Claim
from unstick.sql.connections import Connections
from unstick.sql.ledger import audit_row
from unstick.sql.tables import alert_rounds, alerts, audit, couriers, notifications
from unstick.sql.upserting import upsert

NOTIFY_CALL = "alerts.notify"
"""What telling a channel is called in the audit log."""
_ACTOR = "courier"
_AT_ONCE = 500
_FORGOTTEN_AFTER = timedelta(days=30)
_LONGEST_SENTENCE = 2_000
_TIMES = frozenset({"opened_at", "seen_at", "notified_at", "resolved_at"})
_TROUBLES = frozenset(Trouble)
_DELIVERED, _DROPPED, _GAVE_UP = "delivered", "dropped", "gave_up"


class SqlAlerts:
    """Alerts in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def take_in(self, heard: Heard, rules: AlertRules, channels: Sequence[str]) -> Sequence[Change]:
        """Keep what an event makes of a source's alerts, and that each channel is to be told of it."""
        source = heard.source
        async with self._connections.writing() as (connection, now):
            first = await self._lock(connection, source)
            # Not locked besides: MariaDB and MySQL would lock the gaps between its rows, where others insert theirs.
            mine = sa.select(alerts).where(alerts.c.source == source)
            known = {row["subject"]: _alert(row) for row in (await connection.execute(mine)).mappings()}
            judged = judge(known.values(), heard, now, rules, first=first)
            rows = [_row(alert) for alert in judged.alerts]
            if new := [row for row in rows if row["subject"] not in known]:
                await connection.execute(sa.insert(alerts), new)
            if seen := [row for row in rows if row["subject"] in known]:
                await connection.execute(
                    _UPDATED, [{f"new_{name}": value for name, value in row.items()} for row in seen]
                )
            told = [change for change in judged.changes if change.is_told]
            if outbox := [_notification(change, channel, now) for change in told for channel in channels]:
                await connection.execute(sa.insert(notifications), outbox)
            if heard.observation:
                this = alert_rounds.c.source == source
                await connection.execute(sa.update(alert_rounds).where(this).values(observed_at=now))
        return judged.changes

    async def standing(self, source: str) -> Sequence[Alert]:
        """Return the open alerts of a source, the oldest first."""
        mine = sa.select(alerts).where(alerts.c.source == source, alerts.c.resolved_at.is_(None))
        async with self._connections.reading() as (connection, _):
            rows = await connection.execute(mine.order_by(alerts.c.opened_at, alerts.c.subject))
            return [_alert(row) for row in rows.mappings()]

    async def claim(self, channel: str, sources: Sequence[str], holder: str, lasting: timedelta) -> Claim | None:
        """Take the next message to a channel that is due, and note that it may have arrived from now on."""
        due = notifications.c.next_try_at
        mine = sa.and_(
            notifications.c.channel == channel, notifications.c.source.in_(sources), notifications.c.done_at.is_(None)
        )
        async with self._connections.reading() as (connection, now):
            if await connection.scalar(sa.select(notifications.c.id).where(mine, due <= now).limit(1)) is None:
                return None
        async with self._connections.writing() as (connection, now):
            if not await self._take(connection, channel, holder, now, lasting):
                return None
            rows = (
                await connection.execute(
                    sa.select(notifications).where(mine, due <= now).order_by(notifications.c.id).limit(_AT_ONCE)
                )
            ).all()
            choice = await _chosen(connection, channel, rows)
            await _drop(connection, choice, now)
            if not choice.chosen:
                await connection.execute(_released(channel, holder, now))
                return None
            by_id = {row.id: row for row in rows}
            chosen = [by_id[each.id] for each in choice.chosen]
            delivery = chosen[0].delivery or uuid.uuid4().hex
            attempts = max(row.attempts for row in chosen) + 1
            await connection.execute(
                sa.update(notifications)
                .where(notifications.c.id.in_([row.id for row in chosen]))
                .values(delivery=delivery, attempts=attempts, told_at=now)
            )
        return Claim(
            channel=channel,
            holder=holder,
            delivery=Delivery(
                id=delivery, changes=tuple(each.change for each in choice.chosen), at=min(row.at for row in chosen)
            ),
            attempts=attempts,
            told_before=any(row.told_at is not None for row in chosen),
        )

    async def delivered(self, claim: Claim) -> None:
        """Strike a message that has arrived, whoever claimed it meanwhile."""
        this = sa.and_(notifications.c.channel == claim.channel, notifications.c.delivery == claim.delivery.id)
        async with self._connections.writing() as (connection, now):
            # The courier's row first, as a claim locks it first.
            await connection.execute(_released(claim.channel, claim.holder, now))
            await connection.execute(
                sa.update(notifications)
                .where(this, notifications.c.done_at.is_(None))
                .values(done_at=now, told_at=now, outcome=_DELIVERED)
            )

    async def failed(
        self, claim: Claim, wait: timedelta, problem: str, *, may_have_arrived: bool, others_wait: bool
    ) -> bool:
        """Have a message tried again after a while, or give it up; nothing where another courier has taken it."""
        still_due = sa.and_(notifications.c.channel == claim.channel, notifications.c.done_at.is_(None))
        this = sa.and_(
            still_due, notifications.c.delivery == claim.delivery.id, notifications.c.attempts == claim.attempts
        )
        async with self._connections.writing() as (connection, now):
            await connection.execute(_released(claim.channel, claim.holder, now))
            untold = {} if may_have_arrived or claim.told_before else {"told_at": None}
            # What came later, and was told of in one message with it, has its own day.
            old = sa.and_(this, notifications.c.at <= now - GIVE_UP_AFTER)
            given_up = await connection.execute(
                sa.update(notifications).where(old).values(done_at=now, outcome=_GAVE_UP, **untold)
            )
            again = await connection.execute(
                sa.update(notifications).where(this).values(next_try_at=now + wait, **untold)
            )
            if given_up.rowcount:
                entry = _given_up(claim.channel, given_up.rowcount, problem, claim.delivery.id, claim.attempts)
                await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
            if others_wait and given_up.rowcount + again.rowcount:
                sooner = notifications.c.next_try_at < now + wait
                await connection.execute(
                    sa.update(notifications).where(still_due, sooner).values(next_try_at=now + wait)
                )
        return bool(given_up.rowcount)

    async def tidy(self, sources: Sequence[str]) -> None:
        """Give up what no courier has taken for two days, and forget what was told a month ago."""
        mine, is_open = (
            notifications.c.source.in_(sources),
            sa.select(alerts.c.id).where(alerts.c.resolved_at.is_(None)),
        )
        async with self._connections.writing() as (connection, now):
            forsaken = sa.and_(mine, notifications.c.done_at.is_(None), notifications.c.at <= now - 2 * GIVE_UP_AFTER)
            counted = (
                sa.select(notifications.c.channel, sa.func.count()).where(forsaken).group_by(notifications.c.channel)
            )
            for channel, number in (await connection.execute(counted)).all():
                entry = _given_up(channel, number, "no courier delivers to this channel any more")
                await connection.execute(sa.insert(audit).values(audit_row(entry, now)))
            await connection.execute(sa.update(notifications).where(forsaken).values(done_at=now, outcome=_GAVE_UP))
            old = notifications.c.done_at <= now - _FORGOTTEN_AFTER
            await connection.execute(
                sa.delete(notifications).where(mine, old, notifications.c.alert_id.not_in(is_open))
            )

    async def _lock(self, connection: AsyncConnection, source: str) -> bool:
        """Keep others from changing a source's alerts until the end; tell whether it was never observed before."""
        row, stays = {"source": source, "observed_at": None}, {"source": source}
        await connection.execute(upsert(self._connections.dialect.name, alert_rounds, "source", row, stays))
        observed = sa.select(alert_rounds.c.observed_at).where(alert_rounds.c.source == source).with_for_update()
        return (await connection.execute(observed)).scalar_one() is None

    async def _take(
        self, connection: AsyncConnection, channel: str, holder: str, now: datetime, lasting: timedelta
    ) -> bool:
        none_yet, stays = {"channel": channel, "holder": None, "expires_at": now}, {"channel": channel}
        await connection.execute(upsert(self._connections.dialect.name, couriers, "channel", none_yet, stays))
        free = sa.or_(couriers.c.holder.is_(None), couriers.c.expires_at <= now)
        done = await connection.execute(
            sa.update(couriers)
            .where(couriers.c.channel == channel, free)
            .values(holder=holder, expires_at=now + lasting)
        )
        return bool(done.rowcount)


def _released(channel: str, holder: str, now: datetime) -> sa.Update:
    mine = sa.and_(couriers.c.channel == channel, couriers.c.holder == holder)
    return sa.update(couriers).where(mine).values(holder=None, expires_at=now)


async def _chosen(connection: AsyncConnection, channel: str, rows: Sequence[sa.Row[Any]]) -> Choice:
    ids = {row.alert_id for row in rows}
    still_open = sa.select(alerts.c.id).where(alerts.c.id.in_(ids), alerts.c.resolved_at.is_(None))
    told: dict[str, list[tuple[int, Happened]]] = defaultdict(list)
    tellings = sa.select(notifications.c.id, notifications.c.alert_id, notifications.c.change).where(
        notifications.c.alert_id.in_(ids), notifications.c.channel == channel, notifications.c.told_at.is_not(None)
    )
    for row in await connection.execute(tellings.order_by(notifications.c.id)):
        told[row.alert_id].append((row.id, Happened(row.change)))
    pending = [Pending(row.id, Change(Happened(row.change), _read(row.alert)), row.delivery) for row in rows]
    known: Tellings = told
    return choose(pending, set(await connection.scalars(still_open)), known)


async def _drop(connection: AsyncConnection, choice: Choice, now: datetime) -> None:
    """Strike what isn't to be told any more; that it may have been told is kept, for then its end is told."""
    if not choice.stale:
        return
    stale = notifications.c.id.in_([each.id for each in choice.stale])
    await connection.execute(sa.delete(notifications).where(stale, notifications.c.told_at.is_(None)))
    await connection.execute(sa.update(notifications).where(stale).values(done_at=now, outcome=_DROPPED))


def _given_up(channel: str, number: int, problem: str, delivery: str | None = None, attempts: int = 0) -> AuditEntry:
    return AuditEntry(
        actor=_ACTOR,
        call=NOTIFY_CALL,
        outcome=AuditOutcome.FAILED,
        parameters={"channel": channel, "delivery": delivery},
        result={"changes": number, "attempts": attempts, "problem": problem[:_LONGEST_SENTENCE]},
    )


_UPDATED = (
    sa.update(alerts)
    .where(alerts.c.subject == sa.bindparam("new_subject"))
    .values({column.name: sa.bindparam(f"new_{column.name}") for column in alerts.c if column.name != "subject"})
)


def _notification(change: Change, channel: str, now: datetime) -> dict[str, Any]:
    return {
        "channel": channel,
        "source": change.alert.subject.source,
        "alert_id": change.alert.id,
        "change": change.what.value,
        "alert": json.dumps(_facts(change.alert)),
        "at": now,
        "attempts": 0,
        "next_try_at": now,
    }


def _row(alert: Alert) -> dict[str, Any]:
    source, queue, what = alert.subject
    return {
        "subject": _fingerprint(alert.subject),
        "id": alert.id,
        "source": source,
        "queue": queue,
        "what": what.value,
        "opened_at": alert.opened_at,
        "seen_at": alert.seen_at,
        "jobs": alert.jobs,
        "sentence": alert.sentence[:_LONGEST_SENTENCE],
        "notified_at": alert.notified_at,
        "notified_jobs": alert.notified_jobs,
        "resolved_at": alert.resolved_at,
    }


def _alert(row: Mapping[Any, Any]) -> Alert:
    return Alert(
        id=row["id"],
        subject=Subject(row["source"], row["queue"], _what(row["what"])),
        opened_at=row["opened_at"],
        seen_at=row["seen_at"],
        jobs=row["jobs"],
        sentence=row["sentence"],
        notified_at=row["notified_at"],
        notified_jobs=row["notified_jobs"],
        resolved_at=row["resolved_at"],
    )


def _facts(alert: Alert) -> dict[str, object]:
    """Return an alert as JSON holds it: what a message says is what was so when it was written, however often sent."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in _row(alert).items()}


def _read(said: str) -> Alert:
    facts: dict[str, Any] = json.loads(said)
    times = {
        name: datetime.fromisoformat(value) for name, value in facts.items() if name in _TIMES and value is not None
    }
    return _alert(facts | times)


def _what(word: str) -> Reason | Trouble:
    return Trouble(word) if word in _TROUBLES else Reason(word)


def _fingerprint(subject: Subject) -> str:
    return hashlib.sha256(json.dumps(subject).encode()).hexdigest()
