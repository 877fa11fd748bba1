"""The trained model as plain arrays: encoding, decoding, projecting queries. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import _engine, persistence
from compressae_index._engine import Dictionary, Projection, RoughProjection, code_norms, top_k_codes
from compressae_index.arrays import FloatArray
from compressae_index.checks import (
    as_place,
    check_choice,
    check_int,
    check_threads,
    check_vectors,
    normalize_rows,
)
from compressae_index.coding.codes import MAX_LATENTS, SparseCodes
from compressae_index.coding.metric import Metric, row_norms
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError
from compressae_index.processes import cached_property
from compressae_index.sources.centred import less

Encoder: TypeAlias = Literal["pursuit", "topk"]
ENCODERS: tuple[Encoder, ...] = ("pursuit", "topk")

# Rows to encode at a time, to keep their dense activations (rows x n_latents float32) small.
BATCH_ROWS = 2048
# With more dimensions, sums of byte products could exceed 32 bits.
MAX_DIM = _engine.MAX_DIM
# Atoms between two least-squares solves of the pursuit; 4 costs 0.001 of recall@100 against 1, 8 costs 0.003.
SOLVE_EVERY = 4

_TENSORS = ("encoder_w", "encoder_b", "decoder_w")
# Rows closer to the mean than this get a code of zeros.
_AT_THE_MEAN = 1e-6
# If 1 - |m|^2 is below this, all rows are nearly the same. Folding then scales a code by at most this factor:
# the part of a row that a code leaves out is hardly longer.
_ALL_THE_SAME, _LONGEST_FOLD = 1e-4, 4.0


class CompresSAE:
    """A sparse autoencoder for embeddings (Kasalicky et al., RecSys 2025, arXiv 2505.11388).

    With x of unit norm, `topk` codes are s = phi(x W_enc + b_enc), where phi keeps the k entries of largest
    magnitude with their signs, and the reconstruction is x_hat = s W_dec. `pursuit` codes choose the support
    by orthogonal matching pursuit against the rows of W_dec, with least-squares values.

    Unlike the paper's, a model may hold the mean m of its training rows. It then encodes the direction of
    x - m, scales s to the length of x - m, and x_hat = m + s W_dec. The part that all rows share then takes
    no nonzero and no posting list as long as the index; it adds the same <q, m> to all scores of a query.

    For Euclidean distances, a model may hold a point c instead, near the middle of its training rows: it then
    encodes the directions of x - c, and an index keeps the lengths.

    A `rounded` dictionary is kept and stored as bytes, and an encoder that is its transpose not at all: the
    arrays below are made of it when they are asked for. A model does not change.
    """

    def __init__(
        self,
        encoder_w: FloatArray,
        encoder_b: FloatArray,
        decoder_w: FloatArray,
        k: int,
        mean: FloatArray | None = None,
    ) -> None:
        """A model of given parameters.

        Args:
            encoder_w: W_enc, (dim, n_latents) float32.
            encoder_b: b_enc, (n_latents,) float32.
            decoder_w: W_dec, the dictionary, (n_latents, dim) float32, unit rows.
            k: nonzeros a code, unless a call names another.
            mean: m, (dim,) float32, shorter than 1; None for zero, as in the paper.

        Raises:
            DimensionError: shapes do not fit together.
            InputError: values are not finite, decoder rows are not of unit norm, the mean is not shorter than
                1, or k is out of range.
        """
        _check_parameters(encoder_w, encoder_b, decoder_w, mean)
        check_int(k, "k", 1, len(decoder_w), "n_latents")
        self.n_latents, self.dim = int(decoder_w.shape[0]), int(decoder_w.shape[1])
        """Sizes h of the dictionary and d of the embeddings."""
        self.k = k
        """Nonzeros a code, unless a call names another."""
        self.mean = mean
        """m, (dim,) float32, or None."""
        self.center: FloatArray | None = None
        """c, (dim,) float32, or None; see `centred_at`."""
        self._projection = Projection(decoder_w)
        self._given: dict[str, FloatArray] = {}  # what the bytes of the projection do not say
        if not _same_bytes(_atoms_of(self._projection.entries()), decoder_w):
            self._given["decoder_w"] = decoder_w
        if encoder_b.any() or not np.array_equal(encoder_w, decoder_w.T):
            self._given |= {"encoder_w": encoder_w, "encoder_b": encoder_b}

    @classmethod
    def of_dictionary(cls, decoder_w: FloatArray, k: int, mean: FloatArray | None = None) -> CompresSAE:
        """A model whose encoder is the transpose of its dictionary; arguments are those of `CompresSAE`."""
        return cls(
            np.ascontiguousarray(decoder_w.T), np.zeros(len(decoder_w), np.float32), decoder_w, k, mean
        )

    def centred_at(self, center: FloatArray | None) -> CompresSAE:
        """The same model for vectors less a point c, (dim,) float32, or for vectors as they are.

        Raises:
            DimensionError: the point has another dimension.
            InputError: it is not finite, or the model leaves out a mean.
        """
        moved = CompresSAE._of_parameters(self.tensors(), self.k)
        return moved if center is None else moved._with_center(center)

    def _with_center(self, center: FloatArray) -> CompresSAE:
        """This model, which nobody else knows yet, with a center; errors as for `centred_at`."""
        if center.shape != (self.dim,):
            msg = f"decoder_w has {self.dim} columns, so center must be {(self.dim,)}, got {center.shape}"
            raise DimensionError(msg)
        if center.dtype != np.float32 or not center.flags.c_contiguous or not np.isfinite(center).all():
            msg = "center must be C-contiguous, finite float32"
            raise InputError(msg)
        if self.mean is not None:
            msg = "a model leaves out the mean of directions or a point, not both"
            raise InputError(msg)
        self.center = center
        return self

    @property
    def center_norm(self) -> float:
        """The norm of the center; 0 without one."""
        return 0.0 if self.center is None else float(row_norms(self.center[None])[0])

    def __repr__(self) -> str:
        mean = "" if self.mean is None else ", with a mean"
        mean += "" if self.center is None else ", centred"
        return (
            f"CompresSAE(dim={self.dim}, n_latents={self.n_latents}, k={self.k}{mean}, "
            f"{self.nbytes / 1e6:.1f} MB)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return CompresSAE._of_tensors, (self.tensors(), self.k)

    @property
    def encoder_w(self) -> FloatArray:
        """W_enc, (dim, n_latents) float32."""
        given = self._given.get("encoder_w")
        return np.ascontiguousarray(self.decoder_w.T) if given is None else given

    @property
    def encoder_b(self) -> FloatArray:
        """b_enc, (n_latents,) float32."""
        given = self._given.get("encoder_b")
        return np.zeros(self.n_latents, dtype=np.float32) if given is None else given

    @property
    def decoder_w(self) -> FloatArray:
        """W_dec, the dictionary, (n_latents, dim) float32, unit rows."""
        given = self._given.get("decoder_w")
        return self._atoms if given is None else given

    @property
    def nbytes(self) -> int:
        """Bytes in memory that searches need: one an entry of a `rounded` dictionary, and the mean.

        Half a byte more once `seen` has made rough products with a large dictionary.
        """
        others = [*self._given.values(), *(each for each in (self.mean, self.center) if each is not None)]
        rough: RoughProjection | None = vars(self).get("_rough_projection")
        projections = self._projection.nbytes + (0 if rough is None else rough.nbytes)
        return projections + sum(array.nbytes for array in others)

    def release(self) -> None:
        """Gives up what only encoding and decoding need; they make it again.

        That is the dictionary in float32 and in bytes, and products of up to 8,192 latents with each other.
        """
        for name in ("_atoms", "_dictionary"):
            vars(self).pop(name, None)

    @cached_property
    def _rough_projection(self) -> RoughProjection:
        return RoughProjection(self._projection)

    @cached_property
    def _atoms(self) -> FloatArray:
        return _atoms_of(self._projection.entries())

    def nonzeros(self, k: int | None, encoder: Encoder) -> int:
        """Nonzeros a code for a given k; for None the model's own, at most dim for pursuit.

        Raises:
            InputError: k is above n_latents or, for pursuit, above dim, as pursuit finds no more.
        """
        if k is None:
            return min(self.k, self.dim) if encoder == "pursuit" else self.k
        k = check_int(k, "k", 1, self.n_latents, "n_latents")
        return check_int(k, "k", 1, self.dim, "dim") if encoder == "pursuit" else k

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the parameters: codes fit a model exactly when the fingerprints agree."""
        digest = hashlib.sha256(f"{self.dim} {self.n_latents}".encode())
        is_held = "_atoms" in vars(self)
        for array in (self.encoder_w, self.encoder_b, self.decoder_w, self.mean, self.center):
            digest.update(b"" if array is None else array.tobytes())
        if not is_held:  # whoever asks for it wants to save or to compare, not to encode
            vars(self).pop("_atoms", None)
        return digest.hexdigest()[:32]

    @cached_property
    def _dictionary(self) -> Dictionary:
        return Dictionary(self.decoder_w)

    def encode(
        self,
        vectors: Any,
        k: int | None = None,
        *,
        encoder: Encoder = "pursuit",
        num_threads: int | None = None,
        device: str = "cpu",
    ) -> SparseCodes:
        """Codes of vectors, which need not have unit norm.

        Args:
            vectors: (n, dim) floating point.
            k: nonzeros a code; the model's own by default. Pursuit finds at most dim; the rest is 0.
            encoder: "pursuit", or "topk" for the paper's single pass.
            num_threads: threads of the engine; all by default.
            device: the device that runs pursuit: "cpu" (the engine); "cuda", "cuda:1" or "mps" need torch.

        Returns:
            n codes, not folded: `decode` of them approximates the normalised vectors, less `center` if there
            is one.

        Raises:
            InputError: NaN, infinite values, zero rows, a wrong shape or dtype, k above n_latents.
        """
        k = self.k if k is None else check_int(k, "k", 1, self.n_latents, "n_latents")
        check_choice(encoder, "encoder", ENCODERS)
        threads = check_threads(num_threads)
        rows = check_vectors(vectors, dim=self.dim, may_be_empty=True, zeros=self.center is not None)
        return self.encode_unit(normalize_rows(self.seen_from_center(rows)), k, encoder, threads, device)

    def seen_from_center(self, rows: FloatArray) -> FloatArray:
        """Rows (n, dim) less the model's center, if it has one; next to nothing where they are there."""
        return rows if self.center is None else less(rows, self.center)

    def encode_unit(
        self, unit: FloatArray, k: int, encoder: Encoder, num_threads: int, device: str = "cpu"
    ) -> SparseCodes:
        """As `encode`, of unit rows (n, dim) and settings that were checked."""
        if not len(unit):
            return SparseCodes.empty(k, self.n_latents)
        if self.mean is None:
            return self._encoded(unit, k, encoder, num_threads, device)
        directions, lengths = from_mean(unit, self.mean)
        return self._encoded(directions, k, encoder, num_threads, device).scaled(lengths)

    def _encoded(self, unit: FloatArray, k: int, encoder: Encoder, threads: int, device: str) -> SparseCodes:
        """Codes of unit rows (n, dim) from which the mean was subtracted."""
        if encoder == "pursuit" and device != "cpu":
            from compressae_index.coding.torch_pursuit import pursue_on

            codes = pursue_on(device, unit, self.decoder_w, k, SOLVE_EVERY)
            return SparseCodes(*codes, self.n_latents)
        if encoder == "pursuit":
            return SparseCodes(*self._dictionary.pursue(unit, k, SOLVE_EVERY, threads), self.n_latents)
        weights, biases = self.encoder_w, self.encoder_b
        return SparseCodes.concatenate(
            SparseCodes(*top_k_codes(batch @ weights + biases, k, threads), self.n_latents)
            for batch in _batches(unit)
        )

    def decode(self, codes: SparseCodes) -> FloatArray:
        """Reconstructions x_hat = m + s W_dec, (n, dim) float32.

        Raises:
            DimensionError: the codes are over another number of latents.
        """
        self._check_codes(codes)
        reconstructions: FloatArray = codes.to_csr() @ self.decoder_w
        if self.mean is not None:
            reconstructions += self.mean
        return reconstructions

    def fold(self, codes: SparseCodes, *, num_threads: int | None = None) -> SparseCodes:
        """Codes scaled so that their reconstruction has unit norm.

        The cosine of a unit query q and x_hat is then the plain sum <W_dec q, s>, plus <q, m> if the model
        has a mean, and no norm needs to be stored. The factor g > 0 solves |m + g s W_dec| = 1; without a
        mean it is 1 / |s W_dec|. A code with s W_dec = 0 stays as it is.
        """
        norms = self.norms(codes, num_threads=num_threads)
        norms[norms < 1e-12] = 1
        if self.mean is None:
            return codes.scaled(np.float32(1) / norms)
        lengths = norms.astype(np.float64)
        # Cosines of m and s W_dec, times |m|; float32 lacks the digits for rows that are nearly the same.
        # Not by BLAS, whose threads go on spinning after so short a product, where the engine's are to work.
        on_mean = np.einsum("hd,d->h", self.decoder_w, self.mean)
        along = np.einsum("nk,nk->n", codes.values, on_mean[codes.latents]) / lengths
        lacking = 1 - np.square(self.mean.astype(np.float64)).sum()
        factors = (np.sqrt(along**2 + lacking) - along) / lengths
        # The part that such a code leaves out may point inward, and would take it across the sphere.
        near = lacking + lengths**2 < _ALL_THE_SAME
        factors[near] = np.minimum(factors[near], _LONGEST_FOLD)
        return codes.scaled(factors.astype(np.float32))

    def norms(self, codes: SparseCodes, *, num_threads: int | None = None) -> FloatArray:
        """Norms of s W_dec, (n,) float32, by num_threads threads (all by default).

        Raises:
            DimensionError: the codes are over another number of latents.
        """
        self._check_codes(codes)
        return code_norms(codes.latents, codes.values, self.decoder_w, check_threads(num_threads))

    def _check_codes(self, codes: SparseCodes) -> None:
        if codes.n_latents != self.n_latents:
            msg = f"codes are over {codes.n_latents} latents, the model has {self.n_latents}"
            raise DimensionError(msg)

    def project(self, queries: Any, *, num_threads: int | None = None) -> FloatArray:
        """Projections of queries on the dictionary: u = W_dec q for the normalised q, less `center` before.

        A `rounded` dictionary takes a byte an entry, and its products are as exact as in float32. Any other
        is rounded to two bytes an entry, and products are off by about 2e-6.

        Args:
            queries: (n, dim) floating point.
            num_threads: threads of the engine; all by default.

        Returns:
            (n, n_latents) float32.

        Raises:
            InputError: NaN, infinite values, zero rows, a wrong shape or dtype.
        """
        threads = check_threads(num_threads)
        zeros = self.center is not None
        rows = check_vectors(queries, dim=self.dim, name="queries", may_be_empty=True, zeros=zeros)
        return self.seen(self.seen_from_center(rows), threads)[0]

    def mean_scores(self, queries: Any) -> FloatArray | None:
        """<q, m> for the normalised q, which the mean adds to all scores of a query: (n, 1) float32.

        None for a model without a mean.
        """
        rows = check_vectors(queries, dim=self.dim, name="queries", may_be_empty=True)
        return None if self.mean is None else (normalize_rows(rows) @ self.mean)[:, None]

    def seen(
        self, queries: FloatArray, num_threads: int, *, rough: bool = False
    ) -> tuple[FloatArray, FloatArray | None]:
        """`project` and `mean_scores` of checked queries (n, dim) from the center, normalised once.

        Rough products, of queries rounded to bytes, take a third of the multiplications. They are off by
        about a hundredth of 1 / sqrt(dim): good enough to choose documents, not for scores that are answers.
        Queries with an entry of more than 6 / sqrt(dim) of their norm are not rounded. Of a dictionary of
        more than 2 MiB, rough products read half a byte an entry, kept besides, and are off by about an
        eighth of 1 / sqrt(dim), unless the largest entries of its rows are on average above 5 / sqrt(dim).
        """
        projection = self._rough_projection if rough else self._projection
        return projection.project(queries, self.mean, num_threads)

    def rounded(self) -> CompresSAE:
        """The model with each row of W_dec rounded to multiples of 1 / 127 of its largest entry.

        Projection on it takes half the time. Training ends with this, so codes fit the rounded dictionary:
        rounding changes an atom by less than 1 %, and recall by nothing measurable.
        """
        steps = np.abs(self.decoder_w).max(axis=1, keepdims=True) / np.float32(127)
        atoms = _atoms_of(np.rint(self.decoder_w / steps).astype(np.int8))
        if "encoder_w" not in self._given:
            rounded = CompresSAE.of_dictionary(atoms, self.k, self.mean)
        else:
            rounded = CompresSAE(self.encoder_w, self.encoder_b, atoms, self.k, self.mean)
        return rounded if self.center is None else rounded._with_center(self.center)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], k: int, mean: FloatArray | None = None) -> CompresSAE:
        """From the state_dict of the paper's own implementation (recombee/CompresSAE), or of our trainer.

        Args:
            state: encoder_w (dim, n_latents), encoder_b (n_latents,), decoder_w (n_latents, dim): torch
                tensors or arrays. Decoder rows are normalised.
            k: nonzeros a code; a state_dict does not hold it.
            mean: m, (dim,) float32, if one was subtracted; nor does it hold this.

        Raises:
            InputError: a parameter is missing, unexpected, or not finite, or a decoder row is zero.
        """
        if set(state) != set(_TENSORS):
            msg = f"expected the parameters {', '.join(_TENSORS)}, got {', '.join(sorted(state)) or 'none'}"
            raise InputError(msg)
        arrays = {}
        for name in _TENSORS:
            arrays[name] = np.array(as_array(state[name], name), dtype=np.float32, order="C")
        arrays["decoder_w"] = normalize_rows(check_vectors(arrays["decoder_w"], name="decoder_w"))
        return cls(**arrays, k=k, mean=mean)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a directory: model.safetensors and manifest.json. An older model there is replaced.

        The path may be an address in a store, such as s3://bucket/items.model.

        Raises:
            FormatError: something else is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        persistence.write(path, "model", self.manifest(), tensors=self.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CompresSAE:
        """Reads what `save` wrote.

        Raises:
            FormatError: the directory is missing, foreign, truncated or tampered with.
            StorageError: no permission to read it.
        """
        where = as_place(path)
        stored = persistence.read(where, "model")
        with persistence.reading(str(where)):
            return cls.from_stored(stored.meta, stored.tensors)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The parameters as they are stored, by name.

        `dictionary` (n_latents, dim) int8, whose rows have the directions of those of W_dec, or `decoder_w`;
        `encoder_w` and `encoder_b` only if they are not the dictionary's transpose and 0; `mean` if there is
        one.
        """
        tensors: dict[str, npt.NDArray[Any]] = {}
        if "decoder_w" not in self._given:
            tensors["dictionary"] = self._projection.entries()
        tensors |= self._given
        points = {"mean": self.mean, "center": self.center}
        return tensors | {name: point for name, point in points.items() if point is not None}

    def manifest(self) -> dict[str, Any]:
        """The description of the model that is stored with its parameters."""
        return {"dim": self.dim, "n_latents": self.n_latents, "k": self.k, "fingerprint": self.fingerprint}

    @classmethod
    def from_stored(cls, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> CompresSAE:
        """The model from a manifest's entry and its tensors.

        Raises:
            InputError: they are not a model's, or do not match.
            KeyError: an entry or a tensor is missing.
        """
        model = cls._of_tensors(tensors, check_int(meta["k"], "k", 1))
        for name, value in model.manifest().items():
            if meta[name] != value or type(meta[name]) is not type(value):
                msg = f"{name} of the model is {value}, its manifest says {meta[name]!r:.100}"
                raise InputError(msg)
        return model

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], k: int) -> CompresSAE:
        made = cls._of_parameters(tensors, k)
        return made if "center" not in tensors else made._with_center(tensors["center"])

    @classmethod
    def _of_parameters(cls, tensors: Mapping[str, npt.NDArray[Any]], k: int) -> CompresSAE:
        mean = tensors.get("mean")
        if "dictionary" in tensors:
            entries = tensors["dictionary"]
            if entries.dtype != np.int8 or entries.ndim != 2:
                msg = f"the dictionary must be a matrix of int8, got {entries.dtype} of {entries.shape}"
                raise InputError(msg)
            check_int(entries.shape[1], "dim", 1, MAX_DIM)
            decoder_w = _atoms_of(entries)
        else:
            decoder_w = tensors["decoder_w"]
        if not {"encoder_w", "encoder_b"} & set(tensors):
            return cls.of_dictionary(decoder_w, k, mean)
        return cls(tensors["encoder_w"], tensors["encoder_b"], decoder_w, k, mean)


def _atoms_of(entries: npt.NDArray[np.int8]) -> FloatArray:
    """The unit rows of a dictionary of bytes, (n_latents, dim).

    They are the same bits on every processor, as a fingerprint is of them: sums of squares of bytes are exact
    in any order, and a quotient is rounded once.
    """
    rows = entries.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)).astype(np.float32)
    rows /= np.maximum(norms, np.float32(1))[:, None]
    return rows


def _same_bytes(one: FloatArray, other: FloatArray) -> bool:
    return np.array_equal(one.view(np.int32), other.view(np.int32))


def _check_parameters(
    encoder_w: FloatArray, encoder_b: FloatArray, decoder_w: FloatArray, mean: FloatArray | None
) -> None:
    """As `CompresSAE` raises."""
    if decoder_w.ndim != 2:
        msg = f"decoder_w must have shape (n_latents, dim), got {decoder_w.shape}"
        raise DimensionError(msg)
    h, d = decoder_w.shape
    if encoder_w.shape != (d, h) or encoder_b.shape != (h,):
        msg = (
            f"decoder_w is {decoder_w.shape}, so encoder_w must be {(d, h)} and encoder_b {(h,)}, "
            f"got {encoder_w.shape} and {encoder_b.shape}"
        )
        raise DimensionError(msg)
    check_int(h, "n_latents", 1, MAX_LATENTS)
    check_int(d, "dim", 1, MAX_DIM)
    if mean is not None and mean.shape != (d,):
        msg = f"decoder_w is {decoder_w.shape}, so mean must be {(d,)}, got {mean.shape}"
        raise DimensionError(msg)
    named = {"encoder_w": encoder_w, "encoder_b": encoder_b, "decoder_w": decoder_w, "mean": mean}
    for name, array in named.items():
        if array is None:
            continue
        if array.dtype != np.float32 or not array.flags.c_contiguous or not np.isfinite(array).all():
            msg = f"{name} must be C-contiguous, finite float32"
            raise InputError(msg)
    norms = np.linalg.norm(decoder_w, axis=1)
    off = int(np.abs(norms - 1).argmax())
    if abs(norms[off] - 1) > 1e-3:
        msg = f"decoder_w rows must have unit norm, row {off} has {norms[off]:.6g}"
        raise InputError(msg)
    if mean is not None and not (length := float(np.linalg.norm(mean.astype(np.float64)))) < 1:
        msg = f"the mean of unit rows is shorter than 1, got {length:.9g}"
        raise InputError(msg)


def from_mean(unit: FloatArray, mean: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Directions (n, dim) and lengths (n,) from the mean to unit rows.

    A row at the mean has length 0; its direction is its own, as any would do.
    """
    directions = unit - mean
    lengths = np.sqrt(np.einsum("nd,nd->n", directions, directions))
    at_mean = lengths < _AT_THE_MEAN
    lengths[at_mean] = 1
    directions /= lengths[:, None]
    directions[at_mean], lengths[at_mean] = unit[at_mean], 0
    return directions, lengths


def _batches(rows: FloatArray) -> Iterator[FloatArray]:
    for begin in range(0, len(rows), BATCH_ROWS):
        yield rows[begin : begin + BATCH_ROWS]


def check_is_model(model: Any) -> CompresSAE:
    """Checks that an argument is a model, and not the path of one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(model, CompresSAE):
        msg = f"model must be a CompresSAE, got {type(model).__name__}; CompresSAE.load reads one"
        raise InputError(msg)
    return model


def check_model(model: CompresSAE, metric: Metric) -> None:
    """Checks that a model fits a metric: with a mean, codes cannot keep norms, as m is not scaled by them.

    Euclidean distances from unit rows, of which no norms are kept, may have one.

    Raises:
        InputError: the model has a mean, and the metric is inner_product; or it has a center, and the metric
            is not l2.
    """
    if metric != "l2" and model.center is not None:
        msg = f'this model encodes vectors less a center, for metric="l2": metric="{metric}" needs another'
        raise InputError(msg)
    if metric == "inner_product" and model.mean is not None:
        msg = (
            f'metric="{metric}" needs codes of whole vectors, but this model leaves out their mean: '
            "train one with TrainConfig(center=False), or `train --no-center`"
        )
        raise InputError(msg)


def check_latents(model: CompresSAE, metric: Metric, n_latents: int) -> None:
    """Checks that codes over so many latents fit a model and a metric.

    Raises:
        DimensionError: they are over another number of latents.
        InputError: norms are kept of codes that are made without a mean.
    """
    more = n_latents - model.n_latents
    if more not in ((0, 1) if metric == "l2" else (0,)):
        msg = f"the codes are over {n_latents} latents, the model has {model.n_latents}"
        raise DimensionError(msg)
    if more and model.mean is not None:
        msg = (
            'this model leaves out the mean of unit rows, so with metric="l2" it needs unit rows: let '
            "`build` train one for others"
        )
        raise InputError(msg)
    if not more and model.center is not None:
        msg = "this model encodes vectors less a center, so their norms must be kept: one latent more"
        raise InputError(msg)
