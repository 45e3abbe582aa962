"""How a worker's name is read: a pattern with places for what it is made of."""

import re
from collections.abc import Mapping

PLACES: Mapping[str, str] = {
    "host": r"(?P<host>.+?)",
    "pid": r"(?P<pid>[0-9]{1,10})",
    "application_name": r"(?P<application_name>.+)",
    "any": ".*?",
}
"""What can stand in a pattern in braces; `{any}` is what doesn't matter."""


class NamePattern:
    """The names that workers give themselves, such as `{host}:{pid}`.

    Args:
        text: what a name looks like, with `{host}`, `{pid}`, `{application_name}` and `{any}` in it.

    Raises:
        ValueError: there is another place in it, or one of the first three twice.
    """

    def __init__(self, text: str) -> None:
        parts = re.split(r"\{(.*?)\}", text)
        self.places = tuple(part for part in parts[1::2] if part != "any")
        unknown = [place for place in self.places if place not in PLACES]
        if unknown or len(set(self.places)) < len(self.places):
            raise ValueError(f"may have {', '.join(f'{{{place}}}' for place in PLACES)} in it, the first three once")
        expression = "".join(PLACES[part] if at % 2 else re.escape(part) for at, part in enumerate(parts))
        self._expression = re.compile(expression, re.DOTALL)

    def read(self, name: str) -> Mapping[str, str] | None:
        """Return what stands in each place of a name, None where it isn't of this pattern."""
        found = self._expression.fullmatch(name)
        return None if found is None else found.groupdict()
