"""A chat server on this machine whose answers a test chooses."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Any  # text, or (status, headers, bytes), or "hang" or "cut"


class Chat(ThreadingHTTPServer):
    """`answer(messages, n)` gives the answer to the n-th request; `seen` has headers and bodies of all requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[list[dict[str, str]], int], Answer]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    def handle_error(self, request, client_address) -> None:
        """A client that hung up is part of the tests; nothing is printed."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((dict(self.headers), body))
        if self.path == "/v1/embeddings":
            answer = self.server.answer(body["input"], len(self.server.seen))
        else:
            answer = self.server.answer(body["messages"], len(self.server.seen))
        if answer == "hang":
            time.sleep(4.0)
            return
        if isinstance(answer, str):
            answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
        status, headers, content = answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@contextmanager
def serving(answer: Callable[[list[dict[str, str]], int], Answer]) -> Iterator[Chat]:
    server = Chat(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shown(messages: list[dict[str, str]]) -> tuple[str, list[str]]:
    """The explanation and the excerpts of a prompt."""
    text = messages[-1]["content"]
    explanation = re.search(r"^Explanation: (.*)$", text, re.MULTILINE)
    excerpts = re.findall(r'^Example \d+: ("(?:[^"\\]|\\.)*")', text, re.MULTILINE)
    return json.loads(explanation[1]) if explanation else "", [json.loads(one) for one in excerpts]


def labels_of(text: str) -> set[int]:
    """Labels of the tokens in an excerpt of the planted index: token n of label n // 4 is shown as `[n]`."""
    return {int(number) // 4 for number in re.findall(r"\[(\d+)\]", text)}


def truth(messages: list[dict[str, str]], _: int) -> str:
    """A reader who knows the planted rule: explains by the label's number, and judges by it."""
    explanation, excerpts = shown(messages)
    system = messages[0]["content"]
    if "[EXPLANATION]" in system:
        marked = re.findall(r"<<\[(\d+)\]>>", "".join(excerpts))
        return f"They are alike.\n[EXPLANATION]: tokens of label {int(marked[0]) // 4}"
    if "[RESPONSE]" in system:
        marks = [int(re.findall(r"<<\[(\d+)\]>>", text)[0]) // 4 for text in excerpts]
        return f"[RESPONSE]: {[marks.count(one) for one in marks].index(1) + 1}"
    wanted = [int(number) for number in re.findall(r"label (\d)", explanation)]
    return f"I looked.\n[{', '.join(str(int(bool(labels_of(text) & set(wanted)))) for text in excerpts)}]"
