"""`BatchEncoder`: batches of tables with codes in place of vectors, in other people's pipelines."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressae_index import (
    BatchEncoder,
    CompresSAE,
    CompressedIndex,
    DimensionError,
    FormatError,
    InputError,
    SparseCodes,
)
from compressae_index.arrays import FloatArray
from compressae_index.sources import read_ids

N = 60


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """Rows of different norms."""
    return vectors[:N] * np.linspace(0.25, 4, N, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def folded(model: CompresSAE, rows: FloatArray) -> SparseCodes:
    return model.fold(model.encode(rows))


@pytest.fixture(scope="module")
def saved(model: CompresSAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batches") / "model"
    model.save(path)
    return path


def table_of(rows: FloatArray) -> pa.Table:
    return pa.table({"id": np.arange(len(rows)), "embedding": list(rows), "path": ["a.parquet"] * len(rows)})


def assert_codes(latents: Any, values: Any, codes: SparseCodes) -> None:
    np.testing.assert_array_equal(np.array(list(latents)), codes.latents)
    np.testing.assert_array_equal(np.array(list(values), dtype=np.float32), codes.values)


def assert_encoded(table: Any, codes: SparseCodes, rows: FloatArray) -> None:
    assert_codes(table.column("latents").to_pylist(), table.column("values").to_pylist(), codes)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(table.column("scale")), norms)


def test_a_dict_gets_codes_bit_for_bit(model: CompresSAE, rows: FloatArray, folded: SparseCodes) -> None:
    batch = {"id": np.arange(N), "embedding": rows, "text": [str(i) for i in range(N)]}
    encoded = BatchEncoder(model)(batch)
    assert list(encoded) == ["id", "text", "latents", "values", "scale"]
    assert list(batch) == ["id", "embedding", "text"]
    assert encoded["id"] is batch["id"]
    assert (encoded["latents"].dtype, encoded["values"].dtype) == (np.uint16, np.float32)
    assert_encoded(
        pa.table({name: list(values) for name, values in encoded.items()}),
        folded,
        rows,
    )


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_arrow_gives_the_same_kind(
    model: CompresSAE, rows: FloatArray, folded: SparseCodes, kind: str
) -> None:
    table = table_of(rows).replace_schema_metadata({b"theirs": b"1"})
    batch = table if kind == "table" else table.combine_chunks().to_batches()[0]
    encoded = BatchEncoder(model)(batch)
    assert type(encoded) is type(batch)
    encoded.validate(full=True)
    assert encoded.schema.names == ["id", "path", "latents", "values", "scale"]
    assert str(encoded.schema.field("latents").type) == "list<item: uint16>"
    assert str(encoded.schema.field("values").type) == "list<item: float>"
    assert encoded.schema.metadata == {
        b"theirs": b"1",
        b"compressae_index.fingerprint": model.fingerprint.encode(),
        b"compressae_index.encoder": b"pursuit",
    }
    assert_encoded(encoded, folded, rows)


def test_settings(model: CompresSAE, rows: FloatArray) -> None:
    for k, encoder in ((1, "pursuit"), (5, "topk"), (None, "topk")):
        made = BatchEncoder(model, k=k, encoder=encoder)  # type: ignore[arg-type]
        codes = model.fold(model.encode(rows, k, encoder=encoder))  # type: ignore[arg-type]
        encoded = made({"embedding": rows})
        assert_codes(encoded["latents"], encoded["values"], codes)
    small = BatchEncoder(model, column="v", latents="int32", values="float16", num_threads=None)
    encoded = small({"v": rows})
    assert (encoded["latents"].dtype, encoded["values"].dtype) == (np.int32, np.float16)
    codes = model.fold(model.encode(rows))
    np.testing.assert_array_equal(encoded["latents"], codes.latents)
    np.testing.assert_array_equal(encoded["values"], codes.values.astype(np.float16))
    table = small(pa.table({"v": list(rows)}))
    assert str(table.schema.field("latents").type) == "list<item: int32>"
    assert str(table.schema.field("values").type) == "list<item: halffloat>"
    for batch in (encoded, table):
        again = small.codes(batch)
        np.testing.assert_array_equal(again.latents, codes.latents)
        np.testing.assert_array_equal(again.values, codes.values.astype(np.float16).astype(np.float32))


def test_wrong_arguments_are_refused(model: CompresSAE, rows: FloatArray, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"k": 0},
        {"k": model.dim + 1},
        {"encoder": "best"},
        {"column": 3},
        {"on_bad_rows": "drop"},
        {"latents": "uint8"},
        {"values": "float64"},
        {"num_threads": 0},
    ]
    for arguments in wrong:
        with pytest.raises(InputError, match=next(iter(arguments))):
            BatchEncoder(model, **arguments)
    with pytest.raises(FormatError, match="does not exist"):
        BatchEncoder(tmp_path / "none")
    encoder = BatchEncoder(model)
    for batch, message in (
        ({"vector": rows}, "no column 'embedding', only: vector"),
        ({}, "no column 'embedding', only: none"),
        ({"embedding": rows, "values": rows[:, 0]}, "already has a column 'values'"),
        (rows, "a batch must be a dict of columns, .* got numpy.ndarray"),
        (pa.table([[1], [2]], names=["a", "a"]), "different names, got a, a"),
        ({"embedding": rows[:, 0]}, "must hold vectors, but its row 0 has shape"),
        ({"embedding": rows[:, None]}, "shape"),
        ({"embedding": ["text", "texts"]}, "must hold vectors"),
        ({"embedding": rows.astype(complex)}, "complex"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(batch)


@pytest.mark.parametrize("rows_a_batch", [1, 7, 13])
def test_batches_of_any_size_give_the_same_codes(
    model: CompresSAE, rows: FloatArray, folded: SparseCodes, rows_a_batch: int
) -> None:
    table = table_of(rows)
    encoder = BatchEncoder(model)
    parts = [encoder(table.slice(i, rows_a_batch)) for i in range(0, N, rows_a_batch)]
    assert_encoded(pa.concat_tables(parts), folded, rows)


def columns_of_one_meaning(rows: FloatArray) -> dict[str, Any]:
    """The same rows as types that hold them exactly."""
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = list(rows)
    return {
        "float64": rows.astype(np.float64),
        "fortran": np.asfortranarray(rows),
        "objects": ragged,
        "lists": rows.tolist(),
        "list of arrays": list(rows),
        "list of tensors": list(torch.from_numpy(rows)),
        "tensor": torch.from_numpy(rows),
        "list": pa.array(list(rows), pa.list_(pa.float32())),
        "large_list": pa.array(list(rows), pa.large_list(pa.float64())),
        "fixed_size_list": pa.array(list(rows), pa.list_(pa.float32(), rows.shape[1])),
        "tensors of Arrow": pa.FixedShapeTensorArray.from_numpy_ndarray(rows),
        "chunked": pa.chunked_array([list(rows[:1]), [], list(rows[1:])], pa.list_(pa.float32())),
    }


def test_columns_of_every_kind(model: CompresSAE, rows: FloatArray, folded: SparseCodes) -> None:
    encoder = BatchEncoder(model)
    for name, column in columns_of_one_meaning(rows).items():
        encoded = encoder({"embedding": column})
        np.testing.assert_array_equal(encoded["values"], folded.values, err_msg=name)
        np.testing.assert_array_equal(encoded["latents"], folded.latents, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.uint8, np.int8], ids=str)
def test_narrow_numbers_are_what_they_say(model: CompresSAE, rows: FloatArray, dtype: Any) -> None:
    narrow = (rows * 100).astype(np.int8).view(np.uint8) if dtype == np.uint8 else (rows * 30).astype(dtype)
    wide = narrow.astype(np.float32)
    wanted = model.fold(model.encode(wide))
    columns = [narrow, list(narrow), wide.tolist()]
    if dtype != ml_dtypes.bfloat16:
        columns.append(pa.array(list(narrow), pa.list_(pa.from_numpy_dtype(dtype))))
    for column in columns:
        encoded = BatchEncoder(model)({"embedding": column})
        assert_codes(encoded["latents"], encoded["values"], wanted)


def test_empty_batches(model: CompresSAE, built: CompressedIndex) -> None:
    for encoder in (BatchEncoder(model, k=3), BatchEncoder.of_index(built)):
        empty: tuple[Any, ...] = ([], np.empty((0, model.dim)), np.array([], dtype=object))
        for none in empty:
            encoded = encoder({"id": [], "embedding": none})
            assert {len(values) for values in encoded.values()} == {0}
            assert len(encoder.codes(encoded)) == 0
        for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), model.dim), pa.null()):
            for column in (pa.array([], kind), pa.chunked_array([], kind)):
                table = encoder(pa.table({"embedding": column}))
                assert table.num_rows == 0
                table.validate(full=True)
                assert len(encoder.codes(table)) == 0
        full = encoder(pa.table({"embedding": pa.array([[1.0] * model.dim])}))
        assert full.schema == table.schema


def spoiled(rows: FloatArray) -> dict[int, Any]:
    """Rows to put in the place of good ones, by the reason that an error gives."""
    dim = rows.shape[1]
    return {
        3: ([np.nan] * dim, "holds NaN"),
        8: ([np.inf] * dim, "holds values infinite in float32"),
        11: ([0.0] * dim, "is zero, so it has no direction"),
        20: ([1.0] * (dim - 1), f"holds {dim - 1} numbers, the model takes {dim}"),
        21: (None, "is missing"),
        40: ([], f"holds 0 numbers, the model takes {dim}"),
        50: ([1e-30] * dim, "is too short"),
    }


@pytest.mark.parametrize("kind", ["arrow", "lists", "objects"])
def test_bad_rows_are_named_or_left_out(
    model: CompresSAE, rows: FloatArray, folded: SparseCodes, kind: str
) -> None:
    def batch_of(column: list[Any]) -> Any:
        others = {"id": list(range(100, 100 + N)), "path": ["x" * 300 + "7.parquet"] * N, "tags": [[1]] * N}
        if kind == "arrow":
            return pa.table(others | {"embedding": pa.array(column, pa.list_(pa.float64()))})
        if kind == "lists":
            return others | {"embedding": column}
        held = np.empty(N, dtype=object)
        held[:] = column
        return {name: np.array(values) for name, values in others.items()} | {"embedding": held}

    bad, everything = spoiled(rows), rows.tolist()
    for row, (value, reason) in bad.items():
        with pytest.raises(InputError) as caught:
            BatchEncoder(model)(batch_of([*everything[:row], value, *everything[row + 1 :]]))
        message = str(caught.value)
        assert f"row {row} of the batch (id={100 + row}, path='xxx" in message
        assert "xxx7.parquet'): 'embedding' " + reason in message
        assert "(bad rows: 1 of 60); on_bad_rows='skip'" in message
        assert len(message) < 400
        assert isinstance(caught.value, DimensionError) == ("takes" in reason)
    for row, (value, _) in bad.items():
        everything[row] = value
    encoder = BatchEncoder(model, on_bad_rows="skip")
    with pytest.warns(UserWarning, match=r"^left out 7 of 60 rows: row 3 of the batch \(id=103"):
        encoded = encoder(batch_of(everything))
    assert encoder.skipped == 7
    good = np.delete(np.arange(N), list(bad))
    if kind == "arrow":
        assert_encoded(encoded, folded[good], rows[good])
        ids, tags = encoded.column("id").to_pylist(), encoded.column("tags").to_pylist()
    else:
        assert_codes(encoded["latents"], encoded["values"], folded[good])
        ids, tags = list(encoded["id"]), encoded["tags"]
    assert ids == (100 + good).tolist()
    assert len(tags) == len(good)
    with pytest.warns(UserWarning, match="left out 1 of 1 rows: row 0"):
        assert len(encoder({"embedding": [None]})["scale"]) == 0
    assert encoder.skipped == 8


def test_columns_of_nulls_alone(model: CompresSAE) -> None:
    """Engines guess types from the first rows of a block."""
    table = pa.table({"embedding": pa.nulls(3)})
    with pytest.raises(InputError, match=r"row 0 of the batch: 'embedding' is missing \(bad rows: 3 of 3\)"):
        BatchEncoder(model)(table)
    with pytest.warns(UserWarning, match="left out 3 of 3 rows"):
        assert BatchEncoder(model, on_bad_rows="skip")(table).num_rows == 0


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int | None], str, list[int], int]:
    """Rows by number, None for null; the list type; where chunks end; rows before and after a slice."""
    which = draw(st.lists(st.one_of(st.none(), st.integers(0, N - 1)), max_size=12))
    kind = draw(st.sampled_from(["list", "large_list", "fixed_size_list"]))
    cuts = draw(st.lists(st.integers(0, len(which)), max_size=3))
    return which, kind, sorted(cuts), draw(st.integers(0, 3))


def laid_out(rows: FloatArray, which: list[int | None], kind: str, cuts: list[int], around: int) -> Any:
    number = pa.float32()
    types = {
        "list": pa.list_(number),
        "large_list": pa.large_list(number),
        "fixed_size_list": pa.list_(number, rows.shape[1]),
    }
    chunks = []
    for first, end in zip([0, *cuts], [*cuts, len(which)], strict=True):
        held = [None if row is None else rows[row] for row in which[first:end]]
        padded = pa.array([None] * around + held + [rows[0]] * around, types[kind])
        chunks.append(padded.slice(around, end - first))
    return pa.chunked_array(chunks, types[kind])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts())
def test_arrow_layouts(model: CompresSAE, rows: FloatArray, folded: SparseCodes, layout: Any) -> None:
    which, kind, cuts, around = layout
    table = pa.table({"embedding": laid_out(rows, which, kind, cuts, around), "row": range(len(which))})
    encoder = BatchEncoder(model, on_bad_rows="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = encoder(table)
    encoded.validate(full=True)
    kept = [row for row, number in enumerate(which) if number is not None]
    assert encoded.column("row").to_pylist() == kept
    assert encoder.skipped == len(which) - len(kept)
    wanted = np.array([which[row] for row in kept], dtype=np.int64)
    codes = encoder.codes(encoded)
    np.testing.assert_array_equal(codes.latents, folded.latents[wanted])
    np.testing.assert_array_equal(codes.values, folded.values[wanted])


def test_a_path_is_pickled_and_its_model_is_loaded_once(
    model: CompresSAE, saved: Path, rows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BatchEncoder(saved, on_bad_rows="skip")
    with pytest.warns(UserWarning, match="left out 1 of 1 rows"):
        encoder({"embedding": [None]})
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 1000
    assert len(pickle.dumps(BatchEncoder(model))) > model.n_latents * model.dim
    loads: list[Path] = []
    whole = CompresSAE.load

    def load(path: Path) -> CompresSAE:
        loads.append(path)
        return whole(path)

    monkeypatch.setattr("compressae_index.batches._loaded", {})
    monkeypatch.setattr(CompresSAE, "load", load)
    again = [pickle.loads(pickled) for _ in range(3)]
    wanted = encoder({"embedding": rows})
    for each in again:
        assert each.skipped == 0
        np.testing.assert_array_equal(each({"embedding": rows})["values"], wanted["values"])
    assert loads == [saved]
    given = pickle.loads(pickle.dumps(BatchEncoder(model)))
    np.testing.assert_array_equal(given({"embedding": rows})["values"], wanted["values"])


def test_another_model_at_the_path_is_refused(
    model: CompresSAE, uncentred_model: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "model")
    encoder = BatchEncoder(tmp_path / "model")
    uncentred_model.save(tmp_path / "model")
    assert BatchEncoder(tmp_path / "model").model.fingerprint == uncentred_model.fingerprint
    assert encoder.model.fingerprint == model.fingerprint  # loaded before
    monkeypatch.setattr("compressae_index.batches._loaded", {})
    with pytest.raises(FormatError, match="holds another model than when this encoder was made"):
        pickle.loads(pickle.dumps(encoder)).model  # noqa: B018


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"forward": "aligned"},
        {"residual_bits": 2},
        {"metric": "inner_product"},
    ],
    ids=str,
)
def test_packed_rows_are_those_of_the_index(
    model: CompresSAE, uncentred_model: CompresSAE, rows: FloatArray, made: dict[str, Any]
) -> None:
    used = uncentred_model if "metric" in made else model
    index = CompressedIndex.build(rows[:40], model=used, k=8, progress=False, **made)
    encoder = pickle.loads(pickle.dumps(BatchEncoder.of_index(index)))
    index.add(rows[40:])
    backend = index.documents.backend
    stored = backend.forward_rows(np.arange(40, N))
    encoded = encoder(table_of(rows[40:]))
    assert encoded.schema.names == ["id", "path", "code", "scale"]
    size = backend.codec.row_bytes(used.n_latents, 8)
    assert encoded.schema.field("code").type == pa.binary(size)
    wanted = [
        b"".join(np.ascontiguousarray(stored[name][row]).tobytes() for name in backend.codec.array_names)
        for row in range(N - 40)
    ]
    assert encoded.column("code").to_pylist() == wanted
    alone = encoder({"embedding": rows[40:]})
    assert [row.tobytes() for row in alone["code"]] == wanted
    for batch in (encoded, alone, {"code": list(alone["code"])}):
        codes, held = encoder.codes(batch), backend.codes(np.arange(40, N))
        assert_codes(codes.latents, codes.values, held)


def test_packed_codes_of_another_index_are_refused(
    model: CompresSAE, rows: FloatArray, vectors: FloatArray
) -> None:
    one, other = (
        CompressedIndex.build(vectors[:n], model=model, value_bits=bits, k=16, progress=False)
        for n, bits in ((2000, 6), (2000, 4))
    )
    encoded = BatchEncoder.of_index(one)(table_of(rows))
    with pytest.raises(FormatError, match="packed by the codec of another index"):
        BatchEncoder.of_index(other).codes(encoded)
    with pytest.raises(InputError, match=r"must be of \d+ bytes"):
        BatchEncoder.of_index(other).codes(encoded.replace_schema_metadata(None))
    with pytest.raises(InputError, match="no column 'latents'"):
        BatchEncoder(model).codes(encoded)
    for nothing in (CompressedIndex(model), model):
        with pytest.raises(InputError, match="as in an index that holds vectors"):
            BatchEncoder.of_index(nothing)  # type: ignore[arg-type]


def test_codes_of_another_model_are_refused(
    model: CompresSAE, uncentred_model: CompresSAE, rows: FloatArray
) -> None:
    encoded = BatchEncoder(model)(table_of(rows))
    other = BatchEncoder(uncentred_model)
    with pytest.raises(FormatError, match=f"fingerprint {model.fingerprint}, the model given has"):
        other.codes(encoded)
    with pytest.raises(FormatError, match="holds codes of another model"):
        other.codes(encoded.replace_schema_metadata(None))
    with pytest.raises(FormatError, match="holds codes of another model"):
        BatchEncoder(model).codes(BatchEncoder(uncentred_model)({"embedding": rows}))
    for latents, message in (
        (np.full((1, 16), 512), "outside of n_latents = 512"),
        (np.full((1, 16), -1), "latent -1 is outside"),
        (np.full((1, 15), 1), "lists of 16 numbers"),
        (np.full((1, 16), 1.0), "integer latents"),
        (np.full((1, 16), 1), "strictly increasing"),
    ):
        with pytest.raises(InputError, match=message):
            BatchEncoder(model).codes({"latents": latents, "values": np.ones(latents.shape, np.float32)})


# Parquet files of codes as a source


def write_parts(encoder: BatchEncoder, rows: FloatArray, folder: Path, *, keep_metadata: bool = True) -> None:
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for part, first in enumerate((0, 17, 18, 40)):
        end = (17, 18, 40, len(rows))[part]
        table = encoder(table_of(rows).slice(first, end - first))
        if not keep_metadata:
            table = table.replace_schema_metadata(None)
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=7)


@pytest.mark.parametrize("keep_metadata", [True, False])
def test_an_index_of_parquet_codes_is_that_of_the_vectors(
    model: CompresSAE, rows: FloatArray, queries: FloatArray, tmp_path: Path, keep_metadata: bool
) -> None:
    folder = tmp_path / "codes"
    write_parts(BatchEncoder(model), rows, folder, keep_metadata=keep_metadata)
    ids = read_ids(folder, "id")
    wanted = CompressedIndex.build(rows, model=model, k=16, value_bits=6, residual_bits=0, progress=False)
    for source in (folder, str(folder / "*.parquet"), sorted(folder.glob("part-*"))):
        index = CompressedIndex.from_codes(source, model, ids, progress=False)
        assert index.encoder == "pursuit"
        assert index.ids.tolist() == list(range(N))
        for mine, theirs in zip(index.search(queries), wanted.search(queries), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_an_index_of_parquet_codes_for_inner_products(
    uncentred_model: CompresSAE, rows: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    write_parts(BatchEncoder(uncentred_model, encoder="topk", k=12), rows, tmp_path / "codes")
    wanted = CompressedIndex.build(
        rows,
        model=uncentred_model,
        k=12,
        encoder="topk",
        metric="inner_product",
        value_bits=6,
        progress=False,
    )
    index = CompressedIndex.from_codes(
        tmp_path / "codes", uncentred_model, metric="inner_product", progress=False
    )
    assert (index.encoder, index.metric, index.unit) == ("topk", "inner_product", wanted.unit)
    np.testing.assert_allclose(index.codes(index.ids).values, wanted.codes(wanted.ids).values, rtol=0.02)
    np.testing.assert_allclose(index.search(queries)[0], wanted.search(queries)[0], rtol=1e-3)


def test_wrong_parquet_codes_are_refused(
    model: CompresSAE, uncentred_model: CompresSAE, rows: FloatArray, tmp_path: Path
) -> None:
    def build(source: Any, model: CompresSAE = model, **arguments: Any) -> CompressedIndex:
        return CompressedIndex.from_codes(source, model, progress=False, **arguments)

    write_parts(BatchEncoder(model), rows, tmp_path / "codes")
    write_parts(BatchEncoder(model), rows, tmp_path / "lost", keep_metadata=False)
    with pytest.raises(FormatError, match=r"part-0.parquet was encoded by a model of fingerprint"):
        build(tmp_path / "codes", uncentred_model)
    with pytest.raises(FormatError, match="lost, at rows from 0 on, holds codes of another model"):
        build(tmp_path / "lost", uncentred_model)
    with pytest.raises(InputError, match=r"not its mean|leaves out their mean"):
        build(tmp_path / "codes", metric="inner_product")
    file = tmp_path / "wrong.parquet"
    good = BatchEncoder(model)(table_of(rows))
    latents = good.column("latents").to_pylist()
    for column, values, message in (
        ("latents", None, "holds no column 'latents' of codes, only: id, path, values, scale"),
        ("latents", [None, *latents[1:]], "row 0 is missing"),
        ("latents", [*latents[:-1], latents[0][:-1]], "row 59 holds 15 numbers, the first 16"),
        ("latents", [each[:-1] for each in latents], r"latents are \(60, 15\), values \(60, 16\)"),
        ("latents", [[600, *each[1:]] for each in latents], "outside of n_latents"),
        ("values", [[np.nan] * 16] * N, "must be finite"),
        ("values", [[1.0] * 16] * N, "holds codes of another model, or not as they were encoded"),
    ):
        table = good.drop_columns([column])
        if values is not None:
            table = table.append_column(column, pa.array(values))
        pq.write_table(table, file)
        with pytest.raises(FormatError, match=message):
            build(file)
    pq.write_table(good.slice(0, 0), file)
    with pytest.raises(InputError, match="holds no codes"):
        build(file)
    write_parts(BatchEncoder(uncentred_model), rows, tmp_path / "other")
    part = tmp_path / "other" / "part-2.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["scale"]), part)
    with pytest.raises(FormatError, match=r"part-2.parquet holds no column 'scale', the norms"):
        build(tmp_path / "other", uncentred_model, metric="inner_product")


# Engines


def test_processes_of_multiprocessing(saved: Path, rows: FloatArray, folded: SparseCodes) -> None:
    batches = [{"id": np.arange(i, i + 15), "embedding": rows[i : i + 15]} for i in range(0, N, 15)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        encoded = pool.map(BatchEncoder(saved), batches)
    assert np.concatenate([batch["id"] for batch in encoded]).tolist() == list(range(N))
    assert_codes(
        np.concatenate([batch["latents"] for batch in encoded]),
        np.concatenate([batch["values"] for batch in encoded]),
        folded,
    )


@pytest.mark.parametrize("shown_as", [None, "numpy", "torch", "arrow"])
def test_datasets_of_hugging_face(
    saved: Path, rows: FloatArray, folded: SparseCodes, shown_as: str | None, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    try:
        held = datasets.Dataset.from_dict({"id": list(range(N)), "embedding": list(rows)})
        encoded = held.with_format(shown_as).map(
            BatchEncoder(saved),
            batched=True,
            batch_size=25,
            remove_columns=["embedding"],
            cache_file_name=str(tmp_path / "cache.arrow"),
        )
        assert encoded.column_names == ["id", "latents", "values", "scale"]
        assert encoded.features["latents"].feature.dtype == "uint16"
        encoded = encoded.with_format("numpy")
        assert_codes(encoded["latents"], encoded["values"], folded)
        encoded.to_parquet(tmp_path / "codes.parquet")
    finally:
        datasets.enable_progress_bars()
    index = CompressedIndex.from_codes(tmp_path / "codes.parquet", BatchEncoder(saved).model, progress=False)
    assert len(index) == N


PAGE = (Path(__file__).parents[1] / "docs" / "scale-out.md").read_text(encoding="utf-8")

# After the page's own: batches of dicts, by an encoder that was made in the driver.
MORE = {
    "ray": """
