"""The sentences about a source: why it can't be read, and what is amiss with the watch over it."""

from markupsafe import Markup

from unstick.console.language import Words
from unstick.console.saying import ago
from unstick.domain.health import Check, Health, WatchRecord
from unstick.pipeline.health import Trouble
from unstick.pipeline.overview import Overview

_UPGRADE, _STUCK, _CURRENT = (
    Markup("<code>{}</code>").format(command)
    for command in ("unstick db upgrade", "unstick stuck", "unstick db current")
)


def trouble_sentence(words: Words, trouble: Trouble) -> Markup:
    """Say why a source can't be read, and what to do."""
    _ = words.gettext
    return {
        Trouble.TABLES: _("Unstick's own tables are missing or behind: run %(command)s.", command=_UPGRADE),
        Trouble.CONFIGURATION: _("Its configuration doesn't fit: %(command)s says what is wrong.", command=_STUCK),
        Trouble.NO_ANSWER: _("Its database, or the ledger's, doesn't answer."),
        Trouble.FAILURE: _("It fails, and the log says how. %(command)s tells of its tables.", command=_CURRENT),
    }[trouble]


def watch_sentences(words: Words, found: Overview) -> tuple[Markup, ...]:
    """Say what is amiss with the watch over a source; nothing where it is kept."""
    late = [
        _late(words, check, found.watch)
        for check in found.checks
        if check.health is Health.FAIL and check.name in ("observation", "sweep")
    ]
    failed = words.gettext("The last try failed, and the log says why.")
    if found.watch is not None and found.watch.problem is not None:
        return (*late, failed)
    return (*late, words.gettext("Is the runner running?")) if late else ()


def _late(words: Words, check: Check, watch: WatchRecord | None) -> Markup:
    _ = words.text
    if watch is None:
        return _("It was never observed.")
    if check.name == "observation":
        said = (
            _("It was never observed since the watch began %(ago)s.")
            if watch.observed_at is None
            else _("It was last observed %(ago)s.")
        )
        return said % {"ago": ago(words, watch.observed_at or watch.began_at, watch.at)}
    said = (
        _("It was never swept since the watch began %(ago)s.")
        if watch.swept_at is None
        else _("It was last swept %(ago)s.")
    )
    return said % {"ago": ago(words, watch.swept_at or watch.began_at, watch.at)}
