"""A vector store of LlamaIndex over any index."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from compressae_index.connectors.texts import Record, TextStore
from compressae_index.connectors.texts import filters as conditions
from compressae_index.connectors.texts.filters import Condition
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.search.index import Index

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode, MetadataMode
    from llama_index.core.vector_stores.types import (
        DEFAULT_PERSIST_DIR,
        DEFAULT_PERSIST_FNAME,
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ImportError as error:
    raise MissingExtraError("llama-index-core", "llamaindex", "the store for LlamaIndex") from error

_DOCUMENT = "ref_doc_id"
# What LlamaIndex puts beside the metadata of a node.
_CONTENT = ("_node_content", "_node_type")


class CompresSAEVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """Nodes that are found by the codes of their embeddings, with all stages of the index.

    It keeps the nodes themselves, and filters by all operators of `MetadataFilters`, also nested ones; k are
    found if k match. Modes are DEFAULT and MMR. Further arguments of a query (`vector_store_kwargs`) are
    settings of `Index.search`, and for MMR `mmr_threshold` and `mmr_prefetch_k`, which is 4 k if it is not
    given.
    """

    stores_text: bool = True
    _store: TextStore = PrivateAttr()

    def __init__(self, index: Index | None = None, **options: Any) -> None:
        """An empty store.

        Args:
            index: as for `TextStore`; without one, vectors are kept as they are until there are 10,000.
            options: build_at, build and search of `TextStore`.
        """
        super().__init__()
        self._store = TextStore(index, **options)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in what LlamaIndex writes."""
        return "CompresSAEVectorStore"

    @property
    def client(self) -> TextStore:
        """The texts and the index."""
        return self._store

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:  # noqa: ARG002
        """Adds nodes with their embeddings, replacing those of ids that are held.

        Raises:
            InputError: ids that repeat, metadata that are not JSON, or bad embeddings. Nothing was added.
            MissingExtraError: an encoder must be trained, and torch is not installed. Nothing was added.
        """
        self._store.write([_record(node) for node in nodes], [node.get_embedding() for node in nodes])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ARG002
        """Removes the nodes of a document."""
        self._store.delete_where(conditions.compare([_DOCUMENT], "==", ref_doc_id))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Removes nodes of ids that match filters; one of these must be given, and `clear` removes all.

        Raises:
            InputError: neither ids nor filters.
        """
        if node_ids is None and filters is None:
            msg = "pass node_ids or filters; `clear` removes all nodes"
            raise InputError(msg)
        self._store.delete_where(_condition(filters, node_ids))

    def clear(self) -> None:
        """Removes all nodes."""
        self._store.delete_where(None)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """The nodes of ids that match filters, all by default, in the order in which they came."""
        return [_node(record) for record in self._store.records(_condition(filters, node_ids))]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to an embedding, best first.

        Similarities are scores of the index, but 1 / (1 + squared distance) where its metric is "l2".

        Raises:
            InputError: no embedding, another mode, or settings that the index refuses.
        """
        if query.query_embedding is None:
            msg = "a query needs an embedding"
            raise InputError(msg)
        vector, k = query.query_embedding, query.similarity_top_k
        # Retrievers of an index pass empty lists where all nodes are meant.
        wanted = _condition(query.filters, query.node_ids or None, query.doc_ids or None)
        if query.mode == VectorStoreQueryMode.MMR:
            given = kwargs.pop("mmr_threshold", None)
            weight = query.mmr_threshold if given is None else given
            hits = self._store.diverse(
                vector,
                k,
                fetch_k=kwargs.pop("mmr_prefetch_k", 4 * k),
                weight=0.5 if weight is None else weight,
                filter=wanted,
                **kwargs,
            )
        elif query.mode == VectorStoreQueryMode.DEFAULT:
            hits = self._store.search(vector, k, filter=wanted, **kwargs)
        else:
            msg = f"mode must be 'default' or 'mmr', got {query.mode.value!r}"
            raise InputError(msg)
        return VectorStoreQueryResult(
            nodes=[_node(hit.record) for hit in hits],
            similarities=[hit.similarity for hit in hits],
            ids=[hit.record.id for hit in hits],
        )

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Writes nodes and index to a directory of this name, in one step; errors as for `TextStore.save`.

        Raises:
            InputError: a file system of fsspec, in place of an address such as s3://bucket/store.
        """
        _refuse(fs)
        self._store.save(persist_path)

    @classmethod
    def from_persist_path(
        cls, persist_path: str, fs: Any = None, index: Index | None = None, **options: Any
    ) -> CompresSAEVectorStore:
        """Reads what `persist` wrote; options and errors are those of `TextStore.load`."""
        _refuse(fs)
        made = cls()
        made._store = TextStore.load(persist_path, index, **options)
        return made

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str = DEFAULT_PERSIST_DIR, namespace: str = "default", **options: Any
    ) -> CompresSAEVectorStore:
        """Reads the store that `StorageContext.persist` wrote to a folder."""
        name = f"{namespace}__{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(os.path.join(persist_dir, name), **options)


def _refuse(fs: Any) -> None:
    if fs is not None:
        msg = "file systems of fsspec are not taken: pass an address such as s3://bucket/store as the path"
        raise InputError(msg)


def _record(node: BaseNode) -> Record:
    metadata = node_to_metadata_dict(node, remove_text=True)
    content = {name: metadata.pop(name) for name in _CONTENT}
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return Record(node.node_id, text, metadata, json.dumps(content, ensure_ascii=False))


def _node(record: Record) -> BaseNode:
    return metadata_dict_to_node(json.loads(record.payload or "{}"), text=record.text)


def _condition(
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> Condition | None:
    parts = [] if filters is None else [_joined(filters)]
    if node_ids is not None:
        parts.append(conditions.has_id(node_ids))
    if doc_ids is not None:
        parts.append(conditions.compare([_DOCUMENT], "in", doc_ids))
    return conditions.every(parts) if parts else None


def _joined(filters: MetadataFilters) -> Condition:
    parts = [
        _joined(each) if isinstance(each, MetadataFilters) else _compared(each) for each in filters.filters
    ]
    if filters.condition == FilterCondition.NOT:
        return conditions.negated(conditions.either(parts))
    either = filters.condition == FilterCondition.OR and parts
    return conditions.either(parts) if either else conditions.every(parts)


def _compared(wanted: MetadataFilter) -> Condition:
    path, operator, value = [wanted.key], wanted.operator, wanted.value
    if operator == FilterOperator.NIN:
        return conditions.compare(path, "not in", value)
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        join = conditions.either if operator == FilterOperator.ANY else conditions.every
        return join([conditions.contains(path, each) for each in value])
    if operator == FilterOperator.CONTAINS:
        return conditions.contains(path, value)
    if operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE):
        any_case = operator == FilterOperator.TEXT_MATCH_INSENSITIVE
        return conditions.holds_text(path, value, any_case=any_case)
    if operator == FilterOperator.IS_EMPTY:
        return conditions.is_empty(path)
    return conditions.compare(path, operator.value, value)
