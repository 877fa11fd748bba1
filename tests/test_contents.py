"""Contents that are wrong though all checksums are right: each is refused by name, mapped or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import fuzzing
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from compressae_index import CompresSAE, CompressedIndex, FormatError, TrainConfig
from compressae_index._engine import AlignedCodes, PackedCodes, first_repeated
from compressae_index.cli import main
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.faiss import lists as faiss_lists
from compressae_index.connectors.faiss.exchange import FaissVectors
from compressae_index.npy import read_header
from compressae_index.training import train

Array = npt.NDArray[Any]
Change = Callable[[Array], Array | None]


@pytest.fixture(scope="module", autouse=True)
def samples() -> Iterator[None]:
    yield
    fuzzing.forget_samples()


def copy_of(kind: str, folder: Path) -> Path:
    """A saved thing of `fuzzing`, to change."""
    return Path(shutil.copytree(fuzzing.sample(kind), folder / "copy"))


def change_array(saved: Path, name: str, change: Change) -> None:
    """Changes an array in place or replaces it by what the change returns, and makes the checksums fit."""
    (file,) = (saved / "data-x").parent.rglob(f"{name}.npy")
    array = np.load(file)
    changed = change(array)
    np.save(file, array if changed is None else changed)
    fuzzing.fit_checksums(saved)


def change_manifest(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fuzzing.fit_checksums(saved, change)


def refused(load: Callable[..., Any], saved: Path, message: str) -> None:
    for mmap in (True, False):
        with pytest.raises(FormatError, match=message) as caught:
            load(saved, mmap=mmap)
        assert str(saved) in str(caught.value)


def put(places: Any, value: Any) -> Change:
    """Sets some places of an array."""

    def change(array: Array) -> None:
        array[places] = value

    return change


INDEX_DAMAGES: list[tuple[str, str, Change, str]] = [
    ("index", "ids", put(30, 5 * 2**40), "duplicate id 5497558138880 "),
    ("index", "ids", put(7, -3), "must not be negative, got -3"),
    ("index", "ids", lambda ids: ids.astype(float), "must be uint32 or int64 .*, got float64"),
    ("index", "ids", lambda ids: ids.astype(np.uint64), "must be uint32 or int64 .*, got uint64"),
    ("index", "ids", lambda ids: ids.astype(">i8"), "must be uint32 or int64"),
    ("index", "ids", lambda ids: ids[:-1], r"must be uint32 or int64 \(150,\), got int64 \(149,\)"),
    ("index", "alive", lambda marks: marks[:-1], r"alive must be uint8 \(19,\)"),
    ("index", "alive", lambda marks: marks.astype(bool), "alive must be uint8"),
    ("index", "forward_rows", put(slice(3, 5), 255), "row 3 of the codes is not of ascending latents"),
    ("index", "forward_rows", put((149, slice(0, 2)), (0, 0x7C)), "row 149 of the codes .* finite values"),
    ("index", "forward_levels", put(3, np.nan), r"levels must ascend within \[0, 1\]"),
    ("index", "forward_levels", put(3, 1.5), r"levels must ascend within \[0, 1\]"),
    ("index", "forward_levels", lambda levels: levels[:-1], r"levels must be float32 \(32,\)"),
    ("index", "forward_levels", lambda levels: levels[:16], r"levels must be float32 \(32,\)"),
    ("index", "inverted_ids", put(5, 150), "postings of latent 0 in window 0"),
    ("index", "inverted_ids", put(5, 0), "postings of latent 0 in window 0"),
    ("index", "inverted_scales", put((2, 0), 0x7C00), "postings of latent 2 in window 0"),
    ("index", "inverted_starts", put(3, 2**63), "corrupt posting lists"),
    ("index", "inverted_offsets", put((3, 1), 2**31), "offsets of latent 3"),
    ("index", "inverted_largest_norm", put(0, 0.5), "a document has norm .* the largest is 0.5"),
    ("index", "inverted_largest_norm", put(0, np.inf), "the largest norm is inf"),
    ("index of string ids", "id_ends", put(4, 3), "must ascend from 0"),
    ("index of string ids", "id_ends", put(0, 1), "must ascend from 0"),
    ("index of string ids", "id_ends", put(-1, 2**62), "must ascend from 0"),
    ("index of string ids", "id_text", lambda text: text[:-1], "must ascend from 0"),
    ("index of string ids", "id_text", put(0, 0xFF), "the id of row 0 is not UTF-8"),
    ("index of string ids", "id_ends", lambda ends: ends.astype(np.int32), "string ids must be uint8"),
    ("aligned index", "forward_latents", put((9, 0), 48), "row 9 of the codes"),
    ("aligned index", "forward_latents", put(slice(None), 3), "row 0 of the codes"),
    ("aligned index", "forward_scales", put(9, 0x7E00), "row 9 of the codes"),
    ("Faiss index", "forward_rows", put(3, 255), "row 3 of the codes"),
    ("Faiss index", "ids", put(slice(30, 32), 5), "duplicate id 5"),
    ("Faiss index", "alive", lambda marks: marks[:3], "alive must be uint8"),
    ("Faiss index of string ids", "id_text", put(0, 0xFF), "the id of row 0 is not UTF-8"),
]


def loader(kind: str) -> Callable[..., Any]:
    return FaissIndex.load if kind.startswith("Faiss") else CompressedIndex.load


@pytest.mark.parametrize(("kind", "name", "change", "message"), INDEX_DAMAGES)
def test_arrays_of_an_index(kind: str, name: str, change: Change, message: str, tmp_path: Path) -> None:
    saved = copy_of(kind, tmp_path)
    change_array(saved, name, change)
    refused(loader(kind), saved, message)


@pytest.mark.parametrize("kind", ["index", "Faiss index"])
@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("n", -1, "n must be at least 0"),
        ("n", True, "n must be an integer"),
        ("n", 2**70, "150"),
        ("k", 0, "k must be at least 1"),
        ("k", 49, "k must be at most n_latents = 48"),
        ("encoder", "magic", "encoder must be one of"),
        ("encoder", ["pursuit"], "encoder must be one of"),
        ("metric", None, "metric must be one of"),
        ("packing", "packed", "packing in its manifest must be of type dict"),
        ("packing", {"forward": "packed", "value_bits": True}, "value_bits must be an integer"),
        ("packing", {"forward": "packed", "value_bits": 5}, "levels must be float32"),
        ("model", None, "model in its manifest must be of type dict"),
        ("unit", 3, "power of two"),
        ("unit", -2.0, "power of two"),
        ("unit", "1", "power of two"),
        ("unit", float("nan"), "power of two"),
        ("unit", 2.0**1000, "power of two"),
    ],
)
def test_entries_of_a_manifest(kind: str, entry: str, value: Any, message: str, tmp_path: Path) -> None:
    saved = copy_of(kind, tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update({entry: value}))
    refused(loader(kind), saved, message)
    change_manifest(saved, lambda manifest: manifest["meta"].pop(entry))
    if not (kind == "index" and entry in ("metric", "unit")):  # which older indexes lack
        refused(loader(kind), saved, f"lacks '{entry}'|{entry} in its manifest")


@pytest.mark.parametrize("postings", [0, 5, 7, 17, None, 6.0])
def test_postings_that_lists_do_not_have(postings: Any, tmp_path: Path) -> None:
    saved = copy_of("index", tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update(postings=postings))
    refused(CompressedIndex.load, saved, "postings")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "0.1", True])
def test_thresholds_that_no_lists_have(threshold: Any, tmp_path: Path) -> None:
    saved = copy_of("index", tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update(threshold=threshold))
    refused(CompressedIndex.load, saved, "threshold")


def test_arrays_that_do_not_belong_there(tmp_path: Path) -> None:
    saved = copy_of("index", tmp_path)
    (data,) = saved.glob("data-*")
    for name, message in (
        ("forward_more", "has an array 'forward_more'"),
        ("id_text", "ids must be integers .* or strings"),
    ):
        np.save(data / f"{name}.npy", np.zeros((48, 1, 8), np.uint16))
        fuzzing.fit_checksums(saved)
        refused(CompressedIndex.load, saved, message)
        (data / f"{name}.npy").unlink()
    (data / "inverted_values.npy").unlink()
    fuzzing.fit_checksums(saved)
    refused(CompressedIndex.load, saved, "lacks the array inverted_values")


def test_an_id_of_a_removed_vector_may_repeat(tmp_path: Path) -> None:
    saved = copy_of("index", tmp_path)
    index = CompressedIndex.load(saved)
    index.add(fuzzing.some_vectors()[:1], [146 * 2**40])  # was in row 3, and removed
    index.save(tmp_path / "again")
    assert CompressedIndex.load(tmp_path / "again").ids[-1] == 146 * 2**40


@pytest.mark.parametrize(
    ("texts", "counted", "first"),
    [
        (["a", "b", "a"], None, 2),
        (["a", "b", "a"], [False, True, True], 3),
        (["", "b", "", "b"], None, 2),
        (["aa", "a", "aaa"], None, 3),
        (["x" * 9, "x" * 8 + "y", "x" * 9], None, 2),
        ([str(i) for i in range(5000)], None, 5000),
        ([str(i) for i in range(5000)] + ["77"], None, 5000),
    ],
)
def test_the_first_string_that_repeats(texts: list[str], counted: list[bool] | None, first: int) -> None:
    text = np.frombuffer("".join(texts).encode(), np.uint8)
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    assert first_repeated(text, ends, None if counted is None else np.array(counted)) == first


def test_an_id_that_begins_within_a_character(tmp_path: Path) -> None:
    saved = copy_of("index of string ids", tmp_path)
    (file,) = saved.rglob("id_ends.npy")
    ends = np.load(file)
    ends[1] += 1  # the second id begins with é, of two bytes
    np.save(file, ends)
    fuzzing.fit_checksums(saved)
    refused(CompressedIndex.load, saved, "the id of row [01] is not UTF-8")


def test_string_ids_that_repeat(tmp_path: Path) -> None:
    saved = copy_of("index of string ids", tmp_path)
    end = np.load(next(saved.rglob("id_ends.npy")))[148]
    change_array(saved, "id_text", put(slice(end - 3, end), np.frombuffer(b"144", np.uint8)))  # it was 147
    refused(CompressedIndex.load, saved, "duplicate id '144' at row 147")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,)}", "its header says"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (-150,)}", "its header says"),
        ("{'descr': '<i4', 'fortran_order': False, 'shape': (150,)}", "its header says"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (150,)}", "its header says"),
        ("{'descr': 'V0', 'fortran_order': False, 'shape': (150,)}", "its header says"),
        ("[" * 5000, "is damaged"),
        ("-" * 9000, "is damaged"),
    ],
)
def test_headers_that_say_more_than_there_is(header: str, message: str, tmp_path: Path) -> None:
    saved = copy_of("index", tmp_path)
    (file,) = saved.rglob("ids.npy")
    text = header.encode() + b"\n"
    file.write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + np.load(file).tobytes())
    fuzzing.fit_checksums(saved)
    refused(CompressedIndex.load, saved, message)


def test_a_header_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    some = np.arange(6, dtype=">i2").reshape(2, 3)
    for array in (some, np.asfortranarray(np.eye(3)), np.array(7), np.empty((0, 4))):
        np.save(tmp_path / "a.npy", array)
        with (tmp_path / "a.npy").open("rb") as handle:
            header = read_header(handle, tmp_path / "a.npy")
        assert (header.shape, header.dtype) == (array.shape, array.dtype)
        assert header.fortran_order == (array is not some and array.flags.fnc)
        assert (tmp_path / "a.npy").stat().st_size == header.offset + array.nbytes


def misaligned(array: Array) -> Array:
    """The same array at an odd address."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    moved = room[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert moved.ctypes.data % 2
    return moved


