"""What an inspection found, as the `unstick.toml` it calls for."""

import json
import re
from collections.abc import Iterator

import sqlalchemy as sa

from unstick.config import StateValue
from unstick.sql.engine import SECRETS
from unstick.sql.inspection import Found, Inspection
from unstick.sql.recognition import Recognised


def to_toml(name: str, url: str, found: Found) -> str:
    """Write what was found as an `unstick.toml`, its doubts as comments and without the URL's password.

    Args:
        name: what the source of the table that is of no known system is to be called.
        url: the database's URL, as it was given.
        found: what was found out.
    """
    sections = [_section(each, url) for each in found.systems]
    if found.inspection is not None:
        sections.append(_section_of_table(name, url, found.inspection))
    return "\n".join(sections)


def _section(recognised: Recognised, url: str) -> str:
    problem = [] if recognised.problem is None else [_comment(f"It will only be read: {recognised.problem}")]
    return "\n".join((
        _comment(f"{recognised.system}, recognised by its tables."),
        *problem,
        f"[sources.{recognised.source}]",
        *_toml_url(recognised.source, url),
        f"preset = {_toml(recognised.preset)}",
        *([] if recognised.is_plain else [f"table = {_toml(recognised.table)}"]),
        "",
    ))  # fmt: skip


def _section_of_table(name: str, url: str, inspection: Inspection) -> str:
    proposal = inspection.proposal
    columns = ", ".join(f"{key} = {_toml(column)}" for key, column in proposal.columns.items())
    states = ", ".join(f"{state.value} = {_toml_words(words)}" for state, words in proposal.states.items())
    return "\n".join((
        *_preamble(inspection),
        f"[sources.{_toml_key(name)}]",
        *_toml_url(name, url),
        f"table = {_toml(inspection.facts.spelling)}",
        f"columns = {{ {columns} }}",
        f"states = {{ {states} }}",
        *_toml_timezone(inspection),
        "",
    ))  # fmt: skip


def _preamble(inspection: Inspection) -> Iterator[str]:
    yield _comment("Proposed by `unstick inspect` from the table itself. Check it before anything is recovered.")
    if inspection.doubts:
        yield "#"
    for doubt in inspection.doubts:
        yield _comment(f"{doubt.severity}, {doubt.key}: {doubt.message}")
    yield ""


def _toml_url(name: str, url: str) -> Iterator[str]:
    left_out = password_left_out(name, url)
    if left_out is not None:
        yield _comment(left_out)
    yield f"url = {_toml(_without_password(url))}"


def password_left_out(name: str, url: str) -> str | None:
    """Say how to give the password that a file leaves out, None where the URL has none."""
    if _without_password(url) == url:
        return None
    return f"The password is left out: give the whole URL in UNSTICK_SOURCES__{name.upper()}__URL."


def _without_password(url: str) -> str:
    parsed = sa.make_url(url)
    if parsed.password is None and not SECRETS & parsed.query.keys():
        return url
    bare = sa.URL.create(
        parsed.drivername,
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query,
    )
    return bare.difference_update_query(SECRETS).render_as_string(hide_password=False)


def _toml_timezone(inspection: Inspection) -> Iterator[str]:
    if any(doubt.key == "timezone" for doubt in inspection.doubts):
        yield 'timezone = "UTC"'


def _toml_words(words: tuple[StateValue, ...]) -> str:
    said = [_toml(word) if isinstance(word, str) else str(word) for word in words]
    return said[0] if len(said) == 1 else f"[{', '.join(said)}]"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(text: str) -> str:
    # JSON's escapes are TOML's too; TOML alone wants DEL escaped.
    quoted: str = json.dumps(text, ensure_ascii=False)
    return quoted.replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "# " + "".join(character if character.isprintable() else " " for character in text)
