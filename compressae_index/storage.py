"""Files and folders: errors in words, no links followed, durable writes, locks of writers.

A lock tells whether a folder's writer is alive: `own_folder` holds one, which the system frees however the
process ends, and `sweep` removes only folders that nobody holds.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Literal

from compressae_index.errors import FormatError, StorageError
from compressae_index.remote import Place, RemotePath

if sys.platform != "win32":
    import fcntl

# Windows lacks these flags.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)

_TEMPORARY_PREFIX = "compressae-copy-"
_TEMPORARY = re.compile(rf"{_TEMPORARY_PREFIX}[0-9a-f]{{8}}")
# Folders in which files are written until they are complete.
_ASIDE_PREFIX = ".compressae-"
_ASIDE = re.compile(rf"{re.escape(_ASIDE_PREFIX)}[0-9a-f]{{8}}")
# Bytes in memory while an object is copied to a file.
_COPIED_BYTES = 64 << 20

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def accessing(path: Place, doing: Literal["read", "written"]) -> Iterator[None]:
    """Turns OSErrors inside into a StorageError in words; errors of this package pass.

    Raises:
        StorageError: with the errno and the file of the OSError, or `path` if it names no file.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise in_words(error, path, doing) from error


def in_words(error: OSError, path: Place, doing: str) -> StorageError:
    """An OSError in words: what failed on which file, why, and what to do."""
    number = error.errno
    if number is None:
        # C++ libraries put the system's message into their own.
        number = next((code for code in errno.errorcode if os.strerror(code) in str(error)), None)
    if number is None:
        return StorageError(str(error))
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(path)
    words = f"{name} cannot be {doing}: {error.strerror or os.strerror(number)}"
    if number in _NO_ROOM:
        words += "; make room, or use another disk"
    elif number in _NO_ACCESS:
        words += "; ask for the permission, or use another path"
    return StorageError(number, words, name)


def check_writable(path: Place) -> None:
    """Checks that a file or folder can be written, as far as possible without writing.

    Raises:
        FormatError: the path lies below a file, or is or lies below a link to nowhere.
        StorageError: no permission to write to the folder, or to make it; no such bucket.
        InputError: a store in which nothing can be replaced as a whole.
    """
    with accessing(path, "written"):
        if isinstance(path, RemotePath):
            path.check_writable()
            return
        for each in (path, *path.parents):
            if each.is_symlink() and not each.exists():
                target = os.readlink(each)
                msg = f"{path} cannot be written, as {each} is a link to {target}, which does not exist"
                raise FormatError(msg)
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                msg = f"{path} cannot be written, as {parent} is not a directory"
                raise FormatError(msg)
        folder = next(each for each in (path, *path.parents) if each.is_dir())
        effective = os.access in os.supports_effective_ids
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def open_file(file: Path) -> BufferedReader:
    """Opens a file to read, without following a link or waiting for a pipe.

    Raises:
        FormatError: it is missing, or not a plain file.
        OSError: the system refuses.
    """
    try:
        if file.is_symlink():
            msg = f"{file} is a link, and links are not followed: put a copy of the file in its place"
            raise FormatError(msg)
        handle = os.open(file, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT | _BINARY)
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{file} is missing"
        raise FormatError(msg) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        msg = f"{file} is not a file"
        raise FormatError(msg)
    return os.fdopen(handle, "rb")


def new_file(file: Path) -> BufferedWriter:
    """Creates a file to write; it must not exist. Its mode follows the umask."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY, 0o666)
    return os.fdopen(handle, "wb")


def sync(handle: BufferedWriter) -> None:
    """Waits until a file's contents are on disk."""
    handle.flush()
    os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk."""
    if sys.platform == "win32":  # cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system cannot sync folders
            raise
    finally:
        os.close(handle)


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and its missing parents, durably; returns the new ones, `path` last."""
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir() and _made(folder):
                made.append(folder)
                sync_folder(folder.parent)
    except BaseException:
        remove_empty(made)
        raise
    return made


def _made(folder: Path) -> bool:
    """Makes a folder; False if another process was faster."""
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():
            return False
        raise
    return True


