"""The tasks of the project."""

from django_tasks import task
from work import work


@task()
def hold(token: str) -> None:
    work(token)
