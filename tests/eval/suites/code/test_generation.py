"""Completions: independent of kept ones, cut at stop tokens, under the mask, and only for prompts that fit."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monet import ExpertMask
from monet.errors import ConfigError
from monet.eval.core.store import ExampleStore, model_key
from monet.eval.suites.code.generation import Sampler, Sampling
from monet.eval.suites.code.problems import Problem

SAMPLING = Sampling(num_samples=5, max_new_tokens=12, batch_size=2)


@pytest.fixture
def mask(model):
    return ExpertMask.random(model.config, 20, seed=0)


def problem(prompt="def f(x):\n", stops=("\n\n\n\n",), name="a"):
    return Problem(name, "python", prompt, "f(1)", stops)


def sampler(model, tokenizer, folder, sampling=SAMPLING):
    return Sampler(model, tokenizer, sampling, folder, model_key(model))


def test_samples_differ_and_come_out_again(model, tokenizer, tmp_path):
    first = sampler(model, tokenizer, tmp_path / "a").completions(None, [problem()])["a"]
    assert len(first) == 5 and len(set(first)) > 1
    assert first[:2] != first[2:4], "batches draw from seeds of their own"
    state = torch.get_rng_state()
    assert sampler(model, tokenizer, tmp_path / "b").completions(None, [problem()])["a"] == first
    assert torch.equal(torch.get_rng_state(), state)
    other = sampler(model, tokenizer, tmp_path / "c", Sampling(5, max_new_tokens=12, batch_size=2, seed=1))
    assert other.completions(None, [problem()])["a"] != first


def test_what_was_cut_off_goes_on_to_the_same_samples(model, tokenizer, tmp_path, monkeypatch):
    problems = [problem(), problem("def g(y):\n", name="b")]
    whole = sampler(model, tokenizer, tmp_path / "whole").completions(None, problems)
    put, kept = ExampleStore.put, []

    def stops_in_mid_batch(self, example, outcome):
        if len(kept) == 3:
            raise KeyboardInterrupt
        put(self, example, outcome)
        kept.append(example)

    monkeypatch.setattr(ExampleStore, "put", stops_in_mid_batch)
    with pytest.raises(KeyboardInterrupt):
        sampler(model, tokenizer, tmp_path / "cut").completions(None, problems)
    monkeypatch.setattr(ExampleStore, "put", put)
    draws = []
    again = sampler(model, tokenizer, tmp_path / "cut")
    draw = again.draw
    monkeypatch.setattr(again, "draw", lambda *words: draws.append(words[1]) or draw(*words))
    assert again.completions(None, problems) == whole
    assert len(draws) == 5, "of six batches the first is there; the second, half there, is drawn again whole"
    assert len(again.completions(None, problems)) == 2 and len(draws) == 5


def test_a_mask_is_in_force_and_gone_afterwards(model, tokenizer, mask, tmp_path):
    greedy = Sampling(1, temperature=0, max_new_tokens=12)
    drawn = sampler(model, tokenizer, tmp_path, greedy)
    bare, masked = (drawn.completions(which, [problem()])["a"] for which in (None, mask))
    assert bare != masked and not model.model.active_masks.applied
    with mask.applied_to(model):
        ids = tokenizer(problem().text, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(out[0]).removeprefix(problem().text).partition("<eos>")[0] == masked[0]
    assert drawn.completions(ExpertMask.keep_all(model.config), [problem()])["a"] == bare


def test_penalties_of_the_checkpoint_stay_out(model, tokenizer, tmp_path, monkeypatch):
    before = sampler(model, tokenizer, tmp_path / "before").completions(None, [problem()])
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 9.0)
    assert sampler(model, tokenizer, tmp_path / "after").completions(None, [problem()]) == before
    assert model.generation_config.repetition_penalty == 9.0


def test_text_ends_at_the_stop_token_and_the_model_soon_after(model, tokenizer, tmp_path):
    greedy = Sampling(1, temperature=0, max_new_tokens=40)
    text = sampler(model, tokenizer, tmp_path, greedy).completions(None, [problem()])["a"][0]
    stop = text[4:6]
    lengths = []
    forward = model.forward
    model.forward = lambda *args, **words: lengths.append(1) or forward(*args, **words)
    try:
        cut = sampler(model, tokenizer, tmp_path, greedy).completions(None, [problem(stops=(stop,))])["a"][0]
    finally:
        del model.forward
    assert cut == text[: text.index(stop)] and len(lengths) < 40


def test_a_prompt_without_room_is_left_out(model, tokenizer, tmp_path):
    long = problem("def f(x):\n" + "    x = x + 12345\n" * 20, name="long")
    drawn = sampler(model, tokenizer, tmp_path)
    assert not drawn.fits(long) and drawn.fits(problem())
    advanced = []
    assert drawn.completions(None, [long, problem()], advanced.append).keys() == {"a"}
    assert sum(advanced) == 10


def test_the_first_space_of_a_completion_stays(model, tmp_path):
    """Sentencepiece tokenizers drop the first space if a completion is decoded by itself."""
    words = ["<eos>", "<unk>", "▁def", "▁f", "▁", "▁return", "▁1"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    metaspace = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    assert metaspace.decode([5]) == "return"
    from monet.eval.suites.code.generation import _Stop

    prompt = metaspace("def f")["input_ids"]
    stop = _Stop(metaspace, problem("def f"), len(prompt))
    assert stop.texts(torch.tensor([[*prompt, 5, 6]])) == [" return 1"]


def test_the_key_holds_all_that_matters(model, tokenizer, tmp_path):
    def file(sampling=SAMPLING, prompt="def f(x):\n"):
        sampler(model, tokenizer, tmp_path, sampling).completions(None, [problem(prompt)])
        return {path.name: path.read_text() for path in tmp_path.glob("*.jsonl")}

    first = file()
    assert file() == first
    assert len(file(Sampling(5, 0.7, max_new_tokens=12, batch_size=2))) == 2
    changed = file(prompt="def h(x):\n")
    (name,) = first
    assert changed[name].startswith(first[name]) and len(changed[name].splitlines()) == 1 + 5 + 5
    assert json.loads(first[name].splitlines()[0])["key"]["sampling"]["top_p"] == 0.95


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_samples", 0), ("max_new_tokens", 0), ("batch_size", 0), ("temperature", -1), ("top_p", 0), ("top_p", 1.5)],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ConfigError, match=f"{field}.* {value}"):
        Sampling(**{field: value})
