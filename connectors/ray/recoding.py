"""Shards coded anew by one model, each by a task of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressae_index import persistence
from compressae_index.arrays import FloatArray, IdArray
from compressae_index.building.recoding import (
    Recoding,
    StoredVectors,
    check_recodes,
    emptied_for,
    recoded,
)
from compressae_index.building.training import improved
from compressae_index.building.unfinished import Unfinished
from compressae_index.checks import as_place, check_int, check_threads
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.ray.jobs import SAMPLE_ROWS, Published, on_a_node, run_pieces
from compressae_index.connectors.ray.output import output_at
from compressae_index.connectors.ray.pieces import Piece
from compressae_index.connectors.ray.sharded import paths_of
from compressae_index.connectors.ray.work import Shards
from compressae_index.embedded.merging import SHARDS
from compressae_index.errors import InputError
from compressae_index.ids import Ids, Rows
from compressae_index.index import CompressedIndex
from compressae_index.progress import say
from compressae_index.remote import Place
from compressae_index.sources import Vectors
from compressae_index.sources.paths import PathLike


def recode_shards(
    shards: PathLike | Sequence[PathLike],
    output: PathLike,
    model: CompresSAE | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
    progress: bool = True,
) -> Published:
    """Codes shards anew by one model, each by a task of Ray with a processor of its own.

    Vectors are those that `CompressedIndex.recode` reads: the original ones where shards keep them, else
    what codes and residual codes say. New shards have the form of the old ones, but levels of values and the
    threshold of posting lists are learned anew, of a sample over all. Removed vectors are left out, and so
    are shards of which all were removed.

    One manifest publishes all new shards at once. The output may be the folder of the shards themselves:
    whoever loads it gets the old ones or the new ones, and what is loaded stays as it is. Run it again after
    it was stopped: pieces that are finished stay.

    Args:
        shards: a folder that `build_shards` wrote, or paths of saved indexes that were made alike. Every
            worker must be able to read them.
        output: as for `build_shards`; it may be `shards`.
        model: a trained model; by default one is trained on vectors of all shards, from their present one,
            whose state is kept in the output until all is published, but not in a store.
        sample_rows: rows of the sample.
        progress: show a progress bar.

    Raises:
        InputError: no vectors, shards that were made otherwise, a model that does not fit them.
        FormatError: a shard is missing or damaged; something else is at the output, or another job is
            writing there.
        StorageError: the disk is full or refuses.
        BackendError: as for `build_shards`.
        MissingExtraError: ray is not installed.
    """
    target = output_at(as_place(output, "output").absolute())
    paths = paths_of(shards)
    check_int(sample_rows, "sample_rows", 1)
    pieces = _pieces(paths)

    def work() -> Recoded:
        if progress:
            what = "learning a dictionary" if model is None else "learning levels of values"
            say(f"{what} of the vectors of {len(paths)} shards")
        return on_a_node(like_all, paths, model, sample_rows, kept)

    kept = target.path if isinstance(target.path, Path) else None
    published = run_pieces(OfShards(paths), pieces, target, SHARDS, work, progress=progress)
    if kept is not None:
        Unfinished(kept).remove_training()
    return published


def _pieces(paths: Sequence[Place]) -> list[Piece]:
    """A piece a shard."""
    pieces, first = list[Piece](), 0
    for number, path in enumerate(paths):
        meta = persistence.read_manifest(path, "index")["meta"]
        with persistence.reading(str(path)):
            end = first + check_int(meta["n"], "n", 0)
        pieces.append(Piece(number, first, end, None))
        first = end
    return pieces


class OfShard:
    """The vectors of a shard as it knows them, to slice like an array."""

    def __init__(self, index: CompressedIndex) -> None:
        self.index = index
        """The shard."""
        self._vectors = index.vectors
        self.shape = self._vectors.shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Vectors (m, d)."""
        return self._vectors[rows]


@dataclass(frozen=True)
class OfShards:
    """Pieces that are shards.

    Attributes:
        paths: of saved indexes.
    """

    paths: list[Place]

    def opened(self, piece: Piece, *, zeros: bool) -> tuple[Vectors, IdArray, int]:  # noqa: ARG002
        """The vectors and ids of a shard."""
        index = CompressedIndex.load(self.paths[piece.number], mmap=True)
        return OfShard(index), index.ids, 0


@dataclass(frozen=True)
class Recoded(Shards):
    """Shards, coded anew.

    Attributes:
        originals: the form of their original vectors; None for none.
    """

    originals: dict[str, Any] | None

    def settings(self) -> dict[str, Any]:
        """Model, metric, encoder, and how documents are stored."""
        return super().settings() | {"originals": self.originals}

    def write(self, vectors: Vectors, ids: IdArray, target: Path) -> None:  # noqa: ARG002
        """Saves a shard's vectors in new codes; they are an `OfShard`."""
        assert isinstance(vectors, OfShard)
        empty, old = self.empty, vectors.index
        recoding = Recoding.of(old, empty.model, 1, None, progress=False)
        made = recoded(old.documents, empty.documents, recoding)
        new = CompressedIndex(empty.model, encoder=old.encoder, metric=old.metric, documents=made)
        new.save(target)


def like_all(paths: list[Place], model: CompresSAE | None, sample_rows: int, kept: Path | None) -> Recoded:
    """What new shards are like, by a sample of the vectors of all.

    Args:
        paths: of the shards.
        model: the new model; None to train one.
        sample_rows: rows of the sample.
        kept: a folder for the state of a training, which goes on from there; None to keep none.

    Raises:
        InputError, FormatError: as for `recode_shards`.
    """
    index = CompressedIndex.merge(paths)  # which checks that they are alike
    documents, old = index.documents, index.model
    if not len(documents):
        msg = "there are no vectors to code anew"
        raise InputError(msg)
    if model is None:
        train = improved if kept is None else Unfinished(kept).trained
        model = train(old, index.vectors, index.k, num_threads=check_threads(None), progress=False).model
    check_recodes(model, index)
    rows = documents.alive_rows()
    rows = rows[:: -(-len(rows) // sample_rows)]
    taken = Rows(Ids(len(rows), {}))
    vectors = StoredVectors(taken, lambda at: documents.vectors_of(rows[at], old), old)
    recoding = replace(Recoding.of(index, model, check_threads(None), None, progress=False), vectors=vectors)
    sample = emptied_for(documents, model).added(
        recoding.chunks(), taken.all_ids, scale=recoding.scale, model=model, num_threads=recoding.num_threads
    )
    empty = CompressedIndex(model, encoder=index.encoder, metric=index.metric, documents=sample.emptied())
    originals = documents.backend.originals
    return Recoded(empty, None if originals is None else originals.form)
