"""Compressed collections and the collection beside each that holds its model.

    items          primary key, `compressae_code` (sparse), maybe `compressae_dense`, and any other fields
    items_model    one row a latent: its row of the decoder and its column of the encoder as one vector;
                   row 0 has the manifest

The model is in Milvus so that whoever knows the uri and the name can search, and as vectors since these are
what every version of Milvus stores exactly and without limits on size. While a collection is filled by an
import it is called items_building, and gets its name in one step when all of it is verified.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pymilvus import DataType, FieldSchema, MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index import persistence
from compressae_index.checks import check_choice, check_int
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.coding.model import ENCODERS, MAX_DIM, CompresSAE, Encoder
from compressae_index.connectors.milvus.client import (
    TIMEOUT,
    describe,
    ensure_loaded,
    is_lite,
    pages,
    primary_field,
)
from compressae_index.connectors.milvus.errors import translated
from compressae_index.errors import BackendError, CompressaeError, FormatError, InputError, NewerFormatError

Dense: TypeAlias = Literal["float16", "float32"]
DENSE: tuple[Dense, ...] = ("float16", "float32")

CODE_FIELD = "compressae_code"
DENSE_FIELD = "compressae_dense"
MODEL_SUFFIX = "_model"
BUILDING_SUFFIX = "_building"

FORMAT_VERSION = 1
# Rows of a model in one request.
_MODEL_ROWS = 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,230}")
# Of the ids of an empty collection that is created without a source.
_MAX_ID_LENGTH = 512


@dataclass(frozen=True)
class Manifest:
    """What is stored of a compressed collection beside its rows."""

    fingerprint: str
    """Of the model that encoded."""
    dim: int
    n_latents: int
    k: int
    """Nonzeros a code."""
    encoder: Encoder
    metric: Metric
    dense: Dense | None
    """Type of the reconstructed dense field, where there is one."""
    source: dict[str, Any] = field(default_factory=dict)
    """What the rows were imported from: collection, vector_field, filter; empty if they were not."""
    format_version: int = FORMAT_VERSION


def check_name(name: Any) -> str:
    """A name that Milvus takes, also with what is added to it here.

    Raises:
        InputError: it is not one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"collection names are letters, digits and _, at most 231, not a digit first; got {name!r}"
        raise InputError(msg)
    return name


def check_free(client: MilvusClient, name: str, timeout: float = TIMEOUT) -> None:
    """Refuses a name that is taken.

    Raises:
        InputError: there is a collection or alias of this name.
    """
    with translated(f"looking for collection {name!r}"):
        if client.has_collection(name, timeout=timeout):
            msg = f"there is a collection {name!r} already: choose another name, or drop it"
            raise InputError(msg)


def check_dense(client: MilvusClient, dense: Dense | None) -> None:
    """Refuses a type of the reconstructed field that this Milvus does not have.

    Raises:
        InputError: it is float16 on Milvus Lite.
    """
    if dense == "float16" and is_lite(client):
        msg = "Milvus Lite has no FLOAT16_VECTOR: use dense='float32', or none"
        raise InputError(msg)


def create_collection(
    client: MilvusClient,
    name: str,
    manifest: Manifest,
    *,
    primary: FieldSchema | None = None,
    fields: Sequence[FieldSchema] = (),
    dynamic: bool = True,
    partitions: Sequence[str] = (),
    algorithm: str | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """An empty collection for codes, indexed and loaded.

    Args:
        client: a connection.
        name: its name, which must be free.
        manifest: says whether there is a dense field.
        primary: the primary key; int64 "id" by default.
        fields: more fields, none of them a vector.
        dynamic: whether rows may have fields beyond the schema.
        partitions: to make beside the default one.
        algorithm: inverted_index_algo of Milvus; the server's own choice by default.
        timeout: seconds for each request.

    Raises:
        InputError: a field has a name that is used here.
        BackendError: Milvus refused.
    """
    check_schema(primary or empty_primary(False), fields)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=dynamic)
    for each in [primary or empty_primary(False), *fields]:
        _add(schema, each)
    schema.add_field(CODE_FIELD, DataType.SPARSE_FLOAT_VECTOR)
    params = client.prepare_index_params()
    tuning = {} if algorithm is None else {"inverted_index_algo": algorithm}
    params.add_index(CODE_FIELD, index_type="SPARSE_INVERTED_INDEX", metric_type="IP", params=tuning)
    if manifest.dense:
        kind = DataType.FLOAT16_VECTOR if manifest.dense == "float16" else DataType.FLOAT_VECTOR
        schema.add_field(DENSE_FIELD, kind, dim=manifest.dim)
        params.add_index(DENSE_FIELD, index_type="AUTOINDEX", metric_type=dense_metric(manifest.metric))
    with translated(f"creating collection {name!r}"):
        # Pages of ids are read at the collection's own level, and must hold what was just written.
        _create(client, name, schema, params, timeout)
        for partition in partitions:
            client.create_partition(name, partition, timeout=timeout)


