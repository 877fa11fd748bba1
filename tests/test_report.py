"""The model report: its numbers by other means, its picture, its command."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError, MissingExtraError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.cli import main
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.model_report import ModelReport, model_report
from compressae_index.search.recall import recall


@pytest.fixture(scope="module")
def report(model: CompresSAE, vectors: FloatArray) -> ModelReport:
    """Of 990 rows and 110 held out."""
    return model_report(model, vectors[:1100], ks=[4, 16])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a file that must be PNG from its signature to its end."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content[-8:-4] == b"IEND"
    assert len(content) > 10_000
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_numbers_by_numpy(report: ModelReport, model: CompresSAE, vectors: FloatArray) -> None:
    assert model.mean is not None
    rows = normalize_rows(vectors[:990]).astype(np.float64)
    codes = model.encode(vectors[:990]).to_dense().astype(np.float64)
    assert (report.rows, report.queries, report.dim) == (990, 110, 384)
    assert (report.n_latents, report.k) == (512, 16)

    lengths = (codes != 0).sum(axis=0)
    assert report.list_lengths == lengths.tolist()
    assert report.dead_latents == [latent for latent in range(512) if lengths[latent] == 0]
    assert report.over_firing_share == 4 * 16 / 512
    assert sorted(report.over_firing_latents) == np.flatnonzero(lengths / 990 > 0.125).tolist()
    assert report.list_skew == pytest.approx(lengths.max() / lengths.mean())
    differences = np.abs(lengths[:, None] - lengths[None])
    assert report.list_gini == pytest.approx(differences.mean() / (2 * lengths.mean()))
    assert report.longest_lists_share == pytest.approx(np.sort(lengths)[-6:].sum() / lengths.sum())

    reconstructions = model.mean + codes @ model.decoder_w.astype(np.float64)
    cosines = (rows * reconstructions).sum(axis=1) / np.linalg.norm(reconstructions, axis=1)
    assert list(report.cosine) == [1, 5, 25, 50, 75, 95, 99]
    for percentile, cosine in report.cosine.items():
        assert cosine == pytest.approx(np.percentile(cosines, percentile), abs=1e-5)
    assert report.mean_squared_error == pytest.approx(((rows - reconstructions) ** 2).sum(1).mean(), abs=1e-5)
    assert sum(report.cosine_counts) == 990
    assert report.cosine_edges[0] == pytest.approx(cosines.min(), abs=1e-5)
    assert report.cosine_edges[-1] == pytest.approx(cosines.max(), abs=1e-5)


def test_rows_of_the_dictionary_are_reported(vectors: FloatArray) -> None:
    """Their cosines differ by rounding alone."""
    rows = normalize_rows(vectors[:200])
    model = CompresSAE(rows.T.copy(), np.zeros(200, np.float32), rows, 8)
    report = model_report(model, rows, rows[:20], ks=())
    assert report.cosine[1] == pytest.approx(1, abs=1e-5)
    assert sum(report.cosine_counts) == 200
    assert np.all(np.diff(report.cosine_edges) > 0)


def test_recall_is_that_of_an_index(report: ModelReport, model: CompresSAE, vectors: FloatArray) -> None:
    rows, queries = vectors[:990], vectors[990:1100]
    truth = exact_neighbours(rows, queries, 100)
    assert list(report.recall) == [4, 16]
    for k, measured in report.recall.items():
        index = CompressedIndex.build(rows, model=model, k=k, progress=False)
        found = index.search(queries, 100, mode="dense").ids
        assert measured == {at: recall(found, truth, at) for at in (10, 100)}
    assert report.recall[4][100] < report.recall[16][100] < 1


def test_queries_and_nonzeros(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    given = model_report(model, vectors[:60], queries, ks=(), num_threads=1)
    assert (given.rows, given.queries) == (60, 50)
    # The model's own k is always there; there are too few rows for recall@100.
    assert {k: list(by) for k, by in given.recall.items()} == {16: [10]}
    assert list(model_report(model, vectors[:4], ks=()).recall[16]) == [3]
    assert list(model_report(model, vectors[:200]).recall) == [8, 16, 32, 64, 128]
    small = CompresSAE(model.encoder_w[:, :20].copy(), model.encoder_b[:20], model.decoder_w[:20], k=4)
    assert list(model_report(small, vectors[:200]).recall) == [4, 8, 16]


def test_rows_are_sampled_evenly(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    class Noted:
        shape = vectors.shape

        def __init__(self) -> None:
            self.rows: list[int] = []

        def __getitem__(self, rows: slice) -> FloatArray:
            self.rows += range(*rows.indices(len(vectors)))
            return vectors[rows]

    for max_rows in (1, 63, 1000, 3999, 4000, 5000):
        noted = Noted()
        assert model_report(model, noted, queries[:2], max_rows=max_rows, ks=()).rows == min(max_rows, 4000)
        assert len(noted.rows) == len(set(noted.rows)) == min(max_rows, 4000)
        assert np.diff(noted.rows).max(initial=0) <= 1 + 4000 // min(max_rows, 64)


def test_planted_latents(model: CompresSAE, vectors: FloatArray) -> None:
    rows = normalize_rows(vectors[:500])
    # No row has a part in the last dimension, and all share one in the last but one.
    rows[:, -1], rows[:, -2] = 0, 0.7
    planted = model.decoder_w.copy()
    planted[:, -2:] = 0
    planted[7], planted[9] = np.eye(384, dtype=np.float32)[[-1, -2]]
    planted /= np.linalg.norm(planted, axis=1, keepdims=True)
    result = model_report(CompresSAE(model.encoder_w, model.encoder_b, planted, k=8), rows, ks=[8])
    assert 7 in result.dead_latents
    assert result.over_firing_share == 0.1
    assert result.over_firing_latents[0] == 9
    assert result.list_lengths[9] == 450
    assert result.list_skew == 450 / (450 * 8 / 512)
    text = result.as_text().splitlines()
    dead = f"{len(result.dead_latents)} ({result.dead_latents[0]}"
    assert any(line.startswith("dead latents  ") and dead in line for line in text)
    assert any(line.startswith("in over 10.0% of rows") and "(9" in line for line in text)


def test_text(report: ModelReport) -> None:
    text = report._replace(
        dead_latents=list(range(1200)), cosine={5: 0.5, 50: 0.75}, recall={8: {10: 0.25}, 16: {10: 1.0}}
    ).as_text()
    lines = text.splitlines()
    assert " ".join(lines[2].split()) == "dead latents 1,200 (0, 1, 2, 3, 4, 5, 6, 7, …)"
    assert lines[-6:] == [
        "percentile    5 %   50 %",
        "    cosine  0.500  0.750",
        "",
        "nonzeros  recall@10",
        "       8      0.250",
        "      16      1.000",
    ]
    assert max(map(len, report.as_text().splitlines())) <= 80


def test_plot(report: ModelReport, tmp_path: Path) -> None:
    report.plot(tmp_path / "picture")
    assert png_size(tmp_path / "picture") == (1560, 480)
    assert "matplotlib.pyplot" not in sys.modules


def test_plot_of_little(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    # One row, one k: no width of a histogram, no length of a curve.
    model_report(model, vectors[:2], ks=()).plot(tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == (1560, 480)


def test_bad_input(model: CompresSAE, vectors: FloatArray) -> None:
    with pytest.raises(InputError, match="k must be at most n_latents = 512, got 513"):
        model_report(model, vectors, ks=[8, 513])
    with pytest.raises(InputError, match="max_rows must be at least 1, got 0"):
        model_report(model, vectors, max_rows=0)
    with pytest.raises(InputError, match="the sample is a single row, so queries are needed"):
        model_report(model, vectors, max_rows=1)
    with pytest.raises(DimensionError, match="embeddings have dimension 383, expected 384"):
        model_report(model, vectors[:, 1:])
    with pytest.raises(DimensionError, match="queries have dimension 383, expected 384"):
        model_report(model, vectors, vectors[:2, 1:])
    bad = vectors[:3000].copy()
    bad[2999] = np.nan
    with pytest.raises(InputError, match="row 2999 holds NaN"):
        model_report(model, bad)


@pytest.fixture
def place(tmp_path: Path, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with embeddings and a model."""
    monkeypatch.chdir(tmp_path)
    np.save("e.npy", vectors[:300])
    model.save("m")
    return tmp_path


