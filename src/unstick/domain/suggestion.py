"""Which thresholds would fit: proposed from how long jobs took, and from those that were recovered wrongly."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from unstick.domain.aftermath import LateRuns
from unstick.domain.history import Durations, Figures
from unstick.domain.job import JobClass
from unstick.domain.policy import Policy, Rule
from unstick.domain.wording import say_duration

FEWEST_JOBS = 20
"""Fewer jobs tell nothing of their slowest ones."""

BEYOND_P99 = 1.5
"""One healthy job in a hundred runs longer than p99; half as long again keeps clear of most of those."""
NOT_AN_OUTLIER = 3
"""The longest job is kept clear of, too, unless it ran so many times as long as p99: then it may have hung."""
BEYOND_LATE = 1.25
"""A late finish is a healthy job for certain, so its length is kept clear of, with a quarter to spare."""
MATTERS = 2
"""Queues of a kind get thresholds of their own where one would be so many times another."""

_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_STEPS = ((10 * _MINUTE, _MINUTE), (_HOUR, 5 * _MINUTE), (3 * _HOUR, 15 * _MINUTE))

Threshold = Literal["running_after", "queued_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A threshold for the jobs of a kind, of a kind in one queue, or of all, and why."""

    threshold: Threshold
    kind: str | None
    queue: str | None
    current: timedelta
    proposed: timedelta | None
    """None where there are too few jobs to tell."""
    figures: Figures
    late: LateRuns | None
    why: str
    rule: Rule | None = None
    """Of the policy, the rule that governs these jobs now."""

    @property
    def changes(self) -> bool:
        """Whether another threshold than the current one is proposed."""
        return self.proposed is not None and self.proposed != self.current


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """All that is proposed, and as what it would stand in `unstick.toml`."""

    basis: str
    items: tuple[Suggestion, ...]
    toml: str
    """Empty where nothing would change."""


def suggest(durations: Durations, late: Sequence[LateRuns], policy: Policy, source: str) -> Suggestions:
    """Propose thresholds by kind, by queue where that matters, and for queued jobs all together.

    What a kind has now, and what is proposed in its place, is its own rule's where one of the policy's governs it.
    """
    late_by_kind = {each.kind: each for each in late}
    items: list[Suggestion] = []
    for figures in durations.runs:
        queues = [each for each in durations.runs_by_queue if each.kind == figures.kind and each.queue is not None]
        rules = {each.queue: policy.rule_of(source, JobClass(each.kind, each.queue)) for each in queues}
        items += _by_queue(queues, late_by_kind.get(figures.kind), policy, rules)
        # All its queues may be under one rule, though the kind as such is under none.
        rule = policy.rule_of(source, JobClass(figures.kind, None))
        rule = next(iter(rules.values())) if rules and len(set(rules.values())) == 1 else rule
        items.append(_running(figures, late_by_kind.get(figures.kind), policy, rule))
    if durations.waits is not None:
        items.append(_suggestion("queued_after", durations.waits, None, policy.queued_after))
    return Suggestions(basis=durations.basis, items=tuple(items), toml=_toml(items, policy))


def propose(figures: Figures, late: LateRuns | None) -> timedelta | None:
    """Return a threshold that healthy jobs stay clear of, None where too few tell."""
    if figures.jobs < FEWEST_JOBS:
        return None
    clear_of = [figures.p99 * BEYOND_P99]
    if figures.longest <= figures.p99 * NOT_AN_OUTLIER:
        clear_of.append(figures.longest)
    if late is not None and late.longest is not None:
        clear_of.append(late.longest * BEYOND_LATE)
    return _rounded_up(max(clear_of))


