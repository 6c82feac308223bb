"""Second stage: scores of texts, each asked for once, kept as they come; what failed is asked again next time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from monet.eval.store import ExampleStore
from monet.eval.toxicity.scorers import Failure, Score, Scorer


@dataclass
class Scores:
    """Scores of texts.

    A text without a visible character is never sent: there is nothing in it that could be toxic, and its score is 0 by
    definition.

    Args:
        values: by text, 0 to 1.
        failures: texts without a score, and why.
    """

    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def of(self, text: str) -> float | None:
        """The score of a text; None where the scorer gave none."""
        return self.values.get(text) if is_said(text) else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Number of texts without a score, by reason."""
        return dict(Counter(failure.reason for failure in self.failures.values()).most_common())


def is_said(text: str) -> bool:
    """Whether a text holds a visible character."""
    return bool(text.strip())


def score_texts(
    texts: Iterable[str],
    scorer: Scorer,
    folder: str | os.PathLike[str],
    advance: Callable[[int], object] = lambda _: None,
) -> Scores:
    """Scores of all texts, from the folder where they are kept and from the scorer where not.

    Failures are not kept. Once the scorer as a whole is down, nothing more is asked.

    Args:
        texts: may repeat.
        scorer: asked once for each text.
        folder: for kept scores; may be shared by runs that use one scorer one after the other.
        advance: called with the number of texts done since the last call, repeats included.
    """
    listed = list(texts)
    count = Counter(listed)
    found = Scores()
    with ExampleStore(folder, {"stage": "scores", "scorer": scorer.key}) as store:
        queue: list[str] = []
        for text, times in count.items():
            name = _name(text)
            if not is_said(text):
                advance(times)
            elif name in store:
                found.values[text] = store[name]
                advance(times)
            else:
                queue.append(text)
        for start in range(0, len(queue), scorer.at_once):
            asked = queue[start : start + scorer.at_once]
            for text, outcome in zip(asked, scorer.score(asked), strict=True):
                if isinstance(outcome, Score):
                    store.put(_name(text), outcome.value)
                    found.values[text] = outcome.value
                else:
                    found.failures[text] = outcome
                advance(count[text])
            down = next((found.failures[text] for text in asked if _is_down(found, text)), None)
            if down is not None:
                rest = queue[start + len(asked) :]
                found.failures.update((text, Failure("not asked", down.reason, down=True)) for text in rest)
                break
    return found


def _is_down(found: Scores, text: str) -> bool:
    return text in found.failures and found.failures[text].down


def _name(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
