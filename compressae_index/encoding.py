"""Encoding of more vectors than fit in memory, to a directory of codes, that goes on after it was stopped.

    path/
      manifest.json         settings, fingerprint of the model, checksums of the finished shards
      latents-000000.npy    (m, k) uint16
      values-000000.npy     (m, k) float32, folded
      ...

Values are float32, 6 bytes a nonzero in all, so that an index built from these codes is the one that encoding
into it would give. Shards are written aside and renamed, then the manifest is replaced: what it names is
whole, whenever the process ends.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from compressae_index import persistence
from compressae_index.checks import check_choice, check_int, check_threads, check_vectors
from compressae_index.codes import SparseCodes
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.metric import RowScale
from compressae_index.model import ENCODERS, CompresSAE, Encoder
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, VectorSource, open_vectors
from compressae_index.sources.base import Concatenated
from compressae_index.sources.flat import open_npy

if sys.platform != "win32":
    import fcntl

# Rows a shard, which is what a stop can cost.
SHARD_ROWS = 262_144

_KIND = "codes"
_PARTS = {"latents": "<u2", "values": "<f4"}
_ASIDE = ".writing-"
# Rows by which a shard's embeddings are recognised, as reading all of them again would take long.
_WITNESS_ROWS = 4


class CodeStore:
    """Folded codes in a directory, of which only the slices that are read take memory.

    `len` gives the number of rows, and a slice gives `SparseCodes`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """From a complete directory, whose files are not checked here; see `load`."""
        meta = manifest["meta"]
        self.path = path
        self._meta: dict[str, Any] = meta
        self.n_latents: int = meta["n_latents"]
        self.k: int = meta["k"]
        self.encoder: Encoder = meta["encoder"]
        self.fingerprint: str = meta["fingerprint"]
        """Of the model that encoded."""
        self.shard_rows: int = meta["shard_rows"]
        self._n: int = meta["n"]
        paths = {name: [_shard_path(path, name, i) for i in range(_n_shards(meta))] for name in _PARTS}
        lengths = [rows.stop - rows.start for rows in (_rows_of(meta, i) for i in range(_n_shards(meta)))]
        self._latents = Concatenated(lengths, self.k, lambda i: open_npy(paths["latents"][i]))
        self._values = Concatenated(lengths, self.k, lambda i: open_npy(paths["values"][i]))

    @classmethod
    def load(cls, path: str | Path) -> CodeStore:
        """Opens what `encode_to_directory` finished, and checks all of it by reading it once.

        Raises:
            FormatError: the directory is missing, foreign, unfinished or damaged.
        """
        path = Path(path)
        manifest = persistence.read_manifest(path, _KIND)
        with persistence.reading(str(path)):
            shards = manifest["shards"]
            finished = sum(entry is not None for entry in shards)
            if finished < _n_shards(manifest["meta"]):
                msg = (
                    f"{path} holds {finished} of {_n_shards(manifest['meta'])} shards: "
                    "encode again with the same settings to finish it"
                )
                raise FormatError(msg)
            for number, entry in enumerate(shards):
                _verify_shard(path, number, entry)
            return cls(path, manifest)

    def __len__(self) -> int:
        return self._n

    def manifest(self) -> dict[str, Any]:
        """What the codes are, as it is stored beside them."""
        return self._meta

    def __getitem__(self, rows: slice) -> SparseCodes:
        """Codes of a slice of rows, of step 1.

        Raises:
            InputError: the slice has a step.
            FormatError: a file was cut short since it was opened.
        """
        latents, values = self._latents[rows], self._values[rows]
        if not len(latents):
            latents, values = np.empty((0, self.k), np.uint16), np.empty((0, self.k), np.float32)
        return SparseCodes(latents, values, self.n_latents)


