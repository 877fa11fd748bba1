"""Plain Faiss indexes from this package's, and the other way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice
from compressae_index.connectors.faiss.flat import STORAGES, Storage, flat_index
from compressae_index.connectors.faiss.index import FaissIndex
from compressae_index.connectors.faiss.library import faiss
from compressae_index.connectors.faiss.lists import check_mapped
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS
from compressae_index.sources.base import bounds

Kind: TypeAlias = Storage | Literal["inverted"]
KINDS: tuple[Kind, ...] = (*STORAGES, "inverted")


def to_faiss(
    index: CompressedIndex, kind: Kind = "float16", *, ids: Any = None, progress: bool = True
) -> Any:
    """A plain Faiss index, which any program reads after `faiss.write_index`.

    Args:
        index: what to export.
        kind: "float32", "float16" or "bfloat16" for a flat index of inner products over the reconstructions,
            as `search(mode="dense")` scores them; "inverted" for the codes in inverted lists, one list a
            latent, which Faiss keeps and only `FaissIndex.from_lists` searches. Faiss's own `search` of the
            latter gives ids and scores that mean nothing, without a warning: to Faiss, these are vectors of
            one number, which it compares one by one and never adds up.
        ids: integers, one for each of `index.ids` and in their order, to use in their place: Faiss has no
            strings.
        progress: show a progress bar.

    Returns:
        IndexFlatIP or IndexScalarQuantizer, in an IndexIDMap2 unless the ids are 0 .. n-1; or, for
        "inverted", an IndexIVFScalarQuantizer whose ids are row numbers in the order of `index.ids`.

    Raises:
        InputError: another kind, string ids, or another number of `ids`.
    """
    check_choice(kind, "kind", KINDS)
    if kind == "inverted":
        return FaissIndex.from_index(index, progress=progress).faiss_index
    own = index.ids
    used = Ids.from_user(own if ids is None else ids, len(own)) if len(own) else Ids(0, {})
    if used.are_strings:
        msg = "Faiss's ids are integers, and this index has strings: give integers by ids="
        raise InputError(msg)
    made = flat_index(index.model.dim, kind)
    counted = not used.to_arrays()
    if not counted:
        made = faiss.IndexIDMap2(made)
    with track(len(own), "reconstructing", enabled=progress) as advance:
        for first in range(0, len(own), CHUNK_ROWS):
            vectors = index.reconstruct(own[first : first + CHUNK_ROWS])
            if counted:
                made.add(vectors)
            else:
                made.add_with_ids(vectors, used.of(np.arange(first, first + len(vectors))))
            advance(len(vectors))
    return made


def from_faiss(index: Any, **options: Any) -> CompressedIndex:
    """A compressed index of the vectors that a Faiss index holds, under the same ids.

    Vectors are reconstructed a piece at a time, so that what Faiss holds is not held twice.

    Args:
        index: any Faiss index of inner products or Euclidean distances that can reconstruct its vectors:
            flat, scalar-quantised, IVF, PQ, HNSW, within IDMap or a pre-transform or not, mapped or not.
            It is not changed.
        options: as for `CompressedIndex.build`; its default `metric` is "cosine".

    Raises:
        InputError: an index of another metric, an empty one, or one that cannot reconstruct; as for `build`.
    """
    vectors = FaissVectors(index)
    return CompressedIndex.build(vectors, options.pop("ids", vectors.ids), **options)


class FaissVectors:
    """The vectors of a Faiss index, as a source of embeddings: slices are reconstructed as they are read.

    Attributes:
        shape: (n, d).
        ids: (n,) int64, one a row; None where they are 0 .. n-1.
    """

    def __init__(self, index: Any) -> None:
        """From an index, which must outlive this object unchanged.

        Raises:
            InputError: an index of another metric, an empty one, or one that cannot reconstruct.
            FormatError: lists that are not within the file that they are mapped from, or of rows without ids.
        """
        outer = faiss.downcast_index(index) if isinstance(index, faiss.Index) else None
        if outer is None or outer.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            msg = (
                f"expected a Faiss index of inner products or Euclidean distances, got {type(index).__name__}"
            )
            raise InputError(msg)
        self._owner = index
        self.ids: npt.NDArray[np.int64] | None = None
        inner = outer
        if isinstance(outer, (faiss.IndexIDMap, faiss.IndexIDMap2)):
            self.ids = faiss.vector_to_array(outer.id_map)
            inner = faiss.downcast_index(outer.index)
        self._index = inner
        if not inner.ntotal:
            msg = f"the Faiss index ({type(inner).__name__}) is empty"
            raise InputError(msg)
        ivf = faiss.try_extract_index_ivf(inner)
        self._ivf: Any = None if ivf is None else faiss.downcast_index(ivf)
        # FastScan's codes are interleaved, and are decoded one by one.
        self._interleaved = isinstance(self._ivf, faiss.IndexIVFFastScan)
        if self._interleaved and not isinstance(inner, faiss.IndexIVF):
            msg = f"vectors of FastScan lists within a {type(inner).__name__} cannot be read"
            raise InputError(msg)
        self._ends: npt.NDArray[np.int64] | None = None
        if self._ivf is not None:
            # The rows of an IVF are those of its lists, list after list: its ids may be any.
            check_mapped(self._ivf)
            self._ends, rows = _list_ids(self._ivf)
            if self.ids is not None and not ((rows >= 0) & (rows < len(self.ids))).all():
                msg = f"lists of this Faiss index hold rows that are outside of its {len(self.ids)} ids"
                raise FormatError(msg)
            self.ids = rows if self.ids is None else self.ids[rows]
        n = inner.ntotal if self._ends is None else self._ends[-1]
        self.shape: tuple[int, ...] = (int(n), int(inner.d))
        self._check_readable()

    def _check_readable(self) -> None:
        try:
            if self._ends is None:
                self._index.reconstruct(0)  # reconstruct_n would end the process where this raises
            else:
                self[0:1]
        except RuntimeError as error:
            msg = f"this Faiss index ({type(self._index).__name__}) cannot reconstruct its vectors: {error}"
            raise InputError(msg) from error

    def __getitem__(self, rows: slice) -> FloatArray:
        """Reconstructed rows (m, d) float32."""
        start, stop = bounds(rows, self.shape[0])
        if self._ends is None:
            if start == stop:
                return np.empty((0, self.shape[1]), dtype=np.float32)
            found: FloatArray = self._index.reconstruct_n(start, stop - start)
            return found
        parts = [self._of_list(number, first, end) for number, first, end in _within(self._ends, start, stop)]
        if not parts:
            return np.empty((0, self.shape[1]), dtype=np.float32)
        if self._interleaved:
            return np.concatenate(parts)
        decoded: FloatArray = self._index.sa_decode(np.concatenate(parts))
        return decoded

    def _of_list(self, number: int, first: int, end: int) -> npt.NDArray[Any]:
        """Vectors of a run of a list where they are decoded one by one; else, their labelled codes."""
        if self._interleaved:
            vectors = np.empty((end - first, self.shape[1]), dtype=np.float32)
            for vector, offset in zip(vectors, range(first, end), strict=True):
                self._ivf.reconstruct_from_offset(number, offset, faiss.swig_ptr(vector))
            return vectors
        lists, label_bytes = self._ivf.invlists, self._ivf.coarse_code_size()
        held = faiss.rev_swig_ptr(lists.get_codes(number), lists.list_size(number) * lists.code_size)
        codes = np.empty((end - first, label_bytes + lists.code_size), dtype=np.uint8)
        codes[:, :label_bytes] = np.frombuffer(number.to_bytes(label_bytes, "little"), dtype=np.uint8)
        codes[:, label_bytes:] = held.reshape(-1, lists.code_size)[first:end]
        return codes


def _list_ids(ivf: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the rows of each list end, (nlist,), and the ids of all rows, list after list."""
    lists = ivf.invlists
    sizes = [lists.list_size(number) for number in range(ivf.nlist)]
    held = [
        faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size
    ]
    return np.cumsum(sizes, dtype=np.int64), np.concatenate(held)


def _within(ends: npt.NDArray[np.int64], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Lists that rows start .. stop are in, with the first and the end of the run within each."""
    number, row = int(np.searchsorted(ends, start, side="right")), start
    while row < stop:
        begin = int(ends[number - 1]) if number else 0
        end = min(int(ends[number]), stop)
        if end > row:
            yield number, row - begin, end - begin
            row = end
        number += 1
