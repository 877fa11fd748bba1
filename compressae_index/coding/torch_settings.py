"""Torch's settings of the thread and the process: ours while torch computes here, then the caller's again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch


@contextmanager
def own_settings() -> Iterator[None]:
    """Runs torch with its default settings inside, and restores the caller's at the end.

    Gradients are recorded, tensors are float32 on the CPU unless named otherwise, products are not rounded,
    and non-deterministic operations are allowed. The number of threads is the caller's.
    """
    with ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        settings.enter_context(torch.device("cpu"))
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        for device in ("cpu", *(name for name, is_there in available.items() if is_there)):
            settings.enter_context(torch.autocast(device, enabled=False))
        settings.enter_context(_PROCESS_WIDE)
        yield


class _ProcessWide:
    """Settings that all threads share: the first to enter sets them, the last to leave restores them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._theirs = _OURS

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._theirs = _Settings.current()
                _OURS.apply()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._theirs.apply()


class _Settings(NamedTuple):
    dtype: torch.dtype
    determinism: int
    """0: not asked for, 1: warn without it, 2: an error without it."""
    finds_anomalies: bool
    checks_nan: bool
    products: str | list[str]
    """How products of float32 are rounded, at each of `_products`, or as a whole where there are none."""

    @classmethod
    def current(cls) -> _Settings:
        return cls(
            torch.get_default_dtype(),
            torch.get_deterministic_debug_mode(),
            torch.is_anomaly_enabled(),
            torch.is_anomaly_check_nan_enabled(),
            [place.fp32_precision for place in _products()] or torch.get_float32_matmul_precision(),
        )

    def apply(self) -> None:
        torch.set_default_dtype(self.dtype)
        # Unlike use_deterministic_algorithms, this does not import torch's compiler, which takes a second.
        torch.set_deterministic_debug_mode(self.determinism)
        torch.autograd.set_detect_anomaly(self.finds_anomalies, self.checks_nan)
        if isinstance(self.products, str):
            torch.set_float32_matmul_precision(self.products)
            return
        for place, precision in zip(_products(), self.products, strict=True):
            place.fp32_precision = precision


def _products() -> list[Any]:
    """Where torch keeps that from 2.9 on; it tells no whole any more once a caller has set a part."""
    modules = (torch.backends.mkldnn, torch.backends.cuda)
    places = [getattr(module, "matmul", None) for module in modules]
    return [place for place in places if hasattr(place, "fp32_precision")]


_OURS = _Settings(
    dtype=torch.float32,
    determinism=0,
    finds_anomalies=False,
    checks_nan=True,
    products=["ieee"] * len(_products()) or "highest",
)
_PROCESS_WIDE = _ProcessWide()
