"""Names of latents: made of the texts of the documents that hold them most strongly, kept, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.conversion import as_list, is_missing
from compressae_index.errors import DimensionError, InputError
from compressae_index.persistence import NewFile
from compressae_index.progress import track
from compressae_index.search.sides import SIGNS, Strongest, side
from compressae_index.search.terms import typical, vocabulary

Labels: TypeAlias = dict[str, str]
"""Names by side, such as 12+; sides without a name are missing."""

Namer: TypeAlias = Callable[[list[Any]], str]
"""Names a side by the texts, or lists of tags, of its strongest documents, the strongest first."""

# The file of an index in which they are saved.
FILE = "labels.json"
# The strongest documents that a name is made of.
STRONGEST = 20
# A side whose strongest value is less than this share of the latent's is no feature of its own: such values
# correct what other latents of a code add up to.
LEAST_SHARE = 0.5

_SIDE = re.compile(r"(0|[1-9][0-9]{0,4})[+-]")


def check_labels(labels: Any, n_latents: int) -> Labels:
    """Names by side, as a dict of its own.

    Raises:
        InputError: a key that is no side of one of the latents, or a name that is no text.
    """
    if not isinstance(labels, Mapping):
        msg = f"labels must be names by side, such as {{'12+': 'kidney'}}, got {type(labels).__name__}"
        raise InputError(msg)
    for key, name in labels.items():
        found = _SIDE.fullmatch(key) if isinstance(key, str) else None
        if found is None or int(found[1]) >= n_latents:
            msg = f"labels are of latents below {n_latents} with their sign, such as '12+', got {key!r:.100}"
            raise InputError(msg)
        if not isinstance(name, str):
            msg = f"the label of {key} must be a string, got {name!r:.100}"
            raise InputError(msg)
    return dict(labels)


def labels_file(labels: Labels | None) -> dict[str, NewFile]:
    """The file of an index that holds names, as `persistence.write` takes it."""
    if labels is None:
        return {}
    ordered = dict(sorted(labels.items(), key=lambda item: (int(item[0][:-1]), item[0])))
    text = json.dumps(ordered, indent=0, ensure_ascii=False).encode(errors="replace")
    return {FILE: NewFile(lambda path, advance: advance(path.write_bytes(text)), len(text))}


def stored_labels(files: Mapping[str, Path], n_latents: int) -> Labels | None:
    """Names from the files of an index, or None.

    Raises:
        ValueError: the file holds something else.
    """
    if FILE not in files:
        return None
    return check_labels(json.loads(files[FILE].read_text(encoding="utf-8")), n_latents)


def replaced(labels: Labels, latents: Sequence[int], new: Labels) -> Labels:
    """Names in which those of some latents are others."""
    renamed = {side(latent, sign) for latent in latents for sign in SIGNS}
    return {key: name for key, name in labels.items() if key not in renamed} | new


def names_of(labels: Labels | None, latents: Iterable[int], values: Iterable[float]) -> tuple[str, ...]:
    """The names of latents by the signs of their values, "" for none; nothing without labels."""
    if labels is None:
        return ()
    return tuple(labels.get(side(*each), "") for each in zip(latents, values, strict=True))


class Texts:
    """Texts or lists of tags of documents: one for each in their order, or by id."""

    def __init__(self, texts: Any, ids: IdArray) -> None:
        """Checks their number.

        Raises:
            DimensionError: not one for each document.
            InputError: a single string.
        """
        self._ids = ids
        if isinstance(texts, (str, bytes)):
            msg = "texts must be one for each document, or a mapping from ids to texts, got a string"
            raise InputError(msg)
        self._texts: Any = texts if isinstance(texts, Mapping) else as_list(texts)
        if not isinstance(texts, Mapping) and len(self._texts) != len(ids):
            msg = f"{len(self._texts)} texts for {len(ids)} documents"
            raise DimensionError(msg)

    def __getitem__(self, place: int) -> str | Sequence[str] | None:
        """The text, or the tags, of a document; None if it has none.

        Raises:
            InputError: there is no such id, or it is neither text nor tags.
        """
        id_, key = self._ids[place : place + 1].tolist()[0], place
        if isinstance(self._texts, Mapping):
            key = id_
            if key not in self._texts:
                msg = f"texts hold none for id {id_!r:.100}: give None where there is none"
                raise InputError(msg)
        text = self._texts[key]
        if isinstance(text, str):
            return text
        if is_missing(text):
            return None
        tags = as_list(text) if isinstance(text, Iterable) else [text]
        if not all(isinstance(tag, str) for tag in tags):
            msg = f"the text of id {id_!r:.100} must be a string or a list of strings, got {text!r:.100}"
            raise InputError(msg)
        return tags


def labelled(
    found: Strongest, texts: Texts, wanted: Sequence[int] | None, name: Namer | None, *, progress: bool
) -> Labels:
    """Names of the sides that are features.

    Args:
        found: the strongest documents of all sides.
        texts: the documents' texts; only those in `found` are read.
        wanted: the latents to name; None for all.
        name: names a side by texts; by default terms do.
        progress: show a progress bar.

    Raises:
        InputError: a text is neither a string nor a list of strings, or a name is no string.
    """
    found, weights = _features(found)
    asked = np.unique(found.sides)
    if wanted is not None:
        asked = asked[np.isin(asked // 2, wanted)]
    names = (
        _by_texts(found, texts, asked, name, progress) if name else _by_terms(found, weights, texts, asked)
    )
    sides = [side(number // 2, "+-"[number % 2]) for number in asked.tolist()]
    return {each: text for each, text in zip(sides, names, strict=True) if text}


def _features(found: Strongest) -> tuple[Strongest, FloatArray]:
    """The documents of sides that are features, and their strengths relative to their latent's strongest."""
    if not len(found.sides):
        return found, found.strengths
    largest = np.zeros(int(found.sides.max()) // 2 + 1, dtype=np.float32)
    np.maximum.at(largest, found.sides // 2, found.strengths)
    weights = found.strengths / largest[found.sides // 2]
    of_side = np.zeros(2 * len(largest), dtype=np.float32)
    np.maximum.at(of_side, found.sides, weights)
    kept = of_side[found.sides] >= LEAST_SHARE
    return found.of(kept), weights[kept]


def _by_terms(found: Strongest, weights: FloatArray, texts: Texts, asked: RowArray) -> list[str]:
    import scipy.sparse as sp

    places, text_of = np.unique(found.places, return_inverse=True)
    words = vocabulary(texts[place] for place in places.tolist())
    among = np.isin(found.sides, asked)
    where = np.searchsorted(asked, found.sides[among]), text_of[among]
    groups = sp.csr_array((weights[among], where), shape=(len(asked), len(places)))
    return [", ".join(terms) for terms in typical(words, groups)]


def _by_texts(found: Strongest, texts: Texts, asked: RowArray, name: Namer, progress: bool) -> list[str]:
    names = []
    with track(len(asked), "naming", enabled=progress) as advance:
        for number in asked.tolist():
            mine = found.places[found.sides == number]
            given = [text for text in (texts[place] for place in mine.tolist()) if text is not None]
            label: Any = name(given)
            if not isinstance(label, str):
                msg = (
                    f"name must return a string for {side(number // 2, '+-'[number % 2])}, got {label!r:.100}"
                )
                raise InputError(msg)
            names.append(" ".join(label.split()))
            advance(1)
    return names
