"""The index over a compressed collection of Milvus."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pymilvus import AnnSearchRequest, FieldSchema, MilvusClient, RRFRanker

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_choice, check_int, check_vectors, normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.connectors.milvus.backend import MilvusBackend, Scope
from compressae_index.connectors.milvus.client import (
    MAX_RESULTS,
    TIMEOUT,
    ConsistencyLevel,
    check_client,
    connect,
    reading_client,
)
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    DENSE_FIELD,
    Layout,
    check_dense,
    check_name,
    create_compressed,
    dense_metric,
    drop_compressed,
    open_compressed,
)
from compressae_index.connectors.milvus.errors import translated
from compressae_index.connectors.milvus.fields import as_columns
from compressae_index.connectors.milvus.manifest import Dense, Manifest, load_model
from compressae_index.connectors.milvus.schema import names_of
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import as_id_array
from compressae_index.search.index import BackedIndex
from compressae_index.search.queries import QUERY_BLOCK, BackedResult, Scoring
from compressae_index.sources import VectorSource, open_vectors

# Columns by name.
Fields: TypeAlias = Mapping[str, Sequence[Any]] | Any
MilvusMode: TypeAlias = Literal["sparse", "two_stage", "dense", "hybrid"]
MILVUS_MODES: tuple[MilvusMode, ...] = ("sparse", "two_stage", "dense", "hybrid")


class MilvusResult(BackedResult):
    """Neighbours of a batch of queries, and fields of theirs."""

    fields: dict[str, npt.NDArray[np.object_]]
    """(n_queries, k) by name, for the output_fields that were asked for; None where there is no neighbour, or
    none any more."""


class MilvusIndex(BackedIndex):
    """A compressed collection: `open` or `create` one, or make one of a dense collection by `from_milvus`.

    Documents that share no term with a query are not found by "sparse" and "two_stage". Ids are those of the
    primary key. What one process writes, another sees; nothing is cached here but the model.
    """

    modes: ClassVar[tuple[str, ...]] = MILVUS_MODES
    backend: MilvusBackend

    def __init__(self, backend: MilvusBackend, model: CompresSAE) -> None:
        """From parts that belong together, as `open` finds them."""
        manifest = backend.manifest
        super().__init__(model, backend, encoder=manifest.encoder, metric=manifest.metric)
        self.backend = backend
        self.client = backend.collection.client
        self.manifest = manifest

    @classmethod
    def open(
        cls,
        client: MilvusClient | str | os.PathLike[str],
        collection: str,
        *,
        token: str = "",
        db_name: str = "",
        model: CompresSAE | str | Path | None = None,
        consistency_level: ConsistencyLevel = "Strong",
        timeout: float = TIMEOUT,
    ) -> MilvusIndex:
        """Opens a compressed collection, and loads it if it is not loaded.

        Args:
            client: what `connect` gives, or a uri as it takes; a database is not made.
            collection: name or alias.
            token: for a uri: "user:password" or an API key.
            db_name: for a uri: the database.
            model: the model, or its directory; read from Milvus by default.
            consistency_level: of reads and searches. "Strong" sees all that was written before.
            timeout: seconds for each request, retries included.

        Raises:
            InputError: there is no such database or collection.
            FormatError: it was not made by compressae-index, or by another model than the one given.
            BackendError: Milvus does not answer or refuses.
        """
        client = reading_client(client, collection, token=token, db_name=db_name, timeout=timeout)
        opened = open_compressed(Collection(client, collection, timeout))
        loaded = load_model(opened.collection, opened.manifest, model)
        return cls(MilvusBackend(opened, loaded, consistency_level=consistency_level), loaded)

    @classmethod
    def create(
        cls,
        client: MilvusClient | str | os.PathLike[str],
        collection: str,
        model: CompresSAE,
        *,
        token: str = "",
        db_name: str = "",
        k: int | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        dense: Dense | None = None,
        string_ids: bool = False,
        fields: Sequence[FieldSchema] = (),
        algorithm: str | None = None,
        consistency_level: ConsistencyLevel = "Strong",
        timeout: float = TIMEOUT,
    ) -> MilvusIndex:
        """An empty compressed collection, with the model beside it.

        Args:
            client: as for `open`, but a database of Milvus Lite is made where there is none.
            collection: a name that is free.
            model: encodes what is added.
            token: as for `open`.
            db_name: as for `open`.
            k: nonzeros a code; the model's by default.
            encoder: as for `CompressedIndex.build`.
            metric: as for `CompressedIndex.build`.
            dense: type of a field for the reconstructed vectors, which modes "dense" and "hybrid" need; none
                by default. Milvus Lite has float32 only.
            string_ids: whether ids are strings, of at most 512 bytes, and not int64.
            fields: more fields; rows may have others without being declared.
            algorithm: inverted_index_algo of Milvus; the server's own choice by default.
            consistency_level: as for `open`.
            timeout: as for `open`.

        Raises:
            InputError: the name is taken or none, or an option is out of range.
            BackendError: Milvus does not answer or refuses.
        """
        check_name(collection)
        manifest = Manifest.of(model, k=k, encoder=encoder, metric=metric, dense=dense)
        layout = Layout.new(string_ids, fields)
        if isinstance(client, (str, os.PathLike)):
            client = connect(client, token=token, db_name=db_name, timeout=timeout)
        check_dense(check_client(client), dense)
        new = Collection(client, collection, timeout)
        create_compressed(new, model, manifest, layout, algorithm=algorithm)
        return cls.open(client, collection, model=model, consistency_level=consistency_level, timeout=timeout)

    def __repr__(self) -> str:
        # Without the number of vectors, which is a question to the server.
        return (
            f"MilvusIndex({self.collection!r}, dim={self.model.dim}, n_latents={self.model.n_latents}, "
            f"k={self.backend.k})"
        )

    def __reduce__(self) -> Any:
        msg = (
            "a MilvusIndex holds a connection, so it cannot be copied, pickled or sent to another process: "
            "call MilvusIndex.open there"
        )
        raise InputError(msg)

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self.backend.collection.name

    def search(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        mode: MilvusMode = "two_stage",
        candidates: int | None = None,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
        output_fields: Sequence[str] | None = (),
        partitions: Sequence[str] | None = (),
        consistency_level: ConsistencyLevel | None = None,
        ranker: Any = None,
    ) -> MilvusResult:
        """The k nearest documents of each query.

        Args:
            queries: (n_queries, d), or (d,) for one.
            k: neighbours of each query, at most 16,384.
            mode: "sparse" and "two_stage" as for `BackedIndex.search`; "dense" searches the reconstructed
                field by its own index; "hybrid" fuses the ranks of the sparse and the reconstructed field
                inside of Milvus.
            candidates: documents that Milvus finds for the re-scoring, or for each part of "hybrid"; at least
                k, and at most 16,384; by default 1,000, or k where that is more.
            query_nnz: latents of the query that sparse search keeps, of largest magnitude; 64 by default.
            scoring: as for `CompressedIndex.search`; "asymmetric" for "dense" and "hybrid".
            filter: a Milvus expression as "price < 10", or ids.
            num_threads: as for `BackedIndex.search`.
            output_fields: names of fields of the neighbours to fetch, as for pymilvus: "*" is all, also
                dynamic ones and the code itself.
            partitions: to search in; all by default.
            consistency_level: of this search; that of the index by default.
            ranker: of pymilvus, for "hybrid"; `RRFRanker()` by default. Its scores are the result's.

        Returns:
            scores and ids, each (n_queries, k), `certified` and `fields`. "dense" and "hybrid" certify
            nothing.

        Raises:
            InputError: bad queries, another dimension, k, candidates or query_nnz out of range, a filter that
                Milvus cannot evaluate, an unknown partition or field, a mode that needs a reconstructed
                field.
            BackendError: Milvus does not answer or refuses.
        """
        check_choice(mode, "mode", MILVUS_MODES)
        names = self._checked_fields(output_fields)
        scope = Scope(filter, self._checked_partitions(partitions), consistency_level)
        if mode in ("sparse", "two_stage"):
            if ranker is not None:
                msg = "a ranker is for mode 'hybrid'"
                raise InputError(msg)
            result = super().search(
                queries,
                k,
                mode=mode,
                candidates=candidates,
                query_nnz=query_nnz,
                scoring=scoring,
                filter=scope,
                num_threads=num_threads,
            )
        else:
            if scoring != "asymmetric":
                msg = f"in mode {mode!r}, scoring must be 'asymmetric', got {scoring!r}"
                raise InputError(msg)
            result = self._search_dense(queries, k, mode, candidates, query_nnz, scope, ranker)
        return self._with_fields(result, names)

    def _search_dense(
        self,
        queries: npt.ArrayLike,
        k: int,
        mode: str,
        candidates: int | None,
        query_nnz: int | None,
        scope: Scope,
        ranker: Any,
    ) -> BackedResult:
        if self.backend.dense is None:
            msg = f"mode {mode!r} needs a reconstructed field: make the collection with dense='float32'"
            raise InputError(msg)
        k, n = self._depth(check_int(k, "k", 1, MAX_RESULTS), candidates, mode)
        queries = as_array(queries, "queries")
        asked = self._asked(queries, "two_stage", "asymmetric", query_nnz, None)
        unit = normalize_rows(check_vectors(queries, dim=self.model.dim, name="queries", may_be_empty=True))
        found = []
        for first in range(0, len(asked), QUERY_BLOCK):
            data = list(unit[first : first + QUERY_BLOCK].astype(self.backend.dense))
            terms = asked.block(first).terms
            request = self._dense_request(data, k if mode == "dense" else n, scope)
            with translated(f"searching collection {self.collection!r}", expression=request["filter"]):
                if mode == "dense":
                    found += self.client.search(**request)
                else:
                    found += self._fused(request, terms, n, k, scope, ranker or RRFRanker())
        scores, ids = self._padded(found, k)
        if mode == "dense" and asked.factors is not None:
            scores *= asked.factors
        return BackedResult(scores, ids, np.zeros(len(ids), dtype=bool))

    def _dense_request(self, data: list[Any], n: int, scope: Scope) -> dict[str, Any]:
        metric = dense_metric(self.metric)
        return {
            **self.backend.scoped(scope),
            "data": data,
            "anns_field": DENSE_FIELD,
            "limit": check_int(n, "candidates", 1, MAX_RESULTS),
            "search_params": {"metric_type": metric, "params": {}},
        }

    def _fused(
        self, dense: dict[str, Any], terms: SparseCodes, n: int, k: int, scope: Scope, ranker: Any
    ) -> Sequence[Any]:
        sparse = self.backend.search_request(terms, n, scope)
        requests = [
            AnnSearchRequest(
                part["data"],
                part["anns_field"],
                part["search_params"],
                part["limit"],
                expr=part["filter"] or None,
            )
            for part in (sparse, dense)
        ]
        hits: Sequence[Any] = self.client.hybrid_search(
            self.collection,
            requests,
            ranker,
            limit=k,
            partition_names=sparse["partition_names"],
            consistency_level=sparse["consistency_level"],
            timeout=sparse["timeout"],
        )
        return hits

    def _padded(self, found: Sequence[Any], k: int) -> tuple[FloatArray, IdArray]:
        scores = np.full((len(found), k), -np.inf, dtype=np.float32)
        ids: Any = np.full(scores.shape, -1, dtype=np.int64)
        if self.backend.are_strings:
            ids = np.full(scores.shape, None, dtype=object)
        for row, hits in enumerate(found):
            scores[row, : len(hits.ids)] = hits.distances
            ids[row, : len(hits.ids)] = hits.ids
        return scores, ids

    def _with_fields(self, result: BackedResult, names: tuple[str, ...]) -> MilvusResult:
        whole = MilvusResult(result.scores, result.ids, result.certified)
        whole.fields = {}
        if not names:
            return whole
        missing = np.isneginf(result.scores)
        rows: dict[int | str, dict[str, Any]] = {}
        if not missing.all():
            wanted: Any = np.unique(result.ids[~missing])
            rows = self.backend.rows_held(wanted, names)
        if "*" in names or "$meta" in names:
            # Rows have dynamic fields of their own beside those of the schema.
            named = [name for name in names if name not in ("*", "$meta")]
            names = tuple(dict.fromkeys([*named, *(name for row in rows.values() for name in row)]))
        nothing: dict[str, Any] = {}
        of_neighbours = [rows.get(id_, nothing) for id_ in result.ids.ravel().tolist()]
        for name in names:
            values = np.empty(len(of_neighbours), dtype=object)
            values[:] = [
                None if gone else row.get(name)
                for row, gone in zip(of_neighbours, missing.ravel().tolist(), strict=True)
            ]
            whole.fields[name] = values.reshape(result.ids.shape)
        return whole

    def _checked_fields(self, names: Sequence[str] | None, what: str = "output_fields") -> tuple[str, ...]:
        """Names of fields that can be asked for; Milvus is asked only where there are names."""
        wanted = () if names is None else names_of(names, what)
        if not wanted:
            return wanted
        return self.backend.collection.schema().check_fields(wanted, what)

    def _checked_partitions(self, names: Sequence[str] | None) -> tuple[str, ...]:
        return self.backend.collection.check_partitions(() if names is None else names)

    def _check_kind(self, ids: IdArray) -> None:
        super()._check_kind(ids)
        self.backend.check_ids(ids)

    def add(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        fields: Fields | None = None,
        partition: str = "",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Adds vectors.

        Args:
            embeddings: as for `BackedIndex.add`.
            ids: new ids of the kind of the primary key.
            fields: values of other fields by name, one a vector: a mapping of names to columns, which are
                lists, arrays or series, or a data frame of pandas or polars, or an Arrow table.
            partition: to store them in; the default one if empty.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: as for `BackedIndex.add`, or ids longer than the primary key takes, a field with
                another number of values, that the collection does not have, that it needs and is not given,
                or that has a name that is used here, or an unknown partition. Nothing was added.
            BackendError: Milvus does not answer or refuses. What was sent before is stored; do it again with
                `upsert`.
        """
        put = self._putting(embeddings, fields, partition)
        self._write(put[0], ids, put[1], replace=False, num_threads=num_threads, progress=progress)

    def upsert(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        fields: Fields | None = None,
        partition: str = "",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Adds vectors, and replaces whole rows of ids that are held; arguments and errors as for `add`."""
        put = self._putting(embeddings, fields, partition)
        self._write(put[0], ids, put[1], replace=True, num_threads=num_threads, progress=progress)

    def _putting(self, embeddings: VectorSource, fields: Fields | None, partition: str) -> tuple[Any, Any]:
        vectors = open_vectors(embeddings, may_be_empty=True)
        columns = {} if fields is None else as_columns(fields)
        for name, values in columns.items():
            if len(values) != vectors.shape[0]:
                msg = f"field {name!r} has {len(values)} values for {vectors.shape[0]} vectors"
                raise DimensionError(msg)
        self._checked_partitions([partition] if partition else [])
        self._check_columns(columns)

        def put(codes: SparseCodes, ids: IdArray, rows: slice) -> None:
            others = [
                dict(zip(columns, values, strict=True))
                for values in zip(*(column[rows] for column in columns.values()), strict=True)
            ]
            self.backend.put(codes, ids, others or None, partition=partition)

        return vectors, put

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        """Refuses columns that the collection has not, needs, or fills itself."""
        schema = self.backend.collection.schema()
        own = {self.backend.key.name: "give its values as ids", CODE_FIELD: "it holds the code"}
        own[DENSE_FIELD] = "it holds the reconstructed vector"
        for name in columns:
            if name in own:
                msg = f"field {name!r} cannot be given: {own[name]}"
                raise InputError(msg)
        if columns:
            schema.check_fields(tuple(columns), "fields")
        for name, field in schema.fields.items():
            optional = field.get("nullable") or field.get("default_value") is not None
            if name not in {*own, *columns} and not optional:
                msg = f"collection {self.collection!r} needs a value of field {name!r}: give fields="
                raise InputError(msg)

    def rows(self, ids: Any, fields: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Fields of ids, in their order; all of them by default, or where "*" is among them.

        Raises:
            UnknownIdError: an id is not in the collection.
            InputError: a field that the collection does not have, or fields that are no list of names.
        """
        names, array = self._checked_fields(("*",) if fields is None else fields, "fields"), as_id_array(ids)
        if len(array) and (array.dtype == object) != self.backend.are_strings:
            self._check_held(array)
        return self.backend.rows(array, names)

    def flush(self) -> None:
        """Seals what was written. Searches see it without; on Milvus Lite they are much faster after."""
        self.backend.collection.flush()

    def drop(self) -> None:
        """Drops the collection and its model; the index cannot be used any more."""
        drop_compressed(self.backend.collection)

    def close(self) -> None:
        """Closes the connection, also where the caller made it."""
        self.client.close()