def _create(client: MilvusClient, name: str, schema: Any, params: Any, timeout: float) -> None:
    """Creates a collection, also where Milvus Lite was killed while it made or dropped one of this name.

    Lite (3.2) then has a folder without a schema, which it neither takes for a collection nor replaces.
    """
    options = {"schema": schema, "index_params": params, "consistency_level": "Strong", "timeout": timeout}
    try:
        client.create_collection(name, **options)
    except MilvusException as error:
        found = re.search(r"File exists: '(.+)'", str(error))
        left = Path(found[1]) if found else None
        if left is None or left.name != name or not left.is_dir() or (left / "schema.json").exists():
            raise
        shutil.rmtree(left, ignore_errors=True)
        client.create_collection(name, **options)


def check_schema(primary: FieldSchema, fields: Sequence[FieldSchema]) -> None:
    """Refuses fields of a compressed collection that cannot be.

    Raises:
        InputError: a name that is used here, or twice; something else than a `FieldSchema`; a vector.
    """
    names = {primary.name}
    for each in fields:
        if not isinstance(each, FieldSchema):
            msg = f"fields must be a list of pymilvus.FieldSchema, got a {type(each).__name__}"
            raise InputError(msg)
        if "VECTOR" in each.dtype.name or each.is_primary:
            msg = f"field {each.name!r} is {each.dtype.name}: fields hold neither vectors nor primary keys"
            raise InputError(msg)
        if each.name in names:
            msg = f"there are two fields {each.name!r}"
            raise InputError(msg)
        names.add(each.name)
    taken = sorted({CODE_FIELD, DENSE_FIELD} & names)
    if taken:
        msg = f"a field is called {taken[0]!r}, which compressae-index uses itself; rename it in the source"
        raise InputError(msg)


def is_whole(client: MilvusClient, name: str, manifest: Manifest, timeout: float = TIMEOUT) -> bool:
    """Whether a collection for codes has its indexes, without which a stopped `create_collection` left it."""
    with translated(f"reading the indexes of collection {name!r}"):
        held = set(client.list_indexes(name, timeout=timeout))
    return {CODE_FIELD, *([DENSE_FIELD] if manifest.dense else [])} <= held


def dense_metric(metric: Metric) -> str:
    """Milvus's name of the metric of the reconstructed field."""
    return "COSINE" if metric == "cosine" else "IP"


def _add(schema: Any, source: FieldSchema) -> None:
    options = {
        name: value for name, value in source.to_dict().items() if name not in ("name", "type", "params")
    }
    options.pop("auto_id", None)
    options.pop("is_function_output", None)
    schema.add_field(source.name, source.dtype, **options, **source.params)


def empty_primary(are_strings: bool) -> FieldSchema:
    """The primary key of a collection that has no source."""
    if are_strings:
        return FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=_MAX_ID_LENGTH)
    return FieldSchema("id", DataType.INT64, is_primary=True)


def copied_fields(described: Mapping[str, Any]) -> tuple[FieldSchema, list[FieldSchema], list[str]]:
    """The primary key, the other fields that can be copied, and the names of vectors, which are not."""
    primary, scalars, left_out = None, [], []
    for entry in described["fields"]:
        schema = FieldSchema.construct_from_dict(dict(entry))
        if entry.get("is_primary"):
            primary = schema
        elif entry.get("is_function_output") or "VECTOR" in DataType(entry["type"]).name:
            left_out.append(schema.name)
        else:
            scalars.append(schema)
    assert primary is not None  # a collection without one cannot be created
    return primary, scalars, left_out


