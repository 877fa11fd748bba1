"""The devices of torch by name."""

from __future__ import annotations

import torch

from compressae_index.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: it is unknown, or not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # what "meta" has no numbers for
    except (RuntimeError, AssertionError) as error:
        msg = f"device {name!r} cannot be used: {str(error).splitlines()[0]}"
        raise InputError(msg) from error
    return device
