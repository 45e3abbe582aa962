"""What stands in the way, said to a person: by what kind of problem it is, and by what exactly it was."""

from http import HTTPStatus

from markupsafe import Markup

from unstick.api.problems import Problem
from unstick.console.language import DEFAULT, Words
from unstick.console.saying import said
from unstick.domain.wording import Phrase


def problem_title(words: Words, problem: Problem) -> Markup:
    """Name a problem."""
    _ = words.gettext
    titles = {
        HTTPStatus.FORBIDDEN: _("You may not do this"),
        HTTPStatus.NOT_FOUND: _("There is no such thing here"),
        HTTPStatus.UNPROCESSABLE_ENTITY: _("This can't be understood"),
        HTTPStatus.TOO_MANY_REQUESTS: _("Too often"),
        HTTPStatus.INTERNAL_SERVER_ERROR: _("Something went wrong"),
        HTTPStatus.SERVICE_UNAVAILABLE: _("A database is away"),
    }
    return titles.get(HTTPStatus(problem.status), _("This can't be done"))


def problem_sentence(words: Words, problem: Problem) -> Markup:
    """Say what happened and what to do; in a language that it isn't said in, what was said is quoted."""
    if isinstance(problem.detail, Phrase) or words.language == DEFAULT:
        return said(words, problem.detail)
    return _general(words, problem) + Markup(' <q lang="en">{}</q>').format(problem.detail)


def _general(words: Words, problem: Problem) -> Markup:
    _ = words.gettext
    if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return _("Something in the address or the form means nothing, so nothing was done. The service says:")
    if problem.failed:
        return _("It failed, and the service's log says more. The service says:")
    return _("As things stand it can't be done, and nothing was changed. The service says:")
