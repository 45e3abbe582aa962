"""Pages: a template, in the viewer's language and theme, with the headers that let nothing but our own files run."""

from functools import cache, partial
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from unstick import __version__
from unstick.api.call import call_of
from unstick.api.problems import Problem
from unstick.console.assets import assets
from unstick.console.language import LANGUAGES, language_of, words_of

SESSION = "unstick.session"
"""Where a request's scope says by which session of ours it came."""
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
    known), `signed_in` (whether by a session of ours, which can be ended), `language`, `theme`, `here` (the address
    asked for, to come back to) and gettext's functions.
    """
    call = call_of(request)
    page = _environment(language_of(request)).get_template(template)
    content = page.render(
        path=partial(path_to, request),
        asset=lambda name: path_to(request, "console.asset", name=assets()[name].name),
        viewer=call.actor if call is not None and call.is_known else None,
        role=None if call is None else call.role,
        signed_in=SESSION in request.scope,
        language=language_of(request),
        languages=LANGUAGES,
        theme=theme_of(request),
        themes=THEMES,
        here=here(request),
        version=__version__,
        **values,
    )
    return HTMLResponse(content, status, HEADERS)


def path_to(request: Request, name: str, /, **parameters: object) -> str:
    """Return the path of a route, with what a proxy or a host's mount puts before it; ids may hold any character."""
    quoted = {key: quote(str(value), safe="") for key, value in parameters.items()}
    return request.url_for(name, **quoted).path


def render_problem(request: Request, problem: Problem) -> HTMLResponse:
    """Show a problem to a person."""
    page = render(request, "problem.html", status=problem.status, problem=problem)
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
    words = words_of(language)
    environment.globals.update(_=words.gettext, ngettext=words.ngettext)
    return environment
