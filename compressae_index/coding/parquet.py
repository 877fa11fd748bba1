"""Codes in Parquet files, as a pipeline wrote them with columns of `BatchEncoder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.checks import as_place, check_choice
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.columns import (
    ENCODER,
    LATENTS,
    SCALE,
    VALUES,
    check_made_by,
    check_metadata,
    codes_of_columns,
)
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder
from compressae_index.errors import FormatError, InputError
from compressae_index.remote import Place
from compressae_index.sources.base import bounds, reading
from compressae_index.sources.files import SourceFile
from compressae_index.sources.parquet import open_parquet, parquet_file
from compressae_index.sources.paths import PathLike, files_of, has_magic, names_files
from compressae_index.sources.shards import open_shards


class ParquetCodes:
    """Folded codes in columns of Parquet files; only slices that are read take memory.

    Files of a folder are in natural order of their names, as for embeddings. `len` is the number of rows, and
    a slice is a `SparseCodes`.
    """

    def __init__(self, source: PathLike | Sequence[PathLike], model: CompresSAE) -> None:
        """Opens all files once.

        Args:
            source: a file, folder, pattern, or list of files, as `sources.open_vectors` takes them.
            model: the model that encoded.

        Raises:
            FormatError: a file is missing or damaged, has no columns of codes, or names another model.
            InputError: there are no codes.
            MissingExtraError: pyarrow is not installed.
        """
        files = files_of(source)
        self._files = files if isinstance(files, list) else [files]
        self._model = model
        self.path = self._files[0] if len(self._files) == 1 else self._files[0].parent
        self.n_latents, self.fingerprint = model.n_latents, model.fingerprint
        self.encoder: Encoder = "pursuit"
        for path in self._files:
            self._check(path)
        self._latents, self._values = (self._opened(name) for name in (LATENTS, VALUES))
        self.k = int(self._latents.shape[1])
        if self._latents.shape != self._values.shape:
            msg = f"{self.path}: latents are {self._latents.shape}, values {self._values.shape}"
            raise FormatError(msg)
        if not len(self):
            msg = f"{self.path} holds no codes"
            raise InputError(msg)

    def _check(self, path: Place) -> None:
        with reading(path):
            schema = parquet_file(path).schema_arrow
            missing = [name for name in (LATENTS, VALUES) if name not in schema.names]
            if missing:
                msg = f"{path} holds no column {missing[0]!r} of codes, only: {', '.join(schema.names)}"
                raise FormatError(msg)
            check_metadata(schema.metadata, self._model, str(path))
            said = (schema.metadata or {}).get(ENCODER)
            if said is not None:
                self.encoder = check_choice(said.decode(), "encoder", ENCODERS)

    def _opened(self, column: str) -> Any:
        return open_shards(
            self._files, lambda path: SourceFile(path, lambda path: open_parquet(path, column))
        )

    def __len__(self) -> int:
        return int(self._latents.shape[0])

    def __repr__(self) -> str:
        return f"ParquetCodes({str(self.path)!r}, {len(self)} codes, k={self.k})"

    def __getitem__(self, rows: slice) -> SparseCodes:
        """Codes of a slice of rows, of step 1.

        Raises:
            InputError: the slice has a step.
            FormatError: a file is damaged, has changed, or holds codes of another model.
        """
        first, end = bounds(rows, len(self))
        place = f"{self.path}, at rows from {first} on,"
        try:
            codes = codes_of_columns(
                self._latents[first:end], self._values[first:end], self.n_latents, self.k
            )
        except InputError as error:
            msg = f"{place} holds no codes: {error}"
            raise FormatError(msg) from error
        check_made_by(self._model, codes, place)
        return codes

    def norms(self) -> npt.NDArray[np.float64]:
        """The norms of all rows, (n,).

        Raises:
            FormatError: a file has no column `scale`, or norms are missing.
        """
        parts = []
        for path in self._files:
            with reading(path):
                file = parquet_file(path)
                if SCALE not in file.schema_arrow.names:
                    msg = f"{path} holds no column {SCALE!r}, the norms that inner products need"
                    raise FormatError(msg)
                norms = np.asarray(file.read(columns=[SCALE]).column(0), dtype=np.float64)
            if not np.isfinite(norms).all():
                msg = f"{path}: row {int(np.flatnonzero(~np.isfinite(norms))[0])} has no norm in {SCALE!r}"
                raise FormatError(msg)
            parts.append(norms)
        return np.concatenate(parts)


def is_parquet(source: Any) -> bool:
    """Whether a source of codes is Parquet files: one, a list or pattern of them, or a folder of them."""
    if not names_files(source):
        return False
    if isinstance(source, (list, tuple)):
        return True
    path = as_place(source)
    with reading(path):
        if path.is_dir():
            names = {entry.name for entry in path.iterdir()}
            return "manifest.json" not in names and any(name.endswith(".parquet") for name in names)
    return path.suffix.lower() == ".parquet" or has_magic(path)
