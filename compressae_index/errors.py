"""Everything this package raises on purpose.

CompressaeError
├── InputError           an argument is wrong; also a ValueError
│   ├── DimensionError       two sizes that must agree do not
│   └── UnknownIdError       an id that the index does not hold; also a KeyError
├── FormatError          a file or directory is not what it should be
│   └── NewerFormatError     written by a newer version of this package
├── StorageError         the system refuses to read or write: no permission, a full disk; also an OSError
├── BackendError         something that keeps codes outside of this process failed or refused
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

    # KeyError would print the message's repr.
    __str__ = Exception.__str__


class FormatError(CompressaeError):
    """A file or directory is foreign, truncated, tampered with or otherwise unreadable."""


class NewerFormatError(FormatError):
    """Written by a newer version of this package."""


class StorageError(CompressaeError, OSError):
    """The system refuses to read or write a file, for want of permission or room; `errno` says which."""

    def __str__(self) -> str:
        # OSError would print the number and the file around what already says all.
        return str(self.strerror) if self.strerror else Exception.__str__(self)


class BackendError(CompressaeError):
    """Something that keeps codes outside of this process failed or refused; the message says what to do."""


class TrainingError(CompressaeError):
    """Training cannot go on, for the reason that the message gives."""


class InstallationError(CompressaeError, ImportError):
    """Installed packages are broken or do not work together; the message has the command that repairs it."""


class MissingExtraError(CompressaeError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; run: pip install 'compressae-index[{extra}]'"
        )
        self.package = package
        self.extra = extra
