"""The index: build, search, change, explain, save and load."""

from __future__ import annotations

import copyreg
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index._engine import simd
from compressae_index.arrays import BoolArray, IdArray
from compressae_index.building.calibration import calibrate
from compressae_index.building.decision import decide
from compressae_index.building.drift import DRIFT_ROWS, PROBE_ARRAYS, Drift, Probe, Tally, compared, drift_of
from compressae_index.building.neighbourhoods import neighbourhoods
from compressae_index.building.planning import Intent, Knobs, Plan, Shared
from compressae_index.building.recoding import (
    RecodableIndex,
    Recoding,
    StoredVectors,
    emptied_for,
    recoded,
)
from compressae_index.building.training import ModelSource
from compressae_index.checks import (
    as_path,
    as_place,
    check_choice,
    check_int,
    check_threads,
    normalize_rows,
)
from compressae_index.coding.chunks import Encoded, encoded_chunks
from compressae_index.coding.directory import CodeStore
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import METRICS, Metric, RowScale, check_unit_norms
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_is_model, check_model
from compressae_index.coding.parquet import ParquetCodes, is_parquet
from compressae_index.coding.points import points_of, seen_again
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import CodecName, codec_of
from compressae_index.embedded.codecs.lengths import NORM_BYTES, NORMS
from compressae_index.embedded.codecs.packed import VALUE_BITS
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.embedded.merging import check_alike, is_folder_of_shards, merged, shard_paths
from compressae_index.embedded.originals import FILE, PRECISIONS, Originals, check_moved, score_of
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids, as_id_array
from compressae_index.processes import ForkSafeLock
from compressae_index.progress import track
from compressae_index.search.frontier import CALIBRATED_ROWS, Frontier
from compressae_index.search.index import IndexStats, counted, of_one_moment
from compressae_index.search.labels import labels_file, stored_labels
from compressae_index.sources import (
    CHUNK_ROWS,
    BadRows,
    Vectors,
    VectorSource,
    ids_of_rows,
    open_vectors,
)
from compressae_index.sources.paths import PathLike
from compressae_index.training import TrainConfig

_log = logging.getLogger(__name__)


# Arrays that are mapped however an index is loaded.
ALWAYS_MAPPED = (as_path(FILE).stem,)


