"""Compressed collections, and the collections that belong to them.

items           primary key, `compressae_code` (sparse), maybe `compressae_dense`, `compressae_residual` and
                `compressae_original`, `compressae_digest` if it was imported, and any other fields
items_model     the model and manifest; see `manifest`
items_building  the collection itself while an import fills it; it is verified, then renamed in one step

Codes in place are in `compressae_code` and `compressae_digest` of a dense collection itself: see `in_place`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pymilvus import DataType, FieldSchema, MilvusClient

from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus import residuals
from compressae_index.connectors.milvus.client import is_lite
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.manifest import (
    Dense,
    Manifest,
    Originals,
    load_manifest,
    made_meanwhile,
    model_of,
    save_model,
)
from compressae_index.connectors.milvus.schema import Key, Schema
from compressae_index.connectors.milvus.source import MilvusSource
from compressae_index.errors import FormatError, InputError

CODE_FIELD = "compressae_code"
DENSE_FIELD = "compressae_dense"
RESIDUAL_FIELD = "compressae_residual"
ORIGINAL_FIELD = "compressae_original"
DIGEST_FIELD = "compressae_digest"
# The fields that writes fill in, and what they hold.
OWN_FIELDS = {
    CODE_FIELD: "the code",
    DENSE_FIELD: "the reconstructed vector",
    RESIDUAL_FIELD: "the residual code",
    ORIGINAL_FIELD: "the original vector",
    DIGEST_FIELD: "the digest of the row that it was imported from",
}

_BUILDING_SUFFIX = "_building"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,230}")
# Bytes of an id in a new collection of string ids.
_MAX_ID_LENGTH = 512


@dataclass(frozen=True)
class Layout:
    """Fields of a compressed collection other than `OWN_FIELDS`."""

    primary: FieldSchema
    scalars: Sequence[FieldSchema] = ()
    is_dynamic: bool = True
    """Whether rows may have fields beyond the schema."""

    @classmethod
    def new(cls, string_ids: bool = False, scalars: Sequence[FieldSchema] = ()) -> Layout:
        """The layout of a new collection, with a primary key "id".

        Raises:
            InputError: fields that a compressed collection cannot have.
        """
        if string_ids:
            primary = FieldSchema("id", DataType.VARCHAR, is_primary=True, max_length=_MAX_ID_LENGTH)
        else:
            primary = FieldSchema("id", DataType.INT64, is_primary=True)
        return cls(primary, scalars)._checked()

    @classmethod
    def copied(cls, schema: Schema) -> Layout:
        """The fields of a collection that are not vectors, which an import copies.

        Raises:
            InputError: a field has a name that is used here.
        """
        left_out = vectors_of(schema)
        fields = {
            name: FieldSchema.construct_from_dict(dict(field))
            for name, field in schema.fields.items()
            if name not in left_out
        }
        (primary,) = (field for field in fields.values() if field.is_primary)
        scalars = [field for field in fields.values() if not field.is_primary]
        return cls(primary, scalars, schema.is_dynamic)._checked()

    def _checked(self) -> Layout:
        names = {self.primary.name}
        for field in self.scalars:
            if not isinstance(field, FieldSchema):
                msg = f"fields must be a list of pymilvus.FieldSchema, got a {type(field).__name__}"
                raise InputError(msg)
            if "VECTOR" in field.dtype.name or field.is_primary:
                kind = field.dtype.name
                msg = f"field {field.name!r} is {kind}: fields can be neither vectors nor primary keys"
                raise InputError(msg)
            if field.name in names:
                msg = f"there are two fields {field.name!r}"
                raise InputError(msg)
            names.add(field.name)
        taken = sorted(OWN_FIELDS.keys() & names)
        if taken:
            msg = (
                f"a field is called {taken[0]!r}, which compressae-index uses itself; rename it in the source"
            )
            raise InputError(msg)
        return self

    @property
    def has_partition_key(self) -> bool:
        """Whether Milvus assigns rows to partitions by a field."""
        return any(field.is_partition_key for field in (self.primary, *self.scalars))

    def fits(self, schema: Schema) -> bool:
        """Whether a compressed collection has exactly these fields."""
        own = [(field.name, field.dtype) for field in (self.primary, *self.scalars)]
        left_out = [*vectors_of(schema), *OWN_FIELDS]
        theirs = [(name, schema.kind(name)) for name in schema.fields if name not in left_out]
        longest = schema.fields.get(self.primary.name, {}).get("params", {}).get("max_length")
        return (
            set(own) == set(theirs)
            and self.is_dynamic == schema.is_dynamic
            and str(longest) == str(self.primary.params.get("max_length"))
        )


def vectors_of(schema: Schema) -> list[str]:
    """Fields that an import leaves out: vectors, and what Milvus computes itself."""
    return [
        name
        for name, field in schema.fields.items()
        if not field.get("is_primary")
        and (field.get("is_function_output") or "VECTOR" in schema.kind(name).name)
    ]


def check_name(name: Any) -> str:
    """A name that Milvus accepts, also with the suffixes that are added here.

    Raises:
        InputError: it is not one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = (
            "collection names are letters, digits and _, at most 231 of them, and do not begin with a digit; "
            f"got {name!r}"
        )
        raise InputError(msg)
    return name


