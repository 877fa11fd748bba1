"""The state of a training run on disk, to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compressae_index import persistence
from compressae_index.errors import InputError
from compressae_index.persistence import Stored
from compressae_index.storage import check_writable
from compressae_index.training.module import CompresSAEModule

_KIND = "checkpoint"


def check_place(path: Path) -> None:
    """Checks that a directory can hold a checkpoint: it is empty or holds one, and can be written.

    Raises:
        FormatError, StorageError: it cannot.
    """
    check_writable(path)
    if persistence.was_written(path):
        persistence.read_manifest(path, _KIND)  # explains damage better
    persistence.check_target(path, _KIND)


class OtherRunError(InputError):
    """A checkpoint belongs to a run of other settings or other rows."""


class Checkpoint:
    """The state of a run on disk, replaced in one step."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity

    def load(self) -> Stored | None:
        """The state saved last, or None.

        Raises:
            OtherRunError: it belongs to other settings or other rows.
            FormatError: it is damaged, or something else is there.
        """
        check_place(self._path)
        if not persistence.was_written(self._path):
            return None
        stored = persistence.read(self._path, _KIND)
        with self.reading():
            theirs = persistence.entry(stored.meta, "identity", dict)
        for name, value in self._identity.items():
            if theirs.get(name) != value:
                what = "other rows" if name == "rows" else f"{name} = {theirs.get(name)}, not {value}"
                msg = f"the checkpoint {self._path} was made with {what}; remove it or name another directory"
                raise OtherRunError(msg)
        return stored

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns errors of the code inside into a FormatError about the checkpoint."""
        with persistence.reading(str(self._path)):
            yield

    def save(self, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replaces the saved state.

        Raises:
            StorageError: the disk is full or refuses; what was saved before is untouched.
        """
        persistence.write(self._path, _KIND, {**meta, "identity": self._identity}, arrays=arrays, tensors={})


def saved_like(arrays: Mapping[str, npt.NDArray[Any]], name: str, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A saved array, checked to have the shape and dtype of `own`.

    Raises:
        InputError: it has others, or is not finite.
        KeyError: it is missing.
    """
    array = arrays[name]
    if array.shape != own.shape or array.dtype != own.dtype or not np.isfinite(array).all():
        msg = f"{name} must be finite {own.dtype} {own.shape}, got {array.dtype} {array.shape}"
        raise InputError(msg)
    return array


class ModuleState:
    """Parameters, Adam's moments and the schedule as arrays."""

    def __init__(
        self,
        module: CompresSAEModule,
        optimizer: torch.optim.Adam,
        schedule: torch.optim.lr_scheduler.LambdaLR,
    ) -> None:
        self._module, self._optimizer, self._schedule = module, optimizer, schedule

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state by name."""
        arrays: dict[str, npt.NDArray[Any]] = dict(self._module.arrays())
        for number, moments in self._optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{number}.{name}": value.cpu().numpy() for name, value in moments.items()}
        return arrays | {"schedule": np.array(self._schedule.last_epoch)}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restores the state from `arrays`.

        Raises:
            InputError: an array is not one of this state.
            KeyError: one is missing.
        """
        own = self._module.arrays()
        self._module.load_state_dict(
            {name: torch.from_numpy(saved_like(arrays, name, array)) for name, array in own.items()}
        )
        state = self._optimizer.state_dict()
        for number, parameter in enumerate(self._optimizer.param_groups[0]["params"]):
            like = np.zeros(tuple(parameter.shape), np.float32)
            moments = {"step": np.zeros((), np.float32), "exp_avg": like, "exp_avg_sq": like}
            state["state"][number] = {
                name: torch.from_numpy(saved_like(arrays, f"adam.{number}.{name}", array))
                for name, array in moments.items()
            }
        self._optimizer.load_state_dict(state)
        # The rate depends only on the step; stepping the schedule would warn, as Adam has not stepped yet.
        schedule = self._schedule.state_dict()
        step = int(saved_like(arrays, "schedule", np.array(0)))
        rates = [
            base * factor(step)
            for base, factor in zip(schedule["base_lrs"], self._schedule.lr_lambdas, strict=True)
        ]
        self._schedule.load_state_dict(
            {**schedule, "last_epoch": step, "_last_lr": rates, "_step_count": step + 1}
        )
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
