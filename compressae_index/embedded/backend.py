"""The embedded back end: codes in this process, searched by the engine. Rows inside, no ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import Clusters, ForwardCodes, InvertedLists, PackedCodes, search
from compressae_index.arrays import Bitmap, FloatArray, Hits, RowArray
from compressae_index.checks import check_threads
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.packing import Arrays, Packed, Packing, packing_of
from compressae_index.embedded.sizes import CLUSTER, RUN_ROWS, WINDOW, sparse_candidates
from compressae_index.errors import DimensionError, InputError
from compressae_index.persistence import release_pages
from compressae_index.processes import cached_property
from compressae_index.search.queries import QUERY_NNZ

# Arrays of the engine.
_INVERTED = ("starts", "offsets", "scales", "ids", "values", "largest_norm")
_CLUSTERS = ("begins", "means", "scales")


@dataclass(frozen=True)
class Part:
    """A run of documents in both forms; immutable, so that a search may go on while documents are added."""

    forward: ForwardCodes | PackedCodes
    inverted: InvertedLists

    def __len__(self) -> int:
        return self.forward.n_documents


class EmbeddedBackend:
    """Codes of rows 0 .. n-1, searchable by posting lists and row by row.

    Every method that changes documents returns a new back end, which shares what did not change.
    """

    def __init__(
        self,
        n_latents: int,
        k: int,
        packing: Packing | None = None,
        parts: Sequence[Part] = (),
        *,
        postings: int | None = None,
        clusters: Clusters | None = None,
    ) -> None:
        """Without documents, unless parts are given; `packing` says how the forward part is stored.

        A packing that is not fitted is fitted to the first codes that are added, and stays as it is then.
        The inverted part holds the `postings` strongest nonzeros of each code, all k by default. `clusters`
        are of the first documents.
        """
        self.n_latents = n_latents
        self.k = k
        self.postings = k if postings is None else postings
        self.packing = Packed() if packing is None else packing
        self.clusters = clusters
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self._pairs = [(part.inverted, part.forward) for part in self._parts]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # The engine's objects hold arrays, and are made again of these; of mapped ones, of what they hold.
        parts = [
            (_held(part.forward.arrays()), _held(part.inverted.arrays()), len(part)) for part in self._parts
        ]
        clusters = None if self.clusters is None else _held(self.clusters.arrays())
        return _remade, (self.n_latents, self.k, self.packing, self.postings, parts, clusters)

    @property
    def n_clustered(self) -> int:
        """Documents in clusters, the first ones."""
        return 0 if self.clusters is None else CLUSTER * len(self.clusters)

    @property
    def query_nnz(self) -> int:
        """Latents of a query that touch about as many postings as QUERY_NNZ do where lists hold all."""
        return min(QUERY_NNZ * self.k // self.postings, self.n_latents)

    def added(
        self, runs: Iterable[SparseCodes], num_threads: int, dictionary: FloatArray | None = None
    ) -> EmbeddedBackend:
        """With documents appended, run after run, so that only one run is held as it came.

        All parts but the last hold whole windows, so that adding ends in the same windows as building at
        once; parts of similar size are joined, so that their number stays logarithmic.

        Args:
            runs: codes in the order of their rows; there must be some.
            num_threads: threads of the engine.
            dictionary: as for `Packed.pack`.
        """
        packing, packed = self.packing, list[Arrays]()
        for codes in runs:
            packing = packing.fitted(codes)
            packed += (packing.pack(codes[run], num_threads, dictionary) for run in _runs(len(codes)))
        arrays = _stacked(packed)
        packed.clear()  # Memory for the posting lists.
        # Stored rows are moved as they are: rounding them again would change them.
        return self._with(packing, arrays, num_threads)

    def subset(self, rows: RowArray, num_threads: int, n_clustered: int = 0) -> EmbeddedBackend:
        """With only some documents, in the order of `rows`; the first n_clustered are near to similar ones.

        Clusters are made of these, as far as they fill whole windows.
        """
        empty = EmbeddedBackend(self.n_latents, self.k, self.packing, postings=self.postings)
        if not len(rows):
            return empty
        taken = empty._with(self.packing, self._rows(rows), num_threads)
        if windows := n_clustered // WINDOW:
            taken.clusters = Clusters.build(taken._parts[0].inverted, windows, num_threads)
        return taken

    def _with(self, packing: Packing, arrays: Arrays, num_threads: int) -> EmbeddedBackend:
        parts = list(self._parts)
        if parts and (tail := len(parts[-1]) % WINDOW):
            last = parts.pop()
            if whole := len(last) - tail:
                parts.append(self._head(last, whole))
            tail_rows = {name: array[whole:] for name, array in last.forward.arrays().items()}
            arrays = _stacked([tail_rows, arrays])
        forward = packing.engine(arrays, self.n_latents, self.k)
        parts.append(Part(forward, self._inverted(packing, arrays, forward.n_documents, num_threads)))
        # Joined at once: the fewer copies there are on the way, the less memory they take.
        first, rows = len(parts) - 1, len(parts[-1])
        while first and len(parts[first - 1]) < 2 * rows:
            first -= 1
            rows += len(parts[first])
        return self._of(packing, [*parts[:first], self._joined(parts[first:], packing)])

    def _inverted(self, packing: Packing, arrays: Arrays, n: int, num_threads: int) -> InvertedLists:
        """Posting lists of n packed rows: of values as packed, so that both forms round the same ones."""
        lists = []
        for run in _runs(n):
            codes = packing.unpack(
                {name: array[run] for name, array in arrays.items()}, self.n_latents, self.k, num_threads
            )
            kept = strongest(codes, self.postings)
            lists.append(InvertedLists.build(kept.latents, kept.values, self.n_latents, num_threads))
        return _concatenated(lists)

    def _of(self, packing: Packing, parts: Sequence[Part]) -> EmbeddedBackend:
        return EmbeddedBackend(
            self.n_latents, self.k, packing, parts, postings=self.postings, clusters=self.clusters
        )

    def codes(self, rows: RowArray) -> SparseCodes:
        """The stored codes of rows: folded, and rounded to the stored precision."""
        if not len(rows):
            return SparseCodes.empty(self.k, self.n_latents)
        return self.packing.unpack(self._rows(rows), self.n_latents, self.k)

    def _rows(self, rows: RowArray) -> Arrays:
        """The forward arrays of rows; there must be documents."""
        taken: Arrays = {}
        for part, start, inside in self._by_part(rows):
            for name, array in part.forward.arrays().items():
                whole = taken.setdefault(name, np.empty((len(rows), *array.shape[1:]), dtype=array.dtype))
                whole[inside] = array[rows[inside] - start]
        return taken

    def sparse(
        self,
        projections: FloatArray,
        query_nnz: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        nprobe: int | None = None,
    ) -> Hits:
        """Best rows by the query_nnz largest entries of each projection, of the nprobe best clusters.

        The posting lists find somewhat more rows than are asked for, whose codes then give exact scores.
        """
        candidates = sparse_candidates(top)
        return self._search(projections, None, query_nnz, candidates, top, allowed, num_threads, nprobe)

    def dense(self, projections: FloatArray, top: int, allowed: Bitmap | None, num_threads: int) -> Hits:
        """Best rows by whole projections."""
        return self._search(None, projections, 1, 1, top, allowed, num_threads)

    def two_stage(
        self,
        stage_one: FloatArray,
        stage_two: FloatArray,
        query_nnz: int,
        candidates: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        nprobe: int | None = None,
    ) -> Hits:
        """Of the best candidates by entries of one projection, the best by another whole one."""
        return self._search(stage_one, stage_two, query_nnz, candidates, top, allowed, num_threads, nprobe)

    def _search(
        self,
        stage_one: FloatArray | None,
        stage_two: FloatArray | None,
        query_nnz: int,
        candidates: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        nprobe: int | None = None,
    ) -> Hits:
        probing = (None, 0) if nprobe is None else (self.clusters, nprobe)
        return search(
            self._pairs, stage_one, stage_two, query_nnz, candidates, top, allowed, num_threads, *probing
        )

    def list_lengths(self) -> npt.NDArray[np.int64]:
        """Postings of each latent, (n_latents,)."""
        return sum(
            (part.inverted.list_lengths() for part in self._parts),
            start=np.zeros(self.n_latents, dtype=np.int64),
        )

    @cached_property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the forward and the inverted part."""
        return {
            "forward": sum(part.forward.nbytes for part in self._parts),
            "inverted": sum(part.inverted.nbytes for part in self._parts)
            + (0 if self.clusters is None else self.clusters.nbytes),
        }

    def joined(self) -> EmbeddedBackend:
        """The same documents in one part, which is searched faster than several."""
        if len(self._parts) <= 1:
            return self
        return self._of(self.packing, [self._joined(self._parts, self.packing)])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store, parts joined."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for part in self.joined()._parts:
            arrays |= {f"forward_{name}": array for name, array in part.forward.arrays().items()}
            arrays |= {f"inverted_{name}": array for name, array in part.inverted.arrays().items()}
        if self.clusters is not None:
            arrays |= {f"clusters_{name}": array for name, array in self.clusters.arrays().items()}
        if isinstance(self.packing, Packed) and self.packing.levels is not None:
            arrays["forward_levels"] = self.packing.levels
        return arrays

    @classmethod
    def from_arrays(
        cls,
        arrays: dict[str, npt.NDArray[Any]],
        n: int,
        n_latents: int,
        k: int,
        packing: Mapping[str, Any],
        postings: int,
    ) -> EmbeddedBackend:
        """From what `to_arrays` gave; the arrays are borrowed, so they may be memory-mapped.

        Args:
            arrays: the stored arrays.
            n: documents.
            n_latents: size of the dictionary.
            k: nonzeros a code.
            packing: the manifest of the packing.
            postings: nonzeros of a code in the inverted part.

        Raises:
            ValueError: the arrays do not fit together, are of other names, or do not hold what they should:
                all of them are read.
        """
        taken = {
            kind: {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in ("forward_", "inverted_", "clusters_")
        }
        chosen = packing_of(**packing, levels=taken["forward_"].pop("levels", None))
        _check_names(arrays, chosen, n)
        if n == 0:
            return cls(n_latents, k, chosen, postings=postings)
        forward = chosen.engine(taken["forward_"], n_latents, k)
        if forward.n_documents != n:
            msg = f"expected {n} codes, got {forward.n_documents}"
            raise DimensionError(msg)
        inverted = InvertedLists(taken["inverted_"], n, n_latents)
        clusters = Clusters(taken["clusters_"]) if taken["clusters_"] else None
        loaded = cls(n_latents, k, chosen, [Part(forward, inverted)], postings=postings, clusters=clusters)
        if clusters is not None and (loaded.n_clustered > n or clusters.n_latents != n_latents):
            msg = (
                f"clusters are of {loaded.n_clustered} documents and {clusters.n_latents} latents, "
                f"the index has {n} and {n_latents}"
            )
            raise DimensionError(msg)
        threads = check_threads(None)
        forward.validate(threads)
        release_pages(taken["forward_"])
        inverted.validate(postings, threads)
        if clusters is not None:
            clusters.validate(inverted, threads)
        release_pages(taken["inverted_"] | taken["clusters_"])
        return loaded

    def _by_part(self, rows: RowArray) -> list[tuple[Part, int, npt.NDArray[np.bool_]]]:
        return [
            (part, int(start), (rows >= start) & (rows < start + len(part)))
            for part, start in zip(self._parts, self._starts, strict=False)
        ]

    def _joined(self, parts: Sequence[Part], packing: Packing) -> Part:
        """Parts one below the other; all but the last hold whole windows."""
        if len(parts) == 1:
            return parts[0]
        forward = _stacked([part.forward.arrays() for part in parts])
        lists = _concatenated([part.inverted for part in parts])
        return Part(packing.engine(forward, self.n_latents, self.k), lists)

    def _head(self, part: Part, rows: int) -> Part:
        """The first rows of a part, whole windows."""
        forward = {name: array[:rows] for name, array in part.forward.arrays().items()}
        lists = InvertedLists.concatenate([(part.inverted, 0, rows // WINDOW)])
        return Part(self.packing.engine(forward, self.n_latents, self.k), lists)


def _check_names(arrays: Iterable[str], packing: Packing, n: int) -> None:
    """Refuses arrays that no index of n documents has."""
    levels = {"forward_levels"} if isinstance(packing, Packed) else set()
    forward = {f"forward_{name}" for name in packing.array_names}
    inverted = {f"inverted_{name}" for name in _INVERTED}
    clusters = {f"clusters_{name}" for name in _CLUSTERS}
    needed = forward | inverted if n else set()
    missing, foreign = needed.difference(arrays), set(arrays) - needed - levels - (clusters if n else set())
    if missing or foreign:
        what = f"lacks the array {min(missing)}" if missing else f"has an array {min(foreign)!r:.100}"
        msg = f"an index of {n} documents {what}"
        raise InputError(msg)


def _held(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(array) for name, array in arrays.items()}


def _remade(
    n_latents: int,
    k: int,
    packing: Packing,
    postings: int,
    parts: Sequence[tuple[Arrays, Arrays, int]],
    clusters: Arrays | None,
) -> EmbeddedBackend:
    """The back end of arrays that one was taken apart into."""
    made = [
        Part(packing.engine(forward, n_latents, k), InvertedLists(inverted, n, n_latents))
        for forward, inverted, n in parts
    ]
    of_clusters = None if clusters is None else Clusters(clusters)
    return EmbeddedBackend(n_latents, k, packing, made, postings=postings, clusters=of_clusters)


def _runs(n: int) -> list[slice]:
    """Rows 0 .. n-1, RUN_ROWS at a time."""
    return [slice(first, min(first + RUN_ROWS, n)) for first in range(0, n, RUN_ROWS)]


def _stacked(forwards: Sequence[Arrays]) -> Arrays:
    """Forward arrays one below the other."""
    if len(forwards) == 1:
        return forwards[0]
    return {name: np.concatenate([arrays[name] for arrays in forwards]) for name in forwards[0]}


def _concatenated(lists: Sequence[InvertedLists]) -> InvertedLists:
    """Posting lists one behind the other; all but the last are of whole windows."""
    if len(lists) == 1:
        return lists[0]
    return InvertedLists.concatenate([(each, 0, -(-each.n_documents // WINDOW)) for each in lists])


def strongest(codes: SparseCodes, nonzeros: int) -> SparseCodes:
    """Each code's `nonzeros` pairs of largest magnitude; of equal ones, those of the lower latents."""
    if nonzeros >= codes.k:
        return codes
    order = np.argsort(-np.abs(codes.values), axis=1, kind="stable")[:, :nonzeros]
    order.sort(axis=1)
    latents = np.take_along_axis(codes.latents, order, axis=1)
    return SparseCodes(latents, np.take_along_axis(codes.values, order, axis=1), codes.n_latents)
