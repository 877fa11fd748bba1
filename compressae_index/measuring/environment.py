"""The machine and the versions behind a measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressae_index._engine import simd
from compressae_index.processes import usable_threads


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Versions of Python and packages, the machine and its load; JSON-able."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.platform(),
        "processor": _processor(),
        "processors": usable_threads(),
        "simd": simd(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
