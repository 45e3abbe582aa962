"""What a job says of its own progress as a witness: whoever moved it since it was last looked at is at work.

It never convicts: a job may be long at one step. What it says of one that stands still (since when, and at how many
looks) is what tells a hung job, which beats all the same, from a busy one.
Known weakness: progress that anybody else writes, an administrator for one, is taken for the job's own.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from unstick.config import ProgressSettings
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.sighting import Sighted, Sighting
from unstick.domain.wording import Phrase
from unstick.ports import Sightings


class Progress:
    """Progress from one look to the next.

    Args:
        settings: how long a move counts.
        source: whose jobs these are.
        sightings: what was seen of them before.
    """

    name = "progress"

    def __init__(self, settings: ProgressSettings, source: str, sightings: Sightings) -> None:
        self._moved_within = settings.moved_within
        self._source = source
        self._sightings = sightings

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Compare each with how it looked before, and remember how it looks now."""
        seen = await self._sightings.note(self._source, [Sighted.of(job) for job in jobs], now)
        return {job_id: self._word(sighting, now) for job_id, sighting in seen.items()}

    def _word(self, seen: Sighting, now: datetime) -> Evidence:
        at, progress = seen.moved_at, seen.progress if seen.progress is not None else Phrase("unsaid")
        if at is not None and now - at <= self._moved_within:
            before = seen.moved_from if seen.moved_from is not None else Phrase("unsaid")
            return self._says(Holding.HELD, at, Phrase("progress %(before)s → %(now)s", before=before, now=progress))
        since = at or seen.first_seen_at
        stands = (
            Phrase("unmoved since %(at)s", at=since) if seen.looks > 1 else Phrase("first seen at %(at)s", at=since)
        )
        if seen.progress is not None and seen.looks > 1:
            at = at or seen.first_seen_at  # since when it stands still
        said = Phrase("progress %(now)s, %(stands)s (%(looks)s)", now=progress, stands=stands, looks=_looks(seen.looks))
        return self._says(Holding.UNKNOWN, at, said)

    def _says(self, holding: Holding, at: datetime | None, value: str) -> Evidence:
        return Evidence(witness=self.name, holding=holding, at=at, value=value)


def _looks(number: int) -> Phrase:
    return Phrase("1 look") if number == 1 else Phrase("%(number)s looks", number=number)
