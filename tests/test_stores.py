"""Codes in other stores: real ones where they install, else what clients send, scored as it is documented."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError, SparseCodes
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.cli import main
from compressae_index.coding.pairs import signed, split
from compressae_index.connectors.stores import STORES, StoreName, creation, documents, export, queries
from compressae_index.connectors.stores.store import listed
from compressae_index.search.queries import Settings
from compressae_index.search.stages import strongest_of
from compressae_index.testing import dense_codes, names, query_terms, sampled_model, term_scores

Float64 = npt.NDArray[np.float64]
LIMIT = 60
ROOT = Path(__file__).parent.parent


def agreements(index: CompressedIndex, asked: FloatArray, round_value: Callable[[Any], Any] = abs) -> Float64:
    """Sums of the terms whose signs are equal."""
    codes, terms = dense_codes(index), query_terms(index, asked, 64)
    values = round_value(np.abs(codes))
    scores: Float64 = np.zeros((len(terms), len(codes)))
    for sign in (1, -1):
        scores += np.maximum(sign * terms, 0) @ np.where(sign * codes > 0, values, 0).T
    return scores


def in_nine_bits(values: Any) -> Any:
    """Values as Lucene keeps them: a float32 without its last 15 bits."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 15 << 15).view(np.float32).astype(np.float64)


def assert_best(found: list[list[int]], scores: Float64) -> None:
    """Checks that no document has a better score than those that were found."""
    for ids, of_query in zip(found, scores, strict=True):
        assert len(set(ids)) == LIMIT
        np.testing.assert_allclose(of_query[ids], np.sort(of_query)[::-1][:LIMIT], atol=1e-5)


def assert_rescored(index: CompressedIndex, asked: FloatArray, found: list[list[int]]) -> None:
    """Checks that the best of what a store found come back by their exact scores."""
    result, exact = index.rescore(asked, found, 10), term_scores(index, asked)
    for row, ids in enumerate(found):
        best = np.array(ids)[np.argsort(-exact[row, ids])][:10]
        np.testing.assert_allclose(result.scores[row], exact[row, best], atol=2e-6)
        np.testing.assert_allclose(exact[row, result.ids[row]], exact[row, best], atol=2e-6)


