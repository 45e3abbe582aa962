"""The console's own stylesheet, script and icon: read once, and named by what is in them, so that they can be kept."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file that pages load."""

    name: str
    """Such as `console.1f0c3a9b22d1.css`."""
    media_type: str
    content: bytes


@cache
def assets() -> Mapping[str, Asset]:
    """Return the files by their plain names, such as `console.css`."""
    folder = resources.files("unstick.console") / "static"
    return {file.name: _asset(file.name, file.read_bytes()) for file in folder.iterdir()}


@cache
def by_hashed_name() -> Mapping[str, Asset]:
    """Return the same files by the names they are served under."""
    return {asset.name: asset for asset in assets().values()}


def _asset(name: str, content: bytes) -> Asset:
    stem, _, kind = name.rpartition(".")
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(name=f"{stem}.{digest}.{kind}", media_type=_MEDIA_TYPES[kind], content=content)
