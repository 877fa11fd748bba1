"""Tasks of mteb on an index of ours: any of its encoders, and `CompressedIndex` in place of a full scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compressae_index.checks import as_floats, check_vectors
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE
from compressae_index.conversion import as_array
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.index import CompressedIndex
from compressae_index.search.queries import SearchResult

try:
    from mteb.models.search_wrappers import SearchEncoderWrapper
except ImportError as error:
    raise MissingExtraError("mteb", "mteb", "tasks of mteb on an index") from error

# What mteb's index backends give: scores and places in the corpus, a list for each query.
_Found = tuple[list[list[float]], list[list[int]]]


class IndexBackend:
    """An index backend of mteb that builds a `CompressedIndex` of each corpus, and searches it."""

    def __init__(
        self, build: Mapping[str, Any] | None = None, search: Mapping[str, Any] | None = None
    ) -> None:
        """A backend without documents.

        Args:
            build: arguments of `CompressedIndex.build`, such as k, model or bytes_per_vector.
            search: arguments of `CompressedIndex.search`, such as mode.
        """
        self.build = {"progress": False, **(build or {})}
        self.search_with = dict(search or {})
        self.index: CompressedIndex | None = None
        self._places: dict[str, int] = {}

    def add_documents(self, embeddings: Any, idxs: list[str]) -> None:
        """Builds the index of a corpus, or adds to it, as mteb asks.

        Args:
            embeddings: (n, d), an array or a dense tensor.
            idxs: their ids.

        Raises:
            InputError: bad rows, or what `CompressedIndex.build` refuses.
        """
        name = "embeddings of mteb"
        rows = as_floats(as_array(embeddings, name), name=name)
        places = np.arange(len(self._places), len(self._places) + len(rows))
        if self.index is None:
            self.index = CompressedIndex.build(rows, places, **self.build)
        else:
            self.index.add(rows, places, on_bad_rows=self.build.get("on_bad_rows", "error"))
        self._places |= {str(name): int(place) for name, place in zip(idxs, places, strict=True)}

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[..., Any] | None = None,  # noqa: ARG002
        top_ranked: Mapping[str, list[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> _Found:
        """The best documents of each query, or the best of those that `top_ranked` names, by full scans.

        Args:
            embeddings: (n_queries, d), an array or a dense tensor.
            top_k: documents of each query.
            similarity_fn: mteb's, which is not used: scores are those of the index.
            top_ranked: ids of documents by id of the query, for tasks that rank these again.
            query_idx_to_id: ids of the queries by their number, which goes with it.

        Returns:
            Scores, greatest first as mteb wants them (with metric "l2", squared distances times -1), and
            numbers of documents: in the corpus, or in the list of `top_ranked`.

        Raises:
            InputError: there are no documents, or bad rows.
        """
        if self.index is None:
            msg = "mteb searches before it added documents"
            raise InputError(msg)
        queries = check_vectors(embeddings, name="queries of mteb", zeros=self.index.metric == "l2")
        if top_ranked is None:
            found = self.index.search(queries, min(top_k, len(self._places)), **self.search_with)
            return _filled(found, self.index.metric)
        scores, numbers = [], []
        for number, query in enumerate(queries):
            named = top_ranked.get((query_idx_to_id or {})[number], [])
            places = np.array([self._places[name] for name in named], dtype=np.int64)
            taken = self.index.search(query, max(min(top_k, len(named)), 1), mode="dense", filter=places)
            local = {int(place): at for at, place in enumerate(places)}
            (best,), (hits,) = _filled(taken, self.index.metric)
            scores.append(best)
            numbers.append([local[place] for place in hits])
        return scores, numbers

    def clear(self) -> None:
        """Forgets the documents."""
        self.index, self._places = None, {}


class IndexedEncoder(SearchEncoderWrapper):  # type: ignore[misc]
    """An encoder of mteb whose retrieval tasks are answered by a `CompressedIndex`.

    mteb keeps its results apart from those of the encoder alone, by the settings.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        build: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        """Wraps a dense encoder, such as `mteb.get_model` gives.

        Args:
            encoder: a model with mteb's EncoderProtocol.
            build: arguments of `CompressedIndex.build`, such as k, model or bytes_per_vector.
            search: arguments of `CompressedIndex.search`, such as mode.
        """
        super().__init__(encoder, index_backend=IndexBackend(build, search))
        settings = {"compressae_index": "index", **(build or {}), **(search or {})}
        named = {
            name: value.fingerprint if isinstance(value, CompresSAE) else str(value)
            for name, value in settings.items()
        }
        meta = encoder.mteb_model_meta
        kwargs = {**(meta.experiment_kwargs or {}), **named}
        self.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": kwargs})


def _filled(result: SearchResult, metric: Metric) -> _Found:
    """What mteb takes for the best has the greatest score; places that a search leaves empty are left out."""
    scores = -result.scores if metric == "l2" else result.scores
    return (
        [row[there].tolist() for row, there in zip(scores, result.found, strict=True)],
        [row[there].tolist() for row, there in zip(result.ids, result.found, strict=True)],
    )
