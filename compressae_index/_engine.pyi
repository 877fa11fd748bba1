"""The search engine: posting lists, forward codes, re-scoring, pursuit."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray

def simd() -> str:
    """
    Instruction set in use: amx, avx512vbmi, avx512, avx2, neon or plain
    (COMPRESSAE_SIMD forces one).
    """

def first_without_direction(
    rows: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    smallest: float,
) -> int:
    """
    First row (n, dim) that is not finite, or holds nothing as large as `smallest`; n where there is none.
    """

def first_repeated(
    text: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)],
    ends: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
    counted: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order="C", device="cpu", writable=False)]
    | None,
) -> int:
    """
    First of the strings text[ends[i]:ends[i + 1]] that equals one before it, or their number; of those alone that
    are `counted`, if given.
    """

def directions(
    rows: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
) -> NDArray[numpy.float32]:
    """Rows (n, dim), none of them zero, divided by their norms."""

MAX_DIM: int = 65536

NEAR_BYTES: int = 2097152

MAX_LATENTS: int = 65536

class Projection:
    """Products with atoms (n_latents, dim) of unit norm, kept as bytes."""

    def __init__(
        self,
        atoms: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
    ) -> None: ...
    def project(
        self,
        vectors: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        mean: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.float32] | None]:
        """
        Products of the directions of vectors (n, dim) with all atoms, (n, n_latents), and with a mean (dim), if
        any, (n, 1). Atoms that are multiples of bytes take one an entry, others two.
        """

    def entries(self) -> NDArray[numpy.int8]:
        """The atoms (n_latents, dim) rounded to bytes, the largest to 127."""

    @property
    def nbytes(self) -> int: ...

class RoughProjection:
    """The same to choose documents by, beside a projection."""

    def __init__(self, exact: Projection) -> None: ...
    def project(
        self,
        vectors: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        mean: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        num_threads: int,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.float32] | None]:
        """
        Products of vectors rounded to bytes, unless these have spikes, with atoms in bytes: off by about a
        hundredth of 1 / sqrt(dim). With more than 2 MiB of atoms without peaks, these are read to half a byte:
        off by about an eighth.
        """

    @property
    def nbytes(self) -> int: ...

class Dictionary:
    """A dictionary (n_latents, dim) of unit rows, which is borrowed."""

    def __init__(
        self,
        atoms: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
    ) -> None: ...
    def pursue(
        self,
        vectors: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        k: int,
        solve_every: int,
        num_threads: int,
        in_rounds: bool | None = None,
    ) -> tuple[NDArray[numpy.uint16], NDArray[numpy.float32]]:
        """
        Codes of unit rows (n, dim) by orthogonal matching pursuit: (latents, values), (n, k). in_rounds says whether
        by rounds or by the Gram matrix of all atoms; None: by the number of latents.
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

WINDOW: int = 32768

