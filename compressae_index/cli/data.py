"""Commands that make and describe models, codes and indexes."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compressae_index.arrays import IdArray
from compressae_index.building.recoding import RecodableIndex
from compressae_index.checks import as_path
from compressae_index.cli.indexes import load_index
from compressae_index.cli.options import (
    PATH,
    PLACE,
    Storage,
    Training,
    bad_rows_option,
    check_file,
    check_folder,
    dataset_option,
    encoder_option,
    gathered,
    holds_something,
    id_column_option,
    json_option,
    metric_option,
    n_latents_option,
    originals_option,
    print_result,
    say_replaced,
    storage_options,
    threads_option,
    training_options,
)
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.codecs.packed import VALUE_BITS
from compressae_index.embedded.originals import PRECISIONS
from compressae_index.errors import FormatError, InputError, StorageError
from compressae_index.index import CompressedIndex
from compressae_index.measuring.evaluation import aligned, settings_text
from compressae_index.persistence import check_target, kind_of
from compressae_index.progress import track
from compressae_index.remote import Place
from compressae_index.search.frontier import CALIBRATED_ROWS, Point
from compressae_index.search.index import Index
from compressae_index.sources import BadRows, Vectors, open_vectors, read_ids
from compressae_index.storage import accessing, written_aside
from compressae_index.training import TrainConfig
from compressae_index.training import train as train_model
from compressae_index.training.config import Preset


@click.command()
@click.argument("embeddings", type=PLACE)
@click.option("--output", "-o", type=PLACE, required=True, help="Directory to write the model to.")
@click.option("--checkpoint", type=PATH, help="Directory to save the training state to, and to resume from.")
@click.option(
    "--center/--no-center",
    default=True,
    help="Subtract the mean of the vectors before coding; for inner products it is never subtracted.",
)
@gathered(training_options, Training, "training")
@metric_option
@dataset_option
@bad_rows_option
@json_option
def train(
    embeddings: Place,
    output: Place,
    checkpoint: Path | None,
    center: bool,
    training: Training,
    metric: Metric,
    dataset: str,
    on_bad_rows: BadRows,
    as_json: bool,
) -> None:
    """Train a model on EMBEDDINGS.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. `encode` and
    `build` take the model by --model. --metric is that of the index: for l2 the model keeps the mean of the
    vectors, from which norms are kept. With --steps 0 only the dictionary is learned, which is enough for
    pursuit; the encoder needs torch: pip install 'compressae-index[train]'.

    \b
    Example:
      compressae-index train embeddings.npy -o items.model --k 32
    """  # noqa: D301
    check_folder(output, "models")
    check_target(output, "model")
    replaced = holds_something(output)
    if checkpoint is not None and isinstance(output, Path) and checkpoint.resolve() == output.resolve():
        msg = f"{output} cannot hold both the model and the checkpoint: use two directories"
        raise InputError(msg)
    vectors = open_vectors(embeddings, dataset=dataset, on_bad_rows=on_bad_rows, zeros=metric == "l2")
    config = replace(train_config(training.preset, training.steps, training.seed), center=center)
    config = config.with_codes(training.k, training.n_latents)
    result = train_model(vectors, config, metric=metric, checkpoint=checkpoint, progress=True)
    save_or_keep(result.model, output)
    content = {
        "model": str(output),
        **result.model.manifest(),
        "held_out_loss": result.checks[-1].loss if result.checks else None,
        "seconds": result.seconds,
    }
    if as_json:
        content["rounds"] = [entry._asdict() for entry in result.rounds]
    elif result.rounds:
        content["error_of_pursuit"] = f"{result.rounds[0].error:.4f} to {result.rounds[-1].error:.4f}"
    print_result(content, as_json)
    if replaced:
        say_replaced(output)


def train_config(preset: Preset, steps: int | None, seed: int) -> TrainConfig:
    """The training settings of the command line."""
    config = TrainConfig.preset(preset, seed=seed)
    return config if steps is None else replace(config, steps=steps)


def build_config(preset: Preset, steps: int | None, seed: int, encoder: Encoder) -> TrainConfig | None:
    """The same for codes that are made at once: pursuit has no use for a trained encoder.

    None where nothing is said, so that a build chooses as without a `config`.
    """
    if (preset, steps, seed) == ("default", None, 0):
        return None
    return train_config(preset, 0 if steps is None and encoder == "pursuit" else steps, seed)


@click.command()
@click.argument("embeddings", type=PLACE)
@click.option("--model", type=PLACE, required=True, help="Directory that `train` wrote.")
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="A .npz file, for one scipy CSR matrix, or a directory, for any number of rows.",
)
@click.option("--k", type=int, help="Nonzeros a code.  [default: the model's]")
@encoder_option
@dataset_option
@threads_option
@json_option
def encode(
    embeddings: Place,
    model: Place,
    output: Path,
    k: int | None,
    encoder: Encoder,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Encode EMBEDDINGS into folded codes.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. A directory is
    written shard by shard, in memory that does not grow with the number of rows. Run the command again after
    a stop, and it resumes. `build --codes` makes an index from the directory.

    \b
    Example:
      compressae-index encode embeddings.npy --model items.model -o codes
      compressae-index encode embeddings.npy --model items.model -o codes.npz
    """  # noqa: D301
    as_matrix = output.suffix.lower() == ".npz"
    if as_matrix:
        check_file(output, ".npz", "codes")
    else:
        check_folder(output, "codes")
    trained, vectors = CompresSAE.load(model), open_vectors(embeddings, dataset=dataset)
    started = time.perf_counter()
    if as_matrix:
        _encode_to_matrix(trained, vectors, output, k, encoder, threads)
    else:
        encode_to_directory(
            trained, vectors, output, k=k, encoder=encoder, num_threads=threads, progress=True
        )
    seconds = time.perf_counter() - started
    print_result(
        {
            "codes": str(output),
            "rows": vectors.shape[0],
            "seconds": seconds,
            "fingerprint": trained.fingerprint,
        },
        as_json,
    )


