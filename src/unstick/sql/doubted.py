"""Words that a mapping names, that no job holds, and that the table contradicts: a mistyped one finds no job.

A word that nobody uses at the moment is no matter for doubt. It is one where a CHECK says that it can't be stored, or
where jobs hold another word that nobody mapped and that is nearly the same, or means the same.

Known weakness: only the newest jobs are looked at, as for words that nobody mapped.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from unstick.domain.doubted_word import DoubtedWord
from unstick.domain.job import JobState
from unstick.sql.connections import Connections
from unstick.sql.facts import table_facts
from unstick.sql.mapping import JobTable, MappedTable, plain_word
from unstick.sql.proposal import state_meant
from unstick.sql.reflection import mapped_table
from unstick.sql.unmapped import NEWEST_JOBS

_MOST_WORDS = 100
_NEAR = 0.75
"""How much of two words must be the same for one to be a slip of the other: `faild`, `runing`, `quued`."""


class HeldWord(NamedTuple):
    """A word that jobs hold."""

    word: object
    is_mapped: bool
    """As the database compares words."""


async def doubted_words(connections: Connections, declared: JobTable) -> tuple[DoubtedWord, ...]:
    """Return the words that a mapping names and the table contradicts."""
    async with connections.reading() as (connection, _):
        mapped = await mapped_table(connections, connection, declared)
        held = [HeldWord(word, bool(named)) for word, named in await connection.execute(held_words(mapped))]
    return tuple(_doubted(mapped, held, _allowed(mapped)))


def held_words(mapped: MappedTable) -> sa.Select[Any, bool]:
    """Read the words of the newest jobs, the commonest first, and whether the mapping names them."""
    newest, _ = mapped.newest_first
    state = mapped.column("state").label("state")
    sample = sa.select(state).select_from(mapped.table).order_by(newest.desc()).limit(NEWEST_JOBS).subquery("newest")
    word = sample.c.state
    is_mapped = sa.case((word.in_(mapped.words(*JobState)), 1), else_=0)
    commonest = sa.func.count().desc()
    return (
        sa.select(word, is_mapped).where(word.is_not(None)).group_by(word).order_by(commonest, word).limit(_MOST_WORDS)
    )


def _allowed(mapped: MappedTable) -> tuple[str, ...]:
    """Return the only words that can be stored, none where the table doesn't say."""
    column = table_facts(mapped.table).column(mapped.declared.columns.get("state"))
    return tuple(map(str, column.values)) if column is not None and column.closed else ()


def _doubted(mapped: MappedTable, held: Sequence[HeldWord], allowed: Sequence[str]) -> Iterator[DoubtedWord]:
    shown = {plain_word(each.word) for each in held if each.is_mapped}
    others = [str(each.word).rstrip() for each in held if not each.is_mapped]
    for state, words in mapped.declared.states.items():
        for word in map(str, words):
            if plain_word(word) in shown:
                continue
            if allowed and word not in allowed:
                yield DoubtedWord(word=word, state=state, allowed=tuple(allowed))
            elif not allowed and (meant := _meant(word, state, others)):
                yield DoubtedWord(word=word, state=state, held=meant)


def _meant(word: str, state: JobState, others: Sequence[str]) -> tuple[str, ...]:
    """Return those of the words that nobody mapped which this one was most likely meant to be."""
    near = difflib.get_close_matches(plain_word(word), map(plain_word, others), cutoff=_NEAR)
    return tuple(other for other in others if plain_word(other) in near or state_meant(other) is state)
