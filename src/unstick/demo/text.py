"""What the demo platform's jobs do: extractive writing from real English, deterministic and without I/O.

The material is the language reference that every CPython carries for `help()`. Sentences are ranked as in TextRank
(Mihalcea and Tarau, 2004): each votes for those most like it, and votes of the well-voted count for more. Comparing
each sentence with every other makes the work grow with the square of `size`.
"""

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import groupby
from operator import attrgetter
from pydoc_data.topics import topics

_PROSE = re.compile(r"[A-Z\"*].*[.!?:]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")
_WORD = re.compile(r"[a-z]{3,}")

_COMMON_SHARE = 0.04
"""A word in a larger share of all sentences than this ("the", "object") tells nothing about one of them."""
_VOTES = 8
"""How many others a sentence votes for; this bounds the memory, which would otherwise grow as the work does."""
_ROUNDS = 30
_DAMPING = 0.85
_LINKED_PERCENT = 90
"""The progress at which every sentence has been compared; what remains is quick."""
_SECTIONS = 6
_ALIKE = 0.25


class Kind(StrEnum):
    """What can be written."""

    SUMMARY = "summary.short"
    OUTLINE = "thesis.outline"
    THESIS = "thesis.full"


_CONTEXT = {Kind.SUMMARY: 0, Kind.OUTLINE: 1, Kind.THESIS: 4}
"""How many sentences on either side are read with each: more sense, and more work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A sentence of the material; `place` is its number in reading order."""

    topic: str
    text: str
    words: frozenset[str]
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What was written, and how many words were read and written for it."""

    text: str
    words: int


Steps = Generator[int, None, Draft]
"""The work in small steps: yields the progress in percent after each, and returns the draft."""


def write(kind: Kind, prompt: str, size: int) -> Steps:
    """Write about a prompt from the `size` sentences of the material that are nearest to it."""
    sentences = gather(prompt, size, _CONTEXT[kind])
    space = _Space(sentences)
    votes = yield from _link(space)
    ranks = yield from _rank(votes)
    text = _PAGES[kind](space, ranks)
    return Draft(text=text, words=_count_words(text) + sum(_count_words(one.text) for one in sentences))


def gather(prompt: str, size: int, context: int) -> tuple[Sentence, ...]:
    """Return `size` sentences, those of the topics nearest to the prompt first; fewer where there are no more.

    Each bears the words of as many sentences before and after it as `context` says.
    """
    asked = _words(prompt)
    nearest = sorted(library(), key=lambda topic: (-_nearness(topic, asked), topic[0].topic))
    chosen = [sentence for topic in nearest for sentence in topic][:size]
    around = (chosen[max(0, place - context) : place + context + 1] for place in range(len(chosen)))
    return tuple(
        replace(sentence, place=place, words=frozenset().union(*(near.words for near in nearby)))
        for place, (sentence, nearby) in enumerate(zip(chosen, around, strict=True))
    )


@cache
def library() -> tuple[tuple[Sentence, ...], ...]:
    """Return all of the material, sentences by topic, without the words that are everywhere."""
    read = [(topic, text, _words(text)) for topic in sorted(topics) for text in _sentences(topics[topic])]
    common = {word for word, n in _spread(words for _, _, words in read).items() if n > _COMMON_SHARE * len(read)}
    sentences = (Sentence(topic=topic, text=text, words=words - common) for topic, text, words in read)
    return tuple(tuple(group) for _, group in groupby(sentences, key=attrgetter("topic")))


class _Space:
    """Sentences as directions in the space of their words, rare words counting for more."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = sentences
        spread = _spread(sentence.words for sentence in sentences)
        self.weights = {word: math.log1p(len(sentences) / n) ** 2 for word, n in spread.items()}
        self.lengths = [math.sqrt(self._weight(sentence.words)) or 1.0 for sentence in sentences]

    def likeness(self, one: Sentence, other: Sentence) -> float:
        """Return the cosine of the angle between two sentences: 0 for no word in common, 1 for the same words."""
        shared = one.words & other.words
        if not shared:
            return 0.0
        return self._weight(shared) / (self.lengths[one.place] * self.lengths[other.place])

    def keywords(self, sentences: Iterable[Sentence], limit: int) -> list[str]:
        counts = Counter(word for sentence in sentences for word in sorted(sentence.words))
        return heapq.nsmallest(limit, counts, key=lambda word: (-counts[word] * self.weights[word], word))

    def _weight(self, words: Iterable[str]) -> float:
        # Sets have no order that lasts from one process to the next, and a plain sum of floats depends on it.
        return math.fsum(map(self.weights.__getitem__, words))