class CompressedIndex(RecodableIndex):
    """Vectors stored as k signed (latent, value) pairs each, and searched from these codes.

    Similarity is cosine, for which neither vectors nor queries need unit norm, the inner product or the
    Euclidean distance; see `build`, which makes an index. `load` reads one. Searches may run in several
    threads, also while one of them adds, removes or upserts: each sees the index as it was when it began. An
    index may be copied, pickled and sent to other processes; a mapped one is sent as the path of its files.
    """

    KIND = "index"
    _documents: EmbeddedDocuments

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        documents: EmbeddedDocuments | None = None,
    ) -> None:
        """An empty index, unless documents are given, whose k and unit are then its own."""
        if documents is None:
            k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
            norms = metric == "l2" and model.mean is None
            documents = _empty(EmbeddedBackend(model.n_latents, k, codec_of(norms=norms)), metric)
        super().__init__(model, documents, encoder=encoder, metric=metric)
        self.plan: Plan | None = None
        """The choices of `build` for its budget, and the recall it expects; None without one. Not saved."""
        self.skipped: IdArray = np.empty(0, dtype=np.int64)
        """Ids of rows that the last `build`, `add` or `upsert` left out by on_bad_rows="skip". Not saved."""
        self.probe: Probe | None = None
        """What `drift` compares with: codes of the vectors that the index was built from; None if it was
        made otherwise, or by an older version."""
        # The files that the codes of a back end are mapped from.
        self._mapped: tuple[EmbeddedBackend, persistence.Mapped] | None = None

    @classmethod
    def build(
        cls,
        embeddings: VectorSource,
        ids: Any = None,
        *,
        k: int | None = None,
        n_latents: int | None = None,
        model: CompresSAE | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        config: TrainConfig | None = None,
        forward: CodecName = "packed",
        value_bits: int | None = None,
        postings: int | None = None,
        residual_bits: int | None = None,
        originals: Any = None,
        bytes_per_vector: float | None = None,
        target_recall: float | None = None,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = True,
    ) -> CompressedIndex:
        """Trains a model on the embeddings, unless one is given, and encodes them.

        Without any of k, model, value_bits, postings, residual_bits and a budget, the budget is 200 bytes a
        vector, or an eighth of float32 if that is more; with originals, codes are of 16 nonzeros, about 57
        bytes. Of at least 2,048 vectors, `frontier` then says which settings of a search reach which recall.

        Args:
            embeddings: (n, d) floating point: an array, a table or column of vectors, a memory map, file,
                folder of shards or iterator of batches, as `sources.open_vectors` takes them. They are read
                in batches; rows must be finite and not zero.
            ids: one int64 (not negative) or string a row; 0 .. n-1 by default.
            k: nonzeros a code, at most d; by default the model's, or 32, less for fewer than 256 rows or 32
                dimensions.
            n_latents: size of the dictionary. By default 4,096, less for fewer than 8,192 rows; above 524,288
                rows it grows with their root, to 8,192 for a million. A budget chooses it.
            model: a trained model to use as it is.
            encoder: how vectors become codes: "pursuit" (best), or "topk" (the paper's single pass).
            metric: what scores are. "cosine": of the query and the reconstructed row; norms are dropped.
                "inner_product": of the query and the reconstruction, which has the norm of the row, in the
                units of the vectors given. The norm costs no byte: the scale of a code carries it, in half
                precision, so that the index keeps norms from 1/1024 to 4096 times a power of two near the
                median of the first rows. Long rows may be near by latents that a query's query_nnz strongest
                leave out: the more norms differ, the more query_nnz "two_stage" needs; "dense" does not.
                Training sees directions only. A model that leaves out a mean does not fit. "l2": the squared
                Euclidean distance, ascending. Codes are of the rows less their mean, which the model keeps as
                its `center`, and the norms of these take 2 bytes a vector; codes alone give distances within
                0.05 % of the squared norm besides what they leave out. If all rows are of unit norm, within
                0.001, they are stored as for cosine, without norms, and other rows cannot be added. Rows and
                queries may be zero.
            config: training settings; k and n_latents may be named there or here. By default those of
                `TrainConfig`, but the encoder, which "pursuit" has no use for, is trained for "topk" alone;
                else it stays the dictionary's transpose.
            forward: how codes are stored for `dense` and `two_stage`: "packed" takes the fewest bytes,
                "aligned" is the fastest.
            value_bits: bits of a packed value, 4 to 8, 6 by default; the aligned codec always has 8.
            postings: nonzeros of a code that the posting lists keep, on average: those above one threshold
                for all codes, relative to each one's norm; all by default. Each left out saves 3 bytes, and
                makes `sparse` and the first stage of `two_stage` approximate.
            residual_bits: bits a dimension of residual codes, 1, 2, 3, 4 or 6; 0, the default, for none. They
                hold what codes leave out of the vectors, and the last stage of a search scores the best
                documents by both. They take d * residual_bits / 8 + 2 bytes a vector.
            originals: where the last stage of a search finds the vectors themselves, which stay on disk:
                "float16" or "float32" for copies that the index keeps, in a temporary file (TMPDIR) until
                `save` puts them beside the codes; or the path of a .npy file, or an array, of the embeddings
                as they are given here, which the index refers to: do not change it. Vectors added later are
                copied. Not together with residual_bits.
            bytes_per_vector: a budget for all that `two_stage` keeps resident, ids and all, at n vectors. k,
                value_bits, postings and residual_bits are chosen to fit it, by measuring how many of the true
                neighbours of some rows they keep; `plan` then says what was chosen and what to expect. So is
                n_latents, unless it or a model is given, by brief trainings, which lengthen the build. The
                bytes of a dictionary that is trained count.
            target_recall: the same, for the smallest budget whose expected recall@10 is at least this.
            on_bad_rows: "error", or "skip" to leave out rows that are zero, missing, or hold NaN or infinite
                values; for "l2", rows of zeros stay. Ids are still one for each row that is given, and by
                default the numbers of these; `skipped` has those of the rows that were left out.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: an argument is of another type or out of range, a model is of another dimension, ids
                repeat, all before any training; bad rows, or a kept norm out of range.
            MissingExtraError: there is an encoder to train, and torch is not installed.
        """
        check_choice(encoder, "encoder", ENCODERS)
        check_choice(metric, "metric", METRICS)
        threads = check_threads(num_threads)
        knobs = Knobs.checked(
            forward, k, value_bits, postings, residual_bits, originals=originals is not None
        )
        budget = knobs.budget(bytes_per_vector, target_recall)
        source = ModelSource.checked(
            model, k=k, n_latents=n_latents, config=config, metric=metric, encoder=encoder
        )
        zeros = metric == "l2" and (model is None or model.mean is None)
        vectors = open_vectors(embeddings, on_bad_rows=on_bad_rows, zeros=zeros)
        kept = _originals(originals, vectors, metric)
        row_ids, skipped = ids_of_rows(ids, vectors)
        n, dim = len(row_ids), vectors.shape[1]
        points = points_of(vectors, metric, source.given, centers=source.centers, progress=progress)
        if points.keep_norms:
            check_room_for_norms(source.sizes(vectors, encoder)[1])
            source = source.without_center()
        norm_bytes = NORM_BYTES if points.keep_norms else 0
        shared = Shared(n, dim, row_ids.nbytes / n, model is None, norm_bytes, kept is not None)
        intent = Intent.of(
            knobs,
            budget,
            shared,
            partial(source.sizes, vectors, encoder),
            is_open=source.is_open,
            latents_open=source.latents_open,
        )
        near = None
        if intent.budget is not None or n >= CALIBRATED_ROWS:
            near = neighbourhoods(points.vectors, points.order, progress=progress)
        (model, held_out), knobs, plan = decide(
            source,
            points.vectors,
            intent,
            shared,
            near,
            encoder,
            by_originals=kept is not None,
            num_threads=threads,
            progress=progress,
        )
        if source.given is None and points.center is not None:
            model = model.centred_at(points.center)
        backend = EmbeddedBackend(
            model.n_latents,
            knobs.nonzeros,
            knobs.codec(model.dim, norms=points.keep_norms),
            postings=knobs.postings,
        )
        if kept is not None:
            kept = kept.to_compare(score_of(metric, keeps_norms=points.keep_norms), model.center)
        if kept is not None and not len(kept):  # copies, made as the rows pass by
            backend = backend.with_originals(kept)
        index = cls(model, encoder=encoder, metric=metric, documents=_empty(backend, metric))
        index.plan, index.skipped = plan, skipped
        bits, tally = index.documents.residual_bits, Tally(model)
        scale = RowScale(metric, unit_rows=not points.keep_norms, around=model.center_norm)
        chunks = encoded_chunks(
            model, vectors, knobs.nonzeros, encoder, threads, scale=scale, residual_bits=bits
        )
        index._append(chunks, row_ids, scale, threads, progress, note=tally.note)
        index.probe = Probe.of(model, tally.seen, held_out, knobs.nonzeros, encoder, threads)
        if backend.originals is None:
            index._documents = index.documents.with_originals(kept)
        if near is not None and n >= CALIBRATED_ROWS:
            index.frontier = calibrate(
                index,
                near,
                row_ids,
                index._list_lengths(),
                target=target_recall,
                num_threads=threads,
                progress=progress,
            )
        model.release()
        _log.info("built an index of %d vectors: k = %d, %d latents", n, index.k, model.n_latents)
        return index

    @classmethod
    def from_codes(
        cls,
        codes: CodeStore | PathLike | Sequence[PathLike],
        model: CompresSAE,
        ids: Any = None,
        *,
        metric: Metric = "cosine",
        forward: CodecName = "packed",
        value_bits: int = VALUE_BITS,
        postings: int | None = None,
        num_threads: int | None = None,
        progress: bool = True,
    ) -> CompressedIndex:
        """An index of codes that were made before; nothing is encoded again.

        Args:
            codes: what `coding.directory.encode_to_directory` gave, or its directory; or Parquet files with
                the columns of `BatchEncoder`: a file, folder, pattern, or list. k and the encoder are those
                of the codes.
            model: the model that encoded. Where files have lost its fingerprint, the norms of reconstructions
                tell it from others.
            ids: one id a row, as for `build`; `sources.read_ids` reads them from a column of the same files.
            metric: "inner_product" and "l2" need Parquet files, whose column `scale` has the norms.
            forward: as for `build`.
            value_bits: as for `build`.
            postings: as for `build`.
            num_threads: threads to build with; all by default.
            progress: show a progress bar.

        Raises:
            FormatError: the directory is unfinished, a file is damaged, or another model encoded.
            InputError: an argument is of another type or out of range; duplicate ids, or another number of
                them; a norm out of range.
            MissingExtraError: pyarrow is needed and not installed.
        """
        check_choice(metric, "metric", METRICS)
        threads, codec = check_threads(num_threads), codec_of(forward, value_bits=value_bits)
        if postings is not None:
            check_int(postings, "postings", 1)
        check_is_model(model)
        if ids is not None:
            ids = as_id_array(ids)
        store = _code_store(codes, model)
        factors = None
        scale = RowScale(metric, unit_rows=model.mean is not None, around=model.center_norm)
        check_model(model, metric)
        if metric != "cosine":
            if isinstance(store, CodeStore):
                msg = f"codes in {store.path} hold no norms, which metric={metric!r} needs: encode to Parquet"
                raise InputError(msg)
            if scale.keeps_norms:
                factors = scale.of_norms(store.norms())
            else:
                check_unit_norms(store.norms())
        if metric == "l2" and scale.keeps_norms:
            check_room_for_norms(model.n_latents)
            codec = codec_of(forward, value_bits=value_bits, norms=True)
        if store.fingerprint != model.fingerprint:
            msg = (
                f"{store.path} was encoded by a model of fingerprint {store.fingerprint}, "
                f"the model given has {model.fingerprint}"
            )
            raise FormatError(msg)
        if isinstance(store, CodeStore) and store.residual_bits:
            msg = f"codes in {store.path} leave room for residual codes, which are not there: encode anew"
            raise FormatError(msg)
        if store.n_latents != model.n_latents:
            msg = f"{store.path} says that its codes are over {store.n_latents} latents, of {model.n_latents}"
            raise FormatError(msg)
        if postings is not None:
            check_int(postings, "postings", 1, store.k, "k")
        row_ids = Ids.from_user(ids, len(store))
        backend = EmbeddedBackend(model.n_latents, store.k, codec, postings=postings)
        index = cls(model, encoder=store.encoder, metric=metric, documents=_empty(backend, metric))
        runs = (slice(first, first + CHUNK_ROWS) for first in range(0, len(store), CHUNK_ROWS))
        chunks = (Encoded(store[run] if factors is None else store[run].scaled(factors[run])) for run in runs)
        index._append(chunks, row_ids, scale, threads, progress, label="indexing")
        return index

    @property
    def form(self) -> dict[str, Any]:
        """Model, encoder, metric, and how vectors are stored: the same for all indexes that can be merged."""
        return {
            "fingerprint of the model": self.model.fingerprint,
            "encoder": self.encoder,
            "metric": self.metric,
            "unit of norms": self.documents.unit,
            **self.documents.backend.form,
        }

    def empty_like(self) -> CompressedIndex:
        """An index without vectors that stores what is added to it just as this one would.

        It has the model, its labels, the levels of packed values, the threshold of posting lists and the unit
        of norms of this index. So vectors may be shared out among several such indexes, also in other
        processes, and `merge` gives the index that holds them all.
        """
        empty = CompressedIndex(
            self.model, encoder=self.encoder, metric=self.metric, documents=self.documents.emptied()
        )
        empty.labels = self.labels
        return empty

    @classmethod
    def merge(
        cls, shards: Iterable[CompressedIndex | str | os.PathLike[str]], *, mmap: bool = True
    ) -> CompressedIndex:
        """One index of the vectors of several, in their order.

        It answers as one index would that was given all vectors: each shard must be `empty_like` the same
        index, with vectors added. Codes, lists and original vectors stay where they are until `save` or a
        change joins them, so that merging paths takes little memory. Where a shard ends within a window of
        32,768 vectors, the rounding of its posting lists may differ until then, and with it the last of the
        candidates. Marks of removal stay, too. The result has the first `labels` among those of the shards,
        and neither `frontier`, which `calibrate` measures among all vectors, nor `probe`.

        Args:
            shards: indexes, or paths of saved ones, at least one.
            mmap: as for `load`, of paths.

        Raises:
            FormatError, StorageError: as for `load`.
            InputError: no shards, an id that several hold, or a shard of another model, encoder, metric or
                form of codes.
        """
        given = list(shards)
        names = [
            f"shard {number}" if isinstance(each, CompressedIndex) else str(as_place(each))
            for number, each in enumerate(given)
        ]
        if not given:
            msg = "there are no shards to merge"
            raise InputError(msg)
        indexes = [each if isinstance(each, CompressedIndex) else cls.load(each, mmap=mmap) for each in given]
        check_alike([index.form for index in indexes], names)
        first, documents = indexes[0], merged([index.documents for index in indexes], names)
        index = cls(first.model, encoder=first.encoder, metric=first.metric, documents=documents)
        index.labels = next((each.labels for each in indexes if each.labels is not None), None)
        return index

    def __copy__(self) -> CompressedIndex:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self) | {"_writer": ForkSafeLock()})
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedIndex:
        return self.__copy__()  # nothing that an index holds is ever changed, but replaced

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles arrays, or the path of mapped ones, where the same files must then be found."""
        documents = self.documents
        if self._mapped is not None and self._mapped[0] is documents.backend:
            kept = {"plan": self.plan, "frontier": self.frontier, "_labels": self.labels}
            return type(self)._mapped_again, (self._mapped[1], documents.alive, kept)
        return copyreg.__newobj__, (type(self),), vars(self) | {"_mapped": None}  # type: ignore[attr-defined]

    @classmethod
    def _mapped_again(
        cls, mapped: persistence.Mapped, alive: BoolArray | None, kept: Mapping[str, Any]
    ) -> CompressedIndex:
        """Maps the files of a pickled index again, and takes other attributes from the pickle.

        Raises:
            FormatError: its files are gone, damaged, or others.
        """
        index = cls.load(mapped.path, mmap=True)
        mapped.check(index._mapped and index._mapped[1])
        vars(index).update(kept)
        held = index.documents
        index._documents = EmbeddedDocuments(held.backend, held.all_ids, alive, held.unit)
        return index

    def add(
        self,
        embeddings: VectorSource,
        ids: Any = None,
        *,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Appends vectors; the model stays as it is.

        Args:
            embeddings: (n, d) floating point, as for `build`; there may be none.
            ids: new ids of the kind the index has; by default integers above the largest one.
            on_bad_rows: as for `build`.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or that the index already holds, a kept
                norm out of range. Nothing was added.
        """
        self._write_skipping(
            embeddings, ids, on_bad_rows, replaces=False, num_threads=num_threads, progress=progress
        )

    def upsert(
        self,
        embeddings: VectorSource,
        ids: Any,
        *,
        on_bad_rows: BadRows = "error",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Appends vectors, and removes those that had their ids; searches see both or neither.

        The memory of what was replaced stays in use until `compact`. Replaced ids come last in `ids`.

        Args:
            embeddings: (n, d) floating point, as for `build`; there may be none.
            ids: one id a row, of the kind the index has, held or new.
            on_bad_rows: as for `build`; what was held by the ids of bad rows stays.
            num_threads: threads to encode with; all by default.
            progress: show a progress bar.

        Raises:
            InputError: bad rows, another dimension, ids that repeat or are of the other kind, a kept norm out
                of range. Nothing was changed.
        """
        ids = as_id_array(ids)
        self._write_skipping(
            embeddings, ids, on_bad_rows, replaces=True, num_threads=num_threads, progress=progress
        )

    def _write_skipping(
        self,
        embeddings: VectorSource,
        ids: Any,
        on_bad_rows: BadRows,
        *,
        replaces: bool,
        num_threads: int | None,
        progress: bool,
    ) -> None:
        zeros = self.documents.backend.keeps_norms
        vectors = open_vectors(embeddings, on_bad_rows=on_bad_rows, zeros=zeros, may_be_empty=True)
        with self._writer.lock:
            if ids is None and len(self.documents.all_ids) and vectors.shape[0]:
                ids = self.documents.next_ids(getattr(vectors, "n_rows", vectors.shape[0]))
            new_ids, skipped = ids_of_rows(ids, vectors)
            probe = self.probe
            tally = None if probe is None else Tally(self.model, probe.added)
            self._store(
                vectors,
                new_ids,
                replace=replaces,
                num_threads=num_threads,
                progress=progress,
                note=None if tally is None else tally.note,
            )
            self.skipped = skipped
            _log.info("%s %d vectors", "upserted" if replaces else "added", len(new_ids))
            if probe is not None and tally is not None:
                self.probe = replace(probe, added=tally.seen)

    def _append(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        scale: RowScale,
        num_threads: int,
        progress: bool,
        label: str = "encoding",
        note: Callable[[Encoded], object] | None = None,
    ) -> None:
        """Adds folded codes to an index that nobody else knows yet; `scale` is what scales them."""
        with track(len(ids), label, enabled=progress) as advance:
            self._documents = self.documents.added(
                counted(chunks, advance, note),
                ids,
                scale=scale,
                model=self.model,
                num_threads=num_threads,
            )

    @of_one_moment
    def drift(self, vectors: VectorSource | None = None, *, num_threads: int | None = None) -> Drift:
        """How far new vectors are from those that the index was built from.

        Compares how well codes keep them, and which latents they use, with the `probe` that `build` made. At
        most 20,000 of the vectors are read, which takes seconds.

        Args:
            vectors: (n, d) floating point, as for `build`; by default those that were added since the index
                was built, also by `upsert`. Of these, removed ones count, too.
            num_threads: threads to encode with; all by default.

        Returns:
            The verdict "fine", "watch" or "recode", and what it was made from.

        Raises:
            InputError: bad rows, another dimension, no vectors; or there is no probe, and no original vectors
                of which one could be made.
        """
        threads, probe, documents = check_threads(num_threads), self.probe, self.documents
        if vectors is None:
            if probe is None or not probe.added.n:
                msg = "nothing was added since the index was built: give the vectors to compare"
                raise InputError(msg)
            return compared(probe, probe.added)
        keep_norms = documents.backend.keeps_norms
        opened = open_vectors(vectors, zeros=keep_norms)
        if probe is None:
            probe = self._probe_of(documents, threads)
        seen = seen_again(opened, self.model.center, self.metric, keep_norms=keep_norms).vectors
        return drift_of(probe, self.model, seen, self._k_of(documents), self.encoder, threads)

    def _probe_of(self, documents: EmbeddedDocuments, threads: int) -> Probe:
        """A probe of the original vectors that an index keeps.

        Raises:
            InputError: it keeps none.
        """
        if documents.backend.originals is None or not len(documents):
            msg = (
                "this index has no probe to compare with, as it was made by an older version, of codes or of "
                "shards, and it keeps no original vectors: build it again"
            )
            raise InputError(msg)
        rows = documents.alive_rows()
        rows = rows[:: -(-len(rows) // DRIFT_ROWS)]
        unit = normalize_rows(documents.backend.originals.vectors(rows))
        tally = Tally(self.model)
        tally.note(Encoded(self.model.encode_unit(unit, self._k_of(documents), self.encoder, threads), unit))
        return Probe.of(self.model, tally.seen, None, self._k_of(documents), self.encoder, threads)

    @property
    def vectors(self) -> StoredVectors:
        """The vectors as the index knows them, in the order of `ids`: a source for `train` and others.

        They are the original ones where it keeps them, else reconstructions by codes and residual codes.
        """
        index = self.now()
        documents, model = index.documents, index.model
        return StoredVectors(documents, partial(documents.vectors_of, model=model), model)

    def _recoded(self, recoding: Recoding, *, progress: bool) -> CompressedIndex:
        (model, held_out), tally = recoding.trained, Tally(recoding.model)
        empty = emptied_for(self.documents, model)
        made = recoded(self.documents, empty, recoding, tally.note, progress=progress)
        new = type(self)(model, encoder=self.encoder, metric=self.metric, documents=made)
        new.probe = Probe.of(model, tally.seen, held_out, self.k, self.encoder, recoding.num_threads)
        new.frontier = recoding.frontier_of(new, self.frontier, progress=progress)
        model.release()
        return new

    def _list_lengths(self) -> Any:
        return self.documents.backend.list_lengths()

    def _stays(self) -> dict[str, Any]:
        return super()._stays() | {"skipped": self.skipped}

    def compact(self, *, num_threads: int | None = None) -> None:
        """Reclaims the memory of removed vectors."""
        with self._writer.lock:
            before = len(self.documents.all_ids)
            self._documents = self.documents.compacted(check_threads(num_threads))
            _log.info("compacted %d vectors to %d", before, len(self.documents.all_ids))

    @property
    def documents(self) -> EmbeddedDocuments:
        """The documents that a search would see now: codes, ids, marks of removal."""
        return self._documents

    @property
    def unit(self) -> float:
        """The factor from codes of `documents.backend` to those of `codes`; 1 for cosine."""
        return self.documents.unit or 1.0

    @of_one_moment
    def stats(self) -> IndexStats:
        """The contents of the index, and their costs."""
        documents = self.documents
        n, lengths = len(documents.all_ids), documents.backend.list_lengths()
        kept = documents.backend.originals
        parts = documents.nbytes
        parts |= {"total": sum(parts.values())}
        per_vector = {name: size / max(n, 1) for name, size in parts.items()}
        third = sum(per_vector.get(name, 0.0) for name in ("residuals", "originals"))
        return self._stats_of(documents)._replace(
            bytes_per_vector=per_vector,
            removed=n - len(documents),
            postings=documents.backend.postings,
            bytes_by_mode={
                "sparse": per_vector["total"] - third,  # what posting lists find is scored by its codes
                "dense": per_vector["total"] - per_vector["inverted"],
                "two_stage": per_vector["total"],
            },
            disk_bytes_per_vector=0.0 if kept is None else kept.disk_bytes / max(n, 1),
            dead_latents=int((lengths == 0).sum()),
            list_skew=float(lengths.max() / max(lengths.mean(), 1e-12)),
            simd=simd(),
        )

    @of_one_moment
    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Writes a directory, in one step: a crash leaves what was there before, or all of this index.

        Args:
            path: the directory, or its address in a store, such as s3://bucket/items.index: the files are
                then made in the temporary folder (TMPDIR), and uploaded.
            progress: show a progress bar.

        Raises:
            FormatError: something other than an index is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        persistence.write(path, self.KIND, **self.contents()._asdict(), progress=progress)
        _log.info("saved %d vectors to %s", len(self.documents.all_ids), as_place(path))

    @of_one_moment
    def contents(self) -> persistence.Contents:
        """What `save` writes, for a directory that holds more than an index."""
        documents = self.documents
        meta: dict[str, Any] = {
            "encoder": self.encoder,
            "metric": self.metric,
            "model": self.model.manifest(),
        }
        meta |= documents.manifest()
        if self.frontier is not None:
            meta["frontier"] = self.frontier.manifest()
        arrays, probe = documents.to_arrays(), self.probe
        if probe is not None:
            meta["probe"] = probe.manifest()
            arrays |= probe.to_arrays()
        kept = documents.backend.originals
        files = labels_file(self.labels) | ({} if kept is None else {FILE: kept.file()})
        return persistence.Contents(meta, arrays, self.model.tensors(), files)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        mmap: bool = False,
        originals: Any = None,
        progress: bool = False,
    ) -> CompressedIndex:
        """Reads what `save` wrote, and checks all of it; of a folder of shards, gives the index of all.

        Args:
            path: the directory, or its address in a store, such as s3://bucket/items.index. Its files are
                then copied to the temporary folder (TMPDIR), and removed from there once they are read; what
                is mapped takes room there as long as the index lives.
            mmap: map the codes instead of reading them, so that only what searches touch takes memory.
                Original vectors are always mapped.
            originals: the path or array of the original vectors that the index refers to, if they are no
                longer where they were; False to go on without original vectors, also without those that the
                index keeps.
            progress: show a progress bar.

        Raises:
            FormatError: the directory is missing, foreign, truncated, tampered with or of a newer format;
                the message says which file and why. Also if the file of the original vectors is gone, changed
                or short.
            InputError: originals are neither a path nor an array of float32 or float16 rows, or they are
                given, but the index refers to none.
            StorageError: there is no permission to read it.
        """
        where = as_place(path)
        if is_folder_of_shards(where):

            def attempt() -> CompressedIndex:
                shards = shard_paths(where)
                with track(len(shards), "loading", enabled=progress, unit="shards") as advance:
                    loaded = []
                    for each in shards:
                        loaded.append(cls.load(each, mmap=mmap, originals=originals))
                        advance(1)
                return cls.merge(loaded)

            return persistence.unless_replaced(where, attempt)  # by `recode_shards`
        stored = persistence.read(where, cls.KIND, mmap=mmap, always_mapped=ALWAYS_MAPPED, progress=progress)
        check_moved(stored.meta, originals)
        with persistence.reading(str(where)):
            index = cls.from_contents(
                stored.meta, stored.arrays, stored.tensors, stored.files, originals=originals
            )
        if mmap and originals is None:  # else the files are not all that it was loaded from
            index._mapped = index.documents.backend, persistence.Mapped.of(where, stored)
        _log.info("loaded %d vectors from %s", len(index), where)
        return index

    @classmethod
    def from_contents(
        cls,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        tensors: Mapping[str, npt.NDArray[Any]],
        files: Mapping[str, Path],
        *,
        originals: Any = None,
    ) -> CompressedIndex:
        """Loads `contents` as `persistence.read` gives them, with the arrays of ALWAYS_MAPPED mapped.

        Args:
            meta: the manifest's entry.
            arrays: the arrays by name.
            tensors: the model's parameters by name.
            files: other files by name, of which others than an index's are ignored.
            originals: as for `load`, checked by `check_moved`.

        Raises:
            FormatError: the file of the original vectors is gone, changed or short.
            InputError, ValueError, KeyError, TypeError: the contents are damaged, which `persistence.reading`
                puts into words.
        """
        model = CompresSAE.from_stored(persistence.entry(meta, "model", dict), tensors)
        # Older indexes have no metric, which was cosine.
        metric = check_choice(meta.get("metric", "cosine"), "metric", METRICS)
        norms = persistence.entry(meta, "packing", dict).get(NORMS, False)
        unit = RowScale(metric, meta.get("unit"), unit_rows=not norms).unit
        of_documents = {name: array for name, array in arrays.items() if name not in PROBE_ARRAYS}
        documents = EmbeddedDocuments.from_stored(meta, of_documents, model, metric, unit, originals)
        index = cls(model, encoder=meta["encoder"], metric=metric, documents=documents)
        if "frontier" in meta and originals is not False:  # which was measured with them
            index.frontier = Frontier.from_stored(persistence.entry(meta, "frontier", dict))
        if "probe" in meta:
            probe = persistence.entry(meta, "probe", dict)
            index.probe = Probe.from_stored(probe, arrays, model.n_latents)
        index.labels = stored_labels(files, model.n_latents)
        return index


def _originals(originals: Any, vectors: Vectors, metric: Metric) -> Originals | None:
    """Original vectors as `build` takes them: none, copies to be made, or those of the user."""
    if originals is None:
        return None
    score = score_of(metric, keeps_norms=metric == "l2")
    if isinstance(originals, str) and originals in PRECISIONS:
        return Originals.own(vectors.shape[1], originals, score)
    return Originals.referring(originals, vectors, score)


def _code_store(
    codes: CodeStore | PathLike | Sequence[PathLike], model: CompresSAE
) -> CodeStore | ParquetCodes:
    if isinstance(codes, CodeStore):
        return codes
    return ParquetCodes(codes, model) if is_parquet(codes) else CodeStore.load(cast("PathLike", codes))


def _empty(backend: EmbeddedBackend, metric: Metric) -> EmbeddedDocuments:
    """No documents yet, whose codes `backend` will hold."""
    return EmbeddedDocuments(backend, unit=RowScale(metric, unit_rows=not backend.keeps_norms).unit)
