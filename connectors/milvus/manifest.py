"""The model of a compressed collection and its manifest, stored in a collection of their own.

The model is in Milvus so that whoever knows the uri and the name can search. It is stored as vectors, which
every version of Milvus stores exactly and without a limit on size:

    latent      primary key; one row a latent, and one more of the mean or the center if the model has one
    weights     the latent's row of the decoder and its column of the encoder; of the mean, twice the mean; of
                the center, that and zeros
    encoder_b   the latent's bias; of the mean 0, of the center 1
    manifest    JSON in row 0, which is written last
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pymilvus import DataType

from compressae_index import persistence
from compressae_index.checks import check_bool, check_choice, check_int, check_number
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import METRICS, Metric, RowScale
from compressae_index.coding.model import (
    ENCODERS,
    MAX_DIM,
    CompresSAE,
    Encoder,
    check_is_model,
    check_model,
)
from compressae_index.coding.residual import check_residual_bits
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.schema import Key
from compressae_index.errors import BackendError, CompressaeError, FormatError, InputError, NewerFormatError

Dense: TypeAlias = Literal["float16", "float32"]
DENSE: tuple[Dense, ...] = ("float16", "float32")
Originals: TypeAlias = Literal["float16", "float32", "source"]
ORIGINALS: tuple[Originals, ...] = ("float16", "float32", "source")

FORMAT_VERSION = 1
# Entries that version 0.1 does not know.
_NEW = ("originals", "residual_bits", "norms", "height", "digests", "replaces", "in_place")
_MODEL_SUFFIX = "_model"
_LATENT = Key("latent")
# Rows of a model in one request.
_MODEL_ROWS = 1024


@dataclass(frozen=True)
class Manifest:
    """How the rows of a compressed collection were made."""

    fingerprint: str
    """Of the model that encoded."""
    dim: int
    n_latents: int
    k: int
    """Nonzeros a code."""
    encoder: Encoder
    metric: Metric
    dense: Dense | None
    """Type of the reconstructed dense field, if the collection has one."""
    source: dict[str, Any] = field(default_factory=dict)
    """Origin of imported rows: collection, vector_field, filter; empty if they were not imported."""
    format_version: int = FORMAT_VERSION
    originals: Originals | None = None
    """Type of the field of original vectors, or that they are in the source collection; None for none."""
    residual_bits: int = 0
    """Bits a dimension of residual codes; 0 for none."""
    norms: bool = False
    """Whether codes have one pair more, of their norms, for Euclidean distances."""
    height: float = 0.0
    """What half the square of a norm is subtracted from."""
    digests: bool = False
    """Whether a digest of the row that it was imported from is kept with each row."""
    replaces: str = ""
    """The collection that was coded anew into this one, until that is dropped."""
    in_place: bool = False
    """Whether codes are in the rows of the source itself."""

    @property
    def own_originals(self) -> Dense | None:
        """Type of the field of original vectors, if the collection has one."""
        return None if self.originals == "source" else self.originals

    def scale(self) -> RowScale:
        """The scale of its codes: norms are as they come, in float32 unless a field has half precision."""
        in_half = self.residual_bits or "float16" in (self.dense, self.originals)
        return RowScale(self.metric, 1.0, unit_rows=not self.norms, in_float32=not in_half)

    @classmethod
    def of(
        cls,
        model: CompresSAE,
        *,
        k: int | None,
        encoder: Encoder,
        metric: Metric,
        dense: Dense | None,
        originals: Originals | None,
        residual_bits: int,
        source: dict[str, Any] | None = None,
        longest: float | None = None,
        replaces: str = "",
        in_place: bool = False,
    ) -> Manifest:
        """The manifest of a new collection.

        Raises:
            InputError: an option is out of range.
        """
        check_is_model(model)
        check_model(model, check_choice(metric, "metric", METRICS))
        norms = metric == "l2" and model.mean is None
        if norms:
            check_room_for_norms(model.n_latents)
            if longest is None:
                msg = (
                    'metric="l2" needs longest, the norm of the longest vectors to expect, from the center '
                    "of the model: candidates are found by distances up to there"
                )
                raise InputError(msg)
        if originals == "source" and not source:
            msg = "originals='source' needs a source collection, as an import has: use 'float16' or 'float32'"
            raise InputError(msg)
        if originals is not None and check_residual_bits(residual_bits):
            msg = "residual_bits cannot be given with originals, which say all that residual codes could"
            raise InputError(msg)
        return cls(
            fingerprint=model.fingerprint,
            dim=model.dim,
            n_latents=model.n_latents,
            k=model.nonzeros(k, encoder),
            encoder=check_choice(encoder, "encoder", ENCODERS),
            metric=check_choice(metric, "metric", METRICS),
            dense=None if dense is None else check_choice(dense, "dense", DENSE),
            source=source or {},
            originals=None if originals is None else check_choice(originals, "originals", ORIGINALS),
            residual_bits=check_residual_bits(residual_bits),
            norms=norms,
            height=height_of(longest) if norms else 0.0,
            digests=bool(source or replaces),
            replaces=replaces,
            in_place=in_place,
        )

    @classmethod
    def from_json(cls, text: str, name: str) -> Manifest:
        """The manifest of collection `name` from what `save_model` wrote.

        Raises:
            NewerFormatError: a newer version of this package wrote it.
            ValueError, KeyError, TypeError, RecursionError: it is damaged.
        """
        stored = json.loads(text)
        if check_int(stored["format_version"], "format_version", 1) > FORMAT_VERSION:
            msg = (
                f"collection {name!r} has format version {stored['format_version']}, "
                f"but this compressae-index reads up to {FORMAT_VERSION}"
            )
            raise NewerFormatError(msg)
        manifest = cls(**stored)
        check_int(manifest.dim, "dim", 1, MAX_DIM)
        check_int(manifest.n_latents, "n_latents", 1, MAX_LATENTS)
        check_int(manifest.k, "k", 1, manifest.n_latents, "n_latents")
        check_choice(manifest.encoder, "encoder", ENCODERS)
        check_choice(manifest.metric, "metric", METRICS)
        check_choice(manifest.dense or "", "dense", ("", *DENSE))
        check_choice(manifest.originals or "", "originals", ("", *ORIGINALS))
        check_residual_bits(manifest.residual_bits)
        if check_bool(manifest.norms, "norms") and manifest.metric != "l2":
            msg = f"norms are of metric 'l2', not of {manifest.metric!r}"
            raise InputError(msg)
        if not 0 <= check_number(manifest.height, "height") < np.inf:
            msg = f"height must be finite and not negative, got {manifest.height}"
            raise InputError(msg)
        check_bool(manifest.digests, "digests")
        persistence.entry(asdict(manifest), "fingerprint", str)
        persistence.entry(asdict(manifest), "source", dict)
        persistence.entry(asdict(manifest), "replaces", str)
        check_bool(manifest.in_place, "in_place")
        return manifest

    def to_json(self) -> str:
        """What `from_json` reads; what older versions do not know is left out where it is not used."""
        stored = asdict(self)
        return json.dumps({name: stored[name] for name in stored if stored[name] or name not in _NEW})


def height_of(longest: float | None) -> float:
    """The height for vectors up to a norm.

    Raises:
        InputError: it is not a positive number, or its square exceeds float32.
    """
    norm = check_number(longest, "longest")
    if not (norm > 0 and norm**2 < float(np.finfo(np.float32).max)):
        msg = f"longest must be positive, with a square that float32 holds, got {longest}"
        raise InputError(msg)
    return norm**2 / 2


def model_of(collection: Collection) -> Collection:
    """The collection that holds the model and manifest of a compressed collection."""
    return collection.named(collection.name + _MODEL_SUFFIX)


def made_meanwhile(name: str) -> BackendError:
    """The error of an import or creation that another process overtook."""
    msg = f"another process began to make {name!r} meanwhile: wait until it has ended, then run it again"
    return BackendError(msg)


def save_model(collection: Collection, model: CompresSAE, manifest: Manifest) -> None:
    """Writes the model and manifest of a compressed collection, over an unfinished one.

    Of several processes that do so at the same time, one succeeds.

    Raises:
        BackendError: another process did so meanwhile; or Milvus refused.
    """
    stored = model_of(collection)
    # An unfinished one must be dropped; otherwise, creation decides which process succeeds.
    if stored.exists():
        if load_manifest(collection) is not None:
            raise made_meanwhile(collection.name)
        stored.drop()
    mine = secrets.token_hex(8)
    _create(stored, model.dim, mine)
    for rows in _rows(model, manifest):
        stored.upsert(rows)
    # A server takes a second creation of the same collection for the first; Lite keeps no description.
    if stored.schema().description not in ("", mine):
        raise made_meanwhile(collection.name)


def _create(stored: Collection, dim: int, description: str) -> None:
    schema = stored.client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    schema.add_field(_LATENT.name, DataType.INT64, is_primary=True)
    schema.add_field("manifest", DataType.VARCHAR, max_length=65535)
    schema.add_field("encoder_b", DataType.FLOAT)
    schema.add_field("weights", DataType.FLOAT_VECTOR, dim=2 * dim)
    indexes = stored.client.prepare_index_params()
    indexes.add_index("weights", index_type="FLAT", metric_type="IP")
    stored.create(schema, indexes)


def _rows(model: CompresSAE, manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    """Rows by request. The manifest comes last: where it is, the model is whole."""
    weights, biases = np.concatenate([model.decoder_w, model.encoder_w.T], axis=1), model.encoder_b
    if (point := model.mean if model.center is None else model.center) is not None:
        # The second half tells a center from a mean.
        of = np.zeros_like(point) if model.mean is None else point
        weights = np.concatenate([weights, np.concatenate([point, of])[None]])
        biases = np.append(biases, np.float32(model.mean is None))
    text = manifest.to_json()
    for first in reversed(range(0, len(weights), _MODEL_ROWS)):
        yield [
            {
                _LATENT.name: latent,
                "manifest": text if latent == 0 else "",
                "encoder_b": float(biases[latent]),
                "weights": weights[latent],
            }
            for latent in range(first, min(first + _MODEL_ROWS, len(weights)))
        ]


def load_manifest(collection: Collection) -> Manifest | None:
    """The manifest of a compressed collection, or None if it has none, or not yet.

    Raises:
        FormatError: the collection that should hold it is another one, or it is damaged.
        NewerFormatError: a newer version of this package wrote it.
    """
    stored = model_of(collection)
    if not stored.exists():
        return None
    schema = stored.schema()
    if "manifest" not in schema.fields:
        msg = f"collection {stored.name!r} was not made by compressae-index"
        raise FormatError(msg)
    stored.load()
    rows = stored.query(["manifest"], where=f"{_LATENT.name} == 0", consistency_level="Strong")
    if not rows:
        return None  # its writing was stopped
    try:
        manifest = Manifest.from_json(rows[0]["manifest"], collection.name)
        if schema.dim("weights") != 2 * manifest.dim:
            msg = f"dim is {manifest.dim}, but rows of weights have {schema.dim('weights')} entries"
            raise InputError(msg)
        return manifest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"the manifest in collection {stored.name!r} is damaged: {error}"
        raise FormatError(msg) from error


def rewrite_manifest(collection: Collection, manifest: Manifest) -> None:
    """Replaces the manifest of a compressed collection, in one step.

    Raises:
        BackendError: Milvus refused.
    """
    stored = model_of(collection)
    rows = stored.query(["*"], where=f"{_LATENT.name} == 0", consistency_level="Strong", strict_float32=True)
    stored.upsert([{**row, "manifest": manifest.to_json()} for row in rows])


def load_model(
    collection: Collection, manifest: Manifest, given: CompresSAE | str | Path | None = None
) -> CompresSAE:
    """The model of a compressed collection: the given one, if it encoded the collection, or the stored one.

    Raises:
        FormatError: the given model is another one, or the stored one is damaged.
    """
    if given is not None:
        model = given if isinstance(given, CompresSAE) else CompresSAE.load(given)
        if model.fingerprint != manifest.fingerprint:
            msg = (
                f"collection {collection.name!r} was encoded by a model of fingerprint "
                f"{manifest.fingerprint}, the model given has {model.fingerprint}"
            )
            raise FormatError(msg)
        return model
    stored = model_of(collection)
    try:
        model = _read(stored, manifest)
    except BackendError:
        raise
    except (CompressaeError, IndexError, KeyError, ValueError) as error:
        msg = f"the model in collection {stored.name!r} is damaged: {error}"
        raise FormatError(msg) from error
    if model.fingerprint != manifest.fingerprint:
        msg = f"the model in collection {stored.name!r} does not match its fingerprint {manifest.fingerprint}"
        raise FormatError(msg)
    return model


def _read(stored: Collection, manifest: Manifest) -> CompresSAE:
    dim, h = manifest.dim, manifest.n_latents
    # The last row is the mean's or the center's; it stays zero if the model has none.
    weights, biases = np.zeros((h + 1, 2 * dim), np.float32), np.zeros(h + 1, np.float32)
    for page in stored.pages(_LATENT, ["encoder_b", "weights"]):
        latents = [row[_LATENT.name] for row in page]
        biases[latents] = [row["encoder_b"] for row in page]
        weights[latents] = np.array([row["weights"] for row in page], dtype=np.float32)
    has_center = biases[h] == 1
    mean = weights[h, :dim] if weights[h].any() and not has_center else None
    decoder, encoder = np.ascontiguousarray(weights[:h, :dim]), np.ascontiguousarray(weights[:h, dim:].T)
    model = CompresSAE(encoder, biases[:h], decoder, manifest.k, mean)
    return model.centred_at(weights[h, :dim].copy()) if has_center else model
