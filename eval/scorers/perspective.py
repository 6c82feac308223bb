"""Scores of the Perspective API over HTTP: in step with a quota, patient with a service that stumbles.

Google ends the service on 31 December 2026. Other servers with the same interface can be named by their address.
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
    """The key of the Perspective API.

    Raises:
        ConfigError: the variable is not set.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in {KEY_VARIABLE} holds a line break or another sign that no key has; set it again")
    if not key:
        raise ConfigError(
            f"the Perspective API needs a key in the environment variable {KEY_VARIABLE}, Google gives no new ones, "
            f"and the last day of the service is {LAST_DAY}; {_INSTEAD}"
        )
    return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the named server only: a redirect is an answer like any other that holds no score."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check_url(url: str) -> None:
    """Refuse an address that the key must not be sent to: anything but https, and http to this machine.

    Raises:
        ConfigError: names the address.
    """
    try:
        scheme, host = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(url).hostname
    except ValueError:
        scheme, host = "", None
    if not host or not (scheme == "https" or (scheme == "http" and host in _THIS_MACHINE)):
        raise ConfigError(
            f"scorer.url {url!r} must begin with https:// (http:// for localhost only): the key goes there"
        )


def has_ended(today: datetime.date | None = None) -> bool:
    """Whether the last day of Google's service is over; None takes today's date in UTC."""
    return (today or datetime.datetime.now(datetime.timezone.utc).date()) > LAST_DAY


def end_notice(url: str) -> str:
    """What a user of Google's service must know about its end, and the remedy; empty for another server."""
    if urllib.parse.urlsplit(url).hostname != HOST:
        return ""
    return f"the Perspective API {'ended' if has_ended() else 'ends'} on {LAST_DAY}; {_INSTEAD}"


class _Pace:
    """Hands out starting times that are at least an interval apart."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, cancelled: threading.Event) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._interval
        cancelled.wait(max(0.0, start - time.monotonic()))


class PerspectiveScorer:
    """Probability that readers find a text toxic, by the Perspective API.

    A request that meets a full quota (429), a fault of the service (5xx), no connection or no JSON is sent again after
    a wait that doubles each time, or that the service names. A text that fails for good becomes a `Failure`; after
    three in a row that got no answer the service counts as down, and the other texts of the call are not sent. Once
    Google's service has ended, its errors name the scorers that take its place.

    Args:
        api_key: sent in a header; part of no message and no result.
        url: of the service.
        attribute: name of the score, e.g. TOXICITY or SEVERE_TOXICITY.
        language: of the texts.
        requests_per_second: at most so many requests start in a second, over all threads.
        attempts: times one text is sent.
        timeout_seconds: for one answer.
        first_wait_seconds: before the second attempt.

    Raises:
        ConfigError: an address other than https, or http to this machine.
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
        self._pace = _Pace(requests_per_second)
        self._lock = threading.Lock()
        self._misses = 0  # texts in a row that no attempt got an answer for
        # an answer takes a good part of a second: so many threads keep up with the quota
        self._threads = min(_MOST_THREADS, max(1, math.ceil(requests_per_second)))

    @property
    def key(self) -> dict[str, Any]:
        return {"kind": "perspective", "url": self.url, "attribute": self.attribute, "language": self.language}

    @property
    def at_once(self) -> int:
        return 4 * self._threads

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome a text.

        Raises:
            ConfigError: the service refuses the key, or has ended and is gone from its address.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(self._one, text, stop) for text in texts]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()  # so that an interrupt need not wait for retries
                raise

    def _one(self, text: str, stop: threading.Event) -> Outcome:
        failure = Failure("not asked", "the service did not answer before", down=True)
        for attempt in range(self.attempts):
            self._pace.wait(stop)
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
        """An outcome, and the least wait before another attempt in seconds; None where another makes no sense."""
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
            raise ConfigError(f"{HOST} answers with status {error.code}: {notice}. What was scored is kept")
        if error.code in (401, 403):
            raise ConfigError(
                f"{urllib.parse.urlsplit(self.url).hostname} refuses the key of {KEY_VARIABLE} (status {error.code}); "
                "check it and that the API is enabled for it. What was scored is kept"
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
    """Of a Retry-After header that holds a number; a date is not worth a parser here."""
    try:
        seconds = float(header or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _error_type(error: urllib.error.HTTPError) -> str:
    """Why a text was refused, e.g. LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE."""
    try:
        details = json.loads(error.read(1 << 16))["error"]["details"]
        return str(next(detail["errorType"] for detail in details if "errorType" in detail))[:60]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, StopIteration, http.client.HTTPException):
        return ""
