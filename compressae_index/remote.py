"""Objects in stores such as S3, by addresses that fsspec knows; all that this package does with them.

Nothing here shows credentials: addresses are shown without them, and an error of a store is never raised on,
nor kept as the context of ours, as its text or its attributes may repeat them.

Nothing keeps a connection either: each call takes the client of its process and thread from fsspec, so that
paths may be pickled and used after a fork.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

from compressae_index.errors import CompressaeError, InputError, InstallationError, MissingExtraError
from compressae_index.terminal import redacted

T = TypeVar("T")

# Bytes of a request, and requests at a time: one connection alone is slow.
_BLOCK_BYTES = 8 << 20
_AT_ONCE = 8
# Bytes that a file reads ahead.
_AHEAD_BYTES = 1 << 16

# Two letters or more, as C: is a drive. Chains such as simplecache::s3:// are recognised to be refused.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[^/]*)?://")
# What pathlib makes of an address.
_MANGLED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[^/]*)?:/(?!/)")

# Stores with buckets, whose addresses have no place for credentials but before an @.
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
# Stores where an object appears, or is replaced, as a whole.
_ATOMIC = (*_BUCKETS, "abfs", "abfss", "az", "oss", "memory")

# What stores say of an object that changes when it is replaced.
_VERSIONS = frozenset(
    (
        *("etag", "lastmodified", "last_modified", "mtime", "modified", "updated", "created", "ino"),
        *("generation", "versionid", "version_id", "md5hash", "content_md5", "checksum"),
    )
)
_SECRET_NAME = re.compile(r"key|secret|token|pass|credential|signature|sas|connection_string", re.IGNORECASE)


def is_address(value: Any) -> bool:
    """Whether a value is the address of something in a store, such as s3://bucket/name, or file:///name."""
    if isinstance(value, (bytes, bytearray)):
        return False
    try:
        text = os.fspath(value)
    except TypeError:
        return False
    if not isinstance(text, str):
        return False
    return _ADDRESS.match(text) is not None or (
        not isinstance(value, str) and _MANGLED.match(text) is not None
    )


def shown(address: str) -> str:
    """An address without credentials and signatures."""
    scheme, colon, rest = address.partition(":/")
    rest = rest.removeprefix("/")
    host = rest.partition("/")[0]
    if "@" in rest and ("@" in host or ":" in host):
        # Secrets may hold a / or an @ that should have been escaped: hide all up to the last @.
        rest = "***@" + rest.rpartition("@")[2]
    place, mark, query = rest.partition("?")
    if mark and "=" in query:
        rest = f"{place}?***"
    return f"{scheme}{colon}/{rest}"


