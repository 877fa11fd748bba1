"""Recall of full scans at equal bytes: our packed codes against quantisers of Faiss and others, in one run.

    python benchmarks/quality.py [DATA]

Bytes are those of a stored code, without ids. At each budget we have one code and each rival its best of at
most as many bytes; ours is chosen by the cosine of database rows and their reconstructions, never by recall.
A rival that decodes its codes is ranked by inner products and by distances, and the better one counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import faiss
import numpy as np
import numpy.typing as npt
import torch
from common import markdown, print_load, timed, write_report
from data_sets import DataSet, data_set_argument, load
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex, SparseCodes, train
from compressae_index._engine import simd
from compressae_index.checks import FloatArray, check_threads, normalize_rows
from compressae_index.evaluation import recall
from compressae_index.model import Encoder
from compressae_index.packing import Packed, usual_levels
from compressae_index.training.config import PRESETS, Preset, TrainConfig

KS = (10, 100)
OURS = "compressae-index"
RANDOM = "random projection, top k"
BUDGETS = "56,96,128,192,384"
VALUE_BITS = (4, 5, 6, 8)
SAMPLE_ROWS = 2048
# Limits of the cost of training rivals; Faiss's own are 65,536 rows, and 50 iterations of OPQ.
TRAIN_ROWS = 20_000
OPQ_ITERATIONS, OPQ_FIRST_ITERATIONS = 10, 10
BEAM = 5


class Result(NamedTuple):
    """One way to store vectors, measured."""

    family: str
    name: str
    row_bytes: float
    recall: dict[int, float]
    train_seconds: float
    fill_seconds: float


def random_model(n_latents: int, dim: int) -> CompresSAE:
    """Random directions as dictionary and encoder, which knows nothing of the data."""
    atoms = normalize_rows(np.random.default_rng(0).standard_normal((n_latents, dim), dtype=np.float32))
    return CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(n_latents, np.float32), atoms, k=1)


def row_bytes(n_latents: int, k: int, value_bits: int) -> int:
    """Bytes of a packed code."""
    codes = SparseCodes(np.arange(k, dtype=np.uint16)[None], np.ones((1, k), np.float32), n_latents)
    rows = Packed(value_bits, usual_levels(value_bits)).pack(codes)["rows"]
    return int(rows.shape[1])


def most_nonzeros(n_latents: int, value_bits: int, budget: int) -> int:
    """The largest k whose packed codes take at most so many bytes; 0 if none does."""
    k = 0
    while k < n_latents and row_bytes(n_latents, k + 1, value_bits) <= budget:
        k += 1
    return k


def cosine(model: CompresSAE, sample: FloatArray, k: int, value_bits: int, encoder: Encoder) -> float:
    """Mean cosine of unit rows and the reconstructions of their packed codes."""
    codes = model.fold(model.encode(sample, k, encoder=encoder))
    packing = Packed(value_bits).fitted(codes)
    stored = packing.unpack(packing.pack(codes, 1, model.decoder_w), model.n_latents, k)
    return float((normalize_rows(model.decode(stored)) * sample).sum(axis=1).mean())


class Bench(NamedTuple):
    """What every contender is measured on."""

    unit: FloatArray
    queries: FloatArray
    truth: npt.NDArray[Any]
    sample: FloatArray
    """Rows that our codes are chosen by, and turbovec calibrated."""
    training: FloatArray
    """Rows that other rivals learn from."""
    threads: int

    def recall(self, found: npt.NDArray[Any]) -> dict[int, float]:
        """recall@k by k."""
        return {k: recall(found, self.truth, k) for k in KS}

    def recall_of_decoded(self, decoded: FloatArray) -> tuple[str, dict[int, float]]:
        """The better of inner products and distances, and its recall."""
        metrics = {"IP": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}
        by_metric = {
            name: self.recall(faiss.knn(self.queries, decoded, KS[-1], metric=metric)[1])
            for name, metric in metrics.items()
        }
        return max(by_metric.items(), key=lambda item: item[1][KS[-1]])


def ours(
    family: str, model: CompresSAE, encoder: Encoder, budget: int, bench: Bench, train_seconds: float
) -> Result:
    """Our codes of at most so many bytes."""
    shapes = [(most_nonzeros(model.n_latents, bits, budget), bits) for bits in VALUE_BITS]
    k, bits = max(
        (shape for shape in shapes if shape[0]),
        key=lambda shape: cosine(model, bench.sample, shape[0], shape[1], encoder),
    )
    build = partial(CompressedIndex.build, bench.unit, k=k, model=model, encoder=encoder, value_bits=bits)
    index, fill_seconds = timed(partial(build, num_threads=bench.threads, progress=False))
    found = index.search(bench.queries, KS[-1], mode="dense", num_threads=bench.threads).ids
    name = f"k={k}, {bits} bits"
    return Result(
        family, name, row_bytes(model.n_latents, k, bits), bench.recall(found), train_seconds, fill_seconds
    )


def faiss_index(spec: str | int, dim: int) -> Any:
    """An index by factory string, or a rotation and a scalar quantiser by its type's number."""
    if isinstance(spec, str):
        return faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    quantizer = faiss.IndexScalarQuantizer(dim, spec, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexPreTransform(faiss.RandomRotationMatrix(dim, dim), quantizer)


def rival(family: str, name: str, spec: str | int, bench: Bench) -> Result:
    """A quantiser of Faiss."""
    index = faiss_index(spec, bench.unit.shape[1])
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, faiss.IndexResidualQuantizer):
        inner.rq.max_beam_size = BEAM
        inner.rq.train_type = faiss.ResidualQuantizer.Train_default
        inner.rq.use_beam_LUT = 1
    if family == "Faiss OPQ":
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = OPQ_ITERATIONS
        rotation.niter_pq_0 = OPQ_FIRST_ITERATIONS
        rotation.max_train_points = TRAIN_ROWS
    _, train_seconds = timed(partial(index.train, bench.training))
    if isinstance(inner, faiss.IndexRaBitQ):
        # Its scores use more than what it decodes to.
        _, fill_seconds = timed(partial(index.add, bench.unit))
        shares = bench.recall(index.search(bench.queries, KS[-1])[1])
    else:
        codes, fill_seconds = timed(partial(index.sa_encode, bench.unit))
        metric, shares = bench.recall_of_decoded(index.sa_decode(codes))
        name = f"{name} ({metric})"
    return Result(family, name, index.sa_code_size(), shares, train_seconds, fill_seconds)


