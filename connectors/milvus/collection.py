"""One collection of Milvus: its schema, its rows and its life."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index.arrays import IdArray
from compressae_index.connectors.milvus.client import TIMEOUT, ConsistencyLevel
from compressae_index.connectors.milvus.errors import translated
from compressae_index.connectors.milvus.expressions import among, both, literal, portions
from compressae_index.connectors.milvus.schema import Key, Schema, names_of
from compressae_index.errors import BackendError, InputError

# Rows a page of reads. Milvus Lite scans all rows for a page; these are still a few megabytes of vectors.
PAGE_ROWS = 2000
# Rows a page where only ids and numbers are read.
LISTED_ROWS = 10_000


@dataclass(frozen=True)
class Collection:
    """A collection by its name or alias. It may not exist yet.

    Each request may take `timeout` seconds, retries included. All methods raise BackendError, saying what was
    being done, where Milvus does not answer or refuses.
    """

    client: MilvusClient = field(repr=False)
    name: str
    timeout: float = TIMEOUT

    def named(self, name: str) -> Collection:
        """Another collection of the same database."""
        return replace(self, name=name)

    def doing(self, action: str, *, expression: str = "") -> AbstractContextManager[None]:
        """Translates errors of pymilvus, as `translated` does for f"{action} collection ..."."""
        return translated(f"{action} collection {self.name!r}", expression=expression)

    def exists(self) -> bool:
        """Whether there is a collection or alias of this name."""
        with self.doing("looking for"):
            return bool(self.client.has_collection(self.name, timeout=self.timeout))

    def schema(self) -> Schema:
        """The fields.

        Raises:
            InputError: there is no such collection.
        """
        if not self.exists():
            with translated("listing collections"):
                held = ", ".join(sorted(self.client.list_collections(timeout=self.timeout))) or "none"
            msg = f"there is no collection {self.name!r}; there are: {held}"
            raise InputError(msg)
        with self.doing("describing"):
            return Schema(self.client.describe_collection(self.name, timeout=self.timeout))

    def indexed(self) -> set[str]:
        """Names of the indexes, which are those of their fields."""
        with self.doing("listing the indexes of"):
            return set(self.client.list_indexes(self.name, timeout=self.timeout))

    def create(self, schema: Any, indexes: Any) -> None:
        """Creates the collection from pymilvus's schema and parameters of indexes.

        If Milvus Lite (3.2) is killed while it makes or drops a collection, it leaves a folder without a
        schema, which it neither lists as a collection nor replaces. Such a folder is removed.
        """
        options = {
            "schema": schema,
            "index_params": indexes,
            # Pages of ids are read at this level, and must hold what was just written.
            "consistency_level": "Strong",
            "timeout": self.timeout,
        }
        with self.doing("creating"):
            try:
                self.client.create_collection(self.name, **options)
            except MilvusException as error:
                found = re.search(r"File exists: '(.+)'", str(error))
                left = Path(found[1]) if found else None
                if left is None or left.name != self.name or not left.is_dir():
                    raise
                if (left / "schema.json").exists():
                    raise
                shutil.rmtree(left, ignore_errors=True)
                self.client.create_collection(self.name, **options)

    def add_field(self, name: str, kind: DataType) -> None:
        """Adds a field, which is null in all rows; a vector field needs Milvus 2.6.18."""
        with self.doing(f"adding field {name!r} to"):
            self.client.add_collection_field(self.name, name, kind, nullable=True, timeout=self.timeout)

    def index(self, indexes: Any) -> None:
        """Makes indexes from pymilvus's parameters, and loads the collection with them."""
        with self.doing("indexing"):
            self.client.create_index(self.name, indexes, timeout=self.timeout)
        with self.doing("loading"):
            self.client.load_collection(self.name, timeout=self.timeout)

    def load(self) -> None:
        """Loads the collection unless it is loaded; searching and reading need that."""
        with self.doing("loading"):
            state = self.client.get_load_state(self.name, timeout=self.timeout).get("state")
            if "Loaded" not in str(state):
                self.client.load_collection(self.name, timeout=self.timeout)

    def flush(self) -> None:
        """Seals what was written."""
        with self.doing("flushing"):
            self.client.flush(self.name, timeout=self.timeout)

    def rename(self, name: str) -> Collection:
        """Renames the collection in one step, and returns it under its new name."""
        renamed = self.named(name)
        with translated(f"renaming collection {self.name!r} to {name!r}"):
            try:
                self.client.rename_collection(self.name, name, timeout=self.timeout)
            except MilvusException:
                # pymilvus repeats a request whose answer was lost, and the second one finds no collection.
                if self.exists() or not renamed.exists():
                    raise
        return renamed

    def aliases(self) -> list[str]:
        """The aliases of the collection."""
        with self.doing("listing aliases of"):
            return list(self.client.list_aliases(self.name, timeout=self.timeout)["aliases"])

    def create_alias(self, alias: str) -> None:
        """Makes an alias of the collection."""
        with self.doing(f"making {alias!r} an alias of"):
            self.client.create_alias(self.name, alias, timeout=self.timeout)

    def take_alias(self, alias: str) -> None:
        """Makes an alias of another collection one of this, in one step."""
        with self.doing(f"making {alias!r} an alias of"):
            self.client.alter_alias(self.name, alias, timeout=self.timeout)

    def drop_alias(self, alias: str) -> None:
        """Drops an alias of the collection."""
        with self.doing(f"dropping the alias {alias!r} of"):
            self.client.drop_alias(alias, timeout=self.timeout)

    def drop(self) -> None:
        """Drops the collection with all its rows."""
        with self.doing("dropping"):
            self.client.drop_collection(self.name, timeout=self.timeout)

    def partitions(self) -> list[str]:
        """Names of the partitions."""
        with self.doing("listing partitions of"):
            return list(self.client.list_partitions(self.name, timeout=self.timeout))

    def check_partitions(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of partitions, all of which exist. Sends no request if there are no names.

        Raises:
            InputError: not a sequence of names, or an unknown one.
        """
        wanted = names_of(names, "partitions")
        held = self.partitions() if wanted else []
        unknown = [name for name in wanted if name not in held]
        if unknown:
            msg = f"collection {self.name!r} has no partition {unknown[0]!r}; it has: {', '.join(held)}"
            raise InputError(msg)
        return wanted

    def create_partition(self, name: str) -> None:
        """Creates a partition."""
        with self.doing(f"creating partition {name!r} of"):
            self.client.create_partition(self.name, name, timeout=self.timeout)

    def count(self, *, filter: str = "") -> int:  # noqa: A002
        """Rows that are visible now; the collection must be loaded.

        Raises:
            InputError: Milvus cannot evaluate the filter.
        """
        return int(self.query(["count(*)"], filter=filter, consistency_level="Strong")[0]["count(*)"])

    def query(
        self,
        fields: Sequence[str],
        *,
        where: str = "",
        filter: str = "",  # noqa: A002
        partition: str = "",
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Fields of the rows that satisfy both expressions; the collection must be loaded.

        Args:
            fields: to read.
            where: an expression made here.
            filter: an expression of the caller's, who is told if Milvus cannot evaluate it.
            partition: only this one; all if empty.
            options: more arguments of pymilvus.

        Raises:
            InputError: Milvus cannot evaluate the filter.
        """
        with self.doing("reading", expression=filter):
            return list(
                self.client.query(
                    self.name,
                    filter=both(where, filter),
                    output_fields=list(fields),
                    partition_names=[partition] if partition else None,
                    timeout=self.timeout,
                    **options,
                )
            )

    def rows_of(
        self,
        key: Key,
        ids: IdArray,
        fields: Sequence[str],
        *,
        filter: str = "",  # noqa: A002
        partition: str = "",
        consistency_level: ConsistencyLevel = "Strong",
    ) -> dict[int | str, dict[str, Any]]:
        """Rows by id; ids that are not held are left out.

        Args:
            key: the primary key.
            ids: of the rows.
            fields: to read, with the primary key.
            filter: an expression; only rows that satisfy it.
            partition: only this one; all if empty.
            consistency_level: of the read.

        Raises:
            InputError: Milvus cannot evaluate the filter.
        """
        found: dict[int | str, dict[str, Any]] = {}
        for some in portions(ids.tolist()):
            rows = self.query(
                [key.name, *fields],
                where=among(key.name, some),
                filter=filter,
                partition=partition,
                consistency_level=consistency_level,
                strict_float32=True,
            )
            found.update((row[key.name], row) for row in rows)
        return found

    def pages(
        self,
        key: Key,
        fields: Sequence[str],
        *,
        after: int | str | None = None,
        filter: str = "",  # noqa: A002
        partition: str = "",
        page_rows: int = PAGE_ROWS,
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows in the order of their primary key, page by page; the collection must be loaded.

        Pages begin after a primary key, as those of pymilvus's own iterator, which does not escape strings.
        A row that is written meanwhile is seen if its key is still ahead. Rows of the last seconds may be
        missing, unless the collection's consistency level is "Strong".

        Args:
            key: the primary key.
            fields: to read, with the primary key.
            after: the id after which to begin.
            filter: an expression; only rows that satisfy it.
            partition: only this one; all if empty.
            page_rows: rows a request.

        Raises:
            InputError: Milvus cannot evaluate the filter.
            BackendError: rows came out of order.
        """
        while True:
            rows = self.query(
                [key.name, *fields],
                where="" if after is None else f"{key.name} > {literal(after)}",
                filter=filter,
                partition=partition,
                limit=page_rows,
                # As pymilvus's own iterator asks for the smallest keys, not for the first that are found.
                # The consistency level is then that of the collection.
                iterator="True",
                reduce_stop_for_best="True",
                strict_float32=True,
            )
            if not rows:
                return
            ids = [row[key.name] for row in rows]
            if ids != sorted(ids) or (after is not None and ids[0] <= after):
                msg = f"rows of collection {self.name!r} did not come in the order of {key.name!r}"
                raise BackendError(msg)
            yield rows
            after = ids[-1]
            if len(rows) < page_rows:
                return

    def ids(self, key: Key, *, filter: str = "", partition: str = "") -> IdArray:  # noqa: A002
        """All ids, ascending: int64 or str objects; the collection must be loaded.

        Args:
            key: the primary key.
            filter: an expression; only rows that satisfy it.
            partition: only this one; all if empty.
        """
        pages = self.pages(key, [], filter=filter, partition=partition, page_rows=LISTED_ROWS)
        return key.array([row[key.name] for page in pages for row in page])

    def upsert(
        self, rows: Sequence[Mapping[str, Any]], *, partition: str = "", only_given: bool = False
    ) -> None:
        """Stores rows; they replace rows of the same ids, or the fields that are given of these."""
        with self.doing("writing to"):
            self.client.upsert(
                self.name,
                rows,
                partition_name=partition or None,
                timeout=self.timeout,
                partial_update=only_given,
            )

    def remove(self, key: Key, ids: IdArray, *, partition: str = "") -> None:
        """Removes ids, from one partition or from all; unknown ones are ignored."""
        for some in portions(ids.tolist()):
            with self.doing("removing from"):
                self.client.delete(
                    self.name,
                    filter=among(key.name, some),
                    partition_name=partition or None,
                    timeout=self.timeout,
                )