def check_types(client: MilvusClient, dense: Dense | None, originals: Originals | None) -> None:
    """Checks that this Milvus has the types of the fields of reconstructed and original vectors.

    Raises:
        InputError: one is float16 on Milvus Lite.
    """
    for name, kind in (("dense", dense), ("originals", originals)):
        if kind == "float16" and is_lite(client):
            msg = f"Milvus Lite has no FLOAT16_VECTOR: use {name}='float32', or none"
            raise InputError(msg)


def dense_metric(manifest: Manifest) -> str:
    """Milvus's name of the metric of the reconstructed field."""
    if manifest.norms:
        return "L2"
    return "IP" if manifest.metric == "inner_product" else "COSINE"


def building_of(collection: Collection) -> Collection:
    """The compressed collection while an import fills it."""
    return collection.named(collection.name + _BUILDING_SUFFIX)


def create_compressed(
    collection: Collection,
    model: CompresSAE,
    manifest: Manifest,
    layout: Layout,
    *,
    algorithm: str | None = None,
) -> None:
    """Creates an empty compressed collection with its model; makes nothing on an error.

    Args:
        collection: its name must be free.
        model: the model.
        manifest: of the model.
        layout: more fields.
        algorithm: inverted_index_algo of Milvus; the server's own choice by default.

    Raises:
        InputError: the name is taken.
        BackendError: Milvus refused.
    """
    for each in (collection, model_of(collection)):
        if each.exists():
            msg = f"there is a collection {each.name!r} already: choose another name, or drop it"
            raise InputError(msg)
    save_model(collection, model, manifest)
    try:
        create_rows(collection, manifest, layout, algorithm=algorithm)
    except BaseException:
        with suppress(Exception):  # the first error counts
            model_of(collection).drop()
        raise


def create_rows(
    collection: Collection, manifest: Manifest, layout: Layout, *, algorithm: str | None = None
) -> None:
    """Creates the collection of the rows alone, indexed; arguments as for `create_compressed`."""
    schema = collection.client.create_schema(auto_id=False, enable_dynamic_field=layout.is_dynamic)
    for field in (layout.primary, *layout.scalars):
        _add(schema, field)
    schema.add_field(CODE_FIELD, DataType.SPARSE_FLOAT_VECTOR)
    indexes = index_of_codes(collection.client, algorithm)
    if manifest.dense:
        kind = DataType.FLOAT16_VECTOR if manifest.dense == "float16" else DataType.FLOAT_VECTOR
        schema.add_field(DENSE_FIELD, kind, dim=manifest.dim)
        indexes.add_index(DENSE_FIELD, index_type="AUTOINDEX", metric_type=dense_metric(manifest))
    if manifest.residual_bits:
        schema.add_field(RESIDUAL_FIELD, DataType.VARCHAR, max_length=residuals.text_bytes(manifest))
    if manifest.own_originals:
        kind = DataType.FLOAT16_VECTOR if manifest.originals == "float16" else DataType.FLOAT_VECTOR
        schema.add_field(ORIGINAL_FIELD, kind, dim=manifest.dim, mmap_enabled=True)
        # A server loads no vectors without an index; this one is the vectors themselves, mapped from disk.
        mapped = {"mmap.enabled": "true"}
        indexes.add_index(ORIGINAL_FIELD, index_type="FLAT", metric_type="IP", params=mapped)
    if manifest.digests:
        schema.add_field(DIGEST_FIELD, DataType.INT64)
    collection.create(schema, indexes)


