"""The demo as a page of this machine: a box over the shipped texts, modes side by side, matches explained."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.demo import DemoData, Say, load_data
from compressae_index.demo.lookup import Lookup
from compressae_index.errors import InputError
from compressae_index.index import CompressedIndex
from compressae_index.persistence import check_target

HOST = "127.0.0.1"
# Documents of a mode, latents of an explanation, texts of the list below the box, characters of a question.
SHOWN, LATENTS, OFFERED, LONGEST = 5, 4, 8, 2000
MODES = ("two_stage", "dense", "sparse")


class Answer(NamedTuple):
    """What one way to search found for a text."""

    name: str
    bytes_per_vector: float
    milliseconds: float
    rows: list[int]
    scores: list[float]


class Collection:
    """The shipped texts, those that are held out behind the others, and an index of the former."""

    def __init__(self, index: CompressedIndex, data: DemoData) -> None:
        self.index, self.data = index, data
        self.texts = [*data.texts, *data.query_texts]
        self.lookup = Lookup(self.texts)

    def is_held_out(self, number: int) -> bool:
        """Whether a text is not in the index."""
        return number >= len(self.data.texts)

    def vector(self, number: int) -> FloatArray:
        """The vector of a text, (d,)."""
        rows, first = self.data.embeddings, 0
        if self.is_held_out(number):
            rows, first = self.data.queries, len(self.data.texts)
        vector: FloatArray = rows[number - first]
        return vector

    def answers(self, number: int) -> list[Answer]:
        """The documents nearest to a text, without itself, by exact search and by each mode."""
        query, k = self.vector(number), SHOWN + 1
        stats = self.index.stats()

        def exact() -> tuple[Any, Any]:
            scores = self.data.embeddings @ query
            best = np.argsort(-scores, kind="stable")[:k]
            return scores[best], best

        def by_mode(mode: str) -> Callable[[], tuple[Any, Any]]:
            def search() -> tuple[Any, Any]:
                found = self.index.search(query, k, mode=mode, num_threads=1)
                return found.scores[0], found.ids[0]

            return search

        ways = [("exact", 4.0 * len(query), exact)]
        ways += [(mode, stats.bytes_by_mode[mode], by_mode(mode)) for mode in MODES]
        return [_answer(name, size, number, search) for name, size, search in ways]

    def shares(self, number: int, row: int) -> list[tuple[str, float]]:
        """The largest parts of a document's score by name, and what is left of it."""
        why = self.index.explain(self.vector(number), row)
        names = why.names or ("",) * len(why.latents)
        parts = [
            (f"{name} (latent {latent})" if name else f"latent {latent}", float(share))
            for name, latent, share in zip(names, why.latents, why.contributions, strict=True)
        ]
        rest = sum(share for _, share in parts[LATENTS:])
        others = ("other latents", rest), ("mean of all", float(why.mean))
        return [*parts[:LATENTS], *others, ("what the code leaves out", float(why.residual))]


def _answer(name: str, size: float, number: int, search: Callable[[], tuple[Any, Any]]) -> Answer:
    search()  # so that no first touch of memory is timed
    started = time.perf_counter()
    scores, rows = search()
    took = 1000 * (time.perf_counter() - started)
    kept = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if 0 <= row != number]
    return Answer(name, size, took, [row for row, _ in kept[:SHOWN]], [score for _, score in kept[:SHOWN]])


def page(collection: Collection, typed: str, nonce: str) -> str:
    """The HTML of the page, with answers if something was typed. All texts in it are escaped.

    Args:
        collection: the texts and their index.
        typed: a text of the collection, or words that one of them holds.
        nonce: what the style and the script of the page are allowed by.
    """
    template = (files("compressae_index") / "data" / "demo.html").read_text(encoding="utf-8")
    stats = collection.index.stats()
    held = collection.data.query_texts[:SHOWN]
    return Template(template).substitute(
        nonce=nonce,
        typed=escape(typed),
        title=escape(f"{_shortened(typed)} - " if typed else ""),
        n=f"{len(collection.data.texts):,}",
        held_out=f"{len(collection.data.query_texts):,}",
        size=f"{stats.bytes_per_vector['total']:.0f}",
        dense=f"{4 * stats.dim:,}",
        examples="\n".join(f"<li>{_link(text)}</li>" for text in held),
        answers=_found(collection, typed) if typed else "",
    )


def _found(collection: Collection, typed: str) -> str:
    """What was taken for the question, and what each way to search finds."""
    number, others = collection.lookup.exactly(typed), collection.lookup.nearest(typed, OFFERED)
    said = ""
    if number is None:
        if not others:
            return "<h2>Nothing found</h2>\n<p>No text here holds one of these words.</p>"
        number, *others = others
        offered = "\n".join(f"<li>{_link(collection.texts[each])}</li>" for each in others)
        said = "<p>No model is here that could embed what you typed: the text nearest by words was taken."
        said += (
            f"</p>\n<details><summary>Others</summary>\n<ul>\n{offered}\n</ul></details>"
            if others
            else "</p>"
        )
    where = "held out, not in the index" if collection.is_held_out(number) else "in the index, left out below"
    answers = collection.answers(number)
    true = set(answers[0].rows)
    columns = "\n".join(_column(collection, number, answer, true) for answer in answers)
    return (
        f"<h2>Nearest to</h2>\n<blockquote><p>{escape(collection.texts[number])}</p></blockquote>\n"
        f'<p class="soft">This text is {where}.</p>\n{said}\n<div class="ways">\n{columns}\n</div>'
    )


