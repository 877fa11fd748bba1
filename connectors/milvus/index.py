"""`MilvusIndex`, an index over a compressed collection of Milvus."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pymilvus import FieldSchema, MilvusClient

from compressae_index.coding.metric import Metric, RowScale
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
    OWN_FIELDS,
    Layout,
    check_name,
    check_types,
    create_compressed,
    drop_compressed,
    open_compressed,
)
from compressae_index.connectors.milvus.fields import as_columns
from compressae_index.connectors.milvus.manifest import Dense, Manifest, load_model
from compressae_index.connectors.milvus.schema import names_of
from compressae_index.connectors.milvus.scope import Scope
from compressae_index.errors import BackendError, CompressaeError, DimensionError, InputError
from compressae_index.ids import as_id_array
from compressae_index.search.index import Index
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import SearchResult
from compressae_index.sources import VectorSource, ids_of_rows, open_vectors

if TYPE_CHECKING:
    from compressae_index.connectors.milvus.recoding import RecodeReport

# Columns by field name, or a data frame or table.
Fields: TypeAlias = Mapping[str, Sequence[Any]] | Any


P = ParamSpec("P")
T = TypeVar("T")


def following(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """A method that is called again if its alias has come to name another collection meanwhile.

    Each call sees one collection and its model alone.
    """

    @wraps(method)
    def followed(index: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        try:
            return method(index.now(), *arguments, **options)
        except (BackendError, InputError) as error:
            if not index.follow(unless=error):
                raise
        return method(index.now(), *arguments, **options)

    return followed


class MilvusResult(SearchResult):
    """Neighbours of a batch of queries, with their fields."""

    fields: dict[str, npt.NDArray[np.object_]]
    """Arrays (n_queries, k) of the output_fields, by name; None for a missing or removed neighbour."""


class MilvusIndex(Index):
    """An index in a compressed collection: `open` or `create` one, or convert a dense one by `from_milvus`.

    "sparse" and "two_stage" do not find documents that share no term with a query. Ids are values of the
    primary key. Only the model is cached, so a process sees what others write. An index that was opened by an
    alias follows it to another collection, as `recode` makes one.
    """

    _documents: MilvusBackend

    def __init__(self, backend: MilvusBackend, model: CompresSAE, alias: str | None = None) -> None:
        """Wraps a collection and the model of its codes; `open` finds both, also by an alias."""
        manifest = backend.manifest
        super().__init__(model, backend, encoder=manifest.encoder, metric=manifest.metric)
        self.client = backend.collection.client
        self.manifest = manifest
        self.alias = alias
        """The alias by which the index was opened; None for the collection's own name."""

    @property
    def documents(self) -> MilvusBackend:
        """The back end, which holds the collection."""
        return self._documents

    def _scale_of(self, documents: Documents, unit: float | None) -> RowScale:  # noqa: ARG002
        return self.manifest.scale()

    @classmethod
    def open(
        cls,
        client: MilvusClient | str | os.PathLike[str],
        collection: str,
        *,
        token: str = "",
        db_name: str = "",
        model: CompresSAE | str | Path | None = None,
        originals: bool = True,
        consistency_level: ConsistencyLevel = "Strong",
        timeout: float = TIMEOUT,
    ) -> MilvusIndex:
        """Opens a compressed collection, and loads it if it is not loaded.

        Args:
            client: a client from `connect`, or a uri to connect to; a missing database is not created.
            collection: name or alias.
            token: "user:password" or an API key, if `client` is a uri.
            db_name: the database, if `client` is a uri.
            model: the model, or its directory; read from Milvus by default.
            originals: False to go on without original vectors, if the collection has any.
            consistency_level: of reads and searches. "Strong" sees everything written before.
            timeout: seconds for each request, retries included.

        Raises:
            InputError: the database or collection does not exist.
            FormatError: the collection was not made by compressae-index, or not with the given model; or the
                source of its original vectors is gone, or has other vectors.
            BackendError: Milvus does not answer or refuses.
        """
        client = reading_client(client, collection, token=token, db_name=db_name, timeout=timeout)
        named = Collection(client, collection, timeout)
        try:
            opened = open_compressed(named, originals=originals)
            loaded = load_model(opened.collection, opened.manifest, model)
        except CompressaeError:
            if not (named.exists() and named.schema().collection != collection):
                raise
            # An alias may have left a collection that was dropped before its model was read.
            opened = open_compressed(named, originals=originals)
            loaded = load_model(opened.collection, opened.manifest, model)
        backend = MilvusBackend(opened, loaded, consistency_level=consistency_level)
        return cls(backend, loaded, None if opened.collection == named else collection)

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
        originals: Dense | None = None,
        residual_bits: int = 0,
        longest: float | None = None,
        string_ids: bool = False,
        fields: Sequence[FieldSchema] = (),
        algorithm: str | None = None,
        consistency_level: ConsistencyLevel = "Strong",
        timeout: float = TIMEOUT,
    ) -> MilvusIndex:
        """Creates an empty compressed collection, and stores its model in Milvus.

        Args:
            client: as for `open`, but a missing database of Milvus Lite is created.
            collection: an unused name.
            model: encodes added vectors.
            token: as for `open`.
            db_name: as for `open`.
            k: nonzeros a code; the model's by default.
            encoder: as for `CompressedIndex.build`.
            metric: as for `CompressedIndex.build`.
            dense: type of a field for reconstructed vectors, which modes "dense" and "hybrid" need; no field
                by default. Milvus Lite takes float32 only.
            originals: type of a field for original vectors, which score the best documents of a search
                again; no field by default. Milvus Lite takes float32 only.
            residual_bits: as for `CompressedIndex.build`.
            longest: for "l2", unless the model leaves out the mean of unit rows: the norm of the longest
                vectors to expect, from the model's `center`. Longer ones are stored, too, but the first stage
                takes them for as long.
            string_ids: whether ids are strings, of at most 512 bytes, instead of int64.
            fields: additional fields; rows may also have undeclared ones.
            algorithm: Milvus's inverted_index_algo; the server chooses by default.
            consistency_level: as for `open`.
            timeout: as for `open`.

        Raises:
            InputError: the name is taken or invalid, or an option is out of range.
            BackendError: Milvus does not answer or refuses.
        """
        check_name(collection)
        manifest = Manifest.of(
            model,
            k=k,
            encoder=encoder,
            metric=metric,
            dense=dense,
            originals=originals,
            residual_bits=residual_bits,
            longest=longest,
        )
        layout = Layout.new(string_ids, fields)
        if isinstance(client, (str, os.PathLike)):
            client = connect(client, token=token, db_name=db_name, timeout=timeout)
        check_types(check_client(client), dense, originals)
        new = Collection(client, collection, timeout)
        create_compressed(new, model, manifest, layout, algorithm=algorithm)
        return cls.open(client, collection, model=model, consistency_level=consistency_level, timeout=timeout)

    def now(self) -> MilvusIndex:
        """This collection and its model, whatever the alias comes to name; it is not to be changed."""
        moment = type(self).__new__(type(self))
        vars(moment).update(vars(self).copy() | {"alias": None})  # at once: `follow` replaces all together
        return moment

    def follow(self, *, unless: Exception | None = None) -> bool:
        """Turns to the collection that the alias names now; searches do so if theirs was dropped.

        Args:
            unless: an error to raise in place of one that this meets.

        Returns:
            Whether it is another one.

        Raises:
            BackendError: Milvus does not answer or refuses.
            InputError: the alias names nothing any more.
            FormatError: it names a collection that was not made by compressae-index.
        """
        backend, alias = self.documents, self.alias
        if alias is None:
            return False
        try:
            if backend.collection.named(alias).schema().collection == backend.collection.name:
                return False
            other = type(self).open(
                self.client,
                alias,
                originals=backend.uses_originals,
                consistency_level=backend.consistency_level,
                timeout=backend.collection.timeout,
            )
        except CompressaeError as error:
            raise (error if unless is None else unless) from None
        self._become(other)
        return True

    def _become(self, other: Index) -> None:
        # What is replaced must not be freed, which may run other threads, before all of it is.
        replaced = vars(self).copy()
        vars(self).update(vars(other))
        del replaced

    def __repr__(self) -> str:
        # Without the number of vectors, which would take a request to the server.
        return (
            f"MilvusIndex({self.collection!r}, dim={self.model.dim}, n_latents={self.model.n_latents}, "
            f"k={self.k})"
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

    @following
    def search(
        self,
        /,
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
            filter: a Milvus expression such as "price < 10", or ids.
            output_fields: names of fields to fetch for the neighbours, as in pymilvus: "*" is all fields,
                including dynamic ones and the code.
            partitions: partitions to search; all by default.
            consistency_level: of this search; by default that of the index.
            ranker: a ranker of pymilvus, for "hybrid"; `RRFRanker()` by default. It makes the scores.
            settings: mode, candidates, query_nnz, scoring, refine, num_threads, stats: see `Index.search`.
                "dense" searches the reconstructed field by Milvus's index of it; "hybrid" fuses the ranks
                of the sparse and the reconstructed field in Milvus; both take asymmetric scoring and no
                refine. Milvus finds `candidates` documents, at most 16,384, for re-scoring, or for each field
                in "hybrid"; of the best `refine` of these, residual codes or original vectors are read by id.

        Returns:
            scores and ids, each (n_queries, k), `certified` and `fields`. "dense" and "hybrid" certify none.

        Raises:
            InputError: bad queries or dimension, k, candidates or query_nnz out of range, a filter that
                Milvus cannot evaluate, an unknown partition or field, or a mode that needs a reconstructed
                field.
            BackendError: Milvus does not answer or refuses, or the source of the original vectors is gone.
        """
        names = self.checked_fields(output_fields)
        scope = Scope(filter, self.checked_partitions(partitions), consistency_level, ranker)
        return self.with_fields(super().search(queries, k, filter=scope, **settings), names)

    def with_fields(self, result: SearchResult, names: tuple[str, ...]) -> MilvusResult:
        """Adds fields to a result, by names from `checked_fields`."""
        whole = MilvusResult(result.scores, result.ids, result.certified, result.lost, result.stats)
        whole.fields = {}
        if not names:
            return whole
        missing = np.isinf(result.scores)
        rows: dict[int | str, dict[str, Any]] = {}
        if not missing.all():
            wanted: Any = np.unique(result.ids[~missing])
            rows = self.documents.rows_held(wanted, names)
        if "*" in names or "$meta" in names:
            # Each row may have dynamic fields in addition to those of the schema.
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
        """Checks field names; sends no request if there are none."""
        wanted = () if names is None else names_of(names, what)
        if not wanted:
            return wanted
        return self.documents.collection.schema().check_fields(wanted, what)

    def checked_partitions(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Checks partition names; sends no request if there are none."""
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
            ids: new ids, of the primary key's type.
            fields: values of other fields, one a vector: a mapping of names to lists, arrays or series, a
                data frame of pandas or polars, or an Arrow table.
            partition: the partition to add to; the default one if empty.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: as for `Index.add`; or an id is too long for the primary key, the number of values of
                a field differs from that of vectors, a field is unknown, reserved, or required but not given,
                or the partition is unknown; or original vectors are read from a source, to which rows must be
                added instead, as `sync` takes them over. Nothing was added.
            BackendError: Milvus does not answer or refuses. Batches sent before are stored; retry with
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
        """Adds vectors, replacing whole rows of existing ids; arguments and errors as for `add`."""
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
        self.follow()
        self._check_writable()
        vectors = open_vectors(embeddings, zeros=self.metric == "l2", may_be_empty=True)
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

    def _check_writable(self) -> None:
        """Refuses rows whose original vectors would not be where this collection reads them."""
        if self.manifest.originals == "source":
            msg = (
                f"collection {self.collection!r} reads original vectors from its source: write rows to "
                f"{self.manifest.source['collection']!r}, and call `sync`"
            )
            raise InputError(msg)

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        """Refuses unknown or reserved columns, and missing required ones."""
        schema = self.documents.collection.schema()
        own = {self.documents.key.name: "pass its values as ids"}
        own |= {name: f"it holds {what}" for name, what in OWN_FIELDS.items()}
        for name in columns:
            if name in own:
                msg = f"field {name!r} cannot be set: {own[name]}"
                raise InputError(msg)
        if columns:
            schema.check_fields(tuple(columns), "fields")
        for name, field in schema.fields.items():
            optional = field.get("nullable") or field.get("default_value") is not None
            if name not in {*own, *columns} and not optional:
                msg = f"collection {self.collection!r} needs a value of field {name!r}: pass fields="
                raise InputError(msg)

    @following
    def rows(self, /, ids: Any, fields: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One row of fields for each of ids, in their order; all fields by default or for "*".

        Raises:
            UnknownIdError: an id is not in the collection.
            InputError: an unknown field, or `fields` is not a list of names.
        """
        names, array = self.checked_fields(("*",) if fields is None else fields, "fields"), as_id_array(ids)
        if len(array) and (array.dtype == object) != self.documents.are_strings:
            self.check_held(array)
        return self.documents.rows(array, names)

    def remove(self, ids: Any) -> None:
        """Removes vectors; errors as for `Index.remove`.

        Raises:
            InputError: codes are in place, in rows of a collection of yours.
        """
        self.follow()
        if self.manifest.in_place:
            msg = f"codes are in your own collection {self.collection!r}: delete its rows there"
            raise InputError(msg)
        super().remove(ids)

    codes = following(Index.codes)
    explain = following(Index.explain)
    neighbours = following(Index.neighbours)
    range_search = following(Index.range_search)
    stats = following(Index.stats)

    @following
    def __len__(self) -> int:
        return len(self.documents)

    def recode(
        self,
        model: CompresSAE | None = None,
        *,
        alias: str | None = None,
        into: str | None = None,
        num_threads: int | None = None,
        progress: bool = True,
    ) -> RecodeReport:
        """Codes all vectors anew by another model, in a new collection, and lets an alias name that.

        The new collection has the same k, encoder, metric, fields and kinds of vectors. It is filled as by
        `from_milvus`: from the source of the import if that is still there, else from what this collection
        knows of its vectors, original ones or reconstructions. What changes there meanwhile is taken over
        before the alias is moved, in one step. The old collection is dropped after that, with its model; its
        other aliases move, too.

        Searches by the alias go on, and see the old model and codes or the new ones. This index turns to the
        new collection, as others do that were opened by the alias; one that was opened by the collection's
        own name finds it gone. Where there is no source, let writers wait: what they write between the last
        pass and the swap, the time of a few requests, is lost.

        Stopped and run again with the same arguments, the recode goes on.

        Args:
            model: a trained model; by default one is trained from the present one.
            alias: the name to search by; made if there is none. By default the one by which the index was
                opened.
            into: name of the new collection; by default that of the old one with the next number, items_2
                after items.
            num_threads: threads to encode with; all by default.
            progress: show progress bars.

        Raises:
            InputError: codes are in place; no alias, or one that names another collection; a taken name; a
                model of another dimension, with too few latents, or that does not fit the metric.
            FormatError: a recode into this name was begun with another model.
            BackendError: Milvus does not answer or refuses.
        """
        from compressae_index.connectors.milvus.recoding import recode

        self.follow()
        if self.manifest.in_place:
            msg = (
                f"codes are in your own collection {self.collection!r}, beside which there is no other: call "
                "`drop`, which drops the model alone, and `from_milvus` in place with another model"
            )
            raise InputError(msg)
        index: Any = self
        new, report = recode(index, model, alias, into, num_threads, progress)
        self._become(new)
        return report

    def flush(self) -> None:
        """Seals written rows. Searches see them before, but Milvus Lite is much faster after."""
        self.documents.collection.flush()

    def drop(self) -> None:
        """Drops the collection and its model; of codes in place, the model alone. The index ends with it."""
        drop_compressed(self.documents.collection)

    def close(self) -> None:
        """Closes the connection, even if the caller opened it."""
        self.client.close()
