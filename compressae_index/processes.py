"""Processors that a process may use, locks that survive a fork, and state to pickle."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload
from weakref import WeakSet

T = TypeVar("T")


def usable_threads() -> int:
    """Threads to use: the minimum of affinity, the cgroup's quota and OMP_NUM_THREADS."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bounds = [processors, cpu_quota(), _omp_threads()]
    return min(bound for bound in bounds if bound is not None)


def _omp_threads() -> int | None:
    """The first number of OMP_NUM_THREADS, such as "4" or "4,2"; None if it is missing or not positive."""
    wanted = re.match(r"\s*\+?0*([1-9]\d{0,8})\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""), re.ASCII)
    return int(wanted[1]) if wanted else None


@cache
def cpu_quota(root: Path = Path("/")) -> int | None:
    """Processors that this process's cgroup and its ancestors allow, rounded up; None for no limit.

    Args:
        root: the folder of proc and sys/fs/cgroup.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # not Linux
        return None
    quotas = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            quotas += [_quota_v2(folder) for folder in _folders(root / "sys/fs/cgroup", group)]
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                quotas += [_quota_v1(folder) for folder in _folders(root / "sys/fs/cgroup" / mount, group)]
    found = [quota for quota in quotas if quota is not None]
    return max(math.ceil(min(found)), 1) if found else None


def _folders(mount: Path, group: str) -> list[Path]:
    """The folders of a cgroup and its ancestors; a container may see only the last."""
    path = Path(group.lstrip("/"))
    return [mount / part for part in (path, *path.parents)]


def _quota_v2(folder: Path) -> float | None:
    return _ratio(*_words(folder / "cpu.max"))


def _quota_v1(folder: Path) -> float | None:
    return _ratio(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us"))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _ratio(*words: str) -> float | None:
    """Quota over period; None for no quota, which is "max" or -1."""
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


class ForkSafeLock:
    """A lock that is free in a forked child, where the thread that held it does not exist.

    Guard only state that is replaced as a whole, so that the child finds the old or the new one. A copy has
    its own lock.
    """

    def __init__(self) -> None:
        # Use it directly: a context manager in Python may be interrupted right after it takes the lock.
        self.lock = threading.Lock()
        _locks.add(self)

    def __reduce__(self) -> tuple[type[ForkSafeLock], tuple[()]]:
        return type(self), ()


_locks: WeakSet[ForkSafeLock] = WeakSet()


def _renew_locks() -> None:
    for each in list(_locks):
        each.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


if sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property(Generic[T]):  # noqa: N801
        """cached_property of Python 3.12: that of 3.11 has a lock, which a forked child may find locked."""

        def __init__(self, make: Callable[[Any], T]) -> None:
            self._make = make
            self.__doc__ = make.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name

        @overload
        def __get__(self, instance: None, owner: type) -> cached_property[T]: ...
        @overload
        def __get__(self, instance: object, owner: type) -> T: ...
        def __get__(self, instance: object | None, owner: type) -> cached_property[T] | T:
            if instance is None:
                return self
            value: T = instance.__dict__.setdefault(self._name, self._make(instance))
            return value


def lasting_state(instance: object) -> dict[str, Any]:
    """The attributes of an object to pickle: all but those of a `cached_property`."""
    kind = type(instance)
    return {
        name: value
        for name, value in vars(instance).items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }
