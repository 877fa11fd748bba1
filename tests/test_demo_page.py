"""The page of `demo --serve`: over plain HTTP and in a browser, whole in itself and deaf to tricks."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest
from click.testing import CliRunner
from test_evaluation_page import Page

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.cli import main
from compressae_index.demo import DemoData
from compressae_index.demo.lookup import Lookup
from compressae_index.demo.server import SHOWN, Collection, Server, collected
from compressae_index.errors import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

N = 600
NASTY = """<script>alert('1')</script> & "quotes" $nonce"""


@pytest.fixture(scope="module")
def collection(demo_data: DemoData, model: CompresSAE) -> Collection:
    """Few of the texts, one of which is dangerous."""
    few = DemoData(
        demo_data.embeddings[:N],
        demo_data.queries[:20],
        [NASTY, *demo_data.texts[1:N]],
        demo_data.query_texts[:20],
    )
    index = CompressedIndex.build(few.embeddings, model=model, k=8, residual_bits=4, progress=False)
    return Collection(index, few)


@pytest.fixture(scope="module")
def server(collection: Collection) -> Iterator[Server]:
    with Server(collection, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: Server, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    reply = connection.getresponse()
    told = reply.status, dict(reply.getheaders()), reply.read().decode()
    connection.close()
    return told


def of_text(server: Server, text: str) -> Page:
    status, _, body = ask(server, "/?q=" + quote(text))
    assert status == 200
    return Page(body)


def test_it_listens_to_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
        assert ask(server, "/", host=host)[0] == 403
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../pyproject.toml",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/./",
        "/texts/",
        "/%00",
        "/demo.html",
    ],
)
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    status, _, body = ask(server, path)
    assert (status, body) == (404, "There is no such page.")


def test_other_requests_are_refused(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501
    assert ask(server, "/?q=" + "a" * 2001)[0] == 414
    status, headers, body = ask(server, "/", "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_what_is_allowed_is_said(server: Server) -> None:
    _, headers, body = ask(server, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    nonces = set(re.findall(r'nonce="([^"]+)"', body))
    assert nonces == {server.nonce}
    assert policy.count(f"'nonce-{server.nonce}'") == 2
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in headers["Server"]


def test_the_page_is_valid_and_links_to_itself_alone(server: Server, collection: Collection) -> None:
    page = of_text(server, collection.data.query_texts[0])
    targets = [value for name, value in page.attributes if name in ("href", "src", "action")]
    assert {target for target in targets if not target.startswith("/?q=")} == {"data:,", "/"}
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {"main", "h1", "label", "form", "ol", "details"} <= set(page.tags)
    assert "No model is shipped" in page.text


def test_answers_are_those_of_the_index(server: Server, collection: Collection) -> None:
    """A held-out text, and one of the index, which is not among its own neighbours."""
    for number in (N + 3, 17):
        query = collection.vector(number)
        answers = {answer.name: answer for answer in collection.answers(number)}
        assert list(answers) == ["exact", "two_stage", "dense", "sparse"]
        scores = collection.data.embeddings @ query
        exact = [row for row in np.argsort(-scores, kind="stable") if row != number][:SHOWN]
        assert answers["exact"].rows == exact
        for mode in ("two_stage", "dense", "sparse"):
            found = collection.index.search(query, SHOWN + 1, mode=mode).ids[0]
            assert answers[mode].rows == [row for row in found if row != number][:SHOWN]
        page = of_text(server, collection.texts[number])
        for answer in answers.values():
            for row, score in zip(answer.rows, answer.scores, strict=True):
                assert collection.texts[row] in page.text
                assert f"{score:.3f}" in page.text
        missed = sum(len(set(answer.rows) - set(exact)) for answer in answers.values())
        assert page.text.count("not among the nearest") == missed
        assert ("held out, not in the index" in page.text) == (number >= N)


def test_the_parts_of_a_match_add_up(collection: Collection) -> None:
    answer = collection.answers(N)[1]
    for row, score in zip(answer.rows, answer.scores, strict=True):
        shares = collection.shares(N, row)
        assert len(shares) == 7
        why = collection.index.explain(collection.vector(N), row)
        assert sum(share for _, share in shares) == pytest.approx(why.score, abs=1e-5)
        assert why.score == pytest.approx(score, abs=2e-3)
        assert all(re.fullmatch(r"latent \d+", name) for name, _ in shares[:4])


def test_names_of_latents_are_shown(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    why = collection.index.explain(collection.vector(N), 5)

    named = why._replace(names=tuple(f"topic {latent}" for latent in why.latents))
    monkeypatch.setattr(collection.index, "explain", lambda *_: named)
    assert collection.shares(N, 5)[0][0] == f"topic {why.latents[0]} (latent {why.latents[0]})"


def test_texts_are_escaped(server: Server) -> None:
    for typed in (NASTY, f"x{NASTY}", "<b>bold</b>", '" onfocus=alert(1) x="', "${nonce}"):
        body = ask(server, "/?q=" + quote(typed))[2]
        assert Page(body).tags.count("script") == 1
        assert f'value="{escape(typed)}"' in body
        assert "<b>" not in body
    assert NASTY in of_text(server, NASTY).text


def test_typed_words_become_a_text(server: Server, collection: Collection) -> None:
    page = of_text(server, "animal")
    taken = collection.lookup.nearest("animal", 1)[0]
    assert "the text nearest by words was taken" in page.text
    assert collection.texts[taken] in page.text
    assert "animal" in collection.texts[taken]
    assert "No text here holds one of these words" in of_text(server, "qqqqq").text
    assert "Nearest to" not in Page(ask(server, "/")[2]).text


def test_texts_are_offered_by_their_words(server: Server) -> None:
    texts = ["red apple", "red apricot tree", "green apple pie", "blue sky"]
    lookup = Lookup(texts)
    assert lookup.nearest("apple red", 4) == [0, 2, 1]
    assert lookup.nearest("red ap", 4)[0] == 0
    assert lookup.nearest("ap", 4) == [0, 2, 1]
    assert lookup.nearest("app tree", 2) == [1]
    assert lookup.nearest("", 2) == []
    assert (lookup.exactly("blue sky"), lookup.exactly("blue")) == (3, None)
    status, headers, body = ask(server, "/texts?q=anim")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert all("anim" in text.lower() for text in json.loads(body))
    assert 0 < len(json.loads(body)) <= 8


def test_an_index_is_kept_and_taken_again(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.demo.server.load_data", lambda: collection.data)
    collection.index.save(tmp_path / "index")
    taken = collected(tmp_path, print)
    assert taken.index.labels
    assert taken.answers(N)[1].rows == collection.answers(N)[1].rows
    collection.index.empty_like().save(tmp_path / "index")
    with pytest.raises(InputError, match="holds 0 vectors of 384 dimensions, not the shipped texts"):
        collected(tmp_path, print)


def test_the_command_serves_until_it_is_ended(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.demo.server.load_data", lambda: collection.data)
    collection.index.save(tmp_path / "index")

    def end(_: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", end)
    result = CliRunner().invoke(main, ["demo", "--serve", "--port", "0", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends\)\nended\n", result.output)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["demo", "--serve", "--port", port, "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "in use" in result.stderr


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_searches(server: Server, collection: Collection, browser: Browser, width: int) -> None:
    from playwright.sync_api import expect

    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    page.get_by_label("A text, or words of one").press_sequentially("anim")
    offered = [collection.texts[each] for each in collection.lookup.nearest("anim", 8)]
    assert offered
    options = page.locator("#texts option")
    for place, text in enumerate(offered):  # as soon as the last letter is answered
        expect(options.nth(place)).to_have_attribute("value", text)
    expect(options).to_have_count(len(offered))
    page.get_by_label("A text, or words of one").fill(offered[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#way-sparse")
    assert page.locator("blockquote").inner_text() == offered[0]
    assert page.locator(".ways section").count() == 4
    page.get_by_text("Why").first.click()
    assert "what the code leaves out" in page.locator("details[open]").inner_text()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.goto(server.address + "?q=" + quote(NASTY))
    assert page.locator("blockquote").inner_text() == NASTY
    assert said == []
    assert all(url.startswith(server.address) for url in asked)
    page.close()
