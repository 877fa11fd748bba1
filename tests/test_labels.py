"""Names of latents, who holds them, and queries moved along them, against what is true by construction."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compressae_index import CompresSAE, CompressedIndex, DimensionError, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.texts import TextStore
from compressae_index.demo import DemoData
from compressae_index.persistence import _manifest_checksum, describe

pd: Any = importlib.import_module("pandas")
pl: Any = importlib.import_module("polars")

# Subjects of the corpus below, by the side that its documents hold most.
SUBJECTS = {
    "0+": "the kidney failure of a patient",
    "1+": "the violin concert of an orchestra",
    "1-": "the submarine reef of a coast",
    "2+": "the glacier melt of a valley",
}
N = 120


@pytest.fixture(scope="module")
def corpus() -> tuple[CompressedIndex, list[str]]:
    """Documents near the atoms of SUBJECTS, and others; 2- stands only for small corrections."""
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(16, 16)))[0][:8].astype(np.float32)
    rows, texts = [], []
    for number in range(N):
        side = [*SUBJECTS, ""][number % 5]
        latent, sign = (int(side[0]), -1 if side[1] == "-" else 1) if side else (3 + number % 4, 1)
        minor = (0.3 if latent != 2 else -0.01) * (-1 if side == "0+" else 1)
        rows.append(sign * atoms[latent] + minor * atoms[2 if latent != 2 else 7])
        texts.append(f"{SUBJECTS.get(side, 'the matter of a thing')} w{number}")
    index = CompressedIndex.build(
        np.array(rows), model=CompresSAE.of_dictionary(atoms, 2), k=2, progress=False
    )
    return index, texts


@pytest.fixture(scope="module")
def labelled(built: CompressedIndex, demo_data: DemoData) -> CompressedIndex:
    index = CompressedIndex.merge([built])
    index.label_latents(demo_data.texts[:4000])
    return index


def test_the_terms_of_a_subject_are_found(corpus: tuple[CompressedIndex, list[str]]) -> None:
    index, texts = corpus
    labels = index.label_latents(texts)
    assert labels is not index.labels
    assert labels == index.labels
    for side, subject in SUBJECTS.items():
        words = {word for word in subject.split() if len(word) > 3}
        assert set(re.findall(r"\w+", labels[side])) <= words, labels
        assert labels[side]
    # Of 2-, all values are small beside those of 2+.
    assert (index.codes(index.ids).to_dense()[:, 2] < -0.2).any()
    assert not {"0-", "2-", "7+"} & set(labels)


def test_tags_and_missing_texts(corpus: tuple[CompressedIndex, list[str]]) -> None:
    index, texts = corpus
    tags: list[Any] = [["all", "New  Age, tag" if number % 5 == 0 else f"t{number}"] for number in range(N)]
    expected = {"0+": "New Age, tag"}
    for given in (tags, pa.array(tags), pd.Series(tags, index=range(N, 0, -1)), pl.Series(tags)):
        assert index.label_latents(given) == expected
    assert index.label_latents([set(each) for each in tags]) == expected
    assert index.label_latents([None] * N) == {}
    few = [text if number % 5 == 0 else None for number, text in enumerate(texts)]
    assert set(index.label_latents(few)) <= {"0+"}
    for same in (np.array(texts), np.array(texts, object), pa.chunked_array([texts]), pd.Series(texts)):
        assert index.label_latents(same) == index.label_latents(texts)


def oracle(index: CompressedIndex, texts: list[str]) -> dict[str, str]:
    """The names by their definition, slowly."""
    dense = index.codes(index.ids).to_dense()
    strongest: dict[tuple[int, str], dict[int, float]] = {}
    for latent in range(dense.shape[1]):
        largest = np.abs(dense[:, latent]).max()
        for sign in "+-":
            values = dense[:, latent] * (1 if sign == "+" else -1)
            order = [int(row) for row in np.argsort(-values, kind="stable") if values[row] > 0][:20]
            if order and values[order[0]] >= 0.5 * largest:
                strongest[latent, sign] = {row: float(values[row] / largest) for row in order}
    held: dict[int, set[str]] = {}
    for row in {row for rows in strongest.values() for row in rows}:
        words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", texts[row].lower())
        pairs = {f"{a} {b}" for a, b in pairwise(words) if min(len(a), len(b)) > 1}
        held[row] = {word for word in words if len(word) > 1} | pairs
    n = len(held)
    texts_of: dict[str, int] = defaultdict(int)
    for terms in held.values():
        for term in terms:
            texts_of[term] += 1

    def eligible(term: str) -> bool:
        rare = " " not in term or all(texts_of[word] <= 0.02 * n for word in term.split())
        return texts_of[term] > 1 and rare

    bound = math.log(1 + sum(map(eligible, texts_of)) / 10)
    names = {}
    for (latent, sign), rows in strongest.items():
        counts: dict[str, float] = defaultdict(float)
        for row, weight in rows.items():
            for term in held[row]:
                counts[term] += weight
        scored = []
        for term, count in counts.items():
            expected = sum(rows.values()) * texts_of[term] / n
            score = count * math.log(count / expected) - count + expected
            twice = sum(term in held[row] for row in rows) > 1
            if eligible(term) and twice and count > expected and score > bound:
                scored.append((-round(score, 6), -len(term), term))
        chosen: list[str] = []
        for _, _, term in sorted(scored)[:20]:
            taken = [word for other in chosen for word in other.split()]
            if len(chosen) < 3 and not any(alike(a, b) for a in term.split() for b in taken):
                chosen.append(term)
        if chosen:
            names[f"{latent}{sign}"] = ", ".join(chosen)
    return names


def alike(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    return a == b or (len(short) > 2 and len(long) - len(short) <= 2 and long.startswith(short))


def test_names_of_real_texts_are_those_of_the_definition(
    labelled: CompressedIndex, demo_data: DemoData
) -> None:
    expected = oracle(labelled, demo_data.texts[:4000])
    assert labelled.labels is not None
    assert len(expected) > 200
    assert labelled.labels == expected


class Reading(Mapping[Any, str]):
    """Texts by id, which notes what is read."""

    def __init__(self, texts: dict[Any, str]) -> None:
        self.texts, self.read = texts, set[Any]()

    def __getitem__(self, key: Any) -> str:
        self.read.add(key)
        return self.texts[key]

    def __contains__(self, key: object) -> bool:
        return key in self.texts

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.texts)


def test_texts_by_id_are_read_for_the_strongest_alone(
    corpus: tuple[CompressedIndex, list[str]], model: CompresSAE, vectors: FloatArray, demo_data: DemoData
) -> None:
    index, texts = corpus
    assert index.label_latents(dict(enumerate(texts))) == index.label_latents(texts)
    # 24 documents are of a subject, and 20 of them make its name.
    by_id = Reading(dict(enumerate(texts)))
    index.label_latents(by_id)
    assert max(sum(key % 5 == side for key in by_id.read) for side in range(4)) == 20
    names = [f"d{number}" for number in range(300)]
    named = CompressedIndex.build(vectors[:300], names, model=model, progress=False)
    in_order = named.label_latents(demo_data.texts[:300])
    assert named.label_latents(dict(zip(names, demo_data.texts[:300], strict=True))) == in_order
    named.remove(names[:10])
    assert named.label_latents(demo_data.texts[10:300]) == named.label_latents(
        dict(zip(names, demo_data.texts[:300], strict=True))
    )


def test_a_callback_names_some_latents(corpus: tuple[CompressedIndex, list[str]]) -> None:
    index, texts = corpus
    before = index.label_latents(texts)
    seen: list[list[str]] = []

    def name(strongest: list[str]) -> str:
        seen.append(strongest)
        return f" of {len(strongest)}\ntexts " if "violin" in strongest[0] else ""

    assert index.label_latents(texts, latents=[1], name=name) == {"1+": "of 20 texts"}
    assert len(seen) == 2
    assert index.labels == {k: v for k, v in before.items() if k[0] != "1"} | {"1+": "of 20 texts"}
    dense = index.codes(index.ids).to_dense()[:, 1]
    assert seen[0] == [texts[row] for row in np.argsort(-dense, kind="stable")[:20]]
    assert index.label_latents(texts, latents=[1]) == {k: v for k, v in before.items() if k[0] == "1"}
    assert index.labels == before


def test_mistakes_in_labels(corpus: tuple[CompressedIndex, list[str]]) -> None:
    index, texts = corpus
    before = index.label_latents(texts)
    bad: Any
    for bad, error, message in (
        (texts[:-1], DimensionError, "119 texts for 120 documents"),
        ("text", InputError, "got a string"),
        ({0: "a"}, InputError, "texts hold none for id"),
        ([5] * N, InputError, "must be a string or a list of strings, got 5"),
        ([["a", 5]] * N, InputError, "must be a string or a list of strings"),
    ):
        with pytest.raises(error, match=message):
            index.label_latents(bad)
    with pytest.raises(InputError, match="latent must be at most n_latents - 1 = 7, got 8"):
        index.label_latents(texts, latents=[8])
    with pytest.raises(InputError, match=r"name must return a string for 0\+, got None"):
        index.label_latents(texts, name=lambda _: None)  # type: ignore[arg-type, return-value]
    for bad, message in (
        (["a"], "names by side"),
        ({"8+": "a"}, r"latents below 8 with their sign, such as '12\+', got '8\+'"),
        ({"1": "a"}, "got '1'"),
        ({1: "a"}, "got 1"),
        ({"1+": None}, r"the label of 1\+ must be a string"),
    ):
        with pytest.raises(InputError, match=message):
            index.labels = bad
    assert index.labels == before


def test_labels_are_kept_with_an_index(
    labelled: CompressedIndex, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    index = CompressedIndex.merge([labelled])
    assert index.labels is not None
    index.labels = index.labels | {"0-": 'é "x"\n'}
    index.save(tmp_path / "i")
    assert CompressedIndex.load(tmp_path / "i").labels == index.labels
    mapped = CompressedIndex.load(tmp_path / "i", mmap=True)
    assert pickle.loads(pickle.dumps(mapped)).labels == index.labels
    mapped.labels = {"1+": "a"}
    assert pickle.loads(pickle.dumps(mapped)).labels == {"1+": "a"}
    mapped.save(tmp_path / "i")
    assert CompressedIndex.load(tmp_path / "i").labels == {"1+": "a"}
    mapped.labels = None
    mapped.save(tmp_path / "i")
    assert CompressedIndex.load(tmp_path / "i").labels is None
    assert pickle.loads(pickle.dumps(index)).labels == index.labels
    shard = index.empty_like()
    shard.add(vectors[:5], np.arange(9000, 9005))
    assert CompressedIndex.merge([CompressedIndex(index.model), shard][1:]).labels == index.labels
    for copy in (None, tmp_path / "f"):
        faiss = FaissIndex.from_index(index, copy, progress=False)
        assert faiss.labels == index.labels
    assert FaissIndex.load(tmp_path / "f").labels == index.labels
    held = FaissIndex.load(tmp_path / "f", mmap=True)
    assert held.explain(queries[0], 7).names == index.explain(queries[0], 7).names
    held.labels = {"1+": "a"}
    assert pickle.loads(pickle.dumps(held)).labels == {"1+": "a"}


def test_labels_are_kept_in_a_store_of_texts(
    model: CompresSAE, vectors: FloatArray, demo_data: DemoData, tmp_path: Path
) -> None:
    ids = [str(number) for number in range(300)]
    index = CompressedIndex.build(vectors[:300], ids, model=model, progress=False)
    assert index.label_latents(demo_data.texts[:300])
    TextStore.of(index, demo_data.texts[:300]).save(tmp_path / "s")
    loaded = TextStore.load(tmp_path / "s").index
    assert loaded is not None
    assert loaded.labels == index.labels


@pytest.mark.parametrize("content", ["[]", '{"512+": "a"}', '{"1+": 5}', "{", "\udcff"])
def test_damaged_labels(labelled: CompressedIndex, tmp_path: Path, content: str) -> None:
    labelled.save(tmp_path / "i")
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    file = tmp_path / "i" / manifest["data"] / "labels.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"labels\.json"):
        CompressedIndex.load(tmp_path / "i")
    manifest["files"][file.name] = describe(file)
    manifest["checksum"] = _manifest_checksum(manifest)
    (tmp_path / "i" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="is damaged"):
        CompressedIndex.load(tmp_path / "i")


def test_explanations_have_names(labelled: CompressedIndex, queries: FloatArray) -> None:
    assert labelled.labels is not None
    why = labelled.explain(queries[0], 17)
    signs = ["-" if value < 0 else "+" for value in why.values.tolist()]
    keys = [f"{latent}{sign}" for latent, sign in zip(why.latents.tolist(), signs, strict=True)]
    assert list(why.names) == [labelled.labels.get(key, "") for key in keys]
    assert any(why.names)
    assert CompressedIndex.merge([CompressedIndex(labelled.model, k=4)]).labels is None


def test_masks_of_holders_filter(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    ids = np.arange(600)[::-1] * 3
    index = CompressedIndex.build(vectors[:600], ids, model=model, k=8, progress=False)
    index.remove(ids[:100])
    dense = index.codes(index.ids).to_dense()
    latent, other = np.argsort(-np.abs(np.sign(dense)).sum(axis=0))[:2].tolist()
    found = index.search(
        queries, 600, mode="dense", filter=index.holding(latent, at_least=0.1) & ~index.holding(other)
    )
    allowed = (np.abs(dense[:, latent]) >= np.float32(0.1)) & (dense[:, other] == 0)
    assert 0 < allowed.sum() < 500
    for row in found.ids:
        assert sorted(row[row >= 0].tolist()) == sorted(index.ids[allowed].tolist())


def test_names_where_norms_differ(
    uncentred_model: CompresSAE, vectors: FloatArray, demo_data: DemoData
) -> None:
    """Norms change values, but neither names nor their strongest documents."""
    lengths = np.random.default_rng(0).uniform(0.2, 5, (600, 1)).astype(np.float32)
    options: Any = {"model": uncentred_model, "progress": False}
    cosine = CompressedIndex.build(vectors[:600], **options)
    product = CompressedIndex.build(vectors[:600] * lengths, metric="inner_product", **options)
    one, other = (index.label_latents(demo_data.texts[:600]) for index in (cosine, product))
    assert len(one) > 50
    # Scales in half precision may order documents of nearly equal strength otherwise.
    assert sum(one.get(key) != other.get(key) for key in {*one, *other}) <= len(one) // 10
    latent = int(cosine.codes([0]).latents[0, 0])
    at_least = np.abs(product.codes(product.ids).to_dense()[:, latent]) >= 1
    assert product.holding(latent, at_least=1).tolist() == at_least.tolist()


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_steered_queries(
    uncentred_model: CompresSAE, model: CompresSAE, vectors: FloatArray, queries: FloatArray, metric: Any
) -> None:
    used = model if metric == "cosine" else uncentred_model
    index = CompressedIndex.build(vectors[:500], model=used, k=8, metric=metric, progress=False)
    weights = {7: 0.5, 300: -0.25}
    asked = queries[:5] * np.array([[1], [2], [0.1], [5], [1]], np.float32)
    moved = index.steer(asked, weights)
    atoms = used.decoder_w.astype(np.float64)
    norms = np.linalg.norm(asked, axis=1, keepdims=True)
    exact = asked + norms * (0.5 * atoms[7] - 0.25 * atoms[300])
    np.testing.assert_allclose(moved, exact, atol=1e-6 * norms.max())
    assert moved.dtype == np.float32
    # The projection of a moved query is that of the query plus products of atoms, up to the norm.
    projected = normalize_rows(asked) @ atoms.T + 0.5 * atoms @ atoms[7] - 0.25 * atoms @ atoms[300]
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(used.project(moved) * lengths / norms, projected, atol=1e-5)
    # Scores are exact for the moved query in every mode.
    scores = exact @ index.reconstruct(index.ids).astype(np.float64).T
    if metric == "cosine":
        scores /= lengths
    for mode in ("dense", "two_stage"):
        found = index.search(moved, 500, mode=mode, candidates=500, query_nnz=512)
        for row, expected in enumerate(scores):
            np.testing.assert_allclose(found.scores[row], expected[found.ids[row]], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(index.steer(asked, {}), asked)
    assert index.steer(asked[0], {7: 1}).shape == (1, 384)
    assert index.steer(asked[:0], {7: 1}).shape == (0, 384)


def test_mistakes_about_latents(built: CompressedIndex, queries: FloatArray) -> None:
    for bad, message in (
        ({512: 1.0}, "latent must be at most n_latents - 1 = 511, got 512"),
        ({-1: 1.0}, "latent must be at least 0, got -1"),
        ({1: "a"}, "a weight must be a number"),
        ({1: math.nan}, "weights must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            built.steer(queries, bad)  # type: ignore[arg-type]
    with pytest.raises(DimensionError, match="dimension 3, expected 384"):
        built.steer(np.ones((1, 3), np.float32), {1: 1.0})
    options: Any
    for options, message in (
        ({"latent": 512}, "latent must be at most"),
        ({"latent": 1, "sign": 1}, "sign must be one of"),
        ({"latent": 1, "at_least": -1}, "at_least must be a finite number of at least 0, got -1"),
        ({"latent": 1, "at_least": math.inf}, "at_least must be a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            built.holding(**options)
