"""Servers that answer with the truth, at random, and badly; keys; restarts."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from monet.errors import ConfigError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.explain.explain import explain
from monet.eval.explain.explainers import TokensExplainer
from monet.eval.explain.records import EXPLANATIONS, SCORES, Explanation
from monet.eval.explain.result import result_of
from monet.eval.explain.score import Scored, score
from monet.eval.explain.server import (
    KEY_VARIABLE,
    Server,
    ServerEmbedder,
    ServerExplainer,
    ServerJudge,
    ServerOptions,
)
from tests.eval.explain.chat import Chat, serving, shown, truth

SECRET = "a-key-that-nobody-may-see"
BOOTSTRAP = Bootstrap(resamples=1000)


def connect(chat: Chat | str, folder, run="r", **changes) -> Server:
    given = {"requests_per_second": 400.0, "attempts": 3, "timeout_seconds": 60.0, **changes}
    url = chat if isinstance(chat, str) else chat.url
    return Server(ServerOptions(base_url=url, server_model="m", **given), folder, run, first_wait_seconds=0.01)


def scored_by(chat, index, model, units, scorer="detection", known=None, name="s", limits=None, **options):
    known = known_to(index, units) if known is None else known
    with connect(chat, index.folder / "answers", **(limits or {})) as server:
        who = (None, ServerEmbedder(server)) if scorer == "embedding" else (ServerJudge(server), None)
        scored = Scored(scorer, *who, known, {"explainer": "server"})
        return score(
            index, model, units, scored, name, around=2, bootstrap=BOOTSTRAP, progress=False, **options
        )  # fmt: skip


def known_to(index, units) -> dict[tuple[int, int], Explanation]:
    lines = explain(index, units, TokensExplainer(), "e", progress=False)
    return {(one.group, one.unit): replace(one, explanation=f"tokens of label {one.i}") for one in lines}


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_truth_explains_and_scores_one(planted, planted_model, units):
    with serving(truth) as chat:
        with connect(chat, planted.folder / "answers") as server:
            lines = explain(planted, units, ServerExplainer(server), "server", progress=False)
        assert [one.explanation for one in lines] == [f"tokens of label {unit.i}" for unit in units]
        assert all(one.model == "m" and one.explainer == "server" and not one.failed for one in lines)
        known = {(one.group, one.unit): one for one in lines}
        for scorer in ("detection", "fuzzing", "intruder"):
            explanations = {} if scorer == "intruder" else known
            for line in scored_by(chat, planted, planted_model, units, scorer, explanations, scorer):
                assert line.score == 1.0 and line.failed == 0 and line.judge == "server"
                assert scorer == "intruder" or (line.control_permuted <= 0.5 and line.control_empty == 0.5)


def test_a_coin_scores_one_half(planted, planted_model, units):
    def coin(messages, _):
        return str([random.Random(text).randint(0, 1) for text in shown(messages)[1]])

    with serving(coin) as chat:
        lines = scored_by(chat, planted, planted_model, units)
    result = result_of("s", lines, BOOTSTRAP, {})
    assert result.items == 48 and result.failed == 0
    for line in lines:
        assert line.interval[0] <= 0.5 <= line.interval[1]
    assert abs(result.score.value - 0.5) < 3 * 0.5 / 48**0.5


def test_unreadable_answers_are_wrong_and_counted(planted, planted_model, units):
    bad = ["[1, 0", "yes", "[1, 0, 1, 1, 0, 1, 0]", "[]", {"choices": []}, {"choices": [{"message": {}}]}]
    with serving(lambda _, n: bad[n % len(bad)]) as chat:
        lines = scored_by(chat, planted, planted_model, units)
    assert all(line.score == 0.0 and line.failed == line.n == 16 for line in lines)
    assert result_of("s", lines, BOOTSTRAP, {}).failed == 48


def test_a_server_that_stumbles_is_asked_again(planted, planted_model, units):
    faults = [
        (429, {"Retry-After": "0.05"}, b""), (500, {}, b"oops"), (200, {}, b'{"choices": [{"mess'), "hang",
        (200, {"Content-Length": "900"}, b'{"choices"'),
    ]  # fmt: skip
    stumbled: set[str] = set()

    def answer(messages, n):
        text = messages[-1]["content"]
        if text in stumbled or n % 3:
            return truth(messages, n)
        stumbled.add(text)
        return faults[len(stumbled) % len(faults)]

    with serving(answer) as chat:
        lines = scored_by(chat, planted, planted_model, units, limits={"timeout_seconds": 1.5, "attempts": 9})
    assert len(stumbled) > 5 and all(line.score == 1.0 and line.failed == 0 for line in lines)


@pytest.mark.parametrize("answer", [(500, {}, b""), (429, {}, b""), (200, {}, b"{"), "hang"])
def test_a_server_that_is_down_ends_the_run_and_writes_no_line(planted, planted_model, units, answer):
    known = known_to(planted, units)
    with serving(lambda *_: answer) as chat, pytest.raises(ConfigError, match=r"does not answer .*same command"):
        limits = {"timeout_seconds": 1.5, "attempts": 1}
        scored_by(chat, planted, planted_model, units, known=known, limits=limits)
    path = planted.folder / SCORES / "s.jsonl"
    assert path.read_bytes() == b""
    with serving(truth) as chat:
        assert all(line.score == 1.0 for line in scored_by(chat, planted, planted_model, units, known=known))


def test_a_killed_run_gives_the_same_file_and_asks_nothing_twice(planted, planted_model, units):
    known = known_to(planted, units)
    with serving(truth) as chat:
        scored_by(chat, planted, planted_model, units, known=known)
        whole = content(planted.folder / SCORES)
        requests = len(chat.seen)
        (planted.folder / SCORES / "s.jsonl").write_bytes(whole["s.jsonl"][:-20])
        scored_by(chat, planted, planted_model, units, known=known)
        assert content(planted.folder / SCORES) == whole and len(chat.seen) == requests
    assert len({json.dumps(body, sort_keys=True) for _, body in chat.seen}) == requests


def test_a_limit_of_requests_stops_and_the_same_command_continues(planted, units):
    path = planted.folder / EXPLANATIONS / "server.jsonl"
    with serving(truth) as chat:
        for most, wanted in ((2, 0), (3, 3)):
            with connect(chat, planted.folder / "answers", max_requests=most) as server:
                explainer = ServerExplainer(server)
                if most < 3:
                    with pytest.raises(ConfigError, match="max_requests 2"):
                        explain(planted, units, explainer, "server", progress=False)
                else:
                    explain(planted, units, explainer, "server", progress=False)
            assert len(path.read_text().splitlines()) == wanted


def test_the_key_is_sent_and_never_written(planted, planted_model, units, monkeypatch, capsys):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    known = known_to(planted, units)
    with serving(truth) as chat:
        scored_by(chat, planted, planted_model, units, known=known)
        assert {headers["Authorization"] for headers, _ in chat.seen} == {f"Bearer {SECRET}"}
    with serving(lambda *_: (401, {}, f"bad key {SECRET}".encode())) as chat:
        with pytest.raises(ConfigError, match=f"refuses the key of {KEY_VARIABLE} .status 401.") as caught:
            scored_by(chat, planted, planted_model, units, known=known, name="t", positives=4)
        assert SECRET not in str(caught.value)
    assert all(SECRET.encode() not in found for found in content(planted.folder).values())
    assert SECRET not in "".join(capsys.readouterr())


def test_redirects_are_not_followed(planted, planted_model, units, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with serving(truth) as trap, serving(lambda *_: (307, {"Location": trap.url}, b"")) as chat:
        lines = scored_by(chat, planted, planted_model, units)
        assert not trap.seen and all(line.failed == line.n for line in lines)


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://example.org/v1", "base_url .* must begin with https"), ("file:///x", "must begin"), ("", "must begin"),
     ("https://user:pass@example.org/v1", "leave user and password out"), (None, "needs --base_url")],
)  # fmt: skip
def test_bad_addresses_are_refused(tmp_path, url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Server(ServerOptions(base_url=url, server_model="m"), tmp_path, "r")
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_tokens", "requests_per_second", "attempts", "timeout_seconds", "max_requests"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} must be more than 0, got 0"):
        ServerOptions(**{name: 0})


def test_vectors(planted, planted_model, units, tmp_path):
    def vectors(texts, _):
        def one(text):
            labels = {int(text[-1])} if text.startswith("tokens of") else {int(n) // 4 for n in numbers(text)}
            return [float(place in labels) for place in range(3)]

        return {"data": [{"embedding": one(text)} for text in texts]}

    def numbers(text):
        return [part.split("]")[0] for part in text.split("[")[1:]]

    with serving(vectors) as chat:
        for line in scored_by(chat, planted, planted_model, units, "embedding"):
            assert line.score == 1.0 and line.control_empty == 0.5
    for bad in ({"data": []}, {"data": [{"embedding": [1.0]}]}, {"data": [{"embedding": ["x"]}] * 3}, {}):
        with serving(lambda *_, bad=bad: bad) as chat, connect(chat, tmp_path / "v") as server:
            found = ServerEmbedder(server).vectors([f"{bad}{n}" for n in range(3)])
            assert np.isnan(found).all()
