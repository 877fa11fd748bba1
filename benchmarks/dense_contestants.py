"""Ways to store dense vectors: the rows of the table that `run.py quality` measures.

Bytes are those that a vector takes in the structure that serves, ids where it needs them. Codebooks,
rotations and models are not counted, as they do not grow with the vectors; the resident memory holds them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from common import timed
from stores import FaissStore, IntArray, OurStore, Store, SvsStore, TurbovecStore

from compressae_index import CompresSAE, CompressedIndex, SparseCodes, train
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import Encoder
from compressae_index.coding.residual import RESIDUAL_BITS, make_room
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Codec, WithResiduals, codec_of
from compressae_index.embedded.codecs.lengths import NORM_BYTES
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.errors import InputError
from compressae_index.search.recall import recall
from compressae_index.sources.centred import less
from compressae_index.training.config import Preset, TrainConfig

KS = (10, 100)
VALUE_BITS = (4, 5, 6, 8)
# Nonzeros beside residual codes: more take long to encode, and more bits of the residual are worth more.
MOST_BESIDE_RESIDUALS = 64
# Of models that other packages train; ours takes as many, or less where rows are few.
N_LATENTS = 4096
# Limits of the cost of training rivals; Faiss's own are 65,536 rows, 25 iterations of PQ and 50 of OPQ.
TRAIN_ROWS, QUICK_TRAIN_ROWS = 20_000, 5000
PQ_ITERATIONS = 15
OPQ_ITERATIONS, OPQ_FIRST_ITERATIONS = 5, 5
BEAM = 5
# Queries that decide between inner products and distances.
CHOOSING = 250
# Largest budgets of OPQ and RQ, whose training takes long: RQ of 96 bytes, as long as all else together.
MOST_ROTATED, MOST_RESIDUAL = 96, 56
# The largest budget of our codes alone: pursuit of more nonzeros takes long.
MOST_ALONE = 256
# As many lists as 20,000 rows can train by Faiss's rule of 39 a list, and lists that are read.
LISTS = 512
NPROBES = (8, 32, 128)
HNSW_M = 16
EF_SEARCHES = (100, 400)
# Budgets of models that are measured by our engine: encoding by more nonzeros takes long.
FEW = (56, 96, 128)
# The paper's authors took 500 steps of 100,000 rows, on a GPU.
RECIPE_STEPS = 300


class LeftOut(Exception):  # noqa: N818
    """A contestant that cannot run here; the message says why."""


class Bench(NamedTuple):
    """The data that every contestant is built from and measured on."""

    vectors: FloatArray
    """Of unit norm where they are searched by cosines."""
    queries: FloatArray
    """Of unit norm, unless they are searched by distances."""
    metric: Metric
    truth: IntArray
    sample: FloatArray
    """Rows that our codes are chosen by, and turbovec calibrated."""
    training: FloatArray
    """Rows that other rivals learn from."""
    budgets: tuple[int, ...]
    """Bytes a vector."""
    preset: Preset
    threads: int

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return int(self.vectors.shape[1])

    def at(self, budgets: Sequence[int]) -> Bench:
        """With those of its budgets alone."""
        return self._replace(budgets=tuple(budget for budget in self.budgets if budget in budgets))

    @property
    def norm_bytes(self) -> int:
        """Bytes of a norm beside a code of ours."""
        return NORM_BYTES if self.metric == "l2" else 0

    def recall(self, found: npt.NDArray[Any]) -> dict[int, float]:
        """recall@k by k."""
        return {k: recall(found, self.truth, k) for k in KS}


class Built(NamedTuple):
    """A way to store vectors and to search them, ready to be measured."""

    family: str
    name: str
    store: Store
    row_bytes: float
    train_seconds: float
    fill_seconds: float
    found: IntArray | None = None
    """Its results for all queries, if they are known; otherwise `Store.search` is asked."""


class Contestant(NamedTuple):
    """A row of the table."""

    make: Callable[[Bench], Iterator[Built]]
    quick: bool = False
    """Takes part in a quick run."""


# Ours, and models of others whose codes our engine stores.


class Form(NamedTuple):
    """What is stored of each vector."""

    k: int
    value_bits: int
    residual_bits: int = 0

    def __str__(self) -> str:
        residual = f", {self.residual_bits} bits a dimension" if self.residual_bits else ""
        return f"k={self.k}, {self.value_bits} bits{residual}"

    def codec(self, dim: int) -> Codec:
        """The codec, of vectors of `dim` dimensions."""
        return codec_of("packed", value_bits=self.value_bits, dim=dim, residual_bits=self.residual_bits)

    def no_less_than(self, other: Form) -> bool:
        """Whether it has all of another form's nonzeros and bits."""
        return all(own >= one for own, one in zip(self, other, strict=True))


