"""The main job: train, encode, search by every mode, scoring and encoder, and what each costs.

python benchmarks/modes.py [DATA]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import numpy.typing as npt
import torch
from common import markdown, print_load, timed, write_report
from data_sets import DataSet, data_set_argument, load
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex, train
from compressae_index._engine import simd
from compressae_index.checks import FloatArray, check_threads
from compressae_index.evaluation import recall
from compressae_index.index import MODES, SCORINGS
from compressae_index.metric import METRICS
from compressae_index.model import ENCODERS, Encoder
from compressae_index.training.config import PRESETS, Preset, TrainConfig

KS = (10, 100)
NNZS = (32, 64)


def touched(projections: FloatArray, lengths: npt.NDArray[np.int64], nnz: int, n: int) -> float:
    """Postings that a query reads a document: the sum of its lists' lengths over n, mean over queries."""
    strongest = np.argpartition(-np.abs(projections), nnz - 1, axis=1)[:, :nnz]
    used = np.take_along_axis(projections, strongest, axis=1) != 0
    return float((lengths[strongest] * used).sum(axis=1).mean() / n)


def costs(index: CompressedIndex, data: DataSet, encoder: Encoder, threads: int) -> dict[str, Any]:
    """What an index of one encoder costs, beside the time of building it."""
    model, n = index.model, len(data.vectors)
    stored = index.codes(index.ids)
    lengths = np.bincount(stored.latents[stored.values != 0], minlength=model.n_latents)
    codes = model.encode(data.queries, index.k, encoder=encoder, num_threads=threads)
    projections = {"asymmetric": model.project(data.queries), "symmetric": codes.to_dense()}
    stats = index.stats()
    return {
        "dead_latents": stats.dead_latents,
        "list_skew": stats.list_skew,
        "bytes_per_vector": stats.bytes_per_vector,
        "postings": {
            f"{scoring}, {nnz}": touched(projections[scoring], lengths, min(nnz, model.n_latents), n)
            for scoring in SCORINGS
            for nnz in NNZS
        },
    }


def searches(
    index: CompressedIndex, queries: FloatArray, truth: npt.NDArray[Any], **options: int
) -> list[dict[str, Any]]:
    """Recall of every scoring and mode of one index."""
    results = []
    for scoring in SCORINGS:
        for mode in MODES:
            search = partial(index.search, queries, KS[-1], mode=mode, scoring=scoring, **options)
            found, seconds = timed(search)
            results.append(
                {
                    "encoder": index.encoder,
                    "scoring": scoring,
                    "mode": mode,
                    "recall": {at: recall(found.ids, truth, at) for at in KS},
                    "bytes": index.stats().bytes_by_mode[mode],
                    "ms_per_query": 1000 * seconds / len(queries),
                }
            )
    return results


def build(
    data: DataSet, model: CompresSAE, encoder: Encoder, value_bits: int, threads: int
) -> CompressedIndex:
    """An index of the rows, whose codes come from one encoder."""
    return CompressedIndex.build(
        data.vectors,
        k=model.k,
        model=model,
        encoder=encoder,
        metric=data.metric,
        value_bits=value_bits,
        num_threads=threads,
        progress=False,
    )


@click.command()
@data_set_argument
@click.option("--rows", type=int, help="Vectors of the database; all by default.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
@click.option("--k", default=32, show_default=True, help="Nonzeros a code.")
@click.option("--n-latents", type=int, help="Size of the dictionary.")
@click.option("--value-bits", default=6, show_default=True, help="Bits of a packed value.")
@click.option("--candidates", default=1000, show_default=True, help="Documents from stage one to two.")
@click.option("--query-nnz", default=64, show_default=True, help="Latents of a query in stage one.")
@click.option("--threads", type=int, help="Threads of everything; all by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.pass_context
def main(
    context: click.Context,
    source: str,
    rows: int | None,
    preset: str,
    k: int,
    n_latents: int | None,
    value_bits: int,
    candidates: int,
    query_nnz: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Seconds, bytes, dead latents, postings touched and recall."""
    threads = check_threads(threads)
    torch.set_num_threads(threads)
    data = load(source, rows=rows, metrics=METRICS)
    click.echo(f"{data}; {threads} threads, {simd()}")
    print_load(threads)
    with threadpool_limits(threads):
        truth = data.neighbours(KS[-1])
        config = TrainConfig.preset(cast("Preset", preset), k=k, n_latents=n_latents)
        trained, seconds = timed(partial(train, data.vectors, config))
        model = trained.model
        click.echo(f"{model.n_latents:,} latents, k={k}, trained by preset {preset} in {seconds:.1f} s\n")
        by_encoder, results = {}, []
        for encoder in ENCODERS:
            encode = partial(model.encode, data.vectors, encoder=encoder, num_threads=threads)
            _, encoding = timed(encode)
            index, building = timed(partial(build, data, model, encoder, value_bits, threads))
            by_encoder[encoder] = {
                "encode_seconds": encoding,
                "encode_and_index_seconds": building,
                **costs(index, data, encoder, threads),
            }
            results += searches(
                index, data.queries, truth, candidates=candidates, query_nnz=query_nnz, num_threads=threads
            )
    header = ["encoder", "encode s", "encode and index s", "dead latents", "longest/mean list"]
    header += [f"postings a document, {name}" for name in by_encoder[ENCODERS[0]]["postings"]]
    click.echo(
        markdown(
            header,
            [
                [
                    name,
                    f"{cost['encode_seconds']:.1f}",
                    f"{cost['encode_and_index_seconds']:.1f}",
                    cost["dead_latents"],
                    f"{cost['list_skew']:.1f}",
                    *(f"{postings:.3f}" for postings in cost["postings"].values()),
                ]
                for name, cost in by_encoder.items()
            ],
        )
    )
    click.echo("\nBytes a vector by part:\n")
    parts = by_encoder[ENCODERS[0]]["bytes_per_vector"]
    click.echo(
        markdown(
            ["encoder", *parts],
            [
                [name, *(f"{cost['bytes_per_vector'][part]:.1f}" for part in parts)]
                for name, cost in by_encoder.items()
            ],
        )
    )
    click.echo(f"\nSearch, query_nnz={query_nnz}, candidates={candidates}, queries in one batch:\n")
    click.echo(
        markdown(
            ["encoder", "scoring", "mode", *(f"recall@{at}" for at in KS), "bytes/vector", "ms/query"],
            [
                [
                    result["encoder"],
                    result["scoring"],
                    result["mode"],
                    *(f"{share:.4f}" for share in result["recall"].values()),
                    f"{result['bytes']:.1f}",
                    f"{result['ms_per_query']:.3f}",
                ]
                for result in results
            ],
        )
    )
    write_report(
        output,
        threads,
        context.params,
        {"train_seconds": seconds, "encoders": by_encoder, "searches": results},
    )


if __name__ == "__main__":
    main()
