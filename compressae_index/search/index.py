"""The facade of every index, wherever its documents are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.checks import (
    check_choice,
    check_int,
    check_number,
    check_threads,
    check_vectors,
)
from compressae_index.coding.chunks import Encoded, encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import without_lengths
from compressae_index.coding.metric import METRICS, Metric, RowScale, upright
from compressae_index.coding.model import (
    ENCODERS,
    CompresSAE,
    Encoder,
    check_is_model,
    check_latents,
    check_model,
)
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, as_id_array
from compressae_index.processes import ForkSafeLock
from compressae_index.progress import Clock, track
from compressae_index.search.explaining import Explanation, explanation
from compressae_index.search.frontier import CALIBRATED_ROWS, Frontier
from compressae_index.search.labels import (
    STRONGEST,
    Labels,
    Namer,
    Texts,
    check_labels,
    labelled,
    names_of,
    replaced,
)
from compressae_index.search.neighbours import Search, graph_of, neighbours_of
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import (
    MAX_K,
    MAX_PLACES,
    REFINED_MODES,
    SCORINGS,
    Asked,
    Coder,
    Scoring,
    SearchResult,
    SearchStats,
    Settings,
    check_candidates,
    check_k,
    check_refine,
    nonzeros,
)
from compressae_index.search.ranges import RangeResult, check_radius, within
from compressae_index.search.rescoring import check_found, rescored
from compressae_index.search.sides import SIGNS, Sign, coded, holding, strongest
from compressae_index.search.stages import joined
from compressae_index.sources import Vectors, VectorSource, check_no_rows, ids_of_rows, open_vectors
from compressae_index.sources.centred import less

if TYPE_CHECKING:
    import scipy.sparse as sp


class IndexStats(NamedTuple):
    """The contents of an index, and their costs."""

    vectors: int
    dim: int
    n_latents: int
    k: int
    encoder: str
    metric: str
    bytes_per_vector: dict[str, float]
    """Resident bytes a vector by part and in total; those of a server are computed, or missing."""
    model_bytes: int
    """Resident for searches: a byte an entry of the dictionary, and half a byte more of one above 2 MiB once
    searches end with original vectors; encoding takes more."""
    postings: int
    """Nonzeros of a code that the posting lists keep, on average."""
    bytes_by_mode: dict[str, float]
    """Bytes a vector of the parts that each mode reads; empty if they are not known."""
    removed: int = 0
    """Vectors that were removed and still take memory; `compact` reclaims it."""
    dead_latents: int | None = None
    """Latents without a posting; None if the index does not count them."""
    list_skew: float | None = None
    """Length of the longest posting list over the mean length; None if the index does not measure it."""
    simd: str | None = None
    """The engine's instruction set; None if another engine searches."""
    residual_bits: int = 0
    """Bits a dimension of residual codes; 0 for none."""
    disk_bytes_per_vector: float = 0.0
    """Bytes a vector of the original vectors, which are not resident; 0 for none."""