def _rounded_up(duration: timedelta) -> timedelta:
    step = next((step for limit, step in _STEPS if duration <= limit), _HOUR)
    return max(_MINUTE, -(-duration // step) * step)


def _by_queue(
    queues: Sequence[Figures], late: LateRuns | None, policy: Policy, rules: Mapping[str | None, Rule | None]
) -> list[Suggestion]:
    found = [_running(each, late, policy, rules[each.queue]) for each in queues]
    told = [(each, each.proposed) for each in found if each.proposed is not None]
    proposed = [threshold for _, threshold in told]
    if not proposed or max(proposed) < min(proposed) * MATTERS:
        return []
    return [each for each, _ in told]


def _running(figures: Figures, late: LateRuns | None, policy: Policy, rule: Rule | None) -> Suggestion:
    return _suggestion("running_after", figures, late, policy.under(rule).running_after, rule)


def _suggestion(
    threshold: Threshold, figures: Figures, late: LateRuns | None, current: timedelta, rule: Rule | None = None
) -> Suggestion:
    proposed = propose(figures, late)
    return Suggestion(
        threshold=threshold,
        kind=figures.kind,
        queue=figures.queue,
        current=current,
        proposed=proposed,
        figures=figures,
        late=late,
        why=_why(threshold, figures, late, current, proposed),
        rule=rule,
    )


def _why(
    threshold: Threshold, figures: Figures, late: LateRuns | None, current: timedelta, proposed: timedelta | None
) -> str:
    if proposed is None:
        return f"only {figures.jobs:,} succeeded in the sample, too few to propose anything from: {FEWEST_JOBS} tell"
    took = "the longest ran" if threshold == "running_after" else "the longest wait was"
    said = [f"p99 of {figures.jobs:,} jobs is {_said(figures.p99)}, {took} {_said(figures.longest)}"]
    if late is not None:
        after = "" if late.longest is None else f", after up to {_said(late.longest)}"
        said.append(f"{late.number:,} recovered job(s) finished after all{after}")
    said.append(f"{threshold} is {as_setting(current)} now" + ("" if proposed != current else ", which fits"))
    return "; ".join(said)


def _said(duration: timedelta) -> str:
    return say_duration(duration) if duration >= timedelta(seconds=1) else "less than a second"


def as_setting(duration: timedelta) -> str:
    """Say a duration as `unstick.toml` does: `90s`, `45m`, `2h`."""
    seconds = duration.total_seconds()
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:.15g}s"


def _toml(items: Sequence[Suggestion], policy: Policy) -> str:
    """Return what to paste: the policy's own thresholds first, and then the rules, the narrower ones before."""
    changed = [each for each in items if each.changes]
    general = [each for each in changed if each.kind is None]
    lines = [f"{each.threshold} = {_quoted(as_setting(each.proposed or each.current))}" for each in general]
    tables = ["[policy]\n" + "\n".join(lines)] if lines else []
    tables += [_rule(each, policy) for each in changed if each.kind is not None]
    return "\n\n".join(tables)


def _rule(suggestion: Suggestion, policy: Policy) -> str:
    """Return a rule; one for jobs that a rule governs goes before that one, and repeats what else it says of them."""
    # A rule's kind is a pattern: what is special in one stands for itself between brackets.
    matched: Mapping[str, str | None] = {"kind": suggestion.kind, "queue": suggestion.queue}
    lines = [f"{key} = {_quoted(glob.escape(word))}" for key, word in matched.items() if word is not None]
    proposed = _quoted(as_setting(suggestion.proposed or suggestion.current))
    lines.append(f"{suggestion.threshold} = {proposed}")
    if suggestion.rule is None:
        return "\n".join(["[[policy.rules]]", *lines])
    matched_by = ("source", "queue") if suggestion.queue is None else ("source",)
    matching = {name: word for name in matched_by if (word := getattr(suggestion.rule, name)) != "*"}
    said = {name: value for name, value in suggestion.rule.said.items() if name != suggestion.threshold}
    lines += [f"{name} = {_value(value)}" for name, value in (matching | said).items()]
    place = f"# Before rule {policy.rules.index(suggestion.rule) + 1}, whose other settings it repeats."
    return "\n".join([place, "[[policy.rules]]", *lines])


def _value(said: object) -> str:
    if isinstance(said, bool):
        return str(said).lower()
    if isinstance(said, int):
        return str(said)
    return _quoted(as_setting(said) if isinstance(said, timedelta) else str(said))


def _quoted(word: str) -> str:
    """Return a basic string of TOML, which is one of JSON but for the last control character."""
    return json.dumps(word, ensure_ascii=False).replace("\x7f", "\\u007f")
