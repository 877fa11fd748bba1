"""Pursuit on a GPU: the engine's algorithm, for a batch of rows at a time."""

from __future__ import annotations

import torch

from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import LatentArray
from compressae_index.coding.torch_device import device_of
from compressae_index.coding.torch_settings import own_settings

# Rows at a time: correlations (rows x n_latents float32) and atoms (rows x k x dim) must fit in memory.
BATCH_ROWS = 2048
# Added to the diagonal of a support's Gram matrix, so that linearly dependent atoms can be solved for.
RIDGE = 1e-6


def pursue_on(
    device: str, unit: FloatArray, dictionary: FloatArray, k: int, solve_every: int
) -> tuple[LatentArray, FloatArray]:
    """Pursuit codes of unit rows on a device of torch.

    Args:
        device: as for `TrainConfig.device`.
        unit: (n, dim) float32 rows of unit norm.
        dictionary: (n_latents, dim) float32 rows of unit norm.
        k: nonzeros a code.
        solve_every: atoms between two least-squares solves, or a third of the support if that is more.

    Returns:
        Latents (n, k) uint16, ascending, and their values (n, k) float32.

    Raises:
        InputError: the device is missing.
    """
    with own_settings():
        place = device_of(device)
        atoms = torch.from_numpy(dictionary).to(place)
        parts = [
            tuple(part.cpu() for part in _pursue(rows.to(place), atoms, k, solve_every))
            for rows in torch.from_numpy(unit).split(BATCH_ROWS)  # type: ignore[no-untyped-call]
        ]
        latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return latents.numpy().astype("uint16"), values.numpy()


@torch.no_grad()
def _pursue(
    rows: torch.Tensor, dictionary: torch.Tensor, k: int, solve_every: int
) -> tuple[torch.Tensor, torch.Tensor]:
    support = torch.empty((len(rows), 0), dtype=torch.int64, device=rows.device)
    residual, values, next_solve = rows, rows.new_empty((len(rows), 0)), solve_every
    while support.shape[1] < k:
        correlations = residual @ dictionary.T
        chosen = correlations.abs().scatter(1, support, -1).argmax(dim=1, keepdim=True)
        support = torch.cat([support, chosen], dim=1)
        if support.shape[1] in (next_solve, k):
            next_solve += max(solve_every, next_solve // 3)
            next_solve = k if 8 * next_solve > 7 * k else next_solve
            atoms = dictionary[support]
            gram = atoms @ atoms.mT + RIDGE * torch.eye(support.shape[1], device=rows.device)
            values = torch.linalg.solve(gram, atoms @ rows[:, :, None])[:, :, 0]
            residual = rows - (values[:, None] @ atoms)[:, 0]
        else:
            residual = residual - correlations.gather(1, chosen) * dictionary[chosen[:, 0]]
    support, order = support.sort(dim=1)
    return support, values.gather(1, order)
