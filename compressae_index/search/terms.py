"""Terms of texts, and those that are typical of some texts among all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import BoolArray, RowArray
from compressae_index.search.sides import places_in_runs

if TYPE_CHECKING:
    import scipy.sparse as sp

# Words, also with inner apostrophes and hyphens; single letters and signs are none.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# A pair of words is a term unless one of them is in more than this share of the texts, and in more than this
# many: "kidney failure", but not "of kidney".
COMMON_SHARE, COMMON_TEXTS = 0.02, 2
# Terms that stand in a single text of a group are none of the group.
FEWEST_TEXTS = 2
# Terms of the vocabulary that pass for typical of a group by chance, at most, where its texts have equal
# weights; weak texts weigh less. On the shipped data, 85 % of the sides + get names by this, and 0.7 % of the
# sides -, which are noise there; with 100 it is 93 % and 1.6 %.
BY_CHANCE = 10
# Terms of a name.
TERMS = 3
# Candidates for them, of which many are forms of others.
CANDIDATES = 20


class Vocabulary(NamedTuple):
    """Which texts hold which terms."""

    terms: list[str]
    held: sp.csr_array[Any, tuple[int, int]]
    """(n_texts, n_terms) float32, 1 where a text holds a term."""
    texts_of: npt.NDArray[np.float64]
    """(n_terms,) texts that hold each term."""
    eligible: BoolArray
    """(n_terms,) the terms that may be part of a name."""


def vocabulary(texts: Iterable[str | Sequence[str] | None]) -> Vocabulary:
    """The words and pairs of words of texts, in small letters, or their tags as they are; None has none."""
    import scipy.sparse as sp

    number_of: dict[str, int] = {}
    numbers: list[int] = []
    ends = [0]
    for text in texts:
        numbers += [number_of.setdefault(term, len(number_of)) for term in _terms(text)]
        ends.append(len(numbers))
    ones = np.ones(len(numbers), dtype=np.float32)
    shape = (len(ends) - 1, max(len(number_of), 1))
    held = sp.csr_array((ones, np.array(numbers, dtype=np.int64), np.array(ends)), shape=shape)
    texts_of = np.bincount(held.indices, minlength=shape[1]).astype(np.float64)
    terms = list(number_of)
    common = max(COMMON_SHARE * shape[0], COMMON_TEXTS)
    eligible = texts_of >= FEWEST_TEXTS
    for number, term in enumerate(terms):
        one, glue, other = term.partition("\t")
        if glue:
            eligible[number] &= max(texts_of[number_of[one]], texts_of[number_of[other]]) <= common
    return Vocabulary([term.replace("\t", " ") for term in terms], held, texts_of, eligible)


def _terms(text: str | Sequence[str] | None) -> list[str]:
    """The terms of a text, each once and in their order; a tab joins those of a pair."""
    if text is None:
        return []
    if not isinstance(text, str):
        return list(dict.fromkeys(" ".join(tag.split()) for tag in text if tag.strip()))
    words = _WORD.findall(text.lower())
    pairs = [f"{one}\t{other}" for one, other in pairwise(words) if len(one) > 1 and len(other) > 1]
    return list(dict.fromkeys([*(word for word in words if len(word) > 1), *pairs]))


def typical(words: Vocabulary, groups: sp.csr_array[Any, tuple[int, int]]) -> list[list[str]]:
    """The terms that tell each group of texts from all texts, the most typical first; TERMS at most.

    The score of a term is half of Dunning's log-likelihood ratio (Accurate methods for the statistics of
    surprise and coincidence, 1993) of its weighted count c and the count e that its share of all texts would
    give: c log(c / e) - c + e. exp(-score) bounds the chance of such a count. A term counts if it is in two
    texts of the group, and its score is above that which about BY_CHANCE of all terms would reach by chance.

    Args:
        words: the terms of all texts.
        groups: (n_groups, n_texts) the weights of the texts of each group, at most 1; 0 for the others.
    """
    counts = groups.sign() @ words.held
    weighted = groups @ words.held
    for each in (counts, weighted):
        each.sort_indices()
    row = np.repeat(np.arange(groups.shape[0]), np.diff(weighted.indptr))
    expected = groups.sum(axis=1)[row] * words.texts_of[weighted.indices] / max(words.held.shape[0], 1)
    c = weighted.data.astype(np.float64)
    scores = c * np.log(c / expected) - c + expected
    least = np.log1p(words.eligible.sum() / BY_CHANCE)
    kept = (c > expected) & (counts.data >= FEWEST_TEXTS) & words.eligible[weighted.indices]
    kept &= scores > least
    return _chosen(words.terms, row[kept], weighted.indices[kept], scores[kept], groups.shape[0])


def _chosen(
    terms: list[str], groups: RowArray, numbers: RowArray, scores: npt.NDArray[np.float64], n_groups: int
) -> list[list[str]]:
    """The best terms of each group, without other forms of the same words."""
    names = np.array([terms[number] for number in numbers], dtype=object)
    by_name = np.argsort(names, kind="stable")
    longest = np.array([len(name) for name in names], dtype=np.int64)
    # Of equal scores the longer term, as a pair says more than its words; then the first in the alphabet.
    order = by_name[np.lexsort((-longest[by_name], -np.round(scores[by_name], 6), groups[by_name]))]
    order = order[places_in_runs(groups[order]) < CANDIDATES]
    chosen: list[list[str]] = [[] for _ in range(n_groups)]
    for place in order.tolist():
        mine, term = chosen[groups[place]], names[place]
        if len(mine) < TERMS and not any(_alike(term, other) for other in mine):
            mine.append(term)
    return chosen


def _alike(one: str, other: str) -> bool:
    """Whether two terms share a word, or one that differs by an ending of two letters at most."""
    return any(
        a == b or (abs(len(a) - len(b)) <= 2 and min(len(a), len(b)) > 2 and _begins(a, b))
        for a in one.lower().split()
        for b in other.lower().split()
    )


def _begins(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
