"""Asks a JSON service on the web: within a rate, with repeats after faults, and with a key that goes nowhere else.

A request is sent again after a full quota (429), a fault of the service (5xx), a failed connection, a time-out or an
answer that cannot be read. The wait before it doubles each time, or is the one that the service names. Redirects are
not followed, since the key is only for the named server.
"""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from monet.errors import ConfigError
from monet.json_text import parse_json

LONGEST_WAIT = 120.0
MISSES_UNTIL_DOWN = 3
LONGEST_ANSWER = 1 << 20
MOST_THREADS = 32
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, OSError)  # a time-out is an OSError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Fault:
    """Why a request has no answer.

    Attributes:
        reason: short text that faults are counted by, such as "rate limited".
        detail: description for people; it holds no key.
        again: another attempt may help.
        wait: least number of seconds before it.
        down: the service as a whole does not answer.
    """

    reason: str
    detail: str = ""
    again: bool = False
    wait: float = 0.0
    down: bool = False


@dataclass(frozen=True)
class Limits:
    """How a service is asked.

    Attributes:
        requests_per_second: at most this many requests start a second, over all threads.
        attempts: how often one request is sent at most.
        timeout_seconds: time limit for one answer.
        first_wait_seconds: wait before the second attempt.
        threads: requests that run at once; None takes as many as a second may start.
    """

    requests_per_second: float = 1.0
    attempts: int = 6
    timeout_seconds: float = 30.0
    first_wait_seconds: float = 1.0
    threads: int | None = None

    @property
    def at_once(self) -> int:
        """Number of threads."""
        # An answer takes a large part of a second, so one thread for each request of a second keeps up with the rate.
        return min(MOST_THREADS, max(1, self.threads or math.ceil(self.requests_per_second)))


def key_of(variable: str) -> str:
    """A key from the environment; "" if the variable is not set.

    Raises:
        ConfigError: the key holds a line break or another character that keys do not have.
    """
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {variable} holds a line break or another character that keys do not have; set it again"
        )
    return key


def check_url(url: str, option: str) -> None:
    """Refuse an address that must not get a key: only https, and http to this machine, are allowed.

    Args:
        url: the address.
        option: name of the option, for the message.

    Raises:
        ConfigError: the address is refused; the message names it.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, user = parts.scheme, parts.hostname, parts.username or parts.password
    except ValueError:
        scheme, host, user = "", None, None
    if user:
        raise ConfigError(f"{option}: leave user and password out of the address; keys come from the environment")
    if not host or not (scheme == "https" or (scheme == "http" and host in _THIS_MACHINE)):
        raise ConfigError(
            f"{option} {url!r} must begin with https:// (http:// for localhost only), because the key is sent to it"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect counts as an answer without content."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


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


class Service(Generic[Found]):
    """A service that takes JSON and answers with JSON.

    After three unanswered requests in a row the service counts as down, and the other requests of a call are not sent.

    Args:
        url: address.
        headers: headers with the key; no message holds them.
        limits: rate, attempts and times.
        read: from the parsed answer, what was found, or a fault.
        refused: from the error of a refusing answer, a fault; it may raise. None: another attempt does not help.

    Attributes:
        limits: the same.
        pace: when the next request may start.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        limits: Limits,
        read: Callable[[Any], Found | Fault],
        refused: Callable[[urllib.error.HTTPError], Fault] | None = None,
    ) -> None:
        proxies = {"https": proxy} if (proxy := urllib.request.getproxies().get("https")) else {}
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler(proxies))
        self._url, self._headers, self._read, self._refused = url, headers, read, refused
        self.limits = limits
        self.pace = _Pace(limits.requests_per_second)
        self._lock = threading.Lock()
        self._misses = 0  # number of requests in a row that got no answer

    def ask(self, bodies: Sequence[Any], found: Callable[[int, Found | Fault], None] | None = None) -> list[Any]:
        """Send requests; what was found or a fault for each, in order.

        Args:
            bodies: JSON-able content of each request.
            found: called with the place of a request and its outcome as soon as it is there, by one thread at a time.

        Raises:
            ConfigError: `refused` raised it.
        """
        stop = threading.Event()

        def one(place: int, body: Any) -> Found | Fault:
            outcome = self._one(body, stop)
            if found is not None:
                with self._lock:
                    found(place, outcome)
            return outcome

        with ThreadPoolExecutor(self.limits.at_once) as pool:
            futures = [pool.submit(one, place, body) for place, body in enumerate(bodies)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()  # an interrupt must not wait for repeats
                raise

    def _one(self, body: Any, stop: threading.Event) -> Found | Fault:
        fault = Fault("not asked", "the service did not answer before", down=True)
        for attempt in range(self.limits.attempts):
            self.pace.wait(stop)
            if stop.is_set():
                return fault
            outcome = self._attempt(body)
            if not isinstance(outcome, Fault) or not outcome.again:
                with self._lock:
                    self._misses = 0
                return outcome
            fault = outcome
            if attempt + 1 < self.limits.attempts:
                doubled = self.limits.first_wait_seconds * 2**attempt * random.uniform(0.75, 1.25)
                stop.wait(min(LONGEST_WAIT, max(doubled, fault.wait)))
        with self._lock:
            self._misses += 1
            down = self._misses >= MISSES_UNTIL_DOWN
        if down:
            stop.set()
        return Fault(fault.reason, fault.detail, down=down)

    def _attempt(self, body: Any) -> Found | Fault:
        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.limits.timeout_seconds) as answer:
                content = _content(answer, time.monotonic() + self.limits.timeout_seconds)
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error)
        except _UNREACHABLE as error:
            return Fault("unreachable", type(getattr(error, "reason", error)).__name__, again=True)
        try:
            return self._read(parse_json(content, "the answer"))
        except (ValueError, RecursionError):
            return Fault("nonsense", "the answer is no JSON", again=True)

    def _refusal(self, error: urllib.error.HTTPError) -> Fault:
        if error.code == 429:
            return Fault("rate limited", "status 429", True, seconds(error.headers.get("Retry-After")))
        if error.code >= 500:
            return Fault("server error", f"status {error.code}", True, seconds(error.headers.get("Retry-After")))
        return Fault("refused", f"status {error.code}") if self._refused is None else self._refused(error)


def _content(answer: Any, end: float) -> bytes:
    """The answer, up to `LONGEST_ANSWER` bytes; one that comes too slowly is a time-out."""
    content = b""
    while len(content) < LONGEST_ANSWER:
        piece = answer.read1(1 << 16)
        if not piece:
            if answer.length:  # the connection ended before the promised length
                raise http.client.IncompleteRead(b"", answer.length)
            break
        content += piece
        if time.monotonic() > end:
            raise TimeoutError
    return content


def seconds(header: str | None) -> float:
    """Seconds of a Retry-After header that holds a number; dates are ignored."""
    try:
        found = float(header or 0.0)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0
