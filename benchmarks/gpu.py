"""Training, pursuit and `DenseStore` on a GPU: checked against the processor's answers, and timed.

    python benchmarks/gpu.py [--device cuda:1]

It runs on the data that the package ships, and is meant to take a minute or two. Exit codes: 0 if all checks
passed, 1 if one failed, 2 if none failed but some could not be run. `--device cpu` runs the same checks on
the processor, which tests this script.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from compressae_index import CompresSAE, CompressedIndex, InputError, SparseCodes, train
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_threads, normalize_rows
from compressae_index.coding.model import SOLVE_EVERY
from compressae_index.coding.torch_device import device_of
from compressae_index.coding.torch_pursuit import pursue_on
from compressae_index.demo import load_data
from compressae_index.errors import InstallationError, MissingExtraError
from compressae_index.training import TrainConfig
from compressae_index.training.module import CompresSAEModule

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import interleaved, markdown, print_load, timed

K = 16
STEP_ROWS, RATE = 512, 1e-3
TOP, CANDIDATES = 20, 300
# The most neighbours that Faiss selects on a GPU, and one more.
BEYOND = 2049
ADDED = 10
ROUNDS = 3
# Rows that are coded in float64, too.
ORACLE_ROWS = 2048


class Check(NamedTuple):
    """A difference that was measured, which may be below zero, and the most that it may be."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.difference <= self.tolerance


class Time(NamedTuple):
    """What the processor and the device take for the same work."""

    name: str
    processor: float
    device: float
    unit: str


class Task(NamedTuple):
    """Data, a model that the processor learned from them, and sizes."""

    vectors: FloatArray
    queries: FloatArray
    model: CompresSAE
    steps: int
    device: str


Results = Iterator[Check | Time]


# Training.


def step_on(device: str, task: Task) -> dict[str, Any]:
    """Weights and loss after one step in float64 from the same beginning."""
    module = CompresSAEModule(
        task.model.dim, task.model.n_latents, K, generator=torch.Generator().manual_seed(0)
    )
    module.normalize_decoder()
    module.double().to(device)
    batch = torch.from_numpy(task.vectors[:STEP_ROWS]).double().to(device)
    loss = module.losses(batch).total.item()
    module.train_step(torch.optim.Adam(module.parameters(), lr=RATE), batch)
    return {"loss": loss} | {name: each.cpu().numpy() for name, each in module.state_dict().items()}