def _encode_to_matrix(
    model: CompresSAE, vectors: Vectors, output: Path, k: int | None, encoder: Encoder, threads: int | None
) -> None:
    import scipy.sparse as sp

    parts = []
    with track(vectors.shape[0], "encoding", enabled=True) as advance:
        for chunk in encoded_chunks(model, vectors, model.nonzeros(k, encoder), encoder, threads):
            parts.append(chunk.codes.to_csr())
            advance(len(chunk.codes))
    with written_aside(output) as aside, aside.open("wb") as file:  # given a path, scipy appends .npz to .NPZ
        sp.save_npz(file, sp.vstack(parts, format="csr"))


@click.command()
@click.argument("embeddings", type=PLACE, required=False)
@click.option("--output", "-o", type=PLACE, required=True, help="Directory to write the index to.")
@click.option("--model", type=PLACE, help="Directory that `train` wrote; without it, a model is trained.")
@click.option("--codes", type=PLACE, help="Directory that `encode` wrote, in place of EMBEDDINGS.")
@click.option("--ids", type=PLACE, help="One id a row: .npy, or a text file with one id a line.")
@id_column_option
@gathered(training_options, Training, "training")
@gathered(storage_options, Storage, "storage")
@click.option(
    "--originals",
    help="Original vectors for the last stage of a search, which stay on disk: float16 or float32 for copies "
    "in the index, or the .npy file of EMBEDDINGS, which the index then refers to.  [default: none]",
)
@encoder_option
@metric_option
@dataset_option
@bad_rows_option
@threads_option
@json_option
@click.pass_context
def build(
    context: click.Context,
    embeddings: Place | None,
    output: Place,
    model: Place | None,
    codes: Place | None,
    ids: Place | None,
    id_column: str | None,
    training: Training,
    storage: Storage,
    originals: str | None,
    encoder: Encoder,
    metric: Metric,
    dataset: str,
    on_bad_rows: BadRows,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build an index of EMBEDDINGS, or of their codes.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Without --model,
    a model is trained on EMBEDDINGS first. With --codes, the index takes the codes that `encode` wrote. Of
    at least 2,048 vectors, `search` settings are measured, which `info` lists.

    \b
    Example:
      compressae-index build embeddings.npy -o items.index --ids ids.txt
      compressae-index build items.parquet -o items.index --id-column id
      compressae-index build embeddings.npy -o items.index --bytes-per-vector 128
      compressae-index build embeddings.npy -o items.index --originals embeddings.npy
      compressae-index build --codes codes --model items.model -o items.index
    """  # noqa: D301
    if (embeddings is None) == (codes is None):
        raise click.UsageError("Give either EMBEDDINGS or --codes.")
    check_folder(output, "indexes")
    check_target(output, "index")
    replaced = holds_something(output)
    row_ids = given_ids(embeddings, ids, id_column)
    trained = None if model is None else CompresSAE.load(model)
    started = time.perf_counter()
    if codes is not None:
        refuse(context, "--codes", _ENCODING)
        index = _index_of_codes(codes, trained, row_ids, storage, threads)
    else:
        if trained is not None:
            refuse(context, "--model", TRAINING)
        zeros = metric == "l2" and (trained is None or trained.mean is None)
        vectors = open_vectors(embeddings, dataset=dataset, on_bad_rows=on_bad_rows, zeros=zeros)
        index = CompressedIndex.build(
            vectors,
            row_ids,
            k=training.k,
            n_latents=training.n_latents,
            model=trained,
            encoder=encoder,
            metric=metric,
            config=None
            if trained is not None
            else build_config(training.preset, training.steps, training.seed, encoder),
            originals=originals if originals is None or originals in PRECISIONS else as_path(originals),
            num_threads=threads,
            **storage._asdict(),
        )
    save_or_keep(index, output)
    content = {"index": str(output), "seconds": time.perf_counter() - started, **index.stats()._asdict()}
    if on_bad_rows == "skip":
        content |= _skipped(index.skipped, as_json)
    print_result(content | _expected(index) | _default_search(index), as_json)
    if replaced:
        say_replaced(output)


@click.command()
@click.argument("shards", type=PLACE, nargs=-1, required=True)
@click.option("--output", "-o", type=PLACE, required=True, help="Directory to write the index to.")
@json_option
def merge(shards: tuple[Place, ...], output: Place, as_json: bool) -> None:
    """Make one index of SHARDS.

    They are indexes that were made alike, as `ray build` makes them, or a folder of such shards. If they
    keep residual codes or original vectors, settings of a search are measured, as `build` does.

    \b
    Example:
      compressae-index merge items.shards -o items.index
    """  # noqa: D301
    check_folder(output, "indexes")
    check_target(output, "index")
    replaced = holds_something(output)
    index = CompressedIndex.merge(shards)
    if index.documents.refines and len(index) >= CALIBRATED_ROWS:
        index.calibrate(progress=True)
    save_or_keep(index, output)
    print_result({"index": str(output), **index.stats()._asdict()} | _default_search(index), as_json)
    if replaced:
        say_replaced(output)


def _expected(index: CompressedIndex) -> dict[str, Any]:
    """The recall@10 that a budget's plan expects, if there was a budget."""
    if index.plan is None:
        return {}
    return {"expected_recall": index.plan.recall, "expected_dense_recall": index.plan.dense_recall}


def _default_search(index: Index) -> dict[str, Any]:
    """The settings of a search without any, and the recall@10 they reach, if they were measured."""
    if index.frontier is None:
        return {}
    point = index.frontier.default._asdict()
    return {"default_search": {name: point[name] for name in ("candidates", "query_nnz", "refine", "recall")}}


def _index_of_codes(
    codes: Place, model: CompresSAE | None, ids: IdArray | None, storage: Storage, threads: int | None
) -> CompressedIndex:
    if model is None:
        raise click.UsageError("--codes needs the --model that encoded.")
    bits = VALUE_BITS if storage.value_bits is None else storage.value_bits
    metric: Metric = "cosine" if model.center is None else "l2"
    return CompressedIndex.from_codes(
        *(codes, model, ids),
        metric=metric,
        value_bits=bits,
        postings=storage.postings,
        num_threads=threads,
    )


def save_or_keep(made: RecodableIndex | CompresSAE, output: Place) -> None:
    """Saves an index or a model; if that fails, to a temporary folder, as it took long to make.

    Raises:
        FormatError, StorageError: saving failed; the message says what was kept, and where.
    """
    try:
        if isinstance(made, RecodableIndex):
            made.save(output, progress=True)
        else:
            made.save(output)
    except (FormatError, OSError) as error:
        kept = _kept(made, output.name)
        if kept is None:
            raise
        number = error.errno if isinstance(error, OSError) else None
        raise StorageError(number, f"{error}; {kept}", str(output)) from error


def _kept(made: RecodableIndex | CompresSAE, name: str) -> str | None:
    """Saves to a new temporary folder; returns what was kept and where, or None if nothing fit."""
    # The index may not fit where its model does, and the model took longest to make.
    parts: list[RecodableIndex | CompresSAE] = (
        [made, made.model] if isinstance(made, RecodableIndex) else [made]
    )
    with suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix="compressae-index-"))
        for part in parts:
            with suppress(FormatError, OSError):
                part.save(folder / name)
                return f"the {kind_of(folder / name)} is kept in {folder / name}"
        folder.rmdir()
    return None


