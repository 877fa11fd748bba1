"""An index over shards, each searched by an actor of Ray: the answers of one index that holds them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, Hits, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.ray.library import absolute, raised, started
from compressae_index.connectors.ray.shard import About, Shard
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.embedded.documents import in_metric
from compressae_index.embedded.merging import check_alike, is_folder_of_shards, shard_paths
from compressae_index.embedded.sizes import LISTED_PER_CODE, sparse_candidates
from compressae_index.errors import BackendError, InputError, UnknownIdError
from compressae_index.ids import Ids, Rows
from compressae_index.processes import cached_property
from compressae_index.remote import Place
from compressae_index.search.index import Index
from compressae_index.search.protocol import Filter
from compressae_index.search.queries import MODES, Asked, Reads, SearchResult
from compressae_index.search.stages import Found, best, ranked
from compressae_index.sources.paths import PathLike

# Times that Ray makes a lost actor, and its calls, again.
RESTARTS = 3


class ShardedIndex(Index):
    """An index over shards, each mapped and searched by an actor of Ray, on one machine or many.

    It answers as `CompressedIndex.merge` of the shards would, but does not compare their ids. Stages run on
    all shards at a time, and between them the best of all are chosen by the one tie rule. It is not changed:
    change the shards, and load it again. An actor that is lost is made again by Ray.
    """

    @classmethod
    def load(cls, shards: PathLike | Sequence[PathLike], *, cpus: float = 1, partial: bool = False) -> Self:
        """Starts an actor a shard.

        Args:
            shards: a folder that `build_shards` wrote, or paths of saved indexes that were made alike, as
                `CompressedIndex.merge` takes them. Every machine of the cluster must see them.
            cpus: processors that Ray reserves for each actor.
            partial: answer without shards whose actors are lost too often; `SearchResult.lost` names them.
                By default this is an error.

        Raises:
            FormatError, StorageError: as for `CompressedIndex.load`.
            InputError: no shards, or shards that were made otherwise.
            BackendError: an actor cannot be started.
            MissingExtraError: ray is not installed.
        """
        ray, paths = started(), paths_of(shards)
        kind = ray.remote(num_cpus=cpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Shard)
        actors = [kind.remote(path) for path in paths]
        try:
            model = ray.get(actors[0].model.remote())
            documents = ShardedDocuments(ray, actors, [str(path) for path in paths], model, partial=partial)
        except Exception as error:
            raise raised(error) from None
        form = documents.about[0].form
        return cls(model, documents, encoder=form["encoder"], metric=form["metric"])


def paths_of(shards: Any) -> list[Place]:
    """The saved indexes of a folder of shards, or those at given paths; as every worker finds them."""
    if isinstance(shards, (list, tuple)):
        paths = [absolute(each) for each in shards]
    else:
        folder = absolute(shards)
        paths = shard_paths(folder) if is_folder_of_shards(folder) else [folder]
    if not paths:
        msg = "no shards are given"
        raise InputError(msg)
    return paths


class _Hits(NamedTuple):
    """Documents that stages found for a batch of queries: each array (n_queries, c)."""

    scores: FloatArray
    shards: RowArray
    rows: RowArray
    """Of their shard; -1 where nothing was found."""
    places: RowArray
    """In the order of all shards."""

    @classmethod
    def none(cls, n_queries: int) -> _Hits:
        """Nothing."""
        rows = np.empty((n_queries, 0), np.int64)
        return cls(np.empty((n_queries, 0), np.float32), rows, rows, rows)

    def best(self, n: int) -> _Hits:
        """The n best by the tie rule, best first."""
        order = best(self.scores, self.places, n)
        taken: Any = [np.take_along_axis(each, order, axis=1) for each in self]
        return _Hits(*taken)

    def inside(self, shard: int) -> BoolArray:
        """Which of them are of a shard."""
        inside: BoolArray = (self.shards == shard) & (self.rows >= 0)
        return inside

    def of_shard(self, shard: int) -> RowArray:
        """The rows of a shard, (n_queries, w), and -1 behind them; no column holds -1 alone."""
        inside = self.inside(shard)
        order = np.argsort(~inside, axis=1, kind="stable")[:, : int(inside.sum(axis=1).max(initial=0))]
        rows = np.take_along_axis(self.rows, order, axis=1)
        return np.where(np.take_along_axis(inside, order, axis=1), rows, -1)


class ShardedDocuments:
    """The `Documents` of shards in actors."""

    modes: tuple[str, ...] = MODES
    filters: tuple[Filter, ...] = ("ids", "mask")

    def __init__(
        self, ray: Any, actors: Sequence[Any], names: Sequence[str], model: CompresSAE, *, partial: bool
    ) -> None:
        """Asks all shards for their form.

        Raises:
            InputError: they were made otherwise.
        """
        self.ray, self.actors, self.names, self.partial = ray, list(actors), list(names), partial
        self.about: list[About] = ray.get([actor.about.remote() for actor in actors])
        check_alike([about.form for about in self.about], names)
        first = self.about[0]
        filled = {about.are_strings for about in self.about if about.alive}
        if len(filled) > 1:
            msg = "some shards have ids that are strings, others integers"
            raise InputError(msg)
        self.are_strings = bool(filled and filled.pop())
        self.begins = np.cumsum([0, *(about.rows for about in self.about)])
        self.n_rows = int(self.begins[-1])
        self.largest_norm = max(about.largest_norm for about in self.about)
        norms = bool(first.form["codec"].get(NORMS, False))
        self.n_latents = model.n_latents + norms
        self.k: int = first.form["k"] + norms
        self.unit: float | None = first.form["unit of norms"]
        self.residual_bits = first.residual_bits
        self.refines = first.by_originals or first.residual_bits > 0

    def __len__(self) -> int:
        return sum(about.alive for about in self.about)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by part, of all shards; they are mapped."""
        return {name: sum(about.nbytes[name] for about in self.about) for name in self.about[0].nbytes}

    @cached_property
    def ids(self) -> IdArray:
        """The ids that a search can find, shard after shard."""
        parts = self._all(lambda actor, _: actor.ids.remote())
        return np.concatenate([part for part in parts.values() if len(part)] or [parts[0]])

    @cached_property
    def _rows(self) -> Rows:
        """All documents, for filters: their ids take memory here, too."""
        return Rows(Ids.from_user(self.ids, len(self.ids)))

    def reads(self, asked: Asked) -> Reads:  # noqa: ARG002
        """Nothing: what shards read is not counted."""
        return Reads()

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query, by stages that all shards run at a time.

        Raises:
            InputError: a filter with the wrong length, or unknown ids.
            BackendError: a shard is lost, and partial answers were not asked for.
        """
        lost: set[int] = set()
        wanted, n_allowed = self._wanted(asked.settings.filter)
        found = _Hits.none(len(asked))
        asked.let_be_rough(by_originals=self.about[0].by_originals)
        if len(asked) and n_allowed:
            found = _Stages(self, asked, wanted, n_allowed, lost).run()
        ids = self._names(found, lost)
        certified = np.ones(len(asked), dtype=bool) if asked.mode == "dense" and not lost else None
        result = ranked(
            Found(found.scores, ids, found.places, certified, ordered=True),
            asked.k,
            are_strings=self.are_strings,
        )
        names = tuple(self.names[number] for number in sorted(lost))
        return SearchResult(result.scores, result.ids, result.certified, names)

    def _wanted(self, filtered: Any) -> tuple[list[Any], int]:
        """The mask of each shard's documents that a filter allows, and how many they are in all.

        Raises:
            InputError: a mask of another length, or unknown ids.
        """
        if filtered is None:
            return [None] * len(self.actors), len(self)
        bitmap, count = self._rows.allowed(filtered)
        assert bitmap is not None, "a filter names some documents"
        marks = np.unpackbits(bitmap, count=len(self), bitorder="little").astype(bool)
        ends = np.cumsum([about.alive for about in self.about])[:-1]
        return np.split(marks, ends), count

    def _names(self, found: _Hits, lost: set[int]) -> IdArray:
        """The ids of documents that were found, (n_queries, c)."""
        nothing: Any = None if self.are_strings else -1
        names = np.full(found.rows.shape, nothing, dtype=object if self.are_strings else np.int64)
        inside = {number: found.inside(number) for number in range(len(self.actors))}
        among = [number for number, mask in inside.items() if mask.any()]
        asking = {number: found.rows[inside[number]] for number in among}
        answers = self.everywhere(lambda actor, number: actor.names.remote(asking[number]), lost, among)
        for number, given in answers.items():
            names[inside[number]] = given
        return names

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held, (n,)."""
        found = self._all(lambda actor, _: actor.held.remote(ids))
        held: BoolArray = np.logical_or.reduce(list(found.values()))
        return held

    def check_ids(self, ids: IdArray) -> None:  # noqa: ARG002
        """Refuses new documents.

        Raises:
            InputError: always.
        """
        raise InputError(_NOT_CHANGED)

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, times the kept norm.

        Raises:
            UnknownIdError: an id is not held.
        """
        order, parts = self._of_owners(ids, lambda actor, mine: actor.codes.remote(mine))
        return SparseCodes.concatenate(parts)[order]

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:  # noqa: ARG002
        """The vectors of ids as the last stage knows them, (len(ids), d), in the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self._vectors(ids, reconstructed=False)

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:  # noqa: ARG002
        """Reconstructions of ids with their residuals, (len(ids), d), in the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self._vectors(ids, reconstructed=True)

    def _vectors(self, ids: IdArray, *, reconstructed: bool) -> FloatArray:
        order, parts = self._of_owners(
            ids, lambda actor, mine: actor.vectors.remote(mine, reconstructed=reconstructed)
        )
        vectors: FloatArray = np.concatenate(parts)[order]
        return vectors

    def added(self, *_: Any, **__: Any) -> ShardedDocuments:
        """Refuses new documents.

        Raises:
            InputError: always.
        """
        raise InputError(_NOT_CHANGED)

    def removed(self, ids: IdArray) -> ShardedDocuments:  # noqa: ARG002
        """Refuses to remove documents.

        Raises:
            InputError: always.
        """
        raise InputError(_NOT_CHANGED)

    def _of_owners(self, ids: IdArray, call: Callable[[Any, IdArray], Any]) -> tuple[RowArray, list[Any]]:
        """What the shards that hold ids say of theirs, and the order that makes it that of the ids.

        Raises:
            UnknownIdError: an id is not held.
        """
        held = self._all(lambda actor, _: actor.held.remote(ids))
        owners = np.argmax(np.stack([held[number] for number in range(len(self.actors))]), axis=0)
        missing = ~np.logical_or.reduce(list(held.values()))
        if missing.any():
            first = ids[missing].tolist()[0]
            msg = f"unknown id {first!r:.100} ({int(missing.sum())} of {len(ids)} ids are unknown)"
            raise UnknownIdError(msg)
        among = sorted(set(owners.tolist()))
        answers = self._all(lambda actor, number: call(actor, ids[owners == number]), among)
        return np.argsort(np.argsort(owners, kind="stable")), [answers[number] for number in among]

    def _all(self, call: Callable[[Any, int], Any], among: Sequence[int] | None = None) -> dict[int, Any]:
        """`everywhere`, where a lost shard is an error."""
        return self.everywhere(call, None, among)

    def everywhere(
        self, call: Callable[[Any, int], Any], lost: set[int] | None, among: Sequence[int] | None = None
    ) -> dict[int, Any]:
        """What shards answer, by their numbers.

        Args:
            call: calls the actor of a shard, of which the number is given.
            lost: takes the numbers of shards that do not answer, which are not asked again; None if that is
                an error.
            among: the shards to ask; all by default.

        Raises:
            BackendError: a shard is lost.
        """
        numbers = range(len(self.actors)) if among is None else among
        asked = [number for number in numbers if not lost or number not in lost]
        calls = {number: call(self.actors[number], number) for number in asked}
        answers = {}
        for number, each in calls.items():
            try:
                answers[number] = self.ray.get(each)
            except self.ray.exceptions.RayActorError as error:
                if lost is None or not self.partial:
                    raise _lost(self.names[number], error) from None
                lost.add(number)
            except Exception as error:
                raise raised(error) from None
        if not answers and asked:
            raise _lost(self.names[asked[0]], None)
        return answers


def _lost(name: str, error: Exception | None) -> BackendError:
    reason = "" if error is None else f": {str(error).strip().rpartition(chr(10))[2]}"
    return BackendError(
        f"the actor of {name} was lost more than {RESTARTS} times{reason}; load the index again, or with "
        "partial=True to search the other shards"
    )


_NOT_CHANGED = (
    "an index of shards in actors is not changed: change a shard by CompressedIndex, save it, and load again"
)


class _Stages:
    """The stages of one search, between which the best of all shards are chosen."""

    def __init__(
        self, documents: ShardedDocuments, asked: Asked, wanted: list[Any], n_allowed: int, lost: set[int]
    ) -> None:
        self._documents, self._asked, self._wanted, self._lost = documents, asked, wanted, lost
        self._settings = asked.settings._replace(filter=None)
        self._n_allowed = n_allowed
        self._rows = asked.rows if asked.given is None else asked.given
        nnz = asked.settings.query_nnz
        self._nnz = min(documents.about[0].query_nnz if nnz is None else nnz, documents.n_latents)
        # "sparse" scores codes by the latents that found them alone.
        self._terms = self._nnz if asked.mode == "sparse" else None

    def run(self) -> _Hits:
        """The k best documents, with scores by the metric."""
        asked, k = self._asked, min(self._asked.k, self._n_allowed)
        by_originals = bool(asked.refine) and self._documents.about[0].by_originals
        hits = self._by_codes(min(max(asked.refine, k), self._n_allowed))
        if asked.refine:
            hits = self._refined(hits)
        missing = hits.rows < 0
        sums = np.where(missing, np.float32(0), hits.scores)
        scores = in_metric(asked, sums, by_originals=by_originals)
        return hits._replace(scores=np.where(missing, np.float32(-np.inf), scores)).best(k)

    def _by_codes(self, top: int) -> _Hits:
        """The `top` best documents by their codes, of all or of the candidates of stage one."""
        asked, settings, terms, wanted = self._asked, self._settings, self._terms, self._wanted
        documents = self._documents
        k = min(asked.k, self._n_allowed)
        candidates = sparse_candidates(k) if asked.mode == "sparse" else asked.candidates
        # As the engine does: few documents are all scored by their codes.
        few = max(min(candidates, self._n_allowed), documents.n_rows // LISTED_PER_CODE)
        if asked.mode == "dense" or self._n_allowed <= few:
            return self._joined(
                self._everywhere(
                    lambda actor, number: actor.scan.remote(self._rows, settings, terms, top, wanted[number])
                ),
                top,
            )
        found = self._everywhere(
            lambda actor, number: actor.find.remote(
                self._rows, settings, self._nnz, candidates, wanted[number], documents.largest_norm
            )
        )
        listed = self._joined(found, candidates)
        asking = {number: listed.of_shard(number) for number in range(len(documents.actors))}
        scored = self._everywhere(
            lambda actor, number: actor.score.remote(self._rows, settings, terms, asking[number]),
            [number for number, rows in asking.items() if rows.shape[1]],
        )
        return self._joined(scored, top)

    def _refined(self, hits: _Hits) -> _Hits:
        """Hits with scores by what their codes leave out."""
        settings = self._settings
        scores = np.full(hits.scores.shape, -np.inf, dtype=np.float32)
        inside = {number: hits.inside(number) for number in range(len(self._documents.actors))}
        answers = self._everywhere(
            lambda actor, number: actor.refine.remote(
                self._rows, settings, hits.scores, np.where(inside[number], hits.rows, -1)
            ),
            [number for number, mask in inside.items() if mask.any()],
        )
        for number, refined in answers.items():
            scores[inside[number]] = refined[inside[number]]
        return hits._replace(scores=scores, rows=np.where(np.isneginf(scores), -1, hits.rows))

    def _everywhere(
        self, call: Callable[[Any, int], Any], among: Sequence[int] | None = None
    ) -> dict[int, Any]:
        return self._documents.everywhere(call, self._lost, among)

    def _joined(self, found: Mapping[int, Hits], top: int) -> _Hits:
        """The `top` best hits of all shards."""
        scores = np.concatenate([scores for scores, _ in found.values()], axis=1)
        rows = np.concatenate([rows for _, rows in found.values()], axis=1)
        shards = np.concatenate([np.full(rows.shape, number) for number, (_, rows) in found.items()], axis=1)
        missing = rows < 0
        places = np.where(missing, -1, rows + self._documents.begins[shards])
        return _Hits(np.where(missing, np.float32(-np.inf), scores), shards, rows, places).best(top)
