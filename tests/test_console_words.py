"""The languages of the console: nothing is left untranslated, and every form that a number needs is there."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir, extract_from_file
from babel.messages.pofile import read_po

import unstick.console
from unstick.console import saying
from unstick.console.health import trouble_sentence, watch_sentences
from unstick.console.language import LANGUAGES, words_of
from unstick.domain.diagnosis import STUCK, Reason
from unstick.domain.events import Observed
from unstick.domain.health import WatchRecord, checks_of
from unstick.domain.job import JobState
from unstick.domain.schedule import Timetable
from unstick.domain.standing import Standing
from unstick.pipeline.health import Trouble
from unstick.pipeline.overview import Overview

SOURCE = Path(unstick.console.__file__).parent
METHODS = [("templates/**.html", "jinja2.ext:babel_extract"), ("**.py", "python")]
PLACE = re.compile(r"%\((\w+)\)s|%%")
OTHERS = [language for language in LANGUAGES if language != "en"]
Text = str | tuple[str, ...]


def texts() -> Iterator[Text]:
    for _, _, text, _, _ in extract_from_dir(SOURCE, METHODS, {"templates/**.html": {"extensions": ""}}):
        yield text
    for file in SOURCE.parent.rglob("*.py"):
        if "Phrase(" in file.read_text():
            yield from (text for _, text, _, _ in extract_from_file("python", file, keywords={"Phrase": None}))


def catalogue(language: str) -> Catalog:
    with (resources.files("unstick.console") / "locale" / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_with_all_that_is_put_into_it(language: str) -> None:
    found, translated = set(texts()), catalogue(language)
    assert len(found) > 450
    for text in found:
        one = text if isinstance(text, str) else text[0]
        message = translated.get(one)
        assert message is not None, one
        said = message.string if isinstance(message.string, tuple | list) else (message.string,)
        assert len(said) == (1 if isinstance(text, str) else translated.num_plurals), one
        for each in said:
            assert each, one
            assert sorted(PLACE.findall(each)) == sorted(PLACE.findall(one)), one
    known = {message.id if isinstance(message.id, str) else tuple(message.id) for message in translated if message.id}
    assert known - found == set()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "1 завдання"),
        (2, "2 завдання"),
        (5, "5 завдань"),
        (11, "11 завдань"),
        (21, "21 завдання"),
        (112, "112 завдань"),
        (1234, "1\N{NO-BREAK SPACE}234 завдання"),
    ],
)
def test_ukrainian_counts_as_ukrainians_do(number: int, said: str) -> None:
    assert words_of("uk").ngettext("%(number)s job", "%(number)s jobs", number) == said


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_reason_and_every_way_that_a_job_can_stand_has_a_name(language: str) -> None:
    words = words_of(language)
    assert all(saying.reason(words, each) for each in Reason)
    assert all(saying.standing(words, each) for each in Standing)
    assert all(saying.state(words, each) for each in JobState)
    assert all(saying.meaning(words, each) for each in STUCK)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_trouble_of_a_source_and_of_its_watch_is_said_in_every_language(language: str) -> None:
    words, unlike = words_of(language), words_of("en" if language == "uk" else "uk")
    for each in Trouble:
        assert trouble_sentence(words, each) != trouble_sentence(unlike, each)
    for record in RECORDS:
        said = watch_sentences(words, watched_as(record))
        assert len(said) == len(set(said)) > 0
        assert not set(said) & set(watch_sentences(unlike, watched_as(record)))
    assert watch_sentences(words, watched_as(WatchRecord(at=NOW, began_at=NOW))) == ()


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RECORDS = (
    None,
    WatchRecord(at=NOW, began_at=NOW - timedelta(hours=1)),
    WatchRecord(at=NOW, began_at=NOW - timedelta(hours=9), observed_at=NOW, swept_at=NOW - timedelta(hours=2)),
    WatchRecord(at=NOW, began_at=NOW - timedelta(hours=9), observed_at=NOW - timedelta(hours=2), swept_at=NOW),
    WatchRecord(at=NOW, began_at=NOW - timedelta(hours=9), observed_at=NOW, swept_at=NOW, problem="no answer"),
)


def watched_as(record: WatchRecord | None) -> Overview:
    return Overview(
        observed=Observed(source="main", at=NOW, took=timedelta(0), open_jobs={}, stuck={}),
        just_now=True,
        age=timedelta(0),
        watch=record,
        checks=checks_of(record, Timetable()),
        brake=None,
        unmapped=(),
        spans=(),
    )


def test_what_is_put_into_a_text_can_not_become_markup() -> None:
    assert words_of("en").gettext("Worker %(name)s had it.", name="<b>") == "Worker &lt;b&gt; had it."
