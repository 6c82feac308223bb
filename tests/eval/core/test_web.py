"""The client of JSON services: slow and cut answers, addresses, keys. tests/eval/scorers has its rate and repeats."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from monet.errors import ConfigError
from monet.eval.core.web import Fault, Limits, Service, check_url, key_of, seconds


@pytest.fixture
def talker():
    """A server that sends pieces of an answer, each after a pause; `pieces` is what it sends."""
    pieces: list[tuple[float, bytes]] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                for pause, piece in pieces:
                    time.sleep(pause)
                    try:
                        connection.sendall(piece)
                    except OSError:
                        break
                with contextlib.suppress(OSError):  # unread bytes of the request would reset the connection
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield pieces, f"http://127.0.0.1:{listener.getsockname()[1]}/"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0.0, HEAD), (0.0, b'["whole"] ')], ["whole"]),
        ([(0.0, HEAD), (0.0, b'["cut"')], Fault("unreachable", "IncompleteRead")),
        ([(0.0, HEAD), *[(0.4, b" ")] * 10], Fault("unreachable", "TimeoutError")),
        ([(0.0, b"nonsense\r\n\r\n")], Fault("unreachable", "BadStatusLine")),
    ],
)
def test_slow_and_cut_answers(talker, pieces, expected):
    sent, url = talker
    sent += pieces
    service = Service(url, {}, Limits(1000.0, attempts=1, timeout_seconds=1.5), lambda answer: answer)
    started = time.monotonic()
    assert service.ask([{}]) == [expected]
    assert time.monotonic() - started < 30


def test_outcomes_are_reported_as_they_come(talker):
    sent, url = talker
    sent += [(0.0, HEAD), (0.0, b'["whole"] ')]
    found = []
    Service(url, {}, Limits(1000.0), lambda answer: answer[0]).ask(
        [1, 2], lambda place, one: found.append((place, one))
    )
    assert sorted(found) == [(0, "whole"), (1, "whole")]


@pytest.mark.parametrize("url", ["http://example.org/", "https://a:b@example.org/", "ftp://x/", "", "http://[::1"])
def test_addresses_that_must_not_get_a_key(url):
    with pytest.raises(ConfigError, match=r"^option"):
        check_url(url, "option")
    check_url("http://[::1]:8000/v1", "option")


def test_keys_and_waits(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " k ")
    assert key_of("SOME_KEY") == "k" and key_of("NO_SUCH_KEY") == ""
    monkeypatch.setenv("SOME_KEY", "secret\nline")
    with pytest.raises(ConfigError, match="SOME_KEY holds a line break") as caught:
        key_of("SOME_KEY")
    assert "secret" not in str(caught.value)
    assert [seconds(text) for text in ("3", "x", None, "nan", "-1", "inf")] == [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
