"""Attacks on the server: other hosts, other origins, large bodies, other paths."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from monet.eval.view import limits
from monet.eval.view.api import application
from monet.eval.view.guard import is_local
from tests.eval.view.conftest import ORIGIN, TOKEN

INFO, SAVE = f"/{TOKEN}/api/info", f"/{TOKEN}/api/masks"


@pytest.fixture
def bare(store):
    return TestClient(application(store, None, TOKEN), base_url=ORIGIN, follow_redirects=False)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "127.0.0.1@evil.example",
        "",
        "[::1",
        "127.0.0.1:8765:1",
        "0.0.0.0:8765",
        "169.254.1.1",
    ],
)
def test_other_hosts_are_refused(bare, host):
    assert bare.get(INFO, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:1", "[::1]:9", "LOCALHOST"])
def test_names_of_this_machine_are_local(bare, host):
    assert is_local(host) and bare.get(INFO, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/info", "/wrong/api/info", f"/{TOKEN}x/api/info", "//api/info"])
def test_nothing_is_served_without_the_token(bare, path):
    found = bare.get(ORIGIN + path)
    assert found.status_code == 403 and TOKEN not in found.text and "monet view" in found.text


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "http://127.0.0.1:9999",
        "http://127.0.0.1:8765.evil.example",
        "file://",
        "https://127.0.0.1",
    ],
)
def test_requests_from_other_origins_change_nothing(bare, store, origin):
    headers = {} if origin is None else {"Origin": origin}
    body = {"name": "x", "label": "left", "collection": {"add": ["0:1"]}}
    assert bare.post(SAVE, json=body, headers=headers).status_code == 403
    assert not store.masks.out.exists()
    assert bare.post(SAVE, json=body, headers={"Origin": ORIGIN}).status_code == 200
    assert store.masks.out.exists()


def test_a_form_of_another_site_is_refused(bare):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert bare.post(SAVE, content="{}", headers={"Origin": ORIGIN, "Content-Type": kind}).status_code == 415
    for site in ("cross-site", "same-site"):
        assert bare.get(INFO, headers={"Sec-Fetch-Site": site}).status_code == 403
        shown = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert bare.get(INFO, headers=shown).status_code == 403
        assert bare.get(f"/{TOKEN}/", headers={**shown, "Sec-Fetch-Dest": "iframe"}).status_code == 403
        assert bare.get(f"/{TOKEN}/", headers=shown).status_code == 200


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_refused(bare, method):
    found = bare.request(method, INFO, headers={"Origin": ORIGIN})
    assert found.status_code == 405 and "access-control-allow-origin" not in found.headers


def test_a_get_request_changes_nothing(bare):
    assert bare.get(SAVE).status_code in (404, 405)
    assert bare.get(f"/{TOKEN}/api/prompt").status_code in (404, 405)


def test_bodies_are_bounded(bare):
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    large = b" " * (limits.BODY + 1)
    assert bare.post(SAVE, content=large, headers=headers).status_code == 413
    chunks = (b" " * 4096 for _ in range(limits.BODY // 4096 + 2))  # without a length
    assert bare.post(SAVE, content=chunks, headers=headers).status_code == 413
    assert bare.post(f"/{TOKEN}/api/continue", content=iter([large]), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b"\xff\xfe", b'{"name": 1}', b'{"strange": 1}', b"null", b'"\\ud800"', b"9" * 200]
)
def test_bad_bodies_are_errors_for_people(bare, body):
    found = bare.post(SAVE, content=body, headers={"Origin": ORIGIN, "Content-Type": "application/json"})
    assert found.status_code == 400 and json.loads(found.content)["error"]


@pytest.mark.parametrize(
    "name", ["../guard.py", "..%2fguard.py", "%2e%2e/guard.py", "../../../../etc/passwd", "page/", "index.html%00"]
)
def test_only_the_files_of_the_page_are_served(bare, name):
    assert bare.get(f"/{TOKEN}/{name}").status_code in (403, 404)
    assert bare.get(f"/{TOKEN}/main.js").status_code == 200


def test_every_answer_has_the_headers(bare):
    for path in (f"/{TOKEN}/", INFO, f"/{TOKEN}/style.css", f"/{TOKEN}/absent", "/"):
        headers = bare.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_the_page_has_no_inline_code(bare):
    text = bare.get(f"/{TOKEN}/").text
    assert '<script type="module" src="main.js"></script>' in text
    assert " on" not in text.replace(" only", "") and "style=" not in text and "http" not in text
