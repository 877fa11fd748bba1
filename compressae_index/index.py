"""The index: build, search, change, explain, save and load."""

from __future__ import annotations

import copyreg
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index._engine import simd
from compressae_index.arrays import FloatArray, IdArray
from compressae_index.building import planning
from compressae_index.building.planning import Plan
from compressae_index.building.training import check_given, code_sizes, trained_model, training_settings
from compressae_index.checks import as_path, check_choice, check_int, check_threads, check_vectors
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.directory import CodeStore
from compressae_index.coding.metric import METRICS, Metric, RowScale
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_is_model, check_model
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.clustering import similar_order
from compressae_index.embedded.codecs import CodecName, codec_of
from compressae_index.embedded.codecs.packed import VALUE_BITS
from compressae_index.embedded.documents import Documents
from compressae_index.embedded.sizes import RUN_ROWS, WINDOW
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.ids import STORED_ROWS, Ids, as_id_array, stored_rows
from compressae_index.processes import ForkSafeLock
from compressae_index.progress import track
from compressae_index.search.queries import (
    MODES,
    SCORINGS,
    Explanation,
    Mode,
    Scoring,
    SearchResult,
    check_candidates,
    check_k,
    explained,
    projections,
)
from compressae_index.search.stages import in_order, padded
from compressae_index.sources import (
    CHUNK_ROWS,
    BadRows,
    Vectors,
    VectorSource,
    check_no_rows,
    ids_of_rows,
    open_vectors,
)

if TYPE_CHECKING:
    from compressae_index.training import TrainConfig

# Rows whose codes are collected before they become part of an index; whole windows of the back end.
APPEND_ROWS = RUN_ROWS


class IndexStats(NamedTuple):
    """What an index holds and what it costs."""

    vectors: int
    removed: int
    """Vectors that were removed and still take memory; `compact` reclaims it."""
    dim: int
    n_latents: int
    k: int
    postings: int
    """Nonzeros of a code that the posting lists keep."""
    encoder: str
    metric: str
    bytes_per_vector: dict[str, float]
    """Resident bytes a vector by part: forward, inverted, ids, and the sum of those."""
    bytes_by_mode: dict[str, float]
    """Bytes a vector of the parts that each mode reads."""
    model_bytes: int
    dead_latents: int
    """Latents without a posting."""
    list_skew: float
    """Longest posting list over the mean list."""
    simd: str
    """The engine's instruction set."""
    clusters: int
    """Clusters of similar vectors, of which a search may skip some; 0 unless `cluster` made them."""


