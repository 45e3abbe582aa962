"""What a message about alerts says, by templates that can be overridden.

A template may print, branch and loop over what it is given, and nothing else: it calls nothing, sets nothing and
reaches no attribute of a Python object, so that it ends soon. One that fails is told in the log, and the default is
taken in its place: that an alert is worded badly is no reason to keep it back.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unstick.config import AlertSettings
from unstick.domain.alert import Change, Delivery, Happened
from unstick.domain.wording import say_duration, say_instant

_log = logging.getLogger("unstick.alerts")

MOST_ROUNDS = 5_000
"""How many times the loops of a template go round, all together."""
LONGEST_TITLE = 200
LONGEST_BODY = 20_000
LISTED = 20
"""Of so many alerts a digest's text tells; a webhook's `alerts` has them all."""

TITLE = "{{ word }}: {{ what }} in {{ where }}{% if jobs %}, {{ jobs }} job{{ '' if jobs == 1 else 's' }}{% endif %}"
BODY = """\
{% if change == 'resolved' %}It is over since {{ at }}, after {{ lasted }}. It was: {{ sentence }}
{% elif change == 'again' %}{{ sentence }}
It is still there, since {{ opened_at }}.
{% else %}{{ sentence }}
{% endif %}"""
DIGEST_TITLE = "{{ number }} alerts: {{ opened }} new, {{ again }} still there, {{ resolved }} resolved"
DIGEST_BODY = """\
{% for each in changes %}- {{ each.word }}: {{ each.sentence }}
{% endfor %}{% if left %}and {{ left }} more: `unstick alert list`
{% endif %}"""

_WORDS = {Happened.OPENED: "Alert", Happened.AGAIN: "Still there", Happened.RESOLVED: "Resolved"}


class Message(NamedTuple):
    """What a person reads."""

    title: str
    body: str


class Templates:
    """Words deliveries.

    Args:
        settings: the templates that override the defaults.
    """

    def __init__(self, settings: AlertSettings) -> None:
        self._single = (settings.title, settings.body)
        self._digest = (settings.digest.title, settings.digest.body)

    def message(self, delivery: Delivery) -> Message:
        """Return a delivery's words."""
        facts: Mapping[str, object]
        if delivery.is_digest:
            facts, (title, body) = _digest_facts(delivery), self._digest
            words = (
                _worded("digest.title", title, DIGEST_TITLE, facts),
                _worded("digest.body", body, DIGEST_BODY, facts),
            )
        else:
            facts, (title, body) = change_facts(delivery.changes[0]), self._single
            words = _worded("title", title, TITLE, facts), _worded("body", body, BODY, facts)
        line = "".join(each for each in " ".join(words[0].split()) if each.isprintable())
        test = "Test of Unstick's alerts: " if delivery.is_test else ""
        return Message(f"{test}{line}"[:LONGEST_TITLE], words[1].strip()[:LONGEST_BODY])


def change_facts(change: Change) -> dict[str, object]:
    """Return what is told of a change, by the names that templates and webhooks know."""
    alert = change.alert
    source, queue, what = alert.subject
    at = alert.resolved_at or alert.seen_at
    return {
        "id": alert.id,
        "change": change.what.value,
        "word": _WORDS.get(change.what, change.what.value),
        "source": source,
        "queue": queue,
        "where": f"source {source!r}" if queue is None else f"queue {queue!r} of source {source!r}",
        "what": what.value,
        "jobs": alert.jobs,
        "sentence": alert.sentence,
        "opened_at": say_instant(alert.opened_at),
        "at": say_instant(at),
        "lasted": say_duration(at - alert.opened_at),
    }


def _digest_facts(delivery: Delivery) -> dict[str, object]:
    counts = Counter(change.what for change in delivery.changes)
    return {
        "number": len(delivery.changes),
        **{what.value: counts[what] for what in _WORDS},
        "changes": [change_facts(change) for change in delivery.changes[:LISTED]],
        "left": max(0, len(delivery.changes) - LISTED),
    }


def _worded(name: str, said: str | None, default: str, facts: Mapping[str, object]) -> str:
    if said is not None:
        try:
            return _render(said, facts)
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            _log.warning("The template `%s` of [alerts] fails, and the default is taken: %s", name, error)
    return _render(default, facts)


def _render(template: str, facts: Mapping[str, object]) -> str:
    parts: list[str] = []
    length = 0
    for part in _Sandbox().from_string(template).generate(facts):
        parts.append(part)
        length += len(part)
        if length > LONGEST_BODY:
            break
    return "".join(parts)


_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For, nodes.CondExpr,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Filter, nodes.Test, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.List, nodes.Tuple, nodes.Concat, nodes.Add, nodes.Sub, nodes.Neg, nodes.Keyword,
)  # fmt: skip
_FILTERS = (
    "upper", "lower", "title", "capitalize", "trim", "length", "count", "join", "default", "d", "first", "last", "list",
    "tojson", "int", "round", "string", "truncate", "selectattr", "rejectattr", "sort", "unique",
)  # fmt: skip
_BOUNDED = "_bounded"


class _Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one rendering, in which nothing can be called and loops end."""

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in _FILTERS} | {_BOUNDED: self._bounded}
        self._left = MOST_ROUNDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Refuse what a template may not do, and count the rounds of its loops."""
        template = super()._parse(source, name, filename)
        for node in (template, *template.find_all(nodes.Node)):
            if not isinstance(node, _ALLOWED) or (isinstance(node, nodes.For) and node.recursive):
                raise SecurityError(f"it may print, branch and loop, but not use {type(node).__name__.lower()}")
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _BOUNDED, [], [], None, None, lineno=loop.lineno)
        return template

    def _bounded(self, items: Iterable[object]) -> Iterator[object]:
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise SecurityError(f"its loops go round more than {MOST_ROUNDS} times")
            yield item

    def getattr(self, obj: object, attribute: str) -> object:
        """Look a name up in what is given; of Python's objects only the counters of a loop have attributes here."""
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: object, argument: object) -> object:
        """Look an item up, and never an attribute in its place."""
        given: Any = obj if isinstance(obj, Mapping | Sequence) else {}
        try:
            return given[argument]
        except (LookupError, TypeError):
            return self.undefined(obj=obj, name=str(argument))

    def is_safe_callable(self, obj: object) -> bool:
        """Let nothing be called."""
        del obj
        return False
