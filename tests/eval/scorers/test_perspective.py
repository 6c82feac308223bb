"""The client of the Perspective API, with a server on this machine that behaves like the service."""

import datetime
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from monet.errors import ConfigError
from monet.eval.scorers import perspective
from monet.eval.scorers.choose import make_scorer
from monet.eval.scorers.perspective import PerspectiveScorer
from monet.eval.scorers.scorers import Failure, Score, ScorerSettings

SECRET = "a-key-that-nobody-may-see"


class Service(ThreadingHTTPServer):
    """Answers by `script`: text -> actions at its first, second, ... request; afterwards a score."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, list] = {}
        self.requests: list[tuple[float, str, dict, dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1alpha1/comments:analyze"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["comment"]["text"]
        self.server.requests.append((time.monotonic(), text, body, dict(self.headers)))
        todo = self.server.script.get(text, [])
        answer = (
            todo.pop(0) if todo else {"attributeScores": {"TOXICITY": {"summaryScore": {"value": len(text) / 100}}}}
        )
        if answer == "hang up":
            self.connection.close()
            return
        if answer == "sleep":
            time.sleep(1.0)
        status, headers, content = answer if isinstance(answer, tuple) else (200, {}, answer)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def service():
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def scorer(service, **changes):
    given = {"requests_per_second": 200.0, "first_wait_seconds": 0.01, "attempts": 4, "timeout_seconds": 0.5}
    return PerspectiveScorer(SECRET, url=service.url, **{**given, **changes})


BUSY = (429, {}, {"error": {"code": 429}})


def test_scores_come_in_order_and_the_key_in_a_header(service):
    texts = ["a" * n for n in range(1, 60)]
    asked = scorer(service)
    assert asked.score(texts) == [Score(n / 100) for n in range(1, 60)]
    *_, body, headers = service.requests[0]
    assert body["requestedAttributes"] == {"TOXICITY": {}} and body["languages"] == ["en"] and body["doNotStore"]
    assert headers["X-Goog-Api-Key"] == SECRET
    assert SECRET not in json.dumps(asked.key) and SECRET not in repr(vars(service).get("requests", [])[0][2])


def test_a_quota_is_kept_over_all_threads(service):
    asked = scorer(service, requests_per_second=40.0)
    asked.score([f"text {n}" for n in range(20)])
    times = sorted(when for when, *_ in service.requests)
    assert times[-1] - times[0] >= 19 / 40 - 0.05


def test_what_stumbles_is_asked_again(service):
    service.script = {
        "busy": [BUSY, (429, {"Retry-After": "0.3"}, b"")],
        "faulty": [(500, {}, b"oops"), (503, {}, b"")],
        "nonsense": [b"<html>maintenance</html>", b""],
        "gone": ["hang up"],
        "slow": ["sleep"],
    }
    texts = list(service.script)
    assert scorer(service).score(texts) == [Score(len(text) / 100) for text in texts]
    when = [moment for moment, text, *_ in service.requests if text == "busy"]
    assert len(when) == 3 and when[2] - when[1] >= 0.3


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ({"attributeScores": {}}, Failure("no score", "the answer holds no TOXICITY")),
        ([], Failure("no score", "the answer holds no TOXICITY")),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": "high"}}}},
         Failure("no score", "the answer's TOXICITY is 'high'")),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": 1.2}}}},
         Failure("no score", "the answer's TOXICITY is '1.2'")),
        (b'{"attributeScores": {"TOXICITY": {"summaryScore": {"value": NaN}}}}',
         Failure("no score", "the answer's TOXICITY is 'nan'")),
        ({"attributeScores": {"TOXICITY": {"summaryScore": {"value": True}}}},
         Failure("no score", "the answer's TOXICITY is 'True'")),
        ((400, {}, {"error": {"details": [{"errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}]}}),
         Failure("refused", "status 400 LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE")),
        ((404, {}, b"not here"), Failure("refused", "status 404")),
    ],
)  # fmt: skip
def test_an_answer_without_a_score_is_no_number_and_not_asked_again(service, answer, failure):
    service.script = {"this": [answer]}
    assert scorer(service).score(["before", "this", "after"]) == [Score(0.06), failure, Score(0.05)]
    assert [text for _, text, *_ in service.requests].count("this") == 1


def test_one_text_that_always_fails_stops_nothing(service):
    service.script = {"poison": [(500, {}, b"")] * 100, "fool": [b"<html>"] * 100}
    found = scorer(service, requests_per_second=1.0, first_wait_seconds=0.001, attempts=2)
    found.pace.interval = 0.0  # one thread, no waiting
    outcomes = found.score(["poison", "a", "fool", "b"])
    assert outcomes[1] == outcomes[3] == Score(0.01)
    assert outcomes[::2] == [Failure("server error", "status 500"), Failure("nonsense", "the answer is no JSON")]


def test_a_service_that_is_down_is_left_alone(service):
    texts = [f"text {n}" for n in range(50)]
    service.script = {text: [BUSY] * 100 for text in texts}
    asked = scorer(service, attempts=2)
    outcomes = asked.score(texts)
    assert all(isinstance(outcome, Failure) for outcome in outcomes) and any(outcome.down for outcome in outcomes)
    assert {outcome.reason for outcome in outcomes} <= {"rate limited", "not asked"}
    assert len(service.requests) < 2 * 50
    service.script = {}
    assert asked.score(["back"]) == [Score(0.04)]


def test_nothing_listens():
    asked = PerspectiveScorer(SECRET, url="http://127.0.0.1:9/none", attempts=2, first_wait_seconds=0.001,
                              requests_per_second=1000)  # fmt: skip
    first, *rest = asked.score(["a", "b", "c", "d", "e"])
    assert first.reason == "unreachable" and "refused" in first.detail.lower()
    assert SECRET not in repr([first, *rest])


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_run_and_is_not_told(service, status):
    service.script = {"x": [(status, {}, {"error": {"message": f"bad key {SECRET}"}})]}
    with pytest.raises(ConfigError, match=f"refuses the key of PERSPECTIVE_API_KEY .status {status}") as caught:
        scorer(service).score(["x"] * 5)
    assert SECRET not in str(caught.value)


def test_the_key_is_asked_for(monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"needs a key in the environment variable PERSPECTIVE_API_KEY.*classifier"):
        make_scorer(ScorerSettings(kind="perspective"))
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    assert SECRET not in json.dumps(make_scorer(ScorerSettings(kind="perspective")).key)
    with pytest.raises(ConfigError, match=r"scorer.requests_per_second must be more than 0, got 0"):
        ScorerSettings(kind="perspective", requests_per_second=0)


def test_the_service_ends_with_its_last_day():
    assert not perspective.has_ended(datetime.date(2026, 12, 31)) and perspective.has_ended(datetime.date(2027, 1, 1))


@pytest.mark.parametrize(("ended", "verb"), [(False, "ends"), (True, "ended")])
def test_a_warning_tells_the_date_of_the_end(capsys, monkeypatch, ended, verb):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    monkeypatch.setattr(perspective, "has_ended", lambda: ended)
    make_scorer(ScorerSettings(kind="perspective"))
    warning = capsys.readouterr().err
    assert f"monet: warning: the Perspective API {verb} on 2026-12-31; score with --scorer.kind classifier" in warning
    make_scorer(ScorerSettings(kind="perspective", url="https://toxicity.example.org/analyze"))
    assert not capsys.readouterr().err, "another server does not end"


def test_errors_after_the_end_name_the_classifier(service, monkeypatch):
    monkeypatch.setattr(perspective, "HOST", "127.0.0.1")
    service.script = {"gone": [(404, {}, b"")] * 2, "key": [(403, {}, b"")] * 2, "faulty": [(503, {}, b"")] * 2}
    asked = scorer(service, attempts=1)
    monkeypatch.setattr(perspective, "has_ended", lambda: False)
    assert asked.score(["gone"]) == [Failure("refused", "status 404")]
    assert asked.score(["faulty"]) == [Failure("server error", "status 503")]
    with pytest.raises(ConfigError, match="refuses the key of PERSPECTIVE_API_KEY"):
        asked.score(["key"])
    monkeypatch.setattr(perspective, "has_ended", lambda: True)
    for text in ("gone", "key"):
        with pytest.raises(ConfigError, match=r"ended on 2026-12-31; score with --scorer\.kind classifier.* are kept"):
            asked.score([text])
    (outcome,) = asked.score(["faulty"])
    assert isinstance(outcome, Failure) and "--scorer.kind classifier" in outcome.detail
    assert asked.score(["fine"]) == [Score(0.04)]


def test_the_key_follows_no_redirect(service):
    with_trap = Service()
    thread = threading.Thread(target=with_trap.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        service.script = {"x": [(302, {"Location": with_trap.url}, b""), (307, {"Location": with_trap.url}, b"")]}
        asked = scorer(service)
        assert asked.score(["x"]) == [Failure("refused", "status 302")]
        assert asked.score(["x"]) == [Failure("refused", "status 307")]
        assert not with_trap.requests
    finally:
        with_trap.shutdown()
        with_trap.server_close()
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["http://example.org/analyze", "http://127.0.0.1.example.org/", "file:///etc/passwd", "ftp://x/", "", "https://"],
)
def test_the_key_goes_over_https_only(url):
    with pytest.raises(ConfigError, match="must begin with https://"):
        PerspectiveScorer(SECRET, url=url)


def test_the_key_does_not_go_to_a_proxy_in_clear(service, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert scorer(service, attempts=1).score(["fine"]) == [Score(0.04)]


def test_a_key_with_a_line_break_is_not_told(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", f"{SECRET}\nmore")
    with pytest.raises(ConfigError, match="PERSPECTIVE_API_KEY holds a line break") as caught:
        make_scorer(ScorerSettings(kind="perspective"))
    assert SECRET not in str(caught.value)


def test_an_answer_without_bound_or_bottom(service):
    service.script = {"deep": [b"[" * 200_000] * 4, "long": [b'{"a": "' + b"x" * (8 << 20) + b'"}'] * 4}
    reasons = {outcome.reason for outcome in scorer(service, attempts=2).score(["deep", "long"])}
    assert reasons == {"nonsense"}