Votes = Sequence[Sequence[tuple[int, float]]]
"""For each sentence the places it votes for, with the share of its vote that each gets."""


def _link(space: _Space) -> Generator[int, None, Votes]:
    votes = []
    for sentence in space.sentences:
        votes.append(_votes(space, sentence))
        yield _LINKED_PERCENT * len(votes) // len(space.sentences)
    return votes


def _votes(space: _Space, voter: Sentence) -> list[tuple[int, float]]:
    likeness = ((space.likeness(voter, other), -other.place) for other in space.sentences if other is not voter)
    best = [(-place, alike) for alike, place in heapq.nlargest(_VOTES, likeness) if alike > 0]
    total = math.fsum(alike for _, alike in best)
    return [(place, alike / total) for place, alike in best]


def _rank(votes: Votes) -> Generator[int, None, list[float]]:
    ranks = [1.0] * len(votes)
    for number in range(1, _ROUNDS + 1):
        received = [1 - _DAMPING] * len(votes)
        for rank, given in zip(ranks, votes, strict=True):
            for place, share in given:
                received[place] += _DAMPING * rank * share
        ranks = received
        yield _LINKED_PERCENT + (99 - _LINKED_PERCENT) * number // _ROUNDS
    return ranks


def _summary(space: _Space, ranks: Sequence[float]) -> str:
    best = _by_rank(space.sentences, ranks)[:5]
    keywords = ", ".join(space.keywords(space.sentences, 8))
    return f"{_paragraph(best)}\n\nKeywords: {keywords}."


def _outline(space: _Space, ranks: Sequence[float]) -> str:
    sections = _sections(space, ranks)
    return "\n".join(f"{n}. {_heading(space, part)}: {part[0].text}" for n, part in enumerate(sections, 1))


def _thesis(space: _Space, ranks: Sequence[float]) -> str:
    chapters = [f"# {_heading(space, part)}\n\n{_paragraph(part[:12])}" for part in _sections(space, ranks)]
    return "\n\n".join([f"# Abstract\n\n{_summary(space, ranks)}", *chapters])


_PAGES: dict[Kind, Callable[[_Space, Sequence[float]], str]] = {
    Kind.SUMMARY: _summary,
    Kind.OUTLINE: _outline,
    Kind.THESIS: _thesis,
}


def _sections(space: _Space, ranks: Sequence[float]) -> list[list[Sentence]]:
    """Part the sentences around a few that are well ranked and unlike each other; the best of each part is first."""
    ordered = _by_rank(space.sentences, ranks)
    centres: list[Sentence] = []
    for sentence in ordered:
        if len(centres) < _SECTIONS and all(space.likeness(sentence, centre) < _ALIKE for centre in centres):
            centres.append(sentence)
    parts: dict[int, list[Sentence]] = {centre.place: [centre] for centre in centres}
    for sentence in ordered:
        nearest = max(centres, key=lambda centre: space.likeness(sentence, centre))
        if sentence is not nearest:
            parts[nearest.place].append(sentence)
    return list(parts.values())


def _heading(space: _Space, part: Sequence[Sentence]) -> str:
    return ", ".join(space.keywords(part, 3)).capitalize()


def _paragraph(sentences: Iterable[Sentence]) -> str:
    return " ".join(sentence.text for sentence in sorted(sentences, key=attrgetter("place")))


def _by_rank(sentences: Sequence[Sentence], ranks: Sequence[float]) -> list[Sentence]:
    return sorted(sentences, key=lambda sentence: (-ranks[sentence.place], sentence.place))


def _sentences(page: str) -> Iterator[str]:
    """Yield a page's sentences, without its headings, grammar and code."""
    for paragraph in page.split("\n\n"):
        said = " ".join(paragraph.split())
        if _PROSE.fullmatch(said) and "::=" not in said:
            yield from _SENTENCE_END.split(said)


def _nearness(topic: Sequence[Sentence], asked: frozenset[str]) -> float:
    return sum(len(sentence.words & asked) for sentence in topic) / len(topic)


def _spread(sentences: Iterable[frozenset[str]]) -> Counter[str]:
    """Count in how many sentences each word stands."""
    return Counter(word for words in sentences for word in words)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _count_words(text: str) -> int:
    return len(text.split())
