"""The languages of the pages: which one a person reads, and its catalogue.

Catalogues are `.po` files, read when they are first needed, so that nothing has to be compiled or committed twice.
"""

import io
import re
from functools import cache
from importlib import resources

from babel import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from babel.support import NullTranslations, Translations
from fastapi import Request
from markupsafe import Markup, escape

LANGUAGES = {"en": "English", "uk": "Українська"}
"""Each in its own word."""
COOKIE = "unstick_language"
DEFAULT = "en"
_MOST_WANTED = 20
_CODE = re.compile("`([^`]+)`")


def language_of(request: Request) -> str:
    """Return the language that a person chose, or else the one that their browser asks for."""
    chosen = request.cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    return negotiate_locale(_wanted(request.headers.get("accept-language", "")), LANGUAGES, sep="-") or DEFAULT


def _wanted(header: str) -> list[str]:
    """Return the languages that a browser asks for, the dearest first."""
    found: list[tuple[float, str]] = []
    for part in header.split(",")[:_MOST_WANTED]:
        tag, _, weight = part.strip().partition(";q=")
        try:
            found.append((float(weight or 1), tag))
        except ValueError:
            continue
    return [tag for weight, tag in sorted(found, key=lambda each: -each[0]) if weight > 0]


class Words:
    """A language's texts, as HTML: what is put into them is escaped, and a percent sign is written twice."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._catalogue = _catalogue(language)

    def text(self, text: str) -> Markup:
        """Return a text in this language that is still to be filled in."""
        return Markup(self._catalogue.gettext(text))  # noqa: S704 - texts are the source's and the catalogue's

    def gettext(self, text: str, **values: object) -> Markup:
        """Return a text in this language."""
        return self.text(text) % values

    def phrase(self, text: str, **values: object) -> Markup:
        """Return in this language what the product said; the text itself is escaped, too, for it may have been kept."""
        html = _CODE.sub(r"<code>\1</code>", str(escape(self._catalogue.gettext(text))))
        return Markup(html) % values  # noqa: S704 - escaped just before

    def ngettext(self, one: str, many: str, number: int, **values: object) -> Markup:
        """Return a text in the form that fits a number, which it names `number`."""
        text = self._catalogue.ngettext(one, many, number)
        return Markup(text) % {"number": self.number(number), **values}  # noqa: S704 - likewise

    def number(self, value: float) -> str:
        """Write a number with the language's own separators."""
        return format_decimal(value, locale=self.language)


@cache
def words_of(language: str) -> Words:
    """Return a language's texts."""
    return Words(language)


def _catalogue(language: str) -> NullTranslations:
    """Return the catalogue of a language; English is what stands in the source."""
    if language == DEFAULT:
        return NullTranslations()
    file = resources.files("unstick.console") / "locale" / f"{language}.po"
    compiled = io.BytesIO()
    write_mo(compiled, read_po(io.BytesIO(file.read_bytes()), locale=language))
    compiled.seek(0)
    return Translations(compiled)
