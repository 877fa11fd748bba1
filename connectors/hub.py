"""Models and indexes on the Hugging Face Hub, with a card of what was measured.

What `save` writes becomes the content of a repository of models, in one commit. `from_pretrained` downloads
the files that its manifest names and no others, and reads them as `load` does: as content to be checked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from compressae_index.checks import check_text
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import (
    BackendError,
    CompressaeError,
    FormatError,
    InputError,
    MissingExtraError,
    StorageError,
)
from compressae_index.index import CompressedIndex
from compressae_index.measuring.model_report import ModelReport
from compressae_index.persistence import data_files
from compressae_index.storage import TemporaryFolder
from compressae_index.terminal import redacted

try:
    from huggingface_hub import HfApi, ModelCardData, cached_assets_path, get_token
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "hub", "the Hugging Face Hub") from error

T = TypeVar("T", CompresSAE, CompressedIndex)
R = TypeVar("R")

LIBRARY = "compressae-index"
_MANIFEST, _CARD = "manifest.json", "README.md"
_KINDS = {CompresSAE: "model", CompressedIndex: "index"}


def push_to_hub(
    thing: CompresSAE | CompressedIndex,
    repo_id: str,
    *,
    report: ModelReport | None = None,
    licence: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Writes a model or an index to a repository, which is made if there is none, in one commit.

    It replaces the model or index that was there, and its card. Other files stay.

    Args:
        thing: what to write. An index takes its original vectors along if it keeps them itself.
        repo_id: "name" or "owner/name".
        report: what `model_report` measured of the model, for the card.
        licence: the Hub's name of a licence, such as "mit", for the card.
        private: whether a repository that is made here is private; by default the owner's setting.
        revision: the branch to commit to, which must exist; the main one by default.
        token: an access token; by default the one of HF_TOKEN or of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        InputError: no such name can exist, or the index refers to a file of original vectors.
        FormatError: the repository holds something of another kind.
        BackendError: the Hub cannot be reached or refuses.
        StorageError: there is no room for the files in the temporary folder (TMPDIR).
    """
    kind = _kind_of(type(thing))
    _check_name(repo_id)
    _check_pushable(thing)
    card = model_card(thing, repo_id, report=report, licence=licence)
    made = TemporaryFolder()

    def send(api: HfApi) -> str:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _check_replaced(api, repo_id, kind, revision, made.path / "before")
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=f"{kind} of {LIBRARY}",
            delete_patterns="data-*/*",
        )
        return str(done.commit_url)

    try:
        folder = made.path / "repository"
        thing.save(folder)
        (folder / _CARD).write_text(card, encoding="utf-8")
        return _on_the_hub(send, repo_id, token)
    finally:
        made.remove()


def from_pretrained(
    kind: type[T], repo_id: str, *, revision: str | None = None, token: str | None = None, **options: Any
) -> T:
    """Reads a model or an index from a repository, or from a folder of this name if there is one here.

    The files are downloaded once for each commit, to HF_ASSETS_CACHE, and stay there, as a mapped index needs
    them. Once they are there, no connection is needed.

    Args:
        kind: `CompresSAE` or `CompressedIndex`.
        repo_id: "name" or "owner/name", or the path of a folder.
        revision: a branch, tag or commit; the main branch by default.
        token: an access token; by default the one of HF_TOKEN or of `hf auth login`.
        **options: those of `kind.load`, such as mmap.

    Raises:
        InputError: no repository can have this name, or an option is wrong.
        FormatError: the repository holds no such thing, or a damaged one.
        BackendError: the Hub cannot be reached or refuses.
        StorageError: the disk is full or refuses.
    """
    wanted = _kind_of(kind)
    if Path(check_text(repo_id, "repo_id")).is_dir():
        return kind.load(repo_id, **options)
    _check_name(repo_id)

    def fetch(api: HfApi) -> Path:
        # Its place in the Hub's cache says which commit the revision is now. The others must be of the same.
        commit = Path(api.hf_hub_download(repo_id, _MANIFEST, revision=revision)).parent.name
        folder = cached_assets_path(LIBRARY, namespace=repo_id, subfolder=commit)
        _download(api, repo_id, [_MANIFEST], commit, folder)
        _download(api, repo_id, data_files(folder, wanted), commit, folder)
        return folder

    return kind.load(_on_the_hub(fetch, repo_id, token), **options)


