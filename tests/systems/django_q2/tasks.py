"""The tasks of the project."""

from work import work


def hold(token: str) -> None:
    work(token)
