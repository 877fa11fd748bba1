"""Codes of another codec, and one more array beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.codecs.base import PREFIX, Arrays, Codec


@dataclass(frozen=True, eq=False)
class Beside(Codec):
    """A codec that keeps an array beside those of another one, which keeps the codes.

    Attributes:
        inner: the codec of the codes.
    """

    beside: ClassVar[str]
    """The name of the array, of one row a document."""

    inner: Codec

    @property
    def array_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the codes, and the array beside."""
        return (*self.inner.array_names, self.beside)

    def fitted(self, codes: SparseCodes) -> Self:
        """This codec if the codes' codec is fitted; otherwise one whose is fitted to the codes."""
        return replace(self, inner=self.inner.fitted(codes))

    def learned(self) -> Arrays:
        """What the codes' codec learned."""
        return self.inner.learned()

    def with_learned(self, learned: Arrays) -> Self:
        """This codec with stored arrays of the codes' codec; errors are its own."""
        return replace(self, inner=self.inner.with_learned(learned))

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:
        """The codes, rounded, without what is beside them."""
        return self.inner.unpack(self.of_codes(arrays), n_latents, k, num_threads)

    def stored_names(self) -> tuple[set[str], set[str]]:
        """File names of the arrays with one row a document, and of the learned arrays."""
        by_row, learned = self.inner.stored_names()
        return by_row | {PREFIX + self.beside}, learned

    def of_codes(self, arrays: Arrays) -> Arrays:
        """The arrays of the codes alone."""
        return {name: arrays[name] for name in self.inner.array_names}
