"""Our numbers equal those of lm-evaluation-harness: same questions, prompts, log-likelihoods and metrics."""

from __future__ import annotations

import datasets
import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from monet.eval.choices.scoring import log_probability, tokenizer_of
from monet.eval.core.conditions import Condition
from monet.eval.core.controls import Controls
from monet.eval.suites.questions.catalog import OTHERS, benchmarks
from monet.eval.suites.questions.model import MonetLM
from monet.eval.suites.questions.scoring import Scorer, correct
from monet.eval.suites.questions.sources import task_manager
from monet.eval.suites.questions.tasks import load_tasks
from monet.masks.expert_mask import ExpertMask
from tests.eval.suites.questions.samples import labelled_rows, mmlu_rows, other_rows, write_jsonl

PARTS = {
    "arc_easy": {split: labelled_rows(f"ARC-Easy-{split}", 8) for split in ("train", "validation", "test")},
    "winogrande": {split: other_rows("winogrande", 8) for split in ("train", "validation")},
    "lambada_openai": {"test": other_rows("lambada", 8)},
    "mmlu_anatomy": {"test": mmlu_rows("anatomy", "test", 2), "dev": mmlu_rows("anatomy", "dev", 5)},
}


def spec_of(name: str, style: str):
    known = (*benchmarks(style), *OTHERS)
    return next(spec for benchmark in known for spec in benchmark.tasks if spec.name == name)


# For LAMBADA the harness shows a question as its own example; the suite never does.
CASES = [
    *((name, "cloze", shots) for name in PARTS for shots in (0, 2) if (name, shots) != ("lambada_openai", 2)),
    *(("mmlu_anatomy", "letters", shots) for shots in (0, 2)),
]


@pytest.mark.parametrize(("name", "style", "shots"), CASES)
def test_without_a_mask_as_the_harness(name, style, shots, model, data, tmp_path):
    """Run the harness's loop with its own model class and its own task on the same rows."""
    spec = spec_of(name, style)
    rows = datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in PARTS[name].items()})
    overrides = {"custom_dataset": lambda **_: rows, "num_fewshot": shots}
    theirs = task_manager([spec]).load([{"group": "all", "task": [{"task": spec.harness_name, **overrides}]}])
    for task in theirs["tasks"].values():
        task.set_fewshot_seed(1234)
    tokenizer = tokenizer_of(model, None)
    found = lm_eval.evaluate(
        lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), task_dict=theirs, bootstrap_iters=0
    )
    if name == "lambada_openai":
        write_jsonl(tmp_path / "data" / "lambada_openai" / "test.jsonl", PARTS[name]["test"])
        data = tmp_path / "data"
    (task,), missing = load_tasks([spec], shots, data=data)
    scorer = Scorer(model, tokenizer, tmp_path, batch_size=4)
    outcomes = scorer.outcomes(task.questions, Condition("no mask"))
    samples = found["samples"][spec.harness_name]
    assert len(samples) == len(task.questions) and not missing
    for sample, question, outcome in zip(samples, task.questions, outcomes, strict=True):
        assert [tuple(pair) for pair in sample["arguments"]] == list(question.pairs)
        assert np.allclose([ll for ll, _ in sample["filtered_resps"]], outcome.log_likelihoods, atol=1e-4)
    metrics = found["results"][spec.harness_name]
    assert correct(task.questions, outcomes, False).mean() == pytest.approx(metrics["acc,none"])
    if name == "lambada_openai":
        perplexity = np.exp(-log_probability(task.questions, outcomes).mean())
        assert perplexity == pytest.approx(metrics["perplexity,none"], rel=1e-3)
    assert task.normalised == ("acc_norm,none" in metrics)
    if task.normalised:
        assert correct(task.questions, outcomes, True).mean() == pytest.approx(metrics["acc_norm,none"])


def direct(model, tokenizer, pair, mask):
    """Log-likelihood of a continuation, one sequence at a time."""
    context, whole = tokenizer(pair[0])["input_ids"], tokenizer("".join(pair))["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([whole]), expert_mask=mask).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(len(context), len(whole)))


@pytest.mark.parametrize("soft", [False, True])
def test_a_mask_does_what_a_direct_computation_does(soft, model, mask, data, tmp_path):
    if soft:
        mask = ExpertMask(mask.keep_REE.float().clamp(min=0.4), fingerprint=mask.fingerprint)
    (task,), _ = load_tasks([spec_of("piqa", "cloze")], 0, data=data)
    tokenizer = tokenizer_of(model, None)
    scorer = Scorer(model, tokenizer, tmp_path, batch_size=3)
    for condition in (Condition("no mask"), Condition("mask", mask)):
        outcomes = scorer.outcomes(task.questions, condition)
        for question, outcome in zip(task.questions, outcomes, strict=True):
            wanted = [direct(model, tokenizer, pair, condition.mask) for pair in question.pairs]
            assert np.allclose(outcome.log_likelihoods, wanted, atol=1e-4)
    plain = scorer.outcomes(task.questions, Condition("no mask"))
    assert not np.allclose([o.log_likelihoods for o in plain], [o.log_likelihoods for o in outcomes], atol=1e-2)
    assert not model.model.active_masks.applied


def test_the_model_class_takes_masks_as_the_conditions_do(model_folder, model, mask, data, tmp_path):
    mask.save(tmp_path / "mask.safetensors")
    pairs = [pair for question in load_tasks([spec_of("piqa", "cloze")], 0, data=data)[0][0].questions
             for pair in question.pairs]  # fmt: skip
    tokenizer = tokenizer_of(model, None)

    def scores(**keys):
        lm = MonetLM(pretrained=str(model_folder), device="cpu", batch_size=4, **keys)
        return [score.log_likelihood for score in lm.score_pairs(pairs)], lm.get_model_info()

    masked, notes = scores(mask=str(tmp_path / "mask.safetensors"))
    assert np.allclose(masked, [direct(model, tokenizer, pair, mask) for pair in pairs], atol=1e-4)
    assert notes["experts_masked"] == 24
    halved = ExpertMask(mask.keep_REE.float().clamp(min=0.5))
    softened, _ = scores(mask=str(tmp_path / "mask.safetensors"), keep=0.5)
    assert np.allclose(softened, [direct(model, tokenizer, pair, halved) for pair in pairs], atol=1e-4)
    random, notes = scores(mask=str(tmp_path / "mask.safetensors"), control=1)
    assert notes["experts_masked"] == 24 and not np.allclose(random, masked, atol=1e-3)
    wanted = Controls().draw(mask, 1, "", "")
    assert np.allclose(random, [direct(model, tokenizer, pair, wanted) for pair in pairs], atol=1e-4)
    plain, notes = scores()
    assert notes["experts_masked"] == 0
    assert np.allclose(plain, [direct(model, tokenizer, pair, None) for pair in pairs], atol=1e-4)
