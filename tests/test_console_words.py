"""The languages of the console: nothing is left untranslated, and every form that a number needs is there."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

import unstick.console
from unstick.console.language import LANGUAGES, words_of

SOURCE = Path(unstick.console.__file__).parent
METHODS = [("templates/**.html", "jinja2.ext:babel_extract"), ("**.py", "python")]
PLACE = re.compile(r"%\((\w+)\)s|%%")
OTHERS = [language for language in LANGUAGES if language != "en"]
Text = str | tuple[str, ...]


def texts() -> Iterator[Text]:
    for _, _, text, _, _ in extract_from_dir(SOURCE, METHODS, {"templates/**.html": {"extensions": ""}}):
        yield text


def catalogue(language: str) -> Catalog:
    with (resources.files("unstick.console") / "locale" / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_with_all_that_is_put_into_it(language: str) -> None:
    found, translated = set(texts()), catalogue(language)
    assert len(found) > 300
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


def test_what_is_put_into_a_text_can_not_become_markup() -> None:
    assert words_of("en").gettext("Worker %(name)s had it.", name="<b>") == "Worker &lt;b&gt; had it."
