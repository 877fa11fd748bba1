"""State dicts of other implementations: recombee/CompresSAE, both ways, and compresso-pytorch's TopKSAE.

Files are read as tensors and nothing else: no pickle is run.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import as_path
from compressae_index.coding.model import CompresSAE, check_is_model
from compressae_index.conversion import as_array
from compressae_index.errors import FormatError, InputError, MissingExtraError
from compressae_index.persistence import reading
from compressae_index.storage import accessing, open_file, written_aside

_SAFETENSORS = ".safetensors"
# compresso's linear layers hold transposes of the paper's matrices.
_COMPRESSO = {"encoder.weight": "encoder_w", "encoder.bias": "encoder_b", "decoder.weight": "decoder_w"}


def from_checkpoint(path: str | os.PathLike[str], k: int) -> CompresSAE:
    """The model of a state dict, whose names say what wrote it.

    Of recombee/CompresSAE, `encode(encoder="topk")` and `decode` give what its own give. Of compresso's
    TopKSAE, untied and without a bias of its decoder, the top-k latents of unit rows are its own; their
    values are too, but `decode` lacks the norms of its decoder's rows, so pursuit codes serve better.

    Args:
        path: a .safetensors file, or one of `torch.save`, which needs torch.
        k: nonzeros a code, which a state dict does not hold.

    Raises:
        FormatError: the file is missing, damaged, or holds more than tensors.
        InputError: other parameters, or some that are not finite; k out of range.
        MissingExtraError: torch is needed and not installed.
    """
    file = as_path(path)
    state = _tensors(file)
    if set(state) == set(_COMPRESSO):
        state = {ours: as_array(state[theirs], theirs).T for theirs, ours in _COMPRESSO.items()}
    try:
        return CompresSAE.from_state_dict(state, k)
    except InputError as error:
        msg = f"{file}: {error}"
        raise type(error)(msg) from error


def to_checkpoint(model: CompresSAE, path: str | os.PathLike[str]) -> None:
    """Writes the state dict of recombee/CompresSAE, whose `load_state_dict` takes it.

    Args:
        model: a model without a mean or center, which that implementation has no place for.
        path: the file, replaced if it exists: .safetensors, or anything else for `torch.save`.

    Raises:
        InputError: the model has a mean or a center.
        StorageError: the disk is full or refuses.
        MissingExtraError: torch is needed and not installed.
    """
    if check_is_model(model).mean is not None or model.center is not None:
        msg = "the model subtracts a mean, which upstream does not: train with TrainConfig(center=False)"
        raise InputError(msg)
    file = as_path(path)
    state = {name: np.array(getattr(model, name)) for name in ("encoder_w", "encoder_b", "decoder_w")}
    content = _written(state, file)
    with written_aside(file) as aside:
        aside.write_bytes(content)


def _tensors(file: Path) -> Mapping[str, Any]:
    """The tensors of a file by name."""
    torch = None if file.suffix == _SAFETENSORS else _torch()
    with accessing(file, "read"), reading(str(file)):
        with open_file(file.resolve()) as handle:  # a cache of the Hub holds links
            if torch is None:
                from safetensors.numpy import load

                return dict(load(handle.read()))
            state = torch.load(handle, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(torch.is_tensor(value) for value in state.values()):
            msg = f"{file} holds no state dict of tensors"
            raise FormatError(msg)
        return {str(name): tensor.float() for name, tensor in state.items()}


def _written(state: dict[str, FloatArray], file: Path) -> bytes:
    if file.suffix == _SAFETENSORS:
        from safetensors.numpy import save

        return bytes(save(state))
    torch, content = _torch(), io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, content)
    return content.getvalue()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "train", "a checkpoint of torch") from error
    return torch
