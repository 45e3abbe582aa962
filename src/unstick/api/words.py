"""What callers sent, cut and cleaned so that every database can keep it and no log grows by their will."""

from collections.abc import Iterable

_LONGEST = 200
_MOST = 20


def said(word: object, longest: int = _LONGEST) -> str:
    """Return a caller's word as it may be recorded and shown: bounded, and without what a database refuses."""
    text = str(word)[:longest].encode("utf-8", "replace").decode()
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def said_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Return parameters as they were sent; one that was sent more than once is a list."""
    words: dict[str, list[str]] = {}
    for count, (key, value) in enumerate(pairs):
        if count == _MOST:
            break
        words.setdefault(said(key), []).append(said(value))
    return {key: values[0] if len(values) == 1 else values for key, values in words.items()}