def test_command(place: Path, model: CompresSAE, vectors: FloatArray) -> None:
    expected = model_report(model, vectors[:300])
    printed = run("report", "m", "e.npy", "--plot", "p.png")
    assert (printed.exit_code, printed.stdout) == (0, expected.as_text() + "\n")
    assert png_size(place / "p.png") == (1560, 480)
    content: dict[str, Any] = json.loads(run("report", "m", "e.npy", "--json").stdout)
    assert content == {"model": "m", **json.loads(json.dumps(expected._asdict()))}
    fewer = json.loads(run("report", "m", "e.npy", "--json", "--max-rows", 100).stdout)
    assert (fewer["rows"], fewer["queries"]) == (90, 10)
    assert sorted(path.name for path in place.iterdir()) == ["e.npy", "m", "p.png"]


def test_mistakes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        result = run("report", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert fail("m", "e.npy", "--plot", "p.pdf") == "Error: p.pdf: pictures are written as .png\n"
    assert fail("m", "e.npy", "--plot", "no/p.png") == "Error: no is not a directory\n"
    assert fail("nowhere", "e.npy") == "Error: nowhere does not exist\n"
    assert "max_rows must be at least 1" in fail("m", "e.npy", "--max-rows", 0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'compressae-index[plot]'" in fail("m", "e.npy", "--plot", "p.png")
    with pytest.raises(MissingExtraError, match="plotting needs matplotlib"):
        model_report(CompresSAE.load("m"), "e.npy", ks=()).plot("p.png")
    assert run("report", "m", "e.npy").exit_code == 0
    assert sorted(path.name for path in place.iterdir()) == ["e.npy", "m"]
