"""The state of a training run on disk, to go on from after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compressae_index import persistence
from compressae_index.errors import InputError
from compressae_index.persistence import Stored, check_target
from compressae_index.training.module import CompresSAEModule


class Checkpoint:
    """The state of a run on disk, replaced in one step."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity

    def load(self) -> Stored | None:
        """What was saved last, or None.

        Raises:
            InputError: it belongs to other settings or other rows.
            FormatError: it is damaged, or something else is there.
        """
        check_target(self._path, "checkpoint")
        if not persistence.was_written(self._path):
            return None
        stored = persistence.read(self._path, "checkpoint")
        theirs = stored.meta.get("identity", {})
        for name, value in self._identity.items():
            if theirs.get(name) != value:
                what = "other rows" if name == "rows" else f"{name} = {theirs.get(name)}, not {value}"
                msg = f"the checkpoint {self._path} was made with {what}; remove it or name another directory"
                raise InputError(msg)
        return stored

    def save(self, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replaces what was saved before.

        Raises:
            StorageError: the disk is full or refuses; what was saved before is untouched.
        """
        persistence.write(
            self._path, "checkpoint", {**meta, "identity": self._identity}, arrays=arrays, tensors={}
        )


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
        """Goes on where `arrays` was taken."""
        names = list(self._module.state_dict())
        self._module.load_state_dict({name: torch.from_numpy(arrays[name]) for name in names})
        state = self._optimizer.state_dict()
        for key, array in arrays.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                state["state"].setdefault(int(number), {})[name] = torch.from_numpy(array)
        self._optimizer.load_state_dict(state)
        # The schedule's rate depends on nothing but the step; stepping there warns before Adam has stepped.
        schedule = self._schedule.state_dict()
        step = int(arrays["schedule"])
        rates = [
            base * factor(step)
            for base, factor in zip(schedule["base_lrs"], self._schedule.lr_lambdas, strict=True)
        ]
        self._schedule.load_state_dict(
            {**schedule, "last_epoch": step, "_last_lr": rates, "_step_count": step + 1}
        )
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