def training(task: Task) -> Results:
    """One exact step, and whole runs of the same seed."""
    found, expected = step_on(task.device, task), step_on("cpu", task)
    for name, value in expected.items():
        yield Check(f"a step in float64: {name}", largest(found[name] - value), 1e-8)
    config = TrainConfig(k=K, n_latents=task.model.n_latents, refine_rounds=0, steps=task.steps)
    config = replace(config, batch_size=min(config.batch_size, len(task.vectors) // 4))
    runs = {}
    for device, precision in (("cpu", "float32"), (task.device, "float32"), (task.device, "bfloat16")):
        runs[device, precision] = train(task.vectors, replace(config, device=device, precision=precision))
    on_processor, on_device = runs["cpu", "float32"], runs[task.device, "float32"]
    final = on_processor.checks[-1].loss
    yield Check(
        "held-out loss, relative to the processor's", abs(on_device.checks[-1].loss / final - 1), 0.02
    )
    rounded = runs[task.device, "bfloat16"].checks[-1].loss
    yield Check("the same in bfloat16", abs(rounded / final - 1), 0.02)
    losses = on_device.losses
    yield Check("last batch's loss / first one's", float(losses[-1] / losses[0]), 0.95)
    per_step = 1000 / task.steps
    yield Time("training step", on_processor.seconds * per_step, on_device.seconds * per_step, "ms")
    rounded_seconds = runs[task.device, "bfloat16"].seconds
    yield Time("training step, bfloat16", on_processor.seconds * per_step, rounded_seconds * per_step, "ms")


# Pursuit.


def unexplained(unit: FloatArray, codes: SparseCodes, atoms: FloatArray) -> float:
    """The largest product of a row's residual and an atom of its code: 0 for least squares, in float64."""
    chosen = atoms.astype(np.float64)[codes.latents]
    residual = unit - np.einsum("nk,nkd->nd", codes.values.astype(np.float64), chosen)
    return largest(np.einsum("nd,nkd->nk", residual, chosen))


def pursuit(task: Task) -> Results:
    """Codes of vectors against the engine's, and by themselves."""
    atoms, unit = task.model.decoder_w, normalize_rows(task.vectors)

    def on_device(rows: FloatArray) -> SparseCodes:
        return SparseCodes(*pursue_on(task.device, rows, atoms, K, SOLVE_EVERY), len(atoms))

    def by_engine(rows: FloatArray) -> SparseCodes:
        return CompresSAE.of_dictionary(atoms, K, None).encode(rows, K)

    found, expected = on_device(unit), by_engine(unit)
    errors = [squared_error(unit, codes, atoms) for codes in (found, expected)]
    # The engine rounds correlations, so that codes without that are a little better.
    yield Check("squared error above the engine's, share", errors[0] / errors[1] - 1, 1e-3)
    rows, found = unit[:ORACLE_ROWS], found[:ORACLE_ROWS]
    wide: list[Any] = [each.astype(np.float64) for each in (rows, atoms)]
    latents, values = pursue_on("cpu", wide[0], wide[1], K, SOLVE_EVERY)
    same = (found.latents == latents).all(axis=1)
    yield Check("rows with other atoms than in float64, share", 1 - float(same.mean()), 0.05)
    yield Check("values of the others", largest((found.values - values)[same]), 2e-4)
    yield Check("least squares: residual along atoms", unexplained(rows, found, atoms), 1e-3)
    few = np.repeat(atoms[: K // 2], 3, axis=0)  # every atom three times, and fewer different ones than k
    codes = SparseCodes(*pursue_on(task.device, unit[:64], few, K, SOLVE_EVERY), len(few))
    yield Check("the same with equal atoms", unexplained(unit[:64], codes, few), 1e-2)
    calls = {"cpu": partial(by_engine, unit), "device": partial(on_device, unit)}
    yield of_calls("pursuit, a vector", calls, 1e6 / len(unit), "us")


def squared_error(unit: FloatArray, codes: SparseCodes, atoms: FloatArray) -> float:
    """Mean squared error of what codes reconstruct."""
    return float(np.square(codes.to_csr() @ atoms - unit).sum(axis=1).mean())


# The dense store.


def dense_store(task: Task) -> Results:
    """Searches of reconstructions against float64, on one GPU or spread over all."""
    from compressae_index.connectors.faiss import DenseStore
    from compressae_index.connectors.faiss.gpu import SPREADS

    index = CompressedIndex.build(task.vectors, model=task.model, k=K, progress=False)
    exact = normalize_rows(task.queries).astype(np.float64) @ index.reconstruct(index.ids).T
    spreads = SPREADS if task.device == "cuda" and torch.cuda.device_count() > 1 else SPREADS[:1]
    for storage, tolerance in (("float32", 1e-5), ("float16", 1e-3)):
        for spread in spreads:
            options: Any = {"storage": storage, "spread": spread, "progress": False}
            store = DenseStore(index, device=task.device, **options)
            label = f"{storage}, {spread}" if len(spreads) > 1 else storage
            yield from searches(store, exact, task, label, tolerance)
    store = DenseStore(index, device=task.device, storage="float16", progress=False)
    rival = DenseStore(index, device="cpu", storage="float16", progress=False)
    for name, queries in (("a batch", task.queries), ("a query", task.queries[:1])):
        calls = {
            key: partial(each.search, queries, TOP, mode="dense")
            for key, each in (("cpu", rival), ("device", store))
        }
        yield of_calls(f"dense search, {name} of {len(queries)}", calls, 1000, "ms")
    options = {"storage": "float16", "progress": False}
    filling = [timed(partial(DenseStore, index, device=name, **options))[1] for name in ("cpu", task.device)]
    yield Time("filling the store", filling[0], filling[1], "s")
    yield from changes(store, task)


def searches(store: Any, exact: Any, task: Task, label: str, tolerance: float) -> Results:
    """All kinds of searches of a store; exact scores are (n_queries, n) float64."""

    def of(ids: Any) -> Any:
        return np.take_along_axis(exact, ids, axis=1)

    best = -np.sort(-exact, axis=1)
    found = store.search(task.queries, TOP, mode="dense")
    yield Check(f"{label}: scores", largest(found.scores - of(found.ids)), tolerance)
    yield Check(f"{label}: true scores below the best", largest(best[:, :TOP] - of(found.ids)), tolerance)
    queries = torch.from_numpy(task.queries).to(task.device)
    by_tensor = store.search(queries, TOP, mode="dense")
    yield Check(f"{label}: scores of a tensor's queries", largest(by_tensor.scores - found.scores), tolerance)
    staged = store.search(task.queries, TOP, candidates=CANDIDATES)
    yield Check(f"{label}: scores of two_stage", largest(staged.scores - of(staged.ids)), tolerance)
    allowed = store.ids[::3]
    filtered = store.search(task.queries, TOP, mode="dense", filter=allowed)
    yield Check(f"{label}: ids that the filter excludes", float((~np.isin(filtered.ids, allowed)).sum()), 0)
    k = min(BEYOND, len(store))
    many = store.search(task.queries[:10], k, mode="dense")
    yield Check(f"{label}: scores of {k:,} neighbours", largest(many.scores - best[:10, :k]), tolerance)


def changes(store: Any, task: Task) -> Results:
    """What is added is found, and what is removed is not. It changes the store and its index."""
    new = np.arange(ADDED) + len(task.vectors)
    store.add(task.queries[:ADDED], new)
    found = store.search(task.queries[:ADDED], 1, mode="dense").ids[:, 0]
    yield Check("vectors that were added and not found", float((found != new).sum()), 0)
    store.remove(new)
    for name in ("removed", "removed, after a refresh"):
        found = store.search(task.queries[:ADDED], TOP, mode="dense").ids
        yield Check(f"{name}, and found", float(np.isin(found, new).sum()), 0)
        store.refresh()


# All of them.

PARTS = {"training": training, "pursuit": pursuit, "DenseStore": dense_store}


def largest(differences: Any) -> float:
    """The largest absolute value; 0 of none."""
    return float(np.max(np.abs(differences), initial=0))


def of_calls(name: str, calls: dict[str, Any], factor: float, unit: str) -> Time:
    """Medians of interleaved rounds."""
    seconds = interleaved(calls, ROUNDS)
    return Time(name, factor * seconds["cpu"], factor * seconds["device"], unit)


def obstacle(part: str, device: str) -> str | None:
    """Why a part cannot be run on a device."""
    try:
        if part != "DenseStore":
            device_of(device)
            return None
        from compressae_index.connectors.faiss import library

        if device == "cpu":
            return None
        if library.build(library.faiss) != "GPU":
            return "this is Faiss's CPU build; run: " + library.repair(
                "faiss-gpu", library.installed_builds()
            )
        if not library.faiss.get_num_gpus():
            return "Faiss sees no GPU"
        library.find_gpus(device)
    except (InputError, InstallationError, MissingExtraError) as error:
        return str(error)
    return None


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, or cpu to test this script.")
@click.option("--rows", default=19_000, show_default=True, help="Vectors of the shipped data.")
@click.option("--n-latents", default=4096, show_default=True, help="Size of the dictionary.")
@click.option("--steps", default=60, show_default=True, help="Training steps of each run.")
def main(device: str, rows: int, n_latents: int, steps: int) -> None:
    """Checks and times training, pursuit and DenseStore on a GPU."""
    obstacles = {part: obstacle(part, device) for part in PARTS}
    missing = "\n".join(f"not run: {part}: {why}" for part, why in obstacles.items() if why)
    runnable = [part for part, why in obstacles.items() if why is None]
    if not runnable:
        click.echo(missing, err=True)
        sys.exit(2)
    print_load(check_threads(None))
    data = load_data()
    config = TrainConfig(k=K, n_latents=n_latents, refine_rounds=40, steps=0, device="cpu", center=False)
    model = train(data.embeddings[:rows], config).model
    task = Task(data.embeddings[:rows], data.queries, model, steps, device)
    is_cuda = device.startswith("cuda")
    click.echo(
        f"{torch.cuda.get_device_name(device) if is_cuda else device}, {len(task.vectors):,} vectors\n"
    )
    results = [(part, result) for part in runnable for result in PARTS[part](task)]
    checks = [(part, result) for part, result in results if isinstance(result, Check)]
    lines = [
        [
            part,
            each.name,
            f"{each.difference:.2g}",
            f"{each.tolerance:.2g}",
            "ok" if each.passed else "failed",
        ]
        for part, each in checks
    ]
    click.echo(markdown(["part", "check", "difference", "tolerance", ""], lines) + "\n")
    times = [
        [each.name, f"{each.processor:.3g}", f"{each.device:.3g}", each.unit]
        for _, each in results
        if isinstance(each, Time)
    ]
    click.echo(markdown(["time", "CPU", device, "unit"], times))
    failed = sum(not each.passed for _, each in checks)
    click.echo(f"\n{len(checks) - failed} of {len(checks)} checks passed")
    if missing:
        click.echo(missing, err=True)
    sys.exit(1 if failed else 2 if missing else 0)


if __name__ == "__main__":
    main()