def fullest(n_latents: int, dim: int, value_bits: int, residual_bits: int, budget: int) -> Form:
    """The form of the most nonzeros whose rows take at most so many bytes; of 0 if none does."""
    most = min(n_latents, MOST_BESIDE_RESIDUALS if residual_bits else n_latents)
    codec = Form(0, value_bits, residual_bits).codec(dim)
    k = 0
    while k < most and codec.row_bytes(n_latents, k + 1) <= budget:
        k += 1
    return Form(k, value_bits, residual_bits)


def forms(n_latents: int, dim: int, residual_bits: Sequence[int], budget: int) -> list[Form]:
    """Forms that fill a budget, without those that another has no less of in every respect."""
    filling = [
        fullest(n_latents, dim, bits, residual, budget) for residual in residual_bits for bits in VALUE_BITS
    ]
    filling = [form for form in filling if form.k]
    return [
        form for form in filling if not any(other != form and other.no_less_than(form) for other in filling)
    ]


def cosine(model: CompresSAE, sample: FloatArray, form: Form, encoder: Encoder, threads: int) -> float:
    """Mean cosine of unit rows and their reconstructions, of which a residual code is part."""
    codes = model.encode(sample, form.k, encoder=encoder, num_threads=threads)
    targets = sample if model.mean is None else sample - model.mean
    if form.residual_bits:
        codes = make_room(model, codes, targets, encoder, form.residual_bits, threads)
    else:
        codes = model.fold(codes, num_threads=threads)
    codec = form.codec(model.dim).fitted(codes)
    arrays = codec.pack(codes, threads, model.decoder_w, targets)
    rows = model.decode(codec.unpack(arrays, model.n_latents, form.k, threads))
    if isinstance(codec, WithResiduals):
        rows += codec.residuals(arrays, threads)
    return float((normalize_rows(rows) * sample).sum(axis=1).mean())


class Way(NamedTuple):
    """A way to search an index of ours."""

    label: str
    mode: str
    scoring: str = "asymmetric"


ASYMMETRIC = (Way("dense", "dense"), Way("two_stage", "two_stage"), Way("sparse", "sparse"))
SYMMETRIC = (Way("symmetric dense", "dense", "symmetric"), Way("symmetric sparse", "sparse", "symmetric"))


def searched(
    family: str, name: str, index: CompressedIndex, ways: tuple[Way, ...], seconds: tuple[float, float]
) -> Iterator[Built]:
    """An index in several ways."""
    by_mode = index.stats().bytes_by_mode
    for way in ways:
        store = OurStore(index, {"mode": way.mode, "scoring": way.scoring})
        yield Built(f"{family}, {way.label}", name, store, by_mode[way.mode], *seconds)


def coded(
    family: str,
    model: CompresSAE,
    encoder: Encoder,
    ways: tuple[Way, ...],
    train_seconds: float,
    bench: Bench,
    residual_bits: Sequence[int] = (0,),
) -> Iterator[Built]:
    """Codes by a model: at each budget the form that fits it whose reconstructions are best."""
    seen = less(bench.sample, model.center) if bench.metric == "l2" else bench.sample
    directions = model if model.center is None else model.centred_at(None)
    measure = partial(cosine, directions, normalize_rows(seen), encoder=encoder, threads=bench.threads)
    for budget in bench.budgets:
        filling = forms(model.n_latents, model.dim, residual_bits, budget - bench.norm_bytes)
        form = max(filling, key=lambda one: measure(form=one))
        build = partial(
            CompressedIndex.build,
            bench.vectors,
            model=model,
            encoder=encoder,
            metric=bench.metric,
            num_threads=bench.threads,
            progress=False,
            **form._asdict(),
        )
        index, fill_seconds = timed(build)
        yield from searched(family, str(form), index, ways, (train_seconds, fill_seconds))


