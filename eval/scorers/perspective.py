"""Scores texts with the Perspective API over HTTP, within a quota, and retries after faults of the service.

Google ends the service on 31 December 2026. The address of another server with the same interface can be given.
"""

from __future__ import annotations

import datetime
import http.client
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monet.errors import ConfigError
from monet.eval.scorers.scorers import Failure, Outcome, Score, ScorerSettings

KEY_VARIABLE = "PERSPECTIVE_API_KEY"
LAST_DAY = datetime.date(2026, 12, 31)
HOST = urllib.parse.urlsplit(ScorerSettings.url).hostname
_INSTEAD = "score with --scorer.kind classifier --scorer.model MODEL --scorer.label LABEL, or with --scorer.kind words"
_MOST_THREADS = 32
_LONGEST_WAIT = 120.0
_MISSES_UNTIL_DOWN = 3
_LONGEST_ANSWER = 1 << 20
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, OSError)  # a time-out is an OSError


def key_from_environment() -> str:
    """Read the key of the Perspective API from the environment.

    Raises:
        ConfigError: the variable is not set or holds an impossible key.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {KEY_VARIABLE} holds a line break or another character that keys do not have; set it again"
        )
    if not key:
        raise ConfigError(
            f"the Perspective API needs a key in the environment variable {KEY_VARIABLE}, but Google gives no new "
            f"keys, and the last day of the service is {LAST_DAY}; {_INSTEAD}"
        )
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is only for the named server. A redirect therefore counts as an answer without a score."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check_url(url: str) -> None:
    """Refuse an address that must not get the key: only https, and http to this machine, are allowed.

    Raises:
        ConfigError: the address is refused; the message names it.
    """
    try:
        scheme, host = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(url).hostname
    except ValueError:
        scheme, host = "", None
    if not host or not (scheme == "https" or (scheme == "http" and host in _THIS_MACHINE)):
        raise ConfigError(
            f"scorer.url {url!r} must begin with https:// (http:// for localhost only), because the key is sent to it"
        )


def has_ended(today: datetime.date | None = None) -> bool:
    """Whether Google's service has ended; `today` None takes today's date in UTC."""
    return (today or datetime.datetime.now(datetime.timezone.utc).date()) > LAST_DAY


def end_notice(url: str) -> str:
    """Notice about the end of Google's service, with the remedy; empty for another server."""
    if urllib.parse.urlsplit(url).hostname != HOST:
        return ""
    return f"the Perspective API {'ended' if has_ended() else 'ends'} on {LAST_DAY}; {_INSTEAD}"


class _Pace:
    """Gives starting times that are at least an interval apart."""

    def __init__(self, per_second: float) -> None:
        self.interval = 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, cancelled: threading.Event) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self.interval
        cancelled.wait(max(0.0, start - time.monotonic()))


