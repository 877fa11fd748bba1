"""Torch devices by name."""

from __future__ import annotations

import torch

from compressae_index.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InputError: it is unknown, or missing here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails for "meta", which has no numbers
    except (RuntimeError, AssertionError) as error:
        msg = f"device {name!r} cannot be used: {str(error).splitlines()[0]}"
        raise InputError(msg) from error
    return device
