"""What jobs write: shards of an index, codes as Parquet, files of Milvus's bulk import."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressae_index.arrays import IdArray
from compressae_index.batches import BatchEncoder, ValueType
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.merging import SHARDS
from compressae_index.index import CompressedIndex
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows

if TYPE_CHECKING:
    from compressae_index.connectors.milvus.manifest import Dense


@dataclass(frozen=True)
class Shards:
    """Indexes like one that holds nothing.

    Attributes:
        empty: the index that all are like.
    """

    empty: CompressedIndex
    kind = SHARDS
    stem = "shard"
    suffix = ""

    @property
    def zeros(self) -> bool:
        """Whether rows of zeros are points like others."""
        return self.empty.documents.backend.keeps_norms

    def settings(self) -> dict[str, Any]:
        """Model, metric, encoder, and how documents are stored."""
        return self.empty.form

    def filled(self, vectors: Vectors, ids: IdArray) -> CompressedIndex:
        """An index of rows."""
        index = self.empty.empty_like()
        index.add(vectors, ids, num_threads=1)
        return index

    def write(self, vectors: Vectors, ids: IdArray, target: Path) -> None:
        """Saves an index of the rows."""
        self.filled(vectors, ids).save(target)


@dataclass(frozen=True)
class MilvusFiles:
    """Parquet files in the layout of Milvus's bulk import.

    Attributes:
        shards: the indexes whose codes are written.
        dense: type of the field of reconstructions, if there is one.
        originals: type of the field of original vectors, if there is one.
        primary: name of the primary key.
        longest: as for `export_parquet`.
    """

    shards: Shards
    dense: Dense | None
    originals: Dense | None
    primary: str
    longest: float | None = None
    kind = "files for Milvus"
    stem = "rows"
    suffix = ""

    @property
    def zeros(self) -> bool:
        """As of the indexes."""
        return self.shards.zeros

    def settings(self) -> dict[str, Any]:
        """Those of the indexes, and the fields."""
        return (
            self.shards.settings()
            | {
                "dense": self.dense,
                "original_field": self.originals,
                "primary": self.primary,
            }
            | ({} if self.longest is None else {"longest": self.longest})
        )

    def write(self, vectors: Vectors, ids: IdArray, target: Path) -> None:
        """Writes a folder of files."""
        from compressae_index.connectors.milvus import export_parquet

        export_parquet(
            self.shards.filled(vectors, ids),
            target,
            dense=self.dense,
            originals=self.originals,
            primary=self.primary,
            longest=self.longest,
        )


@dataclass(frozen=True)
class Codes:
    """Parquet files of ids and codes, in the columns of `BatchEncoder`.

    Attributes:
        model: what encodes.
        k: nonzeros a code; None for the model's own.
        encoder: "pursuit", or "topk".
        values: type of values.
    """

    model: CompresSAE
    k: int | None
    encoder: Encoder
    values: ValueType
    kind = "codes in Parquet"
    stem = "codes"
    suffix = ".parquet"

    @property
    def zeros(self) -> bool:
        """Whether the model sees rows of zeros like others."""
        return self.model.center is not None

    def settings(self) -> dict[str, Any]:
        """Model, encoder and type of values."""
        return {
            "fingerprint": self.model.fingerprint,
            "k": self.model.nonzeros(self.k, self.encoder),
            "encoder": self.encoder,
            "values": self.values,
        }

    def write(self, vectors: Vectors, ids: IdArray, target: Path) -> None:
        """Writes a file, a group of rows at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        encoder = BatchEncoder(self.model, k=self.k, encoder=self.encoder, values=self.values)
        with ExitStack() as opened:
            writer = None
            for first in range(0, len(ids), CHUNK_ROWS):
                end = min(first + CHUNK_ROWS, len(ids))
                rows = checked_rows(vectors, first, end, zeros=self.zeros)
                column = pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])
                table = encoder(pa.table({"id": ids[first:end], encoder.column: column}))
                writer = writer or opened.enter_context(pq.ParquetWriter(target, table.schema))
                writer.write_table(table)
