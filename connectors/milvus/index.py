"""The index over a compressed collection of Milvus."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pymilvus import FieldSchema, MilvusClient

from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.client import (
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
    drop_compressed,
    open_compressed,
)
from compressae_index.connectors.milvus.fields import as_columns
from compressae_index.connectors.milvus.manifest import Dense, Manifest, load_model
from compressae_index.connectors.milvus.schema import names_of
from compressae_index.connectors.milvus.scope import Scope
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import as_id_array
from compressae_index.search.index import Index
from compressae_index.search.queries import SearchResult
from compressae_index.sources import VectorSource, ids_of_rows, open_vectors

# Columns by name.
Fields: TypeAlias = Mapping[str, Sequence[Any]] | Any


class MilvusResult(SearchResult):
    """Neighbours of a batch of queries, and fields of theirs."""

    fields: dict[str, npt.NDArray[np.object_]]
    """(n_queries, k) by name, for the output_fields that were asked for; None if there is no neighbour, or
    none any more."""


class MilvusIndex(Index):
    """A compressed collection: `open` or `create` one, or make one of a dense collection by `from_milvus`.

    Documents that share no term with a query are not found by "sparse" and "two_stage". Ids are those of the
    primary key. What one process writes, another sees; nothing is cached here but the model.
    """

    _documents: MilvusBackend

    def __init__(self, backend: MilvusBackend, model: CompresSAE) -> None:
        """From a collection and the model of its codes; `open` finds both."""
        manifest = backend.manifest
        super().__init__(model, backend, encoder=manifest.encoder, metric=manifest.metric)
        self.client = backend.collection.client
        self.manifest = manifest

    @property
    def documents(self) -> MilvusBackend:
        """The collection that holds the codes."""
        return self._documents

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
            client: a client of `connect`, or a uri for it; a missing database is not created.
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
        """Creates an empty compressed collection, and stores its model next to it.

        Args:
            client: as for `open`, but a missing database of Milvus Lite is created.
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
            f"k={self.documents.k})"
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
        return self.documents.collection.name

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        filter: Any = None,  # noqa: A002
        output_fields: Sequence[str] | None = (),
        partitions: Sequence[str] | None = (),
        consistency_level: ConsistencyLevel | None = None,
        ranker: Any = None,
        **settings: Any,
    ) -> MilvusResult:
        """The k nearest documents of each query, as `Index.search`.

        Args:
            queries: (n_queries, d), or (d,) for one.
            k: neighbours of each query, at most 16,384.
            filter: a Milvus expression as "price < 10", or ids.
            output_fields: names of fields of the neighbours to fetch, as for pymilvus: "*" is all, also
                dynamic ones and the code itself.
            partitions: to search in; all by default.
            consistency_level: of this search; that of the index by default.
            ranker: of pymilvus, for "hybrid"; `RRFRanker()` by default. Its scores are the result's.
            settings: mode, candidates, query_nnz, scoring and num_threads as for `Index.search`. Mode "dense"
                searches the reconstructed field by its own index; "hybrid" fuses the ranks of the sparse and
                the reconstructed field inside of Milvus; both take asymmetric scoring only. Candidates, at
                most 16,384, are what Milvus finds for the re-scoring, or for each part of "hybrid".

        Returns:
            scores and ids, each (n_queries, k), `certified` and `fields`. "dense" and "hybrid" certify
            nothing.

        Raises:
            InputError: bad queries, another dimension, k, candidates or query_nnz out of range, a filter that
                Milvus cannot evaluate, an unknown partition or field, a mode that needs a reconstructed
                field.
            BackendError: Milvus does not answer or refuses.
        """
        names = self.checked_fields(output_fields)
        scope = Scope(filter, self.checked_partitions(partitions), consistency_level, ranker)
        return self.with_fields(super().search(queries, k, filter=scope, **settings), names)

    def with_fields(self, result: SearchResult, names: tuple[str, ...]) -> MilvusResult:
        """A result with the fields that `checked_fields` gave the names of."""
        whole = MilvusResult(result.scores, result.ids, result.certified)
        whole.fields = {}
        if not names:
            return whole
        missing = np.isneginf(result.scores)
        rows: dict[int | str, dict[str, Any]] = {}
        if not missing.all():
            wanted: Any = np.unique(result.ids[~missing])
            rows = self.documents.rows_held(wanted, names)
        if "*" in names or "$meta" in names:
            # Rows have dynamic fields of their own in addition to those of the schema.
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

    def checked_fields(self, names: Sequence[str] | None, what: str = "output_fields") -> tuple[str, ...]:
        """Checks names of fields; asks Milvus only if there are any."""
        wanted = () if names is None else names_of(names, what)
        if not wanted:
            return wanted
        return self.documents.collection.schema().check_fields(wanted, what)

    def checked_partitions(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Checks names of partitions; asks Milvus only if there are any."""
        return self.documents.collection.check_partitions(() if names is None else names)

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
            embeddings: as for `Index.add`.
            ids: new ids of the kind of the primary key.
            fields: values of other fields by name, one a vector: a mapping of names to columns, which are
                lists, arrays or series, or a data frame of pandas or polars, or an Arrow table.
            partition: to store them in; the default one if empty.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: as for `Index.add`, or ids longer than the primary key takes, a field with
                another number of values, that the collection does not have, that it needs and is not given,
                or that has a name that is used here, or an unknown partition. Nothing was added.
            BackendError: Milvus does not answer or refuses. What was sent before is stored; do it again with
                `upsert`.
        """
        where = {"fields": fields, "partition": partition}
        self._write_rows(embeddings, ids, where, replace=False, num_threads=num_threads, progress=progress)

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
        where = {"fields": fields, "partition": partition}
        self._write_rows(embeddings, ids, where, replace=True, num_threads=num_threads, progress=progress)

    def _write_rows(
        self,
        embeddings: VectorSource,
        ids: Any,
        where: dict[str, Any],
        *,
        replace: bool,
        num_threads: int | None,
        progress: bool,
    ) -> None:
        vectors = open_vectors(embeddings, may_be_empty=True)
        columns = {} if where["fields"] is None else as_columns(where["fields"])
        for name, values in columns.items():
            if len(values) != vectors.shape[0]:
                msg = f"field {name!r} has {len(values)} values for {vectors.shape[0]} vectors"
                raise DimensionError(msg)
        partition = where["partition"]
        self.checked_partitions([partition] if partition else [])
        self._check_columns(columns)
        new, _ = ids_of_rows(as_id_array(ids), vectors)
        self._store(
            vectors,
            new,
            replace=replace,
            num_threads=num_threads,
            progress=progress,
            columns=columns,
            partition=partition,
        )

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        """Refuses columns that the collection has not, needs, or fills itself."""
        schema = self.documents.collection.schema()
        own = {self.documents.key.name: "give its values as ids", CODE_FIELD: "it holds the code"}
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
        names, array = self.checked_fields(("*",) if fields is None else fields, "fields"), as_id_array(ids)
        if len(array) and (array.dtype == object) != self.documents.are_strings:
            self.check_held(array)
        return self.documents.rows(array, names)

    def flush(self) -> None:
        """Seals what was written. Searches see it without; on Milvus Lite they are much faster after."""
        self.documents.collection.flush()

    def drop(self) -> None:
        """Drops the collection and its model; the index cannot be used any more."""
        drop_compressed(self.documents.collection)

    def close(self) -> None:
        """Closes the connection, also where the caller made it."""
        self.client.close()
