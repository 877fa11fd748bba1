from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from data_sets import DataSet
from dense_contestants import Form, LeftOut, cosine, forms
from memory import serving_bytes
from paper import nearest_codes
from quality import COSTS, bench_of, joined, lines_of
from report import parts
from scale import projected
from stores import FaissStore
from summaries import best_that_fit, equal_bytes, growth, improving, replaced

from compressae_index import CompresSAE, SparseCodes
from compressae_index.checks import normalize_rows
from compressae_index.search.queries import MODES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def line(family: str, size: float, share: float) -> dict[str, Any]:
    return {
        "family": family,
        "name": f"{size:g} bytes",
        "bytes": size,
        "resident_bytes": None,
        "recall": {"10": share, "100": share},
        "train_seconds": 0.0,
        "fill_seconds": 0.0,
        "ms_single": 1.0,
        "ms_batch": 1.0,
    }


def test_equal_bytes_takes_the_best_that_fits() -> None:
    lines = [line("a", 50, 0.7), line("a", 60, 0.65), line("b", 64, 0.9), line("c", 200, 0.99)]
    best = best_that_fit(lines, (56, 64), 100)
    assert {family: {b: one["bytes"] for b, one in kept.items()} for family, kept in best.items()} == {
        "a": {56: 50, 64: 50},
        "b": {64: 64},
    }
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in equal_bytes(lines, (56, 64), 100).split("\n")
    ]
    assert rows[0] == ["recall@100", "56 bytes", "64 bytes"]
    assert rows[2:] == [["a", "**0.700**", "0.700"], ["b", "", "**0.900**"]]


def test_quality_by_distances() -> None:
    """Of points around one that is far from 0, by which inner products say nothing; one is 0."""
    rng = np.random.default_rng(0)
    around = rng.standard_normal((1300, 6)) @ rng.standard_normal((6, 16)) * rng.lognormal(0, 0.4, (1300, 1))
    rows = (around + 20).astype(np.float32)
    rows[5] = 0
    bench = bench_of(
        DataSet("points", rows[:1200], rows[1200:], metric="l2"), (24,), quick=True, threads=1, seed=0
    )
    found: dict[str, float] = {}
    for name in ("ours", "exact", "truncation", "PQ", "SQ"):
        for made in lines_of(name, bench, lambda _: None, memory=False, recall_only=True):
            more = name == "exact" or made["family"] in ("ours, sparse", "ours, two_stage")
            assert more or made["bytes"] <= 24
            found[made["family"]] = max(found.get(made["family"], 0.0), made["recall"][100])
    assert found["exact"] > 0.999
    assert found["ours, dense"] > 0.8
    assert found["Faiss SQ"] > 0.8
    with pytest.raises(LeftOut, match="inner products only"):
        next(lines_of("turbovec", bench, lambda _: None, memory=False, recall_only=True))


def test_lines_keep_costs_that_were_not_measured_again() -> None:
    earlier = [line("a", 50, 0.7), line("a", 60, 0.8)]
    again = line("a", 60, 0.9) | dict.fromkeys(COSTS)
    new = line("b", 60, 0.9) | dict.fromkeys(COSTS)
    assert joined([again, new], earlier, keep=True) == [earlier[0], line("a", 60, 0.9), new]
    assert joined([again, new], earlier, keep=False) == [line("a", 60, 0.9), new]


def test_forms_fill_a_budget_and_none_is_less_in_all() -> None:
    found = forms(4096, 384, (0, 1, 3), 256)
    for form in found:
        codec = form.codec(384)
        assert codec.row_bytes(4096, form.k) <= 256
        assert form.k == 64 or codec.row_bytes(4096, form.k + 1) > 256
        assert form.k <= 64 or not form.residual_bits
    # 64 nonzeros fit beside 1 bit a dimension, of any bits: only the most bits are of use.
    assert [form for form in found if form.residual_bits == 1] == [Form(64, 8, 1)]
    assert {form.residual_bits for form in forms(4096, 384, (0, 1, 3), 32)} == {0}


def test_residuals_count_in_the_cosine_of_reconstructions() -> None:
    rng = np.random.default_rng(0)
    atoms = normalize_rows(rng.standard_normal((256, 32), dtype=np.float32))
    model = CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(256, np.float32), atoms, k=4)
    rows = normalize_rows(rng.standard_normal((200, 32), dtype=np.float32))
    shares = [cosine(model, rows, Form(4, 8, bits), "pursuit", 1) for bits in (0, 1, 3, 6)]
    assert shares == sorted(shares)
    assert shares[0] < 0.95 < 0.999 < shares[-1] <= 1


