"""Continuations follow the settings. They do not depend on the batch or on kills of the process."""

import copy
import math

import numpy as np
import pytest
import torch

from monet.errors import ConfigError, DataError, NonFiniteError
from monet.eval.core.conditions import Condition
from monet.eval.suites.toxicity.prompts import Prompt
from monet.eval.suites.toxicity.sampling import TOO_LONG, Continuations, Decoding, _Drawn
from monet.masks.expert_mask import ExpertMask
from tests.eval.suites.toxicity.conftest import WORDS

AS_IT_IS = Condition("no mask")
FEW = Decoding(samples=4, new_tokens=5)


def continuations(model, tokenizer, prompts, folder, decoding=FEW, batch_size=8):
    return Continuations(model, tokenizer, prompts, decoding, batch_size, folder, {"weights": "w"})


def remove(model, *pairs):
    keep_REE = torch.ones(1, 16, 16, dtype=torch.bool)
    for pair in pairs:
        keep_REE[(0, *pair)] = False
    return ExpertMask(keep_REE)


def test_samples_follow_the_probabilities(planted_model, words_tokenizer, tmp_path):
    decoding = Decoding(samples=4000, new_tokens=1, temperature=2.0, top_p=1.0)
    source = continuations(planted_model, words_tokenizer, [Prompt("p", "cat", "")], tmp_path, decoding)
    ((_, made),) = source.under(AS_IT_IS)
    ids = torch.tensor([[WORDS.index("cat")]])
    wanted_V = (planted_model(ids).logits[0, -1] / 2.0).softmax(-1).detach().numpy()
    share_V = np.array([made.count(word) for word in WORDS]) / 4000
    assert np.abs(share_V - wanted_V).max() < 4 * math.sqrt(0.25 / 4000)
    assert np.abs(share_V - 1 / 12).max() > 0.1  # and would not fit a uniform draw


def test_a_number_falls_on_the_token_whose_share_holds_it():
    scores_BV = torch.tensor([-math.inf, 0.0, -math.inf, 0.0]).expand(4, 4)
    drawn_BV = _Drawn(torch.tensor([[0.0], [0.49], [0.5], [0.99999]]))(torch.zeros(4, 1), scores_BV)
    assert drawn_BV.argmax(-1).tolist() == [1, 1, 3, 3]  # never one of probability zero
    assert bool(torch.isneginf(drawn_BV).sum(-1).eq(3).all())


def test_top_p_keeps_the_likeliest_only(planted_model, words_tokenizer, tmp_path):
    ids = torch.tensor([[WORDS.index("cat")]])
    order = planted_model(ids).logits[0, -1].argsort(descending=True).tolist()
    mass = planted_model(ids).logits[0, -1].detach().softmax(-1)[order].cumsum(0)
    top_p = float(mass[2] + mass[3]) / 2  # the fourth crosses it and is the last
    decoding = Decoding(samples=500, new_tokens=1, top_p=top_p)
    ((_, made),) = continuations(planted_model, words_tokenizer, [Prompt("p", "cat", "")], tmp_path, decoding).under(
        AS_IT_IS
    )
    assert set(made) == {WORDS[i] for i in order[:4]}


