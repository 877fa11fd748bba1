"""The protocol of the documents that an `Index` searches, wherever their codes are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import RowScale
from compressae_index.coding.model import CompresSAE
from compressae_index.ids import Ids
from compressae_index.search.queries import Asked, Reads, SearchResult

# Kinds of a search's filter: ids, a boolean mask in the order of `ids`, a back end's own expressions.
Filter: TypeAlias = Literal["ids", "mask", "expression"]


class Documents(Protocol):
    """Codes by user id, to search and to change.

    Ids are those that `Ids` takes: int64 that are not negative, or strings; never both. A change returns the
    documents that later searches see: the same object, or a new one if documents are immutable, which leaves
    searches that have begun undisturbed.
    """

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that `answer` knows; "sparse" is among them."""
        ...

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The kinds of filters that `answer` takes."""
        ...

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
    def ids(self) -> IdArray:
        """The ids that a search can find, in the order that breaks ties."""
        ...

    @property
    def unit(self) -> float | None:
        """The unit of norms, by which stored values were divided; None until the first rows choose it."""
        ...

    @property
    def residual_bits(self) -> int:
        """Bits a dimension of residual codes, for which codes that are added leave room; 0 for none."""
        ...

    @property
    def refines(self) -> bool:
        """Whether a last stage scores the best documents again, by residual codes or original vectors."""
        ...

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by part, as far as they are known."""
        ...

    def __len__(self) -> int:
        """Documents that a search can find."""
        ...

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held, (n,); all are of the kind of these documents."""
        ...

    def check_ids(self, ids: IdArray) -> None:
        """Checks that ids can be stored.

        Raises:
            InputError: they are of the other kind, or out of range.
        """
        ...

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, times the kept norm, in the order of ids, which may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """
        ...

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """The vectors of ids as the last stage knows them, (len(ids), d), in the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        ...

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """Reconstructions of ids with their residuals, (len(ids), d), in the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        ...

    def answer(self, asked: Asked) -> SearchResult:
        """The `asked.k` best documents of each query.

        Raises:
            InputError: a filter or a setting that these documents do not take.
        """
        ...

    def reads(self, asked: Asked) -> Reads:
        """What `answer` reads for queries, as far as these documents count it."""
        ...

    def added(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        *,
        scale: RowScale,
        model: CompresSAE,
        num_threads: int,
        progress: bool,
    ) -> Documents:
        """Appends documents, and replaces those of ids that are held.

        All chunks are made before anything changes, so that an error in one of them changes nothing.

        Args:
            chunks: rows and codes, one an id in all.
            ids: one a code, each once.
            scale: the scale of the codes; its unit is known once the chunks are made.
            model: the model that encoded; values are rounded so that its reconstructions stay close.
            num_threads: threads to work with.
            progress: show a progress bar for storing, if that takes long after encoding.
        """
        ...

    def removed(self, ids: IdArray) -> Documents:
        """Removes ids, all of them held and each once."""
        ...