def trained(bench: Bench) -> tuple[CompresSAE, float]:
    """A model by our preset, and the seconds that it took."""
    config = TrainConfig.preset(bench.preset)
    result, seconds = timed(partial(train, bench.vectors, config, metric=bench.metric))
    return result.model, seconds


def ours(bench: Bench) -> Iterator[Built]:
    """Our dictionary, pursuit codes and residual codes; `two_stage` also as it is planned for a budget."""
    model, seconds = trained(bench)
    yield from coded("ours", model, "pursuit", ASYMMETRIC, seconds, bench, RESIDUAL_BITS)
    for budget in bench.budgets:
        build = partial(CompressedIndex.build, bench.vectors, model=model, metric=bench.metric)
        try:
            index, fill_seconds = timed(
                partial(build, bytes_per_vector=budget, num_threads=bench.threads, progress=False)
            )
        except InputError:  # too small for posting lists
            continue
        plan = index.plan
        assert plan is not None
        name = f"{Form(plan.k, plan.value_bits, plan.residual_bits)}, {plan.postings} postings"
        yield from searched("ours", name, index, ASYMMETRIC[1:2], (seconds, fill_seconds))


def ours_alone(bench: Bench) -> Iterator[Built]:
    """Our codes without residual codes, compared as the paper does, too."""
    model, seconds = trained(bench)
    few = bench.at([budget for budget in bench.budgets if budget <= MOST_ALONE])
    yield from coded("ours, codes alone", model, "pursuit", ASYMMETRIC + SYMMETRIC, seconds, few)


def recipe(bench: Bench, k: int) -> CompresSAE:
    """A model by the recipe of the paper: random weights, encoder and decoder trained by its loss.

    Its authors released a model without a training loop: learning rate, warm-up, batches of 1,024 rows and
    the choice of the best weights by held-out rows are ours.
    """
    config = TrainConfig(k=k, initialization="random", refine_rounds=0, steps=RECIPE_STEPS, center=False)
    return train(bench.vectors, config, metric=bench.metric).model


def upstream(bench: Bench) -> Iterator[Built]:
    """The paper's recipe and its single pass to encode, compared as the paper does, and by our scoring."""
    model, seconds = timed(partial(recipe, bench, 32))
    yield from coded("CompresSAE recipe", model, "topk", SYMMETRIC + ASYMMETRIC[:1], seconds, bench.at(FEW))


def compresso(bench: Bench) -> Iterator[Built]:
    """compresso-pytorch with its defaults but k: its codes, packed and searched by our engine.

    Rows of its decoder have any norm. Ours have norm one, so the values of its codes take theirs. It takes no
    part where norms of vectors count, which it does not keep.
    """
    if bench.metric != "cosine":
        return
    module = importlib.import_module("compresso")
    trainer = module.TopKSAETrainer(module.TopKSAEConfig(hidden_dim=N_LATENTS, k=32, show_progress=False))
    _, train_seconds = timed(partial(trainer.fit, bench.vectors))

    def fill() -> CompressedIndex:
        state = {name: value.detach().numpy() for name, value in trainer.sae.state_dict().items()}
        decoder = np.ascontiguousarray(state["decoder.weight"].T)
        norms = np.linalg.norm(decoder, axis=1)
        model = CompresSAE(
            np.ascontiguousarray(state["encoder.weight"].T),
            state["encoder.bias"],
            normalize_rows(decoder),
            k=32,
        )
        codes = model.encode(bench.vectors, encoder="topk", num_threads=bench.threads)
        codes = SparseCodes(codes.latents, codes.values * norms[codes.latents], codes.n_latents)
        backend = EmbeddedBackend(model.n_latents, 32)
        backend = backend.added([Encoded(model.fold(codes))], bench.threads, model)
        return CompressedIndex(model, encoder="topk", documents=EmbeddedDocuments(backend))

    index, fill_seconds = timed(fill)
    yield from searched(
        "compresso-pytorch", "k=32, 6 bits", index, ASYMMETRIC[:1], (train_seconds, fill_seconds)
    )


def random_projection(bench: Bench) -> Iterator[Built]:
    """Random directions as dictionary and encoder, which know nothing of the data."""
    rng = np.random.default_rng(0)
    atoms = normalize_rows(rng.standard_normal((N_LATENTS, bench.dim), dtype=np.float32))
    model = CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(N_LATENTS, np.float32), atoms, k=1)
    yield from coded("random projection", model, "topk", ASYMMETRIC[:1], 0.0, bench.at(FEW))


