"""Dictionary learning from pursuit codes, whose nonzeros grow from few to k.

Each round encodes a batch of rows by orthogonal matching pursuit and moves every atom towards the rows that
use it: a step down the gradient of the squared error, scaled by how much the atom is used (the diagonal of
the matrix that the method of optimal directions, Engan et al. 1999, inverts as a whole), with momentum. Few
nonzeros at first spread the atoms over the data, as k-means does; starting at k ends at a larger error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import Dictionary
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import SOLVE_EVERY
from compressae_index.errors import TrainingError
from compressae_index.progress import track
from compressae_index.training.course import Batches, Course, Round, is_check

FIRST_NONZEROS = 4
# From this norm on, the mean of the unit rows becomes an atom.
LARGE_MEAN = 0.3
# Learning with more nonzeros gains little, and slows rounds down.
MOST_NONZEROS = 64
FIRST_STEP, LAST_STEP = 1.0, 0.1
MOMENTUM = 0.5
# Share of the mean use that is added to every atom's: keeps atoms with few rows from jumping to them.
DAMPING = 0.005
# Unused atoms are revived every so many rounds, and not after this share of the rounds.
REVIVE_EVERY, REVIVE_UNTIL = 5, 0.8


def first_atoms(course: Course) -> FloatArray:
    """The dictionary to start from, (n_latents, d) of unit norm: training rows, less their mean, or random.

    With fewer rows than latents, the last latents have random directions.
    """
    config, rows = course.config, course.rows
    rng = np.random.default_rng([config.seed, 5])
    atoms = normalize_rows(rng.standard_normal((course.n_latents, rows.shape[1]), dtype=np.float32))
    if config.initialization == "random":
        return atoms
    order = np.random.default_rng([config.seed, 2]).permutation(len(rows))
    chosen, mean = rows[order[: course.n_latents]], rows.mean(axis=0)
    centred = chosen - mean
    # A row that equals the mean has no direction of its own; it keeps a random one.
    own = np.flatnonzero(np.abs(centred).max(axis=1) > 1e-12)
    atoms[own] = normalize_rows(centred[own])
    # If the mean is long, rows share its direction, which no row minus the mean has.
    if np.linalg.norm(mean) > LARGE_MEAN:
        atoms[:1] = normalize_rows(mean[None])
    return atoms


def learned(course: Course, atoms: FloatArray, num_threads: int) -> FloatArray:
    """The dictionary (n_latents, d) after all rounds from `atoms`, the best by the held-out rows.

    Raises:
        FormatError: the checkpoint is damaged.
        TrainingError: the dictionary diverged.
    """
    if course.at_steps:
        return atoms  # in whose place steps put the dictionary that they saved
    config, total = course.config, course.config.refine_rounds
    learner = DictionaryLearner(atoms.copy(), k=course.k, rounds=total, num_threads=num_threads)
    if (saved := course.saved("refine", learner.state())) is not None:
        learner.restore(saved)
    batches = Batches(course.rows, config.rows_a_round(course.n_latents, len(course.rows)), (config.seed, 3))
    with track(total, "learning the dictionary", enabled=course.progress, unit="rounds") as advance:
        advance(learner.round)
        for number in range(learner.round, total):
            course.rounds.append(learner.learn(batches[number]))
            advance(1)
            if is_check(number + 1, total):
                # Held-out rows are measured at full k, which only the last rounds use.
                if learner.at_full_k and len(course.held_out):
                    weights = {"dictionary": learner.dictionary}
                    course.look("refine", number + 1, learner.error(course.held_out), weights)
                course.save("refine", learner.state())
    return course.best.get("dictionary", learner.dictionary)


class DictionaryLearner:
    """A dictionary (n_latents, dim) of unit rows, improved round by round; its state can be saved."""

    def __init__(self, dictionary: FloatArray, *, k: int, rounds: int, num_threads: int) -> None:
        self.dictionary = dictionary
        self.k = k
        self.rounds = rounds
        self.num_threads = num_threads
        self.round = 0
        self._gradient = np.zeros_like(dictionary)
        self._use = np.zeros(len(dictionary), dtype=np.float32)
        self._recent = np.zeros(len(dictionary), dtype=np.float32)

    def learn(self, rows: FloatArray) -> Round:
        """One round with a batch of unit rows (n, dim).

        Raises:
            TrainingError: the error is not finite, or exceeds that of empty codes.
        """
        nonzeros = self._nonzeros()
        codes = self.encode(rows, nonzeros).to_csr()
        residual = rows - codes @ self.dictionary
        energies = np.einsum("nd,nd->n", residual, residual)
        error = float(energies.mean())
        if not error < 1.5:  # the squared norm of a row is 1
            msg = f"the dictionary diverged: in round {self.round} the error is {error} of the squared norm"
            raise TrainingError(msg)
        transposed = codes.T.tocsr()
        self._gradient = MOMENTUM * self._gradient + transposed @ residual
        self._use = MOMENTUM * self._use + transposed.power(2).sum(axis=1)
        self._recent += np.bincount(codes.indices[codes.data != 0], minlength=len(self.dictionary))
        step = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (self.round / self.rounds)
        damped = self._use + DAMPING * self._use.mean() + np.finfo(np.float32).tiny
        self.dictionary = normalize_rows(self.dictionary + step * self._gradient / damped[:, None])
        revived = self._revive(residual, energies)
        self.round += 1
        return Round(nonzeros, error, revived)

    def encode(self, rows: FloatArray, nonzeros: int) -> SparseCodes:
        """Pursuit codes of unit rows, by the current dictionary.

        Their values are solved for twice: atoms learn as much from these codes as from those of an index.
        """
        solve_every = max(SOLVE_EVERY, nonzeros // 2)
        # The products of all atoms with each other, made for these rows alone, cost as much as those of twice
        # as many rows with all atoms. Pursuit in rounds takes the latter anew for every solve_every nonzeros.
        n_again = len(rows) * ((nonzeros - 1) // solve_every)
        in_rounds = True if n_again < 2 * len(self.dictionary) else None
        codes = Dictionary(self.dictionary).pursue(rows, nonzeros, solve_every, self.num_threads, in_rounds)
        return SparseCodes(*codes, len(self.dictionary))

    def error(self, rows: FloatArray) -> float:
        """Mean squared error of unit rows, at the nonzeros of the last round."""
        codes = self.encode(rows, min(self.k, MOST_NONZEROS))
        return float(np.square(rows - codes.to_csr() @ self.dictionary).sum() / len(rows))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that the next round depends on, except its rows."""
        return {
            "dictionary": self.dictionary,
            "gradient": self._gradient,
            "use": self._use,
            "recent": self._recent,
            "round": np.array(self.round),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restores a `state`, whose arrays have the shapes and dtypes of this learner's."""
        self.dictionary, self._gradient = state["dictionary"], state["gradient"]
        self._use, self._recent = state["use"], state["recent"]
        self.round = int(state["round"])

    @property
    def at_full_k(self) -> bool:
        """Whether the next round uses as many nonzeros as `error` does."""
        return self.round >= self.rounds or self._nonzeros() == min(self.k, MOST_NONZEROS)

    def _nonzeros(self) -> int:
        """Doubles from FIRST_NONZEROS to k over the rounds, each level for as many rounds."""
        last = min(self.k, MOST_NONZEROS)
        levels = [last]
        while levels[0] > FIRST_NONZEROS:
            levels.insert(0, max(levels[0] // 2, FIRST_NONZEROS))
        return levels[self.round * len(levels) // self.rounds]

    def _revive(self, residual: FloatArray, energies: FloatArray) -> int:
        if self.round % REVIVE_EVERY != REVIVE_EVERY - 1:
            return 0
        unused = np.flatnonzero(self._recent == 0)
        self._recent[:] = 0
        if self.round > REVIVE_UNTIL * self.rounds or not unused.size:
            return 0
        worst = np.argsort(-energies, kind="stable")[: unused.size]
        worst = worst[energies[worst] > np.finfo(np.float32).eps]
        revived = unused[: len(worst)]
        self.dictionary[revived] = normalize_rows(residual[worst])
        self._gradient[revived] = 0
        self._use[revived] = 0
        return len(revived)