def test_misaligned_arrays_are_refused() -> None:
    arrays: dict[str, Array] = {
        "latents": np.array([[0, 1]], np.uint16),
        "values": np.ones((1, 2), np.int8),
        "scales": np.ones(1, np.uint16),
    }
    AlignedCodes(arrays, 2).validate(1)
    for name in ("latents", "scales"):
        with pytest.raises(ValueError, match=f"the array '{name}' .* is not aligned in memory"):
            AlignedCodes(arrays | {name: misaligned(arrays[name])}, 2)
    rows, levels = misaligned(np.zeros((1, 3), np.uint8)), np.linspace(0, 1, 8, dtype=np.float32)
    PackedCodes({"rows": rows}, levels, 2, 1)  # bytes may be anywhere
    with pytest.raises(TypeError, match="incompatible function arguments"):
        PackedCodes({"rows": rows}, misaligned(levels), 2, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder_w", lambda tensor: tensor * 2, "must have unit norm"),
        ("encoder_w", lambda tensor: np.where(tensor > 0, np.nan, tensor), "finite float32"),
        ("encoder_b", lambda tensor: tensor[:-1], "encoder_b"),
        ("encoder_w", lambda tensor: tensor.astype(np.float64), "finite float32"),
        ("mean", lambda tensor: tensor * 100, "the mean of unit rows is shorter than 1"),
        ("dictionary", lambda tensor: tensor.astype(np.float32), "must be a matrix of int8, got float32"),
        ("dictionary", lambda tensor: tensor[0], "must be a matrix of int8, got int8 of"),
        ("dictionary", lambda tensor: 0 * tensor, "must have unit norm, row 0 has 0"),
        ("dictionary", lambda tensor: tensor[:, :0], "dim must be at least 1, got 0"),
    ],
)
def test_tensors_of_a_model(
    name: str, change: Callable[[Array], Array], message: str, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    saved = copy_of("model", tmp_path)
    (file,) = saved.rglob("model.safetensors")
    # What is stored of a model is never all of these.
    model, tensors = CompresSAE.load(saved), load_file(file)
    tensors |= {"encoder_w": model.encoder_w, "encoder_b": model.encoder_b}
    if name == "dictionary":
        tensors["dictionary"] = np.full((model.n_latents, model.dim), 127, dtype=np.int8)
    save_file(tensors | {name: np.ascontiguousarray(change(tensors[name]))}, file)
    fuzzing.fit_checksums(saved)
    with pytest.raises(FormatError, match=message) as caught:
        CompresSAE.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 0), ("k", "6"), ("dim", 17), ("dim", 16.0), ("n_latents", None), ("fingerprint", 3)],
)
def test_the_manifest_of_a_model(name: str, value: Any, tmp_path: Path) -> None:
    saved = copy_of("model", tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update({name: value}))
    with pytest.raises(FormatError, match=name):
        CompresSAE.load(saved)


