"""Makes the scorer that the settings choose."""

from __future__ import annotations

import sys

from monet.errors import ConfigError
from monet.eval.scorers.scorers import Scorer, ScorerSettings


def make_scorer(settings: ScorerSettings) -> Scorer:
    """Make the scorer that the settings choose. For Google's Perspective API, warn that the service ends.

    Raises:
        ConfigError: a setting that the scorer needs is missing, or there is no key for the Perspective API.
        CheckpointError: the folder or hub name holds no usable classifier.
    """
    if settings.kind == "words":
        from monet.eval.scorers.words import WordsScorer

        return WordsScorer()
    if settings.kind == "classifier":
        from monet.eval.scorers.classifier import ClassifierScorer

        if settings.model is None:
            raise ConfigError("scorer.kind classifier needs scorer.model, a folder or a name on the hub")
        return ClassifierScorer(
            settings.model,
            label=settings.label,
            revision=settings.revision,
            batch_size=settings.batch_size,
            device=settings.device,
        )
    from monet.eval.scorers.perspective import PerspectiveScorer, end_notice, key_from_environment

    key = key_from_environment()
    if notice := end_notice(settings.url):
        print(f"monet: warning: {notice}", file=sys.stderr)
    return PerspectiveScorer(
        key,
        url=settings.url,
        attribute=settings.attribute,
        language=settings.language,
        requests_per_second=settings.requests_per_second,
        attempts=settings.attempts,
        timeout_seconds=settings.timeout_seconds,
    )