class PerspectiveScorer:
    """Probability that readers find a text toxic, by the Perspective API.

    A request is sent again after a full quota (429), a fault of the service (5xx), a failed connection or an answer
    that is not JSON. The wait before it doubles each time, or is the one that the service names. A text that fails
    every time becomes a `Failure`. After three unanswered texts in a row the service counts as down, and the other
    texts of the call are not sent. Once Google's service has ended, its errors name the scorers that replace it.

    Args:
        api_key: key, sent in a header; no message and no result holds it.
        url: address of the service.
        attribute: name of the score, e.g. TOXICITY or SEVERE_TOXICITY.
        language: language of the texts.
        requests_per_second: at most this many requests start per second, over all threads.
        attempts: how often one text is sent at most.
        timeout_seconds: time limit for one answer.
        first_wait_seconds: wait before the second attempt.

    Raises:
        ConfigError: the address is neither https nor http to this machine.
    """

    def __init__(
        self,
        api_key: str,
        *,
        url: str = ScorerSettings.url,
        attribute: str = "TOXICITY",
        language: str = "en",
        requests_per_second: float = 1.0,
        attempts: int = 6,
        timeout_seconds: float = 30.0,
        first_wait_seconds: float = 1.0,
    ) -> None:
        check_url(url)
        proxies = {"https": proxy} if (proxy := urllib.request.getproxies().get("https")) else {}
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler(proxies))
        self._api_key = api_key
        self.url = url
        self.attribute = attribute
        self.language = language
        self.attempts = attempts
        self.timeout_seconds = timeout_seconds
        self.first_wait_seconds = first_wait_seconds
        self.pace = _Pace(requests_per_second)
        self._lock = threading.Lock()
        self._misses = 0  # number of texts in a row that got no answer
        # An answer takes a large part of a second, so this number of threads keeps up with the quota.
        self._threads = min(_MOST_THREADS, max(1, math.ceil(requests_per_second)))

    @property
    def key(self) -> dict[str, Any]:
        return {"kind": "perspective", "url": self.url, "attribute": self.attribute, "language": self.language}

    @property
    def at_once(self) -> int:
        return 4 * self._threads

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """Return one outcome per text.

        Raises:
            ConfigError: the service refuses the key, or has ended.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(self._one, text, stop) for text in texts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()  # an interrupt must not wait for retries
                raise

    def _one(self, text: str, stop: threading.Event) -> Outcome:
        failure = Failure("not asked", "the service did not answer before", down=True)
        for attempt in range(self.attempts):
            self.pace.wait(stop)
            if stop.is_set():
                return failure
            outcome, wait_seconds = self._attempt(text)
            if isinstance(outcome, Score) or wait_seconds is None:
                with self._lock:
                    self._misses = 0
                return outcome
            failure = outcome
            if attempt + 1 < self.attempts:
                doubled = self.first_wait_seconds * 2**attempt * random.uniform(0.75, 1.25)
                stop.wait(min(_LONGEST_WAIT, max(doubled, wait_seconds)))
        with self._lock:
            self._misses += 1
            down = self._misses >= _MISSES_UNTIL_DOWN
        if down:
            stop.set()
        ended = f"; {end_notice(self.url)}" if has_ended() and end_notice(self.url) else ""
        return Failure(failure.reason, failure.detail + ended, down)

    def _attempt(self, text: str) -> tuple[Outcome, float | None]:
        """An outcome, and the minimum wait in seconds before another attempt; None if another would be useless."""
        body = {
            "comment": {"text": text},
            "requestedAttributes": {self.attribute: {}},
            "languages": [self.language],
            "doNotStore": True,
        }
        request = urllib.request.Request(
            self.url,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "X-Goog-Api-Key": self._api_key},
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=self.timeout_seconds) as answer:
                content = answer.read(_LONGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error)
        except _UNREACHABLE as error:
            return Failure("unreachable", type(getattr(error, "reason", error)).__name__), 0.0
        try:
            return self._read(json.loads(content))
        except (ValueError, RecursionError):
            return Failure("nonsense", "the answer is no JSON"), 0.0

    def _refusal(self, error: urllib.error.HTTPError) -> tuple[Outcome, float | None]:
        notice = end_notice(self.url) if has_ended() else ""
        if notice and error.code in (401, 403, 404, 410):
            raise ConfigError(f"{HOST} answers with status {error.code}: {notice}. Finished scores are kept")
        if error.code in (401, 403):
            raise ConfigError(
                f"{urllib.parse.urlsplit(self.url).hostname} refuses the key of {KEY_VARIABLE} (status {error.code}); "
                "check the key, and that the API is enabled for it. Finished scores are kept"
            )
        if error.code == 429:
            return Failure("rate limited", "status 429"), _seconds(error.headers.get("Retry-After"))
        if error.code >= 500:
            return Failure("server error", f"status {error.code}"), _seconds(error.headers.get("Retry-After"))
        return Failure("refused", f"status {error.code} {_error_type(error)}".strip()), None

    def _read(self, answer: Any) -> tuple[Outcome, float | None]:
        try:
            value = answer["attributeScores"][self.attribute]["summaryScore"]["value"]
        except (KeyError, TypeError, IndexError):
            return Failure("no score", f"the answer holds no {self.attribute}"), None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            return Failure("no score", f"the answer's {self.attribute} is {str(value)[:40]!r}"), None
        return Score(float(value)), None


def _seconds(header: str | None) -> float:
    """Seconds of a Retry-After header that holds a number; dates are ignored."""
    try:
        seconds = float(header or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _error_type(error: urllib.error.HTTPError) -> str:
    """Reason why a text was refused, e.g. LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE."""
    try:
        details = json.loads(error.read(1 << 16))["error"]["details"]
        return str(next(detail["errorType"] for detail in details if "errorType" in detail))[:60]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, StopIteration, http.client.HTTPException):
        return ""
