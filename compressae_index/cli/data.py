"""Commands that make models, codes and indexes, and describe them."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from click.core import ParameterSource

from compressae_index.cli.options import (
    PATH,
    dataset_option,
    encoder_option,
    json_option,
    metric_option,
    report,
    storage_options,
    threads_option,
    training_options,
    written_aside,
)
from compressae_index.encoding import CodeStore, encode_to_directory, encoded_chunks
from compressae_index.errors import FormatError
from compressae_index.index import CompressedIndex
from compressae_index.metric import Metric
from compressae_index.model import CompresSAE, Encoder
from compressae_index.packing import VALUE_BITS
from compressae_index.persistence import check_target
from compressae_index.progress import track
from compressae_index.sources import Vectors, open_vectors

if TYPE_CHECKING:
    from compressae_index.training import TrainConfig
    from compressae_index.training.config import Preset


@click.command()
@click.argument("embeddings", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="Directory to write the model to.")
@click.option("--checkpoint", type=PATH, help="Directory to save the state to, and to go on from.")
@click.option(
    "--center/--no-center",
    default=True,
    help="Leave the mean of the vectors out of codes; indexes for inner products need it in.",
)
@training_options
@dataset_option
@json_option
def train(
    embeddings: Path,
    output: Path,
    checkpoint: Path | None,
    center: bool,
    k: int | None,
    n_latents: int | None,
    preset: Preset,
    steps: int | None,
    seed: int,
    dataset: str,
    as_json: bool,
) -> None:
    """Train a model on EMBEDDINGS.

    \b
    Example:
      compressae-index train embeddings.npy -o items.model --k 32
    """  # noqa: D301
    from compressae_index.training import train as train_model

    check_target(output)
    vectors = open_vectors(embeddings, dataset=dataset)
    config = replace(train_config(preset, steps, seed), center=center)
    config = config.with_codes(k, n_latents)
    result = train_model(vectors, config, checkpoint=checkpoint, progress=True)
    result.model.save(output)
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
    report(content, as_json)


def train_config(preset: Preset, steps: int | None, seed: int) -> TrainConfig:
    """The settings that `training_options` describe."""
    from compressae_index.training import TrainConfig

    config = TrainConfig.preset(preset, seed=seed)
    return config if steps is None else replace(config, steps=steps)


@click.command()
@click.argument("embeddings", type=PATH)
@click.option("--model", type=PATH, required=True, help="Directory that `train` wrote.")
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="A .npz file, for a scipy CSR matrix, or else a directory, for any number of rows.",
)
@click.option("--k", type=int, help="Nonzeros a code.  [default: the model's]")
@encoder_option
@dataset_option
@threads_option
@json_option
def encode(
    embeddings: Path,
    model: Path,
    output: Path,
    k: int | None,
    encoder: Encoder,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Encode EMBEDDINGS into folded codes.

    A directory is written shard by shard, and memory does not grow with the number of rows. The same command
    goes on where it was stopped. `build --codes` makes an index of it.

    \b
    Example:
      compressae-index encode embeddings.npy --model items.model -o codes
      compressae-index encode embeddings.npy --model items.model -o codes.npz
    """  # noqa: D301
    trained, vectors = CompresSAE.load(model), open_vectors(embeddings, dataset=dataset)
    started = time.perf_counter()
    if output.suffix == ".npz":
        _encode_to_matrix(trained, vectors, output, k, encoder, threads)
    else:
        encode_to_directory(
            trained, vectors, output, k=k, encoder=encoder, num_threads=threads, progress=True
        )
    seconds = time.perf_counter() - started
    report(
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
        for codes in encoded_chunks(model, vectors, model.nonzeros(k, encoder), encoder, threads):
            parts.append(codes.to_csr())
            advance(len(codes))
    with written_aside(output) as aside:
        sp.save_npz(aside, sp.vstack(parts, format="csr"))


@click.command()
@click.argument("embeddings", type=PATH, required=False)
@click.option("--output", "-o", type=PATH, required=True, help="Directory to write the index to.")
@click.option("--model", type=PATH, help="Directory that `train` wrote; without it, a model is trained.")
@click.option("--codes", type=PATH, help="Directory that `encode` wrote, in place of EMBEDDINGS.")
@click.option("--ids", type=PATH, help="One id a row: .npy, or a text file with one id a line.")
@training_options
@storage_options
@encoder_option
@metric_option
@dataset_option
@threads_option
@json_option
@click.pass_context
def build(
    context: click.Context,
    embeddings: Path | None,
    output: Path,
    model: Path | None,
    codes: Path | None,
    ids: Path | None,
    k: int | None,
    n_latents: int | None,
    preset: Preset,
    steps: int | None,
    seed: int,
    value_bits: int | None,
    postings: int | None,
    bytes_per_vector: float | None,
    target_recall: float | None,
    encoder: Encoder,
    metric: Metric,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Build an index of EMBEDDINGS, or of codes that `encode` wrote.

    \b
    Example:
      compressae-index build embeddings.npy -o items.index --ids ids.txt
      compressae-index build embeddings.npy -o items.index --bytes-per-vector 128
      compressae-index build --codes codes --model items.model -o items.index
    """  # noqa: D301
    if (embeddings is None) == (codes is None):
        raise click.UsageError("Give either EMBEDDINGS or --codes.")
    check_target(output)
    row_ids = None if ids is None else _read_ids(ids)
    trained = None if model is None else CompresSAE.load(model)
    started = time.perf_counter()
    if codes is not None:
        if trained is None:
            raise click.UsageError("--codes needs the --model that encoded.")
        refuse(context, "--codes", (*TRAINING, *_BUDGET, "k", "n_latents", "encoder", "metric", "dataset"))
        bits = VALUE_BITS if value_bits is None else value_bits
        index = CompressedIndex.from_codes(
            codes, trained, row_ids, value_bits=bits, postings=postings, num_threads=threads
        )
    else:
        if trained is not None:
            refuse(context, "--model", TRAINING)
        index = CompressedIndex.build(
            open_vectors(embeddings, dataset=dataset),
            row_ids,
            k=k,
            n_latents=n_latents,
            model=trained,
            encoder=encoder,
            metric=metric,
            config=None if trained is not None else train_config(preset, steps, seed),
            value_bits=value_bits,
            postings=postings,
            bytes_per_vector=bytes_per_vector,
            target_recall=target_recall,
            num_threads=threads,
        )
    index.save(output)
    content = {"index": str(output), "seconds": time.perf_counter() - started, **index.stats()._asdict()}
    if index.plan is not None:
        content |= {"expected_recall": index.plan.recall, "expected_dense_recall": index.plan.dense_recall}
    report(content, as_json)


TRAINING = ("preset", "steps", "seed")
_BUDGET = ("bytes_per_vector", "target_recall")


def refuse(context: click.Context, given: str, names: tuple[str, ...]) -> None:
    """Refuses options that another one has decided, where they were given."""
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            msg = f"--{name.replace('_', '-')} has no use with {given}."
            raise click.UsageError(msg)


def _read_ids(path: Path) -> object:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with path.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]
    except (OSError, ValueError, EOFError) as error:
        msg = f"{path} cannot be read: {error}"
        raise FormatError(msg) from error
    # Only what stays the same: "007" is a string, or it would come back as 7.
    numbers = all(re.fullmatch(r"0|-?[1-9][0-9]{0,18}", line) for line in lines)
    return [int(line) for line in lines] if numbers else lines


@click.command()
@click.argument("index", type=PATH)
@click.option("--output", "-o", type=PATH, help="Directory to write to.  [default: INDEX, which is replaced]")
@threads_option
@json_option
def cluster(index: Path, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Bring similar vectors of INDEX together, so that `search --nprobe` may skip most of them.

    \b
    Example:
      compressae-index cluster items.index
      compressae-index search items.index queries.npy --nprobe 32
    """  # noqa: D301
    target = index if output is None else output
    check_target(target)
    loaded = CompressedIndex.load(index)
    started = time.perf_counter()
    loaded.cluster(num_threads=threads, progress=True)
    loaded.save(target)
    report(
        {"index": str(target), "seconds": time.perf_counter() - started, **loaded.stats()._asdict()}, as_json
    )


@click.command()
@click.argument("embeddings", type=PATH)
@click.option("--k", type=int, help="Nonzeros a code.  [default: 32]")
@click.option("--n-latents", type=int, help="Size of the dictionary.  [default: 4096, less for few rows]")
@storage_options
@dataset_option
@threads_option
@json_option
def estimate(
    embeddings: Path,
    k: int | None,
    n_latents: int | None,
    value_bits: int | None,
    postings: int | None,
    bytes_per_vector: float | None,
    target_recall: float | None,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say what an index of EMBEDDINGS would take and give, from a sample.

    Recall is recall@100 of two_stage with 1,000 candidates, and of dense.

    \b
    Example:
      compressae-index estimate embeddings.npy --bytes-per-vector 128
    """  # noqa: D301
    from compressae_index.estimation import estimate as estimate_index

    result = estimate_index(
        open_vectors(embeddings, dataset=dataset),
        k=k,
        n_latents=n_latents,
        value_bits=value_bits,
        postings=postings,
        bytes_per_vector=bytes_per_vector,
        target_recall=target_recall,
        num_threads=threads,
        progress=True,
    )
    report({**result._asdict(), "plan": result.plan._asdict()}, as_json)


@click.command()
@click.argument("path", type=PATH)
@json_option
def info(path: Path, as_json: bool) -> None:
    """Describe the index, the model or the codes at PATH; also an index of the Faiss connector, or its lists.

    \b
    Example:
      compressae-index info items.index
    """  # noqa: D301
    report(_described(path), as_json)


def _described(path: Path) -> dict[str, Any]:
    """What is at a path, by name; the first name is what it is."""
    if path.is_file() and _is_faiss(path):
        from compressae_index.connectors.faiss import lists

        return {"faiss_lists": str(path), **lists.stats(lists.read_lists(path, mmap=True))._asdict()}
    try:
        return {"model": str(path), **CompresSAE.load(path).manifest()}
    except FormatError as error:
        if "expected: model" not in str(error):
            raise
        found = str(error)
    if "holds: codes" in found:
        return {"codes": str(path), **CodeStore.load(path).manifest()}
    if "holds: faiss index" in found:
        from compressae_index.connectors.faiss import FaissIndex

        filed = FaissIndex.load(path, mmap=True)
        return {"faiss_index": str(path), "fingerprint": filed.model.fingerprint, **filed.stats()._asdict()}
    index = CompressedIndex.load(path, mmap=True)
    return {"index": str(path), "fingerprint": index.model.fingerprint, **index.stats()._asdict()}


def _is_faiss(file: Path) -> bool:
    """Whether a file begins as those of `faiss.write_index`; what Faiss makes of it is for Faiss to say."""
    with file.open("rb") as handle:
        return handle.read(2) in (b"Ix", b"Iw")
