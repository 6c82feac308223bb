"""`monet eval toxicity-scores`: writes text with toxicity scores, which `monet stats` correlates experts with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from monet.errors import ConfigError, DataError
from monet.eval.attribution.statistics.prompt_hashes import prompt_hash
from monet.eval.core.loading import provenance_now, windows_bar
from monet.eval.scorers.choose import make_scorer
from monet.eval.scorers.scorers import Scorer, ScorerSettings
from monet.eval.suites.toxicity.prompts import Prompt, Prompts, Subset, read_prompts
from monet.eval.suites.toxicity.scoring import score_texts
from monet.files import atomic_write_json, atomic_write_text

FORMAT = "monet-scores/2"
Source = Literal["given", "scorer"]
Texts = Literal["both", "prompt", "continuation"]


class ScoredText(NamedTuple):
    """One line of the file: a text, its score from 0 to 1, its id, and the hash of its prompt."""

    id: str
    text: str
    score: float
    prompt_hash: str


def _texts(prompt: Prompt, texts: Texts) -> Iterator[tuple[str, str, float | None, str]]:
    """Name, text, given score and prompt hash of each requested text."""
    hashed = prompt_hash(prompt.text)
    if texts != "continuation":
        yield f"{prompt.id}:prompt", prompt.text, prompt.toxicity, hashed
    if texts != "prompt" and prompt.continuation and prompt.continuation.strip():
        yield f"{prompt.id}:continuation", prompt.continuation, prompt.continuation_toxicity, hashed


def scored_texts(
    prompts: Prompts,
    *,
    texts: Texts = "both",
    scorer: Scorer | None = None,
    kept_scores: Path | None = None,
    excluded: Prompts | None = None,
    progress: bool = True,
) -> tuple[list[ScoredText], dict[str, int]]:
    """Texts of a data set with their scores, and the number of texts without a score by reason.

    Args:
        prompts: prompts whose texts are scored.
        texts: prompts, their continuations, or both, each with its own score.
        scorer: scorer of the texts; None takes the scores of the data set.
        kept_scores: folder that keeps the scorer's answers.
        excluded: prompts that a model will be evaluated on; these prompts and their continuations are left out.
        progress: show a bar on standard error.

    Raises:
        ConfigError: a scorer is given without a folder.
        DataError: no text has a score.
    """
    out = {prompt.text for prompt in excluded.prompts} if excluded is not None else set()
    listed = [entry for prompt in prompts.prompts if prompt.text not in out for entry in _texts(prompt, texts)]
    left_out = Counter({"excluded": sum(prompt.text in out for prompt in prompts.prompts)})
    found: list[ScoredText] = []
    if scorer is None:
        for name, text, given, hashed in listed:
            if given is None:
                left_out["no score given"] += 1
            else:
                found.append(ScoredText(name, text, given, hashed))
    else:
        if kept_scores is None:
            raise ConfigError("a scorer needs a folder for its answers; give kept_scores")
        with windows_bar(len(listed), "scoring", progress, unit="text") as bar:
            scores = score_texts([text for _, text, *_ in listed], scorer, kept_scores, bar.update)
        for name, text, _, hashed in listed:
            value = scores.of(text)
            if value is None:
                left_out[f"scorer: {scores.failures[text].reason}"] += 1
            else:
                found.append(ScoredText(name, text, value, hashed))
    left_out = Counter({reason: count for reason, count in left_out.items() if count})
    if not found:
        hint = "; let a scorer score them (--source scorer)" if scorer is None else ""
        raise DataError(f"none of {len(listed)} texts has a score ({dict(left_out)}){hint}")
    return found, dict(left_out)


def run(
    prompts: list[Path],
    out: Path,
    source: Source = "given",
    texts: Texts = "both",
    subset: Subset = "identify",
    exclude: list[Path] | None = None,
    limit: int | None = None,
    scorer: ScorerSettings = ScorerSettings(),  # noqa: B008 - frozen, shown in --help
    kept_scores: Path | None = None,
    progress: bool = True,
) -> None:
    """Write texts with their toxicity scores, which `monet stats --scores` correlates every expert with.

    OUT holds lines of {"id", "text", "score", "prompt_hash"}; a file of the same name ending in .about.json records
    their origin. The hashes let `monet eval toxicity` check that a mask is judged on held-out prompts. Texts without a
    score are left out and counted; the same command asks the scorer for missing scores when it runs again.

    Args:
        prompts: files of prompts, as for `monet eval toxicity`.
        out: the .jsonl file to write.
        source: given takes the scores of the data set; scorer asks SCORER.
        texts: prompts, the continuations in the data set, or both, each with its own score.
        subset: identify takes the prompts that `monet eval toxicity` does not evaluate by default; evaluate and all
            include evaluated prompts, as the paper seems to do.
        exclude: files of prompts that a model will be evaluated on; these prompts and their continuations are left out.
        limit: at most this many prompts, evenly spread; if omitted, all.
        scorer: scorer of the texts, if SOURCE is scorer.
        kept_scores: folder of the scorer's answers, which runs may share; if omitted, OUT's name ending in .kept.
        progress: show a bar on standard error.

    Raises:
        ConfigError: an option is out of range, or the scorer cannot be used.
        DataError: prompts are missing or in an unknown form, or no text has a score.
    """
    read = read_prompts(prompts, subset, limit)
    excluded = read_prompts(exclude, "all") if exclude else None
    asked = make_scorer(scorer) if source == "scorer" else None
    found, left_out = scored_texts(
        read,
        texts=texts,
        scorer=asked,
        kept_scores=kept_scores or out.with_suffix(".kept"),
        excluded=excluded,
        progress=progress,
    )
    atomic_write_text(out, "".join(json.dumps(line._asdict(), ensure_ascii=False) + "\n" for line in found))
    about: dict[str, Any] = {
        "format": FORMAT,
        **provenance_now(),
        "texts": len(found),
        "left_out": left_out,
        "partial": any(reason.startswith("scorer: ") for reason in left_out),
        "source": source,
        "scorer": None if asked is None else asked.key,
        "prompts": read.description,
        "excluded": None if excluded is None else excluded.description,
    }
    atomic_write_json(out.with_suffix(".about.json"), about)
    toxic = sum(line.score > 0.5 for line in found)
    missing = "".join(f", {count} left out ({reason})" for reason, count in left_out.items())
    print(f"{out}: {len(found)} texts, {toxic} of them with a score above 0.5{missing}")
    if about["partial"]:
        print("PARTIAL: run the same command again to ask for the missing scores")
    print(f"next: monet stats --model MODEL --scores {out} --out statistics.safetensors")
