"""Embeddings, ids, models and indexes in stores: a real S3 server over HTTP, and memory:// and file://."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_source_files import WRITERS

from compressae_index.arrays import FloatArray
from compressae_index.sources import open_vectors

pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
fsspec = pytest.importorskip("fsspec")

KEY, SECRET = "AKIANOBODYSHALLSEEIT", "nor/this+secret@of:ours"


class Counted:
    """A WSGI application whose bodies are counted."""

    def __init__(self, app: Any) -> None:
        self._app, self.bytes, self.requests = app, 0, 0

    def __call__(self, environ: Any, start: Any) -> Iterator[bytes]:
        self.requests += 1
        for part in self._app(environ, start):
            self.bytes += len(part)
            yield part


class Store:
    """A bucket, and a look behind its counter."""

    def __init__(self, client: Any, counted: Counted) -> None:
        self.client, self.counted = client, counted

    def put(self, name: str, content: bytes) -> str:
        self.client.put_object(Bucket="bucket", Key=name, Body=content)
        return f"s3://bucket/{name}"

    def names(self, below: str = "") -> set[str]:
        listed = self.client.list_objects_v2(Bucket="bucket", Prefix=below)
        return {each["Key"] for each in listed.get("Contents", [])}


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    counted = server._server.app = Counted(server._server.app)
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patched.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patched.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield Store(client, counted)
        client.close()
    server.stop()


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """60 rows of 8."""
    return vectors[:60, :8].copy()


def written(tmp_path: Path, suffix: str, content: Any) -> bytes:
    path = tmp_path / f"written{suffix}"
    path.unlink(missing_ok=True)
    WRITERS[suffix](path, content)
    return path.read_bytes()


each_kind = pytest.mark.parametrize("suffix", WRITERS)


@each_kind
def test_slices_of_an_object_equal_the_array(
    s3: Store, tmp_path: Path, rows: FloatArray, suffix: str
) -> None:
    address = s3.put(f"one{suffix}", written(tmp_path, suffix, rows))
    opened = open_vectors(address)
    assert opened.shape == (60, 8)
    for begin, end in ((0, 60), (7, 8), (30, 99), (60, 60)):
        np.testing.assert_array_equal(opened[begin:end], rows[begin:end])