# Quantisers of Faiss.


def faiss_metric(metric: Metric) -> int:
    """What Faiss compares by."""
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def factory(description: str, dim: int, metric: Metric = "cosine") -> Any:
    """An index of Faiss by its factory."""
    return faiss.index_factory(dim, description, faiss_metric(metric))


def truncated(dims: int, quantizer: int | None, metric: Metric, dim: int) -> Any:
    """The first components, as models that were trained for it allow; for cosines, of norm one again."""
    inner: Any = faiss.IndexFlat(dims, faiss_metric(metric))
    if quantizer is not None:
        inner = faiss.IndexScalarQuantizer(dims, quantizer, faiss_metric(metric))
    index = faiss.IndexPreTransform(inner)
    if metric == "cosine":
        index.prepend_transform(faiss.NormalizationTransform(dims, 2.0))
    uniform: Any = False
    index.prepend_transform(faiss.RemapDimensionsTransform(dim, dims, uniform))
    return index


def rotated(quantizer: int, metric: Metric, dim: int) -> Any:
    """A random rotation before a scalar quantiser, as TurboQuant takes it."""
    inner = faiss.IndexScalarQuantizer(dim, quantizer, faiss_metric(metric))
    return faiss.IndexPreTransform(faiss.RandomRotationMatrix(dim, dim), inner)


