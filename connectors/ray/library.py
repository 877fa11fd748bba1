"""Ray, imported when it is needed, and started where it does not run yet."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from compressae_index.checks import as_place
from compressae_index.errors import BackendError, CompressaeError, MissingExtraError
from compressae_index.remote import Place
from compressae_index.sources.paths import PathLike


def started() -> Any:
    """The module ray, connected: to the cluster that RAY_ADDRESS names, or to one made on this machine.

    A program that has called `ray.init` keeps its connection.

    Raises:
        MissingExtraError: ray is not installed.
        BackendError: there is no cluster at RAY_ADDRESS.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "working on several processes or machines") from error
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            msg = f"Ray cannot be reached: {error}"
            raise BackendError(msg) from error
    return ray


def raised(error: Exception) -> Exception:
    """What a task or actor raised, as if it had been raised here; other errors of Ray in words."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CompressaeError):
        return cause
    if type(error).__module__.partition(".")[0] == "ray":
        reason = str(error).strip().rpartition("\n")[2]
        msg = f"Ray could not run the work, or lost its workers too often: {type(error).__name__}: {reason}"
        return BackendError(msg)
    return error


def absolute(path: PathLike) -> Place:
    """A path as workers know it, whose working directories differ."""
    place = as_place(path)
    return place.absolute() if isinstance(place, Path) else place