def test_what_is_beaten_at_fewer_bytes_is_not_drawn() -> None:
    lines = [
        line("a", 60, 0.65),
        line("a", 50, 0.7),
        line("a", 50, 0.6),
        line("a", 70, 0.8),
        line("b", 80, 0.1),
    ]
    kept = [(one["family"], one["bytes"], one["recall"]["100"]) for one in improving(lines, 100)]
    assert kept == [("a", 50, 0.7), ("a", 70, 0.8), ("b", 80, 0.1)]


def test_growth_is_the_exponent() -> None:
    sizes = [1e5, 1e6, 1e7]
    assert growth(sizes, [3 * n**0.75 for n in sizes]) == pytest.approx(0.75)


def test_more_documents_are_on_the_line_of_the_largest_two() -> None:
    def size(n: int) -> dict[str, float]:
        taken = {f"{mode}_ms": 0.5 + 1e-6 * n for mode in MODES}
        parts = {"forward_bytes": 62.0, "inverted_bytes": 98.0, "build_seconds": 2e-6 * n}
        return {"documents": n, "save_seconds": 1e-6 * n, "load_seconds": 1e-7 * n, **parts, **taken}

    plan = projected({"sizes": [size(10**5), size(10**6)], "encoded_per_second": 10_000.0}, 10**8)
    assert plan["gigabytes"] == pytest.approx(16.0)
    assert plan["dense_ms"] == pytest.approx(100.5)
    assert plan["build_hours"] == pytest.approx(200 / 3600)
    assert plan["encode_hours"] == pytest.approx(10_000 / 3600)


def test_marked_text_is_replaced_and_nothing_else() -> None:
    text = "before\n<!-- x -->\nold\n<!-- /x -->\nafter\n"
    once = replaced(text, "x", "new \\1\n")
    assert once == "before\n<!-- x -->\nnew \\1\n<!-- /x -->\nafter\n"
    assert replaced(once, "x", "new \\1") == once
    with pytest.raises(ValueError, match="no marks <!-- y -->"):
        replaced(text, "y", "new")


def test_nearest_codes_are_those_of_the_largest_cosine() -> None:
    rng = np.random.default_rng(0)
    latents = np.sort(rng.permuted(np.tile(np.arange(64), (400, 1)), axis=1)[:, :8], axis=1).astype(np.uint16)
    codes = SparseCodes(latents, rng.standard_normal((400, 8)).astype(np.float32), 64)
    dense = codes.to_dense() / np.linalg.norm(codes.values, axis=1, keepdims=True)
    expected = np.argsort(-(dense[:5] @ dense.T), axis=1, kind="stable")[:, :100]
    found = nearest_codes(codes, codes[:5])
    for row, true in zip(found, expected, strict=True):
        # Beyond the codes that share latents, all cosines are zero and any of them will do.
        np.testing.assert_array_equal(row[:20], true[:20])


def test_memory_of_serving_is_that_of_the_codes() -> None:
    index = faiss.IndexFlatIP(256)
    rows = np.random.default_rng(0).standard_normal((40_000, 256), dtype=np.float32)
    index.add(rows)
    taken = serving_bytes(FaissStore(index), rows[:10])
    assert 0.95 * rows.nbytes < taken < 1.25 * rows.nbytes


def test_readme_and_docs_show_the_raw_results() -> None:
    results = BENCHMARKS / "results"
    for page, name, part in parts(results):
        text = (BENCHMARKS.parent / page).read_text()
        assert replaced(text, name, part) == text
    for path in results.glob("*/*.json"):
        assert {"date", "versions", "processor", "threads", "load_average"} <= set(
            json.loads(path.read_text())["environment"]
        )


# Runs each script as `python -P` does, up to its command, in one process: torch and Faiss are slow to import.
AS_WITH_P = """
import runpy, sys
path, before = list(sys.path), set(sys.modules)
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="script")
    print(script)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if "benchmarks" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
"""


def test_scripts_run_with_p_and_from_anywhere(tmp_path: Path) -> None:
    scripts = [path for path in sorted(BENCHMARKS.glob("*.py")) if "__main__" in path.read_text()]
    assert {path.stem for path in scripts} >= {"run", "forward", "pursuit", "faiss_connectors", "milvus"}
    command = [sys.executable, "-P", "-c", AS_WITH_P, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(map(str, scripts))
