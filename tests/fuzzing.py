"""Loads and uses saved directories whose contents were changed, with checksums that fit.

Whatever a file holds, loading it or using it ends in an error of this package, or in a sane answer. Run as a
script, mutations are tried in other processes, so that one that crashes, hangs or fills memory is named:

    python tests/fuzzing.py --count 20000 --seed 0
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import CompresSAE, CompressaeError, CompressedIndex, SparseCodes
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.coding.model import Encoder
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.embedded.sizes import WINDOW
from compressae_index.npy import read_header
from compressae_index.persistence import _manifest_checksum, describe
from compressae_index.search.queries import MODES

Outcome: TypeAlias = Literal["refused", "refused in use", "sane"]
Array: TypeAlias = npt.NDArray[Any]
# Calls that use something, made one after the other.
Uses: TypeAlias = Iterator[Callable[[], Any]]

DIM, LATENTS, K, ROWS = 16, 48, 6, 150
# Seconds and bytes of memory that a mutation may take.
SECONDS = 5
MEMORY = 128 << 20

# Values that entries of a manifest are replaced by.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 5, 7, 149, 151, 255, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(1.5, 6.0, -0.0, float("nan"), float("inf"), 1e308, 2.0**-1000, 5e-324),
    *("", "x", "6", "cosine", "topk", "aligned", "\ud800", "nul\0", "a" * 300, "../x", "/", ".", ".."),
    *([], {}, [1], [None], {"a": 1}, [[[[]]]]),
)
DTYPES = (
    "<u1",
    "<i1",
    "<u2",
    ">u2",
    "<i4",
    "<u4",
    "<i8",
    ">i8",
    "<u8",
    "<f2",
    "<f4",
    "<f8",
    "|b1",
    "<c8",
    "|S3",
)
LENGTHS = (0, 1, 2, 7, 2**20, 2**31, 2**40, 2**62, 2**63, 2**70, -1)


class InsaneError(Exception):
    """An answer that no search may give."""


def attempt(kind: str, seed: int, folder: Path) -> Outcome:
    """Saves something of a kind, changes it as the seed says, loads it and uses it.

    Raises:
        Exception: what is none of the outcomes: an error of another tree, or an answer that is not sane.
    """
    rng = np.random.default_rng([zlib.crc32(kind.encode()), seed])
    path = folder / "copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sample(kind), path)
    leads_outside = _mutate(path, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = KINDS[kind].load(path, bool(rng.integers(2)))
        except CompressaeError:
            return "refused"
        if leads_outside:
            msg = "a file outside of the directory was taken"
            raise InsaneError(msg)
        uses = KINDS[kind].uses(loaded, path, rng)
        outcome: Outcome = "sane"
        while True:
            try:
                next(uses)()
            except StopIteration:
                return outcome
            except CompressaeError:
                outcome = "refused in use"


# What is saved


@cache
def some_model(mean: bool = True) -> CompresSAE:
    """A model that nothing was learned for."""
    rng = np.random.default_rng(1)
    atoms = normalize_rows(rng.standard_normal((LATENTS, DIM)).astype(np.float32))
    biases = np.zeros(LATENTS, np.float32)
    return CompresSAE(np.ascontiguousarray(atoms.T), biases, atoms, K, atoms[0] / 4 if mean else None)


@cache
def some_vectors() -> FloatArray:
    """Vectors of that model's size."""
    return np.random.default_rng(2).standard_normal((ROWS + 8, DIM)).astype(np.float32)


def _saved_index(path: Path, **settings: Any) -> None:
    model = some_model(mean=settings.get("metric") != "inner_product")
    settings = dict[str, Any](model=model, k=K, num_threads=1, progress=False) | settings
    index = CompressedIndex.build(some_vectors()[:ROWS], settings.pop("ids", None), **settings)
    if settings.get("forward") != "aligned":
        index.remove(index.ids[3:20])
    index.save(path)


def _referred(path: Path) -> Path:
    """The file that an index saved at a path refers to."""
    return path.with_name(f"{path.name}.npy")


