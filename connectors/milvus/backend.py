"""Milvus as a sparse back end: codes in a collection, found by their agreement with the query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from pymilvus import AnnSearchRequest, DataType, RRFRanker
from pymilvus.grpc_gen import milvus_pb2

from compressae_index._engine import residual_rows, residual_vectors
from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.checks import check_choice, check_int, check_threads, normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import raised, without_lengths
from compressae_index.coding.model import CompresSAE
from compressae_index.coding.pairs import PAIR
from compressae_index.connectors.milvus import residuals, wire
from compressae_index.connectors.milvus.client import CONSISTENCY_LEVELS, MAX_RESULTS, ConsistencyLevel
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    DENSE_FIELD,
    DIGEST_FIELD,
    ORIGINAL_FIELD,
    RESIDUAL_FIELD,
    Opened,
    dense_metric,
)
from compressae_index.connectors.milvus.expressions import among
from compressae_index.connectors.milvus.refining import ByOriginals, ByResiduals, Coded
from compressae_index.connectors.milvus.schema import names_of
from compressae_index.connectors.milvus.scope import as_scope
from compressae_index.conversion import as_array
from compressae_index.embedded.originals import Spool, score_of
from compressae_index.errors import BackendError, InputError, UnknownIdError
from compressae_index.ids import Ids, as_id_array, refuse_mask_of_integers
from compressae_index.search.backend import SparseBackend, with_norms
from compressae_index.search.queries import Asked, SearchResult
from compressae_index.search.stages import (
    Candidates,
    Finder,
    Found,
    Rescorer,
    Stages,
    places_of,
    terms_of,
)

# Limits of one insert: a quarter of what a server's proxy takes, and rows beyond which nothing is gained.
_REQUEST_BYTES = 16 << 20
REQUEST_ROWS = 5000
# Postings in half precision (vector index version 10 and later) may lower a score by 2^-11 of it.
_SCORE_ROUNDING = 2.0**-10

Rows = Sequence[Mapping[str, Any]]


def check_codes(codes: SparseCodes, ids: IdArray) -> None:
    """Checks that Milvus can store the codes.

    Raises:
        InputError: a code has no nonzero value; the message gives its id.
    """
    empty = np.flatnonzero(~codes.values.any(axis=1))
    if empty.size:
        msg = (
            f"the code of id {ids.tolist()[empty[0]]!r} is zero, as its vector is the mean that the model "
            "leaves out; Milvus cannot store it: train with TrainConfig(center=False), or leave the row out"
        )
        raise InputError(msg)


class MilvusBackend(SparseBackend):
    """The codes of one collection, split by sign: [s+, s-] over twice the latents.

    A filter is a Milvus expression, ids, or a `Scope`. Every write is an upsert, so that pymilvus can repeat
    it after an error without storing a row twice.
    """

    modes = ("sparse", "two_stage", "dense", "hybrid")
    filters = ("ids", "expression")

    def __init__(
        self,
        opened: Opened,
        model: CompresSAE,
        *,
        consistency_level: ConsistencyLevel = "Strong",
    ) -> None:
        """From a collection that `open_compressed` opened.

        Args:
            opened: the collection.
            model: the model of its codes, which makes reconstructed vectors.
            consistency_level: of reads and searches. "Strong" sees all that was written before; the others
                answer sooner on a busy server.
        """
        manifest = opened.manifest
        norms = manifest.norms
        super().__init__(manifest.n_latents + norms, manifest.k + norms, are_strings=opened.key.are_strings)
        self.collection = opened.collection
        self.key = opened.key
        self.manifest = manifest
        self.dense = manifest.dense
        self.residual_bits = manifest.residual_bits
        self.stores_vectors = bool(manifest.residual_bits or manifest.own_originals)
        """Whether `put` needs the vectors of codes."""
        self.consistency_level = check_choice(consistency_level, "consistency_level", CONSISTENCY_LEVELS)
        self._documents = f"{DIGEST_FIELD} is not null" if manifest.in_place else ""
        """The expression for rows that have a code; all rows if empty."""
        self.model = model
        self._originals = opened.originals
        self.uses_originals = self._originals is not None or manifest.originals is None
        """False where the collection has original vectors that it was opened without."""
        self._last = self._last_stage()
        self.refines = self._last is not None

    def _last_stage(self) -> Rescorer | None:
        if self._originals is not None:
            return ByOriginals(
                self._seen_originals,
                score_of(self.manifest.metric, keeps_norms=self.manifest.norms),
                may_lack=self.manifest.own_originals is None,
            )
        return ByResiduals(self._coded, self.residual_bits) if self.residual_bits else None

    def __len__(self) -> int:
        return self.collection.count(filter=self._documents)

    @property
    def ids(self) -> IdArray:
        """All ids, ascending; Milvus sends them page by page."""
        return self.collection.ids(self.key, filter=self._documents)

    @property
    def nbytes(self) -> dict[str, int]:
        """Computed, as Milvus does not tell: 8 bytes a nonzero in the postings, and again in the rows."""
        n = len(self)
        parts = {"postings": n * self.k * PAIR.itemsize, "rows": n * self.k * PAIR.itemsize}
        for name, kind in (("dense", self.dense), ("originals", self.manifest.own_originals)):
            if kind:
                parts[name] = n * self.model.dim * np.dtype(kind).itemsize
        if self.residual_bits:
            parts["residuals"] = n * residuals.text_bytes(self.manifest)
        return parts

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held."""
        rows = self.collection.rows_of(self.key, ids, [], filter=self._documents)
        return np.array([id_ in rows for id_ in ids.tolist()], dtype=bool)

    def check_ids(self, ids: IdArray) -> None:
        """Checks that Milvus can store the ids.

        Raises:
            InputError: they are of the other kind, or a string has more bytes than the primary key takes.
        """
        super().check_ids(ids)
        longest = self.key.max_length
        if longest is None:
            return
        for id_ in ids.tolist():
            if len(id_.encode()) > longest:
                some = id_ if len(id_) <= 40 else id_[:40] + "..."
                msg = (
                    f"id {some!r} has {len(id_.encode())} bytes, but the primary key {self.key.name!r} of "
                    f"collection {self.collection.name!r} takes at most {longest}"
                )
                raise InputError(msg)

    def put(
        self,
        codes: SparseCodes,
        ids: IdArray,
        others: Rows | None = None,
        *,
        vectors: FloatArray | None = None,
        digests: npt.NDArray[np.int64] | None = None,
        partition: str = "",
    ) -> None:
        """Stores codes and other fields; they replace the rows of ids that are held.

        Codes in place replace those of rows of the collection, whose other fields stay.

        Args:
            codes: folded codes, or codes with room for a residual if the collection has residual codes.
            ids: one a row, each once.
            others: the other fields of each row, by name.
            vectors: (n, d) the vectors of the codes as in `Encoded.rows`, which a collection with residual
                codes or a field of original vectors needs.
            digests: (n,) of the rows of the source; by default 0, of rows that are not from it.
            partition: where to store them; the default one if empty.

        Raises:
            InputError: a code has no nonzero value, an id has more bytes than the primary key takes, or
                vectors are needed.
            BackendError: a request failed. The earlier ones are stored, and all can be repeated.
        """
        self.check_ids(ids)
        check_codes(self.to_wire(codes), ids)
        if self.stores_vectors and vectors is None:
            msg = (
                f"collection {self.collection.name!r} keeps original vectors or residual codes, so it cannot "
                "store codes alone: give their vectors too"
            )
            raise InputError(msg)
        if others is not None and not any(others):
            others = None
        for rows in self._requests(len(ids), others):
            some, of_codes = ids[rows], codes[rows]
            made = self._made(of_codes, None if vectors is None else vectors[rows])
            if self.manifest.digests:
                none = np.zeros(len(some), np.int64)
                made[DIGEST_FIELD] = none if digests is None else digests[rows]
            if others is not None:
                self._put_rows(of_codes, some, made, others[rows], partition)
            elif not self._put_packed(of_codes, some, made, partition):
                self._put_rows(of_codes, some, made, [{}] * len(some), partition)

    def added(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        partition: str = "",
        progress: bool = False,
        **_: Any,
    ) -> MilvusBackend:
        """This collection, after `put` of all codes with the values of other fields by name, one a code."""
        columns = columns or {}

        def put(codes: SparseCodes, some: IdArray, rows: slice) -> None:
            others = [
                dict(zip(columns, values, strict=True))
                for values in zip(*(column[rows] for column in columns.values()), strict=True)
            ]
            vectors = None if spool is None else np.array(spool.segment().rows[rows])
            self.put(codes, some, others or None, vectors=vectors, partition=partition)

        if self.manifest.norms:
            chunks = with_norms(chunks)
        with ExitStack() as opened:
            spool = None
            if self.stores_vectors:
                # Vectors wait for the last chunk on disk, as they take more memory than codes.
                spool = opened.enter_context(Spool(self.model.dim, np.dtype(np.float32)))
                chunks = _spooled(chunks, spool)
            self.put_all(chunks, ids, put, progress=progress)
        return self

    def _requests(self, n: int, others: Rows | None) -> Iterator[slice]:
        """Runs of rows small enough for a request."""
        fixed = 16 + self.k * PAIR.itemsize
        fixed += sum(4 * self.model.dim for kind in (self.dense, self.manifest.own_originals) if kind)
        fixed += residuals.text_bytes(self.manifest) if self.residual_bits else 0
        sizes = np.full(n, fixed)
        if others is not None:
            sizes += [len(str(row)) for row in others]
        first = 0
        while first < n:
            most = int(np.searchsorted(np.cumsum(sizes[first : first + REQUEST_ROWS]), _REQUEST_BYTES))
            rows = slice(first, min(first + max(most, 1), n))
            yield rows
            first = rows.stop

    def _made(self, codes: SparseCodes, vectors: FloatArray | None) -> dict[str, Any]:
        """Fields that are made of codes and their vectors, by name: texts, or vectors of the field's type."""
        made: dict[str, Any] = {}
        model, rows, threads = self.model, None, check_threads(None)
        codes = without_lengths(codes, model.n_latents)
        if self.residual_bits:
            assert vectors is not None
            targets = vectors if model.mean is None else vectors - model.mean
            parts = codes.latents, codes.values, model.decoder_w
            rows = residual_rows(np.ascontiguousarray(targets), *parts, self.residual_bits, threads)
            made[RESIDUAL_FIELD] = residuals.to_texts(rows)
        if self.dense:
            made[DENSE_FIELD] = self._reconstructed(codes, rows).astype(self.dense)
        if self.manifest.own_originals:
            assert vectors is not None
            made[ORIGINAL_FIELD] = vectors.astype(self.manifest.own_originals)
        return made

    def _put_packed(self, codes: SparseCodes, ids: IdArray, made: Mapping[str, Any], partition: str) -> bool:
        """Sends a message made here, faster than rows; False if this pymilvus does not offer that."""
        client = self.collection.client
        try:
            connection, context = client._get_connection(), client._generate_call_context()
            send = connection.upsert
        except AttributeError:
            return False  # these are not public
        with self.collection.doing("writing to"):
            send(
                self.collection.name,
                [],
                partition,
                timeout=self.collection.timeout,
                context=context,
                upsert_param=self._packed(codes, ids, made, partition),
                schema={"fields": []},
            )
        return True

    def _packed(
        self, codes: SparseCodes, ids: IdArray, made: Mapping[str, Any], partition: str
    ) -> milvus_pb2.UpsertRequest:
        request = milvus_pb2.UpsertRequest(
            collection_name=self.collection.name,
            partition_name=partition,
            num_rows=len(ids),
            partial_update=self.manifest.in_place,
        )
        key = request.fields_data.add(field_name=self.key.name)
        if self.are_strings:
            key.type = DataType.VARCHAR
            key.scalars.string_data.data.extend(ids.tolist())
        else:
            key.type = DataType.INT64
            key.scalars.long_data.data.extend(ids.tolist())
        sparse = request.fields_data.add(field_name=CODE_FIELD, type=DataType.SPARSE_FLOAT_VECTOR)
        sparse.vectors.dim = 2 * self.n_latents
        sparse.vectors.sparse_float_vector.dim = 2 * self.n_latents
        sparse.vectors.sparse_float_vector.contents.extend(wire.to_bytes(self.to_wire(codes)))
        for name, values in made.items():
            field = request.fields_data.add(field_name=name)
            if not isinstance(values, np.ndarray):
                field.type = DataType.VARCHAR
                field.scalars.string_data.data.extend(values)
                continue
            if values.dtype == np.int64:
                field.type = DataType.INT64
                field.scalars.long_data.data.extend(values)
                continue
            field.vectors.dim = values.shape[1]
            if values.dtype == np.float32:
                field.type = DataType.FLOAT_VECTOR
                field.vectors.float_vector.data.extend(values.ravel())
            else:
                field.type = DataType.FLOAT16_VECTOR
                field.vectors.float16_vector = values.tobytes()
        return request

    def _put_rows(
        self, codes: SparseCodes, ids: IdArray, made: Mapping[str, Any], others: Rows, partition: str
    ) -> None:
        rows = [
            {**other, self.key.name: id_, CODE_FIELD: pairs}
            for other, id_, pairs in zip(others, ids.tolist(), wire.to_rows(self.to_wire(codes)), strict=True)
        ]
        for name, values in made.items():
            of_rows = values.tolist() if name == DIGEST_FIELD else values
            for row, value in zip(rows, of_rows, strict=True):
                row[name] = value
        self.collection.upsert(rows, partition=partition, only_given=self.manifest.in_place)

    def remove(self, ids: IdArray, *, partition: str = "") -> None:
        """Removes ids, from one partition or from all; unknown ones are ignored."""
        self.collection.remove(self.key, ids, partition=partition)

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, in their order; ids may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self.codes_of(self.rows(ids, [CODE_FIELD]))

    def codes_of(self, rows: Rows) -> SparseCodes:
        """The codes in rows."""
        return self._off_wire(wire.from_rows([row[CODE_FIELD] for row in rows], self.n_latents, self.k))

    def to_wire(self, codes: SparseCodes) -> SparseCodes:
        """Codes as Milvus holds them before they are split by sign."""
        return raised(codes, self.manifest.height) if self.manifest.norms else codes

    def _off_wire(self, codes: SparseCodes) -> SparseCodes:
        if not self.manifest.norms:
            return codes
        return raised(wire.with_last_latent(codes), self.manifest.height)

    def rows(self, ids: IdArray, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of ids, in their order.

        Raises:
            UnknownIdError: an id is not held.
        """
        found = self.rows_held(ids, fields)
        missing = [id_ for id_ in ids.tolist() if id_ not in found]
        if missing:
            msg = f"unknown id {missing[0]!r:.100} ({len(missing)} of {len(ids)} ids are unknown)"
            raise UnknownIdError(msg)
        return [found[id_] for id_ in ids.tolist()]

    def rows_held(self, ids: IdArray, fields: Sequence[str]) -> dict[int | str, dict[str, Any]]:
        """Fields by id, without ids that are not held: others may have removed them since a search."""
        return self.collection.rows_of(
            self.key, ids, fields, filter=self._documents, consistency_level=self.consistency_level
        )

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """Reconstructions of ids with their residuals, (len(ids), d).

        Raises:
            UnknownIdError: an id is not held.
        """
        if not self.residual_bits:
            return super().reconstructed(ids, model)
        return self.reconstructed_of(self.rows(ids, self.coded_fields))

    @property
    def coded_fields(self) -> list[str]:
        """The fields of codes and of what these left out."""
        return [CODE_FIELD, RESIDUAL_FIELD] if self.residual_bits else [CODE_FIELD]

    def reconstructed_of(self, rows: Rows) -> FloatArray:
        """Reconstructions (m, d) of rows with `coded_fields`."""
        if not self.residual_bits:
            return self._reconstructed(self.codes_of(rows), None)
        read = _coded(rows, self)
        return self._reconstructed(read.codes, read.residuals)

    def _reconstructed(self, codes: SparseCodes, rows: residuals.ResidualRows | None) -> FloatArray:
        """Reconstructions of codes with residual rows, if there are any."""
        decoded = self.model.decode(without_lengths(codes, self.model.n_latents))
        if rows is None:
            return decoded
        return decoded + residual_vectors(rows, self.model.dim, self.residual_bits, check_threads(None))

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """The vectors of ids as the last stage knows them, (len(ids), d).

        These are the original ones, of unit norm for cosine; else, and where the source has deleted them,
        reconstructions with their residuals.

        Raises:
            UnknownIdError: an id is not held.
            BackendError: the source of the original vectors is gone.
        """
        if self._originals is None:
            return self.reconstructed(ids, model)
        if self.manifest.originals == "source":
            self.rows(ids, [])  # the source may hold ids that are not held here
        found = self._seen_originals(ids)
        lacking = np.array([id_ not in found for id_ in ids.tolist()], dtype=bool)
        vectors = np.empty((len(ids), model.dim), np.float32)
        if not lacking.all():
            held = np.array([found[id_] for id_ in ids[~lacking].tolist()])
            by_direction = score_of(self.manifest.metric, keeps_norms=self.manifest.norms) == "cosine"
            vectors[~lacking] = normalize_rows(held) if by_direction else held
        if lacking.any():
            vectors[lacking] = self.reconstructed(ids[lacking], model)
        return vectors

    def _seen_originals(self, ids: IdArray) -> dict[Any, FloatArray]:
        """The original vectors of ids that are held, by id, from the model's center; copies are stored so."""
        found, center = self._original_vectors(ids), self.model.center
        if center is None or self.manifest.own_originals:
            return found
        return {id_: vector - center for id_, vector in found.items()}

    def _original_vectors(self, ids: IdArray) -> dict[Any, FloatArray]:
        """The original vectors of ids that are held, by id."""
        assert self._originals is not None
        found: dict[Any, FloatArray] = {}
        try:
            for page in self._originals.select(ids, consistency_level=self.consistency_level):
                found.update(zip(page.ids.tolist(), page.vectors, strict=True))
        except BackendError as error:
            msg = f"{error}; search with refine=0 to go on without original vectors"
            raise BackendError(msg) from error
        return found

    def _coded(self, ids: IdArray) -> Coded:
        """Codes and residual codes of ids that are held."""
        return _coded(list(self.rows_held(ids, [CODE_FIELD, RESIDUAL_FIELD]).values()), self)

    def stages(self, mode: str) -> Stages:
        """The stages of a mode; Milvus answers "dense" and "hybrid" by itself."""
        own: dict[str, Finder] = {"dense": self.by_reconstructions, "hybrid": self.by_fused_ranks}
        if mode in own:
            return Stages(own[mode])
        stages = super().stages(mode)
        if mode == "two_stage" and self._last is not None:
            return stages._replace(then=(*stages.then, self._last))
        return stages

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query.

        Raises:
            InputError: a mode, a filter or a setting that this collection does not take.
        """
        mode, scoring = asked.mode, asked.settings.scoring
        if as_scope(asked.settings.filter).ranker is not None and mode != "hybrid":
            msg = "a ranker is for mode 'hybrid'"
            raise InputError(msg)
        if mode in ("dense", "hybrid"):
            if scoring != "asymmetric":
                msg = f"in mode {mode!r}, scoring must be 'asymmetric', got {scoring!r}"
                raise InputError(msg)
            if self.dense is None:
                msg = f"mode {mode!r} needs a reconstructed field: make the collection with dense='float32'"
                raise InputError(msg)
            if asked.settings.refine:
                msg = f"in mode {mode!r} Milvus makes the scores itself, so refine must be 0"
                raise InputError(msg)
            check_int(asked.k, "k", 1, MAX_RESULTS)
        return super().answer(asked)

    def by_reconstructions(self, asked: Asked) -> Found:
        """The neighbours that Milvus's own index of the reconstructed field finds, without a certificate."""
        request = self._dense_request(asked, asked.k)
        with self.collection.doing("searching", expression=request["filter"]):
            hits = self.collection.client.search(**request)
        ids, scores = self._ids_and_scores(hits)
        if self.manifest.norms:
            scores = np.where(np.isneginf(scores), scores, -scores)
        elif asked.distances is not None:
            scores = asked.distances.of_sums(scores)
        else:
            scores = asked.times_factors(scores)
        return Found(scores, ids, places_of(ids), np.zeros(len(asked), dtype=bool))

    def by_fused_ranks(self, asked: Asked) -> Found:
        """The neighbours by ranks in the codes and in the reconstructed field, which Milvus fuses."""
        scope = as_scope(asked.settings.filter)
        sparse = self.search_request(terms_of(asked), asked.candidates, scope)
        requests = [
            AnnSearchRequest(
                part["data"],
                part["anns_field"],
                part["search_params"],
                part["limit"],
                expr=part["filter"] or None,
            )
            for part in (sparse, self._dense_request(asked, asked.candidates))
        ]
        with self.collection.doing("searching", expression=sparse["filter"]):
            hits = self.collection.client.hybrid_search(
                self.collection.name,
                requests,
                scope.ranker or RRFRanker(),
                limit=asked.k,
                partition_names=sparse["partition_names"],
                consistency_level=sparse["consistency_level"],
                timeout=sparse["timeout"],
            )
        ids, scores = self._ids_and_scores(hits)
        return Found(scores, ids, places_of(ids), np.zeros(len(asked), dtype=bool))

    def _dense_request(self, asked: Asked, n: int) -> dict[str, Any]:
        queries = asked.rows if self.manifest.norms else asked.vectors
        data, metric = list(queries.astype(self.dense)), dense_metric(self.manifest)
        return self._request(DENSE_FIELD, data, metric, n, asked.settings.filter)

    def _ids_and_scores(self, hits: Sequence[Any]) -> tuple[IdArray, FloatArray]:
        """Ids and scores of pymilvus's hits, (n_queries, the most of a query) each."""
        width = max((len(of_query.ids) for of_query in hits), default=0)
        nothing: Any = None if self.are_strings else -1
        ids = np.full((len(hits), width), nothing, dtype=object if self.are_strings else np.int64)
        scores = np.full((len(hits), width), -np.inf, dtype=np.float32)
        for query, of_query in enumerate(hits):
            ids[query, : len(of_query.ids)] = of_query.ids
            scores[query, : len(of_query.ids)] = of_query.distances
        return ids, scores

    def candidates(self, terms: SparseCodes, n: int, filter: Any) -> Candidates:  # noqa: A002
        """The n documents of the largest agreement scores, with their codes."""
        request = self.search_request(terms, n, filter)
        with self.collection.doing("searching", expression=request["filter"]):
            hits = self.collection.client.search(**request)
        return self.found(hits, n, terms)

    def search_request(self, terms: SparseCodes, n: int, filter: Any) -> dict[str, Any]:  # noqa: A002
        """Arguments of pymilvus's search for candidates.

        Raises:
            InputError: n is more than Milvus returns, or the filter is neither an expression nor ids.
        """
        if self.manifest.norms:  # of which the collection holds less than a height, so that signs turn
            values = terms.values.copy()
            values[:, -1] = -values[:, -1]
            terms = SparseCodes(terms.latents, values, terms.n_latents)
        request = self._request(CODE_FIELD, wire.to_bytes(terms), "IP", n, filter)
        return request | {"output_fields": [CODE_FIELD]}

    def _request(self, field: str, data: Any, metric: str, n: int, filter: Any) -> dict[str, Any]:  # noqa: A002
        """Arguments of pymilvus's search of one field for n results of each query."""
        return {
            **self._scoped(filter),
            "data": data,
            "anns_field": field,
            "limit": check_int(n, "candidates", 1, MAX_RESULTS),
            "search_params": {"metric_type": metric, "params": {}},
        }

    def _scoped(self, filter: Any) -> dict[str, Any]:  # noqa: A002
        scope = as_scope(filter)
        level = scope.consistency_level or self.consistency_level
        return {
            "collection_name": self.collection.name,
            "filter": self._expression(scope.filter),
            "partition_names": list(names_of(scope.partitions, "partitions")) or None,
            "consistency_level": check_choice(level, "consistency_level", CONSISTENCY_LEVELS),
            "timeout": self.collection.timeout,
        }

    def _expression(self, wanted: Any) -> str:
        if wanted is None or isinstance(wanted, str):
            return wanted or ""
        if isinstance(wanted, (set, frozenset)):
            wanted = list(wanted)
        flags = as_array(wanted, "filter")
        if flags.dtype == bool:
            msg = "a Milvus collection has no order, so a filter is an expression or ids, not a boolean mask"
            raise InputError(msg)
        if flags.dtype.kind in "iu" and flags.size > 2 and (flags < 2).all():
            refuse_mask_of_integers(flags, len(self))
        ids = as_id_array(wanted)
        if len(ids) and (ids.dtype == object) != self.are_strings:
            kind = "strings" if self.are_strings else "integers"
            msg = f"the ids of this collection are {kind}, the filter holds {ids.tolist()[0]!r:.100}"
            raise InputError(msg)
        return among(self.key.name, ids.tolist())

    def found(self, hits: Sequence[Any], n: int, terms: SparseCodes) -> Candidates:
        """The candidates in pymilvus's hits for terms; places left empty have codes of value 0."""
        counts = [len(of_query.ids) for of_query in hits]
        ids, scores = self._ids_and_scores(hits)
        latents = np.broadcast_to(np.arange(self.k, dtype=np.uint16), (*scores.shape, self.k)).copy()
        values = np.zeros((*scores.shape, self.k), dtype=np.float32)
        for query, (of_query, size) in enumerate(zip(hits, counts, strict=True)):
            if size:
                codes = self._off_wire(wire.from_bytes(_contents(of_query), self.n_latents, self.k))
                latents[query, :size], values[query, :size] = codes.latents, codes.values
        # A document that was not found agrees less than the last one; or in nothing, where there were fewer.
        full = np.array(counts) == n
        lowest = np.array([min(of_query.distances, default=0.0) for of_query in hits])
        bounds = np.where(full, lowest * (1 + _SCORE_ROUNDING), 0)
        if self.manifest.norms:
            raised = np.float64(self.manifest.height) * terms.values[:, -1]
            scores, bounds = (scores + raised[:, None]).astype(np.float32), bounds + raised
        bounds = bounds.astype(np.float32)
        flat = SparseCodes(latents.reshape(-1, self.k), values.reshape(-1, self.k), self.n_latents)
        return Candidates(ids, scores, bounds, flat)


def _spooled(chunks: Iterable[Encoded], spool: Spool) -> Iterator[Encoded]:
    """The same chunks; writes the vectors of each to a file."""
    for chunk in chunks:
        assert chunk.rows is not None, "codes alone have no vectors"
        spool.add(chunk.rows)
        yield chunk


def _coded(rows: Rows, backend: MilvusBackend) -> Coded:
    """Codes and residual codes of rows."""
    return Coded(
        [row[backend.key.name] for row in rows],
        backend.codes_of(rows),
        residuals.from_texts([row[RESIDUAL_FIELD] for row in rows], backend.manifest),
    )


def _contents(hits: Any) -> Sequence[bytes]:
    """The packed codes of a query's hits. Looking at one hit would decode all of them, pair by pair."""
    for field in getattr(hits, "lazy_field_data", ()):
        if field.field_name == CODE_FIELD:
            contents: Sequence[bytes] = field.vectors.sparse_float_vector.contents
            places = range(hits.start, hits.start + len(hits.ids))
            if len(contents) >= len(field.valid_data):
                return contents[places.start : places.stop]
            # Without those that have lost their code since they were found.
            at = np.cumsum(field.valid_data) - 1
            return [contents[at[place]] if field.valid_data[place] else b"" for place in places]
    rows = [hit["entity"][CODE_FIELD] or {} for hit in hits]
    return [np.array(sorted(row.items()), dtype=PAIR).tobytes() for row in rows]