def save_model(
    client: MilvusClient, name: str, model: CompresSAE, manifest: Manifest, timeout: float = TIMEOUT
) -> None:
    """Writes the model and manifest of collection `name` beside it, over an unfinished one.

    Of several processes that do so at the same time, one succeeds.

    Raises:
        BackendError: another process did so meanwhile; or Milvus refused.
    """
    beside = name + MODEL_SUFFIX
    with translated(f"looking for collection {beside!r}"):
        unfinished = client.has_collection(beside, timeout=timeout)
    if unfinished and load_manifest(client, name, timeout) is not None:
        raise BackendError(made_meanwhile(name))
    mine = secrets.token_hex(8)
    with translated(f"storing the model in collection {beside!r}"):
        # Dropped only where it was seen to be unfinished: else the creation below is what decides.
        if unfinished:
            client.drop_collection(beside, timeout=timeout)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=mine)
        schema.add_field("latent", DataType.INT64, is_primary=True)
        schema.add_field("manifest", DataType.VARCHAR, max_length=65535)
        schema.add_field("encoder_b", DataType.FLOAT)
        params = client.prepare_index_params()
        schema.add_field("weights", DataType.FLOAT_VECTOR, dim=2 * model.dim)
        params.add_index("weights", index_type="FLAT", metric_type="IP")
        _create(client, beside, schema, params, timeout)
        weights, biases = np.concatenate([model.decoder_w, model.encoder_w.T], axis=1), model.encoder_b
        if model.mean is not None:  # one row more
            weights = np.concatenate([weights, np.concatenate([model.mean, model.mean])[None]])
            biases = np.append(biases, np.float32(0))
        # The manifest comes last: with it, the model is whole.
        for first in reversed(range(0, len(weights), _MODEL_ROWS)):
            rows = [
                {
                    "latent": latent,
                    "manifest": json.dumps(asdict(manifest)) if latent == 0 else "",
                    "encoder_b": float(biases[latent]),
                    "weights": weights[latent],
                }
                for latent in range(first, min(first + _MODEL_ROWS, len(weights)))
            ]
            client.upsert(beside, rows, timeout=timeout)
        # A server takes a second creation of the same collection for the first; Lite keeps no description.
        owner = client.describe_collection(beside, timeout=timeout).get("description")
    if owner not in ("", None, mine):
        raise BackendError(made_meanwhile(name))


def made_meanwhile(name: str) -> str:
    """What to say where another process was faster."""
    return f"another process began to make {name!r} meanwhile: wait until it has ended, then run it again"


def load_manifest(client: MilvusClient, name: str, timeout: float = TIMEOUT) -> Manifest | None:
    """The manifest of collection `name`, or None where it has none.

    Raises:
        FormatError: there is something else in its place.
        NewerFormatError: a newer version of this package wrote it.
    """
    beside = name + MODEL_SUFFIX
    with translated(f"looking for collection {beside!r}"):
        if not client.has_collection(beside, timeout=timeout):
            return None
    described = describe(client, beside, timeout)
    if "manifest" not in {each["name"] for each in described["fields"]}:
        msg = f"collection {beside!r} was not made by compressae-index"
        raise FormatError(msg)
    ensure_loaded(client, beside, timeout)
    with translated(f"reading collection {beside!r}"):
        rows = client.query(
            beside,
            filter="latent == 0",
            output_fields=["manifest"],
            consistency_level="Strong",
            timeout=timeout,
        )
    if not rows:
        return None  # its writing was stopped
    try:
        stored = json.loads(rows[0]["manifest"])
        if check_int(stored["format_version"], "format_version", 1) > FORMAT_VERSION:
            msg = (
                f"collection {name!r} has format version {stored['format_version']}, "
                f"but this compressae-index reads up to {FORMAT_VERSION}"
            )
            raise NewerFormatError(msg)
        manifest = _checked(Manifest(**stored))
        (weights,) = (each for each in described["fields"] if each["name"] == "weights")
        if weights["params"]["dim"] != 2 * manifest.dim:
            msg = f"dim is {manifest.dim}, but rows of weights have {weights['params']['dim']} entries"
            raise InputError(msg)
        return manifest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"the manifest in collection {beside!r} is damaged: {error}"
        raise FormatError(msg) from error


def _checked(manifest: Manifest) -> Manifest:
    """A manifest whose entries are of the types and within the ranges that `save_model` writes.

    Raises:
        InputError: with the entry.
    """
    check_int(manifest.dim, "dim", 1, MAX_DIM)
    check_int(manifest.n_latents, "n_latents", 1, MAX_LATENTS)
    check_int(manifest.k, "k", 1, manifest.n_latents, "n_latents")
    check_choice(manifest.encoder, "encoder", ENCODERS)
    check_choice(manifest.metric, "metric", METRICS)
    check_choice(manifest.dense or "", "dense", ("", *DENSE))
    persistence.entry(asdict(manifest), "fingerprint", str)
    persistence.entry(asdict(manifest), "source", dict)
    return manifest


