"""An index over a sparse back end: codes that are kept and found by latents outside of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.checks import check_choice, check_int, check_threads, check_vectors
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import METRICS, Metric, RowScale
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_model
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import as_id_array
from compressae_index.progress import track
from compressae_index.search.protocol import Candidates, SparseBackend
from compressae_index.search.queries import (
    MAX_K,
    MAX_PLACES,
    QUERY_BLOCK,
    QUERY_NNZ,
    SCORINGS,
    Asked,
    BackedResult,
    Explanation,
    Scoring,
    check_candidates,
    check_k,
    explained,
    projections,
)
from compressae_index.search.stages import _best, code_scores, holds_best, strongest_terms
from compressae_index.sources import VectorSource, check_no_rows, ids_of_rows, open_vectors

# To fetch codes of candidates, of which others may remove some or replace them meanwhile.
ATTEMPTS = 10


class BackedStats(NamedTuple):
    """What an index over a back end holds."""

    vectors: int
    dim: int
    n_latents: int
    k: int
    encoder: str
    metric: str
    bytes_per_vector: dict[str, float]
    """Bytes a vector by part, as far as the back end tells."""
    model_bytes: int


class BackedIndex:
    """Vectors whose codes a back end keeps, searched as those of a `CompressedIndex`.

    Ties go to the lower id. Documents that share no term with a query are not found.
    """

    modes: ClassVar[tuple[str, ...]] = ("sparse", "two_stage")

    def __init__(
        self,
        model: CompresSAE,
        backend: SparseBackend,
        *,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
    ) -> None:
        """From a model and the back end that keeps its folded codes.

        Args:
            model: the model that encoded what the back end holds.
            backend: keeps the codes.
            encoder: how vectors that are added become codes.
            metric: what scores are; with "inner_product", codes that the back end holds are times the norm
                of their vector.

        Raises:
            DimensionError: the back end's codes are over another number of latents.
            InputError: the model leaves out a mean, and the metric is not cosine.
        """
        if backend.n_latents != model.n_latents:
            msg = f"the back end has {backend.n_latents} latents, the model {model.n_latents}"
            raise DimensionError(msg)
        self.model = model
        self.backend = backend
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.metric: Metric = check_choice(metric, "metric", METRICS)
        check_model(model, metric)

    def __len__(self) -> int:
        """Vectors that a search can find."""
        return len(self.backend)

    def __repr__(self) -> str:
        n, size = len(self.backend), sum(self.backend.nbytes.values())
        return (
            f"{type(self).__name__}({n} vectors, dim={self.model.dim}, n_latents={self.model.n_latents}, "
            f"k={self.backend.k}, {size / max(n, 1):.1f} bytes a vector)"
        )

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Literal["sparse", "two_stage"] = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
    ) -> BackedResult:
        """The k nearest documents of each query.

        Args:
            queries: (n_queries, d), or (d,) for one.
            k: neighbours of each query.
            mode: "sparse" scores by the query's query_nnz strongest latents; "two_stage" scores what these
                find by the metric with the reconstruction.
            candidates: documents that the back end's stage one gives, at least k; by default 1,000, or k
                where that is more. In "sparse" they are fetched only where the back end's scores are no more
                than upper bounds.
            query_nnz: latents of the query that stage one keeps, of largest magnitude; 64 by default.
            scoring: as for `CompressedIndex.search`.
            filter: what to search among, in the back end's own words.
            num_threads: threads that encode the queries of scoring="symmetric"; all by default.

        Returns:
            scores and ids, each (n_queries, k), and `certified`. Where fewer than k documents share a term
            with the query: id -1 (None for string ids) and score -inf.

        Raises:
            InputError: bad queries, another dimension, k or query_nnz below 1, candidates below k, a bad
                filter.
        """
        k, n = self._depth(k, candidates, mode)
        asked = self._asked(queries, mode, scoring, query_nnz, num_threads)
        if k * len(asked) > MAX_PLACES:  # as counting documents may be a question to a server
            check_k(k, len(self), len(asked))
        return self._joined(
            (
                self._ranked(block, self.backend.candidates(block.terms, n, filter), k)
                for block in (asked.block(first) for first in range(0, len(asked), QUERY_BLOCK))
            ),
            k,
        )

    def _depth(self, k: int, candidates: int | None, mode: str) -> tuple[int, int]:
        """The k, and how many candidates to ask for."""
        k = check_int(k, "k", 1, MAX_K)
        candidates = check_candidates(candidates, k)
        check_choice(mode, "mode", self.modes)
        return k, k if mode == "sparse" and self.backend.is_exact else candidates

    def _asked(
        self,
        queries: Any,
        mode: str,
        scoring: Scoring,
        query_nnz: int | None,
        num_threads: int | None,
    ) -> Asked:
        check_choice(scoring, "scoring", SCORINGS)
        query_nnz = QUERY_NNZ if query_nnz is None else check_int(query_nnz, "query_nnz", 1)
        threads = check_threads(num_threads)
        rows = check_vectors(queries, dim=self.model.dim, name="queries", may_be_empty=True)
        factors = self._scale.of_queries(rows)
        sparse_u, dense_u, mean_scores = projections(
            self.model, rows, mode, scoring, self.backend.k, self.encoder, threads
        )
        terms = strongest_terms(sparse_u, query_nnz)
        return Asked(terms, None if mode == "sparse" else dense_u, factors, mean_scores)

    def _ranked(self, asked: Asked, found: Candidates, k: int) -> BackedResult:
        """The best k candidates by exact scores."""
        sums = scores = found.scores
        if not self.backend.is_exact or asked.projections is not None:
            found, codes = self._with_codes(found)
            sums, missing = found.scores, np.isneginf(found.scores)
            if not self.backend.is_exact:
                sums = np.where(missing, -np.inf, code_scores(asked.terms.to_dense(), codes))
            scores = sums
            if asked.projections is not None:
                scores = np.where(missing, -np.inf, code_scores(asked.projections, codes))
        certified = holds_best(sums, found.bounds, k)
        best = _best(scores, found.ids, k)
        scores = np.take_along_axis(scores, best, axis=1)
        ids: Any = np.take_along_axis(found.ids, best, axis=1)
        scores = asked.in_metric(scores)
        # Scores that differed by less than a sum with `mean_scores` can tell now tie.
        best = _best(scores, ids, k)
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
        if short := k - scores.shape[1]:
            nothing: Any = None if self.backend.are_strings else -1
            scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
            ids = np.pad(ids, ((0, 0), (0, short)), constant_values=nothing)
        return BackedResult(scores.astype(np.float32, copy=False), ids, certified)

    def _with_codes(self, found: Candidates) -> tuple[Candidates, SparseCodes]:
        """Candidates with their codes, which are fetched where the back end did not give them along.

        Each is fetched once; what was removed since it was found is no candidate any more.
        """
        if found.codes is not None:
            return found, found.codes
        present = ~np.isneginf(found.scores)
        wanted: Any
        wanted, place = np.unique(found.ids[present], return_inverse=True)
        held, codes = self._held_codes(wanted)
        nothing: Any = None if self.backend.are_strings else -1
        gone = present.copy()
        gone[present] = ~held[place]
        found = found._replace(
            ids=np.where(gone, nothing, found.ids), scores=np.where(gone, np.float32(-np.inf), found.scores)
        )
        n, width = found.scores.size, self.backend.k
        latents = np.broadcast_to(np.arange(width, dtype=np.uint16), (n, width)).copy()
        values = np.zeros((n, width), dtype=np.float32)
        of_held = (np.cumsum(held) - 1)[place][held[place]]
        left = (present & ~gone).ravel()
        latents[left], values[left] = codes.latents[of_held], codes.values[of_held]
        return found, SparseCodes(latents, values, self.model.n_latents)

    def _held_codes(self, ids: IdArray) -> tuple[BoolArray, SparseCodes]:
        """Which of some ids are still held, while others may remove them, and the codes of these."""
        held = np.ones(len(ids), dtype=bool)
        for attempt in range(ATTEMPTS):
            if not held.any():
                break
            try:
                return held, self.backend.codes(ids[held])
            except UnknownIdError:
                if attempt == ATTEMPTS - 1:
                    raise
                held = self.backend.held(ids)
        nothing = np.empty((0, self.backend.k))
        codes = SparseCodes(nothing.astype(np.uint16), nothing.astype(np.float32), self.model.n_latents)
        return held, codes

    def _joined(self, results: Iterable[BackedResult], k: int) -> BackedResult:
        """Results of blocks of queries, one below the other; there may be none."""
        blocks = list(results)
        if not blocks:
            ids: Any = np.empty((0, k), dtype=object if self.backend.are_strings else np.int64)
            return BackedResult(np.empty((0, k), dtype=np.float32), ids, np.empty(0, dtype=bool))
        return BackedResult(
            np.concatenate([block.scores for block in blocks]),
            np.concatenate([block.ids for block in blocks]),
            np.concatenate([block.certified for block in blocks]),
        )

    def add(
        self, embeddings: VectorSource, ids: Any, *, num_threads: int | None = None, progress: bool = False
    ) -> None:
        """Appends vectors.

        Args:
            embeddings: (n, d) floating point, as for `CompressedIndex.build`; there may be none. Their codes
                are held in memory until all are made, so that a bad row is found before anything is written.
            ids: new ids of the kind that the back end holds.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or that are held already. Nothing was
                added.
        """
        self._write(embeddings, ids, self._put, replace=False, num_threads=num_threads, progress=progress)

    def upsert(
        self, embeddings: VectorSource, ids: Any, *, num_threads: int | None = None, progress: bool = False
    ) -> None:
        """Adds vectors, and replaces those of ids that are held; arguments and errors as for `add`."""
        self._write(embeddings, ids, self._put, replace=True, num_threads=num_threads, progress=progress)

    def _put(self, codes: SparseCodes, ids: IdArray, rows: slice) -> None:  # noqa: ARG002
        self.backend.put(codes, ids)

    def _write(
        self,
        embeddings: VectorSource,
        ids: Any,
        put: Callable[[SparseCodes, IdArray, slice], None],
        *,
        replace: bool,
        num_threads: int | None,
        progress: bool,
    ) -> None:
        """Encodes, then stores chunk by chunk; `put` gets the codes, ids and rows of each."""
        vectors = open_vectors(embeddings, may_be_empty=True)
        new, _ = ids_of_rows(as_id_array(ids), vectors)
        if not len(new):
            check_no_rows(vectors, self.model.dim)
            return
        self._check_kind(new.all())
        if not replace and (held := self.backend.held(new.all())).any():
            first = new.all()[held].tolist()[0]
            msg = (
                f"id {first!r:.100} is already in the index ({int(held.sum())} such ids); "
                "remove it, or upsert"
            )
            raise InputError(msg)
        threads, chunks = check_threads(num_threads), []
        with track(len(new), "encoding", enabled=progress) as advance:
            for codes in encoded_chunks(
                self.model, vectors, self.backend.k, self.encoder, threads, scale=self._scale
            ):
                chunks.append(codes)
                advance(len(codes))
        first = 0
        with track(len(new), "storing", enabled=progress) as advance:
            for codes in chunks:
                rows = slice(first, first + len(codes))
                put(codes, new.of(np.arange(rows.start, rows.stop)), rows)
                first = rows.stop
                advance(len(codes))

    def remove(self, ids: Any) -> None:
        """Removes vectors.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id stands twice.
        """
        array = as_id_array(ids)
        if not len(array):
            return
        self._check_held(array)
        if (twice := len(array) - len(np.unique(array))) > 0:
            msg = f"{twice} of {len(array)} ids to remove stand more than once"
            raise InputError(msg)
        self.backend.remove(array)

    def codes(self, ids: Any) -> SparseCodes:
        """The stored codes of ids: folded, times the kept norm.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        array = as_id_array(ids)
        if not len(array):
            return SparseCodes.empty(self.backend.k, self.model.n_latents)
        if (array.dtype == object) != self.backend.are_strings:
            self._check_held(array)
        return self.backend.codes(array)

    def reconstruct(self, ids: Any) -> FloatArray:
        """Reconstructed vectors of ids, (n, d) float32, of unit norm, or the kept one, up to rounding.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        return self.model.decode(self.codes(ids))

    def explain(self, query: Any, id: int | str) -> Explanation:  # noqa: A002
        """How a document's code adds up to its score in "two_stage".

        Raises:
            UnknownIdError: the id is not in the index.
            InputError: not one query of the index's dimension.
        """
        rows = check_vectors(query, dim=self.model.dim, name="queries")
        if len(rows) != 1:
            msg = f"explain takes one query, got {len(rows)}"
            raise DimensionError(msg)
        projection, factors = self.model.project(rows), self._scale.of_queries(rows)
        if factors is not None:
            projection *= factors
        return explained(projection[0], self.codes([id]), self.model.mean_scores(rows))

    def stats(self) -> BackedStats:
        """What the index holds, and what it costs as far as the back end tells."""
        n, parts = len(self.backend), self.backend.nbytes
        if parts:
            parts = parts | {"total": sum(parts.values())}
        return BackedStats(
            vectors=n,
            dim=self.model.dim,
            n_latents=self.model.n_latents,
            k=self.backend.k,
            encoder=self.encoder,
            metric=self.metric,
            bytes_per_vector={name: size / max(n, 1) for name, size in parts.items()},
            model_bytes=sum(tensor.nbytes for tensor in self.model.tensors().values()),
        )

    @property
    def _scale(self) -> RowScale:
        return RowScale(self.metric, 1.0)  # back ends keep values as they are, so norms need no unit

    def _check_kind(self, ids: IdArray) -> None:
        kinds = ("strings", "integers") if self.backend.are_strings else ("integers", "strings")
        if (ids.dtype == object) != self.backend.are_strings:
            msg = f"the ids of this index are {kinds[0]}, the new ones are {kinds[1]}"
            raise InputError(msg)

    def _check_held(self, ids: IdArray) -> None:
        same_kind = (ids.dtype == object) == self.backend.are_strings
        held = self.backend.held(ids) if same_kind else np.zeros(len(ids), dtype=bool)
        if not held.all():
            first = ids[~held].tolist()[0]
            msg = f"unknown id {first!r:.100} ({int((~held).sum())} of {len(ids)} ids are unknown)"
            raise UnknownIdError(msg)