def inside(index: Any) -> Any:
    """The index behind transformations."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def better_of_decoded(decoded: FloatArray, bench: Bench) -> tuple[str, IntArray]:
    """Neighbours by inner products of decoded vectors, or by distances if the first queries favour these."""

    def found(metric: int, queries: int | None) -> IntArray:
        rows: IntArray = faiss.knn(bench.queries[:queries], decoded, KS[-1], metric=metric)[1]
        return rows

    metrics = {"IP": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}
    if bench.metric != "cosine":  # whose order is that of distances between unit vectors
        metrics.pop("IP" if bench.metric == "l2" else "L2")
    shares = {
        name: recall(found(metric, CHOOSING), bench.truth[:CHOOSING], KS[-1])
        for name, metric in metrics.items()
    }
    better = max(shares, key=lambda name: shares[name])
    return better, found(metrics[better], None)


def quantized(family: str, name: str, make: Callable[[int], Any], bench: Bench) -> Iterator[Built]:
    """A quantiser of Faiss, if it fits the largest budget.

    One that decodes its codes is ranked by inner products or by distances, whatever is better; its
    milliseconds are those of its own search by inner products.
    """
    index = make(bench.dim)
    size = index.sa_code_size()
    if size > max(bench.budgets):
        return
    inner = inside(index)
    if isinstance(inner, faiss.IndexResidualQuantizer):
        inner.rq.max_beam_size = BEAM
        inner.rq.train_type = faiss.ResidualQuantizer.Train_default
        inner.rq.use_beam_LUT = 1
    if isinstance(inner, faiss.IndexPQ):
        inner.pq.cp.niter = PQ_ITERATIONS
    if family == "Faiss OPQ":
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = OPQ_ITERATIONS
        rotation.niter_pq_0 = OPQ_FIRST_ITERATIONS
        rotation.max_train_points = TRAIN_ROWS
    faiss.omp_set_num_threads(bench.threads)
    _, train_seconds = timed(partial(index.train, bench.training))
    _, fill_seconds = timed(partial(index.add, bench.vectors))
    found = None
    if not isinstance(inner, faiss.IndexRaBitQ):  # whose scores use more than what it decodes to
        metric, found = better_of_decoded(index.sa_decode(index.sa_encode(bench.vectors)), bench)
        name = f"{name} ({metric})"
    yield Built(family, name, FaissStore(index), size, train_seconds, fill_seconds, found)


def split(dim: int, budget: int) -> tuple[int, int]:
    """Sub-vectors for product quantisation, at most one a byte, and the dimension that rows are padded to."""
    parts = min(budget, dim)
    # Padding must not fill whole sub-vectors.
    while -(-dim // parts) * (parts - 1) >= dim:
        parts -= 1
    return parts, -(-dim // parts) * parts


def product_quantizers(bench: Bench) -> Iterator[Built]:
    """PQ of one sub-vector a byte; with one a component, it would be scalar quantisation.

    "np" spares the training for Hamming distances, which nothing here uses.
    """
    splits = {split(bench.dim, budget): None for budget in bench.budgets if budget < bench.dim}
    for parts, padded in splits:
        pad = "" if padded == bench.dim else f"Pad{padded},"
        yield from quantized(
            "Faiss PQ", f"PQ{parts}x8", partial(factory, f"{pad}PQ{parts}x8np", metric=bench.metric), bench
        )


def rotated_product_quantizers(bench: Bench) -> Iterator[Built]:
    """OPQ."""
    for budget in bench.budgets:
        if budget <= MOST_ROTATED:
            parts = min(budget, bench.dim)
            key = f"OPQ{parts}_{bench.dim // parts * parts},PQ{parts}x8np"
            make = partial(factory, key, metric=bench.metric)
            yield from quantized("Faiss OPQ", f"OPQ{parts}x8", make, bench)


def residual_quantizers(bench: Bench) -> Iterator[Built]:
    """RQ."""
    for budget in bench.budgets:
        if budget <= MOST_RESIDUAL:
            yield from quantized(
                "Faiss RQ", f"RQ{budget}x8", partial(factory, f"RQ{budget}x8", metric=bench.metric), bench
            )


def truncations(bench: Bench) -> Iterator[Built]:
    """First components, or principal ones, in 8, 6 and 4 bits."""
    for bits in (8, 6, 4):
        kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit")
        for dims in sorted({min(8 * budget // bits, bench.dim) for budget in bench.budgets}):
            first = partial(truncated, dims, kind, bench.metric)
            yield from quantized(f"truncation, SQ{bits}", f"first {dims}", first, bench)
            make = partial(factory, f"PCAR{dims},SQ{bits}", metric=bench.metric)
            yield from quantized(f"PCA, SQ{bits}", f"PCAR{dims}", make, bench)


def rabitq(bench: Bench) -> Iterator[Built]:
    """RaBitQ of 1 to 8 bits."""
    for bits in range(1, 9):
        make = partial(factory, f"RR{bench.dim},RaBitQ{bits if bits > 1 else ''}", metric=bench.metric)
        yield from quantized("Faiss RaBitQ", f"RaBitQ, {bits} bits", make, bench)


def turboquant(bench: Bench) -> Iterator[Built]:
    """TurboQuant of Faiss, whose EDEN finds no more with 2 to 4 bits than with one, and is left out."""
    if bench.metric != "cosine":
        msg = "the levels of TurboQuant are those of unit vectors"
        raise LeftOut(msg)
    for bits in range(1, 9):
        for suffix in ("tqmse", "tq"):
            kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit_{suffix}", None)
            # The kernels of the others decode very slowly, and these score worse than tqmse of as many bytes.
            if kind is not None and (suffix != "tq" or bits <= 2):
                yield from quantized(
                    "Faiss TurboQuant", f"QT_{bits}bit_{suffix}", partial(rotated, kind, bench.metric), bench
                )


def scalar_quantizers(bench: Bench) -> Iterator[Built]:
    """SQ of 4, 6 and 8 bits."""
    for bits in (4, 6, 8):
        yield from quantized(
            "Faiss SQ", f"SQ{bits}", partial(factory, f"SQ{bits}", metric=bench.metric), bench
        )


def uncompressed(bench: Bench) -> Iterator[Built]:
    """All of a vector, in single and in half precision."""
    for name, description, size in (("float32", "Flat", 4), ("float16", "SQfp16", 2)):
        index = factory(description, bench.dim, bench.metric)
        _, fill_seconds = timed(partial(index.add, bench.vectors))
        yield Built("exact", name, FaissStore(index), size * bench.dim, 0.0, fill_seconds)


def inverted_file(bench: Bench) -> Iterator[Built]:
    """IVF of product quantisation in 4 bits, by fast scans; each code has an id of 8 bytes."""
    fitting = {
        max(parts for parts in range(1, bench.dim + 1) if bench.dim % parts == 0 and parts / 2 + 8 <= budget)
        for budget in bench.budgets
    }
    for parts in sorted(fitting):
        index = factory(f"IVF{LISTS},PQ{parts}x4fs", bench.dim, bench.metric)
        _, train_seconds = timed(partial(index.train, bench.training))
        _, fill_seconds = timed(partial(index.add, bench.vectors))
        for nprobe in NPROBES:
            tuned: Any = faiss.clone_index(index)
            tuned.nprobe = nprobe
            name = f"PQ{parts}x4fs, nprobe {nprobe} of {LISTS}"
            yield Built("Faiss IVF-PQ", name, FaissStore(tuned), parts / 2 + 8, train_seconds, fill_seconds)


def graphs(bench: Bench) -> Iterator[Built]:
    """HNSW over scalar quantisation; bytes are those of its file."""
    for quantizer in ("SQ8", "SQ4"):
        index = factory(f"HNSW{HNSW_M},{quantizer}", bench.dim, bench.metric)
        _, train_seconds = timed(partial(index.train, bench.training))
        _, fill_seconds = timed(partial(index.add, bench.vectors))
        size = len(faiss.serialize_index(index)) / len(bench.vectors)
        for ef in EF_SEARCHES:
            tuned: Any = faiss.clone_index(index)
            tuned.hnsw.efSearch = ef
            name = f"HNSW{HNSW_M}, {quantizer}, ef {ef}"
            yield Built("Faiss HNSW", name, FaissStore(tuned), size, train_seconds, fill_seconds)


# Other packages.


def turbovec(bench: Bench) -> Iterator[Built]:
    """The package turbovec, calibrated as its documentation advises."""
    if bench.metric == "l2":
        msg = "turbovec compares by inner products only"
        raise LeftOut(msg)
    for bits in (2, 4):
        if bench.dim % 8 == 0 and bench.dim * bits // 8 < max(bench.budgets):
            yield turbovec_of(bits, bench.vectors, bench.sample)


def turbovec_of(bits: int, vectors: FloatArray, sample: FloatArray) -> Built:
    """An index of turbovec with so many bits a component, calibrated on a sample."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # read as it is loaded
    index = importlib.import_module("turbovec").TurboQuantIndex(dim=vectors.shape[1], bit_width=bits)
    half = len(vectors) // 2
    _, train_seconds = timed(partial(index.calibrate, sample))
    _, first = timed(partial(index.add, vectors[:half]))
    size = len(index.to_bytes())
    _, second = timed(partial(index.add, vectors[half:]))
    stored = (len(index.to_bytes()) - size) / (len(vectors) - half)
    return Built("turbovec", f"{bits} bits", TurbovecStore(index), stored, train_seconds, first + second)


