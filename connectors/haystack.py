"""A document store and a retriever of Haystack over any index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from compressae_index import persistence
from compressae_index.checks import as_place, check_int
from compressae_index.connectors.texts import BUILD_AT, Filter, Record, TextStore
from compressae_index.connectors.texts import filters as conditions
from compressae_index.connectors.texts.filters import Condition
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.search.index import Index

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ByteStream, SparseEmbedding
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.utils.filters import document_matches_filter
except ImportError as error:
    raise MissingExtraError("haystack-ai", "haystack", "the store for Haystack") from error

_FIELDS = ("id", "content", "blob", "meta", "score", "embedding", "sparse_embedding")


class CompresSAEDocumentStore:
    """Documents that are found by the codes of their embeddings, with all stages of the index.

    Filters are Haystack's; top_k documents are found if as many match. Documents come back without their
    embeddings, of which the index keeps codes. Those without one are kept, and found by filters alone.

    Attributes:
        store: the documents and the index (`TextStore`).
    """

    def __init__(
        self,
        path: str | None = None,
        index: Index | None = None,
        *,
        build_at: int | None = BUILD_AT,
        build: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        """The store that `save` wrote to `path`, or an empty one if there is none.

        Args:
            path: a directory, or an address such as s3://bucket/store. Pipelines that are written as YAML
                name it, and nothing else says what the store holds.
            index: as for `TextStore.load` if there is a store at `path`, else as for `TextStore`.
            build_at: as for `TextStore`.
            build: as for `TextStore`.
            search: as for `TextStore`.

        Raises:
            FormatError, InputError, StorageError: as for `TextStore.load`.
        """
        options: dict[str, Any] = {"build_at": build_at, "build": build, "search": search}
        self._settings = {"path": path, **options}
        is_saved = path is not None and persistence.was_written(as_place(path))
        self.store = TextStore.load(path or "", index, **options) if is_saved else TextStore(index, **options)

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Writes documents and index in one step, by default to the path of the store.

        Raises:
            InputError: there is no path.
            FormatError, StorageError: as for `TextStore.save`.
        """
        path = self._settings["path"] if path is None else path
        if path is None:
            msg = "this store has no path: pass one"
            raise InputError(msg)
        self.store.save(path)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the store, for pipelines; documents are those that were saved to its path."""
        written: dict[str, Any] = default_to_dict(self, **self._settings)
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CompresSAEDocumentStore:
        """The store of `to_dict`."""
        made: CompresSAEDocumentStore = default_from_dict(cls, data)
        return made

    def count_documents(self) -> int:
        """Documents, with or without an embedding."""
        return len(self.store)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Documents that a filter allows."""
        return len(self.store.records(_as_filter(filters)))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that a filter allows, in the order in which they came.

        Raises:
            FilterError: a filter that Haystack refuses.
        """
        return [_document(record) for record in self.store.records(_as_filter(filters))]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Adds documents, and returns how many were written.

        Args:
            documents: the documents, with an embedding or without.
            policy: what to do about ids that are held: refuse all (FAIL, also NONE), SKIP or OVERWRITE them.

        Raises:
            DuplicateDocumentError: an id is held, or stands twice. Nothing was written.
            InputError: no list of documents, metadata that are not JSON, or bad embeddings. Nothing was
                written.
        """
        given: Any = documents
        if not isinstance(given, list) or not all(isinstance(each, Document) for each in given):
            msg = f"documents must be a list of Document, got {given!r:.100}"
            raise InputError(msg)
        ids = [each.id for each in documents]
        if policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
            held = {record.id for record in self.store.get(ids)}
            if held or len(set(ids)) < len(ids):
                twice = next(id_ for place, id_ in enumerate(ids) if id_ in held or id_ in ids[:place])
                msg = f"document {twice!r:.100} is in the store already, or stands twice"
                raise DuplicateDocumentError(msg)
        chosen: dict[str, Document] = {}
        for each in documents:
            if policy == DuplicatePolicy.OVERWRITE or each.id not in chosen:
                chosen[each.id] = each
        return self.store.write(
            [_record(each) for each in chosen.values()],
            [each.embedding for each in chosen.values()],
            replace=policy == DuplicatePolicy.OVERWRITE,
        )

    def delete_documents(self, document_ids: list[str]) -> None:
        """Removes the documents of ids; unknown ones are passed over."""
        self.store.delete(document_ids)

    def delete_all_documents(self) -> None:
        """Removes all documents."""
        self.store.delete_where(None)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Removes the documents that a filter allows, and returns their number."""
        return self.store.delete_where(_as_filter(filters))

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        **settings: Any,
    ) -> list[Document]:
        """The documents nearest to an embedding, best first, with scores, of which the greatest is the best.

        They are those of the index, but 1 / (1 + squared distance) where its metric is "l2".

        Args:
            query_embedding: the embedding of the query.
            filters: which documents to search among.
            top_k: how many.
            settings: as for `Index.search`.

        Raises:
            FilterError: a filter that Haystack refuses.
            InputError: a bad embedding, or settings that the index refuses.
        """
        hits = self.store.search(query_embedding, top_k, filter=_as_filter(filters), **settings)
        return [_document(hit.record, hit.similarity) for hit in hits]


@component
class CompresSAEEmbeddingRetriever:
    """Retrieves the documents of a `CompresSAEDocumentStore` that are nearest to an embedding."""

    def __init__(
        self,
        document_store: CompresSAEDocumentStore,
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """A retriever.

        Args:
            document_store: the store.
            filters: which documents to search among.
            top_k: how many documents to find.
            filter_policy: whether filters of a run replace those, or are merged with them.

        Raises:
            InputError: another kind of store, or top_k below 1.
        """
        given: Any = document_store
        if not isinstance(given, CompresSAEDocumentStore):
            msg = f"document_store must be a CompresSAEDocumentStore, got {type(given).__name__}"
            raise InputError(msg)
        self.document_store = document_store
        self.filters, self.top_k = filters, check_int(top_k, "top_k", 1)
        self.filter_policy = FilterPolicy(filter_policy)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the retriever."""
        written: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CompresSAEEmbeddingRetriever:
        """The retriever of `to_dict`."""
        arguments = dict(data["init_parameters"])
        if isinstance(arguments["document_store"], dict):
            arguments["document_store"] = CompresSAEDocumentStore.from_dict(arguments["document_store"])
        made: CompresSAEEmbeddingRetriever = default_from_dict(cls, {**data, "init_parameters": arguments})
        return made

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The nearest documents; arguments in place of those of the retriever."""
        wanted = apply_filter_policy(self.filter_policy, self.filters, filters)
        k = self.top_k if top_k is None else top_k
        return {"documents": self.document_store.embedding_retrieval(query_embedding, wanted, k)}


def _record(document: Document) -> Record:
    kept = {
        name: value.to_dict()
        for name, value in (("blob", document.blob), ("sparse_embedding", document.sparse_embedding))
        if value is not None
    }
    return Record(document.id, document.content, document.meta, json.dumps(kept) if kept else None)


def _document(record: Record, score: float | None = None) -> Document:
    kept = json.loads(record.payload or "{}")
    if "blob" in kept:
        kept["blob"] = ByteStream.from_dict(kept["blob"])
    if "sparse_embedding" in kept:
        kept["sparse_embedding"] = SparseEmbedding.from_dict(kept["sparse_embedding"])
    return Document(id=record.id, content=record.text, meta=record.metadata, score=score, **kept)


def _as_filter(filters: dict[str, Any] | None) -> Filter | None:
    """A condition for SQLite, or Haystack's comparison of every document where it has rules of its own."""
    if not filters:
        return None
    condition = _condition(filters)
    if condition is not None:
        return condition
    return lambda record: bool(document_matches_filter(filters, _document(record)))


