"""`monet eval toxicity-scores`: text with toxicity scores, for `monet stats` to correlate experts with."""

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
    """One line of the file: a text, its score from 0 to 1, which text it is, and the hash of its prompt."""

    id: str
    text: str
    score: float
    prompt_hash: str


def _texts(prompt: Prompt, texts: Texts) -> Iterator[tuple[str, str, float | None, str]]:
    """Name, text, given score and the prompt's hash of each text that is wanted."""
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
    """Texts of a data set with a score each, and by reason how many have none.

    Args:
        prompts: whose texts.
        texts: prompts, their continuations, or both, each with a score of its own.
        scorer: gives the scores; None takes those of the data set.
        kept_scores: folder for the scorer's answers.
        excluded: prompts that a model will be evaluated on: they and their continuations are left out.
        progress: show a bar on standard error.

    Raises:
        ConfigError: a scorer but no folder.
        DataError: not one text with a score.
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
            raise ConfigError("name a folder for the scorer's answers (kept_scores)")
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
    """Write text with a toxicity score each, for `monet stats --scores` to correlate every expert with.

    OUT holds lines of {"id", "text", "score", "prompt_hash"}; a file of the same name ending in .about.json says where
    they are from. By the hashes, `monet eval toxicity` can tell whether it judges a mask on other prompts. A text
    without a score is left out and counted; what a scorer left open is asked again when the same command runs.

    Args:
        prompts: files as for `monet eval toxicity`.
        out: the .jsonl file to write.
        source: given takes the scores in the data set; scorer asks SCORER.
        texts: prompts, the continuations in the data set, or both, each with a score of its own.
        subset: identify takes what `monet eval toxicity` does not evaluate by default; evaluate or all repeat the
            evaluated prompts, as the paper seems to.
        exclude: files of prompts that a model will be evaluated on; they and their continuations are left out.
        limit: at most so many prompts, evenly spread; without it all.
        scorer: what scores the texts, if SOURCE is scorer.
        kept_scores: folder of its answers, to share between runs; without it OUT's name ending in .kept.
        progress: show a bar on standard error.

    Raises:
        ConfigError: an option out of range, or a scorer that cannot be used.
        DataError: prompts that are missing or in another form, or no text with a score.
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