def encode_to_directory(
    model: CompresSAE,
    vectors: VectorSource,
    output: str | Path,
    *,
    k: int | None = None,
    encoder: Encoder = "pursuit",
    shard_rows: int | None = None,
    num_threads: int | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> CodeStore:
    """Writes the folded codes of vectors to a directory, in shards.

    Run again with the same arguments after it was stopped, it keeps the finished shards whose files match
    their checksums, and warns of those that do not and encodes them again. Memory does not grow with n.

    Args:
        model: the model to encode with.
        vectors: (n, dim), any source of `open_vectors`.
        output: a directory: new, empty, or one that this function began.
        k: nonzeros a code; the model's own by default.
        encoder: "pursuit", or "topk" for the paper's single pass.
        shard_rows: rows a shard; by default 262,144, or what the directory was begun with.
        num_threads: threads of the engine; all by default.
        device: as for `CompresSAE.encode`; codes of another device may differ in the last bits.
        progress: show progress bars.

    Returns:
        The codes, to slice.

    Raises:
        InputError: bad rows, another dimension, k out of range, other embeddings than before. Shards that
            were finished stay.
        FormatError: the directory is foreign, damaged, was begun with other settings, or another process
            writes to it.
    """
    opened, path = open_vectors(vectors), Path(output)
    if opened.shape[1] != model.dim:
        msg = f"embeddings have dimension {opened.shape[1]}, expected {model.dim}"
        raise DimensionError(msg)
    meta = {
        "n": opened.shape[0],
        "dim": model.dim,
        "n_latents": model.n_latents,
        "fingerprint": model.fingerprint,
        "k": model.nonzeros(k, check_choice(encoder, "encoder", ENCODERS)),
        "encoder": encoder,
        "shard_rows": None if shard_rows is None else check_int(shard_rows, "shard_rows", 1),
    }
    threads = check_threads(num_threads)
    persistence.check_parents(path)
    if path.exists() and not path.is_dir():
        msg = f"{path} is not a directory"
        raise FormatError(msg)
    created = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            manifest = _begun(path, meta)
            _keep_intact(path, manifest, opened, progress)
            _encode_missing(path, manifest, model, opened, threads, device, progress)
    finally:
        if created:
            with suppress(OSError):
                path.rmdir()  # succeeds only where nothing was written
    return CodeStore(path, manifest)


def encoded_chunks(
    model: CompresSAE,
    vectors: Vectors,
    k: int,
    encoder: Encoder,
    num_threads: int | None,
    *,
    device: str = "cpu",
    begin: int = 0,
    end: int | None = None,
    scale: RowScale | None = None,
) -> Iterator[SparseCodes]:
    """Folded codes of rows begin .. end, at most CHUNK_ROWS at a time; times what `scale` says of the rows.

    Raises:
        InputError: bad rows, named by their number in `vectors`.
    """
    end = vectors.shape[0] if end is None else end
    for first in range(begin, end, CHUNK_ROWS):
        rows = check_vectors(vectors[first : min(first + CHUNK_ROWS, end)], dim=model.dim, first_row=first)
        factors = None if scale is None else scale.of_rows(rows, first)
        codes = model.encode(rows, k, encoder=encoder, num_threads=num_threads, device=device)
        codes = model.fold(codes, num_threads=num_threads)
        yield codes if factors is None else codes.scaled(factors)


def _begun(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a directory that was begun with these settings, or of one begun here."""
    if all(entry.name.startswith(_ASIDE) for entry in path.iterdir()):
        meta["shard_rows"] = meta["shard_rows"] or SHARD_ROWS
        return {"meta": meta, "shards": [None] * _n_shards(meta)}
    manifest = persistence.read_manifest(path, _KIND)
    with persistence.reading(str(path)):
        before, shards = manifest["meta"], manifest["shards"]
        for name, value in meta.items():
            if value not in (before[name], None):
                msg = (
                    f"{path} was begun with {name} = {before[name]}, now it is {value}: "
                    "use the same settings, or another directory"
                )
                raise FormatError(msg)
        if len(shards) != _n_shards(before):
            msg = f"{len(shards)} shards for {before['n']} rows"
            raise FormatError(f"{path / 'manifest.json'} is damaged: {msg}")
        return {"meta": before, "shards": shards}


def _keep_intact(path: Path, manifest: dict[str, Any], vectors: Vectors, progress: bool) -> None:
    """Strikes finished shards from the manifest whose files are not what it says, with a warning."""
    shards = manifest["shards"]
    finished = [number for number, entry in enumerate(shards) if entry is not None]
    with track(len(finished), "checking finished shards", enabled=progress, unit="shards") as advance:
        for number in finished:
            rows = _rows_of(manifest["meta"], number)
            if shards[number]["embeddings"] != _witness(vectors, rows):
                msg = (
                    f"{path} holds codes of other embeddings: rows {rows.start} .. {rows.stop - 1} changed; "
                    "use another directory"
                )
                raise InputError(msg)
            try:
                _verify_shard(path, number, shards[number])
            except FormatError as error:
                warnings.warn(f"{error}; its rows are encoded again", stacklevel=3)
                shards[number] = None
            advance(1)


def _encode_missing(
    path: Path,
    manifest: dict[str, Any],
    model: CompresSAE,
    vectors: Vectors,
    num_threads: int,
    device: str,
    progress: bool,
) -> None:
    meta, shards = manifest["meta"], manifest["shards"]
    missing = [(number, _rows_of(meta, number)) for number, entry in enumerate(shards) if entry is None]
    total = sum(rows.stop - rows.start for _, rows in missing)
    with track(total, "encoding", enabled=progress) as advance:
        for number, rows in missing:
            codes = encoded_chunks(
                model,
                vectors,
                meta["k"],
                meta["encoder"],
                num_threads,
                device=device,
                begin=rows.start,
                end=rows.stop,
            )
            files = _write_shard(path, number, rows.stop - rows.start, meta["k"], codes, advance)
            shards[number] = {"files": files, "embeddings": _witness(vectors, rows)}
            persistence.write_manifest(path, _KIND, manifest, aside=path / f"{_ASIDE}manifest.json")
    for left in path.glob(f"{_ASIDE}*"):  # by a process that was killed
        left.unlink()


def _write_shard(
    path: Path,
    number: int,
    n_rows: int,
    k: int,
    chunks: Iterator[SparseCodes],
    advance: Callable[[int], object],
) -> dict[str, Any]:
    """Writes a shard chunk by chunk; gives what its manifest entry holds of the files."""
    final = {name: _shard_path(path, name, number) for name in _PARTS}
    asides = {name: file.with_name(_ASIDE + file.name) for name, file in final.items()}
    try:
        with asides["latents"].open("wb") as latents, asides["values"].open("wb") as values:
            for file, dtype in zip((latents, values), _PARTS.values(), strict=True):
                header = {"descr": dtype, "fortran_order": False, "shape": (n_rows, k)}
                np.lib.format.write_array_header_1_0(file, header)
            for codes in chunks:
                latents.write(np.ascontiguousarray(codes.latents, dtype=_PARTS["latents"]).data)
                values.write(np.ascontiguousarray(codes.values, dtype=_PARTS["values"]).data)
                advance(len(codes))
            for file in (latents, values):
                file.flush()
                os.fsync(file.fileno())
        described = {name: persistence.describe(aside) for name, aside in asides.items()}
        for name, aside in asides.items():
            os.replace(aside, final[name])
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
    return described


def _verify_shard(path: Path, number: int, entry: dict[str, Any]) -> None:
    for name in _PARTS:
        persistence.verify(_shard_path(path, name, number), entry["files"][name])


def _witness(vectors: Vectors, rows: slice) -> str:
    """A digest of the first and last embeddings of a shard."""
    digest = hashlib.sha256()
    for part in (
        slice(rows.start, min(rows.start + _WITNESS_ROWS, rows.stop)),
        slice(max(rows.stop - _WITNESS_ROWS, rows.start), rows.stop),
    ):
        digest.update(check_vectors(vectors[part], first_row=part.start).tobytes())
    return digest.hexdigest()[:32]


def _n_shards(meta: dict[str, Any]) -> int:
    return int(-(-meta["n"] // meta["shard_rows"]))


def _rows_of(meta: dict[str, Any], number: int) -> slice:
    return slice(number * meta["shard_rows"], min((number + 1) * meta["shard_rows"], meta["n"]))


def _shard_path(path: Path, name: str, number: int) -> Path:
    return path / f"{name}-{number:06d}.npy"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps a second process from writing to the directory; the system frees it however this one ends."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another process is encoding to {path}; wait for it, or use another directory"
            raise FormatError(msg) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
