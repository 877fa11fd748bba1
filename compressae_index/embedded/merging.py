"""Documents of several indexes as those of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressae_index.arrays import BoolArray
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids, check_unique
from compressae_index.persistence import entry, kind_of, read_manifest, reading
from compressae_index.remote import Place

# Kind of a folder of shards: saved indexes that were made alike, in the order of its manifest.
SHARDS = "shards"
# Where they lie in it.
PIECES = "pieces"


def is_folder_of_shards(path: Place) -> bool:
    """Whether a path holds shards; False where nothing that this package wrote is there."""
    try:
        return kind_of(path) == SHARDS
    except (FormatError, OSError):
        return False


def shard_paths(folder: Place) -> list[Place]:
    """The saved indexes of a folder of shards.

    Raises:
        FormatError: the folder is none, or its manifest is damaged.
    """
    manifest = read_manifest(folder, SHARDS)
    with reading(str(folder)):
        names = [entry(each, "name", str) for each in entry(manifest, "pieces", list)]
        for name in names:
            if not name or Path(name).name != name or name == "..":
                msg = f"{name!r:.100} is no name of a shard"
                raise InputError(msg)
    return [folder / PIECES / name for name in names]


def check_alike(forms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Checks that shards have one `CompressedIndex.form`.

    Raises:
        InputError: with the first that differs, and in what.
    """
    for form, name in zip(forms[1:], names[1:], strict=True):
        for what, value in forms[0].items():
            if form[what] != value:
                msg = (
                    f"{name} differs from {names[0]} in the {what} ({form[what]!s:.60}, not {value!s:.60}): "
                    "make shards alike by adding to copies of one index that `empty_like` gives"
                )
                raise InputError(msg)


def merged(shards: Sequence[EmbeddedDocuments], names: Sequence[str]) -> EmbeddedDocuments:
    """The documents of all shards, in their order; nothing of them is copied but ids and marks of removal.

    Args:
        shards: documents of one form, at least one shard. Those of which all were removed are left out.
        names: what to call the shards in messages.

    Raises:
        InputError: shards of other kinds of ids, or ids that several shards hold.
    """
    filled = [shard for shard in shards if len(shard)]
    if not filled:
        return shards[0].emptied()
    _check_ids(shards, names)
    first, *others = filled
    return EmbeddedDocuments(
        first.backend.merged([each.backend for each in others]),
        first.all_ids.extended(*(each.all_ids for each in others)),
        _alive(filled),
        first.unit,
    )


def _check_ids(shards: Sequence[EmbeddedDocuments], names: Sequence[str]) -> None:
    held = [(shard.live_ids, name) for shard, name in zip(shards, names, strict=True) if len(shard)]
    for ids, name in held[1:]:
        if ids.are_strings != held[0][0].are_strings:
            kinds = ("strings", "integers") if ids.are_strings else ("integers", "strings")
            msg = f"the ids of {name} are {kinds[0]}, those of {held[0][1]} are {kinds[1]}"
            raise InputError(msg)
    try:
        check_unique(np.concatenate([ids.all() for ids, _ in held]))
    except InputError as error:
        msg = _which_overlap(held) or str(error)
        raise InputError(msg) from None


def _which_overlap(held: Sequence[tuple[Ids, str]]) -> str | None:
    """A message about the first id that two shards hold."""
    for number, (ids, name) in enumerate(held):
        for others, other in held[:number]:
            wanted = ids.all()
            found = others.find(wanted) >= 0
            if found.any():
                repeated = wanted[found].tolist()[0]
                return (
                    f"id {repeated!r:.100} is in {other} and in {name} ({int(found.sum())} ids are in both): "
                    "give ids to what is added to each shard"
                )
    return None


def _alive(shards: Sequence[EmbeddedDocuments]) -> BoolArray | None:
    """Which rows of all shards were not removed; None for all."""
    if all(shard.alive is None for shard in shards):
        return None
    marks = [np.ones(len(each.all_ids), bool) if each.alive is None else each.alive for each in shards]
    return np.concatenate(marks)