ray.data.read_parquet("vectors.parquet").map_batches(
    BatchEncoder("texts-codes.model", on_bad_rows="skip").__call__, batch_format="numpy", batch_size=25
).write_parquet("dicts")
ray.shutdown()
""",
}
BEFORE = {
    "ray": """
import ray
ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, object_store_memory=100 * 2**20)
ray.data.DataContext.get_current().enable_progress_bars = False
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "daft", "pyspark"])
def test_engines_run_the_code_of_the_page(
    model: CompresSAE, rows: FloatArray, folded: SparseCodes, tmp_path: Path, engine: str
) -> None:
    """In a process of their own: they leave threads, handlers and environment variables behind."""
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    if engine == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    model.save(tmp_path / "texts-codes.model")
    first = 1 if engine == "ray" else 0
    embeddings = [None, *rows[1:]] if first else list(rows)
    table = pa.table({"id": np.arange(N), "embedding": pa.array(embeddings, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "vectors.parquet", row_group_size=20)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if re.match(rf"(from|import) {engine}\b", block))
    script = tmp_path / "script.py"
    script.write_text(BEFORE.get(engine, "") + block + MORE.get(engine, ""))
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # Ray starts slowly on a busy machine
        cwd=tmp_path,  # which workers put first in sys.path
        # Ray leaves a token in the home folder.
        env=os.environ | {"HOME": str(tmp_path), "PYSPARK_PYTHON": sys.executable, "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert ("left out 1 of" in done.stdout + done.stderr) == bool(first)
    for name in sorted(
        {f"codes-{engine.removeprefix('py')}", "dicts"} & {path.name for path in tmp_path.iterdir()}
    ):
        table = pq.read_table(tmp_path / name).sort_by("id")
        assert table.schema.names == ["id", "latents", "values", "scale"]
        assert table.column("id").to_pylist() == list(range(first, N))
        assert_codes(table.column("latents").to_pylist(), table.column("values").to_pylist(), folded[first:])
        index = CompressedIndex.from_codes(
            tmp_path / name, model, read_ids(tmp_path / name, "id"), progress=False
        )
        assert len(index) == N - first
    assert (tmp_path / "dicts").exists() == (engine in MORE)
    if engine == "ray":
        fingerprints = {
            pq.read_schema(file).metadata[b"compressae_index.fingerprint"]
            for file in (tmp_path / "codes-ray").iterdir()
        }
        assert fingerprints == {model.fingerprint.encode()}
