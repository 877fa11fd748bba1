"""What an index searches: the protocol of back ends."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.coding.codes import SparseCodes


class Candidates(NamedTuple):
    """What stage one of a back end found for a batch of queries."""

    ids: IdArray
    """(n_queries, c) int64, or str objects; -1, or None, where fewer were found, after all others."""
    scores: FloatArray
    """(n_queries, c) sums over the query's terms, or upper bounds of them; -inf where fewer were found."""
    bounds: FloatArray
    """(n_queries,) no document that was not found has a sum over the query's terms above this."""
    codes: SparseCodes | None
    """Codes of the candidates, n_queries * c rows, of value 0 where fewer were found; None where the back
    end does not get them along."""


class SparseBackend(Protocol):
    """Folded codes by user id, kept and searched outside of this package.

    Ids are those that `Ids` takes: int64 that are not negative, or strings; never both.
    """

    @property
    def n_latents(self) -> int:
        """Size of the dictionary."""
        ...

    @property
    def k(self) -> int:
        """Nonzeros a code."""
        ...

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether scores of candidates are the signed sums themselves, not upper bounds."""
        ...

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by part, as far as the back end tells."""
        ...

    def __len__(self) -> int:
        """Documents that a search can find."""
        ...

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held."""
        ...

    def put(self, codes: SparseCodes, ids: IdArray) -> None:
        """Stores codes, one id a row and each once; those of ids that are held are replaced."""
        ...

    def remove(self, ids: IdArray) -> None:
        """Removes ids, all of them held."""
        ...

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, in their order; ids may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """
        ...

    def candidates(self, terms: SparseCodes, n: int, filter: Any) -> Candidates:  # noqa: A002
        """The n best documents by the terms of each query, which are entries of its projection.

        Args:
            terms: one row a query; entries of value 0 are no terms.
            n: candidates of each query, at most; documents that share no term with it need not be found.
            filter: what to search among, in the back end's own words; None for all.

        Raises:
            InputError: the filter is not one of the back end's, or n is more than it gives.
        """
        ...
