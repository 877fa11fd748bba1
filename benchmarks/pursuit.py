"""The engine's pursuit against a batched orthogonal matching pursuit in torch that adds two atoms a step.

    python benchmarks/pursuit.py [DATA]

Same dictionary, same rows, same threads, interleaved rounds. The rival recomputes the correlations of the
residual by a full product in each step, as one writes it with dense arrays.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, SparseCodes, train
from compressae_index._engine import simd
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_threads, normalize_rows
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall
from compressae_index.training.config import PRESETS, Preset, TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown, print_load, timed, write_report
from data_sets import data_set_argument, load

ATOMS_A_STEP = 2
BATCH_ROWS = 1024
# Added to the diagonal of a Gram matrix, so that nearly equal atoms do not make it singular.
RIDGE = 1e-6
TOP = 100
OURS = "compressae-index"


def torch_pursuit(rows: torch.Tensor, dictionary: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Atoms and least-squares values of rows (n, d): (n, k) each, in the order of choosing."""
    projections = rows @ dictionary.T
    gram = dictionary @ dictionary.T
    residual, support = rows, torch.empty((len(rows), 0), dtype=torch.int64)
    values = torch.empty((len(rows), 0))
    for _ in range(k // ATOMS_A_STEP):
        correlations = (residual @ dictionary.T).abs_()
        correlations.scatter_(1, support, -1.0)
        support = torch.cat([support, correlations.topk(ATOMS_A_STEP, dim=1).indices], dim=1)
        normal = gram[support[:, :, None], support[:, None, :]]
        normal.diagonal(dim1=1, dim2=2).add_(RIDGE)
        values = torch.linalg.solve(normal, projections.gather(1, support))
        residual = rows - torch.einsum("nk,nkd->nd", values, dictionary[support])
    return support, values


def torch_codes(unit: FloatArray, dictionary: FloatArray, k: int) -> SparseCodes:
    """The codes of all rows, batch by batch."""
    atoms = torch.from_numpy(dictionary)
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(unit), BATCH_ROWS):
            rows = torch.from_numpy(unit[begin : begin + BATCH_ROWS])
            support, values = torch_pursuit(rows, atoms, k)
            support, order = support.sort(dim=1)
            latents = support.numpy().astype(np.uint16)
            parts.append(SparseCodes(latents, values.gather(1, order).numpy(), len(dictionary)))
    return SparseCodes.concatenate(parts)


def squared_error(model: CompresSAE, codes: SparseCodes, unit: FloatArray) -> float:
    """Mean squared error of reconstructions of unit rows."""
    return float(np.square(model.decode(codes) - unit).sum(axis=1).mean())


def found_by(model: CompresSAE, codes: SparseCodes, queries: FloatArray) -> npt.NDArray[np.int64]:
    """Best documents of each query by the cosine with unrounded reconstructions."""
    scores = (model.fold(codes).to_csr() @ model.project(queries).T).T
    found: npt.NDArray[np.int64] = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
    return found


class Timing(NamedTuple):
    """Seconds of every round, by contender."""

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]


def timed_rounds(contenders: Mapping[str, Callable[[], SparseCodes]], rounds: int) -> Timing:
    """Interleaved rounds of all contenders."""
    timing = Timing({name: [] for name in contenders}, {name: [] for name in contenders})
    for _ in range(rounds):
        for name, encode in contenders.items():
            before = time.process_time()
            timing.wall[name].append(timed(encode)[1])
            timing.processor[name].append(time.process_time() - before)
    return timing


def measured(
    model: CompresSAE, codes: dict[str, SparseCodes], timing: Timing, vectors: FloatArray, queries: FloatArray
) -> dict[str, dict[str, Any]]:
    """Medians, squared error and recall of every contender's codes of the vectors."""
    unit, truth = normalize_rows(vectors), exact_neighbours(vectors, queries, TOP)
    medians = {name: statistics.median(times) for name, times in timing.wall.items()}
    return {
        name: {
            "vectors_per_second": len(unit) / seconds,
            "times_ours": seconds / medians[OURS],
            "cpu_ms_per_vector": 1000 * statistics.median(timing.processor[name]) / len(unit),
            "seconds": timing.wall[name],
            "squared_error": squared_error(model, codes[name], unit),
            f"recall@{TOP}": recall(found_by(model, codes[name], queries), truth, TOP),
        }
        for name, seconds in medians.items()
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each contender."""
    rows = [
        [
            name,
            f"{result['vectors_per_second']:.0f}",
            f"{result['times_ours']:.2f}",
            f"{result['cpu_ms_per_vector']:.3f}",
            f"{result['squared_error']:.4f}",
            f"{result[f'recall@{TOP}']:.4f}",
        ]
        for name, result in results.items()
    ]
    header = ["", "vectors/s", "time / ours", "CPU ms/vector", "squared error", f"recall@{TOP}"]
    return markdown(header, rows)


@click.command()
@data_set_argument
@click.option("--rows", type=int, help="Vectors to train on; all by default.")
@click.option("--documents", default=8192, show_default=True, help="Vectors to encode in a round.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="fast", show_default=True)
@click.option("--k", default=32, show_default=True, help="Nonzeros a code; even.")
@click.option("--n-latents", default=4096, show_default=True, help="Size of the dictionary.")
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds, whose medians are printed.")
@click.option("--threads", type=int, help="Threads of both; all by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.pass_context
def main(
    context: click.Context,
    source: str,
    rows: int | None,
    documents: int,
    preset: str,
    k: int,
    n_latents: int,
    rounds: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Vectors a second, squared error and recall of both."""
    if k % ATOMS_A_STEP:
        msg = f"k must be a multiple of {ATOMS_A_STEP}, got {k}"
        raise click.BadParameter(msg)
    threads = check_threads(threads)
    torch.set_num_threads(threads)
    data = load(source, rows=rows)
    print_load(threads)
    with threadpool_limits(threads):
        # The pursuit in torch encodes whole vectors.
        config = TrainConfig.preset(cast("Preset", preset), k=k, n_latents=n_latents, center=False)
        model = train(data.vectors, config).model
        vectors = data.vectors[:documents]
        unit = normalize_rows(vectors)
        contenders = {
            OURS: partial(model.encode, vectors, k, num_threads=threads),
            "torch, two atoms a step": partial(torch_codes, unit, model.decoder_w, k),
        }
        # The first call makes what later ones reuse: the Gram matrix, thread pools.
        codes = {name: encode() for name, encode in contenders.items()}
        timing = timed_rounds(contenders, rounds)
    results = measured(model, codes, timing, vectors, data.queries)
    click.echo(
        f"{data.name}: {len(vectors):,} vectors of {data.dim} dimensions, h={n_latents}, k={k}, "
        f"{threads} threads, {simd()}, medians of {rounds} rounds\n"
    )
    click.echo(table(results))
    write_report(output, threads, context.params, {"encoders": results})


if __name__ == "__main__":
    main()