def index_of_codes(client: MilvusClient, algorithm: str | None) -> Any:
    """Parameters of pymilvus for the index of the codes; the server chooses the algorithm for None."""
    indexes = client.prepare_index_params()
    tuning = {} if algorithm is None else {"inverted_index_algo": algorithm}
    indexes.add_index(CODE_FIELD, index_type="SPARSE_INVERTED_INDEX", metric_type="IP", params=tuning)
    return indexes


def _add(schema: Any, field: FieldSchema) -> None:
    left_out = ("name", "type", "params", "auto_id", "is_function_output")
    options = {name: value for name, value in field.to_dict().items() if name not in left_out}
    schema.add_field(field.name, field.dtype, **options, **field.params)


def is_whole(collection: Collection, manifest: Manifest) -> bool:
    """Whether a collection of rows has its indexes; a stopped `create_rows` leaves it without."""
    needed = {CODE_FIELD}
    needed |= {DENSE_FIELD} if manifest.dense else set()
    needed |= {ORIGINAL_FIELD} if manifest.own_originals else set()
    return needed <= collection.indexed()


def publish(collection: Collection, manifest: Manifest) -> None:
    """Gives a built collection its name, in one step, and loads it; of codes in place, their model.

    Raises:
        BackendError: the stored model is not the one that it was built with any more; or Milvus refused.
    """
    building = building_of(collection)
    if load_manifest(building if manifest.in_place else collection) != manifest:
        raise made_meanwhile(collection.name)
    if manifest.in_place:
        model_of(building).rename(model_of(collection).name)
    else:
        building.rename(collection.name).load()


def drop_compressed(collection: Collection) -> None:
    """Drops a compressed collection, its model and its aliases, without which a server drops none.

    Of codes in place, which are in a collection of the user's, it drops the model alone.

    Raises:
        FormatError: it was not made by compressae-index.
    """
    stored = model_of(collection)
    manifest = load_manifest(collection)
    if manifest is None:
        msg = f"collection {collection.name!r} was not made by compressae-index, so it is not dropped"
        raise FormatError(msg)
    if not manifest.in_place and collection.exists():  # or it was, by a call that was stopped
        for alias in collection.aliases():
            collection.drop_alias(alias)
        collection.drop()
    stored.drop()


class Opened(NamedTuple):
    """A compressed collection that is loaded."""

    collection: Collection
    """By its own name, also if it was opened by an alias."""
    manifest: Manifest
    key: Key
    originals: MilvusSource | None = None
    """Where original vectors are read, if they are to score the best documents again."""


def open_compressed(collection: Collection, *, originals: bool = True) -> Opened:
    """Loads a compressed collection, by name or alias, and reads its manifest.

    Args:
        collection: by its name or alias.
        originals: whether to read its original vectors, if it has them.

    Raises:
        InputError: there is no such collection, or no expression can hold the name of its primary key.
        FormatError: it was not made by compressae-index, or its original vectors are gone.
    """
    schema = collection.schema()
    collection = collection.named(schema.collection)
    manifest = load_manifest(collection)
    if manifest is None or CODE_FIELD not in schema.fields:
        msg = (
            f"collection {collection.name!r} was not made by compressae-index: it has no field "
            f"{CODE_FIELD!r}, or there is no collection {model_of(collection).name!r} of its model; "
            "`milvus import` makes a compressed collection of it"
        )
        raise FormatError(msg)
    collection.load()
    opened = Opened(collection, manifest, schema.key())
    if originals and manifest.originals:
        return opened._replace(originals=_originals(opened))
    return opened


def _originals(opened: Opened) -> MilvusSource:
    """The original vectors of a compressed collection, its own or those of its source.

    Raises:
        FormatError: the source is gone, or has other vectors or ids now.
    """
    collection, manifest = opened.collection, opened.manifest
    client, timeout = collection.client, collection.timeout
    if manifest.own_originals:
        return MilvusSource(client, collection.name, vector_field=ORIGINAL_FIELD, timeout=timeout)
    name = collection.name if manifest.in_place else manifest.source["collection"]
    field = manifest.source["vector_field"]
    try:
        source = MilvusSource(client, name, vector_field=field, timeout=timeout)
        if (source.dim, source.key.are_strings) != (manifest.dim, opened.key.are_strings):
            ids = "strings" if source.key.are_strings else "integers"
            msg = f"field {field!r} of {name!r} now has dimension {source.dim}, and ids are {ids}"
            raise InputError(msg)
    except InputError as error:
        msg = (
            f"the original vectors of collection {collection.name!r} cannot be used: {error}; open it with "
            "originals=False to search without them"
        )
        raise FormatError(msg) from error
    return source
