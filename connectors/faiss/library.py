"""Faiss as it is installed here: whether it is whole, which build it is, and which GPUs it reaches.

The other modules of this package take `faiss` from here, so that a broken installation is named once.
"""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from compressae_index.errors import InputError, InstallationError, MissingExtraError

# All of them install the folder faiss/: the one that was installed last works, or a mixture does.
BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
# Names that a whole Faiss has. The last one came with 1.11; what this package needs works from 1.12 on.
NEEDED = ("IndexFlatIP", "IndexIVFScalarQuantizer", "IDSelectorBitmap", "IO_FLAG_MMAP", "IndexIVFRaBitQ")
OLDEST = "1.12"


def installed_builds() -> list[str]:
    """Distributions that are installed and bring the folder faiss/."""
    found = []
    for name in BUILDS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


def repair(wanted: str, installed: list[str]) -> str:
    """The command that leaves one build of Faiss, and a whole one."""
    remove = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    return f"{remove}pip install {wanted}"


def _load() -> Any:
    builds = installed_builds()
    try:
        import faiss
    except ImportError as error:
        if not builds:
            raise MissingExtraError("faiss-cpu", "faiss", "the Faiss connector") from error
        msg = f"Faiss ({', '.join(builds)}) cannot be imported: {error}; run: {repair(builds[0], builds)}"
        raise InstallationError(msg) from error
    check(faiss, builds)
    return faiss


def check(module: Any, builds: list[str]) -> None:
    """Refuses a Faiss that lacks what this package uses; warns where two builds share its folder.

    Args:
        module: the imported module.
        builds: distributions that bring it, as `installed_builds` gives them.

    Raises:
        InstallationError: with the command that repairs it.
    """
    wanted = "faiss-gpu" if any("gpu" in name for name in builds) else "faiss-cpu"
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing and not hasattr(module, "__version__"):
        # What is left after one of two builds was uninstalled: it took the files of both.
        msg = f"the folder of Faiss is empty or in parts; run: {repair(wanted, builds)}"
        raise InstallationError(msg)
    if missing:
        command = repair(f"'{wanted}>={OLDEST}'", builds)
        msg = f"Faiss {module.__version__} has no {missing[0]}, which {OLDEST} and newer have; run: {command}"
        raise InstallationError(msg)
    if len(builds) > 1:
        note = " (milvus-lite works with it)" if wanted == "faiss-gpu" else ""
        warnings.warn(
            f"{' and '.join(builds)} are installed and share one folder, so chance decides which is used; "
            f"now it is the {build(module)} build. To keep one, run: {repair(wanted, builds)}{note}",
            stacklevel=3,
        )


def build(module: Any) -> str:
    """Which build of Faiss a module is: "GPU" or "CPU"."""
    # A CPU build has functions of the same names as the GPU's, which fail when they are called.
    return "GPU" if "GPU" in module.get_compile_options().split() else "CPU"


def find_gpus(device: str, module: Any = None) -> tuple[int, ...]:
    """GPUs that a device names; none for the processor.

    Args:
        device: "cpu"; "cuda" for all GPUs; "cuda:1" for one; "auto" for all GPUs where there are any.
        module: Faiss, by default as it is installed.

    Returns:
        Numbers of GPUs. () if there are none; "cuda" then warns and says why.

    Raises:
        InputError: another device, or a GPU of that number is not there while others are.
    """
    module = faiss if module is None else module
    named = re.fullmatch(r"cpu|auto|cuda(?::(\d+))?", str(device))
    if named is None:
        msg = f"device must be 'cpu', 'auto', 'cuda' or 'cuda:<number>', got {device!r}"
        raise InputError(msg)
    if device == "cpu":
        return ()
    # get_num_gpus aborts the process where a driver is broken, so a CPU build is not asked.
    count = module.get_num_gpus() if build(module) == "GPU" else 0
    if not count:
        if device != "auto":
            warnings.warn(_no_gpu(device, module), stacklevel=3)
        return ()
    if named[1] is None:
        return tuple(range(count))
    if int(named[1]) >= count:
        msg = f"device is {device!r}, but Faiss sees {count} GPU{'s' * (count > 1)}, numbered from 0"
        raise InputError(msg)
    return (int(named[1]),)


def _no_gpu(device: str, module: Any) -> str:
    if build(module) == "GPU":
        return f"Faiss sees no GPU, so {device!r} works on the CPU"
    return (
        f"this is Faiss's CPU build, so {device!r} works on the CPU; for a GPU (Linux x86-64, CUDA 12), "
        f"run: {repair('faiss-gpu', installed_builds())}"
    )


faiss = _load()
