"""Pages: a template, in the viewer's language and theme, with the headers that let nothing but our own files run."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from unstick import __version__
from unstick.api.call import Call, call_of
from unstick.api.problems import Problem
from unstick.console import health, problems, saying, sentences
from unstick.console.assets import assets
from unstick.console.language import LANGUAGES, Words, language_of, words_of
from unstick.domain.access import Role

SESSION = "unstick.session"
"""Where a request's scope says by which session of ours it came."""
_PATHS = "unstick.paths"
THEME_COOKIE = "unstick_theme"
THEMES = ("system", "light", "dark")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",  # with less, browsers send forms without saying where they come from
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def render(request: Request, template: str, /, *, status: int = 200, **values: object) -> HTMLResponse:
    """Return a page made of a template and these values.

    Every template also knows `path(name, **parameters)` of a route, `asset(name)`, `viewer` (None where nobody is
    known), `barred(role)` (why the viewer can't change what needs that role; empty where they can), `signed_in`
    (whether by a session of ours, which can be ended), `sources` and `source` (the names, and the one that is shown),
    `language`, `theme`, `here` (the address asked for, to come back to), gettext's functions, and what `saying`,
    `sentences` and `health` say.
    """
    call, language = call_of(request), language_of(request)
    standing: dict[str, object] = {
        "path": partial(path_to, request),
        "asset": lambda name: path_to(request, "console.asset", name=assets()[name].name),
        "viewer": call.actor if call is not None and call.is_known else None,
        "role": None if call is None else call.role,
        "barred": lambda role: _barred(words_of(language), call, Role(role)),
        "signed_in": SESSION in request.scope,
        "sources": () if call is None else call.sources.names,
        "source": None if call is None else call.sources.default,
        "language": language,
        "languages": LANGUAGES,
        "theme": theme_of(request),
        "themes": THEMES,
        "here": here(request),
        "route": getattr(request.scope.get("route"), "name", ""),
        "version": __version__,
        "rendered_at": datetime.now(UTC),
    }
    content = _environment(language).get_template(template).render(standing | values)
    return HTMLResponse(content, status, HEADERS)


def _barred(words: Words, call: Call | None, needed: Role) -> Markup:
    """Say why the viewer can't change what needs a role; nothing where they can."""
    if call is not None and call.read_only:
        return words.gettext("The service is read-only: it shows what is, and nothing can be changed here.")
    if call is None or not call.may(needed):
        return words.gettext("This needs the role %(role)s.", role=saying.role(words, needed))
    return Markup()


def words_for(request: Request) -> Words:
    """Return the texts of the viewer's language."""
    return words_of(language_of(request))


def redirect(request: Request, name: str, /, query: Mapping[str, str] | None = None, **parameters: object) -> Response:
    """Return what brings a browser to a page after a change, so that to load it again changes nothing again."""
    path = path_to(request, name, **parameters)
    return RedirectResponse(f"{path}?{urlencode(query)}" if query else path, 303)


def path_to(request: Request, name: str, /, **parameters: object) -> str:
    """Return the path of a route, with what a proxy or a host's mount puts before it; ids may hold any character."""
    known: dict[tuple[str, ...], str] = request.scope.setdefault(_PATHS, {})
    key = (name, *parameters)
    if key not in known:  # a page names a route for each of its rows, and to find one all are gone through
        known[key] = request.url_for(name, **{each: f"{{{each}}}" for each in parameters}).path
    return known[key].format_map({each: quote(str(value), safe="") for each, value in parameters.items()})


def render_problem(request: Request, problem: Problem) -> HTMLResponse:
    """Show a problem to a person."""
    names = ("source", "job_id", "operation_id")
    back = {name: request.path_params.get(name) for name in names}
    page = render(request, "problem.html", status=problem.status, problem=problem, back=back)
    page.headers.update(problem.headers)
    return page


def theme_of(request: Request) -> str:
    """Return the theme that a person chose, or else that of their system."""
    chosen = request.cookies.get(THEME_COOKIE)
    return chosen if chosen in THEMES else THEMES[0]


def here(request: Request) -> str:
    """Return the address that was asked for, to come back to."""
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


@cache
def _environment(language: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("unstick.console"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # people read it, and as it was written
    words = words_of(language)
    said = (
        saying.duration,
        saying.said,
        saying.ago,
        saying.reason,
        saying.meaning,
        saying.standing,
        saying.state,
        saying.action,
        saying.outcome,
        saying.call_name,
        saying.entry_name,
        saying.parameter,
        saying.reason_word,
        saying.witness,
        saying.state_word,
    )
    environment.globals.update({each.__name__: partial(each, words) for each in said})
    environment.globals.update(
        _=words.gettext,
        ngettext=words.ngettext,
        number=words.number,
        clock=saying.clock,
        worker=saying.worker,
        instant=saying.instant,
        seconds=lambda value: timedelta(seconds=float(value)),
        sentence=lambda found, now: sentences.stuck_sentence(words, sentences.case_of(found, now)),
        trouble=partial(health.trouble_sentence, words),
        watch_sentences=partial(health.watch_sentences, words),
        problem_title=partial(problems.problem_title, words),
        problem_sentence=partial(problems.problem_sentence, words),
        role_word=partial(saying.role, words),
        step=lambda found: sentences.next_step(words, found.policy, found.finding.outlook),
    )
    return environment
