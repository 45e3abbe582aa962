"""The three calls: what they take, what they answer, and that nothing ambiguous changes a job."""

from collections.abc import AsyncIterator
from datetime import timedelta
from urllib.parse import quote

import pytest

from tests.api_support import CALLS, CLEANUP, STATS, STUCK, MemorySource, World, assert_problem, client, job, service
from unstick.domain.access import Role
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action

NOT_MINUTES = [
    "",
    "0",
    "-1",
    "525601",
    "5.0",
    " 5",
    "5 ",
    "+5",
    "1e2",
    "true",
    "null",
    "0x5",
    "1_0",
    "\N{ARABIC-INDIC DIGIT FIVE}",
    "5,0",
    "9" * 5000,
]


async def test_stuck_answers_shape_1() -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        said = (await caller.get(STUCK)).json()
    assert said["stuck_jobs"] == {"total": 3, "queued_stuck": 2, "running_stuck": 1}
    assert [job["id"] for job in said["queued_jobs"]] == [4, 1]
    assert [job["id"] for job in said["running_jobs"]] == [2]
    assert said["threshold_minutes"] == 5
    assert said["monitored_at"] == "2026-11-23T21:00:00+00:00"
    message = "Found 3 stuck job(s). Consider running cleanup."
    assert said["recommendations"] == {"cleanup_needed": True, "message": message}


async def test_cleanup_answers_shape_2_and_cleans() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        said = (await caller.post(CLEANUP)).json()
    assert said["action"] == "mark_failed"
    assert said["cleaned_jobs"] == {"queued": 2, "running": 1, "total": 3}
    assert said["threshold_minutes"] == 5
    assert said["cleaned_at"] == "2026-11-23T21:00:00+00:00"
    assert said["message"] == "Successfully cleaned up 3 stuck job(s)."
    assert world.states() == {
        1: JobState.FAILED,
        2: JobState.FAILED,
        3: JobState.RUNNING,
        4: JobState.FAILED,
    }


async def test_stats_answer_shape_3() -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        said = (await caller.get(STATS)).json()
    assert said["ai_usage"]["stuck_jobs"] == {"queued": 2, "running": 1, "total": 3}


async def test_a_threshold_decides_and_is_told() -> None:
    world = World()
    async with client(service(world), Role.OPERATOR) as caller:
        seen = (await caller.get(f"{STUCK}?threshold_minutes=60")).json()
        said = (await caller.post(f"{CLEANUP}?threshold_minutes=60&action=retry")).json()
    assert seen["stuck_jobs"] == {"total": 2, "queued_stuck": 1, "running_stuck": 1}
    assert seen["threshold_minutes"] == said["threshold_minutes"] == 60
    assert said["action"] == "retry"
    assert world.states()[1] is JobState.QUEUED


async def test_what_is_left_out_comes_from_the_policy() -> None:
    world = World(policy=Policy(queued_after=timedelta(minutes=60), action=Action.RETRY))
    async with client(service(world), Role.OPERATOR) as caller:
        said = (await caller.post(CLEANUP)).json()
    assert (said["action"], said["threshold_minutes"], said["cleaned_jobs"]["queued"]) == ("retry", 60, 1)


@pytest.mark.parametrize("minutes", ["1", "525600", "05"])
async def test_whole_minutes_of_up_to_a_year_are_taken(minutes: str) -> None:
    async with client(service(World()), Role.OPERATOR) as caller:
        assert (await caller.get(f"{STUCK}?threshold_minutes={minutes}")).json()["threshold_minutes"] == int(minutes)
        assert (await caller.post(f"{CLEANUP}?threshold_minutes={minutes}")).status_code == 200


@pytest.mark.parametrize("minutes", NOT_MINUTES, ids=lambda word: repr(word[:10]))
async def test_any_other_threshold_is_422_and_changes_nothing(minutes: str) -> None:
    world = World()
    before = world.states()
    async with client(service(world), Role.ADMIN) as caller:
        for method, path in (CALLS["jobs.stuck"], CALLS["jobs.cleanup"]):
            answer = await caller.request(method, f"{path}?threshold_minutes={quote(minutes)}")
            problem = assert_problem(answer, 422)
            assert problem["errors"] == [
                {"loc": ["query", "threshold_minutes"], "msg": "must be a whole number from 1 to 525600"}
            ]
    assert world.states() == before


AMBIGUOUS = [
    "threshold_minutes=5&threshold_minutes=99",
    "threshold_minutes=5&threshold_minutes=5",
    "treshold_minutes=99",
    "Threshold_minutes=99",
    "threshold_minutes[]=99",
    "threshold_minutes=5;action=retry",
    "action=delete",
    "action=MARK_FAILED",
    "action=",
    "action=mark_failed&action=retry",
    "dry_run=",
    "dry_run=yes",
    "dry_run=1",
    "dry_run=true&dry_run=false",
    "dryrun=true",
    "limit=5",
    "&=",
]