class CompressedIndex:
    """Vectors stored as k signed (latent, value) pairs each, and searched from these codes.

    Similarity is cosine, for which neither vectors nor queries need unit norm, or the inner product; see
    `build`, which makes an index. `load` reads one. Searches may run in several threads, also while one of
    them adds, removes or upserts: each sees the index as it was when it began. An index may be copied,
    pickled and sent to other processes; a mapped one is sent as the path of its files.
    """

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        backend: EmbeddedBackend | None = None,
        ids: Ids | None = None,
        alive: npt.NDArray[np.bool_] | None = None,
        unit: float | None = None,
    ) -> None:
        """An empty index, unless parts that fit together are given; `unit` is that of kept norms."""
        check_model(model, metric)
        self.model = model
        self.k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        backend = EmbeddedBackend(model.n_latents, self.k) if backend is None else backend
        self.plan: Plan | None = None
        """What `build` chose for its budget and what it expects, where there was one. It is not saved."""
        self.skipped: IdArray = np.empty(0, dtype=np.int64)
        """Ids of rows that the last `build`, `add` or `upsert` left out by on_bad_rows="skip". Not saved."""
        self._state = Documents(backend, ids or Ids(len(backend), {}), alive)
        # Replaced, before the state, when the first rows choose the unit.
        self._scale = RowScale(metric, unit)
        self._writer = ForkSafeLock()
        # The files that the codes of a back end are mapped from.
        self._mapped: tuple[EmbeddedBackend, persistence.Mapped] | None = None

    @classmethod
    def build(
        cls,
        embeddings: VectorSource,
        ids: Any = None,
        *,
        k: int | None = None,
        n_latents: int | None = None,
        model: CompresSAE | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        config: TrainConfig | None = None,
        forward: CodecName = "packed",
        value_bits: int | None = None,
        postings: int | None = None,
        bytes_per_vector: float | None = None,
        target_recall: float | None = None,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = True,
    ) -> CompressedIndex:
        """Trains a model on the embeddings, unless one is given, and encodes them.

        Args:
            embeddings: (n, d) floating point: an array, a table or column of vectors, a memory map, file,
                folder of shards or iterator of batches, as `sources.open_vectors` takes them. They are read
                in batches; rows must be finite and not zero.
            ids: one int64 (not negative) or string a row; 0 .. n-1 by default.
            k: nonzeros a code, at most d; by default the model's, or 32, less for fewer than 256 rows or 32
                dimensions.
            n_latents: size of the dictionary; 4096 by default, less for fewer than 8,192 rows.
            model: a trained model to use as it is. Needs no torch.
            encoder: how vectors become codes: "pursuit" (best), or "topk" (the paper's single pass).
            metric: what scores are. "cosine": of the query and the reconstructed row; norms are dropped.
                "inner_product": of the query and the reconstruction, which has the norm of the row, in the
                units of the vectors given. The norm costs no byte: the scale of a code carries it, in half
                precision, so that the index keeps norms from 1/1024 to 4096 times a power of two near the
                median of the first rows. Long rows may be near by latents that a query's query_nnz strongest
                leave out: the more norms differ, the more query_nnz "two_stage" needs; "dense" does not.
                Training sees directions only. A model that leaves out a mean does not fit.
            config: training settings; k and n_latents may be named there or here.
            forward: how codes are stored for `dense` and `two_stage`: "packed" takes the fewest bytes,
                "aligned" is the fastest.
            value_bits: bits of a packed value, 4 to 8, 6 by default; the aligned codec always has 8.
            postings: nonzeros of a code that the posting lists keep, the strongest; all by default. Each left
                out saves 3 bytes, and makes `sparse` and the first stage of `two_stage` approximate.
            bytes_per_vector: a budget for all that `two_stage` keeps resident, ids and all, at n vectors. k,
                value_bits and postings are chosen to fit it by measuring recall (by cosine) of held-out rows;
                `plan` then says what was chosen and what to expect.
            target_recall: the same, for the smallest budget whose expected recall@100 is at least this.
            on_bad_rows: "error", or "skip" to leave out rows that are zero, missing, or hold NaN or infinite
                values. Ids are still one for each row that is given, and by default the numbers of these;
                `skipped` has those of the rows that were left out.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: an argument is of another type or out of range, a model is of another dimension, ids
                repeat, all before any training; bad rows, or a kept norm out of range.
            MissingExtraError: there is a model to train and torch is not installed.
        """
        check_choice(encoder, "encoder", ENCODERS)
        scale, threads = RowScale(metric), check_threads(num_threads)
        planned = bytes_per_vector is not None or target_recall is not None
        if planned:
            planning.check_budget(bytes_per_vector, target_recall, k, value_bits, postings, forward)
        codec = codec_of(forward, value_bits=VALUE_BITS if value_bits is None else value_bits)
        if postings is not None:
            check_int(postings, "postings", 1)
        settings = training_settings(k, n_latents, config, metric) if model is None else None
        if model is not None:
            check_given(model, n_latents, config, metric)
        vectors = open_vectors(embeddings, on_bad_rows=on_bad_rows)
        row_ids, skipped = ids_of_rows(ids, vectors)
        id_bytes = row_ids.nbytes / len(row_ids)
        wanted = planning.training_k(bytes_per_vector) if planned else None
        k, latents = code_sizes(model, settings, vectors, k, encoder, wanted)
        if bytes_per_vector is not None:
            planning.check_room(bytes_per_vector, latents, len(row_ids), id_bytes)
        if postings is not None:
            check_int(postings, "postings", 1, k, "k")
        if model is None:
            model = trained_model(vectors, k, n_latents, config, metric, progress=progress)
        plan = None
        if planned:
            plan = planning.choose(
                model,
                vectors,
                bytes_per_vector=bytes_per_vector,
                target_recall=target_recall,
                id_bytes=id_bytes,
                encoder=encoder,
                num_threads=threads,
                progress=progress,
            )
            k, postings, codec = plan.k, plan.postings, codec_of("packed", value_bits=plan.value_bits)
        backend = EmbeddedBackend(model.n_latents, k, codec, postings=postings)
        index = cls(model, k=k, encoder=encoder, metric=metric, backend=backend)
        index.plan, index.skipped = plan, skipped
        chunks = encoded_chunks(model, vectors, k, encoder, threads, scale=scale)
        index._append(chunks, row_ids, threads, progress, scale=scale)
        return index

    @classmethod
    def from_codes(
        cls,
        codes: CodeStore | str | os.PathLike[str],
        model: CompresSAE,
        ids: Any = None,
        *,
        forward: CodecName = "packed",
        value_bits: int = VALUE_BITS,
        postings: int | None = None,
        num_threads: int | None = None,
        progress: bool = True,
    ) -> CompressedIndex:
        """An index of codes that `encoding.encode_to_directory` wrote; nothing is encoded again.

        Its metric is cosine, as such codes hold no norms.

        Args:
            codes: what that function gave, or its directory. k and the encoder are those of the codes.
            model: the model that encoded.
            ids: one id a row, as for `build`.
            forward: as for `build`.
            value_bits: as for `build`.
            postings: as for `build`.
            num_threads: threads to build with; all by default.
            progress: show a progress bar.

        Raises:
            FormatError: the directory is unfinished or damaged, or another model encoded.
            InputError: an argument is of another type or out of range; duplicate ids, or another number of
                them.
        """
        threads, codec = check_threads(num_threads), codec_of(forward, value_bits=value_bits)
        if postings is not None:
            check_int(postings, "postings", 1)
        check_is_model(model)
        if ids is not None:
            ids = as_id_array(ids)
        store = codes if isinstance(codes, CodeStore) else CodeStore.load(codes)
        if store.fingerprint != model.fingerprint:
            msg = (
                f"{store.path} was encoded by a model of fingerprint {store.fingerprint}, "
                f"the model given has {model.fingerprint}"
            )
            raise FormatError(msg)
        if store.n_latents != model.n_latents:
            msg = f"{store.path} says that its codes are over {store.n_latents} latents, of {model.n_latents}"
            raise FormatError(msg)
        if postings is not None:
            check_int(postings, "postings", 1, store.k, "k")
        row_ids = Ids.from_user(ids, len(store))
        backend = EmbeddedBackend(model.n_latents, store.k, codec, postings=postings)
        index = cls(model, k=store.k, encoder=store.encoder, backend=backend)
        chunks = (store[first : first + CHUNK_ROWS] for first in range(0, len(store), CHUNK_ROWS))
        index._append(chunks, row_ids, threads, progress, label="indexing")
        return index

    def __len__(self) -> int:
        """Vectors that a search can find."""
        return self._state.n_alive

    def __repr__(self) -> str:
        state = self._state
        size = sum(state.backend.nbytes.values()) + state.ids.nbytes + state.mark_bytes
        per_vector = size / max(len(state.ids), 1)
        return (
            f"CompressedIndex({state.n_alive} vectors, dim={self.model.dim}, "
            f"n_latents={self.model.n_latents}, k={self.k}, {per_vector:.1f} bytes a vector)"
        )

    def __copy__(self) -> CompressedIndex:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self) | {"_writer": ForkSafeLock()})
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedIndex:
        return self.__copy__()  # nothing that an index holds is ever changed, but replaced

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles arrays, or the path of mapped ones, where the same files must then be found."""
        state = self._state
        if self._mapped is not None and self._mapped[0] is state.backend:
            return type(self)._mapped_again, (self._mapped[1], state.alive, self.plan)
        return copyreg.__newobj__, (type(self),), vars(self) | {"_mapped": None}  # type: ignore[attr-defined]

    @classmethod
    def _mapped_again(
        cls, mapped: persistence.Mapped, alive: npt.NDArray[np.bool_] | None, plan: Plan | None
    ) -> CompressedIndex:
        """What a mapped index was pickled as.

        Raises:
            FormatError: its files are gone, damaged, or others.
        """
        index = cls.load(mapped.path, mmap=True)
        mapped.check(index._mapped and index._mapped[1])
        index.plan = plan
        index._state = Documents(index._state.backend, index._state.ids, alive)
        return index

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        nprobe: int | None = None,
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
    ) -> SearchResult:
        """The k nearest documents of each query.

        Args:
            queries: (n_queries, d), or (d,) for one.
            k: neighbours of each query. More than there are vectors leaves places of the answer empty, and is
                refused where these would be millions.
            mode: "sparse" scores by the query's query_nnz strongest latents, through their posting lists;
                "dense" scores every document by the metric with its reconstruction; "two_stage" takes the
                best `candidates` by posting lists and scores them as "dense" does. Posting lists hold values
                of 8 bits and sum them in 16, which may change who comes last among the candidates; scores
                are exact for the stored codes.
            candidates: documents that stage one hands to stage two, at least k; by default 1,000, or k where
                that is more.
            query_nnz: latents of the query that stage one keeps, of largest magnitude; by default 64, and
                64 k / postings where the posting lists keep fewer than k nonzeros, which is as fast.
            scoring: "asymmetric" compares the query itself with the codes; "symmetric" encodes the query
                first, as the paper does: s_q with s in "sparse", x_hat_q with x_hat in "dense".
            nprobe: clusters that posting lists are scanned of, those whose mean codes score best; all by
                default, which is exact. `cluster` makes them, at least 8, of 32,768 vectors and more; an
                index without them takes no nprobe. All are scanned where those hold fewer than k that match.
            filter: ids to search among, or a boolean mask with one entry a vector in the order of `ids`.
                Ids are taken as a set, in which repeats count once. It is applied inside scoring, so k
                results come back where k are allowed.
            num_threads: threads to share the queries, or the documents where there are fewer queries and no
                nprobe; all by default.

        Returns:
            scores and ids, each (n_queries, k); ties go to the document that is first in `ids`. Where
            fewer than k documents match: id -1 (None for string ids) and score -inf.

        Raises:
            InputError: bad queries, another dimension, k, query_nnz or nprobe below 1, candidates below k,
                nprobe without clusters or in "dense", a filter of another length, unknown ids, or integers
                that may be meant as a mask.
        """
        check_choice(mode, "mode", MODES)
        check_choice(scoring, "scoring", SCORINGS)
        candidates = check_candidates(candidates, k)
        if query_nnz is not None:
            query_nnz = min(check_int(query_nnz, "query_nnz", 1), self.model.n_latents)
        threads = check_threads(num_threads)
        rows = check_vectors(queries, dim=self.model.dim, name="queries", may_be_empty=True)
        state = self._state
        k = check_k(k, state.n_alive, len(rows))
        nprobe = _check_nprobe(nprobe, mode, state.backend)
        allowed, n_allowed = state.allowed(filter)
        width = min(k, n_allowed) if len(rows) else 0
        if width == 0:
            return padded(
                np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64), k, state.ids
            )
        factors = self._scale.of_queries(rows)
        # Beyond what is allowed there is nothing to select, so a huge k or candidates costs no memory.
        candidates = min(max(candidates, k), n_allowed)
        query_nnz = state.backend.query_nnz if query_nnz is None else query_nnz
        backend = state.backend
        sparse_u, dense_u, mean_scores = projections(
            self.model, rows, mode, scoring, self.k, self.encoder, threads
        )
        if mode == "sparse":
            scores, found = backend.sparse(sparse_u, query_nnz, width, allowed, threads, nprobe)
        elif mode == "dense":
            scores, found = backend.dense(dense_u, width, allowed, threads)
        else:
            scores, found = backend.two_stage(
                sparse_u, dense_u, query_nnz, candidates, width, allowed, threads, nprobe
            )
        if factors is not None:
            scores *= factors
        if mean_scores is not None:
            # Scores that differed by less than the sum can tell now tie.
            scores, found = in_order(scores + mean_scores, found)
        return padded(scores, found, k, state.ids)

    def add(
        self,
        embeddings: VectorSource,
        ids: Any = None,
        *,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Appends vectors; the model stays as it is.

        Args:
            embeddings: (n, d) floating point, as for `build`; there may be none.
            ids: new ids of the kind the index has; by default integers above the largest one.
            on_bad_rows: as for `build`.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or that the index already holds, a kept
                norm out of range. Nothing was added.
        """
        vectors = open_vectors(embeddings, on_bad_rows=on_bad_rows, may_be_empty=True)
        with self._writer.lock:
            if ids is None and len(self._state.ids) and vectors.shape[0]:
                ids = self._state.next_ids(getattr(vectors, "n_rows", vectors.shape[0]))
            new_ids, skipped = ids_of_rows(ids, vectors)
            self._encode(vectors, new_ids, num_threads, progress, self._state)
            self.skipped = skipped

    def upsert(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Appends vectors, and removes those that had their ids; searches see both or neither.

        The memory of what was replaced stays in use until `compact`. Replaced ids come last in `ids`.

        Args:
            embeddings: (n, d) floating point, as for `build`; there may be none.
            ids: one id a row, of the kind the index has, held or new.
            on_bad_rows: as for `build`; what was held by the ids of bad rows stays.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or are of the other kind, a kept norm out
                of range. Nothing was changed.
        """
        vectors = open_vectors(embeddings, on_bad_rows=on_bad_rows, may_be_empty=True)
        new_ids, skipped = ids_of_rows(as_id_array(ids), vectors)
        with self._writer.lock:
            self._encode(vectors, new_ids, num_threads, progress, self._state.without_ids(new_ids))
            self.skipped = skipped

    def _encode(
        self, vectors: Vectors, ids: Ids, num_threads: int | None, progress: bool, state: Documents
    ) -> None:
        """Replaces the state by `state` and vectors, while nobody else writes."""
        threads, scale = check_threads(num_threads), self._scale.copy()
        if not len(ids):
            check_no_rows(vectors, self.model.dim)
            return
        chunks = encoded_chunks(self.model, vectors, self.k, self.encoder, threads, scale=scale)
        self._append(chunks, ids, threads, progress, scale=scale, state=state)

    def _append(
        self,
        chunks: Iterable[SparseCodes],
        ids: Ids,
        num_threads: int | None,
        progress: bool,
        *,
        label: str = "encoding",
        scale: RowScale | None = None,
        state: Documents | None = None,
    ) -> None:
        """Replaces the state by `state`, its own by default, and folded codes, one of `ids` a row.

        Nobody else may write meanwhile; `scale` is what scaled the codes.
        """
        threads, state = check_threads(num_threads), state or self._state
        state.check_new(ids)
        with track(len(ids), label, enabled=progress) as advance:
            added = state.added(_collected(chunks, advance), ids, threads, self.model.decoder_w)
        self._scale = self._scale if scale is None else scale
        self._state = added

    def remove(self, ids: Any) -> None:
        """Removes vectors; their memory stays in use until `compact`.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id stands twice.
        """
        with self._writer.lock:
            self._state = self._state.removed(ids)

    def compact(self, *, num_threads: int | None = None) -> None:
        """Reclaims the memory of removed vectors."""
        with self._writer.lock:
            self._state = self._state.compacted(check_threads(num_threads))

    def cluster(self, *, num_threads: int | None = None, progress: bool = False) -> None:
        """Brings similar vectors together, so that a search may skip most of them: `search` with nprobe.

        Vectors are moved, so that `ids` has another order; ids that counted from 0 take 4 bytes each then.
        Removed ones are dropped, as by `compact`. Clusters hold 4,096 vectors and take 3 bytes of each; they
        are made of whole windows of 32,768. What is left over, and what is added later, is in none, and every
        search scans it: cluster again after adding much. Of fewer vectors than a window none are made, and a
        UserWarning says so.

        Args:
            num_threads: threads to work with; all by default.
            progress: show a progress bar.
        """
        threads = check_threads(num_threads)
        with self._writer.lock:
            state = self._state
            order = similar_order(self.model, state.backend, state.alive_rows(), threads, progress=progress)
            self._state = state.clustered(order, threads)
        if state.n_alive < WINDOW:
            msg = (
                f"clusters are made of at least {WINDOW:,} vectors, and the index holds {state.n_alive:,}: "
                "none were made, and searches take no nprobe"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)

    @property
    def metric(self) -> Metric:
        """What scores are."""
        return self._scale.metric

    @property
    def documents(self) -> Documents:
        """What searches see now: codes in this package's own form, ids, marks of removal."""
        return self._state

    @property
    def unit(self) -> float:
        """What the codes of `documents` are to be multiplied with; 1 for cosine."""
        return self._scale.unit or 1.0

    @property
    def ids(self) -> IdArray:
        """The ids in the order of adding, or in that of `cluster`, removed ones left out."""
        state = self._state
        return state.ids.of(state.alive_rows())

    def codes(self, ids: Any) -> SparseCodes:
        """The stored codes of ids: folded, times the kept norm, and rounded to the stored precision.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        state = self._state
        codes = state.backend.codes(state.rows_of(ids))
        return codes if self._scale.unit in (None, 1.0) else codes.scaled(self._scale.unit)

    def reconstruct(self, ids: Any) -> FloatArray:
        """Reconstructed vectors of ids, (n, d) float32, of unit norm, or the kept one, up to rounding.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        return self.model.decode(self.codes(ids))

    def explain(self, query: Any, id: int | str) -> Explanation:  # noqa: A002
        """How a document's code adds up to its `dense` score.

        Raises:
            UnknownIdError: the id is not in the index.
            InputError: not one query of the index's dimension.
        """
        rows = check_vectors(query, dim=self.model.dim, name="queries")
        if len(rows) != 1:
            msg = f"explain takes one query, got {len(rows)}"
            raise DimensionError(msg)
        projection = self.model.project(rows)
        factors = self._scale.of_queries(rows)
        if factors is not None:
            projection *= factors / (self._scale.unit or 1.0)  # values carry the unit
        return explained(projection[0], self.codes([id]), self.model.mean_scores(rows))

    def stats(self) -> IndexStats:
        """What the index holds and what it costs."""
        state = self._state
        n, lengths = len(state.ids), state.backend.list_lengths()
        parts = state.backend.nbytes | {"ids": state.ids.nbytes + state.mark_bytes}
        parts["total"] = sum(parts.values())
        per_vector = {name: size / max(n, 1) for name, size in parts.items()}
        return IndexStats(
            vectors=state.n_alive,
            removed=n - state.n_alive,
            dim=self.model.dim,
            n_latents=self.model.n_latents,
            k=self.k,
            postings=state.backend.postings,
            encoder=self.encoder,
            metric=self._scale.metric,
            bytes_per_vector=per_vector,
            bytes_by_mode={
                "sparse": per_vector["total"],  # what posting lists find is scored by its codes
                "dense": per_vector["forward"] + per_vector["ids"],
                "two_stage": per_vector["total"],
            },
            model_bytes=sum(tensor.nbytes for tensor in self.model.tensors().values()),
            dead_latents=int((lengths == 0).sum()),
            list_skew=float(lengths.max() / max(lengths.mean(), 1e-12)),
            simd=simd(),
            clusters=0 if state.backend.clusters is None else len(state.backend.clusters),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a directory, in one step: a crash leaves what was there before, or all of this index.

        Raises:
            FormatError: something other than an index is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        state = self._state
        arrays = state.backend.to_arrays() | state.ids.to_arrays()
        if state.alive is not None:
            arrays["alive"] = np.packbits(state.alive, bitorder="little")
        meta: dict[str, Any] = {
            "n": len(state.ids),
            "k": self.k,
            "encoder": self.encoder,
            "model": self.model.manifest(),
        }
        meta |= {"packing": state.backend.codec.manifest(), "postings": state.backend.postings}
        meta |= {"metric": self._scale.metric, "unit": self._scale.unit}
        persistence.write(path, "index", meta, arrays=arrays, tensors=self.model.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> CompressedIndex:
        """Reads what `save` wrote, and checks all of it.

        Args:
            path: the directory.
            mmap: map the codes instead of reading them, so that only what searches touch takes memory.

        Raises:
            FormatError: the directory is missing, foreign, truncated, tampered with or of a newer format;
                the message says which file and why.
            StorageError: there is no permission to read it.
        """
        stored = persistence.read(path, "index", mmap=mmap)
        where = as_path(path)
        with persistence.reading(str(where)):
            model = CompresSAE.from_stored(persistence.entry(stored.meta, "model", dict), stored.tensors)
            index = cls._from_stored(stored.meta, stored.arrays, model)
        if mmap:
            index._mapped = index._state.backend, persistence.Mapped.of(where, stored)
        return index

    @classmethod
    def _from_stored(
        cls, meta: Mapping[str, Any], arrays: dict[str, npt.NDArray[Any]], model: CompresSAE
    ) -> CompressedIndex:
        n = check_int(meta["n"], "n", 0)
        k = check_int(meta["k"], "k", 1, model.n_latents, "n_latents")
        postings = check_int(meta["postings"], "postings", 1, k, "k")
        manifest = persistence.entry(meta, "packing", dict)
        of_rows = {name: array for name, array in arrays.items() if name in STORED_ROWS}
        of_codes = {name: array for name, array in arrays.items() if name not in STORED_ROWS}
        backend = EmbeddedBackend.from_arrays(of_codes, n, model.n_latents, k, manifest, postings)
        ids, alive = stored_rows(n, of_rows)
        # Older indexes have no metric, which was cosine.
        metric, unit = check_choice(meta.get("metric", "cosine"), "metric", METRICS), meta.get("unit")
        if n and metric != "cosine" and unit is None:
            msg = "norms are kept, but not in which unit"
            raise InputError(msg)
        return cls(
            model,
            k=k,
            encoder=meta["encoder"],
            metric=metric,
            backend=backend,
            ids=ids,
            alive=alive,
            unit=unit,
        )


def _check_nprobe(nprobe: int | None, mode: Mode, backend: EmbeddedBackend) -> int | None:
    """The nprobe to search with; None for all clusters.

    Raises:
        InputError: it is below 1, or there is nothing to leave out by it.
    """
    if nprobe is None:
        return None
    nprobe = check_int(nprobe, "nprobe", 1)
    if mode == "dense":
        msg = "nprobe has no use in mode 'dense', which reads no posting lists"
        raise InputError(msg)
    if backend.clusters is None:
        todo = "call `cluster` first" if len(backend) >= WINDOW else "search without nprobe"
        msg = (
            f"nprobe is {nprobe}, but this index has no clusters: {todo} (they are made of at least "
            f"{WINDOW:,} vectors, and it holds {len(backend):,})"
        )
        raise InputError(msg)
    return min(nprobe, len(backend.clusters))


def _collected(chunks: Iterable[SparseCodes], advance: Callable[[int], object]) -> Iterator[SparseCodes]:
    """Chunks joined to runs of APPEND_ROWS rows, the last of fewer."""
    held: list[SparseCodes] = []
    for codes in chunks:
        held.append(codes)
        advance(len(codes))
        if sum(map(len, held)) >= APPEND_ROWS:
            run, held = SparseCodes.concatenate(held), []
            yield run
    if held:
        yield SparseCodes.concatenate(held)