def test_greedy(planted_model, words_tokenizer, tmp_path):
    decoding = Decoding(samples=1, new_tokens=3, temperature=0)
    ((_, made),) = continuations(planted_model, words_tokenizer, [Prompt("p", "cat", "")], tmp_path, decoding).under(
        AS_IT_IS
    )
    ids = [WORDS.index("cat")]
    for _ in range(3):
        ids.append(int(planted_model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert made == [" ".join(WORDS[i] for i in ids[1:])]


def test_neighbours_padding_and_batches_change_nothing(random_model, words_tokenizer, word_prompts, tmp_path):
    model = random_model.double()  # so that rounding in a padded batch changes no draw
    found = [
        dict(continuations(model, words_tokenizer, prompts, tmp_path, batch_size=size).under(AS_IT_IS))
        for size in (1, 40)
        for prompts in (word_prompts.prompts, word_prompts.prompts[3:7])
    ]
    for other in found[1:]:
        assert all(found[0][id] == texts for id, texts in other.items())
    assert len({tuple(texts) for texts in found[0].values()}) == 12
    again = continuations(
        model, words_tokenizer, word_prompts.prompts, tmp_path, Decoding(samples=4, new_tokens=5, seed=1)
    )
    assert dict(again.under(AS_IT_IS)) != found[0]


def test_a_mask_changes_the_model_and_not_the_dice(planted_model, words_tokenizer, word_prompts, tmp_path):
    source = continuations(planted_model, words_tokenizer, word_prompts.prompts, tmp_path)
    before = dict(source.under(AS_IT_IS))
    unused, used = remove(planted_model, (9, 9)), remove(planted_model, (0, 0), (1, 1), (2, 2))
    assert dict(source.under(Condition("unused", unused))) == before
    assert dict(source.under(Condition("used", used))) != before
    assert dict(source.under(AS_IT_IS)) == before
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_penalties_of_the_checkpoint_stay_out(planted_model, words_tokenizer, word_prompts, tmp_path):
    before = dict(continuations(planted_model, words_tokenizer, word_prompts.prompts, tmp_path / "a").under(AS_IT_IS))
    planted_model.generation_config.repetition_penalty = 9.0
    own = copy.deepcopy(planted_model.generation_config)
    after = dict(continuations(planted_model, words_tokenizer, word_prompts.prompts, tmp_path / "b").under(AS_IT_IS))
    assert after == before and planted_model.generation_config == own


def test_an_exception_in_mid_pass_changes_no_number(random_model, words_tokenizer, word_prompts, tmp_path, monkeypatch):
    whole = dict(continuations(random_model, words_tokenizer, word_prompts.prompts, tmp_path / "whole").under(AS_IT_IS))
    source = continuations(random_model, words_tokenizer, word_prompts.prompts, tmp_path / "killed")
    generate, calls = random_model.generate, []

    def dies(**kwargs):
        calls.append(kwargs["input_ids"].shape)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(**kwargs)

    monkeypatch.setattr(random_model, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        dict(source.under(AS_IT_IS))
    (kept,) = (tmp_path / "killed").glob("*.jsonl")
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 * 2  # a head, and the two prompts of each of three batches
    kept.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])  # and the kill cut a line
    assert dict(source.under(AS_IT_IS)) == whole
    assert len(calls) == 4 + 4  # the cut batch, the one that died, and two more
    assert dict(source.under(AS_IT_IS)) == whole and len(calls) == 8


def test_the_end_of_a_text_and_its_first_line(planted_model, words_tokenizer, tmp_path):
    words_tokenizer.eos_token = "dog"
    decoding = Decoding(samples=50, new_tokens=6)
    prompts = [Prompt("p", "cat", "")]
    ((_, made),) = continuations(planted_model, words_tokenizer, prompts, tmp_path, decoding).under(AS_IT_IS)
    assert not any("dog" in text for text in made) and "" in made
    assert len({len(text.split()) for text in made}) > 3


def test_long_and_foreign_prompts(planted_model, words_tokenizer, tmp_path):
    prompts = [Prompt("short", "cat", ""), Prompt("long", "cat " * 28, "")]
    source = continuations(planted_model, words_tokenizer, prompts, tmp_path)
    assert source.unreadable == {"long": TOO_LONG} and set(dict(source.under(AS_IT_IS))) == {"short"}
    words_tokenizer.add_tokens(["zebra"])
    with pytest.raises(DataError, match="token id 12 is outside the model's vocabulary of 12"):
        continuations(planted_model, words_tokenizer, [Prompt("z", "zebra", "")], tmp_path)


def test_nan_is_named(planted_model, words_tokenizer, word_prompts, tmp_path):
    with torch.no_grad():
        planted_model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(NonFiniteError, match="logit is NaN under mask 'no mask' after one of the prompts p:"):
        dict(continuations(planted_model, words_tokenizer, word_prompts.prompts, tmp_path).under(AS_IT_IS))


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 0}, {"new_tokens": 0}, {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_p": 1.1},
     {"seed": -1}, {"temperature": 0, "samples": 2}],
)  # fmt: skip
def test_decoding_out_of_range(wrong):
    with pytest.raises(ConfigError):
        Decoding(**wrong)
