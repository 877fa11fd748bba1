"""The installed Faiss: whether it is complete, which build it is, and which GPUs it sees.

Other modules import `faiss` from here, so that a broken installation is reported in one place.
"""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from compressae_index.errors import InputError, InstallationError, MissingExtraError

# All install the folder faiss/: the last one overwrites the others, or leaves a mixture.
BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
# Names that a complete Faiss has. IndexIVFRaBitQ came with 1.11, but this package needs 1.12.
NEEDED = ("IndexFlatIP", "IndexIVFScalarQuantizer", "IDSelectorBitmap", "IO_FLAG_MMAP", "IndexIVFRaBitQ")
OLDEST = "1.12"


def installed_builds() -> list[str]:
    """Installed distributions that contain the folder faiss/."""
    found = []
    for name in BUILDS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


def repair(wanted: str, installed: list[str]) -> str:
    """The command that leaves one complete build of Faiss."""
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
        builds: the distributions that contain it, from `installed_builds`.

    Raises:
        InstallationError: something is missing; the message has the command that repairs it.
    """
    wanted = "faiss-gpu" if any("gpu" in name for name in builds) else "faiss-cpu"
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing and not hasattr(module, "__version__"):
        # Uninstalling one of two builds removes the files of both.
        msg = f"the folder of Faiss is empty or incomplete; run: {repair(wanted, builds)}"
        raise InstallationError(msg)
    if missing:
        command = repair(f"'{wanted}>={OLDEST}'", builds)
        msg = f"Faiss {module.__version__} has no {missing[0]}, which {OLDEST} and newer have; run: {command}"
        raise InstallationError(msg)
    if len(builds) > 1:
        note = " (milvus-lite works with it)" if wanted == "faiss-gpu" else ""
        warnings.warn(
            f"{' and '.join(builds)} are installed in the same folder, so either may be in use; "
            f"now it is the {build(module)} build. To keep one, run: {repair(wanted, builds)}{note}",
            stacklevel=3,
        )


def build(module: Any) -> str:
    """The build of a Faiss module: "GPU" or "CPU"."""
    # A CPU build also has the GPU functions, but they fail when called.
    return "GPU" if "GPU" in module.get_compile_options().split() else "CPU"


def find_gpus(device: str, module: Any = None) -> tuple[int, ...]:
    """The GPUs of a device name; none for the processor.

    Args:
        device: "cpu"; "cuda" for all GPUs; "cuda:1" for one; "auto" for all GPUs, if there are any.
        module: the Faiss module; the installed one by default.

    Returns:
        Numbers of GPUs. If there are none, (), and "cuda" warns with the reason.

    Raises:
        InputError: an unknown device, or the machine has GPUs but none of this number.
    """
    module = faiss if module is None else module
    named = re.fullmatch(r"cpu|auto|cuda(?::(\d+))?", str(device))
    if named is None:
        msg = f"device must be 'cpu', 'auto', 'cuda' or 'cuda:<number>', got {device!r}"
        raise InputError(msg)
    if device == "cpu":
        return ()
    # get_num_gpus aborts the process if a driver is broken, so do not call it in a CPU build.
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
        return f"Faiss sees no GPU, so {device!r} runs on the CPU"
    return (
        f"this is Faiss's CPU build, so {device!r} runs on the CPU; for a GPU (Linux x86-64, CUDA 12), "
        f"run: {repair('faiss-gpu', installed_builds())}"
    )


faiss = _load()
