"""A small index whose tokens, labels and documents are hostile, and a client of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from monet.eval.core.inputs import LabelledSequences
from monet.eval.index.build import Wanted, build
from monet.eval.index.index import Index
from monet.eval.index.tokens import TokenTexts
from monet.eval.view.api import application
from monet.eval.view.live import Live
from monet.eval.view.store import Store
from tests.eval.index.conftest import make_data, make_model

TOKEN = "secret-word"
ORIGIN = "http://127.0.0.1:8765"
HOSTILE = [
    "<script>window.bad=1</script>",
    "<img src=x onerror=window.bad=1>",
    "\u202eevil",
    "nul\x00",
    "\ud800",
    "\n",
    "\t",
    " ",
    "",
    "</script>",
    "`${window.bad=1}`",
    "\u2028",
    "'\"&amp;",
    "javascript:window.bad=1",
    "\x1b[31m",
    "日本",
    "🙂\u200d",
]
LABELS = ["left", "<b>middle</b>", "right\u202e"]
EXPLAINED = "Explained as <script>window.bad=1</script>"


class HostileTexts(TokenTexts):
    """Each token is a hostile text; a typed text has one token for each character."""

    def text_of(self, token: int) -> str:
        return HOSTILE[token] if token < len(HOSTILE) else f"t{token}"

    def texts(self, ids):
        return [self.text(token) for token in ids]

    def encode(self, text: str) -> list[int]:
        return [ord(char) % 24 for char in text]


@pytest.fixture(scope="session")
def view_model():
    return make_model()


@pytest.fixture(scope="session")
def view_folder(view_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "index"
    data = make_data()
    data = LabelledSequences(
        LABELS, data.sequences, [n * 3 // 40 for n in range(40)], documents=[f"<i>{n}" for n in range(40)]
    )
    build(view_model, data, folder, wanted=Wanted(top=4), progress=False)
    return folder


def busiest(store: Store) -> str:
    """Name of the expert with the most firings."""
    from monet.eval.view.query import Query

    return store.browse(Query(sort="count"), 0, 1)["rows"][0]["name"]


@pytest.fixture
def store(view_model, view_folder, tmp_path) -> Store:
    return make_store(view_model, view_folder, tmp_path)


def make_store(model, folder: Path, out: Path, **options) -> Store:
    index = Index(folder, model)
    index.texts = HostileTexts()
    return Store(index, out=out / "masks", **options)


@pytest.fixture
def client(store, view_model) -> TestClient:
    """A client that sends what the page sends."""
    return TestClient(application(store, Live(view_model, store), TOKEN), base_url=ORIGIN, headers={"Origin": ORIGIN})


def get(client: TestClient, path: str, status: int = 200, **params):
    """The content of an answer to a GET request."""
    found = client.get(f"/{TOKEN}/api/{path}", params=params)
    assert found.status_code == status, found.text
    return json.loads(found.content)


def post(client: TestClient, path: str, body=None, status: int = 200):
    """The content of an answer to a POST request."""
    found = client.post(f"/{TOKEN}/api/{path}", json={} if body is None else body)
    assert found.status_code == status, found.text
    return json.loads(found.content)
