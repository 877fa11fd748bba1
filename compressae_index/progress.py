"""Progress on standard error, bars with the time left on a terminal, else lines; and what phases took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds before the first line, and between lines, if standard error is not a terminal.
FIRST_LINE, NEXT_LINE = 3, 10


@contextmanager
def track(total: int, label: str, *, enabled: bool, unit: str = "rows") -> Iterator[Callable[[int], object]]:
    """Shows a bar on standard error until the work is done; yields a function to call with each step's size.

    The bar appears after a second. If standard error is not a terminal, lines appear now and then instead.
    """
    if not enabled:
        # tqdm takes locks even for a hidden bar, and a forked child may find them locked.
        yield lambda _: None
        return
    from tqdm import tqdm

    if not _is_terminal():
        yield _Lines(total, label, unit).advance
        return
    with tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=1,
        disable=None,  # hidden if standard error is not a terminal
    ) as bar:
        yield bar.update


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the time of what is inside to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def say(line: str) -> None:
    """Prints a line on standard error, before long work."""
    print(line, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class _Lines:
    """Prints progress as lines, the first after a while and the next rarely."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done = 0
        self._started = time.monotonic()
        self._next = float(FIRST_LINE)

    def advance(self, step: int) -> None:
        """Counts a step."""
        self._done += step
        seconds = time.monotonic() - self._started
        if seconds < self._next or not 0 < self._done < self._total:
            return
        self._next = seconds + NEXT_LINE
        left = seconds * (self._total - self._done) / self._done
        say(
            f"{self._label}: {self._done:,} of {self._total:,} {self._unit}, {seconds:.0f} s, "
            f"about {left:.0f} s left"
        )
