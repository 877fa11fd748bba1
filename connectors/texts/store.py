"""`TextStore`: an index with the texts and metadata of its vectors."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index.arrays import FloatArray, IdArray
from compressae_index.building.training import training_settings
from compressae_index.checks import as_place, check_int, check_number, check_vectors, normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.texts.filters import Condition, has_id
from compressae_index.connectors.texts.records import (
    Place,
    Record,
    Records,
    Row,
    as_json,
    check_id,
    check_text,
)
from compressae_index.embedded.originals import check_moved
from compressae_index.errors import DimensionError, FormatError, InputError, UnknownIdError
from compressae_index.index import ALWAYS_MAPPED, CompressedIndex
from compressae_index.persistence import NewFile
from compressae_index.processes import ForkSafeLock
from compressae_index.remote import Place as Where
from compressae_index.search.index import Index
from compressae_index.search.queries import SearchResult
from compressae_index.sources.centred import less

T = TypeVar("T")
Float64: TypeAlias = npt.NDArray[np.float64]

Filter: TypeAlias = Condition | Callable[[Record], bool]
"""Which documents to search among: a condition on metadata, or a function that is called with each record."""

BUILD_AT = 10_000
"""Vectors from which on a store compresses them, unless it is told otherwise."""

# Ids that filters have found and that are kept for the next search, 8 bytes each.
_KEPT_IDS = 4_000_000
# Removed vectors take memory, which is reclaimed where they are these many more than those that are left.
_REMOVED = 1000

_KIND = "texts"
_FILE = "texts.sqlite"
# Of those that came first, which fix the unit of norms in a store without an index.
_FIRST_ROWS = 256
# In place of the index, where the directory does not hold it.
_ELSEWHERE = "elsewhere"


class Hit(NamedTuple):
    """A document that a search found."""

    record: Record
    score: float
    """As `Index.search` gives it: a squared distance where the metric of the index is "l2"."""
    similarity: float
    """The greater the nearer: the score, or 1 / (1 + score) of a squared distance."""


@dataclass(frozen=True, eq=False)
class State:
    """What a search sees beside the records."""

    index: Index | None
    """None before there is a vector."""
    is_exact: bool
    """Whether the index keeps vectors as they are, and all are compared."""


class TextStore:
    """Vectors in an index, with texts and metadata in SQLite beside it.

    A store without an index keeps vectors as they are, in a temporary file (TMPDIR), and compares all of
    them, until there are `build_at`: the change that reaches this number trains a model and builds the index,
    which takes as long as `CompressedIndex.build`. A given index is searched and changed as it is.

    Threads may share a store. A change is seen as a whole, or not at all if it raises: in a
    `CompressedIndex` vectors and texts change together. Other indexes change first; where Milvus fails in
    the middle, write the same documents again.
    """

    def __init__(
        self,
        index: Index | None = None,
        *,
        build_at: int | None = BUILD_AT,
        build: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        """An empty store.

        Args:
            index: an index without documents, which the store takes over; `of` takes one with documents. An
                index is never trained on few rows: pass `trained.empty_like()` to store as another one does.
            build_at: vectors from which on to build an index; None to keep them as they are until `build` is
                called.
            build: arguments of `CompressedIndex.build` for that, such as {"target_recall": 0.95}.
            search: arguments of `Index.search` for all searches of the index, such as {"target_recall": 0.9}.

        Raises:
            InputError: the index holds documents, or build_at is less than 2.
        """
        if index is not None and len(index):
            msg = f"the index holds {len(index)} documents without texts: pass these, too, to TextStore.of"
            raise InputError(msg)
        self._set_up(State(index, index is None), Records(), build_at, build, search)

    def _set_up(
        self,
        state: State,
        records: Records,
        build_at: int | None,
        build: Mapping[str, Any] | None,
        search: Mapping[str, Any] | None,
    ) -> None:
        self._build_at = None if build_at is None else check_int(build_at, "build_at", 2)
        self._build, self._search = dict(build or {}), dict(search or {})
        self._state, self._records = state, records
        self._filtered: dict[Condition, IdArray] = {}  # ids by filter, of this state
        self._writer = ForkSafeLock()  # of changes, held while they encode
        self._access = ForkSafeLock()  # of the records, and of the state that belongs to them

    @classmethod
    def of(
        cls,
        index: Index,
        texts: Sequence[str | None],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        search: Mapping[str, Any] | None = None,
    ) -> TextStore:
        """A store of an index that holds vectors already.

        Args:
            index: the index, which the store takes over. Its ids are those of documents, integers as text.
            texts: a text or None for each of `index.ids`, in their order.
            metadatas: metadata in the same order; none by default.
            search: as for `TextStore`.

        Raises:
            InputError: another number of texts or metadata than of vectors, or metadata that are not JSON.
        """
        ids = index.ids
        keys = range(len(ids)) if ids.dtype == object else ids.tolist()
        rows = [
            _row(Record(str(id_), text, dict(metadata)), key, searchable=True)
            for key, id_, (text, metadata) in zip(
                keys, ids.tolist(), _pairs(texts, metadatas, len(ids)), strict=True
            )
        ]
        store = cls.__new__(cls)
        store._set_up(State(index, is_exact=False), Records(), None, None, search)
        store._records.change(rows)
        return store

    @property
    def index(self) -> Index | None:
        """The index as of now, to look at: a change may put another in its place. None before the first."""
        return self._state.index

    @property
    def _metric(self) -> Metric:
        """That of the index, or of the one that is to come."""
        index = self._state.index
        metric: Metric = self._build.get("metric", "cosine") if index is None else index.metric
        return metric

    @property
    def is_exact(self) -> bool:
        """Whether the store compares all vectors, as there are too few of them for an index."""
        return self._state.is_exact

    def __len__(self) -> int:
        """Documents, with or without a vector."""
        with self._access.lock:
            return len(self._records)

    def check_room(self, ids: Sequence[str]) -> None:
        """Checks early that vectors of these ids can be stored, for callers that embed texts first.

        Raises:
            MissingExtraError: an encoder must then be trained, and torch is not installed.
        """
        with self._access.lock:
            index, is_exact = self._state.index, self._state.is_exact
            held = self._records.places(has_id(ids))
        if is_exact and self._build_at is not None:
            new = len(ids) - sum(place.searchable for place in held.values())
            if new + (0 if index is None else len(index)) >= self._build_at:
                _check_trainable(self._build)

    def write(
        self, records: Sequence[Record], vectors: Sequence[Any] | FloatArray, *, replace: bool = True
    ) -> int:
        """Adds documents, and returns how many were written.

        Args:
            records: documents with ids that differ.
            vectors: a vector of each, or None for one that no search by vectors finds.
            replace: whether documents of ids that are held are replaced, or else stay as they are.

        Raises:
            InputError: ids repeat, are no strings or of a kind that the index does not take, metadata are not
                JSON, bad vectors, or vectors of another dimension. Nothing was changed.
            MissingExtraError: an encoder must be trained, and torch is not installed. Nothing was changed.
            StorageError: the disk is full or refuses. Nothing was changed.
        """
        if len(records) != len(vectors):
            msg = f"{len(vectors)} vectors for {len(records)} documents"
            raise DimensionError(msg)
        ids = [check_id(record.id) for record in records]
        if len(set(ids)) < len(ids):
            twice = next(id_ for place, id_ in enumerate(ids) if id_ in ids[:place])
            msg = f"duplicate id {twice!r:.100} among the documents to write"
            raise InputError(msg)
        with_vector = np.array([vector is not None for vector in vectors], dtype=bool)
        given = [vector for vector in vectors if vector is not None]
        rows = check_vectors(given, may_be_empty=True, integers=True, zeros=self._metric == "l2")
        with self._writer.lock:
            with self._access.lock:
                held, fresh = self._records.places(has_id(ids)), itertools.count(self._records.next_key())
            taken = np.array([replace or id_ not in held for id_ in ids], dtype=bool)
            stored = [
                _row(record, held[record.id].key if record.id in held else next(fresh), searchable=searchable)
                for record, searchable in zip(
                    itertools.compress(records, taken), with_vector[taken].tolist(), strict=True
                )
            ]
            gone = [held[row.id] for row in stored if not row.searchable and row.id in held]
            self._change(stored, rows[taken[with_vector]], gone)
        return len(stored)

    def delete(self, ids: Sequence[str]) -> int:
        """Removes those of the ids that are held, and returns their number.

        Raises:
            StorageError: the disk is full or refuses. Nothing was changed.
        """
        return self.delete_where(has_id(ids))

    def delete_where(self, filter: Filter | None) -> int:  # noqa: A002
        """Removes the documents that a filter allows, all for None, and returns their number.

        Raises:
            StorageError: as for `delete`.
        """
        with self._writer.lock:
            condition = self._as_condition(filter)
            with self._access.lock:
                gone = [*self._records.places(condition).values()]
            if gone:
                self._change([], np.empty((0, 0), np.float32), gone, [place.key for place in gone])
            return len(gone)

    def build(self, **options: Any) -> None:
        """Builds the index now, of a store that compares all vectors.

        Args:
            options: arguments of `CompressedIndex.build`, in place of those of the store.

        Raises:
            InputError: there is no vector, or an index already.
            MissingExtraError: there is an encoder to train, and torch is not installed.
        """
        with self._writer.lock:
            index, is_exact = self._state.index, self._state.is_exact
            if not is_exact or index is None or not len(index):
                msg = "there is nothing to build: " + ("no vectors" if is_exact else "it has an index")
                raise InputError(msg)
            built = _built(index, self._build | options)
            with self._access.lock:
                self._put(State(built, is_exact=False))

    def get(self, ids: Sequence[str]) -> list[Record]:
        """The records of ids in their order, without those that are not held."""
        with self._access.lock:
            found = self._records.of(np.array([*map(str, ids)], dtype=object))
        return [found[id_] for id_ in ids if id_ in found]

    def records(self, filter: Filter | None = None) -> list[Record]:  # noqa: A002
        """All records that a filter allows, in the order in which they came."""
        condition = filter if isinstance(filter, Condition) else None
        with self._access.lock:
            found = self._records.matching(condition)
        if filter is None or isinstance(filter, Condition):
            return found
        return [record for record in found if filter(record)]  # without the lock: it may ask the store

    def search(
        self,
        query: Any,
        k: int,
        *,
        filter: Filter | None = None,  # noqa: A002
        **settings: Any,
    ) -> list[Hit]:
        """The k nearest documents of a query, best first; fewer only if fewer match.

        Args:
            query: a vector, (d,).
            k: how many; 0 gives none.
            filter: which documents to search among.
            settings: as for `Index.search`, in place of those of the store; without effect while all vectors
                are compared.

        Raises:
            InputError: a bad query, or settings that the index refuses.
        """
        check_int(k, "k", 0)
        return self._consistent(lambda state: self._found(state, query, k, filter, settings)[0])

    def diverse(
        self,
        query: Any,
        k: int,
        *,
        fetch_k: int,
        weight: float,
        filter: Filter | None = None,  # noqa: A002
        **settings: Any,
    ) -> list[Hit]:
        """Some of the fetch_k nearest documents, by maximal marginal relevance.

        Each next one has the largest weight * (cosine with the query) - (1 - weight) * (largest cosine with
        those taken before); with metric "l2", squared distances below 0 take the place of cosines, which of
        unit vectors is the same. Vectors are the original ones where the index keeps them, else
        reconstructions.

        Args:
            query: a vector, (d,).
            k: how many.
            fetch_k: the nearest documents to choose from; k if that is more.
            weight: 1 for the nearest alone, 0 for the most different ones.
            filter: as for `search`.
            settings: as for `search`.

        Raises:
            InputError: as for `search`, or a weight outside of [0, 1].
        """
        check_int(k, "k", 0)
        check_int(fetch_k, "fetch_k", 0)
        if not 0 <= check_number(weight, "weight") <= 1:
            msg = f"the weight of relevance must be between 0 and 1, got {weight}"
            raise InputError(msg)

        def chosen(state: State) -> list[Hit]:
            hits, names = self._found(state, query, max(fetch_k, k), filter, settings)
            if not hits or state.index is None:
                return []
            by_distance = state.index.metric == "l2"
            asked, vectors = check_vectors(query, zeros=by_distance), _vectors_of(state.index, names)
            return [hits[place] for place in _marginal(asked, vectors, k, weight, by_distance=by_distance)]

        return self._consistent(chosen)

    def _found(
        self, state: State, query: Any, k: int, wanted: Filter | None, settings: Mapping[str, Any]
    ) -> tuple[list[Hit], IdArray]:
        """Hits, and their ids in the index."""
        index, is_exact = state.index, state.is_exact
        nothing: tuple[list[Hit], IdArray] = [], np.empty(0, np.int64)
        if index is None or k == 0:
            return nothing
        allowed = None if wanted is None else self._allowed(wanted, index)
        if allowed is not None and not len(allowed):
            return nothing
        chosen = self._search | dict(settings)
        if is_exact:
            chosen = {"mode": "dense", "refine": max(k, len(index))}
        names, scores = _nearest(index, query, k, allowed, chosen)
        with self._access.lock:
            records = self._records.of(names)
        held = np.array([name in records for name in names.tolist()], dtype=bool)
        names, scores = names[held], scores[held]
        similarities = 1 / (1 + scores.astype(np.float64)) if index.metric == "l2" else scores
        found = zip(names.tolist(), scores.tolist(), similarities.tolist(), strict=True)
        return [Hit(records[name], score, similarity) for name, score, similarity in found], names

    def _allowed(self, wanted: Filter, index: Index) -> IdArray:
        """The ids in the index of documents that a filter allows; those of conditions are kept."""
        are_strings = index.documents.are_strings
        if not isinstance(wanted, Condition):
            condition = self._as_condition(wanted)
            with self._access.lock:
                return self._records.searchable(condition, are_strings=are_strings)
        with self._access.lock:
            found = self._filtered.pop(wanted, None)
            if found is None:
                found = self._records.searchable(wanted, are_strings=are_strings)
            self._filtered[wanted] = found  # as the last to be forgotten
            while len(self._filtered) > 1 and sum(map(len, self._filtered.values())) > _KEPT_IDS:
                del self._filtered[next(iter(self._filtered))]
            return found

    def _as_condition(self, wanted: Filter | None) -> Condition | None:
        """A filter as a condition; a function is called with every record."""
        if wanted is None or isinstance(wanted, Condition):
            return wanted
        return has_id([record.id for record in self.records(wanted)])

    def _consistent(self, read: Callable[[State], T]) -> T:
        """What a function reads of a state and its records; once more without changes if there was one."""
        state = self._state
        try:
            result = read(state)
        except UnknownIdError:
            if state is self._state:
                raise
        else:
            if state is self._state:
                return result
        with self._writer.lock:
            return read(self._state)

    def _change(
        self, stored: Sequence[Row], vectors: FloatArray, gone: Sequence[Place], drop: Sequence[int] = ()
    ) -> None:
        """Changes index and records, or neither.

        Args:
            stored: records to write.
            vectors: the vectors of those of them that are searchable.
            gone: places of records whose vectors the index loses.
            drop: keys of records to remove.
        """
        put, lost = [row for row in stored if row.searchable], [place for place in gone if place.searchable]
        index, is_exact = self._state.index, self._state.is_exact
        if put or lost:
            if index is None:
                index = _exact(vectors, self._build.get("metric", "cosine"))
            elif isinstance(index, CompressedIndex):
                index = copy.copy(index)  # a change that fails must leave the other as it is
            are_strings = index.documents.are_strings
            if lost:
                index.remove([place.id if are_strings else place.key for place in lost])
            if put:
                index.upsert(vectors, [row.id if are_strings else row.key for row in put])
            if is_exact and self._build_at is not None and len(index) >= self._build_at:
                index, is_exact = _built(index, self._build), False
            elif isinstance(index, CompressedIndex):
                _reclaim(index)
        with self._access.lock:
            self._records.change(stored, drop)
            self._put(State(index, is_exact))

    def _put(self, state: State) -> None:
        """Makes a change seen, with the records locked."""
        self._state = state
        self._filtered.clear()

    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Writes index and texts to one directory in one step: a crash leaves what was there, or all of this.

        Of an index that is not a `CompressedIndex`, and is kept elsewhere, such as in Milvus, the directory
        holds the texts alone.

        Args:
            path: the directory, or its address in a store, such as s3://bucket/items.
            progress: show a progress bar.

        Raises:
            FormatError: something other than a store of texts is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        with self._writer.lock:
            index, is_exact = self._state.index, self._state.is_exact
            contents, held = persistence.Contents({}, {}, {}, {}), isinstance(index, CompressedIndex)
            if isinstance(index, CompressedIndex):
                contents = index.contents()
            meta = {"is_exact": is_exact, "index": contents.meta if held or index is None else _ELSEWHERE}
            with self._access.lock:
                texts = NewFile(self._write_records, self._records.nbytes)
            contents = contents._replace(meta=meta, files={**contents.files, _FILE: texts})
            persistence.write(path, _KIND, **contents._asdict(), progress=progress)

    def _write_records(self, file: Path, advance: Callable[[int], object]) -> None:
        with self._access.lock:
            self._records.write(file)
            advance(self._records.nbytes)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        index: Index | None = None,
        *,
        mmap: bool = False,
        originals: Any = None,
        build_at: int | None = BUILD_AT,
        build: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> TextStore:
        """Reads what `save` wrote, and checks all of it.

        Texts are read from the directory when they are needed, and copied to the temporary folder (TMPDIR)
        before the first change.

        Args:
            path: the directory, or its address in a store.
            index: the index, if the directory holds texts alone.
            mmap: as for `CompressedIndex.load`.
            originals: as for `CompressedIndex.load`.
            build_at: as for `TextStore`.
            build: as for `TextStore`.
            search: as for `TextStore`.
            progress: show a progress bar.

        Raises:
            FormatError: the directory is missing, foreign or damaged, or the index holds other documents.
            InputError: an index is missing, or given in vain.
            StorageError: there is no permission to read it.
        """
        where = as_place(path)
        # SQLite opens its file by name, and a writer may have replaced it by then.
        state, records = persistence.unless_replaced(
            where, lambda: _read(where, index, mmap, originals, progress)
        )
        _check_same(where, state.index, records)
        store = cls.__new__(cls)
        store._set_up(state, records, build_at, build, search)
        return store


def _read(
    where: Where, index: Index | None, mmap: bool, originals: Any, progress: bool
) -> tuple[State, Records]:
    """The contents of a directory, with the index that belongs to it if that is elsewhere."""
    stored = persistence.read(where, _KIND, mmap=mmap, always_mapped=ALWAYS_MAPPED, progress=progress)
    meta = stored.meta.get("index")
    check_moved(meta if isinstance(meta, dict) else {}, originals)
    if (meta == _ELSEWHERE) != (index is not None):
        msg = "texts alone: pass their index" if index is None else "an index of its own"
        msg = f"{where} holds {msg}"
        raise InputError(msg)
    with persistence.reading(str(where)):
        records = Records.saved(stored.files[_FILE], stored.copy)
        is_exact = persistence.entry(stored.meta, "is_exact", bool)
        if index is None and meta:
            meta = persistence.entry(stored.meta, "index", dict)
            index = CompressedIndex.from_contents(
                meta, stored.arrays, stored.tensors, stored.files, originals=originals
            )
    return State(index, is_exact), records


def _check_same(where: Where, index: Index | None, records: Records) -> None:
    """Checks that an index and records are of the same documents."""
    if index is None:
        same = len(records.searchable(are_strings=False)) == 0
    else:
        ids, searchable = index.ids, records.searchable(are_strings=index.documents.are_strings)
        same = len(ids) == len(searchable) and set(ids.tolist()) == set(searchable.tolist())
    if not same:
        msg = f"the texts in {where} are not those of the index: one of them was changed without the other"
        raise FormatError(msg)


def _exact(vectors: FloatArray, metric: Metric) -> CompressedIndex:
    """An empty index for vectors as these, which it keeps as they are.

    A dictionary of the axes needs no training, and what it leaves out the last stage reads from the disk.
    """
    axes = CompresSAE.of_dictionary(np.eye(vectors.shape[1], dtype=np.float32), 1)
    return CompressedIndex.build(
        vectors[:_FIRST_ROWS], model=axes, k=1, metric=metric, originals="float32", progress=False
    ).empty_like()


def _built(index: Index, options: Mapping[str, Any]) -> CompressedIndex:
    """The index of the vectors that one of `_exact` keeps."""
    _check_trainable(options)
    ids = index.ids
    return CompressedIndex.build(_vectors_of(index, ids), ids, **{"progress": False, **options})


def _check_trainable(options: Mapping[str, Any]) -> None:
    """Checks that there is torch, if arguments of `CompressedIndex.build` ask for an encoder.

    Raises:
        InputError: settings of training are out of range.
        MissingExtraError: torch is not installed.
    """
    if options.get("model") is None:
        k, n_latents, config = (options.get(name) for name in ("k", "n_latents", "config"))
        metric, encoder = options.get("metric", "cosine"), options.get("encoder", "pursuit")
        training_settings(k, n_latents, config, metric, encoder)


def _reclaim(index: CompressedIndex) -> None:
    """Gives up the memory of removed vectors where it is most of all."""
    if len(index.documents.all_ids) > 2 * len(index) + _REMOVED:
        index.compact()


def _nearest(
    index: Index, query: Any, k: int, allowed: IdArray | None, settings: Mapping[str, Any]
) -> tuple[IdArray, FloatArray]:
    """Ids and scores of the k nearest documents, or of all that are allowed if these are fewer."""
    names, scores = _of_one(index.search(query, k, filter=allowed, **settings))
    if len(names) == k or settings.get("mode", "two_stage") != "two_stage":
        return names, scores
    count = min(k, len(index) if allowed is None else len(allowed))
    if len(names) < count:  # Milvus finds only what shares a latent with the query, of which it takes a few
        every_latent = {**settings, "query_nnz": index.model.n_latents}
        names, scores = _of_one(index.search(query, k, filter=allowed, **every_latent))
    if len(names) < count:
        missing = np.setdiff1d(index.ids if allowed is None else allowed, names)
        others = _scores_of(index, query, missing)
        order = others if index.metric == "l2" else -others
        best = np.argsort(order, kind="stable")[: count - len(names)]
        names = np.concatenate([names, missing[best]])
        scores = np.concatenate([scores, others[best]])
    return names, scores


def _scores_of(index: Index, query: Any, ids: IdArray) -> FloatArray:
    """Scores of documents by their vectors."""
    row = check_vectors(query, zeros=index.metric == "l2")
    vectors = index.documents.vectors(ids, index.model) * np.float32(index.documents.unit or 1.0)
    if index.metric == "l2":
        distances: FloatArray = np.square(vectors - less(row, index.model.center)).sum(axis=1)
        return distances
    row = normalize_rows(row) if index.metric == "cosine" else row
    products: FloatArray = vectors @ row[0]
    return products


def _of_one(result: SearchResult) -> tuple[IdArray, FloatArray]:
    """Ids and scores of the neighbours of a single query."""
    if len(result.ids) != 1:
        msg = f"a search takes one query, got {len(result.ids)}"
        raise DimensionError(msg)
    there = np.isfinite(result.scores[0])
    return result.ids[0][there], result.scores[0][there]


def _vectors_of(index: Index, ids: IdArray) -> FloatArray:
    """The vectors of ids as the index knows them, (n, d); of unit norm where it keeps none."""
    vectors = index.documents.vectors(ids, index.model) * np.float32(index.documents.unit or 1.0)
    return vectors if index.model.center is None else vectors + index.model.center


def _row(record: Record, key: int, *, searchable: bool) -> Row:
    return Row(
        key,
        check_id(record.id),
        check_text(record.text, record.id),
        as_json(record.metadata, record.id),
        check_text(record.payload, record.id),
        searchable,
    )


def _pairs(
    texts: Sequence[str | None], metadatas: Sequence[Mapping[str, Any]] | None, n: int
) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    for name, given in (("texts", texts), ("metadatas", metadatas)):
        if given is not None and (isinstance(given, str) or len(given) != n):
            msg = f"{len(given)} {name} for {n} documents"
            raise DimensionError(msg)
    nothing: Mapping[str, Any] = {}
    return zip(texts, [nothing] * n if metadatas is None else metadatas, strict=True)


def _marginal(
    query: FloatArray, vectors: FloatArray, k: int, weight: float, *, by_distance: bool
) -> list[int]:
    """Places of k of the vectors by maximal marginal relevance; of equal ones, the first."""
    rows: Float64 = (vectors if by_distance else normalize_rows(vectors)).astype(np.float64)
    asked: Float64 = (query if by_distance else normalize_rows(query))[0].astype(np.float64)

    def likeness(one: Float64) -> Float64:
        likenesses: Float64 = -np.square(rows - one).sum(axis=1) if by_distance else rows @ one
        return likenesses

    relevance = likeness(asked)
    chosen: list[int] = []
    nearest = np.full(len(rows), -np.inf)
    left = np.ones(len(rows), dtype=bool)
    while len(chosen) < min(k, len(rows)):
        overlap = nearest if chosen else np.zeros_like(nearest)
        gain = np.where(left, weight * relevance - (1 - weight) * overlap, -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, likeness(rows[best]))
    return chosen