@pytest.fixture(scope="module")
def some(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """An index of 500 embeddings, for clients that are slow."""
    return CompressedIndex.build(vectors[:500], model=model, k=16, progress=False)


def test_qdrant(some: CompressedIndex, queries: FloatArray) -> None:
    found = in_qdrant(some, queries[:20])
    assert_best(found, term_scores(some, queries[:20], 64))
    assert_rescored(some, queries[:20], found)


def in_qdrant(index: CompressedIndex, asked: FloatArray) -> list[list[Any]]:
    """Ids or payloads that Qdrant finds."""
    qdrant, models = (pytest.importorskip(f"qdrant_client{part}") for part in ("", ".models"))
    client = qdrant.QdrantClient(":memory:")
    made = json.loads(creation(index, "qdrant")["collection.json"])
    assert made == {"vectors": {}, "sparse_vectors": {"code": {}}}
    client.create_collection(
        "documents", vectors_config={}, sparse_vectors_config={"code": models.SparseVectorParams()}
    )
    client.upsert("documents", [models.PointStruct(**point) for point in documents(index, "qdrant")])
    requests = [models.QueryRequest(**body) for body in of(index, asked, "qdrant")]
    return [
        [(hit.payload or {}).get("id", hit.id) for hit in answer.points]
        for answer in client.query_batch_points("documents", requests)
    ]


queries_for = queries  # a fixture has the same name


def of(index: CompressedIndex, asked: FloatArray, store: StoreName) -> list[Any]:
    return queries_for(index, asked, store, limit=LIMIT)


def in_vsag(index: CompressedIndex, asked: FloatArray, folder: Path) -> list[list[int]]:
    """Ids that VSAG finds for the files in a folder, which are written first."""
    pyvsag = pytest.importorskip("pyvsag")
    export(index, "vsag", folder, queries=asked, limit=LIMIT)
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy") if "query" not in path.stem}
    lists = pyvsag.Index("sindi", (folder / "index.json").read_text())
    lists.build(**arrays)
    options = json.dumps({"sindi": {"n_candidate": LIMIT, "query_prune_ratio": 0.0}})
    rows = of(index, asked, "vsag")
    return [np.ravel(lists.knn_search(*row, LIMIT, options)[0]).tolist() for row in rows]


def test_vsag(built: CompressedIndex, queries: FloatArray, tmp_path: Path) -> None:
    found = in_vsag(built, queries, tmp_path / "out")
    assert_best(found, term_scores(built, queries, 64))
    assert_rescored(built, queries, found)
    asked = {path.stem: np.load(path) for path in (tmp_path / "out").glob("query_*.npy")}
    rows = of(built, queries, "vsag")
    assert asked["query_index_pointers"].tolist() == [64 * i for i in range(len(queries) + 1)]
    np.testing.assert_array_equal(asked["query_indices"], np.concatenate([row[1] for row in rows]))
    np.testing.assert_array_equal(asked["query_values"], np.concatenate([row[2] for row in rows]))


def test_seismic(built: CompressedIndex, queries: FloatArray, tmp_path: Path) -> None:
    seismic = pytest.importorskip("seismic")
    rows, asked = export(built, "seismic", tmp_path / "out", queries=queries)
    index = seismic.SeismicIndex.build(str(rows), n_postings=1000, num_threads=1)
    found = []
    for line in asked.read_text().splitlines():
        vector = json.loads(line)["vector"]
        tokens = np.array(list(vector), dtype=seismic.get_seismic_string())
        values = np.array(list(vector.values()), np.float32)
        found.append([int(hit[2]) for hit in index.search("", tokens, values, LIMIT, 128, 0.5)])
    # It looks at blocks of documents that are likely to be near, and keeps values in half precision.
    best = np.argsort(-term_scores(built, queries, 64), axis=1)[:, :LIMIT]
    assert np.mean([len({*a} & {*b}) / LIMIT for a, b in zip(found, best.tolist(), strict=True)]) > 0.99
    assert_rescored(built, queries, found)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Where a PostgreSQL with pgvector listens, which runs as long as the tests."""
    pytest.importorskip("psycopg")
    config = shutil.which("pg_config")
    if config is None:
        pytest.skip("needs PostgreSQL: there is no pg_config")
    bin_folder, shared = (
        Path(
            subprocess.run(
                [config, f"--{part}dir"], check=True, capture_output=True, text=True
            ).stdout.strip()
        )
        for part in ("bin", "share")
    )
    if not ((bin_folder / "initdb").exists() and (shared / "extension" / "vector.control").exists()):
        pytest.skip("needs a server of PostgreSQL with the extension pgvector")
    # A short path for its socket, which the user of the server can enter.
    with tempfile.TemporaryDirectory(prefix="compressae-pg-") as folder:
        user = "postgres" if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)

        def call(program: str, *arguments: str) -> None:
            words: list[str | Path] = [bin_folder / program, "-D", folder, *arguments]
            # A pipe would stay open as long as the server runs.
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user)

        call("initdb", "-A", "trust", "-U", "tests", "-N")
        options = f"-c listen_addresses= -c fsync=off -k {folder}"
        call("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        yield f"host={folder} user=tests dbname=postgres"
        call("pg_ctl", "-w", "-m", "immediate", "stop")


def in_postgres(database: str, folder: Path) -> list[list[Any]]:
    """Ids that PostgreSQL finds for the files in a folder."""
    psycopg = importlib.import_module("psycopg")
    with psycopg.connect(database) as connection:
        connection.execute((folder / "table.sql").read_text())
        with connection.cursor().copy("COPY documents FROM STDIN") as copy:
            copy.write((folder / "rows.tsv").read_bytes())
        statements = (folder / "queries.sql").read_text().splitlines()
        found = [[row[0] for row in connection.execute(each)] for each in statements]
        connection.execute("DROP TABLE documents")
    return found


def test_pgvector(built: CompressedIndex, queries: FloatArray, database: str, tmp_path: Path) -> None:
    export(built, "pgvector", tmp_path / "out", queries=queries, limit=LIMIT)
    found = in_postgres(database, tmp_path / "out")
    assert_best(found, term_scores(built, queries, 64))
    assert_rescored(built, queries, found)


def test_pgvector_strings(model: CompresSAE, vectors: FloatArray, database: str, tmp_path: Path) -> None:
    ids = [f"{name}\t\\n\n\r\\." for name in names(20)]
    index = CompressedIndex.build(vectors[:20], ids, model=model, k=16, progress=False)
    export(index, "pgvector", tmp_path / "out", queries=vectors[:20], limit=1)
    assert in_postgres(database, tmp_path / "out") == [[name] for name in ids]


class Recorder(BaseHTTPRequestHandler):
    """Answers requests as `answers` says, and keeps their bodies."""

    answers: Callable[[str, list[Any]], Any]
    bodies: list[tuple[str, list[Any]]]

    def do_POST(self) -> None:
        """Any request with a body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        lines = [json.loads(line) for line in body.decode().splitlines()]
        self.bodies.append((self.path, lines))
        content = json.dumps(type(self).answers(self.path, lines)).encode()
        self.send_response(200)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, type[Recorder]]]:
    """An address of this machine, and the class that answers there."""
    handler = type("Handler", (Recorder,), {"bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def weights(query: dict[str, Any]) -> dict[str, float]:
    """Weights of the features of a query, as the documentation of its kind says."""
    if "sparse_vector" in query:
        assert set(query["sparse_vector"]) == {"field", "query_vector", "prune"}
        assert (query["sparse_vector"]["field"], query["sparse_vector"]["prune"]) == ("code", False)
        of_features: dict[str, float] = query["sparse_vector"]["query_vector"]
        return of_features
    clauses = [clause["rank_feature"] for clause in query["bool"]["should"]]
    assert all(clause["linear"] == {} for clause in clauses)
    return {clause["field"].removeprefix("code."): clause["boost"] for clause in clauses}


def as_lucene(stored: dict[str, dict[str, float]]) -> Callable[[str, list[Any]], Any]:
    """A server that keeps what it is sent in `stored`, and scores it as Lucene documents its features."""

    def answer(path: str, lines: list[Any]) -> Any:
        if path.endswith("/_bulk"):
            actions = [action["index"] for action in lines[::2]]
            assert {action["_index"] for action in actions} == {"documents"}
            sources = (source["code"] for source in lines[1::2])
            stored.update(zip((action["_id"] for action in actions), sources, strict=True))
            return {"errors": False, "items": [{"index": {**a, "status": 201}} for a in actions]}
        assert path == "/documents/_search"
        asked, limit = weights(lines[0]["query"]), lines[0]["size"]
        assert all(value > 0 for value in asked.values())
        sums = {
            name: sum(asked[key] * in_nine_bits(value) for key, value in code.items() if key in asked)
            for name, code in stored.items()
        }
        best = sorted(sums, key=lambda name: -sums[name])[:limit]
        return {"hits": {"hits": [{"_id": name, "_score": sums[name]} for name in best]}}

    return answer


@pytest.mark.parametrize(
    ("store", "module", "client"),
    [
        ("opensearch", "opensearchpy", "OpenSearch"),
        ("elasticsearch", "elasticsearch", "Elasticsearch"),
    ],
)
def test_bodies_of_lucene(
    store: StoreName,
    module: str,
    client: str,
    built: CompressedIndex,
    queries: FloatArray,
    recorder: tuple[str, type[Recorder]],
    tmp_path: Path,
) -> None:
    """No server of these installs here."""
    pytest.importorskip(module)
    helpers = importlib.import_module(f"{module}.helpers")
    stored: dict[str, dict[str, float]] = {}
    (address, handler), queries = recorder, queries[:5]
    handler.answers = staticmethod(as_lucene(stored))
    connection = getattr(importlib.import_module(module), client)(address)
    assert helpers.bulk(connection, documents(built, store)) == (4000, [])
    found = []
    for body in of(built, queries, store):
        hits = connection.search(index="documents", body=body)["hits"]["hits"]
        found.append([int(hit["_id"]) for hit in hits])
    connection.close()
    assert min(value for code in stored.values() for value in code.values()) > 0
    assert_best(found, agreements(built, queries, in_nine_bits))
    assert_rescored(built, queries, found)

    rows, index_file, asked = export(built, store, tmp_path / "out", queries=queries, limit=LIMIT)
    sent = [line for path, lines in handler.bodies if path.endswith("/_bulk") for line in lines]
    assert [json.loads(line) for line in rows.read_text().splitlines()] == sent
    searched = [lines[0] for path, lines in handler.bodies if path.endswith("/_search")]
    assert [json.loads(line) for line in asked.read_text().splitlines()] == searched
    field = {"opensearch": "rank_features", "elasticsearch": "sparse_vector"}[store]
    assert json.loads(index_file.read_text()) == {"mappings": {"properties": {"code": {"type": field}}}}


def test_vespa(
    some: CompressedIndex, queries: FloatArray, recorder: tuple[str, type[Recorder]], tmp_path: Path
) -> None:
    """No server of Vespa installs here: pyvespa sends rows and queries, and writes the same schema."""
    application = pytest.importorskip("vespa.application")
    stored: dict[str, dict[str, float]] = {}
    address, handler = recorder

    def answer(path: str, lines: list[Any]) -> Any:
        if not path.startswith("/search/"):
            _, _, version, space, kind, _, name = (*path.split("?")[0].split("/"),)[:7]
            assert (version, space, kind) == ("v1", "documents", "documents")
            fields = lines[0]["fields"]
            assert str(fields["id"]) == name
            stored[name] = fields["code"]
            return {"id": f"id:documents:documents::{name}"}
        body = lines[0]
        assert (body["yql"], body["ranking"]) == ("select id from documents where true", "code")
        asked = body["input.query(code)"]
        sums = {
            name: sum(asked[key] * value for key, value in code.items() if key in asked)
            for name, code in stored.items()
        }
        best = sorted(sums, key=lambda name: -sums[name])[: body["hits"]]
        return {"root": {"children": [{"fields": {"id": int(name)}} for name in best]}}

    handler.answers = staticmethod(answer)
    index, queries = some, queries[:5]
    with application.VespaSync(application.Vespa(address)) as session:
        for row in documents(index, "vespa"):
            session.feed_data_point("documents", row["id"], row["fields"], namespace="documents")
        answers = [session.query(body) for body in of(index, queries, "vespa")]
    found = [[hit["fields"]["id"] for hit in answer.hits] for answer in answers]
    assert_best(found, term_scores(index, queries, 64))
    assert_rescored(index, queries, found)

    rows, schema, asked = export(index, "vespa", tmp_path / "out", queries=queries, limit=LIMIT)
    operations = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [each["put"] for each in operations] == [f"id:documents:documents::{i}" for i in range(500)]
    assert [each["fields"]["code"] for each in operations] == list(stored.values())
    assert [json.loads(line) for line in asked.read_text().splitlines()] == of(index, queries, "vespa")
    assert words(schema.read_text()) == words(schema_by_pyvespa())


def words(text: str) -> list[str]:
    return text.split()


def schema_by_pyvespa() -> str:
    """The schema as pyvespa writes it."""
    package = importlib.import_module("vespa.package")
    profile = package.RankProfile(
        "code",
        first_phase="sum(query(code) * attribute(code))",
        inputs=[("query(code)", "tensor<float>(latent{})")],
    )
    fields = [
        package.Field("id", "long", indexing=["summary", "attribute"]),
        package.Field("code", "tensor<float>(latent{})", indexing=["attribute"]),
    ]
    schema = package.Schema("documents", package.Document(fields), rank_profiles=[profile])
    return str(schema.schema_to_text)


@pytest.fixture(scope="module")
def points(vectors: FloatArray) -> FloatArray:
    """500 rows of norms from 1e-3 to 4e-3 around another point than 0; one is 0."""
    norms = np.linspace(1e-3, 4e-3, 500, dtype=np.float32)[:, None]
    rows = vectors[:500] * norms + np.float32(5e-5)
    rows[7] = 0
    return rows


@pytest.fixture(scope="module")
def far(uncentred_model: CompresSAE, points: FloatArray) -> CompressedIndex:
    """An index of Euclidean distances, whose model has a center."""
    center = points.mean(axis=0)
    return CompressedIndex.build(
        points,
        model=uncentred_model.centred_at(center),
        k=16,
        metric="l2",
        originals="float32",
        progress=False,
    )


@pytest.mark.parametrize("store", sorted(STORES))
def test_distances(
    store: StoreName, far: CompressedIndex, points: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    """By all that is exported; stores that are clients find it, too."""
    asked = queries[:8] * np.float32(2e-3) + np.float32(5e-5)
    asked[3] = 0
    if store == "qdrant":
        found = in_qdrant(far, asked)
    elif store == "vsag":
        found = in_vsag(far, asked, tmp_path / "out")
    else:
        rows = [pairs_of(store, row) for row in documents(far, store)]
        sums = [[_product(terms_of(store, body), row) for row in rows] for body in of(far, asked, store)]
        found = np.argsort(-np.array(sums), axis=1, kind="stable")[:, :LIMIT].tolist()
    stored, terms = far.documents.backend, far.asked(asked, LIMIT, Settings("sparse"))
    codes = np.concatenate(
        [
            stored.codes(np.arange(500)).to_dense(),
            stored.halves(np.arange(500))[:, None],  # type: ignore[index]
        ],
        axis=1,
    ).astype(np.float64)
    exact = strongest_of(terms, 64).to_dense() @ codes.T
    if not STORES[store].splits:
        assert_best(found, exact)
    else:  # what agrees is never less
        best = np.argsort(-exact, axis=1)[:, :LIMIT]
        assert np.mean([len({*a} & {*b}) / LIMIT for a, b in zip(found, best.tolist(), strict=True)]) > 0.6
    result = far.rescore(asked, found, 10)
    distances = np.square(asked.astype(np.float64)[:, None] - points.astype(np.float64)).sum(axis=2)
    wanted = np.argsort(distances, axis=1)[:, :10]
    share = np.mean(
        [len({*a} & {*b}) / 10 for a, b in zip(result.ids.tolist(), wanted.tolist(), strict=True)]
    )
    assert share > 0.85
    of_found = np.take_along_axis(distances, result.ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(result.scores, of_found, rtol=1e-3, atol=1e-10)
    assert result.ids[3, 0] == 7


def _product(terms: dict[int, float], row: dict[int, float]) -> float:
    return sum(weight * row.get(index, 0.0) for index, weight in terms.items())


def terms_of(store: StoreName, query: Any) -> dict[int, float]:
    """Weights by index of a query."""
    if store == "pgvector":
        inside = re.search(r"'\{(.*)\}/", query)
        assert inside is not None
        pairs = (pair.split(":") for pair in inside[1].split(","))
        return {int(i) - 1: float(value) for i, value in pairs}
    held = {"seismic": lambda: query["vector"], "vespa": lambda: query["input.query(code)"]}
    mapping = held.get(store, lambda: weights(query["query"]))()
    return {int(i): value for i, value in mapping.items()}


@pytest.mark.parametrize("store", sorted({*STORES} - {"vsag"}))
def test_rows_hold_every_code(
    store: StoreName, built: CompressedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch by batch, and to the last bit."""
    monkeypatch.setattr("compressae_index.connectors.stores.exporting._BATCH_ROWS", 1500)
    rows = list(documents(built, store))
    codes, n_latents = built.codes(built.ids), built.model.n_latents
    assert len(rows) == len(codes)
    for row, latents, values in zip(rows, codes.latents.tolist(), codes.values, strict=True):
        pairs = pairs_of(store, row)
        if STORES[store].splits:
            assert all(value > 0 for value in pairs.values())
            pairs = {i % n_latents: value if i < n_latents else -value for i, value in pairs.items()}
        assert sorted(pairs) == latents
        np.testing.assert_array_equal(np.array([pairs[i] for i in latents], np.float32), values)


def pairs_of(store: StoreName, row: Any) -> dict[int, float]:
    """Values by index of a document."""
    if store == "pgvector":
        inside = row[1].removeprefix("{").split("}")[0]
        return {int(i) - 1: float(value) for i, value in (pair.split(":") for pair in inside.split(","))}
    if store == "qdrant":
        vector = row["vector"]["code"]
        return dict(zip(vector["indices"], vector["values"], strict=True))
    held = {"seismic": lambda: row["vector"], "vespa": lambda: row["fields"]["code"]}
    mapping = held.get(store, lambda: row["_source"]["code"])()
    return {int(i): value for i, value in mapping.items()}


def test_codes_come_a_batch_at_a_time(built: CompressedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressae_index.connectors.stores.exporting._BATCH_ROWS", 300)
    read: list[int] = []
    codes = CompressedIndex.codes

    def counted(self: CompressedIndex, ids: Any) -> SparseCodes:
        read.append(len(ids))
        return codes(self, ids)

    monkeypatch.setattr(CompressedIndex, "codes", counted)
    assert len(list(islice(documents(built, "qdrant"), 301))) == 301
    assert read == [300, 300]


def test_values_of_zero_and_codes_of_zeros(vectors: FloatArray, tmp_path: Path) -> None:
    codes = SparseCodes.from_rows([{3: 0.5, 7: -0.25}, {1: 1e-40, 2: 1.0}, {}], 16, k=4)
    assert list(listed(signed(codes))) == [([3, 7], [0.5, -0.25]), ([2], [1.0]), ([], [])]
    assert list(listed(split(codes))) == [([3, 23], [0.5, 0.25]), ([2], [1.0]), ([], [])]
    # What is left of a vector that is the mean is nothing.
    index = CompressedIndex.build(
        vectors[[0, 2, 3]],
        model=sampled_model(vectors[1:], normalize_rows(vectors[:1])[0]),
        k=16,
        progress=False,
    )
    assert [len(pairs_of("qdrant", row)) for row in documents(index, "qdrant")] == [0, 16, 16]
    assert [row[0] for row in in_qdrant(index, vectors[2:4])] == [1, 2]
    pyvsag = pytest.importorskip("pyvsag")
    export(index, "vsag", tmp_path / "out")
    arrays = {path.stem: np.load(path) for path in (tmp_path / "out").glob("*.npy")}
    pyvsag.Index("sindi", creation(index, "vsag")["index.json"]).build(**arrays)
    assert arrays["values"].reshape(3, 16).any(axis=1).tolist() == [False, True, True]


def test_strings_as_ids(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    ids = names(100)
    index = CompressedIndex.build(vectors[:100], ids, model=model, k=16, progress=False)
    found = in_qdrant(index, vectors[:5])
    assert [row[0] for row in found] == ids[:5]
    assert index.rescore(vectors[:5], found, 1).ids.ravel().tolist() == ids[:5]
    keys: dict[StoreName, str] = {"opensearch": "_id", "seismic": "id", "vespa": "id"}
    for store, key in keys.items():
        assert [row[key] for row in documents(index, store)] == ids
    assert "field id type string {" in creation(index, "vespa")["documents.sd"]
    assert "id text PRIMARY KEY" in creation(index, "pgvector")["table.sql"]
    export(index, "vsag", tmp_path / "out")
    assert np.load(tmp_path / "out" / "ids.npy").tolist() == list(range(100))


def test_arguments(built: CompressedIndex, vectors: FloatArray, queries: FloatArray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 'lucene'"):
        documents(built, "lucene")  # type: ignore[arg-type]
    for name in ("Texts", "drop table", "", "x" * 49):
        with pytest.raises(InputError, match="name must be up to 48 lower-case letters"):
            creation(built, "pgvector", name=name)
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        queries_for(built, queries, "qdrant", limit=0)
    with pytest.raises(InputError, match="query_nnz"):
        export(built, "qdrant", tmp_path / "out", queries=queries, query_nnz=0)
    empty = CompressedIndex.build(vectors[:2], model=built.model, k=16, progress=False)
    empty.remove([0, 1])
    with pytest.raises(InputError, match="no vectors to export"):
        export(empty, "qdrant", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(FormatError, match="not an empty directory"):
        export(built, "qdrant", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_what_fails_leaves_nothing(
    built: CompressedIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "a part is damaged"
        raise FormatError(msg)

    monkeypatch.setattr(CompressedIndex, "codes", fail)
    with pytest.raises(FormatError, match="a part is damaged"):
        export(built, "pgvector", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command(built: CompressedIndex, queries: FloatArray, tmp_path: Path) -> None:
    built.save(tmp_path / "items.index")
    np.save(tmp_path / "queries.npy", queries[:3])
    words = ["export", str(tmp_path / "items.index"), "--to", "pgvector", "-o", str(tmp_path / "out")]
    options = ["--name", "items", "--queries", str(tmp_path / "queries.npy"), "--limit", "7", "--json"]
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["files"]) == (4000, ["queries.sql", "rows.tsv", "table.sql"])
    assert shown["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    expected = queries_for(built, queries[:3], "pgvector", limit=7, name="items")
    assert (tmp_path / "out" / "queries.sql").read_text().splitlines() == expected
    again = CliRunner().invoke(main, [*words, *options])
    assert again.exit_code == 2
    assert "not an empty directory" in again.output


def test_the_page_of_exports_runs_with_postgres(
    built: CompressedIndex,
    queries: FloatArray,
    database: str,
) -> None:
    page = (ROOT / "docs" / "exports.md").read_text()
    block = re.search(r"^```python\n(import psycopg\n.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    made = {"creation": creation, "documents": documents, "queries": queries_for}
    space: dict[str, Any] = {"index": built, "data": SimpleNamespace(queries=queries), **made}
    exec(block[1].replace('"dbname=texts"', repr(database)), space)
    best = built.search(queries, 10, mode="two_stage", candidates=100, query_nnz=64)
    assert (space["ids"] == best.ids).mean() > 0.9
