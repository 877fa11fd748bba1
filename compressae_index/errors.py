"""Everything this package raises on purpose.

CompressaeError
├── InputError           an argument is wrong; also a ValueError
│   ├── DimensionError       two sizes that must agree do not
│   └── UnknownIdError       an id that the index does not hold; also a KeyError
├── FormatError          a file or directory is foreign, damaged or missing
│   └── NewerFormatError     written by a newer version of this package
├── StorageError         the system refuses to read or write: no permission, a full disk; also an OSError
├── BackendError         a store of codes outside of this process failed or refused
├── TrainingError        training cannot go on
├── InstallationError    installed packages do not work together; also an ImportError
└── MissingExtraError    an optional dependency is not installed; also an ImportError
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CompressaeError",
    "DimensionError",
    "FormatError",
    "InputError",
    "InstallationError",
    "MissingExtraError",
    "NewerFormatError",
    "StorageError",
    "TrainingError",
    "UnknownIdError",
]


class CompressaeError(Exception):
    """Base of all errors of this package."""


class InputError(CompressaeError, ValueError):
    """An argument is wrong; nothing was changed."""


class DimensionError(InputError):
    """Two sizes that must agree do not; the message holds both."""


class UnknownIdError(InputError, KeyError):
    """An id that the index does not hold."""

    # KeyError would print the repr of the message.
    __str__ = Exception.__str__


class FormatError(CompressaeError):
    """A file or directory is foreign, truncated, tampered with or otherwise unreadable."""


class NewerFormatError(FormatError):
    """Written by a newer version of this package."""


class StorageError(CompressaeError, OSError):
    """The system refuses to read or write a file, for lack of permission or space; see `errno`."""

    def __str__(self) -> str:
        # OSError would add errno and the file to a complete message.
        return str(self.strerror) if self.strerror else Exception.__str__(self)


class BackendError(CompressaeError):
    """A store of codes outside of this process failed or refused; the message says what to do."""


class TrainingError(CompressaeError):
    """Training cannot go on, for the reason in the message."""


class InstallationError(CompressaeError, ImportError):
    """Installed packages are broken or do not work together; the message has the command to repair them."""


class MissingExtraError(CompressaeError, ImportError):
    """An optional dependency is not installed; the message has the command to install it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; run: pip install 'compressae-index[{extra}]'"
        )
        self.package = package
        self.extra = extra
