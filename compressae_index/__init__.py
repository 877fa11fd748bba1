"""Search millions of dense embeddings from sparse dictionary codes.

index = CompressedIndex.build(embeddings)
scores, ids = index.search(queries, k=10)
"""

from __future__ import annotations

import logging
from importlib.metadata import version

try:
    from compressae_index import _engine as _engine
except ImportError as error:
    error.add_note(
        "The C++ engine is not built here. In a source checkout, install the package (pip install .) and run "
        "Python outside of the checkout or with -P, so that the sources do not hide the installed package."
    )
    raise

from compressae_index.batches import BatchEncoder
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import (
    BackendError,
    CompressaeError,
    DimensionError,
    FormatError,
    InputError,
    InstallationError,
    MissingExtraError,
    NewerFormatError,
    StorageError,
    TrainingError,
    UnknownIdError,
)
from compressae_index.index import CompressedIndex
from compressae_index.search.explaining import Explanation
from compressae_index.search.index import Index, IndexStats
from compressae_index.search.queries import SearchResult
from compressae_index.training import TrainConfig, TrainResult, train

__all__ = [
    "BackendError",
    "BatchEncoder",
    "CompresSAE",
    "CompressaeError",
    "CompressedIndex",
    "DimensionError",
    "Explanation",
    "FormatError",
    "Index",
    "IndexStats",
    "InputError",
    "InstallationError",
    "MissingExtraError",
    "NewerFormatError",
    "SearchResult",
    "SparseCodes",
    "StorageError",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "UnknownIdError",
    "__version__",
    "train",
]

__version__ = version("compressae-index")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, unless a program wants to hear it


def __dir__() -> list[str]:
    return __all__
