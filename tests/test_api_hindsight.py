"""What the API tells in hindsight: late finishes, suggestions and replays, to whoever may read."""

from datetime import timedelta

import pytest

from tests.api_support import LATE, NOW, REPLAY, STATS, SUGGESTIONS, World, assert_problem, client, service
from unstick.domain.access import Role
from unstick.domain.aftermath import How, LateFinish
from unstick.domain.job import JobState


def late_finish(number: int) -> LateFinish:
    return LateFinish(
        job_id=str(number),
        kind="essay",
        how=How.FOUND,
        worker=None,
        attempt=1,
        ended=JobState.SUCCEEDED,
        ran=timedelta(minutes=47),
        detail=None,
        recovery_id=number,
        at=NOW,
    )


async def test_late_finishes_are_counted_and_listed_newest_first_and_no_more_than_asked() -> None:
    world = World()
    world.ledger.late = [late_finish(number) for number in range(9, 0, -1)]
    async with client(service(world), Role.VIEWER) as http:
        answer = (await http.get(LATE, params={"limit": 2})).json()
        stats = (await http.get(STATS)).json()

    since = (NOW - timedelta(hours=24)).isoformat()
    block = {"since": since, "total": 9, "by_kind": {"essay": 9}, "refused": 0, "found": 9}
    assert answer["late_finishes"] == stats["late_finishes"] == block
    assert [each["job_id"] for each in answer["newest"]] == ["9", "8"]
    assert answer["newest"][0] == {
        "job_id": "9",
        "kind": "essay",
        "how": "found",
        "ended": "succeeded",
        "worker": None,
        "attempt": 1,
        "ran_seconds": 2820.0,
        "detail": None,
        "recovery_id": 9,
        "at": NOW.isoformat(),
    }


async def test_suggestions_say_what_why_and_how_it_is_written() -> None:
    async with client(service(World()), Role.VIEWER) as http:
        answer = (await http.get(SUGGESTIONS)).json()

    [suggestion] = answer["suggestions"]
    assert (suggestion["kind"], suggestion["proposed"], suggestion["current_seconds"]) == ("essay", "5m", 1800)
    assert suggestion["figures"]["p99_seconds"] == 180
    assert answer["toml"] == '[[policy.rules]]\nkind = "essay"\nrunning_after = "5m"'
    assert len(answer["notes"]) == 2


async def test_a_replay_takes_thresholds_and_a_pattern() -> None:
    asked: dict[str, str | int] = {"days": 7, "running_after_minutes": 3, "queued_after_minutes": 2, "kind": "ess*"}
    async with client(service(World()), Role.VIEWER) as http:
        answer = (await http.get(REPLAY, params=asked)).json()
        plain = (await http.get(REPLAY)).json()

    assert answer["since"] == (NOW - timedelta(days=7)).isoformat()
    total = {"ended": 50, "recovered": 5, "queued": 2, "running": 3, "succeeded": 1}
    assert (answer["total"], answer["by_kind"]) == (total, [{"kind": "essay", **total}])
    assert (plain["total"]["ended"], plain["total"]["running"], plain["queued_after_seconds"]) == (55, 30, None)


@pytest.mark.parametrize(
    ("path", "params"),
    [
        (LATE, {"limit": 1001}),
        (LATE, {"limit": 0}),
        (REPLAY, {"days": 366}),
        (REPLAY, {"running_after_minutes": "30m"}),
        (SUGGESTIONS, {"days": 3}),
    ],
)
async def test_what_means_nothing_is_422(path: str, params: dict[str, str]) -> None:
    async with client(service(World()), Role.VIEWER) as http:
        assert_problem(await http.get(path, params=params), 422)
