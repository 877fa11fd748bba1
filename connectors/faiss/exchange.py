"""Export to plain Faiss indexes, and import from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_choice
from compressae_index.coding.metric import Metric
from compressae_index.connectors.faiss.flat import STORAGES, Storage, faiss_metric, flat_index
from compressae_index.connectors.faiss.index import FaissIndex
from compressae_index.connectors.faiss.ivf import K_FACTOR, TRAINING_ROWS
from compressae_index.connectors.faiss.library import faiss
from compressae_index.connectors.faiss.lists import check_mapped
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS
from compressae_index.sources.base import bounds

# Faiss's names of scalar quantisers whose ranges are trained, of 8 and 4 bits a dimension.
Quantised: TypeAlias = Literal["SQ8", "SQ4"]
Kind: TypeAlias = Storage | Quantised | Literal["inverted"]
KINDS: tuple[Kind, ...] = (*STORAGES, "SQ8", "SQ4", "inverted")
_QUANTISERS = {"SQ8": faiss.ScalarQuantizer.QT_8bit, "SQ4": faiss.ScalarQuantizer.QT_4bit}


def to_faiss(
    index: CompressedIndex,
    kind: Kind = "float16",
    *,
    refine: Storage | None = None,
    ids: Any = None,
    progress: bool = True,
) -> Any:
    """Exports to a plain Faiss index, which any program can read after `faiss.write_index`.

    Args:
        index: the index to export.
        kind: "float32", "float16" or "bfloat16" for a flat index over the reconstructions, of inner products,
            or of squared distances if the metric is "l2",
            with the scores of `search(mode="dense")` by codes and residual codes; "SQ8" or "SQ4" for the same
            in 8 or 4 bits a dimension; "inverted" for the codes in inverted lists, one list a latent. Search
            the lists with `FaissIndex.from_lists`. Faiss's own `search` of them returns meaningless ids and
            scores without a warning: it takes postings for vectors of one number, and never adds them up.
        refine: adds a second index of this type, from which Faiss scores the best documents of the first one
            again. Both then hold the original vectors if the index keeps them, of unit norm for cosine, or
            else the reconstructions. Faiss takes k * k_factor documents from the first one: 10 k, unless a
            search has `params=faiss.IndexRefineSearchParameters(k_factor=...)`.
        ids: integers to use instead of `index.ids`, in the same order. Faiss cannot store strings.
        progress: show a progress bar.

    Returns:
        IndexFlatIP, IndexFlatL2 or IndexScalarQuantizer, or an IndexRefine of two of them; in an IndexIDMap2
        unless the ids are 0 .. n-1. For "inverted", an IndexIVFScalarQuantizer whose ids are row numbers in
        the order of `index.ids`.

    Raises:
        InputError: an unknown kind, refine with "inverted", string ids, or the wrong number of `ids`.
    """
    check_choice(kind, "kind", KINDS)
    if refine is not None:
        check_choice(refine, "refine", STORAGES)
    if kind == "inverted":
        if refine is not None:
            msg = f"Faiss cannot search posting lists, so they take no refine, got {refine!r}"
            raise InputError(msg)
        return FaissIndex.from_index(index, progress=progress).faiss_index
    own = index.ids
    used = Ids.from_user(own if ids is None else ids, len(own)) if len(own) else Ids(0, {})
    if used.are_strings:
        msg = "Faiss's ids are integers, and this index has strings: pass integers as ids="
        raise InputError(msg)
    vectors_of = index.reconstruct if refine is None else partial(_best_known, index)
    made = _empty(index.model.dim, kind, refine, distances=index.metric == "l2")
    if not made.is_trained and len(own):
        made.train(vectors_of(own[:: -(-len(own) // TRAINING_ROWS)]))
    counted = not used.to_arrays()
    if not counted:
        made = faiss.IndexIDMap2(made)
    with track(len(own), "reconstructing", enabled=progress) as advance:
        for first in range(0, len(own), CHUNK_ROWS):
            vectors = vectors_of(own[first : first + CHUNK_ROWS])
            if counted:
                made.add(vectors)
            else:
                made.add_with_ids(vectors, used.of(np.arange(first, first + len(vectors))))
            advance(len(vectors))
    return made


def _empty(dim: int, kind: Storage | Quantised, refine: Storage | None, *, distances: bool) -> Any:
    """An index without vectors, maybe with a second one to refine by."""
    if kind == "SQ8" or kind == "SQ4":
        index = faiss.IndexScalarQuantizer(dim, _QUANTISERS[kind], faiss_metric(distances=distances))
    else:
        index = flat_index(dim, kind, distances=distances)
    if refine is None:
        return index
    refined = faiss.IndexRefine(index, flat_index(dim, refine, distances=distances))
    refined.k_factor = K_FACTOR
    return refined


def _best_known(index: CompressedIndex, ids: IdArray) -> FloatArray:
    """The vectors of ids as the last stage of a search knows them."""
    vectors = index.documents.vectors(ids, index.model)
    vectors = vectors if index.unit == 1 else vectors * np.float32(index.unit)
    return vectors if index.model.center is None else vectors + index.model.center


def from_faiss(index: Any, **options: Any) -> CompressedIndex:
    """Builds a compressed index of the vectors in a Faiss index, with the same ids.

    Vectors are reconstructed in batches, so that they are never all in memory a second time.

    Args:
        index: any Faiss index of inner products or Euclidean distances that can reconstruct its vectors:
            flat, scalar-quantised, IVF, PQ or HNSW, also inside an IDMap or a pre-transform, or mapped. Of an
            IndexRefine, the vectors that it refines by. It is not changed.
        options: as for `CompressedIndex.build`. The metric of an index of Euclidean distances is "l2" by
            default, of any other "cosine".

    Raises:
        InputError: the index has another metric, is empty or cannot reconstruct; or as for `build`.
    """
    vectors = FaissVectors(index)
    options = {"metric": vectors.metric} | options
    return CompressedIndex.build(vectors, options.pop("ids", vectors.ids), **options)


class FaissVectors:
    """The vectors of a Faiss index as a source of embeddings, which reconstructs the slices it is asked for.

    Attributes:
        shape: (n, d).
        ids: (n,) int64, one a row; None if they are 0 .. n-1.
        metric: "l2" if Faiss compares them by Euclidean distances, else "cosine".
    """

    def __init__(self, index: Any) -> None:
        """Wraps an index, which must not change while this object is in use.

        Raises:
            InputError: the index has another metric, is empty or cannot reconstruct.
            FormatError: its lists go beyond the file that they are mapped from, or hold rows without ids.
        """
        outer = faiss.downcast_index(index) if isinstance(index, faiss.Index) else None
        if outer is None or outer.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            msg = (
                f"expected a Faiss index of inner products or Euclidean distances, got {type(index).__name__}"
            )
            raise InputError(msg)
        self._owner = index
        self.metric: Metric = "l2" if outer.metric_type == faiss.METRIC_L2 else "cosine"
        self.ids: npt.NDArray[np.int64] | None = None
        inner = outer
        if isinstance(outer, (faiss.IndexIDMap, faiss.IndexIDMap2)):
            self.ids = faiss.vector_to_array(outer.id_map)
            inner = faiss.downcast_index(outer.index)
        if isinstance(inner, faiss.IndexRefine):
            inner = faiss.downcast_index(inner.refine_index)
        self._index = inner
        if not inner.ntotal:
            msg = f"the Faiss index ({type(inner).__name__}) is empty"
            raise InputError(msg)
        ivf = faiss.try_extract_index_ivf(inner)
        self._ivf: Any = None if ivf is None else faiss.downcast_index(ivf)
        # FastScan interleaves its codes, so vectors are decoded one by one.
        self._interleaved = isinstance(self._ivf, faiss.IndexIVFFastScan)
        if self._interleaved and not isinstance(inner, faiss.IndexIVF):
            msg = f"vectors of FastScan lists within a {type(inner).__name__} cannot be read"
            raise InputError(msg)
        self._ends: npt.NDArray[np.int64] | None = None
        if self._ivf is not None:
            # Number the rows of an IVF list after list, as its ids may be any integers.
            check_mapped(self._ivf)
            self._ends, rows = _list_ids(self._ivf)
            if self.ids is not None and not ((rows >= 0) & (rows < len(self.ids))).all():
                msg = f"lists of this Faiss index hold rows outside of its {len(self.ids)} ids"
                raise FormatError(msg)
            self.ids = rows if self.ids is None else self.ids[rows]
        n = inner.ntotal if self._ends is None else self._ends[-1]
        self.shape: tuple[int, ...] = (int(n), int(inner.d))
        self._check_readable()

    def _check_readable(self) -> None:
        try:
            if self._ends is None:
                self._index.reconstruct(0)  # reconstruct_n would abort the process where this raises
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
        """Entries first .. end of a list: decoded vectors for FastScan, else codes prefixed by the list."""
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
    """The end of each list in rows, (nlist,), and the ids of all rows, list after list."""
    lists = ivf.invlists
    sizes = [lists.list_size(number) for number in range(ivf.nlist)]
    held = [
        faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size
    ]
    return np.cumsum(sizes, dtype=np.int64), np.concatenate(held)


def _within(ends: npt.NDArray[np.int64], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The lists that hold rows start .. stop, each with the first entry and the end of its run."""
    number, row = int(np.searchsorted(ends, start, side="right")), start
    while row < stop:
        begin = int(ends[number - 1]) if number else 0
        end = min(int(ends[number]), stop)
        if end > row:
            yield number, row - begin, end - begin
            row = end
        number += 1