def _condition(filters: Any) -> Condition | None:
    """The condition of a filter, None if Haystack must decide: dates, lists, fields, mistakes."""
    if not isinstance(filters, Mapping):
        return None
    if "field" in filters:
        return _comparison(filters)
    operator, given = filters.get("operator"), filters.get("conditions")
    if operator not in ("AND", "OR", "NOT") or not isinstance(given, list):
        return None
    parts = [part for part in map(_condition, given) if part is not None]
    if len(parts) < len(given):
        return None
    if operator == "OR":
        return conditions.either(parts)
    return conditions.every(parts) if operator == "AND" else conditions.negated(conditions.every(parts))


def _comparison(filters: Mapping[str, Any]) -> Condition | None:
    operator, field = filters.get("operator"), filters["field"]
    if "value" not in filters or not isinstance(field, str):
        return None
    value, parts = filters["value"], field.split(".")
    if parts[0] == "meta" and len(parts) > 1:
        parts = parts[1:]
    elif len(parts) > 1 or field in _FIELDS:
        return None
    if operator in ("in", "not in"):
        plain = isinstance(value, list) and all(map(_is_plain, value))
    elif operator in ("==", "!="):
        plain = _is_plain(value)
    elif operator in (">", ">=", "<", "<="):
        if value is None:
            return conditions.NOTHING
        plain = isinstance(value, (int, float))
    else:
        return None
    return conditions.compare(parts, operator, value) if plain else None


def _is_plain(value: Any) -> bool:
    """Whether Haystack compares a value by equality alone: dates, as texts, are equal in several forms."""
    if isinstance(value, str):
        return re.match(r"\d{4}-\d{2}-\d{2}", value) is None
    return value is None or isinstance(value, (int, float))