def _column(collection: Collection, number: int, answer: Answer, true: set[int]) -> str:
    """What one way to search found."""
    name, is_exact = answer.name, answer.name == "exact"
    hits = "\n".join(
        _hit(collection, number, row, score, name, is_true=row in true)
        for row, score in zip(answer.rows, answer.scores, strict=True)
    )
    found = "" if is_exact else f", {len(true & set(answer.rows))} of the {len(true)} nearest"
    facts = f"{answer.bytes_per_vector:,.0f} bytes a vector, {answer.milliseconds:.2f} ms{found}"
    return (
        f'<section aria-labelledby="way-{name}">\n<h3 id="way-{name}">{name}</h3>\n'
        f'<p class="soft">{facts}</p>\n<ol>\n{hits}\n</ol>\n</section>'
    )


def _hit(collection: Collection, number: int, row: int, score: float, mode: str, *, is_true: bool) -> str:
    missed = "" if is_true else ' <span class="missed">not among the nearest</span>'
    text = f'{_link(collection.texts[row])} <span class="score">{score:.3f}</span>{missed}'
    if mode != "two_stage":
        return f"<li>{text}</li>"
    parts = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{share:+.3f}</td></tr>'
        for name, share in collection.shares(number, row)
    )
    head = '<tr><th scope="col">part</th><th scope="col">adds</th></tr>'
    return (
        f"<li>{text}\n<details><summary>Why</summary>\n<table>\n<thead>{head}</thead>\n"
        f"<tbody>\n{parts}\n</tbody>\n</table></details></li>"
    )


def _link(text: str) -> str:
    return f'<a href="/?q={escape(quote(text, safe=""))}">{escape(text)}</a>'


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


class Server(ThreadingHTTPServer):
    """Serves one collection to this machine alone.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, collection: Collection, port: int) -> None:
        self.collection, self.nonce = collection, secrets.token_urlsafe(16)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    """Two addresses and no file: nothing that is asked for becomes a path."""

    server: Server
    server_version, sys_version, timeout = "compressae-index", "", 10

    def do_GET(self) -> None:
        """The page, or the texts for the list below its box."""
        # A page of elsewhere may have its name lead to this machine.
        if self.headers.get("Host") not in {
            f"{name}:{self.server.server_port}" for name in (HOST, "localhost")
        }:
            self._send(403, "text/plain", "This page is for this machine.")
            return
        asked = urlsplit(self.path)
        typed = parse_qs(asked.query, max_num_fields=4).get("q", [""])[0].strip() if asked.query else ""
        if len(typed) > LONGEST:
            self._send(414, "text/plain", f"A question has at most {LONGEST} characters.")
        elif asked.path == "/":
            self._send(200, "text/html", page(self.server.collection, typed, self.server.nonce))
        elif asked.path == "/texts":
            collection = self.server.collection
            offered = [collection.texts[number] for number in collection.lookup.nearest(typed, OFFERED)]
            self._send(200, "application/json", json.dumps(offered))
        else:
            self._send(404, "text/plain", "There is no such page.")

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        nonce = f"'nonce-{self.server.nonce}'"
        allowed = (
            f"default-src 'none'; style-src {nonce}; script-src {nonce}; connect-src 'self'; img-src data:"
        )
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", f"{allowed}; form-action 'self'; frame-ancestors 'none'")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing is logged."""


def collected(output: Path | None, say: Say) -> Collection:
    """The shipped texts and an index of them: that of `output` if one is there, else a new one.

    Raises:
        InputError: the index in `output` is not one of the shipped texts.
    """
    data = load_data()
    path = None if output is None else output / "index"
    if path is not None and (path / "manifest.json").exists():
        index = CompressedIndex.load(path)
        if (len(index), index.model.dim) != data.embeddings.shape:
            msg = f"{path} holds {len(index)} vectors of {index.model.dim} dimensions, not the shipped texts"
            raise InputError(msg)
        if index.labels is None:
            index.label_latents(data.texts)
    else:
        if path is not None:
            check_target(path, "index")
        say(f"building an index of {len(data.texts):,} texts, which takes a minute or less")
        index = CompressedIndex.build(data.embeddings, progress=False)
        index.label_latents(data.texts)
        if path is not None:
            index.save(path)
    return Collection(index, data)


def serve(output: Path | None, port: int, say: Say) -> None:
    """Serves the demo until Ctrl-C.

    Args:
        output: directory that keeps the index; none by default.
        port: a port of this machine; 0 for a free one.
        say: prints a line.

    Raises:
        InputError: as for `collected`.
        OSError: the port is taken.
    """
    with Server(collected(output, say), port) as server:
        say(f"{server.address} (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
