"""Payloads as they may be shown: no secret in them, however deep, and nothing else missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.servers import EACH_KIND
from unstick.config import Settings, SourceSettings
from unstick.domain.redaction import LONGEST_PAYLOAD, REDACTED, redacted, shown_payload
from unstick.pipeline.job_shapes import story_shape
from unstick.pipeline.story import tell_story
from unstick.sql.engine import open_engine
from unstick.sql.tables import jobs
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from tests.servers import Database

DATABASES = EACH_KIND

SECRETS = (
    "password", "Password", "userPassword", "db_passwd", "client-secret", "clientSecret", "api_key", "apiKey",
    "API-KEY", "token", "access_token", "refreshToken", "Authorization", "proxy-authorization", "private_key",
    "AWS_ACCESS_KEY_ID", "credentials", "Set-Cookie", "session_id", "pwd", "cvv", "card_number",
)  # fmt: skip
HARMLESS = ("tokens", "max_tokens", "token_count", "prompt", "author", "key", "keyboard", "session")


@pytest.mark.parametrize("key", SECRETS)
def test_what_stands_under_such_a_key_is_left_out(key: str) -> None:
    assert redacted({key: "s3cret"}) == {key: REDACTED}
    assert redacted({"a": [{"b": {key: ["s3cret"]}}]}) == {"a": [{"b": {key: REDACTED}}]}
    assert redacted({key: {"deeper": "s3cret"}}) == {key: REDACTED}
    assert redacted({key: None}) == {key: None}


@pytest.mark.parametrize("key", HARMLESS)
def test_what_only_looks_like_it_stays(key: str) -> None:
    assert redacted({key: 4_000}) == {key: 4_000}


def test_a_secret_in_json_within_text_is_found_and_other_text_stays_to_the_letter() -> None:
    said = {
        "body": ' {"user": "ann",  "password": "s3cret"}',
        "list": '["é", {"password": "s3cret"}]',
        "note": '{"a":1}',
        "odd": "{not json",
        "n": 1.5,
        "t": True,
    }
    shown = redacted(said)
    assert isinstance(shown, dict)
    assert json.loads(shown["body"]) == {"user": "ann", "password": REDACTED}
    assert shown["list"] == f'["é", {{"password": "{REDACTED}"}}]'
    assert {name: shown[name] for name in ("note", "odd", "n", "t")} == {
        name: said[name] for name in ("note", "odd", "n", "t")
    }


def test_the_keys_can_be_chosen() -> None:
    assert redacted({"iban": "DE", "password": "x"}, ["iban"]) == {"iban": REDACTED, "password": "x"}
    assert redacted({"a": {"b": 1}}, ["*"]) == {"a": REDACTED}
    assert shown_payload('{"iban": "DE", "password": "x"}', ["iban"]) == {"iban": REDACTED, "password": "x"}


def test_what_is_nested_without_end_is_left_out_and_breaks_nothing() -> None:
    deep: Any = "s3cret"
    for _ in range(10_000):
        deep = [deep]
    shown = redacted(deep)
    assert "s3cret" not in str(shown)
    assert shown_payload("[" * 16_000) == REDACTED


def test_what_is_nested_fifty_deep_is_shown_and_what_is_deeper_is_not() -> None:
    def nested(depth: int, said: Any) -> Any:  # noqa: ANN401
        for level in range(depth):
            said = [said] if level % 2 else {"a": said}
        return said

    assert redacted(nested(50, 1)) == nested(50, 1)
    assert redacted(nested(51, 1)) == nested(51, REDACTED)
    assert redacted(nested(48, "[1]")) == nested(48, "[1]")
    assert redacted(nested(49, "[[1]]")) == nested(49, f'["{REDACTED}"]')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"essay": "On tea", "api_key": "s3cret"}', {"essay": "On tea", "api_key": REDACTED}),
        ("[1, 2]", [1, 2]),
        ('{"\\ud800": "a\\udfff", "much": 1e999, "none": NaN}', {"?": "a?", "much": "inf", "none": "nan"}),
        ("password=s3cret", REDACTED),
        ('"' + "x" * (LONGEST_PAYLOAD - 2) + '"', "x" * (LONGEST_PAYLOAD - 2)),
        ('"' + "x" * (LONGEST_PAYLOAD - 1) + '"', f"({LONGEST_PAYLOAD} characters or more)"),
    ],
    ids=["json", "list", "what can't be sent", "no json", "as long as it may be", "longer"],
)
def test_a_payload_is_shown_as_far_as_its_keys_tell_that_it_may_be(text: str, shown: object) -> None:
    assert shown_payload(text) == shown


def test_with_no_key_to_leave_out_all_of_it_is_shown() -> None:
    assert shown_payload("password=s3cret", ()) == "password=s3cret"


async def test_a_jobs_story_shows_its_payload_without_its_secrets(database: Database) -> None:
    source = SourceSettings.model_validate({"url": database.url})
    chosen = Settings.model_validate({"sources": {"main": source}, "payloads": {"redact": ["essay"]}})
    await upgrade_database(chosen)
    engine = open_engine(database.url)
    async with engine.begin() as connection:
        payload = {"essay": "On tea", "options": {"api_key": "s3cret"}}
        await connection.execute(sa.insert(jobs).values(id=1, job_type="essay", payload=payload))
        await connection.execute(sa.insert(jobs).values(id=2, job_type="essay", payload={"essay": "x" * 20_000}))
    await engine.dispose()

    async with open_watched(Settings(sources={"main": source})) as watched:
        first, second = [story_shape(await tell_story(watched, job_id), ()) for job_id in (1, 2)]
        assert "s3cret" not in str(await tell_story(watched, 1))
    assert first["job"] is not None
    assert second["job"] is not None
    assert first["job"]["payload"] == {"essay": "On tea", "options": {"api_key": REDACTED}}
    assert second["job"]["payload"] == f"({LONGEST_PAYLOAD} characters or more)"
    async with open_watched(chosen) as watched:
        [story] = [story_shape(await tell_story(watched, 1), ())]
    assert story["job"] is not None
    assert story["job"]["payload"] == {"essay": REDACTED, "options": {"api_key": "s3cret"}}
