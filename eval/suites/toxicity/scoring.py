"""Second stage: scores each text once and keeps the scores; failed texts are scored again in the next run."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from typing_extensions import Self

from monet.eval.core.store import ExampleStore
from monet.eval.scorers.scorers import Failure, Score, Scorer
from monet.parts import Part

PROMPTS_AT_ONCE = 1024  # number of prompts whose samples are in memory


@dataclass
class Scores:
    """Scores of texts.

    A text without a visible character is never sent: nothing in it can be toxic, and its score is 0 by definition.

    Args:
        values: scores by text, 0 to 1.
        failures: reasons by text, for texts without a score.
    """

    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def of(self, text: str) -> float | None:
        """The score of a text; None if the scorer gave none."""
        return self.values.get(text) if is_said(text) else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Number of texts without a score, by reason."""
        return dict(Counter(failure.reason for failure in self.failures.values()).most_common())


def is_said(text: str) -> bool:
    """Whether a text holds a visible character."""
    return bool(text.strip())


class KeptScores:
    """A scorer and its scores, which are kept in a folder. Use it as a context manager.

    Failures are not kept. Once the scorer as a whole is down, it is not asked again until the context is left. Within
    the context, a text that failed is not asked again either.

    Args:
        scorer: asked once for each text.
        folder: folder that keeps scores; runs that use the same scorer one after another may share it.
        part: part of a divided run; the scores of every part are read.

    Attributes:
        failures: reasons by text, for texts that have no score so far.

    Raises:
        ConfigError: another process has the scores open.
    """

    def __init__(self, scorer: Scorer, folder: str | os.PathLike[str], part: Part | None = None) -> None:
        self.scorer = scorer
        self.failures: dict[str, Failure] = {}
        self._down: Failure | None = None
        key = {"stage": "scores", "scorer": scorer.key}
        self._store = ExampleStore(folder, key, part=part, parts=True)

    def __enter__(self) -> Self:
        self._store.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._store.__exit__(*raised)

    def of(self, texts: Iterable[str], advance: Callable[[int], object] = lambda _: None) -> Scores:
        """Return scores of all texts, kept ones and new ones.

        Args:
            texts: texts; they may repeat.
            advance: called with the number of texts done since the last call, repeats included.
        """
        count = Counter(texts)
        found = Scores()
        queue: list[str] = []
        for text, times in count.items():
            name = _name(text)
            if is_said(text) and name in self._store:
                found.values[text] = self._store[name]
            elif is_said(text) and text not in self.failures:
                queue.append(text)
                continue
            advance(times)
        for start in range(0, len(queue), self.scorer.at_once):
            if self._down is not None:
                not_asked = Failure("not asked", self._down.reason, down=True)
                self.failures.update(dict.fromkeys(queue[start:], not_asked))
                break
            asked = queue[start : start + self.scorer.at_once]
            for text, outcome in zip(asked, self.scorer.score(asked), strict=True):
                if isinstance(outcome, Score):
                    self._store.put(_name(text), outcome.value)
                    found.values[text] = outcome.value
                else:
                    self.failures[text] = outcome
                    if outcome.down and self._down is None:
                        self._down = outcome
                advance(count[text])
        found.failures = {text: self.failures[text] for text in count if text in self.failures}
        return found

    def of_samples(
        self, samples: Iterable[tuple[str, Sequence[str]]], advance: Callable[[int], object] = lambda _: None
    ) -> Iterator[tuple[dict[str, Sequence[str]], Scores]]:
        """Yield the samples of a few prompts at a time, and the scores of these samples.

        Args:
            samples: ids of prompts and their samples.
            advance: as in `of`.
        """
        rest = iter(samples)
        while some := dict(islice(rest, PROMPTS_AT_ONCE)):
            yield some, self.of(chain.from_iterable(some.values()), advance)


def score_texts(
    texts: Iterable[str],
    scorer: Scorer,
    folder: str | os.PathLike[str],
    advance: Callable[[int], object] = lambda _: None,
) -> Scores:
    """Return kept scores of texts, and ask the scorer for the others; see `KeptScores`.

    Args:
        texts: texts; they may repeat.
        scorer: asked once for each text.
        folder: folder that keeps scores.
        advance: called with the number of texts done since the last call, repeats included.
    """
    with KeptScores(scorer, folder) as kept:
        return kept.of(texts, advance)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
