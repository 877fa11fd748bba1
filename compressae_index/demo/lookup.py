"""Texts by words: what was typed becomes one of the texts that there are."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import takewhile
from typing import Final

import numpy as np
import numpy.typing as npt

# Words of the texts that a beginning stands for, at most.
COMPLETIONS: Final = 50


class Lookup:
    """Finds the texts that share the rarest words with what was typed."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        holders: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            for word in set(_words(text)):
                holders.setdefault(word, []).append(number)
        self._holders = {word: np.array(numbers) for word, numbers in holders.items()}
        self._words = sorted(holders)
        self._lengths = np.array([len(text) for text in texts])
        self._numbers = {text: number for number, text in reversed(list(enumerate(texts)))}

    def exactly(self, typed: str) -> int | None:
        """The number of the text that was typed as it is; None if there is none."""
        return self._numbers.get(typed)

    def nearest(self, typed: str, most: int) -> list[int]:
        """Numbers of texts by the words they share, the rarer the better, then the shorter text.

        The last word may be unfinished. Texts that share no word are left out.
        """
        words = _words(typed)
        scores = np.zeros(len(self.texts))
        for place, word in enumerate(words):
            rows = self._holding(word, is_last=place == len(words) - 1)
            if len(rows):
                scores[rows] += np.log1p(len(self.texts) / len(rows))
        best = np.lexsort((self._lengths, -scores))[:most]
        return [int(number) for number in best if scores[number] > 0]

    def _holding(self, word: str, *, is_last: bool) -> npt.NDArray[np.int64]:
        """Numbers of the texts that hold a word, or for the last one also a word that begins with it."""
        words = [word] if word in self._holders else []
        if is_last:
            place = bisect_left(self._words, word)
            begun = takewhile(lambda each: each.startswith(word), self._words[place : place + COMPLETIONS])
            words = list(begun)
        rows = [self._holders[each] for each in words]
        return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