def turbovec(bits: int, bench: Bench) -> Result:
    """The package turbovec, calibrated as its documentation advises."""
    index = importlib.import_module("turbovec").TurboQuantIndex(dim=bench.unit.shape[1], bit_width=bits)
    half = len(bench.unit) // 2
    _, train_seconds = timed(partial(index.calibrate, bench.sample))
    _, first = timed(partial(index.add, bench.unit[:half]))
    size = len(index.to_bytes())
    _, second = timed(partial(index.add, bench.unit[half:]))
    stored = (len(index.to_bytes()) - size) / (len(bench.unit) - half)
    found = index.search(bench.queries, KS[-1])[1].astype(np.int64)
    return Result(
        "turbovec", f"{bits} bits, calibrated", stored, bench.recall(found), train_seconds, first + second
    )


def split(dim: int, budget: int) -> tuple[int, int]:
    """Sub-vectors for product quantisation, at most one a byte, and the dimension that rows are padded to."""
    parts = min(budget, dim)
    # Padding must not fill whole sub-vectors.
    while -(-dim // parts) * (parts - 1) >= dim:
        parts -= 1
    return parts, -(-dim // parts) * parts


def rivals(dim: int, budgets: list[int], most_slow: int) -> Iterator[tuple[str, str, str | int]]:
    """Family, name and what `faiss_index` takes, of every rival from Faiss that fits a budget."""
    for budget in budgets:
        parts, padded = split(dim, budget)
        pad = "" if padded == dim else f"Pad{padded},"
        yield "Faiss PQ", f"PQ{parts}x8", f"{pad}PQ{parts}x8"
        if budget <= most_slow:
            whole = min(budget, dim)
            kept = dim // whole * whole
            yield "Faiss OPQ", f"OPQ{whole}x8", f"OPQ{whole}_{kept},PQ{whole}x8"
            yield "Faiss RQ", f"RQ{budget}x8", f"RQ{budget}x8"
        if budget <= dim:
            yield "PCA, SQ8", f"PCAR{budget},SQ8", f"PCAR{budget},SQ8"
        if 2 * budget <= dim:
            yield "PCA, SQ4", f"PCAR{2 * budget},SQ4", f"PCAR{2 * budget},SQ4"
    for bits in range(1, 9):
        yield "Faiss RaBitQ", f"RaBitQ, {bits} bits", f"RR{dim},RaBitQ{bits if bits > 1 else ''}"
        for family, suffix in (
            ("Faiss TurboQuant", "tqmse"),
            ("Faiss TurboQuant", "tq"),
            ("Faiss EDEN", "eden"),
        ):
            kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit_{suffix}", None)
            # The kernels of the others decode at a crawl, and these score worse than tqmse of as many bytes.
            if kind is not None and (suffix != "tq" or bits <= 2):
                yield family, f"QT_{bits}bit_{suffix}", kind
        if bits in (4, 6, 8):
            yield "Faiss SQ", f"SQ{bits}", f"SQ{bits}"


def measured(bench: Bench, budgets: list[int], most_slow: int, say: Callable[[str], Any]) -> Iterator[Result]:
    """Every rival of at most the largest budget."""
    dim = bench.unit.shape[1]
    for family, name, spec in rivals(dim, budgets, most_slow):
        if faiss_index(spec, dim).sa_code_size() <= max(budgets):
            yield rival(family, name, spec, bench)
            say(f"  {name}")
    try:
        for bits in (2, 4):
            if dim % 8 == 0 and dim * bits // 8 < max(budgets):
                yield turbovec(bits, bench)
                say(f"  turbovec, {bits} bits")
    except ImportError:
        say("  (turbovec is not installed)")


def verdicts(budget: int, own: Result, others: Iterable[Result]) -> list[list[str]]:
    """Lines of one budget: our code, and of each family the best that fits, best first."""
    best: dict[str, Result] = {}
    for other in others:
        if other.row_bytes <= budget and (
            other.family not in best or other.recall[KS[-1]] > best[other.family].recall[KS[-1]]
        ):
            best[other.family] = other
    lines = [_line(budget, own, "")]
    for other in sorted(best.values(), key=lambda result: -result.recall[KS[-1]]):
        gain = own.recall[KS[-1]] - other.recall[KS[-1]]
        lines.append(_line(budget, other, f"{'win' if gain > 0 else 'LOSS'} {gain:+.4f}"))
    return lines


def _line(budget: int, result: Result, verdict: str) -> list[str]:
    return [
        str(budget),
        result.family,
        result.name,
        f"{result.row_bytes:.0f}",
        *(f"{share:.4f}" for share in result.recall.values()),
        verdict,
        f"{result.train_seconds:.1f}",
        f"{result.fill_seconds:.1f}",
    ]


def training_times(
    data: DataSet, unit: FloatArray, preset: Preset, n_latents: int | None, threads: int
) -> tuple[CompresSAE, dict[str, float]]:
    """Our model, and seconds until all vectors are codes: ours, and those of Faiss's PQ of d/4 bytes."""
    config = TrainConfig.preset(preset, n_latents=n_latents)
    trained, seconds = timed(partial(train, data.vectors, config))
    _, encoding = timed(partial(trained.model.encode, data.vectors, config.k, num_threads=threads))
    index = faiss.IndexPQ(data.dim, data.dim // 4, 8, faiss.METRIC_INNER_PRODUCT)
    _, faiss_training = timed(partial(index.train, unit))
    _, faiss_filling = timed(partial(index.add, unit))
    return trained.model, {
        "train": seconds,
        "encode": encoding,
        "faiss_train": faiss_training,
        "faiss_fill": faiss_filling,
        "ratio": (seconds + encoding) / (faiss_training + faiss_filling),
    }


@click.command()
@data_set_argument
@click.option("--rows", type=int, help="Vectors of the database; all by default, 20,000 made ones.")
@click.option("--queries", type=int, help="Queries; all by default.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
@click.option("--n-latents", type=int, help="Size of the dictionary.")
@click.option("--budgets", default=BUDGETS, show_default=True, help="Bytes a vector.")
@click.option(
    "--most-slow",
    default=96,
    show_default=True,
    help="Largest budget of OPQ and RQ, whose training takes long.",
)
@click.option("--threads", type=int, help="Threads of everything; all by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.pass_context
def main(
    context: click.Context,
    source: str,
    rows: int | None,
    queries: int | None,
    preset: str,
    n_latents: int | None,
    budgets: str,
    most_slow: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Recall at equal bytes, wins and losses, and seconds of training."""
    sizes = sorted(int(size) for size in budgets.split(","))
    threads = check_threads(threads)
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    data = load(source, rows=rows, queries=queries)
    data = data._replace(queries=normalize_rows(data.queries))
    click.echo(f"{data}; {threads} threads, {simd()}")
    print_load(threads)
    unit = normalize_rows(data.vectors)
    with threadpool_limits(threads):
        model, seconds = training_times(data, unit, cast("Preset", preset), n_latents, threads)
        click.echo(
            f"{model.n_latents:,} latents, preset {preset}: trained in {seconds['train']:.1f} s, encoded "
            f"(k={model.k}) in {seconds['encode']:.1f} s\n"
            f"Faiss PQ{data.dim // 4}x8: trained in {seconds['faiss_train']:.1f} s, filled in "
            f"{seconds['faiss_fill']:.1f} s\nratio ours / Faiss: {seconds['ratio']:.2f}\n"
        )
        truth = data.neighbours(KS[-1])
        shuffled = np.random.default_rng(0).permutation(len(unit))
        sample, training = unit[shuffled[:SAMPLE_ROWS]], unit[shuffled[:TRAIN_ROWS]]
        bench = Bench(unit, data.queries, truth, sample, training, threads)
        blind = random_model(model.n_latents, data.dim)
        own, others = {}, []
        for budget in sizes:
            own[budget] = ours(OURS, model, "pursuit", budget, bench, seconds["train"])
            others.append(ours(RANDOM, blind, "topk", budget, bench, 0.0))
        others += measured(bench, sizes, most_slow, partial(click.echo, err=True))
    lines = [line for budget in sizes for line in verdicts(budget, own[budget], others)]
    header = ["budget", "family", "code", "bytes", *(f"recall@{k}" for k in KS), "ours", "train s", "fill s"]
    click.echo(markdown(header, lines))
    click.echo()
    for budget in sizes:
        best = max((o for o in others if o.row_bytes <= budget), key=lambda o: o.recall[KS[-1]])
        gain = own[budget].recall[KS[-1]] - best.recall[KS[-1]]
        outcome = f"{'win' if gain > 0 else 'LOSS'} by {abs(gain):.4f}"
        click.echo(f"{budget} bytes: {outcome} against {best.family}, {best.name}")
    write_report(
        output,
        threads,
        context.params,
        {
            "seconds": seconds,
            "ours": {budget: result._asdict() for budget, result in own.items()},
            "rivals": [result._asdict() for result in others],
        },
    )


if __name__ == "__main__":
    main()
