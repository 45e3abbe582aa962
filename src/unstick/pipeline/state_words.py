"""What is wrong with the words that a source's mapping names for states: else jobs would be missing in silence."""

from collections.abc import Iterable

from unstick.domain.doubted_word import DoubtedWord
from unstick.pipeline.watched import Watched


async def doubts_about_words(watched: Watched) -> tuple[str, ...]:
    """Say which words are most likely mistyped, and which open jobs hold that nobody mapped; nothing if all is well."""
    name, doubted = watched.source.name, await watched.doubted_words()
    told = {word for each in doubted for word in each.held}
    unmapped = [word for word in await watched.unmapped_words() if word not in told]
    warnings = [_doubt(name, each) for each in doubted]
    if unmapped:
        warnings.append(
            f"Jobs of source {name!r} are in the state {_listed(unmapped)}, which `states` doesn't name: they are "
            "never looked at. Name it there; what is named under `scheduled` is left alone."
        )
    return tuple(warnings)


def _doubt(source: str, doubted: DoubtedWord) -> str:
    named = f"`states` of source {source!r} names {doubted.word!r} for {doubted.state}"
    if doubted.allowed:
        return f"{named}, which its table can't hold: it takes {_listed(doubted.allowed)}. Correct it there."
    return (
        f"{named}, which none of its newest jobs holds, and not {_listed(doubted.held)}, which some do: correct it "
        "there, or name both."
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(repr(word) for word in words)