def model_card(
    thing: CompresSAE | CompressedIndex,
    repo_id: str,
    *,
    report: ModelReport | None = None,
    licence: str | None = None,
) -> str:
    """The card that `push_to_hub` writes, in Markdown with a header in YAML; arguments are those of it."""
    is_index = isinstance(thing, CompressedIndex)
    tags = [LIBRARY, "sparse-autoencoder", "embeddings", *(["vector-search"] if is_index else [])]
    header = ModelCardData(library_name=LIBRARY, license=licence, tags=tags).to_yaml()
    name = "CompressedIndex" if is_index else "CompresSAE"
    parts = [
        f"---\n{header}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        _about_index(thing) if isinstance(thing, CompressedIndex) else _about_model(thing),
        f"```python\nfrom compressae_index import {name}\n"
        "from compressae_index.connectors.hub import from_pretrained\n\n"
        f'{"index" if is_index else "model"} = from_pretrained({name}, "{repo_id}")\n```',
    ]
    if report is not None:
        title = f"## The model on {report.rows:,} vectors"
        parts += [title, f"```text\n{report.as_text()}\n```"]
    if isinstance(thing, CompressedIndex) and thing.frontier is not None:
        rows = [
            (f"{point.recall:.3f}", point.candidates, point.query_nnz, point.refine)
            for point in thing.frontier.points
        ]
        parts += [
            "## Recall\n\nrecall@10 of rows of the index, each searched for among the others.",
            _table(("recall@10", "candidates", "query_nnz", "refine"), rows),
        ]
    return "\n\n".join(parts) + "\n"


def _about_model(model: CompresSAE) -> str:
    facts: list[tuple[str, Any]] = [
        ("dimensions", model.dim),
        ("latents", model.n_latents),
        ("nonzeros a code", model.k),
    ]
    facts += [("subtracts a mean", "no" if model.mean is None else "yes"), ("fingerprint", model.fingerprint)]
    return "A sparse dictionary for embeddings (CompresSAE).\n\n" + _table(("", "model"), facts)


def _about_index(index: CompressedIndex) -> str:
    stats = index.stats()
    facts: list[tuple[str, Any]] = [("vectors", f"{stats.vectors:,}"), ("dimensions", stats.dim)]
    facts += [("similarity", stats.metric), ("latents", stats.n_latents), ("nonzeros a code", stats.k)]
    facts += [("residual bits a dimension", stats.residual_bits)]
    facts += [(f"bytes a vector, {part}", f"{size:.1f}") for part, size in stats.bytes_per_vector.items()]
    facts += [("bytes a vector on disk", f"{stats.disk_bytes_per_vector:.1f}")]
    facts += [("fingerprint of the model", index.model.fingerprint)]
    return "Embeddings as sparse codes, to be searched (CompressedIndex).\n\n" + _table(("", "index"), facts)


def _table(names: tuple[str, ...], rows: list[Any]) -> str:
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _kind_of(kind: Any) -> str:
    if kind not in _KINDS:
        msg = f"the Hub takes a CompresSAE or a CompressedIndex, got {getattr(kind, '__name__', kind)!s:.100}"
        raise InputError(msg)
    return _KINDS[kind]


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        msg = f"{repo_id!r:.100} is no name of a repository: {error}"
        raise InputError(msg) from error


def _check_pushable(thing: CompresSAE | CompressedIndex) -> None:
    kept = thing.documents.backend.originals if isinstance(thing, CompressedIndex) else None
    if kept is not None and kept.manifest()["references"]:
        msg = (
            "the index refers to a file of original vectors, which others do not have: build it with "
            "originals='float16', or load it with originals=False"
        )
        raise InputError(msg)


def _check_replaced(api: HfApi, repo_id: str, kind: str, revision: str | None, folder: Path) -> None:
    """Checks that a repository holds nothing of ours, or something of this kind, as `save` does of a folder.

    Raises:
        FormatError: it does not.
    """
    if api.file_exists(repo_id, _MANIFEST, revision=revision):
        api.hf_hub_download(repo_id, _MANIFEST, revision=revision, local_dir=folder)
        data_files(folder, kind)


def _download(api: HfApi, repo_id: str, names: list[str], commit: str, folder: Path) -> None:
    """Downloads files that are not there yet; as files and not as links, which `load` would refuse."""
    for name in names:
        api.hf_hub_download(repo_id, name, revision=commit, local_dir=folder)


def _on_the_hub(act: Callable[[HfApi], R], repo_id: str, token: str | None) -> R:
    """Does something with the Hub, whose errors become ours."""
    try:
        return act(HfApi(token=token, library_name=LIBRARY))
    except CompressaeError:
        raise
    except Exception as error:
        failure = _failure(error, repo_id, token)
    raise failure  # outside of the block: the Hub's error, which may hold the token, is not its context


def _failure(error: Exception, repo_id: str, token: str | None) -> CompressaeError:
    """An error of the Hub in words, without the token."""
    text = redacted(" ".join(str(error).split()), [token or "", get_token() or ""], whole=True)
    if isinstance(error, RevisionNotFoundError):
        return BackendError(f"{repo_id} has no such revision: {text:.300}")
    if isinstance(error, RepositoryNotFoundError):
        return BackendError(f"{repo_id} is not on the Hub, or not for this token: {text:.300}")
    if isinstance(error, LocalEntryNotFoundError):
        return BackendError(f"{repo_id} is not in the cache, and the Hub cannot be reached: {text:.300}")
    if isinstance(error, EntryNotFoundError):
        return FormatError(f"{repo_id} lacks a file of {LIBRARY}: {text:.300}")
    if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError) and error.errno == errno.ENOSPC:
        return StorageError(error.errno, f"files of {repo_id} cannot be written: {text:.300}")
    return BackendError(f"the Hub refuses, or cannot be reached, for {repo_id}: {text:.300}")
