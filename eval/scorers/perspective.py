"""Scores texts with the Perspective API over HTTP, within a quota, and retries after faults of the service.

Google ends the service on 31 December 2026. The address of another server with the same interface can be given.
"""

from __future__ import annotations

import datetime
import http.client
import urllib.error
import urllib.parse
from collections.abc import Sequence
from typing import Any

from monet.errors import ConfigError
from monet.eval.core import web
from monet.eval.core.web import Fault, Limits, Service
from monet.eval.scorers.scorers import Failure, Outcome, Score, ScorerSettings
from monet.json_text import parse_json

KEY_VARIABLE = "PERSPECTIVE_API_KEY"
LAST_DAY = datetime.date(2026, 12, 31)
HOST = urllib.parse.urlsplit(ScorerSettings.url).hostname
_INSTEAD = "score with --scorer.kind classifier --scorer.model MODEL --scorer.label LABEL, or with --scorer.kind words"


def key_from_environment() -> str:
    """Read the key of the Perspective API from the environment.

    Raises:
        ConfigError: the variable is not set or holds an impossible key.
    """
    key = web.key_of(KEY_VARIABLE)
    if not key:
        raise ConfigError(
            f"the Perspective API needs a key in the environment variable {KEY_VARIABLE}, but Google gives no new "
            f"keys, and the last day of the service is {LAST_DAY}; {_INSTEAD}"
        )
    return key


def has_ended(today: datetime.date | None = None) -> bool:
    """Whether Google's service has ended; `today` None takes today's date in UTC."""
    return (today or datetime.datetime.now(datetime.timezone.utc).date()) > LAST_DAY


def end_notice(url: str) -> str:
    """Notice about the end of Google's service, with the remedy; empty for another server."""
    if urllib.parse.urlsplit(url).hostname != HOST:
        return ""
    return f"the Perspective API {'ended' if has_ended() else 'ends'} on {LAST_DAY}; {_INSTEAD}"


class PerspectiveScorer:
    """Probability that readers find a text toxic, by the Perspective API.

    `monet.eval.core.web` says when a text is sent again. A text that fails every time becomes a `Failure`. Once
    Google's service has ended, its errors name the scorers that replace it.

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
        web.check_url(url, "scorer.url")
        limits = Limits(requests_per_second, attempts, timeout_seconds, first_wait_seconds)
        self._service = Service(url, {"X-Goog-Api-Key": api_key}, limits, self._read, self._refusal)
        self.url = url
        self.attribute = attribute
        self.language = language
        self.pace = self._service.pace

    @property
    def key(self) -> dict[str, Any]:
        return {"kind": "perspective", "url": self.url, "attribute": self.attribute, "language": self.language}

    @property
    def at_once(self) -> int:
        return 4 * self._service.limits.at_once

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """Return one outcome per text.

        Raises:
            ConfigError: the service refuses the key, or has ended.
        """
        bodies = [
            {
                "comment": {"text": text},
                "requestedAttributes": {self.attribute: {}},
                "languages": [self.language],
                "doNotStore": True,
            }
            for text in texts
        ]
        return [self._failure(found) if isinstance(found, Fault) else found for found in self._service.ask(bodies)]

    def _failure(self, fault: Fault) -> Failure:
        unanswered = fault.reason in ("rate limited", "server error", "unreachable", "nonsense")
        ended = f"; {end_notice(self.url)}" if unanswered and has_ended() and end_notice(self.url) else ""
        return Failure(fault.reason, fault.detail + ended, fault.down)

    def _refusal(self, error: urllib.error.HTTPError) -> Fault:
        notice = end_notice(self.url) if has_ended() else ""
        if notice and error.code in (401, 403, 404, 410):
            raise ConfigError(f"{HOST} answers with status {error.code}: {notice}. Finished scores are kept")
        if error.code in (401, 403):
            raise ConfigError(
                f"{urllib.parse.urlsplit(self.url).hostname} refuses the key of {KEY_VARIABLE} (status {error.code}); "
                "check the key, and that the API is enabled for it. Finished scores are kept"
            )
        return Fault("refused", f"status {error.code} {_error_type(error)}".strip())

    def _read(self, answer: Any) -> Score | Fault:
        try:
            value = answer["attributeScores"][self.attribute]["summaryScore"]["value"]
        except (KeyError, TypeError, IndexError):
            return Fault("no score", f"the answer holds no {self.attribute}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            return Fault("no score", f"the answer's {self.attribute} is {str(value)[:40]!r}")
        return Score(float(value))


def _error_type(error: urllib.error.HTTPError) -> str:
    """Reason why a text was refused, e.g. LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE."""
    try:
        details = parse_json(error.read(1 << 16), "the answer")["error"]["details"]
        return str(next(detail["errorType"] for detail in details if "errorType" in detail))[:60]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, StopIteration, http.client.HTTPException):
        return ""
