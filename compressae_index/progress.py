"""Progress bars with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def track(total: int, label: str, *, enabled: bool, unit: str = "rows") -> Iterator[Callable[[int], object]]:
    """A bar on standard error that is gone when done; yields what to call with each step's size.

    It shows itself only where standard error is a terminal and the work takes longer than a second.
    """
    if not enabled:
        # tqdm takes locks even for a bar that it does not show, which a forked child may find locked.
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=1,
        disable=None,  # where standard error is no terminal
    ) as bar:
        yield bar.update