def open_codes(path: Path, **_: Any) -> CodeStore:
    """Codes are never mapped."""
    return CodeStore.load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latents-000001", lambda array: array[:-1], r"must hold <u2 \(60, 6\), got <u2 \(59, 6\)"),
        ("latents-000001", lambda array: array.astype(np.int16), "must hold <u2"),
        ("values-000001", lambda array: array.astype(np.float64), "must hold <f4"),
        ("values-000001", lambda array: np.asfortranarray(array), "must hold <f4"),
        ("values-000002", lambda array: array[:, :5], r"must hold <f4 \(30, 6\)"),
    ],
)
def test_shards_of_another_shape(name: str, change: Change, message: str, tmp_path: Path) -> None:
    saved = copy_of("codes", tmp_path)
    change_array(saved, name, change)
    refused(open_codes, saved, message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latents-000001", put((3, 0), 48), "latent 48 is outside"),
        ("latents-000001", put(3, 5), "row 3: latents must be strictly increasing"),
        ("values-000001", put((3, 0), np.nan), "row 3: values must be finite"),
    ],
)
def test_shards_that_hold_no_codes(name: str, change: Change, message: str, tmp_path: Path) -> None:
    saved = copy_of("codes", tmp_path)
    change_array(saved, name, change)
    store = CodeStore.load(saved)
    with pytest.raises(FormatError, match=message) as caught:
        store[60:120]
    assert str(saved) in str(caught.value)
    with pytest.raises(FormatError, match=r"copy.* is damaged"):
        CompressedIndex.from_codes(saved, fuzzing.some_model(), progress=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["meta"].update(shard_rows=0),
        lambda manifest: manifest["meta"].update(n=10**18, shard_rows=1),
        lambda manifest: manifest["meta"].update(k="6"),
        lambda manifest: manifest["meta"].update(encoder=6),
        lambda manifest: manifest["meta"].update(n_latents=10**9),
        lambda manifest: manifest["meta"].pop("fingerprint"),
        lambda manifest: manifest.update(shards=manifest["shards"] + [None]),
        lambda manifest: manifest.update(shards={}),
        lambda manifest: manifest["shards"].__setitem__(0, 7),
        lambda manifest: manifest["shards"][0].pop("files"),
    ],
)
def test_the_manifest_of_codes(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    saved = copy_of("codes", tmp_path)
    change_manifest(saved, change)
    refused(open_codes, saved, "manifest.json is damaged")
    with pytest.raises(FormatError, match=r"manifest\.json is damaged"):
        encode_to_directory(fuzzing.some_model(), fuzzing.some_vectors()[: fuzzing.ROWS], saved, k=fuzzing.K)


@pytest.mark.parametrize("n_latents", [47, 50, 60000])
def test_codes_over_other_latents_than_their_model(n_latents: int, tmp_path: Path) -> None:
    saved = copy_of("codes", tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update(n_latents=n_latents))
    with pytest.raises(FormatError, match=f"over {n_latents} latents, of 48"):
        CompressedIndex.from_codes(saved, fuzzing.some_model(), progress=False)


STEPS: dict[str, Any] = {"refine_rounds": 0, "steps": 2}
ROUNDS: dict[str, Any] = {"refine_rounds": 4, "steps": 0, "round_rows": 64}


@pytest.mark.parametrize(
    ("stage", "name", "change"),
    [
        ("steps", "encoder_w", lambda array: array[:-1]),
        ("steps", "encoder_w", lambda array: array.astype(np.float64)),
        ("steps", "decoder_w", put(0, np.nan)),
        ("steps", "adam.0.exp_avg", lambda array: array[:, :3]),
        ("steps", "adam.1.step", lambda array: array.astype(np.int64)),
        ("steps", "fired", lambda array: array[:3]),
        ("steps", "schedule", lambda array: array + 1),
        ("steps", "schedule", lambda array: array.astype(float)),
        ("rounds", "gradient", lambda array: array[:-1]),
        ("rounds", "use", lambda array: array.astype(">f4")),
        ("rounds", "round", lambda array: array - 1),
    ],
)
def test_arrays_of_a_checkpoint(stage: str, name: str, change: Change, tmp_path: Path) -> None:
    saved = copy_of(f"checkpoint of {stage}", tmp_path)
    change_array(saved, name, change)
    assert_not_gone_on(saved, stage)
    shutil.rmtree(saved)
    saved = copy_of(f"checkpoint of {stage}", tmp_path)
    next(saved.rglob(f"{name}.npy")).unlink()
    fuzzing.fit_checksums(saved)
    assert_not_gone_on(saved, stage)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(stage="nap"),
        lambda meta: meta.update(losses=[1.0]),
        lambda meta: meta.update(losses=[1.0, "2"]),
        lambda meta: meta.update(losses=None),
        lambda meta: meta.update(rounds=[[1, 2]]),
        lambda meta: meta.update(checks=[[1, 2, 3]]),
        lambda meta: meta.update(identity=[]),
        lambda meta: meta.pop("checks"),
    ],
)
def test_entries_of_a_checkpoint(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    saved = copy_of("checkpoint of steps", tmp_path)
    change_manifest(saved, lambda manifest: change(manifest["meta"]))
    assert_not_gone_on(saved, "steps")


def assert_not_gone_on(saved: Path, stage: str) -> None:
    settings = STEPS if stage == "steps" else ROUNDS
    config = TrainConfig(k=2, n_latents=16, batch_size=32, device="cpu", **settings)
    with pytest.raises(FormatError, match="copy is damaged"):
        train(fuzzing.some_vectors()[: fuzzing.ROWS], config, checkpoint=saved)


# Faiss's lists


def lists_of(saved: Path) -> Path:
    (file,) = saved.rglob("lists.faiss")
    return file


def change_word(saved: Path, place: int, value: int) -> None:
    file = lists_of(saved)
    content = bytearray(file.read_bytes())
    content[place : place + 8] = value.to_bytes(8, "little")
    file.write_bytes(bytes(content))
    fuzzing.fit_checksums(saved)


@pytest.mark.parametrize("value", [0, 1, 1000, 2**20, 2**33, 2**60, 2**61, 2**63, 2**64 - 1])
def test_counts_that_the_file_has_no_room_for(value: int, tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    content = lists_of(saved).read_bytes()
    lengths = content.index(b"full") + 12
    # ntotal, nlist, centroids, the number of lengths, and lengths.
    for place in (8, 37, content.index(b"IxFI") + 8, lengths - 8, lengths, lengths + 80):
        before = int.from_bytes(content[place : place + 8], "little")
        if before == value:
            continue
        change_word(saved, place, value)
        refused(FaissIndex.load, saved, r"lists\.faiss")
        told = CliRunner().invoke(main, ["info", str(lists_of(saved))])
        assert told.exit_code == 2
        assert told.output.startswith("Error: ")
        change_word(saved, place, before)
    FaissIndex.load(saved)


@pytest.mark.parametrize("row", [-1, 150, 2**40, 2**62, -(2**63)])
@pytest.mark.parametrize("last", [False, True])
def test_rows_that_are_not_there(row: int, last: bool, tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    file = lists_of(saved)
    lengths = faiss_lists.list_lengths(faiss_lists.read_lists(file))
    first = file.stat().st_size - int(lengths.sum()) * faiss_lists.POSTING_BYTES
    place = file.stat().st_size - 8 if last else first + 2 * int(lengths[0])
    change_word(saved, place, row % 2**64)
    refused(FaissIndex.load, saved, f"holds document {row} at place .* outside of 150")
    told = CliRunner().invoke(main, ["info", str(file)])
    assert told.exit_code == (0 if row == 150 else 2)
    assert row == 150 or f"posting lists hold the row {row}" in told.output


def test_rows_out_of_order_and_values_that_are_not_finite(tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    end = lists_of(saved).stat().st_size
    content = lists_of(saved).read_bytes()
    change_word(saved, end - 8, int.from_bytes(content[end - 16 : end - 8], "little"))
    refused(FaissIndex.load, saved, "out of order")
    lists_of(saved).write_bytes(content)
    lengths = faiss_lists.list_lengths(faiss_lists.read_lists(lists_of(saved)))
    last_values = end - int(lengths[np.flatnonzero(lengths)[-1]]) * faiss_lists.POSTING_BYTES
    changed = bytearray(content)
    changed[last_values : last_values + 2] = b"\x00\x7c"
    lists_of(saved).write_bytes(bytes(changed))
    fuzzing.fit_checksums(saved)
    refused(FaissIndex.load, saved, "not finite")


def on_disk(saved: Path) -> Any:
    """The lists of a saved index in a second file, as plain Faiss maps them."""
    index: Any = faiss.read_index(str(lists_of(saved)))
    lists: Any = faiss.OnDiskInvertedLists(index.nlist, 2, str(saved / "lists.data"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists, False)
    index.referenced_objects = [lists]
    return index


@pytest.mark.parametrize("field", [None, "offset", "size", "capacity"])
def test_lists_in_another_file_are_not_taken(field: str | None, tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    index = on_disk(saved)
    if field is not None:
        fuzzing.change_place(index.referenced_objects[0], 5, **{field: 2**40})
    faiss.write_index(index, str(lists_of(saved)))
    fuzzing.fit_checksums(saved)
    refused(FaissIndex.load, saved, "or lists in another file")
    for mmap in (False, True):
        with pytest.raises(FormatError, match="or lists in another file"):
            faiss_lists.read_lists(lists_of(saved), mmap=mmap)


def test_lists_that_faiss_maps_must_be_within_their_file(tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    model, index = fuzzing.some_model(), on_disk(saved)
    assert len(FaissIndex.from_lists(index, model)) == 150
    lists = index.referenced_objects[0]
    place = lists.lists.at(5)
    damages = (("offset", 2**40), ("size", 2**40), ("size", place.capacity + 1), ("capacity", 2**62))
    for field, value in damages:
        before = getattr(place, field)
        fuzzing.change_place(lists, 5, **{field: value})
        with pytest.raises(FormatError, match=r"list 5 is not within the \d+ bytes of .*lists\.data"):
            FaissIndex.from_lists(index, model)
        fuzzing.change_place(lists, 5, **{field: before})
    assert len(FaissIndex.from_lists(index, model)) == 150
    os.truncate(saved / "lists.data", 100)
    with pytest.raises(FormatError, match="is not within the 100 bytes of"):
        FaissIndex.from_lists(index, model)


def test_vectors_of_a_faiss_index_whose_lists_are_not_whole(tmp_path: Path) -> None:
    vectors = fuzzing.some_vectors()
    ivf = faiss.index_factory(16, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    ivf.train(vectors)
    ivf.add(vectors)
    faiss.write_index(ivf, str(tmp_path / "ivf.faiss"))
    mapped: Any = faiss.read_index(str(tmp_path / "ivf.faiss"))
    lists: Any = faiss.OnDiskInvertedLists(4, 64, str(tmp_path / "lists.data"))
    lists.merge_from_1(mapped.invlists)
    mapped.replace_invlists(lists, False)
    assert FaissVectors(mapped).shape == vectors.shape
    os.truncate(tmp_path / "lists.data", 5000)
    with pytest.raises(FormatError, match="is not within the 5000 bytes of"):
        FaissVectors(mapped)
    named: Any = faiss.index_factory(16, "IDMap2,IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    named.train(vectors)
    named.add_with_ids(vectors, np.arange(len(vectors)) + 1000)
    assert FaissVectors(named).shape == vectors.shape
    named.id_map.resize(3)
    with pytest.raises(FormatError, match="outside of its 3 ids"):
        FaissVectors(named)


def filled(lists: Any, latent: int, rows: list[int]) -> None:
    """Adds postings of value 1 to a list."""
    documents, halves = np.array(rows), np.ones(len(rows), np.float16).view(np.uint8)
    lists.add_entries(latent, len(rows), faiss.swig_ptr(documents), faiss.swig_ptr(halves))


def test_few_postings_of_many_rows_make_no_large_arrays() -> None:
    index: Any = faiss_lists.empty_lists(3000)
    filled(index.invlists, 0, [0, 1_500_000])
    for read in (faiss_lists.stats, faiss_lists.read_codes):
        with pytest.raises(FormatError, match="hold the row 1500000"):
            read(index)
    # A full row, and one far away.
    index = faiss_lists.empty_lists(3000)
    for latent in range(3000):
        filled(index.invlists, latent, [0] if latent else [0, 900_000])
    assert (faiss_lists.stats(index).vectors, faiss_lists.stats(index).k) == (900_001, 3000)
    with pytest.raises(FormatError, match="3001 postings are too few for 900001 rows of 3000"):
        faiss_lists.read_codes(index)


@pytest.mark.parametrize(("kind", "mark"), [("lists", b"full"), ("few lists", b"sprs")])
def test_both_forms_of_lengths_are_read(kind: str, mark: bytes) -> None:
    file = fuzzing.sample(kind) / "lists.faiss"
    assert mark in file.read_bytes()
    expected = faiss_lists.read_codes(faiss.read_index(str(file))).to_dense()
    for mmap in (False, True):
        read = faiss_lists.read_codes(faiss_lists.read_lists(file, mmap=mmap))
        np.testing.assert_array_equal(read.to_dense(), expected)


@pytest.mark.parametrize(("entry", "value"), [("unit", 2.0), ("string_ids", True), ("string_ids", 0)])
def test_entries_of_a_faiss_index(entry: str, value: Any, tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    change_manifest(saved, lambda manifest: manifest["meta"].update({entry: value}))
    refused(FaissIndex.load, saved, entry)


def test_a_faiss_index_without_levels(tmp_path: Path) -> None:
    saved = copy_of("Faiss index", tmp_path)
    next(saved.rglob("forward_levels.npy")).unlink()
    fuzzing.fit_checksums(saved)
    refused(FaissIndex.load, saved, "this codec is not fitted")


@pytest.mark.parametrize("version", [None, 0, -1, "1", True, 1.0])
def test_a_format_version_that_is_no_number(version: Any, tmp_path: Path) -> None:
    saved = copy_of("model", tmp_path)
    change_manifest(saved, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(FormatError, match="its format version is"):
        CompresSAE.load(saved)


@pytest.mark.parametrize("kind", [kind for kind in fuzzing.KINDS if "index" in kind])
def test_what_is_whole_is_loaded(kind: str, tmp_path: Path) -> None:
    saved = copy_of(kind, tmp_path)
    fuzzing.fit_checksums(saved)
    for mmap in (False, True):
        assert len(loader(kind)(saved, mmap=mmap)) > 100