_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def of_one_moment(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """A method that reads model and documents, and must not see one of them replaced before the other."""

    @wraps(method)
    def reading(index: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        return method(index.now(), *arguments, **options)

    return reading


class Index:
    """Vectors that are searched by their codes.

    An index encodes queries and vectors, and searches and changes `Documents`, which keep the codes.
    `CompressedIndex` keeps them in this process; `Index(model, backend)` takes any `SparseBackend`.
    """

    def __init__(
        self,
        model: CompresSAE,
        documents: Documents,
        *,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
    ) -> None:
        """Searches documents by the model that encoded them.

        Args:
            model: the model of the codes.
            documents: the codes.
            encoder: how vectors that are added become codes.
            metric: what scores are; with "inner_product", codes are times the norm of their vector. With "l2"
                too, and they have one pair more, of half its square: the documents are over the model's
                latents and another one. Documents over the model's latents alone are of unit rows.

        Raises:
            DimensionError: the codes are over another number of latents.
            InputError: the model does not fit the metric, or the codes.
        """
        self.model = check_is_model(model)
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.metric: Metric = check_choice(metric, "metric", METRICS)
        check_model(model, metric)
        check_latents(model, self.metric, documents.n_latents)
        self._documents = documents
        self.frontier: Frontier | None = None
        """Settings of "two_stage" and the recall they reach, if `build` or `calibrate` measured them."""
        self._labels: Labels | None = None
        self._writer = ForkSafeLock()

    def now(self) -> Index:
        """What stays as this index is now: itself, where its model is never replaced."""
        return self

    def _snapshot(self) -> Self:
        moment = type(self).__new__(type(self))
        vars(moment).update(vars(self).copy())  # at once: attributes are replaced together
        return moment

    @property
    def documents(self) -> Documents:
        """The documents that a search would see now."""
        return self._documents

    @property
    def k(self) -> int:
        """Nonzeros a code."""
        return self._k_of(self.documents)

    def _k_of(self, documents: Documents) -> int:
        return nonzeros(documents, self.model)

    def _scale_of(self, documents: Documents, unit: float | None) -> RowScale:
        """The scale of the codes of documents."""
        unit_rows = documents.n_latents == self.model.n_latents
        return RowScale(self.metric, unit, unit_rows=unit_rows, around=self.model.center_norm)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that `search` takes."""
        return self.documents.modes

    @property
    def ids(self) -> IdArray:
        """The ids that a search can find, in the order that breaks ties."""
        return self.documents.ids

    def __len__(self) -> int:
        """Vectors that a search can find."""
        return len(self.documents)

    def __repr__(self) -> str:
        stats = self.stats()
        size = stats.bytes_per_vector.get("total")
        return (
            f"{type(self).__name__}({stats.vectors} vectors, dim={stats.dim}, n_latents={stats.n_latents}, "
            f"k={stats.k}{'' if size is None else f', {size:.1f} bytes a vector'})"
        )

    @property
    def labels(self) -> Labels | None:
        """Names of latents by side, such as {"12+": "kidney, renal"}; None if `label_latents` made none.

        They may be set, also to those of another index of the same model.

        Raises:
            InputError: a key that is no side of one of the latents, or a name that is no string.
        """
        return self._labels

    @labels.setter
    def labels(self, labels: Mapping[str, str] | None) -> None:
        self._labels = None if labels is None else check_labels(labels, self.model.n_latents)

    @of_one_moment
    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: str = "two_stage",
        target_recall: float | None = None,
        candidates: int | None = None,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        refine: int | None = None,
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
        stats: bool = False,
    ) -> SearchResult:
        """The k nearest documents of each query.

        Args:
            queries: (n_queries, d), or (d,) for one.
            k: neighbours of each query. More than there are vectors leaves places of the answer empty, and is
                refused if these would be millions.
            mode: "sparse" scores by the query's query_nnz strongest latents, through their posting lists;
                "dense" scores every document by the metric with its reconstruction; "two_stage" takes the
                best `candidates` by posting lists and scores them as "dense" does. In both, if the index has
                residual codes or original vectors, the best `refine` get their scores from these. `modes`
                has those of this index.
            target_recall: for "two_stage": the recall@10 to reach at the least cost, by the settings that
                were measured (`frontier`). It holds for queries that are like the rows of the index. Those
                of candidates, query_nnz and refine that are given stay as they are.
            candidates: documents that stage one hands to stage two, at least k. By default those of the
                frontier's default point, more in an index that has grown since, or 10 k if that is more;
                without a frontier, 1,000, or k if that is more. "sparse" needs them only if a back end gives
                upper bounds of its scores.
            query_nnz: latents of the query that stage one keeps, of largest magnitude. By default those of
                the frontier's default point in "two_stage"; else 64, and 64 k / postings if posting lists
                keep fewer than k nonzeros, which is as fast.
            scoring: "asymmetric" compares the query itself with the codes; "symmetric" encodes the query
                first, as the paper does: s_q with s in "sparse", x_hat_q with x_hat in "dense".
            refine: documents of each query that the last stage scores again, by residual codes or original
                vectors: at least k, or 0 to leave the stage out. By default those of the frontier's default
                point, more in an index that has grown since, or 4 k if that is more; without a frontier,
                100, or 4 k if that is more. An index without such a stage takes none.
            filter: ids to search among, in which repeats count once; a boolean mask with one entry a vector
                in the order of `ids`; or an expression of Milvus. An index takes those of its
                `documents.filters`. It is applied inside stage one, so k results come back if k match.
            num_threads: threads to share the queries, or the documents if there are fewer queries; all by
                default.
            stats: also say what the search did, in the result's `stats`: milliseconds and counts by stage.

        Returns:
            scores and ids, each (n_queries, k), `certified` and `stats`. The higher score comes first; of
            equal scores, that of the document that is first in `ids`. If fewer than k documents match: id -1
            (None for string ids) and score -inf. With metric "l2", scores are squared distances, as Faiss
            gives them: the lower one comes first, and empty places have +inf. Codes may make those of near
            documents negative, which then are 0.

        Raises:
            InputError: bad queries, another dimension, k or query_nnz below 1, candidates or refine below k,
                refine without a stage for it, a target_recall that no setting reaches, another mode, or a
                filter that this index does not take.
            StorageError: the file of the original vectors was changed.
        """
        settings = Settings(mode, candidates, query_nnz, scoring, refine, filter, num_threads)
        documents = self.documents
        settings = self._settled(settings, k, documents, target_recall)
        asked = self.asked(queries, k, settings, documents)
        if asked.k * len(asked) > MAX_PLACES:  # counting documents may be a question to a server
            check_k(asked.k, len(documents), len(asked))
        return self.turned(_measured(documents, asked) if stats else documents.answer(asked))

    def turned(self, found: SearchResult) -> SearchResult:
        """Results of documents, of which larger scores are better, with the scores of the metric."""
        if self.metric != "l2":
            return found
        return SearchResult(upright(found.scores), found.ids, found.certified, found.lost, found.stats)

    def _settled(
        self, settings: Settings, k: int, documents: Documents, target_recall: float | None = None
    ) -> Settings:
        """Settings that a caller leaves open in "two_stage", from a point of the frontier.

        Raises:
            InputError: a target that no point reaches, or in a mode that has no frontier.
        """
        if target_recall is None and (self.frontier is None or settings.mode != "two_stage"):
            return settings
        if settings.mode != "two_stage":
            msg = f"target_recall has no use in mode {settings.mode!r}: settings of 'two_stage' were measured"
            raise InputError(msg)
        if self.frontier is None:
            msg = (
                "target_recall needs the settings that CompressedIndex.build, or calibrate, measures of at "
                f"least {CALIBRATED_ROWS:,} vectors, and this index has none: give candidates, query_nnz and "
                "refine"
            )
            raise InputError(msg)
        candidates, query_nnz, refine = settings.candidates, settings.query_nnz, settings.refine
        if target_recall is not None or candidates is None or query_nnz is None or refine is None:
            k = check_int(k, "k", 1, MAX_K)
            point = self.frontier.default if target_recall is None else self.frontier.reaching(target_recall)
            point = self.frontier.grown(point, len(documents)).for_neighbours(k)
            candidates = point.candidates if candidates is None else candidates
            query_nnz = point.query_nnz if query_nnz is None else query_nnz
            if refine is None and documents.refines and point.refine > 0:
                refine = point.refine
        damped = check_int(query_nnz, "query_nnz", 1) <= self.frontier.damped_to
        return settings.settled(candidates, query_nnz, refine, damped=damped)

    def asked(self, queries: Any, k: int, settings: Settings, documents: Documents | None = None) -> Asked:
        """Checked queries as `Documents.answer` takes them; errors as for `search`."""
        documents = self.documents if documents is None else documents
        k = check_int(k, "k", 1, MAX_K)
        candidates = check_candidates(settings.candidates, k)
        check_choice(settings.mode, "mode", documents.modes)
        check_choice(settings.scoring, "scoring", SCORINGS)
        if settings.query_nnz is not None:
            check_int(settings.query_nnz, "query_nnz", 1)
        if isinstance(settings.filter, str) and "expression" not in documents.filters:
            msg = f"filter is an expression, but this index filters by {' or '.join(documents.filters)}"
            raise InputError(msg)
        refine = check_refine(
            settings.refine, k, can_refine=documents.refines and settings.mode in REFINED_MODES
        )
        threads = check_threads(settings.num_threads)
        rows, coder = self._queries(queries), Coder(self.model, self.encoder, documents)
        factors, distances, given = None, None, None
        if self.metric != "cosine":
            scale = self._scale_of(documents, documents.unit or 1.0)
            if self.metric == "l2":
                given, rows = rows, less(rows, self.model.center)
                distances = scale.distances_of(rows)
            else:
                factors = scale.of_queries(rows)
        return Asked(rows, factors, k, candidates, refine, threads, settings, coder, distances, given)

    def _queries(self, queries: Any, *, may_be_empty: bool = True) -> FloatArray:
        """Checked queries (n_queries, d) as they are."""
        zeros = self.metric == "l2"  # a point like any other
        return check_vectors(
            queries, dim=self.model.dim, name="queries", may_be_empty=may_be_empty, zeros=zeros
        )

    @of_one_moment
    def rescore(
        self,
        queries: Any,
        ids: Any,
        k: int = 10,
        *,
        scoring: Scoring = "asymmetric",
        refine: int | None = None,
        num_threads: int | None = None,
    ) -> SearchResult:
        """The k best of the documents that something else found for each query, such as another store.

        They get the scores of "two_stage": by their codes, and the best `refine` by residual codes or
        original vectors if the index has them.

        Args:
            queries: (n_queries, d), or (d,) for one.
            ids: (n_queries, c), or a sequence of ids for each query; repeats count once, and -1 or None is no
                id. Those that the index does not hold (any more) are left out.
            k: documents of each query.
            scoring: as for `search`.
            refine: as for `search`; by default 100, or 4 k if that is more.
            num_threads: as for `search`.

        Returns:
            scores and ids, each (n_queries, k), as `search` gives them, without a certificate.

        Raises:
            InputError: not one row of ids a query, ids of the other kind, or queries or settings that
                `search` refuses.
            StorageError: the file of the original vectors was changed.
        """
        settings = Settings("two_stage", None, None, scoring, refine, None, num_threads)
        documents = self.documents
        asked = self.asked(queries, k, settings, documents)
        found = check_found(ids, len(asked), are_strings=documents.are_strings)
        if asked.k * len(asked) > MAX_PLACES:
            check_k(asked.k, len(documents), len(asked))
        return self.turned(rescored(asked, found, documents, self.model, self.metric))

    @of_one_moment
    def neighbours(
        self,
        ids: Any,
        k: int = 10,
        *,
        mode: str = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        refine: int | None = None,
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
        progress: bool = False,
    ) -> SearchResult:
        """The k nearest other documents of stored ones, without their vectors.

        The queries are the best vectors that the index has: the original ones if it keeps them, else
        reconstructions from codes and residual codes. A code of zeros has no neighbours.

        Args:
            ids: documents of the index; they may repeat.
            k: neighbours of each, which itself is not among them.
            mode: this and the other settings are those of `search`.
            candidates: as for `search`.
            query_nnz: as for `search`.
            refine: as for `search`.
            filter: as for `search`; `ids` need not match it.
            num_threads: as for `search`.
            progress: show a progress bar.

        Returns:
            scores and ids, each (len(ids), k), and `certified`, as `search` gives them.

        Raises:
            UnknownIdError: an id is not in the index.
            InputError: ids that are neither integers nor strings, or settings that `search` refuses.
            StorageError: the file of the original vectors was changed.
        """
        settings = Settings(mode, candidates, query_nnz, "asymmetric", refine, filter, num_threads)
        array, documents = as_id_array(ids), self.documents
        k = self._checked(k, settings, documents)
        if k * len(array) > MAX_PLACES:
            check_k(k, len(documents), len(array))
        if len(array):
            self.check_held(array)
        settings, search = self._settled(settings, k + 1, documents), self._search_of(documents)
        found = neighbours_of(array, k, settings, documents, self.model, search, progress=progress)
        return self.turned(joined(list(found), k, are_strings=documents.are_strings))

    @of_one_moment
    def neighbour_graph(
        self,
        k: int = 10,
        *,
        mode: str = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        refine: int | None = None,
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
        progress: bool = True,
    ) -> sp.csr_array[Any, tuple[int, int]]:
        """The k nearest other documents of every document, as a sparse matrix of scores.

        Rows and columns are in the order of `ids`, as of now. The documents are searched in batches, so that
        memory is little more than that of the result.

        Args:
            k: neighbours of each document; a row has fewer where fewer match.
            mode: this and the other settings are those of `search`.
            candidates: as for `search`.
            query_nnz: as for `search`.
            refine: as for `search`.
            filter: the documents that may be neighbours, as for `search`; every document has a row.
            num_threads: as for `search`.
            progress: show a progress bar.

        Returns:
            (n, n) float32 in the form of scikit-learn's `kneighbors_graph`, with scores, which are distances
            for metric "l2" alone. A row stores the scores of its neighbours, best first, and not its own.

        Raises:
            InputError: the index does not list its ids, or settings that `search` refuses.
            UnknownIdError: another process removed a document meanwhile.
            StorageError: the file of the original vectors was changed.
        """
        settings = Settings(mode, candidates, query_nnz, "asymmetric", refine, filter, num_threads)
        documents = self.documents
        k = self._checked(k, settings, documents)
        ids, search = documents.ids, self._search_of(documents)
        k = min(k, max(len(ids) - 1, 0))
        wanted, settings = ids if k else ids[:0], self._settled(settings, k + 1, documents)
        found = neighbours_of(wanted, k, settings, documents, self.model, search, progress=progress)
        graph = graph_of(ids, k, found)
        if self.metric == "l2":
            graph.data = upright(graph.data)
        return graph

    @of_one_moment
    def range_search(
        self,
        queries: Any,
        radius: float,
        *,
        mode: str = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        refine: int | None = None,
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
    ) -> RangeResult:
        """All documents of each query with a score above the radius; with metric "l2", below it.

        Scores are those that `search` gives. "dense" leaves no document out; if the index has a last stage,
        it scores all documents by it, unless `refine` is given. "two_stage" may leave out documents that are
        not among its candidates, which are at least 1,000, and 16 for each document in the range. "sparse"
        compares the radius with sums over the query's strongest latents.

        Args:
            queries: (n_queries, d), or (d,) for one.
            radius: a score that documents must exceed; a squared distance that they must stay below.
            mode: this and the other settings are those of `search`.
            candidates: as for `search`, but also the most documents of a query, except in "dense".
            query_nnz: as for `search`.
            scoring: as for `search`.
            refine: as for `search`, but also the most documents of a query, unless it is 0. By default at
                least 4 for each document in the range, and all documents in "dense".
            filter: as for `search`.
            num_threads: as for `search`.

        Returns:
            lims, scores and ids in the shapes of Faiss's `range_search`: the documents of query i are
            ids[lims[i]:lims[i + 1]], best first.

        Raises:
            InputError: a radius that is no number, or queries or settings that `search` refuses.
            StorageError: the file of the original vectors was changed.
        """
        settings = Settings(mode, candidates, query_nnz, scoring, refine, filter, num_threads)
        documents, radius = self.documents, check_radius(radius)
        self._checked(1, settings, documents)
        rows, search = self._queries(queries), self._search_of(documents)
        if self.metric != "l2":
            return within(rows, radius, settings, documents, search)
        found = within(rows, -radius, settings, documents, search)
        return found._replace(scores=upright(found.scores))

    def _checked(self, k: int, settings: Settings, documents: Documents) -> int:
        """A number of neighbours, checked with the other settings before any work; errors as for `search`."""
        return self.asked(np.empty((0, self.model.dim), np.float32), k, settings, documents).k

    def _search_of(self, documents: Documents) -> Search:
        """A search of these documents, whatever changes meanwhile; larger scores are better."""
        return lambda queries, k, settings: documents.answer(self.asked(queries, k, settings, documents))

    def add(
        self, embeddings: VectorSource, ids: Any, *, num_threads: int | None = None, progress: bool = False
    ) -> None:
        """Appends vectors; the model stays as it is.

        Args:
            embeddings: (n, d) floating point, as for `CompressedIndex.build`; there may be none. No vector is
                added before all are encoded, so that a bad row changes nothing.
            ids: new ids of the kind that the index holds.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or that are held already. Nothing was
                added.
        """
        self._write(embeddings, ids, replace=False, num_threads=num_threads, progress=progress)

    def upsert(
        self, embeddings: VectorSource, ids: Any, *, num_threads: int | None = None, progress: bool = False
    ) -> None:
        """Adds vectors, and replaces those of ids that are held; arguments and errors as for `add`."""
        self._write(embeddings, ids, replace=True, num_threads=num_threads, progress=progress)

    def _write(
        self, embeddings: VectorSource, ids: Any, *, replace: bool, num_threads: int | None, progress: bool
    ) -> None:
        vectors = open_vectors(embeddings, zeros=self.metric == "l2", may_be_empty=True)
        new, _ = ids_of_rows(as_id_array(ids), vectors)
        with self._writer.lock:
            self._store(vectors, new, replace=replace, num_threads=num_threads, progress=progress)

    def _store(
        self,
        vectors: Vectors,
        ids: Ids,
        *,
        replace: bool,
        num_threads: int | None,
        progress: bool,
        note: Callable[[Encoded], object] | None = None,
        **options: Any,
    ) -> None:
        """Encodes rows and stores them; `note` sees all chunks, `options` go to `added` of the documents."""
        if not len(ids):
            check_no_rows(vectors, self.model.dim)
            return
        documents = self._documents
        self._check_new(documents, ids.all(), replace=replace)
        threads, scale = check_threads(num_threads), self._scale_of(documents, documents.unit)
        chunks = encoded_chunks(
            self.model,
            vectors,
            self._k_of(documents),
            self.encoder,
            threads,
            scale=scale,
            residual_bits=documents.residual_bits,
        )
        with track(len(ids), "encoding", enabled=progress) as advance:
            self._documents = documents.added(
                counted(chunks, advance, note),
                ids,
                scale=scale,
                model=self.model,
                num_threads=threads,
                progress=progress,
                **options,
            )

    def _check_new(self, documents: Documents, ids: IdArray, *, replace: bool) -> None:
        documents.check_ids(ids)
        if not replace and (held := documents.held(ids)).any():
            first = ids[held].tolist()[0]
            msg = (
                f"id {first!r:.100} is already in the index ({int(held.sum())} such ids); "
                "remove it, or upsert"
            )
            raise InputError(msg)

    def remove(self, ids: Any) -> None:
        """Removes vectors.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id is given twice.
        """
        array = as_id_array(ids)
        if not len(array):
            return
        with self._writer.lock:
            self.check_held(array)
            if (twice := len(array) - len(set(array.tolist()))) > 0:
                msg = f"{twice} of {len(array)} ids to remove stand more than once"
                raise InputError(msg)
            self._documents = self._documents.removed(array)
            _log.info("removed %d vectors", len(array))

    def codes(self, ids: Any) -> SparseCodes:
        """The stored codes of ids: folded, times the kept norm, and rounded to the stored precision.

        With metric "l2" they have one pair more, over one latent more: half the square of the norm. Codes of
        unit rows have none.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        array, documents = as_id_array(ids), self.documents
        if not len(array):
            return SparseCodes.empty(documents.k, self.model.n_latents)
        self._check_kind_of(array)
        return documents.codes(array)

    def _check_kind_of(self, ids: IdArray) -> None:
        """Refuses ids of the other kind, which no back end needs to know.

        Raises:
            UnknownIdError: they are integers where the index has strings, or the other way round.
        """
        if (ids.dtype == object) != self.documents.are_strings:
            self.check_held(ids)

    @of_one_moment
    def reconstruct(self, ids: Any) -> FloatArray:
        """Reconstructed vectors of ids, (n, d) float32, of unit norm, or the kept one, up to rounding.

        They are made of codes and residual codes, also if the index keeps original vectors.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        array = as_id_array(ids)
        if not len(array):
            return np.empty((0, self.model.dim), dtype=np.float32)
        self._check_kind_of(array)
        vectors, unit = self.documents.reconstructed(array, self.model), self.documents.unit
        vectors = vectors if unit in (None, 1.0) else vectors * np.float32(unit)
        return vectors if self.model.center is None else vectors + self.model.center

    @of_one_moment
    def explain(self, query: Any, id: int | str) -> Explanation:  # noqa: A002
        """How the parts of a document's code add up to its score in "dense" and "two_stage".

        If the index has residual codes or original vectors, what they add is the `residual`. With metric
        "l2", what the norms of query and document make is the `bias`; the rest is below 0 where it brings
        them nearer.

        Raises:
            UnknownIdError: the id is not in the index.
            InputError: not one query of the index's dimension.
        """
        rows = self._queries(query, may_be_empty=False)
        if len(rows) != 1:
            msg = f"explain takes one query, got {len(rows)}"
            raise DimensionError(msg)
        code = self.codes([id])
        why = explanation(self.documents, self.model, self.metric, rows, as_id_array([id]), code)
        return why._replace(names=names_of(self.labels, why.latents.tolist(), why.values.tolist()))

    def label_latents(
        self, texts: Any, *, latents: Any = None, name: Namer | None = None, progress: bool = False
    ) -> Labels:
        """Names latents by the texts or tags of the 20 documents that hold them most strongly.

        The names are those of `explain`, and go into `labels`, which `save` stores. A name is up to three
        words, or pairs of words, that these texts hold far more often than the strongest documents of all
        latents do together; other texts are not read. Signs are named apart, as 12+ and 12-. A side gets no
        name if no term stands out, or if its strongest value is less than half of the latent's: such values
        correct what other latents add up to, and have no meaning of their own.

        Args:
            texts: one for each document, in the order of `ids`, or a mapping from ids. Each is a string, a
                list of strings (tags), or None.
            latents: the latents to name; all by default. The names of others stay as they are.
            name: gives the name of a side for the list of its strongest documents' texts, the strongest
                first; "" for none. By default terms are names.
            progress: show a progress bar.

        Returns:
            The new names by side.

        Raises:
            DimensionError: not one text for each document.
            InputError: a text that is neither a string nor a list of strings, an id without a text in a
                mapping, an unknown latent, a name that is no string, or an index that does not list its ids.
        """
        wanted = None if latents is None else self._checked_latents(latents)
        documents = self.documents
        ids = documents.ids
        given, of_unit = Texts(texts, ids), self.metric == "cosine"
        n_latents = self.model.n_latents
        blocks = ((first, without_lengths(codes, n_latents)) for first, codes in coded(documents, ids))
        if not of_unit:  # a long vector holds a latent no more than a short one of its direction
            blocks = ((first, self.model.fold(codes)) for first, codes in blocks)
        made = labelled(strongest(blocks, STRONGEST), given, wanted, name, progress=progress)
        self.labels = made if wanted is None else replaced(self.labels or {}, wanted, made)
        return made

    def holding(self, latent: int, *, sign: Sign | None = None, at_least: float = 0.0) -> BoolArray:
        """Which documents hold a latent in their code: a mask for `search(filter=...)`.

        Masks combine by &, | and ~. They are those of the documents there are now: after a change, ask again.
        All codes are read for it.

        Args:
            latent: the latent.
            sign: "+" or "-" for values of this sign only.
            at_least: the least magnitude of the value, in the units of `codes`.

        Returns:
            (n,) in the order of `ids`. Where `documents.filters` has no "mask", `ids[mask]` is a filter.

        Raises:
            InputError: an unknown latent or sign, a negative or infinite at_least, or an index that does not
                list its ids.
        """
        latent = check_int(latent, "latent", 0, self.model.n_latents - 1, "n_latents - 1")
        if sign is not None:
            check_choice(sign, "sign", SIGNS)
        if not 0 <= check_number(at_least, "at_least") < np.inf:
            msg = f"at_least must be a finite number of at least 0, got {at_least}"
            raise InputError(msg)
        return holding(self.documents, latent, sign, float(at_least))

    def steer(self, queries: Any, weights: Mapping[int, float]) -> FloatArray:
        """Queries moved along latents: q + |q| times the sum of weight * W_dec[latent], |q| from the center.

        All modes and scorings then search for these queries: scores, certificates and explanations are those
        of the moved query. A document's score grows with its share in the direction of each latent, whether
        or not its code holds the latent itself.

        Args:
            queries: (n, d) floating point, or (d,) for one.
            weights: a weight for each latent, relative to a query of norm 1; below 0 to move away.

        Returns:
            (n, d) float32.

        Raises:
            InputError: bad queries, an unknown latent, or a weight that is no finite number.
        """
        rows = self._queries(queries)
        which = self._checked_latents(weights)
        amounts = np.array([check_number(weight, "a weight") for weight in weights.values()])
        if not np.isfinite(amounts).all():
            msg = f"weights must be finite, got {amounts.tolist()}"
            raise InputError(msg)
        direction = amounts @ self.model.decoder_w[which].astype(np.float64)
        seen = rows if self.model.center is None else rows - self.model.center
        norms = np.linalg.norm(seen.astype(np.float64), axis=1, keepdims=True)
        steered: FloatArray = (rows + norms * direction).astype(np.float32)
        return steered

    def _checked_latents(self, latents: Iterable[Any]) -> list[int]:
        last = self.model.n_latents - 1
        return [check_int(latent, "latent", 0, last, "n_latents - 1") for latent in latents]

    @of_one_moment
    def stats(self) -> IndexStats:
        """The contents of the index, and their costs as far as they are known."""
        return self._stats_of(self.documents)

    def _stats_of(self, documents: Documents) -> IndexStats:
        n, parts = len(documents), documents.nbytes
        if parts:
            parts = parts | {"total": sum(parts.values())}
        per_vector = {name: size / max(n, 1) for name, size in parts.items()}
        return IndexStats(
            vectors=n,
            dim=self.model.dim,
            n_latents=self.model.n_latents,
            k=self._k_of(documents),
            encoder=self.encoder,
            metric=self.metric,
            bytes_per_vector=per_vector,
            model_bytes=self.model.nbytes,
            postings=self._k_of(documents),
            bytes_by_mode=dict.fromkeys(documents.modes, per_vector["total"]) if parts else {},
            residual_bits=documents.residual_bits,
        )

    def holds(self, ids: IdArray) -> BoolArray:
        """Which of the ids the index holds, (n,); none if they are of the other kind."""
        documents = self.documents
        if (ids.dtype == object) != documents.are_strings:
            return np.zeros(len(ids), dtype=bool)
        return documents.held(ids)

    def check_held(self, ids: IdArray) -> None:
        """Checks that the index holds ids.

        Raises:
            UnknownIdError: it names the first of them.
        """
        held = self.holds(ids)
        if not held.all():
            first = ids[~held].tolist()[0]
            msg = f"unknown id {first!r:.100} ({int((~held).sum())} of {len(ids)} ids are unknown)"
            raise UnknownIdError(msg)


def _measured(documents: Documents, asked: Asked) -> SearchResult:
    """The answer of documents, with what they did for it."""
    clock = asked.clock = Clock()
    with clock("total"):
        found = documents.answer(asked)
    n, read = len(documents), documents.reads(asked)
    candidates = n if asked.mode == "dense" else min(asked.candidates, n)
    if asked.mode == "sparse":
        candidates = min(asked.k, n)
    result = SearchStats(
        queries=len(asked),
        milliseconds={stage: 1000 * seconds for stage, seconds in clock.seconds.items()},
        candidates=candidates * len(asked),
        rescored=candidates * len(asked),
        refined=min(asked.refine, candidates) * len(asked),
        postings=read.postings,
        bytes_read=read.bytes,
    )
    return SearchResult(found.scores, found.ids, found.certified, found.lost, result)


def counted(
    chunks: Iterable[Encoded], advance: Any, note: Callable[[Encoded], object] | None = None
) -> Iterator[Encoded]:
    """The same chunks; calls `note` with each when it is made, then `advance` with its length."""
    for chunk in chunks:
        if note is not None:
            note(chunk)
        yield chunk
        advance(len(chunk.codes))
