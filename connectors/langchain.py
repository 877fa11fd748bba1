"""A `VectorStore` of LangChain over any index."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from compressae_index.connectors.texts import Filter, Hit, Record, TextStore
from compressae_index.connectors.texts import filters as conditions
from compressae_index.connectors.texts.filters import Condition
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.search.index import Index

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain", "the store for LangChain") from error

Wanted: TypeAlias = Mapping[str, Any] | Callable[[Document], bool]
"""A filter: {"year": {"$gte": 2020}}, or a function of a document."""

_OPERATORS: dict[str, conditions.Operator] = {
    "$eq": "==",
    "$ne": "!=",
    "$gt": ">",
    "$gte": ">=",
    "$lt": "<",
    "$lte": "<=",
    "$in": "in",
    "$nin": "not in",
}


class CompresSAEVectorStore(VectorStore):  # type: ignore[misc]
    """Texts that are found by the codes of their embeddings, with all stages of the index.

    Searches take `k`, `filter`, and the settings of `Index.search`, such as target_recall. A filter is a
    dictionary of metadata: values that must be equal, or operators $eq, $ne, $gt, $gte, $lt, $lte, $in and
    $nin, joined by $and, $or and $not; or a function of a `Document`, which is called with every one. k
    documents are found if k match. Scores are those of the index, the higher the nearer, but for metric "l2"
    squared distances, of which the lowest comes first. Relevance scores are cosines, or 1 / (1 + distance).

    Attributes:
        store: the texts and the index (`TextStore`).
    """

    def __init__(self, embedding: Embeddings, index: Index | None = None, **options: Any) -> None:
        """An empty store; `from_index` takes an index with vectors.

        Args:
            embedding: embeds texts and queries.
            index: as for `TextStore`; without one, vectors are kept as they are until there are 10,000.
            options: build_at, build and search of `TextStore`.
        """
        self._embedding = embedding
        self.store = TextStore(index, **options)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> CompresSAEVectorStore:
        """A store of texts; options are those of the class."""
        made = cls(embedding, **options)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    def from_index(
        cls,
        index: Index,
        embedding: Embeddings,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> CompresSAEVectorStore:
        """A store of an index that holds the embeddings of texts already.

        Args:
            index: the index, whose ids are those of the documents; integers as text.
            embedding: the embedder that made its vectors.
            texts: a text for each of `index.ids`, in their order.
            metadatas: metadata in the same order.
            options: search of `TextStore`.

        Raises:
            InputError: another number of texts or metadata than of vectors, or metadata that are not JSON.
        """
        return cls._over(TextStore.of(index, texts, metadatas, **options), embedding)

    @classmethod
    def _over(cls, store: TextStore, embedding: Embeddings) -> CompresSAEVectorStore:
        made = cls.__new__(cls)
        made._embedding, made.store = embedding, store
        return made

    @property
    def embeddings(self) -> Embeddings:
        """The embedder."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> list[str]:
        """Embeds texts and adds them, replacing those of ids that are held; returns the ids.

        Args:
            texts: the texts.
            metadatas: a dictionary a text, of what JSON holds.
            ids: an id a text; a random one for each None.
            kwargs: ignored, as other stores do.

        Raises:
            InputError: numbers that differ, ids that repeat, metadata that are not JSON, or bad embeddings.
                Nothing was added.
            MissingExtraError: an encoder must be trained, and torch is not installed. Nothing was embedded.
        """
        if isinstance(texts, str):
            msg = "texts must be a list of strings, got one string"
            raise InputError(msg)
        texts = list(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != len(texts):
                msg = f"{len(given)} {name} for {len(texts)} texts"
                raise InputError(msg)
        names = [id_ or str(uuid.uuid4()) for id_ in (ids or [None] * len(texts))]
        self.store.check_room(names)
        records = [
            Record(id_, text, metadata or {})
            for id_, text, metadata in zip(names, texts, metadatas or [{}] * len(texts), strict=True)
        ]
        if records:
            self.store.write(records, self._embedding.embed_documents(texts))
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:  # noqa: ARG002
        """Removes the documents of ids, or all for None; unknown ids are passed over."""
        self.store.delete_where(None) if ids is None else self.store.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of ids in their order, without those that are not held."""
        return [_document(record) for record in self.store.get(ids)]

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """The k documents nearest to a text, best first."""
        return self.similarity_search_by_vector(self._embedding.embed_query(query), k, filter, **kwargs)

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a text, with scores: cosines, inner products, or squared distances."""
        return self.similarity_search_with_score_by_vector(
            self._embedding.embed_query(query), k, filter, **kwargs
        )

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """The k documents nearest to a vector, best first."""
        found = self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a vector, with scores."""
        return _with_scores(self.store.search(embedding, k, filter=_as_filter(filter), **kwargs))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """K of the fetch_k documents nearest to a text, near to it and unlike each other.

        Args:
            query: the text.
            k: how many.
            fetch_k: how many to choose from.
            lambda_mult: 1 for the nearest, 0 for the most different ones.
            filter: as for a search.
            kwargs: settings of `Index.search`.
        """
        return self.max_marginal_relevance_search_by_vector(
            self._embedding.embed_query(query), k, fetch_k, lambda_mult, filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Wanted | None = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """The same for a vector."""
        hits = self.store.diverse(
            embedding, k, fetch_k=fetch_k, weight=lambda_mult, filter=_as_filter(filter), **kwargs
        )
        return [_document(hit.record) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        index = self.store.index
        if index is not None and index.metric == "l2":
            return lambda distance: 1 / (1 + distance)
        if index is not None and index.metric != "cosine":
            msg = f"relevance scores are within 0 and 1; scores of this index are of metric {index.metric!r}"
            raise InputError(msg)
        return lambda score: min(max(score, 0.0), 1.0)

    def save_local(self, path: str | os.PathLike[str]) -> None:
        """Writes texts and index to a directory or address, in one step; errors as for `TextStore.save`."""
        self.store.save(path)

    @classmethod
    def load_local(
        cls, path: str | os.PathLike[str], embedding: Embeddings, index: Index | None = None, **options: Any
    ) -> CompresSAEVectorStore:
        """Reads what `save_local` wrote; options and errors are those of `TextStore.load`."""
        return cls._over(TextStore.load(path, index, **options), embedding)


def _document(record: Record) -> Document:
    return Document(id=record.id, page_content=record.text or "", metadata=record.metadata)


def _with_scores(hits: Iterable[Hit]) -> list[tuple[Document, float]]:
    return [(_document(hit.record), hit.score) for hit in hits]


def _as_filter(wanted: Any) -> Filter | None:
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        return _condition(wanted)
    if not callable(wanted):
        msg = f"filter must be a dictionary or a function of a document, got {type(wanted).__name__}"
        raise InputError(msg)
    return lambda record: bool(wanted(_document(record)))


def _condition(wanted: Mapping[str, Any]) -> Condition:
    """The condition of a dictionary, whose entries must all be met."""
    parts = []
    for key, value in wanted.items():
        if key in ("$and", "$or"):
            if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
                msg = f"{key} takes a list of filters, got {value!r:.100}"
                raise InputError(msg)
            join = conditions.every if key == "$and" else conditions.either
            parts.append(join([_condition(each) for each in value]))
        elif key == "$not":
            if not isinstance(value, Mapping):
                msg = f"$not takes a filter, got {value!r:.100}"
                raise InputError(msg)
            parts.append(conditions.negated(_condition(value)))
        elif key.startswith("$"):
            msg = f"there is no operator {key!r}: filters are joined by $and, $or and $not"
            raise InputError(msg)
        elif isinstance(value, Mapping):
            parts += [conditions.compare([key], _operator(name), each) for name, each in value.items()]
        else:
            parts.append(conditions.compare([key], "==", value))
    return conditions.every(parts)


def _operator(name: str) -> conditions.Operator:
    if name not in _OPERATORS:
        msg = f"there is no operator {name!r}; there are: {', '.join(_OPERATORS)}"
        raise InputError(msg)
    return _OPERATORS[name]
