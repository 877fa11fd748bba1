"""Jobs on Ray: a task a piece; Ray schedules them, moves data, and runs those of killed workers again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from compressae_index.arrays import IdArray
from compressae_index.batches import VALUE_TYPES, ValueType
from compressae_index.checks import as_place, check_choice, check_int
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_is_model
from compressae_index.connectors.ray.library import absolute, raised, started
from compressae_index.connectors.ray.output import Finished, Output, output_at
from compressae_index.connectors.ray.pieces import FileRows, Job, Piece, Source, Work
from compressae_index.connectors.ray.work import Codes, MilvusFiles, Shards
from compressae_index.embedded.merging import PIECES
from compressae_index.embedded.sizes import WINDOW
from compressae_index.errors import DimensionError, InputError
from compressae_index.index import CompressedIndex
from compressae_index.progress import say, track
from compressae_index.remote import Place
from compressae_index.sources import BAD_ROWS, BadRows, open_vectors, read_ids
from compressae_index.sources.paths import PathLike, names_files
from compressae_index.sources.sample import spread_sample
from compressae_index.training.config import latents_for

if TYPE_CHECKING:
    from compressae_index.connectors.milvus.manifest import Dense

T = TypeVar("T")

# Rows a piece, in whole windows of posting lists, so that merged shards have the lists of one index.
PIECE_ROWS = 8 * WINDOW
# Rows to train on, and to learn from how to store codes.
SAMPLE_ROWS = 1 << 18
# Runs of a piece whose worker was killed, for lack of memory or otherwise, before the job gives up.
RETRIES = 10


class Published(NamedTuple):
    """What a job wrote."""

    path: Place
    pieces: list[Place]
    """Shards, files, or folders of files, in the order of their rows."""
    rows: int
    skipped: int
    """Bad rows that were left out."""
    kept: int
    """Pieces that an earlier run had finished."""


@dataclass(frozen=True)
class Input:
    """Rows to work on, and how they are shared out.

    Attributes:
        source: paths of files, as `open_vectors` takes them, that every worker can open.
        dataset: the data set of an HDF5 file, or the column of a Parquet file.
        id_column: the column of Parquet files with the ids; by default an id is the number of its row.
        on_bad_rows: "error", or "skip" to leave out and count rows that are zero, missing or not finite. With
            metric "l2" those of zeros stay.
        piece_rows: rows a piece, which is what a killed worker costs.
    """

    source: PathLike | Sequence[PathLike]
    dataset: str = "train"
    id_column: str | None = None
    on_bad_rows: BadRows = "error"
    piece_rows: int = PIECE_ROWS

    def __post_init__(self) -> None:
        if not names_files(self.source):
            msg = f"workers open vectors by paths of files, got {type(self.source).__name__}"
            raise InputError(msg)
        check_choice(self.on_bad_rows, "on_bad_rows", BAD_ROWS)
        check_int(self.piece_rows, "piece_rows", 1)

    @property
    def paths(self) -> Any:
        """The source with absolute paths: workers have other working directories."""
        source: Any = self.source
        return [absolute(each) for each in source] if isinstance(source, (list, tuple)) else absolute(source)

    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        n, dim = open_vectors(self.paths, dataset=self.dataset).shape
        return n, dim

    def pieces(self, n: int) -> Iterator[Piece]:
        """Runs of n rows, with their ids.

        Raises:
            InputError: ids that repeat or are missing.
        """
        ids: IdArray | None = None
        if self.id_column is not None:
            ids = read_ids(self.paths, self.id_column)
            if len(ids) != n:
                msg = f"column {self.id_column!r} holds {len(ids)} ids for {n} vectors"
                raise DimensionError(msg)
        for number, first in enumerate(range(0, n, self.piece_rows)):
            end = min(first + self.piece_rows, n)
            yield Piece(number, first, end, None if ids is None else ids[first:end])


def build_shards(
    rows: Input,
    output: PathLike,
    *,
    like: CompressedIndex | None = None,
    sample_rows: int = SAMPLE_ROWS,
    progress: bool = True,
    **build: Any,
) -> Published:
    """Builds an index in shards, each by a task of Ray with a processor of its own.

    All shards are `empty_like` one index, which is built of a sample of the rows, on all processors of a
    node. `CompressedIndex.load(output)` gives the index of all rows, and `ShardedIndex` one with an actor a
    shard. Run it again after it was stopped: pieces that are finished stay if their rows have not changed.
    The result is the same, bit for bit, whatever the workers.

    Args:
        rows: the vectors, by paths that every worker can open.
        output: a folder that every worker can write to, or its address in a store: new, or begun by this
            function. Only one driver at a time may work on an output in a store, which has no locks.
        like: an index whose model and form to take, in place of a sample.
        sample_rows: rows of the sample.
        progress: show a progress bar.
        build: how to build, as for `CompressedIndex.build`. By default n_latents is chosen for all rows.

    Raises:
        InputError: an argument is of another type or out of range, bad rows, ids that repeat.
        FormatError: something else is at the output, or another job is writing there.
        StorageError: the disk is full or refuses.
        BackendError: Ray lost a worker more than RETRIES times for one piece, or cannot be reached.
        MissingExtraError: ray is not installed.
    """

    def work() -> Work:
        return Shards(_prototype(rows, like, sample_rows, build, progress=progress))

    return run(rows, output, Shards.kind, work, progress=progress)


def export_milvus(
    rows: Input,
    output: PathLike,
    *,
    like: CompressedIndex | None = None,
    sample_rows: int = SAMPLE_ROWS,
    dense: Dense | None = None,
    original_field: Dense | None = None,
    primary: str = "id",
    longest: float | None = None,
    progress: bool = True,
    **build: Any,
) -> Published:
    """Writes codes as Parquet files of Milvus's bulk import, as `connectors.milvus.export_parquet` does.

    Args:
        rows: as for `build_shards`.
        output: as for `build_shards`.
        like: as for `build_shards`.
        sample_rows: as for `build_shards`.
        dense: as for `export_parquet`.
        original_field: `originals` of `export_parquet`; the build needs originals, too.
        primary: as for `export_parquet`.
        longest: as for `export_parquet`, where the metric is "l2".
        progress: show a progress bar.
        build: as for `build_shards`.

    Raises:
        As for `build_shards` and `export_parquet`.
    """
    from compressae_index.connectors.milvus.export import check_fields

    check_fields(primary, dense, original_field)
    metric = build.get("metric", "cosine") if like is None else like.metric
    if metric == "l2" and longest is None:
        msg = 'metric="l2" needs longest, as `MilvusIndex.create` has it'
        raise InputError(msg)
    keeps = build.get("originals") if like is None else like.documents.backend.originals
    if original_field is not None and keeps is None:
        msg = "original_field needs original vectors: give originals='float16', or a `like` that keeps them"
        raise InputError(msg)

    def work() -> Work:
        shards = Shards(_prototype(rows, like, sample_rows, build, progress=progress))
        return MilvusFiles(shards, dense, original_field, primary, longest)

    return run(rows, output, MilvusFiles.kind, work, progress=progress)


def encode(
    rows: Input,
    output: PathLike,
    model: CompresSAE,
    *,
    k: int | None = None,
    encoder: Encoder = "pursuit",
    values: ValueType = "float32",
    progress: bool = True,
) -> Published:
    """Writes ids and codes as Parquet files, in the columns of `BatchEncoder`.

    Args:
        rows: as for `build_shards`.
        output: as for `build_shards`.
        model: what encodes.
        k: nonzeros a code; the model's own by default.
        encoder: "pursuit", or "topk".
        values: type of values.
        progress: show a progress bar.

    Raises:
        As for `build_shards`.
    """
    check_is_model(model)
    model.nonzeros(k, check_choice(encoder, "encoder", ENCODERS))
    check_choice(values, "values", VALUE_TYPES)
    return run(rows, output, Codes.kind, lambda: Codes(model, k, encoder, values), progress=progress)


def run(rows: Input, output: PathLike, kind: str, work: Callable[[], Work], *, progress: bool) -> Published:
    """Does some work on all pieces of rows, and publishes what it wrote.

    The rows, their ids and the output are checked before `work` says what to do, which may take long.
    """
    target = output_at(as_place(output, "output").absolute())
    n, _ = rows.shape()
    source = FileRows(rows.paths, rows.dataset, rows.on_bad_rows)
    published = run_pieces(source, list(rows.pieces(n)), target, kind, work, progress=progress)
    if not published.pieces:
        msg = f"all {n} rows of the embeddings are zero or hold NaN or infinite values: none is left"
        raise InputError(msg)
    return published


def run_pieces(
    source: Source,
    pieces: Sequence[Piece],
    target: Output,
    kind: str,
    work: Callable[[], Work],
    *,
    progress: bool,
) -> Published:
    """Does some work on pieces of a source, and publishes what it wrote, unless that is nothing."""
    ray = started()
    with target.opened(kind):
        job = Job(source, work(), target)
        with track(pieces[-1].end, "working on Ray", enabled=progress) as advance:
            finished = _finished(ray, job, pieces, advance)
        written = [each for each in finished if each.name is not None]
        if written:
            job.publish(written)
    return Published(
        target.path,
        [target.path / PIECES / str(each.name) for each in written],
        sum(each.rows for each in written),
        sum(each.skipped for each in finished),
        sum(not each.is_new for each in written),
    )


def _finished(
    ray: Any, job: Job, pieces: Sequence[Piece], advance: Callable[[int], object]
) -> list[Finished]:
    """Finishes all pieces, some more at a time than there are processors, so that none waits."""
    shared = ray.put(job)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_finish)
    most = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
    waiting, running, done = list(reversed(pieces)), dict[Any, Piece](), dict[int, Finished]()
    try:
        while waiting or running:
            while waiting and len(running) < most:
                piece = waiting.pop()
                running[task.remote(shared, piece)] = piece
            ready, _ = ray.wait(list(running), num_returns=1)
            for each in ready:
                piece = running.pop(each)
                done[piece.number] = ray.get(each)
                advance(piece.end - piece.first)
    except BaseException as error:  # also where a user interrupts
        for each in running:
            ray.cancel(each, force=True)
        if isinstance(error, Exception):
            raise raised(error) from None
        raise
    return [done[piece.number] for piece in pieces]


def _finish(job: Job, piece: Piece) -> Finished:
    return job.finish(piece)


def _prototype(
    rows: Input,
    like: CompressedIndex | None,
    sample_rows: int,
    build: dict[str, Any],
    *,
    progress: bool,
) -> CompressedIndex:
    """The index without documents that all shards are like."""
    if like is not None:
        if build:
            msg = f"{min(build)} cannot be given with `like`, which decides it"
            raise InputError(msg)
        dim = rows.shape()[1]
        if dim != like.model.dim:
            msg = f"embeddings have dimension {dim}, expected {like.model.dim}"
            raise DimensionError(msg)
        return like.empty_like()
    check_int(sample_rows, "sample_rows", 1)
    if progress:
        say(f"building an index of a sample of at most {sample_rows:,} rows, which all shards are like")
    return on_a_node(_built, rows, sample_rows, build)


def on_a_node(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns that runs as one task, on the free processors of a node."""
    ray = started()
    task = ray.remote(num_cpus=_free(ray), max_retries=RETRIES)(work)
    try:
        result: T = ray.get(task.remote(*arguments))
    except Exception as error:
        raise raised(error) from None
    return result


def _free(ray: Any) -> int:
    """Processors that some node has free: actors, as of a `ShardedIndex`, may hold others for good."""
    nodes = [
        node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    free = ray.available_resources().get("CPU", 0) / max(len(nodes), 1)  # the freest has the mean at least
    return max(int(min(free, max(nodes, default=1))), 1)


def _built(rows: Input, sample_rows: int, build: dict[str, Any]) -> CompressedIndex:
    """An index of a sample, emptied; its dictionary is as large as all rows want it."""
    vectors = open_vectors(rows.paths, dataset=rows.dataset)
    n = vectors.shape[0]
    skip, model = rows.on_bad_rows == "skip", build.get("model")
    zeros = build.get("metric") == "l2" and not (isinstance(model, CompresSAE) and model.mean is not None)
    sample = spread_sample(vectors, sample_rows, np.random.default_rng(0), skip=skip, zeros=zeros)
    settings = dict(build)
    if n > len(sample) and not settings.keys() & {
        "model",
        "n_latents",
        "config",
        "bytes_per_vector",
        "target_recall",
    }:
        settings["n_latents"] = min(latents_for(n), len(sample) // 2)
    index = CompressedIndex.build(sample, progress=False, **settings)
    return index.empty_like()