@pytest.mark.parametrize("query", AMBIGUOUS)
async def test_nothing_ambiguous_changes_a_job(query: str) -> None:
    world = World()
    before = world.states()
    async with client(service(world), Role.ADMIN) as caller:
        problem = assert_problem(await caller.post(f"{CLEANUP}?{query}"), 422)
    assert problem["errors"]
    assert "Action." not in problem["detail"]
    assert world.states() == before


@pytest.mark.parametrize(
    "body", [b'{"dry_run": true}', b"dry_run=true", b"[]", b" " * 5000 + b"x"], ids=lambda b: b[:9]
)
async def test_parameters_in_a_body_are_refused_rather_than_overlooked(body: bytes) -> None:
    world = World()
    before = world.states()
    async with client(service(world), Role.ADMIN) as caller:
        assert_problem(await caller.post(CLEANUP, content=body), 422)
    assert world.states() == before


async def test_a_body_without_end_is_refused_at_its_beginning() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield b"x" * 100

    async with client(service(World()), Role.ADMIN) as caller:
        assert_problem(await caller.post(CLEANUP, content=endless()), 422)
    assert taken < 10


@pytest.mark.parametrize("body", [b"", b"{}", b" {} \n", b"null"])
async def test_an_empty_body_says_nothing_and_is_no_obstacle(body: bytes) -> None:
    async with client(service(World()), Role.ADMIN) as caller:
        assert (await caller.post(CLEANUP, content=body)).status_code == 200


@pytest.mark.parametrize("word", ["true", "True"])
async def test_a_dry_run_counts_and_changes_nothing(word: str) -> None:
    world = World()
    before = world.states()
    async with client(service(world), Role.OPERATOR) as caller:
        said = (await caller.post(f"{CLEANUP}?dry_run={word}")).json()
    assert said["dry_run"] is True
    assert said["cleaned_jobs"]["total"] == 0
    assert said["would_clean"] == {"queued": 2, "running": 1, "total": 3}
    assert world.states() == before
    assert world.source.batches == 0


async def test_a_list_goes_on_where_its_cursor_says() -> None:
    world = World(source=MemorySource(jobs={n: job(n, JobState.QUEUED, 100 - n) for n in range(10, 15)}))
    seen, cursor = [], ""
    async with client(service(world), Role.VIEWER) as caller:
        while cursor is not None:
            page = (await caller.get(f"{STUCK}?limit=2{cursor and '&cursor='}{quote(cursor)}")).json()
            seen.append([job["id"] for job in page["queued_jobs"]])
            assert page["stuck_jobs"]["total"] == 5
            cursor = page["next_cursor"]
    assert seen == [[10, 11], [12, 13], [14]]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=ten", "cursor=x", "cursor=", "cursor=" + "x" * 3000])
async def test_a_limit_or_cursor_that_means_nothing_is_422(query: str) -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        assert_problem(await caller.get(f"{STUCK}?{query}"), 422)


async def test_a_source_is_named_or_else_main() -> None:
    main, other = World(), World(source=MemorySource(name="other", jobs={"a": job("a", JobState.QUEUED, 9)}))
    async with client(service(main, other=other), Role.ADMIN) as caller:
        assert (await caller.get(f"{STUCK}?source=other")).json()["queued_jobs"][0]["id"] == "a"
        assert (await caller.get(STUCK)).json()["stuck_jobs"]["total"] == 3
        assert (await caller.get(f"{STATS}?source=other")).json()["ai_usage"]["stuck_jobs"]["total"] == 1
        assert (await caller.post(f"{CLEANUP}?source=other")).json()["cleaned_jobs"]["total"] == 1
    assert main.states()[1] is JobState.QUEUED


@pytest.mark.parametrize("name", ["nowhere", "", "Main", "main "])
async def test_an_unknown_source_is_404_and_tells_those_there_are(name: str) -> None:
    async with client(service(World()), Role.ADMIN) as caller:
        for method, path in CALLS.values():
            problem = assert_problem(await caller.request(method, path, params={"source": name}), 404)
            assert "main" in problem["detail"]


async def test_no_answer_is_kept_by_a_cache() -> None:
    async with client(service(World()), Role.VIEWER) as caller:
        for method, path in CALLS.values():
            assert (await caller.request(method, path)).headers["cache-control"] == "no-store"


async def test_the_root_tells_where_things_are_behind_a_prefix_too() -> None:
    app = service(World())
    app.root_path = "/ops"
    async with client(app) as caller:
        assert (await caller.get("/")).json()["openapi"] == "/ops/openapi.json"
