"""The page of configuration keys: it names every key there is, where it stands, with the default it has."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, get_args, get_origin

from pydantic import BaseModel, SecretStr

from unstick.config import ColumnKey, Settings, load_settings, parse_duration
from unstick.domain.job import JobState
from unstick.domain.schedule import Every

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "configuration.md"


def sections() -> dict[str, dict[str, str]]:
    """Return what the page says: of each section its keys, each with what its default is said to be."""
    found: dict[str, dict[str, str]] = {}
    here = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.fullmatch(r"##+ (?:Top|`\[+([^\]]+)\]+`)", line):
            here = heading[1] or ""
            found[here] = {}
        elif row := re.match(r"\| `(\w+)` \| (?:(required|none|below|`[^`]*`) \|)?", line):
            found[here][row[1]] = (row[2] or "").strip("`")
    return found


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None or isinstance(annotation, UnionType):
        for each in get_args(annotation):
            yield from models(each)


def default_of(field: FieldInfo) -> object:
    """Return a field's default as the page says it."""
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    match default:
        case SecretStr():
            return default.get_secret_value()
        case None | () | {}:
            return "none"
        case bool():
            return str(default).lower()
        case BaseModel() | tuple():
            return "below"
        case _:
            return default.apart if isinstance(default, Every) else default


def known(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Yield every section there is, with its keys and their defaults; what has a section of its own isn't a key."""
    keys: dict[str, object] = {}
    for name, field in model.model_fields.items():
        here = f"{place}.{name}".strip(".")
        nested = list(models(field.annotation))
        repeated = get_origin(field.annotation) is dict
        for each in nested:
            yield from known(each, f"{here}.NAME" if repeated else here)
        if place or not nested:
            keys[name] = default_of(field)
    yield place, keys


def same(said: str, default: object) -> bool:
    """Tell whether what is said is this default; a duration may be said in any unit."""
    return parse_duration(said) == default if isinstance(default, timedelta) else said == str(default)


def test_every_key_is_on_the_page_in_its_place_with_its_default() -> None:
    page = sections()
    words = {
        "sources.NAME.columns": set(get_args(ColumnKey)),
        "sources.NAME.states": {state.value for state in JobState},
    }
    assert {place: set(page.pop(place)) for place in words} == words
    there = {place: keys for place, keys in known(Settings) if keys}

    assert {place: set(keys) for place, keys in page.items()} == {place: set(keys) for place, keys in there.items()}
    wrong = {
        f"[{place}] {key} = {default}": page[place][key]
        for place, keys in there.items()
        for key, default in keys.items()
        if not same(page[place][key], default)
    }
    assert wrong == {}


def test_the_example_on_the_page_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSTICK_CONFIG", raising=False)
    example = re.search(r"\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    assert example is not None
    file = tmp_path / "unstick.toml"
    file.write_text(re.sub("^    ", "", example[1], flags=re.MULTILINE))
    settings = load_settings(file)

    assert settings.policy.running_after == timedelta(minutes=45)
    assert settings.policy.rules[0].kind == "thesis.*"
    assert settings.sources["main"].states[JobState.QUEUED] == ("queued", "pending")