class RemotePath(os.PathLike[str]):
    """The path of an object or folder in a store; as much of `pathlib.Path` as this package needs.

    Errors are OSErrors in words, as of a local file. Its text is shown without credentials; `os.fspath` is
    the whole address, and for nothing but to make such a path again.
    """

    def __init__(self, address: str, kind: str | None = None) -> None:
        """From an address, and whether a listing says that it is a "file" or "directory".

        Raises:
            InputError: the address is not one of a store; no request is made.
        """
        scheme, _, rest = address.partition("://")
        self._scheme, self._rest = scheme.lower(), rest.rstrip("/")
        self._kind = kind
        host = self._rest.partition("/")[0]
        if "::" in self._scheme or "::" in self._rest:
            msg = f"{self}: chains of addresses are not supported, only a single one"
            raise InputError(msg)
        if self._scheme in _BUCKETS:
            if not host.rpartition("@")[2]:
                msg = f"{self} names no bucket"
                raise InputError(msg)
            if ":" in host.rpartition("@")[2]:
                msg = f"{self}: no bucket has a : in its name; write / in a secret as %2F, and @ as %40"
                raise InputError(msg)
            if "@" in host and _EXTRAS[self._scheme][1] != "s3":
                msg = f"{self}: credentials in an address are for s3:// only; use the store's own settings"
                raise InputError(msg)

    def __fspath__(self) -> str:
        return f"{self._scheme}://{self._rest}"

    def __str__(self) -> str:
        return shown(os.fspath(self))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and os.fspath(self) == os.fspath(other)

    def __hash__(self) -> int:
        return hash(os.fspath(self))

    def __lt__(self, other: RemotePath) -> bool:
        return os.fspath(self) < os.fspath(other)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{os.fspath(self)}/{name}")

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self._rest)

    @property
    def name(self) -> str:
        """The last part."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name."""
        return self._pure.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """Bucket or host, and names."""
        return self._pure.parts

    @property
    def parent(self) -> RemotePath:
        """The folder of this."""
        return RemotePath(f"{self._scheme}://{self._rest.rpartition('/')[0]}")

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    @property
    def has_magic(self) -> bool:
        """Whether it may be a pattern."""
        return glob.has_magic(self._rest)

    def exists(self) -> bool:
        """Whether there is an object, or any below."""
        return self._kind_now() is not None

    def is_dir(self) -> bool:
        """Whether there are objects below, and none of this name."""
        return self._kind_now() == "directory"

    def is_file(self) -> bool:
        """Whether there is an object."""
        return self._kind_now() == "file"

    def _kind_now(self) -> str | None:
        # Remembered, as callers ask again at once; whoever reads it later will see if it is gone.
        self._kind = self._kind or (self._info() or {}).get("type")
        return self._kind

    def _info(self) -> dict[str, Any] | None:
        try:
            info: dict[str, Any] = self._call(lambda fs, key: fs.info(key))
        except FileNotFoundError:
            return None
        return info

    def size(self) -> int:
        """Bytes of the object."""
        return int(self._call(lambda fs, key: fs.info(key))["size"])

    def identity(self) -> tuple[object, ...]:
        """Tells an object from one that replaces it: its size, and all that the store says of its version.

        Of a folder, the same of all objects below.
        """
        info: dict[str, Any] = self._call(lambda fs, key: fs.info(key))
        if info["type"] != "directory":
            return _version(info)
        below = self._call(lambda fs, key: fs.find(key, detail=True))
        return tuple(part for _, each in sorted(below.items()) for part in _version(each))

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in a folder."""
        entries = self._call(lambda fs, key: (key, fs.ls(key, detail=True)))
        return self._below(entries[0], entries[1])

    def files(self) -> Iterator[RemotePath]:
        """All objects below a folder."""
        found = self._call(lambda fs, key: (key, list(fs.find(key, detail=True).values())))
        return self._below(found[0], found[1])

    def glob(self) -> list[RemotePath]:
        """What matches this pattern; parts that begin with a dot are matched only by parts that say so."""
        parts = self._rest.split("/")
        fixed = [*takewhile(lambda part: not glob.has_magic(part), parts)]
        root = RemotePath(f"{self._scheme}://{'/'.join(fixed)}")
        entries = self._call(lambda fs, key: list(fs.glob(key, detail=True).values()))
        found = root._below(root._call(lambda _, key: key), entries)
        return [path for path in found if not self._hides(path)]

    def _hides(self, path: RemotePath) -> bool:
        return any(part.startswith(".") for part in set(path.parts) - set(self.parts))

    def _below(self, key: str, entries: Iterable[dict[str, Any]]) -> Iterator[RemotePath]:
        for entry in entries:
            name = str(entry["name"]).removeprefix(key).strip("/")
            if name:  # stores may list a folder's own marker
                yield RemotePath(f"{os.fspath(self)}/{name}", entry["type"])

    def read_at(self, begin: int, into: memoryview) -> int:
        """Reads bytes from `begin` on; returns how many, fewer only where the object ends."""
        read = 0
        while read < len(into):
            window = range(begin + read, min(begin + len(into), begin + read + _AT_ONCE * _BLOCK_BYTES))
            try:
                parts = self._call(partial(_ranges, window=window))
            except OSError:
                if window.stop <= self.size():
                    raise
                return read  # a range beyond the end is an error in some stores
            for part in parts:
                into[read : read + len(part)] = part
                read += len(part)
            if begin + read < window.stop:
                return read
        return read

    def read_bytes(self) -> bytes:
        """The whole object."""
        content: bytes = self._call(lambda fs, key: fs.cat_file(key))
        return content

    def open(self, _mode: str = "rb") -> io.BufferedReader:
        """The object as a file that is read by ranges."""
        return io.BufferedReader(self.raw(), _AHEAD_BYTES)

    def raw(self) -> RemoteFile:
        """The same without a buffer, for readers that have one."""
        return RemoteFile(self, self.size())

    def check_writable(self) -> None:
        """Checks that objects can be written here, as far as possible without writing.

        Raises:
            InputError: readers of such a store might see half an object.
            OSError: there is no such bucket, or the store refuses to say.
        """
        if self._scheme not in _ATOMIC:
            msg = (
                f"{self}: saving is for {', '.join(_ATOMIC)}, where objects appear as a whole; save to a "
                "local directory, and copy it"
            )
            raise InputError(msg)
        if self._scheme in _BUCKETS:
            bucket = RemotePath(f"{self._scheme}://{self._rest.partition('/')[0]}")
            if bucket._info() is None:
                raise FileNotFoundError(errno.ENOENT, "there is no such bucket", str(bucket))

    def upload(self, file: Path) -> None:
        """Writes the object from a local file, as a whole."""
        self._call(lambda fs, key: fs.put_file(str(file), key))

    def write_bytes(self, content: bytes) -> None:
        """Writes the object, as a whole."""
        self._call(lambda fs, key: fs.pipe_file(key, content))

    def remove(self) -> None:
        """Removes the object, or all below."""
        self._call(lambda fs, key: fs.rm(key, recursive=True))

    def _call(self, act: Callable[[Any, str], T]) -> T:
        """Does something with the file system, and this path in its words.

        Raises:
            OSError: it fails; ENOENT and EACCES say what they say, EIO is anything else.
            MissingExtraError, InstallationError: the file system is not installed.
        """
        try:
            return act(*self._reached())
        except CompressaeError:
            raise
        except Exception as error:
            failure = self.in_words(error)
        raise failure  # outside of the block, so that the store's error is not its context

    def _reached(self) -> tuple[Any, str]:
        address, options = self._opened_by()
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            if self._scheme in _EXTRAS:
                raise MissingExtraError(*_EXTRAS[self._scheme], f"access to {self}") from None
            msg = f"access to {self} needs fsspec, which is not installed; run: pip install fsspec"
            raise InstallationError(msg) from None
        # Cached listings would hide what others write.
        fs, key = url_to_fs(address, use_listings_cache=False, **options)
        return fs, key

    def _opened_by(self) -> tuple[str, dict[str, str]]:
        """The address for fsspec, and the options that were in it."""
        if self._scheme not in _BUCKETS:
            return os.fspath(self), {}
        host, slash, key = self._rest.partition("/")
        credentials, _, bucket = host.rpartition("@")
        address = f"{self._scheme}://{bucket}{slash}{key}"
        if not credentials:
            return address, {}
        user, _, secret = credentials.partition(":")
        return address, {"key": unquote(user), "secret": unquote(secret)}

    def in_words(self, error: Exception) -> Exception:
        """An error of a store as one of ours, or an OSError, without what may be secret."""
        name = type(error).__name__
        if isinstance(error, ImportError):
            if self._scheme in _EXTRAS:
                return MissingExtraError(*_EXTRAS[self._scheme], f"access to {self}")
            return InstallationError(f"access to {self} needs a package that is not installed: {error}")
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            return InputError(f"{self}: fsspec knows no store of that kind")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        if isinstance(error, PermissionError):
            words = "the store refuses it to these credentials"
            return PermissionError(errno.EACCES, words, str(self))
        if "Credential" in name:
            words = f"there are no credentials, or not all of them ({name})"
            return PermissionError(errno.EACCES, words, str(self))
        text = redacted(" ".join(str(error).split()), [*self._secrets()], whole=True)
        return OSError(errno.EIO, f"{name}: {text:.300}", str(self))

    def _secrets(self) -> Iterator[str]:
        """All that may be secret, in this address or the settings that fsspec and stores read."""
        userinfo = self._rest.rpartition("@")[0]
        for part in (userinfo, *re.split("[:/]", userinfo)):
            yield from (part, unquote(part))
        from fsspec.config import conf

        yield from _secret_values(conf)
        yield from (
            value
            for name, value in os.environ.items()
            if name.startswith(("AWS_", "FSSPEC_")) and _SECRET_NAME.search(name)
        )


def _secret_values(options: Any, named: bool = False) -> Iterator[str]:
    """Strings in nested options whose names, or those of what they are in, sound secret."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _secret_values(value, named or _SECRET_NAME.search(str(name)) is not None)
    elif named and isinstance(options, str):
        yield options


def _version(info: dict[str, Any]) -> tuple[object, ...]:
    known = {name.lower(): str(value) for name, value in info.items() if value is not None}
    return info["size"], *sorted((name, known[name]) for name in _VERSIONS & known.keys())


def _ranges(fs: Any, key: str, window: range) -> list[bytes]:
    """The bytes of a range of an object, in blocks."""
    starts = [*window[::_BLOCK_BYTES]]
    stops = [min(start + _BLOCK_BYTES, window.stop) for start in starts]
    parts = fs.cat_ranges([key] * len(starts), starts, stops, on_error="return")
    for part in parts:
        if isinstance(part, BaseException):
            raise part
    return list(parts)


class RemoteFile(io.RawIOBase):
    """An object as a file to read; it holds no connection."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves the position."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Reads at the position, and moves it."""
        into = memoryview(buffer).cast("B")[: max(self._size - self._at, 0)]
        read = self._path.read_at(self._at, into) if len(into) else 0
        self._at += read
        return read


Place: TypeAlias = Path | RemotePath
"""Where files are: on this machine, or in a store."""
