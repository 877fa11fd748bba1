"""The part of the Hugging Face Hub's HTTP interface that this package uses, with files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SECRETsecretSECRETsecretSECRETsecret"


class HubServer(ThreadingHTTPServer):
    """Repositories by name, each a list of commits, each a dict of contents by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(repo, [])
        oid = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits.append((oid, files))
        return oid

    def files(self, repo: str) -> dict[str, bytes]:
        """Of the last commit."""
        return self.repositories[repo][-1][1]


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._seen()
        if found := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/(\w+)/(.+)", path):
            commit = self._commit(found[1], found[2])
            if commit is None:
                return
            oid, files = commit
            if found[3] not in files:
                self._refuse(404, "EntryNotFound")
                return
            etag = f'"{hashlib.sha1(files[found[3]]).hexdigest()}"'
            self._answer(files[found[3]], {"X-Repo-Commit": oid, "ETag": etag})
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)/tree/(\w+)/?", path):
            commit = self._commit(found[1], found[2])
            if commit is not None:
                listed = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in commit[1].items()
                ]
                self._answer(json.dumps(listed).encode())
        else:
            self._refuse(404, "")

    def do_POST(self) -> None:
        path = self._seen()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            # A server that repeats what it should not.
            self._refuse(401, "", f"bad credentials {self.headers.get('Authorization')}")
        elif path == "/api/validate-yaml":
            self._answer(b"{}")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.server.repositories
            if not known:
                self.server.commit(name, {".gitattributes": b""})
            content = json.dumps({"url": f"{self.server.url}/{name}"}).encode()
            self._answer(content, status=409 if known else 200)
        elif re.fullmatch(r"/api/models/.+/preupload/main", path):
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer(json.dumps({"files": modes}).encode())
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = dict(self.server.files(found[1]))
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            oid = self.server.commit(found[1], files)
            url = f"{self.server.url}/{found[1]}/commit/{oid}"
            self._answer(json.dumps({"commitUrl": url, "commitOid": oid}).encode())
        else:
            self._refuse(404, "")

    def _seen(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _commit(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if self.server.broken:
            self._refuse(500, "")
            return None
        commits = self.server.repositories.get(repo)
        if commits is None:
            self._refuse(401, "RepoNotFound")
            return None
        for commit in commits[::-1]:
            if revision in ("main", commit[0]):
                return commit
        self._refuse(404, "RevisionNotFound")
        return None

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._answer(json.dumps({"error": message}).encode(), headers, status)

    def _answer(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