POSTING_BYTES: int = 3

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
        kept: Annotated[
            NDArray[numpy.bool_], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ]
        | None = None,
    ) -> InvertedLists:
        """Lists of codes, (n, k) each, of the pairs that are kept; None: of all."""

    @staticmethod
    def concatenate(ranges: Sequence[tuple[InvertedLists, int, int]]) -> InvertedLists:
        """
        Windows [first, last) of lists, (lists, first, last) each, one after the other.
        """

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
        codes: Forward | None = None,
        damped: bool = False,
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
        """
        Best documents by the query_nnz largest entries of each projection, summed up in 16 bits:
        (scores, rows), (n_queries, top). Codes add the norms that they keep. Where damped, sums are those of
        candidates, as `search` says.
        """

    def validate(self, fewest: int, most: int, num_threads: int) -> None:
        """
        Raises ValueError where lists are not of ascending documents, or hold fewer or more postings than so many
        of each, or norms of documents are larger than the largest.
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

    def validate(self, num_threads: int) -> None:
        """
        Raises ValueError where a list is not of ascending documents below n_documents and finite values.
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
        Best documents by terms (n_queries, m), a latent at most once in a row: (scores, rows),
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
    latents: Annotated[
        NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    values: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    scales: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order="C", device="cpu", writable=False)],
    levels: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    dictionary: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ]
    | None,
    num_threads: int,
) -> NDArray[numpy.uint8]:
    """
    Codes of values (n, k) relative to the half-precision scales (n,), whose sign bit marks short rows: a sign
    bit above the index of the nearest level. With a dictionary (n_latents, dim), values make up for what the
    rounding of others did to the reconstruction.
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

class Forward:
    """The forward part: a document's code, row by row."""

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

    def validate(self, num_threads: int) -> None:
        """
        Raises ValueError where a row is not of ascending latents and finite values.
        """

    def arrays(self) -> dict[str, Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n_entries(self) -> int:
        """Entries of projections: latents, and one for norms."""

class AlignedCodes(Forward):
    """The aligned forward part: k latents and values a row, and maybe norms."""

    def __init__(self, arrays: dict[str, Any], n_latents: int) -> None: ...

class PackedCodes(Forward):
    """The packed forward part: row_bytes bytes a row, and maybe norms."""

    def __init__(
        self,
        arrays: dict[str, Any],
        levels: Annotated[
            NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        n_latents: int,
        k: int,
    ) -> None: ...

def residual_row_bytes(dim: int, residual_bits: int) -> int:
    """Bytes of a residual row."""

def residual_rows(
    targets: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    latents: Annotated[
        NDArray[numpy.uint16], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    values: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    dictionary: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ],
    residual_bits: int,
    num_threads: int,
) -> NDArray[numpy.uint8]:
    """
    Residual rows of targets (n, dim) whose codes are latents and values (n, k): (n, row_bytes). The code's
    reconstruction and the residual together get the norm of the target.
    """

def residual_vectors(
    rows: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    dim: int,
    residual_bits: int,
    num_threads: int,
) -> NDArray[numpy.float32]:
    """Residuals that rows stand for: (n, dim)."""

class Refiner:
    """Stage three of a search: scores by what codes leave out."""

    def rescore(
        self,
        queries: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        scores: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        rows: Annotated[
            NDArray[numpy.int64], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        num_threads: int,
    ) -> NDArray[numpy.float32]:
        """
        Scores of rows (n_queries, width) in place of their sums over codes; that of row -1 stays.
        """

    @property
    def n_documents(self) -> int: ...

class Residuals(Refiner):
    """Adds the products of queries with residual codes."""

    def __init__(
        self,
        parts: Sequence[
            Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu", writable=False)]
        ],
        dim: int,
        residual_bits: int,
    ) -> None: ...
    def validate(self, num_threads: int) -> None:
        """
        Raises ValueError where the scale of a row is not finite and at least 0.
        """

class Originals(Refiner):
    """The products of queries with original vectors."""

    def __init__(
        self,
        segments: Sequence[tuple[object, float]],
        dim: int,
        places: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        by_direction: bool,
        distances: bool = False,
    ) -> None:
        """
        Segments are vectors, float32, or float16 as uint16, (n, dim), and a factor of their products each.
        places: each document's row in them. With by_direction, products are divided by the norms of vectors; with
        distances, scores are squared distances from vectors times their factor, below 0.
        """

LISTED_PER_CODE: int = 256

DAMPING: float = 0.20000000298023224

UNSEEN: float = 0.8999999761581421

def search(
    parts: Sequence[tuple[InvertedLists, Forward]],
    stage_one: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ]
    | None,
    stage_two: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ]
    | None,
    query_nnz: int,
    candidates: int,
    top: int,
    allowed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order="C", device="cpu", writable=False)]
    | None,
    num_threads: int,
    refiner: Refiner | None = None,
    queries: Annotated[
        NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
    ]
    | None = None,
    refine: int = 0,
    damped: bool = False,
) -> tuple[NDArray[numpy.float32], NDArray[numpy.int64]]:
    """
    Best documents of parts, (lists, codes) each: (scores, rows), (n_queries, top). With projections stage_one,
    the best candidates by the posting lists of their query_nnz largest entries are scored by their codes: with
    the projections stage_two, or with those entries alone. With stage_two alone every document is. With a
    refiner, it scores the best `refine` by their codes again, by queries (n_queries, dim). Candidates are the
    best by sums; where damped, each product with a value s loses d s^2, and sums gain UNSEEN d; d is DAMPING
    times the share of the squares of stage_one that is not read.
    """
