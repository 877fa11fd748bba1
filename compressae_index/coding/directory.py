"""Encoding of more vectors than fit in memory, to a directory of codes; a stopped run resumes.

    path/
      manifest.json         settings, fingerprint of the model, checksums of the finished shards
      latents-000000.npy    (m, k) uint16
      values-000000.npy     (m, k) float32, folded
      ...

Values are float32 (6 bytes a nonzero with the latent), so that an index built from the codes equals one built
from the vectors. A shard is written under a temporary name and renamed, then the manifest is replaced, so
that the manifest never names an incomplete file. It also holds a digest of each shard's rows: a resumed run
keeps a shard only if its rows have not changed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from compressae_index import persistence
from compressae_index.checks import as_path, check_choice, check_int, check_threads, check_vectors
from compressae_index.coding.chunks import as_coded, encoded_chunks
from compressae_index.coding.codes import MAX_LATENTS, SparseCodes
from compressae_index.coding.model import ENCODERS, MAX_DIM, CompresSAE, Encoder
from compressae_index.coding.residual import check_residual_bits
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.npy import read_header, write_header
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, VectorSource, open_vectors
from compressae_index.sources.base import Concatenated, bounds
from compressae_index.sources.flat import FlatFile
from compressae_index.storage import (
    FolderLock,
    accessing,
    check_writable,
    make_folders,
    new_file,
    open_file,
    remove_empty,
    sync,
    sync_folder,
)

# Rows a shard: the most work that a stop can cost.
SHARD_ROWS = 262_144

_KIND = "codes"
_PARTS = {"latents": "<u2", "values": "<f4"}
_ASIDE = ".writing-"
# Settings that earlier versions did not have, with the values that they stand for.
_FORMER = {"residual_bits": 0}
# Hexadecimal digits of a digest; 0.1.0 wrote half as many, of the first and last 4 rows of a shard.
_DIGEST_LENGTH = 64


class CodeStore:
    """Folded codes in a directory; only slices that are read take memory.

    `len` is the number of rows, and a slice is a `SparseCodes`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """From a complete directory; `load` also checks its files."""
        meta = manifest["meta"]
        self.path = path
        self._meta: dict[str, Any] = meta
        self.n_latents: int = meta["n_latents"]
        self.k: int = meta["k"]
        self.encoder: Encoder = meta["encoder"]
        self.fingerprint: str = meta["fingerprint"]
        """Fingerprint of the model that encoded."""
        self.residual_bits: int = meta.get("residual_bits", 0)
        """Bits a dimension of residual codes that the codes leave room for; 0 for none."""
        self.shard_rows: int = meta["shard_rows"]
        self._n: int = meta["n"]
        self._shards: list[Any] = manifest["shards"]
        numbers = range(_n_shards(meta))
        self._seen = {
            name: [_identity(_shard_path(path, name, number)) for number in numbers] for name in _PARTS
        }
        lengths = [rows.stop - rows.start for rows in (_rows_of(meta, i) for i in range(_n_shards(meta)))]

        def opened(name: str) -> Callable[[int], FlatFile]:
            return lambda number: _open_shard(
                _shard_path(path, name, number), name, (lengths[number], self.k)
            )

        self._latents = Concatenated(lengths, self.k, opened("latents"))
        self._values = Concatenated(lengths, self.k, opened("values"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeStore:
        """Opens a directory that `encode_to_directory` finished, and reads it once to check all of it.

        Raises:
            FormatError: the directory is missing, foreign, unfinished or damaged.
            StorageError: no permission to read it.
        """
        where = as_path(path)
        return persistence.unless_replaced(where, lambda: cls._load(where))

    @classmethod
    def _load(cls, path: Path) -> CodeStore:
        manifest = _read_manifest(path)
        shards, meta = manifest["shards"], manifest["meta"]
        finished = sum(entry is not None for entry in shards)
        if finished < len(shards):
            msg = (
                f"{path} holds {finished} of {len(shards)} shards: "
                "encode again with the same settings to finish it"
            )
            raise FormatError(msg)
        with accessing(path, "read"), persistence.reading(str(path)):
            for number, entry in enumerate(shards):
                _verify_shard(path, number, entry)
                rows = _rows_of(meta, number)
                for name in _PARTS:
                    _open_shard(_shard_path(path, name, number), name, (rows.stop - rows.start, meta["k"]))
        return cls(path, manifest)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return (
            f"CodeStore({str(self.path)!r}, {self._n} codes, n_latents={self.n_latents}, k={self.k}, "
            f"{self.k * 6} bytes a vector)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path; unpickling must find the same codes there."""
        return CodeStore._again, (self.path.absolute(), self._meta, self._shards)

    @classmethod
    def _again(cls, path: Path, meta: dict[str, Any], shards: list[Any]) -> CodeStore:
        """Unpickles a store from its path.

        Raises:
            FormatError: its files are gone, damaged or changed.
        """
        store = cls.load(path)
        if (store._meta, store._shards) != (meta, shards):
            msg = f"{path} was written anew since a store of its codes was pickled: load and pickle it again"
            raise FormatError(msg)
        return store

    def manifest(self) -> dict[str, Any]:
        """The description of the codes that is stored with them."""
        return self._meta

    def __getitem__(self, rows: slice) -> SparseCodes:
        """Codes of a slice of rows, of step 1.

        Raises:
            InputError: the slice has a step.
            FormatError: a file holds no codes, or was truncated or replaced since it was opened.
            StorageError: a file can no longer be read.
        """
        first, end = bounds(rows, self._n)
        with accessing(self.path, "read"), persistence.reading(str(self.path)):
            latents, values = self._latents[rows], self._values[rows]
            # Replaced files never come back, so checking afterwards is enough.
            for number in range(first // self.shard_rows, -(-end // self.shard_rows) if end > first else 0):
                for name, seen in self._seen.items():
                    file = _shard_path(self.path, name, number)
                    if _identity(file) != seen[number]:
                        msg = f"{file} was replaced since it was opened: load the codes again"
                        raise FormatError(msg)
        if not len(latents):
            latents, values = np.empty((0, self.k), np.uint16), np.empty((0, self.k), np.float32)
        with persistence.reading(f"{self.path}, at rows from {rows.start or 0} on,"):
            return SparseCodes(latents, values, self.n_latents)


def encode_to_directory(
    model: CompresSAE,
    vectors: VectorSource,
    output: str | os.PathLike[str],
    *,
    k: int | None = None,
    encoder: Encoder = "pursuit",
    shard_rows: int | None = None,
    residual_bits: int = 0,
    num_threads: int | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> CodeStore:
    """Writes the folded codes of vectors to a directory, in shards.

    Run it again with the same arguments after a stop or a change of rows: it reads all embeddings, keeps the
    finished shards whose rows have not changed and whose files match their checksums, warns of the others and
    encodes them again. Memory does not grow with n.

    Args:
        model: the model to encode with.
        vectors: (n, dim), any source of `open_vectors`.
        output: a directory that is new, empty, or begun by this function.
        k: nonzeros a code; the model's own by default.
        encoder: "pursuit", or "topk" for the paper's single pass.
        shard_rows: rows a shard; by default 262,144, or as the directory was begun.
        residual_bits: bits a dimension of residual codes that these codes leave room for; 0 for folded codes.
        num_threads: threads of the engine; all by default.
        device: as for `CompresSAE.encode`; codes of another device may differ in the last bits.
        progress: show progress bars.

    Returns:
        The codes, to slice.

    Raises:
        InputError: bad rows, another dimension, k out of range. Shards that were finished stay.
        FormatError: the directory is foreign, damaged or was begun with other settings, or another process
            is writing to it.
        StorageError: the disk is full or refuses. Shards that were finished stay.
    """
    path = as_path(output, "output")
    _check_output(path)
    opened = open_vectors(vectors, zeros=model.center is not None)
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
        "residual_bits": check_residual_bits(residual_bits),
    }
    threads = check_threads(num_threads)
    with accessing(path, "written"):
        made = make_folders(path)
        try:
            with _locked(path):
                manifest = _begun(path, meta)
                # Digests are of rows as they are encoded.
                _keep_intact(path, manifest, as_coded(model, opened), progress)
                _encode_missing(path, manifest, model, opened, threads, device, progress)
        finally:
            remove_empty(made)  # only if nothing was written
        return CodeStore(path, manifest)


def _check_output(path: Path) -> None:
    check_writable(path)
    with accessing(path, "read"):
        if path.exists() and not path.is_dir():
            msg = f"{path} is not a directory"
            raise FormatError(msg)
        if path.exists() and not _is_fresh(path):
            persistence.read_manifest(path, _KIND)


def _is_fresh(path: Path) -> bool:
    return all(entry.name.startswith(_ASIDE) for entry in path.iterdir())


def _begun(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a directory begun with these settings, or a new one."""
    if _is_fresh(path):
        meta["shard_rows"] = meta["shard_rows"] or SHARD_ROWS
        return {"meta": meta, "shards": [None] * _n_shards(meta)}
    manifest = _read_manifest(path)
    before, shards = manifest["meta"], manifest["shards"]
    before = before | {name: value for name, value in _FORMER.items() if name not in before}
    for name, value in meta.items():
        if value not in (before[name], None):
            msg = (
                f"{path} was begun with {name} = {before[name]}, now it is {value}: "
                "use the same settings, or another directory"
            )
            raise FormatError(msg)
    return {"meta": before, "shards": shards}


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a directory of codes, its entries checked.

    Raises:
        FormatError: it is missing, or an entry is wrong.
    """
    manifest = persistence.read_manifest(path, _KIND)
    with persistence.reading(str(path / "manifest.json")):
        meta, shards = persistence.entry(manifest, "meta", dict), persistence.entry(manifest, "shards", list)
        check_int(meta["n"], "n", 1)
        check_int(meta["dim"], "dim", 1, MAX_DIM)
        check_int(meta["n_latents"], "n_latents", 1, MAX_LATENTS)
        check_int(meta["k"], "k", 1, meta["n_latents"], "n_latents")
        check_int(meta["shard_rows"], "shard_rows", 1)
        check_choice(meta["encoder"], "encoder", ENCODERS)
        check_residual_bits(meta.get("residual_bits", 0))
        persistence.entry(meta, "fingerprint", str)
        if len(shards) != _n_shards(meta):
            msg = f"{len(shards)} shards for {meta['n']} rows"
            raise InputError(msg)
        for entry in shards:
            if entry is None:
                continue
            files = persistence.entry({"a shard": entry}, "a shard", dict)
            persistence.entry(files, "embeddings", str)
            for name in _PARTS:
                persistence.entry(persistence.entry(files, "files", dict), name, dict)
    return manifest


def _keep_intact(path: Path, manifest: dict[str, Any], vectors: Vectors, progress: bool) -> None:
    """Drops finished shards from the manifest, with a warning, if these vectors would give others.

    Drops them on disk before it replaces any, so that a directory with codes of two inputs never looks
    complete.
    """
    for left in path.glob(f"{_ASIDE}*"):  # left by a killed process
        with suppress(OSError):  # not ours if it is a folder
            left.unlink()
    meta, shards = manifest["meta"], manifest["shards"]
    finished = [(number, _rows_of(meta, number)) for number, entry in enumerate(shards) if entry is not None]
    total = sum(rows.stop - rows.start for _, rows in finished)
    changed = []
    with track(total, "checking finished shards", enabled=progress) as advance:
        for number, rows in finished:
            before, now = shards[number]["embeddings"], _digest(vectors, rows, advance)
            if now != before:
                changed.append(number)
                warnings.warn(_what_changed(path, rows, before), stacklevel=3)
                continue
            try:
                with persistence.reading(str(path)):
                    _verify_shard(path, number, shards[number])
            except FormatError as error:
                warnings.warn(f"{error}; its rows are encoded again", stacklevel=3)
                shards[number] = None
    if changed:
        for number in changed:
            shards[number] = None
        _write_manifest(path, manifest)


def _what_changed(path: Path, rows: slice, before: str) -> str:
    which = f"rows {rows.start} .. {rows.stop - 1}"
    if len(before) < _DIGEST_LENGTH:
        return f"{path} does not tell whether {which} changed, as 0.1.0 encoded them; they are encoded again"
    return f"{path} holds codes of other embeddings: {which} changed; they are encoded again"


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
            digest = hashlib.sha256()  # of the rows as encoded, in case the input changes meanwhile
            chunks = encoded_chunks(
                model,
                vectors,
                meta["k"],
                meta["encoder"],
                num_threads,
                residual_bits=meta["residual_bits"],
                device=device,
                begin=rows.start,
                end=rows.stop,
                note=digest.update,
            )
            codes = (chunk.codes for chunk in chunks)
            files = _write_shard(path, number, rows.stop - rows.start, meta["k"], codes, advance)
            shards[number] = {"files": files, "embeddings": digest.hexdigest()}
            _write_manifest(path, manifest)


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    aside = _aside(path / "manifest.json")
    try:
        persistence.write_manifest(path, _KIND, manifest, aside=aside)
    finally:
        aside.unlink(missing_ok=True)


def _aside(file: Path) -> Path:
    """A temporary name for a file; random, so that nobody can have put a link there."""
    return file.with_name(f"{_ASIDE}{secrets.token_hex(4)}-{file.name}")


def _write_shard(
    path: Path,
    number: int,
    n_rows: int,
    k: int,
    chunks: Iterator[SparseCodes],
    advance: Callable[[int], object],
) -> dict[str, Any]:
    """Writes a shard chunk by chunk; returns the files' part of its manifest entry."""
    final = {name: _shard_path(path, name, number) for name in _PARTS}
    asides = {name: _aside(file) for name, file in final.items()}
    try:
        with new_file(asides["latents"]) as latents, new_file(asides["values"]) as values:
            for file, dtype in zip((latents, values), _PARTS.values(), strict=True):
                write_header(file, (n_rows, k), dtype)
            for codes in chunks:
                latents.write(np.ascontiguousarray(codes.latents, dtype=_PARTS["latents"]).data)
                values.write(np.ascontiguousarray(codes.values, dtype=_PARTS["values"]).data)
                advance(len(codes))
            for file in (latents, values):
                sync(file)
        described = {name: persistence.describe(aside) for name, aside in asides.items()}
        for name, aside in asides.items():
            os.replace(aside, final[name])
        sync_folder(path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
    return described


def _open_shard(file: Path, name: str, shape: tuple[int, int]) -> FlatFile:
    """A part of a shard, to slice.

    Raises:
        FormatError: the file does not hold rows of this shape.
    """
    with open_file(file) as handle:
        header = read_header(handle, file)
        handle.seek(0)
        head = handle.read(header.offset)
    if header.shape != shape or header.dtype != np.dtype(_PARTS[name]) or header.fortran_order:
        msg = f"{file} must hold {_PARTS[name]} {shape}, got {header.dtype.str} {header.shape}"
        raise FormatError(msg)
    return FlatFile(file, shape, header.dtype, head=head)


def _verify_shard(path: Path, number: int, entry: dict[str, Any]) -> None:
    for name in _PARTS:
        persistence.verify(_shard_path(path, name, number), entry["files"][name])


def _identity(file: Path) -> tuple[int, ...]:
    """Tells a file from one that replaces it."""
    found = file.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(vectors: Vectors, rows: slice, advance: Callable[[int], object]) -> str:
    """Digest of embeddings as they are encoded.

    Raises:
        InputError: bad rows, named by their number in `vectors`.
    """
    digest = hashlib.sha256()
    for first in range(rows.start, rows.stop, CHUNK_ROWS):
        part = check_vectors(vectors[first : min(first + CHUNK_ROWS, rows.stop)], first_row=first)
        digest.update(part.data)
        advance(len(part))
    return digest.hexdigest()


def _n_shards(meta: dict[str, Any]) -> int:
    return int(-(-meta["n"] // meta["shard_rows"]))


def _rows_of(meta: dict[str, Any], number: int) -> slice:
    return slice(number * meta["shard_rows"], min((number + 1) * meta["shard_rows"], meta["n"]))


def _shard_path(path: Path, name: str, number: int) -> Path:
    return path / f"{name}-{number:06d}.npy"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks the directory against other writers; the system frees the lock however this process ends."""
    try:
        lock = FolderLock(path.resolve())
    except BlockingIOError:
        msg = f"another process is encoding to {path}; wait for it, or use another directory"
        raise FormatError(msg) from None
    with lock:
        yield
