"""The base of a back end, which keeps codes outside of this package and finds them by latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import with_lengths, without_lengths
from compressae_index.coding.metric import RowScale, row_norms
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import InputError
from compressae_index.ids import Ids, check_kind
from compressae_index.progress import track
from compressae_index.search.protocol import Filter
from compressae_index.search.queries import Asked, Reads, SearchResult
from compressae_index.search.stages import ByCodes, ByTerms, Candidates, Stages, answered, ranked

# Queries answered at a time: the codes of all their candidates are held at once.
QUERY_BLOCK = 16


class SparseBackend(ABC):
    """`Documents` of a back end that finds candidates by latents and gives codes by id.

    A subclass defines the abstract methods and calls `__init__`; `Index(model, backend)` then searches,
    changes and explains it. Ids are those that `Ids` takes: int64 that are not negative, or strings; never
    both. Documents that share no term with a query are not found.

    Attributes:
        n_latents: size of the dictionary.
        k: nonzeros a code.
        are_strings: whether the ids are strings.
    """

    modes: tuple[str, ...] = ("sparse", "two_stage")
    filters: tuple[Filter, ...] = ("ids",)
    unit: float | None = 1.0  # values are kept as they come
    residual_bits: int = 0
    refines: bool = False
    is_exact: bool = False
    """Whether scores of candidates are the signed sums themselves, not upper bounds of them."""

    def __init__(self, n_latents: int, k: int, *, are_strings: bool = False) -> None:
        """With the shape of the codes and the kind of the ids."""
        self.n_latents = n_latents
        self.k = k
        self.are_strings = are_strings

    @property
    def ids(self) -> IdArray:
        """The ids that a search can find, in the order that breaks ties.

        Raises:
            InputError: this back end does not list them.
        """
        msg = f"{type(self).__name__} does not list its ids, so name those you want, as by ids=..."
        raise InputError(msg)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by part, as far as they are known; none by default."""
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """Documents that a search can find."""

    @abstractmethod
    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held, (n,)."""

    @abstractmethod
    def put(self, codes: SparseCodes, ids: IdArray) -> None:
        """Stores codes, one id a row and each once; those of ids that are held are replaced."""

    @abstractmethod
    def remove(self, ids: IdArray) -> None:
        """Removes ids, all of them held."""

    @abstractmethod
    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, in their order; ids may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """

    @abstractmethod
    def candidates(self, terms: SparseCodes, n: int, filter: Any) -> Candidates:  # noqa: A002
        """The n best documents by the terms of each query, which are entries of its projection.

        Args:
            terms: one row a query; entries of value 0 are no terms.
            n: candidates of each query, at most; documents that share no term with it need not be found.
            filter: the documents to search among, in one of the kinds of `filters`; None for all.

        Raises:
            InputError: the filter is of another kind, or n is more than the back end gives.
        """

    def stages(self, mode: str) -> Stages:
        """The stages of a mode."""
        return {"sparse": Stages(ByTerms(self)), "two_stage": Stages(ByTerms(self), (ByCodes(self),))}[mode]

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query, by the stages of its mode.

        Raises:
            InputError: a filter of another kind.
        """
        return answered(self.stages(asked.mode), asked, QUERY_BLOCK, are_strings=self.are_strings)

    def reads(self, asked: Asked) -> Reads:  # noqa: ARG002
        """What `answer` reads for queries; nothing of it is counted by default."""
        return Reads()

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """Reconstructions of ids, (len(ids), d).

        Raises:
            UnknownIdError: an id is not held.
        """
        return model.decode(without_lengths(self.codes(ids), model.n_latents))

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """The vectors of ids as the last stage knows them, (len(ids), d).

        Here these are reconstructions.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self.reconstructed(ids, model)

    def scored(self, asked: Asked, terms: SparseCodes, got: Candidates) -> SearchResult:
        """The answer to queries whose candidates by `terms` the caller has fetched."""
        stages = Stages(lambda asked: ByTerms(self).scored(asked, terms, got), self.stages(asked.mode).then)
        return ranked(stages.run(asked), asked.k, are_strings=self.are_strings)

    def check_ids(self, ids: IdArray) -> None:
        """Checks that ids can be stored.

        Raises:
            InputError: they are of the other kind.
        """
        check_kind(ids, are_strings=self.are_strings)

    def added(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        *,
        scale: RowScale,  # noqa: ARG002
        model: CompresSAE,
        num_threads: int,  # noqa: ARG002
        progress: bool,
    ) -> SparseBackend:
        """This back end, with all codes stored; they are held in memory until the last one is made."""
        if self.n_latents > model.n_latents:
            chunks = with_norms(chunks)
        self.put_all(chunks, ids, lambda codes, some, _: self.put(codes, some), progress=progress)
        return self

    def put_all(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        put: Callable[[SparseCodes, IdArray, slice], None],
        *,
        progress: bool,
    ) -> None:
        """Calls `put` with the codes, ids and rows of each chunk, after the last chunk is made."""
        first, made = 0, [chunk.codes for chunk in chunks]
        with track(len(ids), "storing", enabled=progress) as advance:
            for codes in made:
                rows = slice(first, first + len(codes))
                put(codes, ids.of(np.arange(rows.start, rows.stop)), rows)
                first = rows.stop
                advance(len(codes))

    def removed(self, ids: IdArray) -> SparseBackend:
        """This back end, after it has removed ids."""
        self.remove(ids)
        return self


def with_norms(chunks: Iterable[Encoded]) -> Iterator[Encoded]:
    """The same chunks, whose codes have one more pair for the norms of their rows."""
    for chunk in chunks:
        assert chunk.rows is not None, "codes alone have no norms"
        halves = np.square(row_norms(chunk.rows)) / 2
        yield chunk._replace(codes=with_lengths(chunk.codes, halves.astype(np.float32)))
