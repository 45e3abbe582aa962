"""The sources a caller can name."""

from collections.abc import Mapping

from fastapi import HTTPException

from unstick.domain.errors import ConfigurationError
from unstick.domain.wording import Phrase
from unstick.pipeline.watched import OpenWatched

_DEFAULT = "main"


class Sources:
    """The configured sources; the one that is meant where none is named is `main`, or else the first."""

    def __init__(self, watched: Mapping[str, OpenWatched]) -> None:
        if not watched:
            raise ConfigurationError("There is no source to watch: configure at least one.")
        self._watched = dict(watched)
        self._default = _DEFAULT if _DEFAULT in watched else next(iter(watched))

    def __contains__(self, name: object) -> bool:
        return name in self._watched

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order of the configuration."""
        return tuple(self._watched)

    @property
    def all(self) -> Mapping[str, OpenWatched]:
        """Each by its name."""
        return self._watched

    @property
    def default(self) -> str:
        """The one that is meant where none is named."""
        return self._default

    def named(self, name: str | None) -> OpenWatched:
        """Return a source by its name; one that isn't there is a 404."""
        if name is None:
            name = self._default
        if name not in self._watched:
            names = ", ".join(self._watched)
            raise HTTPException(404, Phrase("There is no such source. The sources are: %(names)s.", names=names))
        return self._watched[name]

    def meant_by(self, names: list[str]) -> OpenWatched:
        """Return the source in whose ledger a call is recorded, however badly it named one."""
        return self._watched[names[0] if len(names) == 1 and names[0] in self._watched else self._default]