def load_model(
    client: MilvusClient,
    name: str,
    manifest: Manifest,
    model: CompresSAE | str | Path | None = None,
    timeout: float = TIMEOUT,
) -> CompresSAE:
    """The model of collection `name`: the one given, if it is that, or the one stored beside it.

    Raises:
        FormatError: the model given is another one, or the stored one is damaged.
    """
    if model is not None:
        given = model if isinstance(model, CompresSAE) else CompresSAE.load(model)
        if given.fingerprint != manifest.fingerprint:
            msg = (
                f"collection {name!r} was encoded by a model of fingerprint {manifest.fingerprint}, "
                f"the model given has {given.fingerprint}"
            )
            raise FormatError(msg)
        return given
    beside = name + MODEL_SUFFIX
    dim, h = manifest.dim, manifest.n_latents
    # The last row is of the mean, where there is one.
    weights, biases = np.zeros((h + 1, 2 * dim), np.float32), np.zeros(h + 1, np.float32)
    try:
        for page in pages(client, beside, "latent", ["encoder_b", "weights"], timeout=timeout):
            latents = [row["latent"] for row in page]
            biases[latents] = [row["encoder_b"] for row in page]
            weights[latents] = np.array([row["weights"] for row in page], dtype=np.float32)
        mean = weights[h, :dim] if weights[h].any() else None
        decoder, encoder = np.ascontiguousarray(weights[:h, :dim]), np.ascontiguousarray(weights[:h, dim:].T)
        loaded = CompresSAE(encoder, biases[:h], decoder, manifest.k, mean)
    except BackendError:
        raise
    except (CompressaeError, IndexError, KeyError, ValueError) as error:
        msg = f"the model in collection {beside!r} is damaged: {error}"
        raise FormatError(msg) from error
    if loaded.fingerprint != manifest.fingerprint:
        msg = f"the model in collection {beside!r} does not match its fingerprint {manifest.fingerprint}"
        raise FormatError(msg)
    return loaded


def publish(client: MilvusClient, name: str, manifest: Manifest, timeout: float = TIMEOUT) -> None:
    """Gives a built collection its name, in one step, and loads it.

    Raises:
        BackendError: the model beside it is not the one that it was built with any more; or Milvus refused.
    """
    building = name + BUILDING_SUFFIX
    if load_manifest(client, name, timeout) != manifest:
        raise BackendError(made_meanwhile(name))
    with translated(f"renaming collection {building!r} to {name!r}"):
        try:
            client.rename_collection(building, name, timeout=timeout)
        except MilvusException:
            # pymilvus repeats a request whose answer was lost, and the second one finds no collection.
            if client.has_collection(building, timeout=timeout) or not client.has_collection(
                name, timeout=timeout
            ):
                raise
    ensure_loaded(client, name, timeout)


def drop(client: MilvusClient, name: str, timeout: float = TIMEOUT) -> None:
    """Drops a compressed collection and its model.

    Raises:
        FormatError: it was not made by compressae-index.
    """
    if load_manifest(client, name, timeout) is None:
        msg = f"collection {name!r} was not made by compressae-index, so it is not dropped"
        raise FormatError(msg)
    with translated(f"dropping collection {name!r}"):
        client.drop_collection(name, timeout=timeout)
        client.drop_collection(name + MODEL_SUFFIX, timeout=timeout)


class Opened(NamedTuple):
    """A compressed collection that is loaded."""

    name: str
    """Its own name, where an alias was asked for."""
    manifest: Manifest
    primary: str
    are_strings: bool
    max_length: int | None = None
    """Bytes of an id at most, where ids are strings."""


def open_collection(client: MilvusClient, name: str, timeout: float = TIMEOUT) -> Opened:
    """Loads a compressed collection, by name or alias, and reads its manifest.

    Raises:
        InputError: there is no such collection, or no expression can hold the name of its primary key.
        FormatError: it was not made by compressae-index.
    """
    described = describe(client, name, timeout)
    name = described["collection_name"]
    manifest = load_manifest(client, name, timeout)
    if manifest is None or CODE_FIELD not in {each["name"] for each in described["fields"]}:
        msg = (
            f"collection {name!r} was not made by compressae-index: it has no field {CODE_FIELD!r} "
            f"or no collection {name + MODEL_SUFFIX!r} beside it; `milvus import` makes one of it"
        )
        raise FormatError(msg)
    ensure_loaded(client, name, timeout)
    return Opened(name, manifest, *primary_field(described), max_length_of(described))


def max_length_of(described: Mapping[str, Any]) -> int | None:
    """Bytes of a string id at most; None where ids are integers."""
    params = next(field for field in described["fields"] if field.get("is_primary"))["params"]
    return int(params["max_length"]) if "max_length" in params else None