def _saved_reference(path: Path) -> None:
    np.save(_referred(path), some_vectors()[:ROWS])
    settings: dict[str, Any] = {"k": K, "num_threads": 1, "progress": False}
    index = CompressedIndex.build(
        some_vectors()[:ROWS], model=some_model(), originals=_referred(path), **settings
    )
    index.remove(index.ids[3:20])
    index.compact()
    index.add(some_vectors()[ROWS:], num_threads=1)
    index.save(path)


def _saved_windows(path: Path) -> None:
    few = some_model().fold(some_model().encode(some_vectors()[:ROWS], 2, num_threads=1))
    codes = SparseCodes.concatenate([few] * (WINDOW // ROWS + 1))
    backend = EmbeddedBackend(LATENTS, 2).added([Encoded(codes)], 1)
    CompressedIndex(some_model(), documents=EmbeddedDocuments(backend)).save(path)


def _saved_codes(path: Path) -> None:
    encode_to_directory(some_model(), some_vectors()[:ROWS], path, k=K, shard_rows=60, num_threads=1)


def _train(path: Path, stage: str) -> Any:
    from compressae_index.training import TrainConfig, train

    refined: dict[str, Any] = {"refine_rounds": 4, "steps": 0, "round_rows": 64}
    stepped: dict[str, Any] = {"refine_rounds": 0, "steps": 2}
    settings = refined if stage == "refine" else stepped
    config = TrainConfig(k=2, n_latents=16, batch_size=32, device="cpu", **settings)
    return train(some_vectors()[:ROWS], config, checkpoint=path)


def _saved_faiss(path: Path, **settings: Any) -> None:
    from compressae_index.connectors.faiss import FaissIndex

    index = FaissIndex(some_model(), k=K, num_threads=1, **settings)
    names: Any = [f"item {i}" for i in range(ROWS)] if settings else np.arange(ROWS) * 3
    index.add(some_vectors()[:ROWS], names)
    index.remove(names[3:20])
    index.save(path)


def _saved_faiss_refined(path: Path, **settings: Any) -> None:
    from compressae_index.connectors.faiss import FaissIndex

    built = CompressedIndex.build(
        some_vectors()[:ROWS], model=some_model(), k=K, num_threads=1, progress=False, **settings
    )
    index = FaissIndex.from_index(built, progress=False)
    index.remove(index.ids[3:20])
    index.save(path)


def _saved_faiss_of(path: Path, **settings: Any) -> None:
    from compressae_index.connectors.faiss import FaissIndex

    fixed: dict[str, Any] = {"model": some_model(), "k": K, "num_threads": 1, "progress": False}
    FaissIndex.from_index(
        CompressedIndex.build(some_vectors()[:ROWS], **fixed, **settings), progress=False
    ).save(path)


def _saved_lists(path: Path, n: int) -> None:
    from compressae_index.connectors.faiss import lists

    index = lists.empty_lists(LATENTS)
    lists.append(index, some_model().encode(some_vectors()[:n], K, num_threads=1), 0)
    path.mkdir()
    lists.write_lists(index, path / "lists.faiss")


@cache
def _samples() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzzing-"))


@cache
def sample(kind: str) -> Path:
    """Something of a kind as it is saved. Not to be changed."""
    path = _samples() / kind.replace(" ", "-")
    KINDS[kind].save(path)
    return path


def forget_samples() -> None:
    """Removes what `sample` saved."""
    shutil.rmtree(_samples())
    for remembered in (_samples, sample, some_model):
        remembered.cache_clear()


# What is done with it


def _use_index(index: CompressedIndex, path: Path, rng: np.random.Generator) -> Uses:
    single: dict[str, Any] = {"num_threads": 1}
    for mode in MODES:
        yield partial(_search, index, mode=mode, **single)
        yield partial(_search, index, mode=mode, scoring="symmetric", **single)
    if index.documents.refines:
        yield partial(_search, index, refine=20, **single)
        yield partial(_search, index, mode="dense", refine=200, **single)
        yield lambda: _check_finite(index.documents.vectors(index.ids, index.model))
    yield partial(_search, index, candidates=30, **single)
    yield lambda: _search(index, filter=index.ids[::2], **single)
    some = index.ids[: min(len(index), 40)]
    yield lambda: _check_finite(index.codes(some).values)
    yield lambda: _check_finite(index.reconstruct(some))
    if len(some):
        yield lambda: _check_finite(np.array(index.explain(some_vectors()[0], some[0]).score))
    yield index.stats
    if not index.documents.are_strings:
        yield lambda: index.add(some_vectors()[ROWS:], **single)
    yield lambda: index.remove(index.ids[5:9])
    if len(index) < WINDOW or rng.random() < 0.1:
        yield partial(index.compact, **single)
    yield partial(_search, index, **single)
    yield lambda: index.save(path.with_name("again"))
    yield lambda: _search(CompressedIndex.load(path.with_name("again")), **single)


def _use_reference(index: CompressedIndex, path: Path, rng: np.random.Generator) -> Uses:
    yield from _use_index(index, path, rng)
    yield _check_reference


def _check_reference() -> None:
    if not np.array_equal(np.load(_referred(sample("index that refers to a file"))), some_vectors()[:ROWS]):
        msg = "the user's file was written to"
        raise InsaneError(msg)


def _search(index: Any, **options: Any) -> None:
    _check_hits(index, index.search(some_vectors()[:2], 7, **options))


def _check_hits(index: Any, found: Any) -> None:
    missing = np.isneginf(found.scores)
    nothing = found.ids == (None if found.ids.dtype == object else -1)
    if not (missing | np.isfinite(found.scores)).all() or not (missing == nothing).all():
        msg = f"scores {found.scores.tolist()} of ids {found.ids.tolist()}"
        raise InsaneError(msg)
    held = set(index.ids.tolist())
    for ids, absent in zip(found.ids, missing, strict=True):
        present = ids[~absent].tolist()
        if not held.issuperset(present) or len(set(present)) < len(present):
            msg = f"ids {present}"
            raise InsaneError(msg)


def _check_finite(array: Array) -> None:
    if not np.isfinite(array).all():
        msg = "values are not finite"
        raise InsaneError(msg)


def _use_model(model: CompresSAE, path: Path, _: np.random.Generator) -> Uses:
    vectors = some_vectors()[:5, : model.dim]

    def encode(encoder: Encoder) -> None:
        codes = model.encode(vectors, encoder=encoder, num_threads=1)
        _check_finite(model.decode(model.fold(codes, num_threads=1)))

    yield partial(encode, "pursuit")
    yield partial(encode, "topk")
    yield lambda: _check_finite(model.project(vectors, num_threads=1))
    yield lambda: model.save(path.with_name("again"))
    yield lambda: CompresSAE.load(path.with_name("again"))


def _use_codes(store: CodeStore, path: Path, _: np.random.Generator) -> Uses:
    for first in range(0, len(store), 50):
        yield partial(store.__getitem__, slice(first, first + 50))
    yield lambda: CompressedIndex.from_codes(store, some_model(), num_threads=1, progress=False)
    yield lambda: encode_to_directory(some_model(), some_vectors()[:ROWS], path, num_threads=1)


def _use_trained(result: Any, _: Path, __: np.random.Generator) -> Uses:
    yield lambda: _check_finite(result.model.decoder_w)
    yield lambda: _check_finite(result.losses)


def _use_faiss(index: Any, path: Path, _: np.random.Generator) -> Uses:
    ids = index.ids
    yield partial(_search, index, mode="sparse")
    yield partial(_search, index)
    if index.documents.refines:
        yield partial(_search, index, refine=20)
        yield lambda: _check_finite(index.documents.vectors(ids, index.model))
    yield lambda: _check_finite(index.codes(ids[:40]).values)
    yield lambda: _check_finite(index.reconstruct(ids[:40]))
    yield index.stats
    yield lambda: type(index).from_lists(index.faiss_index, some_model())
    yield lambda: index.remove(ids[5:9])
    yield lambda: index.save(path.with_name("again"))
    yield index.compact
    new: Any = ["new"] if index.documents.are_strings else [10**6]
    yield lambda: index.add(some_vectors()[ROWS : ROWS + 1], new)
    yield partial(_search, index)


def _use_lists(index: Any, _: Path, __: np.random.Generator) -> Uses:
    from compressae_index.connectors.faiss import FaissIndex, lists

    yield lambda: lists.stats(index)
    yield lambda: _check_finite(lists.read_codes(index).values)
    yield lambda: _search(FaissIndex.from_lists(index, some_model()))


def _load_faiss(path: Path, mmap: bool) -> Any:
    from compressae_index.connectors.faiss import FaissIndex

    return FaissIndex.load(path, mmap=mmap)


def _load_lists(path: Path, mmap: bool) -> Any:
    from compressae_index.connectors.faiss import lists

    return lists.read_lists(path / "lists.faiss", mmap=mmap)


class Kind(NamedTuple):
    """A kind of saved things."""

    save: Callable[[Path], None]
    load: Callable[[Path, bool], Any]
    uses: Callable[[Any, Path, np.random.Generator], Uses]


def _index_kind(**settings: Any) -> Kind:
    return Kind(
        lambda path: _saved_index(path, **settings),
        lambda path, mmap: CompressedIndex.load(path, mmap=mmap),
        _use_index,
    )


KINDS = {
    "index": _index_kind(ids=np.arange(ROWS)[::-1] * 2**40),
    "index of string ids": _index_kind(ids=[f"é{i}" * (i % 3) + str(i) for i in range(ROWS)]),
    "aligned index": _index_kind(forward="aligned", postings=4, ids=np.arange(5, ROWS + 5)),
    "index of inner products": _index_kind(metric="inner_product"),
    "index of residuals": _index_kind(residual_bits=3),
    "aligned index of residuals": _index_kind(residual_bits=1, forward="aligned", metric="inner_product"),
    "index of originals": _index_kind(originals="float16"),
    "index of originals and norms": _index_kind(originals="float32", metric="inner_product"),
    "index that refers to a file": Kind(
        _saved_reference, lambda path, mmap: CompressedIndex.load(path, mmap=mmap), _use_reference
    ),
    "index of two windows": Kind(
        _saved_windows, lambda path, mmap: CompressedIndex.load(path, mmap=mmap), _use_index
    ),
    "model": Kind(lambda path: some_model().save(path), lambda path, _: CompresSAE.load(path), _use_model),
    "codes": Kind(_saved_codes, lambda path, _: CodeStore.load(path), _use_codes),
    "checkpoint of rounds": Kind(
        lambda path: _train(path, "refine"), lambda path, _: _train(path, "refine"), _use_trained
    ),
    "checkpoint of steps": Kind(
        lambda path: _train(path, "steps"), lambda path, _: _train(path, "steps"), _use_trained
    ),
    "Faiss index": Kind(_saved_faiss, _load_faiss, _use_faiss),
    "Faiss index of string ids": Kind(
        lambda path: _saved_faiss(path, string_ids=True), _load_faiss, _use_faiss
    ),
    "Faiss index with residual codes": Kind(
        lambda path: _saved_faiss_refined(path, residual_bits=3), _load_faiss, _use_faiss
    ),
    "Faiss index with original vectors": Kind(
        lambda path: _saved_faiss_refined(path, originals="float16"), _load_faiss, _use_faiss
    ),
    "Faiss index of residuals": Kind(
        lambda path: _saved_faiss_of(path, residual_bits=3), _load_faiss, _use_faiss
    ),
    "Faiss index of originals": Kind(
        lambda path: _saved_faiss_of(path, originals="float16"), _load_faiss, _use_faiss
    ),
    "lists": Kind(lambda path: _saved_lists(path, ROWS), _load_lists, _use_lists),
    "few lists": Kind(lambda path: _saved_lists(path, 2), _load_lists, _use_lists),
}


# How it is changed


def _mutate(path: Path, rng: np.random.Generator) -> bool:
    """One to three changes; then all checksums fit, also the fingerprint of a model mostly.

    Returns:
        Whether a name in the directory leads out of it.
    """
    is_listed = (path / "manifest.json").exists()
    if is_listed and rng.random() < 0.05:
        _lead_outside(path, rng)
        return True
    for _ in range(1 + int(rng.integers(0, 3) * (rng.random() < 0.3))):
        if is_listed and rng.random() < 0.3:
            continue
        if files := [file for file in _files(path) if file.name != "manifest.json"]:
            _change_file(_chosen(files, rng), rng)
    if is_listed:
        change_entry = rng.random() < 0.4
        fit_checksums(
            path, lambda manifest: _change_entry(manifest, rng) if change_entry else None, rng.random() < 0.8
        )
    return False


def _lead_outside(path: Path, rng: np.random.Generator) -> None:
    """Moves something out of a directory, and leaves its new name or a link behind."""
    elsewhere = path.with_name("elsewhere")
    shutil.rmtree(elsewhere, ignore_errors=True)
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    if not folders or rng.random() < 0.4:
        elsewhere.mkdir()
        moved = _chosen(_files(path), rng)
        shutil.move(moved, elsewhere / "file")
        moved.symlink_to(elsewhere / "file")
        return
    shutil.move(folders[0], elsewhere)
    name = _chosen((folders[0].name, "../elsewhere", str(elsewhere), "./../elsewhere/"), rng)
    folders[0].symlink_to(elsewhere)
    fit_checksums(path, lambda manifest: manifest.update(data=name))


def _chosen(values: Any, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def fit_checksums(
    path: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, fingerprint: bool = True
) -> None:
    """Makes the manifest of a directory one of the files in it, and changes it, its own checksum excepted."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    if "data" in manifest:
        folder = path / manifest["data"]
        manifest["files"] = {file.name: describe(file) for file in _files(folder)}
        if fingerprint and (folder / "model.safetensors").exists():
            _fit_fingerprint(folder / "model.safetensors", manifest["meta"].get("model") or manifest["meta"])
    else:
        for number, shard in enumerate(manifest["shards"]):
            files = {name: path / f"{name}-{number:06d}.npy" for name in shard["files"]}
            shard["files"] |= {name: describe(file) for name, file in files.items() if file.exists()}
    change(manifest)
    manifest["checksum"] = _manifest_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def _fit_fingerprint(file: Path, meta: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
        weights = {name: tensors[name] for name in ("encoder_w", "encoder_b", "decoder_w")}
        model = CompresSAE(**weights, k=1, mean=tensors.get("mean"))
    except Exception:
        return  # no model, so it has no fingerprint
    meta |= {"fingerprint": model.fingerprint, "dim": model.dim, "n_latents": model.n_latents}


def _change_file(file: Path, rng: np.random.Generator) -> None:
    changes: list[Callable[[Path, np.random.Generator], None]] = [_flip, _cut]
    if file.suffix == ".npy":
        changes = [_flip, _cut, *[_change_values] * 6, *[_change_header] * 3, *[_change_array] * 3]
    if file.suffix == ".safetensors":
        changes = [_flip, _cut, *[_change_tensors] * 4]
    if file.suffix == ".faiss":
        changes = [_flip, _cut, *[_change_words] * 4, _put_elsewhere]
    _chosen(changes, rng)(file, rng)


def _flip(file: Path, rng: np.random.Generator) -> None:
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    if not len(content):
        return
    begin = int(rng.integers(len(content)))
    places = slice(begin, begin + int(_chosen((1, 1, 1, 2, 8, 64), rng)))
    content[places] = _chosen((0, 255, int(rng.integers(256)), content[places] ^ 1), rng)
    file.write_bytes(content.tobytes())


def _cut(file: Path, rng: np.random.Generator) -> None:
    content = file.read_bytes()
    if rng.random() < 0.3 or not content:
        file.write_bytes(content + bytes(int(rng.integers(1, 200))))
    elif rng.random() < 0.2:
        file.unlink()
    else:
        file.write_bytes(content[: int(rng.integers(len(content)))])


def _array(file: Path) -> Array | None:
    """The array in a file; None if an earlier change left nothing to read."""
    try:
        with file.open("rb") as handle:
            read_header(handle, file)  # so that no more is allocated than the file holds
            handle.seek(0)
            array: Array = np.lib.format.read_array(handle, allow_pickle=False)
            return array
    except Exception:
        return None


def _odd_numbers(array: Array, rng: np.random.Generator) -> Any:
    """A number of the array's dtype that is out of place in it."""
    if array.dtype.kind == "f":
        largest = float(np.finfo(array.dtype).max)
        return _chosen((np.nan, np.inf, -np.inf, 0.0, -1.0, 1.5, largest, largest / 1e3, 1e-40, -0.0), rng)
    if array.dtype.kind not in "iu":
        return array.flat[0]
    info = np.iinfo(array.dtype)
    odd = (
        info.min,
        info.max,
        info.max // 2,
        0,
        1,
        ROWS,
        ROWS - 1,
        LATENTS,
        0x7C00,
        int(rng.integers(0, 300)),
    )
    return min(max(int(_chosen(odd, rng)), info.min), info.max)


def _change_values(file: Path, rng: np.random.Generator) -> None:
    array = _array(file)
    if array is None or not array.size:
        return
    flat = array.reshape(-1)
    one, other = int(rng.integers(array.size)), int(rng.integers(array.size))
    many = slice(one, one + int(rng.integers(1, max(array.size // 4, 2))))
    how = int(rng.integers(8))
    if how == 0:
        flat[one], flat[other] = flat[other], flat[one]
    elif how == 1:
        flat[one] = flat[other]
    elif how == 2:
        flat[many] = _odd_numbers(array, rng)
    elif how == 3:
        flat[many] = flat[many][::-1].copy()
    elif how == 4:
        flat[:] = _odd_numbers(array, rng)
    elif how == 5:
        flat[many].view(np.uint8)[:] = 255
    elif how == 6 and array.dtype.kind in "iuf":
        flat[one] = flat[one] + array.dtype.type(1) if flat[one] < 100 else flat[one] - array.dtype.type(1)
    else:
        flat[one] = _odd_numbers(array, rng)
    np.save(file, array)


def _change_header(file: Path, rng: np.random.Generator) -> None:
    """Another shape, dtype or order over the same bytes, or a header of an odd length."""
    array = _array(file)
    if array is None:
        return
    header: dict[str, Any] = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    shape, how = list(array.shape), int(rng.integers(6))
    if how == 0 and shape:
        shape[int(rng.integers(len(shape)))] = int(_chosen(LENGTHS, rng))
    elif how == 1:
        shape = _chosen(
            (shape[::-1], [*shape, 1], [1, *shape], [int(array.size)], [], [0, 2**62], [True]), rng
        )
    elif how == 2:
        header["descr"] = _chosen((*DTYPES, "|O", "V0", [("a", "<u1")], ("<u1", (2,))), rng)
    elif how == 3:
        header["fortran_order"] = _chosen((True, 1, None, "no"), rng)
    elif how == 4:
        header = _chosen(({}, header | {"more": 1}, {"descr": header["descr"]}), rng)
    if "shape" in header:
        header["shape"] = tuple(shape)
    text = repr(header).encode() + b" " * int(rng.integers(0, 70)) + b"\n"
    if rng.random() < 0.5:  # as numpy does, so that the array is aligned
        text = text[:-1] + b" " * (-(len(text) + 10) % 64) + b"\n"
    magic = b"\x93NUMPY" + bytes(_chosen(((1, 0), (1, 0), (1, 0), (2, 0), (9, 9)), rng))
    length = len(text).to_bytes(4 if magic[6] == 2 else 2, "little")
    file.write_bytes(magic + length + text + array.tobytes())


def _change_array(file: Path, rng: np.random.Generator) -> None:
    """Rows more or fewer, another dtype, another shape, all values told right in the header."""
    array = _array(file)
    if array is None:
        return
    how = int(rng.integers(6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == 0 and array.ndim:
            array = array[: int(rng.integers(0, len(array) + 1))]
        elif how == 1 and array.ndim:
            array = np.concatenate([array, array[: int(_chosen((1, 1, 8, len(array)), rng))]])
        elif how == 2:
            array = array.astype(_chosen(DTYPES, rng))
        elif how == 3:
            array = np.asfortranarray(array.T) if rng.random() < 0.5 else array.reshape(-1)
        elif how == 4 and array.ndim:
            array = rng.permutation(array)
        else:
            array = np.zeros(_chosen(((), (0,), (1, 1), (ROWS, 0)), rng), array.dtype)
    np.save(file, array)


def _change_tensors(file: Path, rng: np.random.Generator) -> None:
    from safetensors.numpy import load_file, save_file

    try:
        tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    except Exception:
        return
    if not tensors:
        return
    name, how = _chosen(sorted(tensors), rng), int(rng.integers(6))
    tensor, one = tensors[name], int(rng.integers(max(tensors[name].size, 1)))
    if how <= 1 and tensor.size:
        tensor.reshape(-1)[one] = _odd_numbers(tensor, rng)
    elif how == 2:
        tensors[name] = tensor.astype(_chosen((np.float16, np.float64, np.int32), rng))
    elif how == 3:
        tensors[name] = np.ascontiguousarray(
            _chosen((tensor.T, tensor[:-1], tensor.reshape(-1), tensor[None]), rng)
        )
    elif how == 4:
        del tensors[name]
    else:
        tensors[_chosen(("mean", "more", "decoder_w"), rng)] = tensor * np.float32(
            _chosen((1, -1, 0, 1e30), rng)
        )
    save_file(tensors, file)


def _change_words(file: Path, rng: np.random.Generator) -> None:
    """Counts, lengths, rows and values of Faiss's lists, mostly of what is before the postings."""
    content = bytearray(file.read_bytes())
    first = max(content.find(b"ilar"), 0)
    where = (
        int(rng.integers(0, 60)),
        first + 4 * int(rng.integers(0, 8)),
        first + 16 + 8 * int(rng.integers(0, LATENTS)),
    )
    place = _chosen((*where, int(rng.integers(len(content) + 1))), rng)
    odd = (0, 1, 2, ROWS, 2**16, 2**20, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
    word = _chosen(odd, rng).to_bytes(8, "little")[: int(_chosen((8, 8, 4, 2), rng))]
    content[place : place + len(word)] = word
    file.write_bytes(bytes(content))


def _put_elsewhere(file: Path, rng: np.random.Generator) -> None:
    """Lists in a second file, as plain Faiss keeps them, with lists that are not within it."""
    import faiss

    try:
        index: Any = faiss.read_index(str(sample("lists") / "lists.faiss"))
        lists: Any = faiss.OnDiskInvertedLists(LATENTS, 2, str(file.with_suffix(".data")))
        lists.merge_from_1(index.invlists)
        index.replace_invlists(lists, False)
        index.ntotal = ROWS * K
        how = _chosen(("offset", "size", "capacity", "cut", "name"), rng)
        if how in ("offset", "size", "capacity"):
            odd = int(_chosen((2**20, 2**40, 2**62, 2**64 - 8), rng))
            change_place(lists, int(rng.integers(LATENTS)), **{how: odd})
        faiss.write_index(index, str(file))
        if how == "cut":
            os.truncate(file.with_suffix(".data"), int(rng.integers(1000)))
        if how == "name":
            file.with_suffix(".data").unlink()
    except RuntimeError:
        return


def change_place(lists: Any, number: int, **changes: int) -> None:
    """Changes where a list of an OnDiskInvertedLists is said to be in its file: offset, size or capacity."""
    import faiss

    library: Any = faiss
    changed = library.OnDiskOneListVector()
    for each in range(lists.nlist):
        place = lists.lists.at(each)
        for name, value in changes.items():
            if each == number:
                setattr(place, name, value)
        changed.push_back(place)
    lists.lists = changed


def _change_entry(manifest: dict[str, Any], rng: np.random.Generator) -> None:
    """Replaces, drops or adds an entry anywhere in a manifest."""
    holders: list[Any] = [manifest]
    for holder in holders:  # grows on the way
        nested = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in nested if isinstance(value, (dict, list)) and value]
    # Entries of files are many, and say nothing but checksums.
    holder = _chosen(holders[:3] if rng.random() < 0.7 else holders, rng)
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key, how = _chosen(keys, rng), int(rng.integers(8))
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[str(_chosen(ODD_VALUES, rng))] = holder[key]
    elif how == 2 and isinstance(holder[key], int):
        holder[key] += int(_chosen((-2, -1, 1, 2, 40), rng))
    else:
        holder[key] = _chosen(ODD_VALUES, rng)


# In other processes


def _run_chunk(kind: str, first: int, count: int, folder: Path, out: Path) -> None:
    """Tries seeds one after the other, and notes each before it is tried and how it ended."""
    faulthandler.enable()
    slow = 4 if "asan" in os.environ.get("LD_PRELOAD", "") else 1
    sample(kind)
    with out.open("w") as notes:
        for seed in range(first, first + count):
            notes.write(f"{seed}\t")
            notes.flush()
            faulthandler.dump_traceback_later(slow * SECONDS, exit=True)
            before = _begin_peak()
            try:
                outcome: str = attempt(kind, seed, folder)
            except Exception as error:
                outcome = f"FAILED {type(error).__name__}: {error}".replace("\n", " ")[:300]
            grown = _peak() - before
            if grown > slow * MEMORY:
                outcome = f"FAILED: {grown >> 20} MiB of memory"
            notes.write(f"{outcome}\n")
    faulthandler.cancel_dump_traceback_later()
    forget_samples()


def _begin_peak() -> int:
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0
    clear.write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _tried(kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Outcomes of seeds, and what is wrong. A process that ends early is followed by one for the rest."""
    outcomes: Counter[str] = Counter()
    wrong, end = [], first + count
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        notes = Path(folder) / "notes"
        while first < end:
            command = [
                sys.executable,
                "-P",
                __file__,
                "--chunk",
                kind,
                str(first),
                str(end - first),
                folder,
                str(notes),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": folder}
            )
            lines = (
                [line.partition("\t") for line in notes.read_text().splitlines()] if notes.exists() else []
            )
            for seed, _, outcome in lines:
                outcomes["FAILED" if outcome.startswith("FAILED") or not outcome else outcome] += 1
                if outcome.startswith("FAILED"):
                    wrong.append(f"{kind!r} {seed}: {outcome}")
            if done.returncode == 0:
                break
            wrong.append(
                f"{kind!r} {lines[-1][0] if lines else first}: rc {done.returncode}\n{done.stderr[-3000:]}"
            )
            first = int(lines[-1][0]) + 1 if lines else end
            notes.unlink(missing_ok=True)
    return outcomes, wrong


def main() -> int:
    """Tries mutations of each kind, and prints what came of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=0, help="the first one of each kind")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--chunk", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk:
        kind, first, count, folder, out = options.chunk
        _run_chunk(kind, int(first), int(count), Path(folder), Path(out))
        return 0
    each, at_once, end = -(-options.count // len(options.kinds)), 250, options.seed
    end += each
    chunks = [
        (kind, first, min(at_once, end - first))
        for first in range(options.seed, end, at_once)
        for kind in options.kinds
    ]
    total: dict[str, Counter[str]] = {kind: Counter() for kind in options.kinds}
    wrong: list[str] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for (kind, _, _), (outcomes, failures) in zip(
            chunks, pool.map(lambda chunk: _tried(*chunk), chunks), strict=True
        ):
            total[kind] += outcomes
            wrong += failures
            for failure in failures:
                print(failure, flush=True)
    for kind, outcomes in total.items():
        print(f"{kind:28} " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    print(f"{sum(map(Counter.total, total.values()))} mutations, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