def _skipped(ids: IdArray, as_json: bool) -> dict[str, Any]:
    """How many rows were skipped, and their ids; as text, the first ten."""
    shown = ids.tolist() if as_json else ", ".join(map(repr, ids[:10].tolist())) + ", ..." * (len(ids) > 10)
    return {"skipped": len(ids), "skipped_ids": shown} if len(ids) else {"skipped": 0}


TRAINING = ("preset", "steps", "seed")
_BUDGET = ("bytes_per_vector", "target_recall")
# Options that codes have decided.
_ENCODING = (
    *(*TRAINING, *_BUDGET, "k", "n_latents", "residual_bits", "originals"),
    *("encoder", "metric", "dataset", "on_bad_rows"),
)


def refuse(context: click.Context, given: str, names: tuple[str, ...]) -> None:
    """Refuses options that were given but have no effect next to the option `given`."""
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            msg = f"--{name.replace('_', '-')} cannot be used with {given}."
            raise click.UsageError(msg)


def given_ids(embeddings: Place | None, ids: Place | None, id_column: str | None) -> IdArray | None:
    """The ids of EMBEDDINGS by `--ids` and `--id-column`; None for row numbers."""
    if id_column is None:
        return None if ids is None else read_ids(ids)
    source = embeddings if ids is None else ids
    if source is None:
        raise click.UsageError("--id-column needs EMBEDDINGS or --ids as Parquet files.")
    return read_ids(source, id_column)