def require_lvq() -> None:
    """Raises LeftOut where SVS would end the process, as it does not like the processor."""
    if "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        msg = "SVS offers LVQ on processors of Intel only"
        raise LeftOut(msg)


def lvq(bench: Bench) -> Iterator[Built]:
    """Locally adaptive quantisation of Intel's SVS; each code has a half-precision scale and offset."""
    svs = importlib.import_module("svs")
    require_lvq()
    for bits in ((8, 0), (4, 4)):
        size = bench.dim * sum(bits) / 8 + 4
        if size > max(bench.budgets):
            continue
        with TemporaryDirectory() as folder:
            path = str(Path(folder, "vectors.fvecs"))
            svs.write_vecs(bench.vectors, path)
            by_distance = bench.metric == "l2"
            store, fill_seconds = timed(partial(SvsStore.open, path, bench.vectors, bits, by_distance))
        name = f"LVQ{bits[0]}" + (f"x{bits[1]}" if bits[1] else "")
        yield Built("SVS LVQ", name, store, size, 0.0, fill_seconds)


CONTESTANTS = {
    "ours": Contestant(ours, quick=True),
    "ours alone": Contestant(ours_alone),
    "CompresSAE recipe": Contestant(upstream),
    "compresso-pytorch": Contestant(compresso),
    "random projection": Contestant(random_projection, quick=True),
    "exact": Contestant(uncompressed, quick=True),
    "truncation": Contestant(truncations, quick=True),
    "PQ": Contestant(product_quantizers, quick=True),
    "OPQ": Contestant(rotated_product_quantizers),
    "RQ": Contestant(residual_quantizers),
    "RaBitQ": Contestant(rabitq, quick=True),
    "TurboQuant": Contestant(turboquant, quick=True),
    "SQ": Contestant(scalar_quantizers, quick=True),
    "IVF-PQ": Contestant(inverted_file, quick=True),
    "HNSW": Contestant(graphs),
    "turbovec": Contestant(turbovec, quick=True),
    "SVS": Contestant(lvq),
}
