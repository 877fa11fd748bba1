"""The search engine: posting lists, forward codes, re-scoring, pursuit."""

from typing import Annotated, Any

import numpy
from numpy.typing import NDArray

def simd() -> str:
    """
    Instruction set in use: avx512vbmi, avx512, avx2 or plain (COMPRESSAE_SIMD forces one).
    """

def pursuit(
    correlations: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    gram: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    k: int,
    solve_every: int,
    num_threads: int,
) -> tuple[NDArray[numpy.uint16], NDArray[numpy.float32]]:
    """
    Orthogonal matching pursuit from correlations (n, h) and the Gram matrix, half precision as uint16, rows
    padded with zeros to a multiple of 64: (latents, values), (n, k).
    """

def top_k_codes(
    activations: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    k: int,
    num_threads: int,
) -> tuple[NDArray[numpy.uint16], NDArray[numpy.float32]]:
    """
    The k largest absolute entries of each row, signed, sorted by latent: (latents, values), (n, k).
    """

class InvertedLists:
    """The inverted part: posting lists by window and latent."""

    def __init__(self, arrays: dict[str, Any], n_documents: int, n_latents: int) -> None: ...
    @staticmethod
    def build(
        latents: Annotated[
            NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        values: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        n_latents: int,
        num_threads: int,
    ) -> InvertedLists: ...
    def search(
        self,
        projections: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        query_nnz: int,
        top: int,
        allowed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """
        Best documents by the query_nnz largest entries of each projection: (scores, rows), (n_queries, top).
        """

    def list_lengths(self) -> NDArray[numpy.int64]: ...
    def arrays(self) -> dict[str, Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def n_documents(self) -> int: ...

class BorrowedLists:
    """
    Posting lists in another library's memory, which must outlive this object unchanged.
    """

    def __init__(
        self,
        documents: Annotated[
            NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        values: Annotated[
            NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        counts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
        n_documents: int,
    ) -> None:
        """
        From the addresses (n_latents,) of each list's documents, int64 and ascending, and of its values, half
        precision, and the postings (n_latents,) that stand there.
        """

    def search(
        self,
        latents: Annotated[
            NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        weights: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        top: int,
        allowed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """
        Best documents by terms (n_queries, m), of which a latent stands once in a row: (scores, rows),
        (n_queries, top).
        """

def code_norms(
    latents: Annotated[
        NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    values: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    dictionary: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    num_threads: int,
) -> NDArray[numpy.float32]:
    """
    Norms of the reconstructions of codes (n, k) over a dictionary (n_latents, dim): (n,).
    """

def quantize(
    values: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    scales: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order="C", device="cpu", writable=False)],
    levels: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    num_threads: int,
) -> NDArray[numpy.uint8]:
    """
    Codes of values (n, k) relative to the half-precision scales (n,), whose sign bit marks short rows: a sign
    bit above the index of the nearest level.
    """

def pack_rows(
    latents: Annotated[
        NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    scales: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order="C", device="cpu", writable=False)],
    n_latents: int,
    value_bits: int,
    num_threads: int,
) -> NDArray[numpy.uint8]:
    """
    Latents and codes (n, k) and scales (n,) as packed rows (n, row_bytes).
    """

def unpack_rows(
    rows: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    n_latents: int,
    k: int,
    value_bits: int,
    num_threads: int,
) -> tuple[NDArray[numpy.uint16], NDArray[numpy.uint8], NDArray[numpy.uint16]]:
    """What was given to pack_rows: (latents, codes, scales)."""

class ForwardCodes:
    """The aligned forward part: k latents and values a row."""

    def __init__(self, arrays: dict[str, Any], n_latents: int) -> None: ...
    def search(
        self,
        projections: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        top: int,
        allowed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """Best documents by whole projections: (scores, rows), (n_queries, top)."""

    def rescore(
        self,
        projections: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        candidates: Annotated[
            NDArray[numpy.int64], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        top: int,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """
        Best of the candidate rows (-1: none): (scores, rows), (n_queries, top).
        """

    def arrays(self) -> dict[str, Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def k(self) -> int: ...

class PackedCodes:
    """The packed forward part: row_bytes bytes a row."""

    def __init__(
        self,
        arrays: dict[str, Any],
        levels: Annotated[
            NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        n_latents: int,
        k: int,
    ) -> None: ...
    def search(
        self,
        projections: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        top: int,
        allowed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """Best documents by whole projections: (scores, rows), (n_queries, top)."""

    def rescore(
        self,
        projections: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        candidates: Annotated[
            NDArray[numpy.int64], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        top: int,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """
        Best of the candidate rows (-1: none): (scores, rows), (n_queries, top).
        """

    def arrays(self) -> dict[str, Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def k(self) -> int: ...
