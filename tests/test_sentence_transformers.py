"""A SparseEncoder whose last module is ours: codes of its dense embeddings, saved and loaded by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from folders import block_of
from sentence_transformers import SentenceTransformer, SparseEncoder
from word_embedder import word_embedder

from compressae_index import CompresSAE, FormatError, InputError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.connectors.sentence_transformers import SparseCoder
from compressae_index.demo import DemoData
from compressae_index.search.stages import strongest_terms

DIM = 48


@pytest.fixture(scope="module")
def texts(demo_data: DemoData) -> list[str]:
    return list(demo_data.texts[:400])


@pytest.fixture(scope="module")
def dense(texts: list[str]) -> SentenceTransformer:
    return word_embedder(texts, DIM)


@pytest.fixture(scope="module")
def embeddings(dense: SentenceTransformer, texts: list[str]) -> FloatArray:
    rows: FloatArray = dense.encode(texts)
    return rows


@pytest.fixture(scope="module")
def coded(embeddings: FloatArray) -> CompresSAE:
    return train(embeddings, TrainConfig(k=8, n_latents=128, refine_rounds=10, steps=5)).model


def with_codes(dense: SentenceTransformer, module: SparseCoder) -> SparseEncoder:
    return SparseEncoder(modules=[*dense, module], device="cpu")


def test_documents_are_folded_codes(
    dense: SentenceTransformer, coded: CompresSAE, texts: list[str], embeddings: FloatArray
) -> None:
    sparse = with_codes(dense, SparseCoder(coded))
    for encode in (sparse.encode, sparse.encode_document):
        codes = encode(texts, batch_size=64)
        assert codes.is_sparse
        assert codes.shape == (400, 128)
        expected = coded.fold(coded.encode(embeddings))
        np.testing.assert_allclose(codes.to_dense().numpy(), expected.to_dense(), atol=1e-6)
    fewer = sparse.encode(texts, max_active_dims=3).to_dense().numpy()
    np.testing.assert_allclose(fewer, coded.fold(coded.encode(embeddings, 3)).to_dense(), atol=1e-6)
    assert sparse.get_embedding_dimension() == 128


def test_queries_are_projections(
    dense: SentenceTransformer, coded: CompresSAE, texts: list[str], embeddings: FloatArray
) -> None:
    sparse = with_codes(dense, SparseCoder(coded, query_nnz=20))
    expected = coded.project(embeddings[:50])
    for nonzeros, options in ((20, {}), (7, {"max_active_dims": 7})):
        codes = sparse.encode_query(texts[:50], **options).to_dense().numpy()
        np.testing.assert_allclose(codes, strongest_terms(expected, nonzeros).to_dense(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("encoder", ["pursuit", "topk"])
def test_dot_products_are_cosines_of_reconstructions(
    dense: SentenceTransformer, coded: CompresSAE, texts: list[str], embeddings: FloatArray, encoder: Any
) -> None:
    sparse = with_codes(dense, SparseCoder(coded, k=4, encoder=encoder, query_nnz=128))
    found = sparse.similarity(sparse.encode_query(texts[:10]), sparse.encode_document(texts)).numpy()
    reconstructions = coded.decode(coded.fold(coded.encode(embeddings, 4, encoder=encoder)))
    np.testing.assert_allclose(np.linalg.norm(reconstructions, axis=1), 1, atol=1e-5)
    cosines = embeddings[:10] @ reconstructions.T
    np.testing.assert_allclose(found + coded.mean_scores(embeddings[:10]), cosines, atol=1e-4)


def test_a_text_without_words_has_no_nonzeros(dense: SentenceTransformer, coded: CompresSAE) -> None:
    sparse = with_codes(dense, SparseCoder(coded))
    for encode in (sparse.encode_query, sparse.encode_document):
        codes = encode(["", "hand"]).to_dense()
        assert codes.any(dim=1).tolist() == [False, True]
    with pytest.raises(InputError, match="sentence embeddings row 1 holds NaN"):
        SparseCoder(coded)({"sentence_embedding": torch.tensor([[1.0] * DIM, [torch.nan] * DIM])})
    with pytest.raises(InputError, match=f"sentence embeddings have dimension 3, expected {DIM}"):
        SparseCoder(coded)({"sentence_embedding": torch.ones(2, 3)})
    from_zero = CompresSAE.of_dictionary(coded.decoder_w, coded.k)
    with pytest.raises(InputError, match="less a center"):
        SparseCoder(from_zero.centred_at(np.ones(DIM, np.float32)))


def test_it_is_saved_and_loaded(
    dense: SentenceTransformer, coded: CompresSAE, texts: list[str], tmp_path: Path
) -> None:
    sparse = with_codes(dense, SparseCoder(coded, k=5, query_nnz=9))
    sparse.save(str(tmp_path / "model"))
    again = SparseEncoder(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    assert isinstance(again[-1], SparseCoder)
    assert again[-1].model.fingerprint == coded.fingerprint
    for name in ("encode_query", "encode_document"):
        one, other = (getattr(each, name)(texts).to_dense() for each in (sparse, again))
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SparseEncoder(str(tmp_path / "model"), device="cpu")


def test_what_is_loaded_is_checked(coded: CompresSAE, tmp_path: Path) -> None:
    SparseCoder(coded).save(str(tmp_path))
    assert SparseCoder.load(str(tmp_path)).k == coded.k
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = (tmp_path / "model.safetensors").read_bytes()
    for wrong, message in (
        (config | {"model": config["model"] | {"fingerprint": "0"}}, "fingerprint of the model is"),
        (config | {"k": 10**6}, "k must be at most n_latents = 128"),
        (config | {"encoder": "omp"}, "encoder must be one of"),
        ({"k": 8}, "model in its manifest must be of type dict"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match=message):
            SparseCoder.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    with pytest.raises(FormatError, match="is damaged"):
        SparseCoder.load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"lacks config.json or model.safetensors"):
        SparseCoder.load(str(tmp_path))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_the_code_of_the_page_runs(
    dense: SentenceTransformer, coded: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense.save("all-MiniLM-L6-v2")
    coded.save("texts.model")
    names: dict[str, Any] = {}
    exec(block_of("docs/ecosystem.md", "sentence_transformers"), names)
    assert names["scores"].shape == (1, 2)
    assert torch.equal(names["sparse"].encode_query(["puppy"]).to_dense(), names["queries"].to_dense())
