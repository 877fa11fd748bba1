"""The steps of a training: the encoder, by the paper's loss. Here and in `module` alone, it needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import MissingExtraError, TrainingError
from compressae_index.progress import track
from compressae_index.training.course import Batches, Course, is_check

try:
    import torch
except ImportError as error:
    purpose = "training an encoder (steps = 0 learns a dictionary alone)"
    raise MissingExtraError("torch", "train", purpose) from error

from compressae_index.coding.torch_device import device_of
from compressae_index.coding.torch_settings import own_settings
from compressae_index.training.module import CompresSAEModule

# The default peak of the learning rate is this times 1 / sqrt(d); twice as much leaves latents dead.
LEARNING_RATE = 0.08
# The same when the decoder is frozen and only the encoder learns.
ENCODER_LEARNING_RATE = 0.16
# A first loss below this may not improve, and that is no failure.
GOOD_LOSS = 0.05
# A latent is dead if it did not fire while latents fired REVIVE_AFTER times on average; none is revived after
# the share REVIVE_UNTIL of the steps.
REVIVE_AFTER, REVIVE_UNTIL = 100, 0.8


def check_device(name: str) -> None:
    """Checks that steps can run on a device.

    Raises:
        InputError: it is unknown, or missing here.
    """
    with own_settings():
        device_of(name)


def trained(course: Course, atoms: FloatArray | None) -> CompresSAE:
    """The model after all steps, or when the held-out rows gain no more.

    Args:
        course: whose `rounds` have made the dictionary, which then stays as it is, or which has none.
        atoms: (n_latents, d) to start from; None for random parameters.

    Raises:
        FormatError: the checkpoint is damaged.
        TrainingError: training diverged.
    """
    config = course.config
    with own_settings():
        device = device_of(config.device)
        generator = torch.Generator().manual_seed(config.seed)
        module = CompresSAEModule(course.rows.shape[1], course.n_latents, course.k, generator=generator)
        module.use_bfloat16 = _bfloat16(config.precision, device)
        if atoms is not None:
            module.set_dictionary(torch.from_numpy(atoms.copy()))
        _Steps(course, module.to(device), device).run()
        return module.cpu().to_model()


class _Steps:
    """The steps of a module on a device."""

    def __init__(self, course: Course, module: CompresSAEModule, device: torch.device) -> None:
        config = course.config
        self.course, self.module, self.device = course, module, device
        self.frozen = config.refine_rounds > 0
        """Whether dictionary learning has made the decoder, which stays as it is."""
        module.decoder_w.requires_grad_(not self.frozen)
        rate = (ENCODER_LEARNING_RATE if self.frozen else LEARNING_RATE) / math.sqrt(course.rows.shape[1])
        self.optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=rate if config.learning_rate is None else config.learning_rate,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _rate(step, config.steps)
        )
        self.fired = torch.zeros(course.n_latents, device=device)
        """(n_latents,) uses since the last revival."""

    def run(self) -> None:
        """All steps; the best weights remain.

        Raises:
            FormatError: the checkpoint is damaged.
            TrainingError: training diverged, or got nowhere.
        """
        course, total = self.course, self.course.config.steps
        if (saved := course.saved("steps", self._like())) is not None:
            self._restore(saved)
        start = len(course.losses)
        if start == 0:
            self._look(0)
        batches = Batches(course.rows, course.config.batch_size, (course.config.seed, 4))
        with track(total, "training", enabled=course.progress, unit="steps") as advance:
            advance(start)
            for step in range(start, total):
                if self._out_of_patience():
                    break
                self._step(batches[step], revives=step < REVIVE_UNTIL * total)
                advance(1)
                if is_check(step + 1, total):
                    self._look(step + 1)
                    course.save("steps", self._state())
        if not self.frozen:
            self._check_progress()
        if "encoder_w" in course.best:
            self._set_weights(course.best)

    def _step(self, rows: FloatArray, *, revives: bool) -> None:
        """One step with a batch of rows (b, d), whose loss is noted.

        Raises:
            TrainingError: the loss is not finite.
        """
        course, batch = self.course, torch.from_numpy(rows).to(self.device)
        losses = self.module.train_step(self.optimizer, batch, self.fired)
        course.losses.append(float(losses.total.detach()))
        if not math.isfinite(course.losses[-1]):
            step = len(course.losses) - 1
            msg = f"the loss is {course.losses[-1]} at step {step}; try a smaller learning_rate"
            raise TrainingError(msg)
        self.schedule.step()
        if revives and not self.frozen and self.fired.sum() >= REVIVE_AFTER * course.n_latents:
            self.module.revive(self.optimizer, batch, self.fired)
            self.fired.zero_()

    def _set_weights(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        names = self.module.state_dict()
        self.module.load_state_dict({name: torch.from_numpy(arrays[name]) for name in names})

    def _look(self, after: int) -> None:
        course = self.course
        if len(course.held_out):
            loss = self.module.held_out_loss(torch.from_numpy(course.held_out).to(self.device))
            course.look("steps", after, loss, self.module.arrays())

    def _out_of_patience(self) -> bool:
        losses = self.course.losses_of("steps")
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.course.config.patience

    def _check_progress(self) -> None:
        held_out = self.course.losses_of("steps")
        if len(held_out) > self.course.config.patience and min(held_out) == held_out[0] > GOOD_LOSS:
            msg = (
                f"training got nowhere: the held-out loss was {held_out[0]:.4g} at first and "
                f"{held_out[-1]:.4g} after {len(self.course.losses)} steps; try a smaller learning_rate"
            )
            raise TrainingError(msg)

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        """Parameters, Adam's moments, the schedule and uses, by name."""
        arrays: dict[str, npt.NDArray[Any]] = dict(self.module.arrays())
        for number, moments in self.optimizer.state_dict()["state"].items():
            arrays |= {_moment(number, name): value.cpu().numpy() for name, value in moments.items()}
        return arrays | {
            "schedule": np.array(self.schedule.last_epoch),
            "fired": self.fired.cpu().numpy(),
        }

    def _like(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays as those of `_state`, which Adam has no moments for before its first step."""
        arrays: dict[str, npt.NDArray[Any]] = dict(self.module.arrays())
        for number, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            like = np.zeros(tuple(parameter.shape), np.float32)
            moments = {"step": np.zeros((), np.float32), "exp_avg": like, "exp_avg_sq": like}
            arrays |= {_moment(number, name): array for name, array in moments.items()}
        return arrays | {"schedule": np.array(0), "fired": self.fired.cpu().numpy()}

    def _restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from a `_state`."""
        self._set_weights(arrays)
        state = self.optimizer.state_dict()
        for number in range(len(self.optimizer.param_groups[0]["params"])):
            state["state"][number] = {
                name: torch.from_numpy(arrays[_moment(number, name)])
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
        self.optimizer.load_state_dict(state)
        # The rate depends only on the step; stepping the schedule would warn, as Adam has not stepped yet.
        schedule, step = self.schedule.state_dict(), int(arrays["schedule"])
        rates = [
            base * factor(step)
            for base, factor in zip(schedule["base_lrs"], self.schedule.lr_lambdas, strict=True)
        ]
        self.schedule.load_state_dict(
            {**schedule, "last_epoch": step, "_last_lr": rates, "_step_count": step + 1}
        )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.fired += torch.from_numpy(arrays["fired"]).to(self.device)


def _moment(number: int, name: str) -> str:
    return f"adam.{number}.{name}"


def _bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