@click.command()
@click.argument("embeddings", type=PLACE)
@click.option("--k", type=int, help="Nonzeros a code.  [default: 32, less for few rows or dimensions]")
@n_latents_option
@metric_option
@gathered(storage_options, Storage, "storage")
@bad_rows_option
@dataset_option
@threads_option
@json_option
def estimate(
    embeddings: Place,
    k: int | None,
    n_latents: int | None,
    metric: Metric,
    storage: Storage,
    on_bad_rows: BadRows,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Estimate bytes, time and recall of an index of EMBEDDINGS.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Measures on a
    sample, in less than a minute and the time to read EMBEDDINGS once. Recall is recall@10 of two_stage with
    3,000 candidates by 256 latents of a query, and of dense.

    \b
    Example:
      compressae-index estimate embeddings.npy --bytes-per-vector 128
    """  # noqa: D301
    from compressae_index.building.estimation import estimate as estimate_index

    result = estimate_index(
        open_vectors(embeddings, dataset=dataset, on_bad_rows=on_bad_rows, zeros=metric == "l2"),
        k=k,
        n_latents=n_latents,
        metric=metric,
        num_threads=threads,
        progress=True,
        **storage._asdict(),
    )
    print_result({**result._asdict(), "plan": result.plan._asdict()}, as_json)


@click.command()
@click.argument("path", type=PLACE)
@originals_option
@json_option
def info(path: Place, originals: str | None, as_json: bool) -> None:
    """Describe the index, model or codes at PATH.

    PATH may also be an index of the Faiss connector, or a file of its posting lists. Bytes per vector are
    resident, those of original vectors on disk apart. Settings of two_stage that `build` measured are listed
    with the recall@10 that they reach, of which search --target-recall takes one.

    \b
    Example:
      compressae-index info items.index
    """  # noqa: D301
    facts = _described(path, originals)
    points = [] if as_json else facts.pop("frontier", [])
    print_result(facts, as_json)
    if points:
        rows = ([settings_text(Point(**each)), f"{each['recall']:.3f}"] for each in points)
        click.echo("\n" + aligned(["two_stage with", "recall@10"], rows))


def _described(path: Place, originals: str | None) -> dict[str, Any]:
    """Facts about what is at a path; the first key is its kind."""
    with accessing(path, "read"):
        is_faiss = path.is_file() and _is_faiss(path)
    if is_faiss and isinstance(path, Path):
        from compressae_index.connectors.faiss import lists

        return {"faiss_lists": str(path), **lists.stats(lists.read_lists(path, mmap=True))._asdict()}
    kind = kind_of(path)
    if kind == "model":
        return {"model": str(path), **CompresSAE.load(path).manifest()}
    if kind == "codes":
        return {"codes": str(path), **CodeStore.load(path).manifest()}
    index = load_index(path, originals)
    name = "faiss_index" if kind == "faiss index" else "index"
    facts = {name: str(path), "fingerprint": index.model.fingerprint, **index.stats()._asdict()}
    facts |= _default_search(index)
    return facts if index.frontier is None else facts | {"frontier": index.frontier.manifest()["points"]}


def _is_faiss(file: Place) -> bool:
    """Whether a file begins like those of `faiss.write_index`; Faiss itself checks the rest."""
    with file.open("rb") as handle:
        return handle.read(2) in (b"Ix", b"Iw")
