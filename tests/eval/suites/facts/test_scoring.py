"""Log-likelihoods by hand, the boundary between prompt and answer, and lines without a score."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monet.errors import NonFiniteError
from monet.eval.choices.scoring import Outcome, likeliest, log_odds
from monet.eval.core.conditions import Condition
from monet.eval.suites.facts.read import Question, read_facts
from monet.eval.suites.facts.scoring import FactScorer, encode, log_likelihoods
from tests.eval.suites.facts.conftest import all_rows, row, write_rows
from tests.tolerances import assert_close


def question(prompt: str, *options: str) -> Question:
    return Question(prompt, prompt, options, "d", "r", "p", "f")


class Pieces:
    """A tokenizer that cuts text at given places: it shows what a token that spans the boundary does."""

    def __init__(self, pieces: dict[str, list[int]], start: list[int], end: list[int]) -> None:
        self.pieces, self.start, self.end = pieces, start, end

    def __call__(self, text, add_special_tokens: bool = True):
        ids = [self(one)["input_ids"] for one in text] if isinstance(text, list) else self.pieces[text]
        if add_special_tokens and isinstance(text, str):
            ids = [*self.start, *ids, *self.end]
        return {"input_ids": ids}


PIECES = {"a": [1], "p q": [5, 6], "p q x": [5, 7, 8], "p q y": [5, 6, 9], "p q z": [5, 6, 9, 10]}


def test_options_are_scored_from_the_first_token_that_differs():
    tokenizer = Pieces(PIECES, [], [])
    (one,) = encode(tokenizer, [question("p q", "z", "y")], 10)  # pyright: ignore[reportArgumentType]
    assert one.start == 2 and one.options == [[5, 6, 9, 10], [5, 6, 9]] and not one.reason
    (one,) = encode(tokenizer, [question("p q", "x", "y")], 10)  # pyright: ignore[reportArgumentType]
    assert one.start == 1, "the q of the prompt is a part of a token of the first option, so all options score it"


def test_tokens_that_end_a_text_are_not_scored():
    tokenizer = Pieces(PIECES, [1], [2])
    (one,) = encode(tokenizer, [question("p q", "z", "y")], 10)  # pyright: ignore[reportArgumentType]
    assert one.start == 3 and one.options == [[1, 5, 6, 9, 10], [1, 5, 6, 9]]


def test_lines_without_a_score():
    pieces = {**PIECES, "p q w": [5, 6, 9], "p q v": [5, 6], "n": [3], "n m": [4], "n o": [3, 4]}
    tokenizer = Pieces(pieces, [], [])

    def reason(longest: int, prompt: str, *options: str) -> str:
        (one,) = encode(tokenizer, [question(prompt, *options)], longest)  # pyright: ignore[reportArgumentType]
        return one.reason

    assert reason(3, "p q", "z", "y") == "" and reason(2, "p q", "z", "y") == "longer than the context"
    assert reason(9, "p q", "y", "w") == reason(9, "p q", "v", "y") == "options with the same tokens"
    assert reason(9, "n", "m", "o") == "no token of the prompt stays the same with an answer"


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_log_likelihoods_by_hand(random_model, batch_size):
    """Every option in its own forward pass, without padding, gives the same numbers."""
    generator = torch.Generator().manual_seed(4)
    encoded = []
    for length in (2, 6, 3):
        prompt = torch.randint(24, (length,), generator=generator).tolist()
        options = [[*prompt, *tail] for tail in ([3], [4], [4, 5], [4, 5, 6], [7, 8])]
        encoded.append(SimpleNamespace(options=options, start=length))
    with torch.no_grad():
        found = log_likelihoods(random_model, encoded, batch_size)  # pyright: ignore[reportArgumentType]
        by_hand = []
        for one in encoded:
            for ids in one.options:
                log_p_TV = random_model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                by_hand.append(sum(float(log_p_TV[place - 1, ids[place]]) for place in range(one.start, len(ids))))
    got = torch.tensor(found).flatten()
    assert_close("log-likelihoods", got, torch.tensor(by_hand, dtype=torch.float64), torch.float32)


def test_log_odds_by_hand(planted, tokenizer, facts_file, tmp_path):
    facts = read_facts([facts_file])
    scorer = FactScorer(planted, tokenizer, tmp_path / "kept", 4)
    outcomes = scorer.outcomes(facts.questions, Condition("no mask"))
    odds, right = log_odds(facts.questions, outcomes), likeliest(facts.questions, outcomes)
    for one, value, is_right in zip(facts.questions, odds, right, strict=True):
        ids = tokenizer(one.prompt)["input_ids"]
        with torch.no_grad():
            log_p_V = planted(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        *wrong, answer = [float(log_p_V[tokenizer(option)["input_ids"][0]]) for option in one.options]
        assert value == pytest.approx(answer - math.log(sum(map(math.exp, wrong))), abs=1e-5)
        assert is_right == (answer > max(wrong))


def test_a_tie_is_no_right_answer():
    asked = [question("p", "a", "b", "c")] * 4 + [question("p", "a", "b")]
    outcomes = [Outcome((-2.0, -1.0, -1.0)), Outcome((-2.0, -3.0, -1.0)), Outcome((-3.0, -2.0, -2.5)), Outcome(None)]
    outcomes.append(Outcome((-1.0, -4.0)))
    assert likeliest(asked, outcomes).tolist()[:3] == [0.0, 1.0, 0.0]
    assert np.isnan([likeliest(asked, outcomes)[3], log_odds(asked, outcomes)[3]]).all()
    assert log_odds(asked, outcomes)[[1, 4]] == pytest.approx([-1 - math.log(math.exp(-2) + math.exp(-3)), -3.0])


def test_numbers_that_are_not_finite(planted, tokenizer, facts_file, tmp_path):
    with torch.no_grad():
        planted.lm_head.weight[0, 0] = float("nan")
    scorer = FactScorer(planted, tokenizer, tmp_path / "kept")
    with pytest.raises(NonFiniteError, match=r"log-likelihood nan of '\w+' after .* check the checkpoint's weights"):
        scorer.outcomes(read_facts([facts_file]).questions, Condition("no mask"))


def test_answers_of_one_token_share_a_row(planted, tokenizer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(type(planted), "forward", _counting(type(planted).forward, seen))
    path = write_rows(tmp_path / "facts", [*all_rows()[:4], row("left", 3, choices=["right0 right1", "right0"])])
    FactScorer(planted, tokenizer, tmp_path / "kept").outcomes(read_facts([path]).questions, Condition("no mask"))
    assert sum(seen) == 5


def _counting(forward, seen: list[int]):
    def counts(self, *args, **kwargs):
        seen.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    return counts
