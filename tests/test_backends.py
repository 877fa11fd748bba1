"""The contract of `compressae_index.testing`, for every index of this package and for a toy back end."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex, Index, UnknownIdError
from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.search.backend import SparseBackend
from compressae_index.search.stages import Candidates
from compressae_index.testing import IndexContract, Open


class Trained(IndexContract):
    """The contract on models that were trained."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference_model(cls, model: CompresSAE) -> CompresSAE:
        return model

    @pytest.fixture(scope="class")
    @classmethod
    def reference_uncentred_model(cls, uncentred_model: CompresSAE) -> CompresSAE:
        return uncentred_model

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, built: CompressedIndex) -> CompressedIndex:
        return built


class WithResiduals(Trained):
    """The contract with residual codes."""

    residual_bits = 4

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, reference_model: CompresSAE, embeddings: FloatArray) -> CompressedIndex:
        return cls.built_of(embeddings, model=reference_model)


class TestEmbedded(Trained):
    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Open:
        return lambda index: index


class TestEmbeddedWithResiduals(WithResiduals, TestEmbedded):
    pass


class TestFaiss(Trained):
    tolerance = 2e-4  # lists hold half precision, and their sums are not taken from the codes

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Open:
        from compressae_index.connectors.faiss import FaissIndex

        return lambda index: FaissIndex.from_index(index, progress=False)


class TestFaissWithResiduals(WithResiduals, TestFaiss):
    pass


class TestDenseStore(Trained):
    tolerance = 2e-4

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Open:
        from compressae_index.connectors.faiss import DenseStore, FaissIndex

        return lambda index: DenseStore(
            FaissIndex.from_index(index, progress=False), storage="float32", device="cpu", progress=False
        )


@pytest.mark.usefixtures("no_naps")
class TestMilvusLite(Trained):
    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
        yield from collections_of(str(tmp_path_factory.mktemp("milvus") / "contract.db"))


@pytest.mark.server
class TestMilvusServer(Trained):
    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Iterator[Open]:
        if not (uri := os.environ.get("MILVUS_URI", "")):
            pytest.skip("MILVUS_URI is not set")
        yield from collections_of(uri)


def collections_of(uri: str) -> Iterator[Open]:
    """Makes collections of indexes, and drops them in the end where others use the server."""
    from compressae_index.connectors.milvus import MilvusIndex, connect
    from compressae_index.connectors.milvus.client import is_lite

    client = connect(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    made: list[MilvusIndex] = []

    def copied(index: CompressedIndex) -> MilvusIndex:
        backed = MilvusIndex.create(
            client,
            f"contract_{secrets.token_hex(4)}",
            index.model,
            k=index.k,
            metric=index.metric,
            longest=3.0 if index.documents.n_latents > index.model.n_latents else None,
            string_ids=index.ids.dtype == object,
        )
        made.append(backed)
        backed.documents.put(index.codes(index.ids), index.ids)
        backed.flush()
        return backed

    yield copied
    for index in made if not is_lite(client) else ():
        index.drop()
    client.close()


class Toy(SparseBackend):
    """Codes in a dictionary, found by brute force: what a back end of somebody else comes to."""

    is_exact = True

    def __init__(self, n_latents: int, k: int, *, are_strings: bool) -> None:
        super().__init__(n_latents, k, are_strings=are_strings)
        self._rows: dict[int | str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> IdArray:
        return self._array(sorted(self._rows))

    def held(self, ids: IdArray) -> BoolArray:
        return np.array([id_ in self._rows for id_ in ids.tolist()], dtype=bool)

    def put(self, codes: SparseCodes, ids: IdArray) -> None:
        self._rows.update(zip(ids.tolist(), codes.to_dense(), strict=True))

    def remove(self, ids: IdArray) -> None:
        for id_ in ids.tolist():
            del self._rows[id_]

    def codes(self, ids: IdArray) -> SparseCodes:
        if not (held := self.held(ids)).all():
            msg = f"unknown id {ids[~held].tolist()[0]!r} ({int((~held).sum())} of {len(ids)})"
            raise UnknownIdError(msg)
        dense = np.array([self._rows[id_] for id_ in ids.tolist()], dtype=np.float32)
        latents = np.sort(np.argpartition(-np.abs(dense), self.k - 1, axis=1)[:, : self.k], axis=1)
        return SparseCodes(
            latents.astype(np.uint16), np.take_along_axis(dense, latents, axis=1), self.n_latents
        )

    def candidates(self, terms: SparseCodes, n: int, filter: Any) -> Candidates:  # noqa: A002
        ids = self.ids
        if filter is not None:
            from compressae_index.ids import as_id_array

            ids = ids[np.isin(ids, as_id_array(filter))]
        dense = np.array([self._rows[id_] for id_ in ids.tolist()], dtype=np.float32)
        sums = terms.to_dense() @ dense.reshape(-1, self.n_latents).T
        order = np.argsort(-sums, axis=1, kind="stable")[:, :n]
        scores = np.take_along_axis(sums, order, axis=1)
        none_left = order.shape[1] == len(ids)
        bounds = np.full(len(sums), -np.inf, np.float32) if none_left else scores[:, -1]
        return Candidates(ids[order], scores, bounds)

    def _array(self, ids: list[Any]) -> IdArray:
        array = np.empty(len(ids), dtype=object if self.are_strings else np.int64)
        array[:] = ids
        return array


class TestToy(IndexContract):
    """On the contract's own model, as somebody else would run it."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Open:
        def copied(index: CompressedIndex) -> Index:
            documents = index.documents
            toy = Toy(documents.n_latents, documents.k, are_strings=documents.are_strings)
            toy.put(index.codes(index.ids), index.ids)
            return Index(index.model, toy, metric=index.metric)

        return copied


def test_the_contract_needs_neither_torch_nor_faiss_nor_pymilvus(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, compressae_index.testing; print({'torch', 'faiss', 'pymilvus'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "set()\n"
