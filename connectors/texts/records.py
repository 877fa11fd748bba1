"""Texts and metadata by id, in SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import IdArray
from compressae_index.connectors.texts.filters import Condition
from compressae_index.errors import FormatError, InputError, StorageError
from compressae_index.storage import TemporaryFolder, new_file

# In two tables, as filters read all metadata.
_TABLES = (
    "CREATE TABLE documents (key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL, "
    "searchable INTEGER NOT NULL)",
    "CREATE TABLE contents (key INTEGER PRIMARY KEY, text TEXT, payload TEXT)",
)
_RECORD = "id, text, metadata, payload"
_BOTH = "documents JOIN contents USING (key)"
_FORMAT = 1
# Names that a statement takes one by one, which is faster.
_FEW = 100


class Record(NamedTuple):
    """A document without its vector."""

    id: str
    text: str | None
    metadata: dict[str, Any]
    payload: str | None = None
    """What a framework keeps of a document beside text and metadata."""


class Place(NamedTuple):
    """Where a record is."""

    key: int
    id: str
    searchable: bool
    """Whether the index has a vector of it."""


class Row(NamedTuple):
    """A record as it is stored."""

    key: int
    id: str
    text: str | None
    metadata: str
    payload: str | None
    searchable: bool


class Records:
    """Records in a database, by an integer key and a string id.

    It does not lock: callers see to it that one thread at a time uses it. The database is a temporary file,
    or a saved one that is copied before the first change. A forked process goes on by its own connection,
    and copies the file before it changes anything, too.
    """

    def __init__(self) -> None:
        """No records.

        Raises:
            StorageError: the disk of the temporary folder (TMPDIR) is full or refuses.
        """
        self._folder: TemporaryFolder | None = TemporaryFolder()
        self._file = self._folder.path / "texts.sqlite"
        self._connect(frozen=False)
        with _in_words():
            for table in _TABLES:
                self._open.execute(table)
            self._open.execute(f"PRAGMA user_version = {_FORMAT}")

    @classmethod
    def saved(cls, file: Path, folder: TemporaryFolder | None = None) -> Records:
        """The records of a file from `write`; `folder` is one that must stay as long as they do.

        Raises:
            FormatError: it is no such file.
        """
        records = cls.__new__(cls)
        records._folder, records._file = folder, file
        try:
            records._connect(frozen=True)
            (version,) = records._open.execute("PRAGMA user_version").fetchone()
            records._open.execute(f"SELECT searchable, {_RECORD} FROM {_BOTH} LIMIT 1")
        except sqlite3.Error as error:
            msg = f"{file} is no database of texts: {error}"
            raise FormatError(msg) from error
        if version != _FORMAT:
            msg = f"{file} has format {version}, but this compressae-index reads {_FORMAT}"
            raise FormatError(msg)
        return records

    def __len__(self) -> int:
        with self._reading() as database:
            (count,) = database.execute("SELECT count(*) FROM documents").fetchone()
        return int(count)

    @property
    def nbytes(self) -> int:
        """Bytes of the database."""
        with self._reading() as database:
            (size,) = database.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
        return int(size)

    def next_key(self) -> int:
        """A key above all others."""
        with self._reading() as database:
            (largest,) = database.execute("SELECT max(key) FROM documents").fetchone()
        return 0 if largest is None else max(int(largest) + 1, 0)

    def places(self, condition: Condition | None) -> dict[str, Place]:
        """Where the records that meet a condition are, by id."""
        sql, parameters = _where(condition)
        with self._reading() as database:
            rows = database.execute(f"SELECT id, key, searchable FROM documents {sql}", parameters)
            return {id_: Place(key, id_, bool(searchable)) for id_, key, searchable in rows}

    def of(self, wanted: IdArray) -> dict[Any, Record]:
        """Records by key, or by id for strings; without those that are not held."""
        column, names = _column(wanted.dtype == object), wanted.tolist()
        places, parameters = ",".join("?" * len(names)), names
        if len(names) > _FEW:
            places, parameters = "SELECT value FROM json_each(?)", [json.dumps(names, ensure_ascii=False)]
        with self._reading() as database:
            rows = database.execute(
                f"SELECT {column}, {_RECORD} FROM {_BOTH} WHERE {column} IN ({places})", parameters
            )
            return {name: _record(*row) for name, *row in rows}

    def matching(self, condition: Condition | None = None) -> list[Record]:
        """The records that meet a condition, in the order of their keys."""
        sql, parameters = _where(condition)
        with self._reading() as database:
            rows = database.execute(f"SELECT {_RECORD} FROM {_BOTH} {sql} ORDER BY key", parameters)
            return [_record(*row) for row in rows]

    def searchable(self, condition: Condition | None = None, *, are_strings: bool) -> IdArray:
        """Keys, or ids for strings, of records with a vector that meet a condition, in the order of keys."""
        sql, parameters = _where(condition)
        sql = f"{sql} {'AND' if sql else 'WHERE'} searchable ORDER BY key"
        with self._reading() as database:
            rows = database.execute(f"SELECT {_column(are_strings)} FROM documents {sql}", parameters)
            names = [name for (name,) in rows]
        return np.array(names, dtype=object if are_strings else np.int64)

    def change(self, put: Sequence[Row], drop: Sequence[int] = ()) -> None:
        """Removes the records of some keys and writes others, replacing those of the same id: all or nothing.

        Raises:
            StorageError: the disk is full or refuses.
        """
        self._unfreeze()
        with _in_words():
            self._open.execute("BEGIN IMMEDIATE")
            try:
                for table in ("documents", "contents"):
                    self._open.executemany(f"DELETE FROM {table} WHERE key = ?", ((key,) for key in drop))
                self._open.executemany(
                    "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)",
                    ((row.key, row.id, row.metadata, row.searchable) for row in put),
                )
                self._open.executemany(
                    "INSERT OR REPLACE INTO contents VALUES (?, ?, ?)",
                    ((row.key, row.text, row.payload) for row in put),
                )
                self._open.execute("COMMIT")
            except BaseException:
                self._open.execute("ROLLBACK")
                raise

    def write(self, file: Path) -> None:
        """Writes a new database file of the records."""
        new_file(file).close()  # SQLite fills an empty one, whose mode follows the umask
        with self._reading() as database:
            database.execute("VACUUM INTO ?", (str(file),))

    def __reduce__(self) -> Any:
        msg = "a store of texts holds a connection, so it cannot be copied or pickled: save and load it"
        raise InputError(msg)

    def _connect(self, *, frozen: bool) -> None:
        """Connects to the file, which nobody may change if it is `frozen`."""
        self._frozen, self._process = frozen, os.getpid()
        options = "mode=ro&immutable=1" if frozen else "mode=rwc"
        self._open = sqlite3.connect(
            f"{self._file.absolute().as_uri()}?{options}",
            uri=True,
            check_same_thread=False,
            isolation_level=None,
        )
        self._open.create_function("lowered", 1, _lowered, deterministic=True)
        self._open.execute("PRAGMA trusted_schema = OFF")
        if not frozen:  # a change is undone if it fails, but a crash loses the file anyway
            self._open.execute("PRAGMA journal_mode = MEMORY")
            self._open.execute("PRAGMA synchronous = OFF")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            _left_to_parents.append(self._open)
            self._connect(frozen=True)
        with _in_words():
            yield self._open

    def _unfreeze(self) -> None:
        """Goes on with a copy, if the file is not to be changed."""
        with self._reading() as before:
            if self._frozen:
                folder = TemporaryFolder()
                copy = folder.path / "texts.sqlite"
                before.execute("VACUUM INTO ?", (str(copy),))
                self._folder, self._file = folder, copy
                self._connect(frozen=False)
                before.close()


# SQLite forbids a forked process to close, or to use, what its parent has opened.
_left_to_parents: list[sqlite3.Connection] = []


def as_json(metadata: Mapping[str, Any], id: str) -> str:  # noqa: A002
    """Metadata as they are stored.

    Raises:
        InputError: they hold what JSON does not, or a lone surrogate.
    """
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"metadata of {id!r:.100} cannot be stored as JSON: {error}"
        raise InputError(msg) from error
    return text


def check_id(id: Any) -> str:  # noqa: A002
    """An id as it is stored.

    Raises:
        InputError: no string, or one with a lone surrogate or a NUL.
    """
    if not isinstance(id, str) or "\0" in id:
        msg = f"ids must be strings without a NUL, got {id!r:.100}"
        raise InputError(msg)
    return _encodable(id, "id")


def check_text(text: Any, id: str) -> str | None:  # noqa: A002
    """A text as it is stored, or None.

    Raises:
        InputError: no string, or one with a lone surrogate.
    """
    if text is not None and not isinstance(text, str):
        msg = f"the text of {id!r:.100} must be a string, got {type(text).__name__}"
        raise InputError(msg)
    return None if text is None else _encodable(text, f"the text of {id!r:.100}")


def _encodable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{name} holds a lone surrogate, which UTF-8 cannot store, at {error.start}"
        raise InputError(msg) from error
    return str(text)


def _lowered(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def _column(are_strings: bool) -> str:
    return "id" if are_strings else "key"


def _where(condition: Condition | None) -> tuple[str, tuple[Any, ...]]:
    return ("", ()) if condition is None else (f"WHERE {condition.sql}", condition.parameters)


def _record(id: str, text: str | None, metadata: str, payload: str | None) -> Record:  # noqa: A002
    return Record(id, text, json.loads(metadata), payload)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turns errors of SQLite into those of this package."""
    try:
        yield
    except OverflowError as error:
        msg = f"a number does not fit 64 bits: {error}"
        raise InputError(msg) from error
    except sqlite3.Error as error:
        msg = f"the database of texts failed: {error}"
        raise StorageError(msg) from error