def remove_empty(folders: list[Path]) -> None:
    """Removes folders from `make_folders`, unless something is in them."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


class FolderLock:
    """The lock of a folder, held until `release` or the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock, without waiting.

        Raises:
            BlockingIOError: another process holds it.
            OSError: the folder is missing, or a link.
        """
        self.held = False
        """False if the file system has no locks."""
        self._folder, self._handle = folder, -1
        if sys.platform == "win32":
            return
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            pass

    def folder_is_there(self) -> bool:
        """Whether the folder still exists, and was not removed before the lock was taken."""
        if self._handle < 0:
            return self._folder.is_dir()
        try:
            return os.path.samestat(os.lstat(self._folder), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Frees the lock."""
        handle, self._handle = self._handle, -1
        if handle >= 0 and sys.platform != "win32":
            if self.held:
                # A child forked meanwhile has the handle too, so closing it here would not free the lock.
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
        self.held = False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Makes a folder with a random name, which `sweep` spares meanwhile; does not remove it at the end."""
    folder, lock = _locked_folder(parent, prefix)
    with lock:
        yield folder


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, FolderLock]:
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            folder.mkdir()
            try:
                lock = FolderLock(folder)
            except (BlockingIOError, FileNotFoundError):  # another process swept it before it was locked
                continue
            if lock.folder_is_there():
                return folder, lock
            lock.release()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write a file to, which replaces `path` if nothing fails.

    Raises:
        StorageError: the disk is full or refuses; what was at `path` is untouched.
    """
    with accessing(path, "written"):
        # Remove what killed processes left; version 0.1.0 left files.
        with suppress(OSError):
            sweep(path.parent, _ASIDE.fullmatch, lambda _: False)
            for left in path.parent.glob(f".????????-{glob.escape(path.name)}"):
                if re.match(r"\.[0-9a-f]{8}-", left.name):
                    left.unlink()
        with own_folder(path.parent, _ASIDE_PREFIX) as folder:
            try:
                yield (aside := folder / path.name)
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(aside, path)
                sync_folder(path.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A folder to write files to, which becomes `path` if nothing fails.

    Raises:
        FormatError: there is something at `path`, and it is not an empty directory.
        StorageError: the disk is full or refuses.
    """
    check_writable(path)
    with accessing(path, "written"):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            msg = f"{path} exists and is not an empty directory"
            raise FormatError(msg)
        aside = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
        aside.mkdir(parents=True)
        try:
            yield aside
            os.replace(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


class TemporaryFolder:
    """A folder for this user alone that goes with this object, or with a later one if the process is killed.

    On POSIX, maps of files in it outlive it.
    """

    def __init__(self) -> None:
        """Makes it in the temporary folder (TMPDIR).

        Raises:
            StorageError: the disk is full or refuses.
        """
        parent = Path(tempfile.gettempdir())
        with accessing(parent, "written"):
            sweep(parent, _TEMPORARY.fullmatch, lambda _: False)
            self.path, lock = _locked_folder(parent, _TEMPORARY_PREFIX)
            self.path.chmod(0o700)
        self._end = weakref.finalize(self, _end_of, self.path, lock, os.getpid())

    def remove(self) -> None:
        """Removes it now."""
        self._end()


def _end_of(folder: Path, lock: FolderLock, process: int) -> None:
    if os.getpid() == process:  # a forked child has no say
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def download(source: RemotePath, file: Path, size: int) -> None:
    """Copies an object to a new local file, or what there is of it if it is shorter than `size`.

    Raises:
        FormatError: there is no such object.
        StorageError: the disk is full or refuses.
        OSError: the store fails.
    """
    block = memoryview(bytearray(min(_COPIED_BYTES, size)))
    with new_file(file) as target:
        for begin in range(0, size, _COPIED_BYTES):
            wanted = min(_COPIED_BYTES, size - begin)
            try:
                read = source.read_at(begin, block[:wanted])
            except FileNotFoundError:
                msg = f"{source} is missing"
                raise FormatError(msg) from None
            with accessing(file, "written"):
                target.write(block[:read])
                target.flush()
            if read < wanted:
                break


def sweep(parent: Path, is_ours: Callable[[str], object], is_kept: Callable[[str], bool]) -> None:
    """Removes folders left by processes that ended.

    Args:
        parent: the folder to look in.
        is_ours: whether a name is one that `own_folder` gives.
        is_kept: whether to keep the folder of a name; called while it is locked, so nobody is writing to it.
    """
    for entry in list(os.scandir(parent)):
        # A living writer holds the lock, which raises an OSError too.
        with suppress(OSError):
            if is_ours(entry.name) and entry.is_dir(follow_symlinks=False):
                with FolderLock(parent / entry.name) as lock:
                    if lock.held and not is_kept(entry.name):
                        shutil.rmtree(entry, ignore_errors=True)
