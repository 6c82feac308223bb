"""Length of a run and length of its schedule: independent of each other, in steps or in tokens."""

import pytest

from tests.training.runs import losses, read_log

TOKENS_PER_STEP = 2 * 2 * 32  # micro-batches, windows, seq_len


def rates(run) -> list[float]:
    return [entry["learning_rate"] for entry in read_log(run.run_dir)]


def test_the_schedule_does_not_follow_the_runs_length(train):
    whole = train("whole", "--model.schedule.total_steps=12")
    assert train("parts", "--trainer.max_steps=2", "--model.schedule.total_steps=12").code == 0
    parts = train("parts", "--trainer.max_steps=8", "--model.schedule.total_steps=12")
    assert rates(parts) == rates(whole)[:8]
    assert losses(parts.run_dir) == losses(whole.run_dir)[:8]


def test_a_run_may_end_inside_the_warm_up_and_go_beyond_the_schedule(train, settings):
    settings["model"]["schedule"] = {"total_steps": 40, "warmup_fraction": 0.5}
    short = train("short", "--trainer.max_steps=2")
    assert short.code == 0 and rates(short) == [pytest.approx(3e-3 / 20), pytest.approx(3e-3 / 10)]
    settings["model"]["schedule"] = {"total_steps": 3}
    assert rates(train("long", "--trainer.max_steps=5"))[3:] == [pytest.approx(3e-4)] * 2


def test_a_longer_schedule_at_a_restart_says_what_it_does_to_the_rate(train, capsys):
    train("run", "--trainer.max_steps=4")
    capsys.readouterr()
    run = train("run", "--trainer.max_steps=12")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("learning rate")]
    assert line == f"learning rate of the next step: 3.00e-04 -> {rates(run)[4]:.2e}"
    train("same", "--trainer.max_steps=4", "--model.schedule.total_steps=12")
    capsys.readouterr()
    train("same", "--trainer.max_steps=6", "--model.schedule.total_steps=12")
    assert "learning rate of" not in capsys.readouterr().out


def test_tokens_give_the_length_of_run_and_schedule(train, settings, capsys):
    steps = train("steps", "--trainer.max_steps=4", "--model.schedule.total_steps=12")
    settings["trainer"]["max_steps"] = -1
    words = (f"--max_tokens={3.5 * TOKENS_PER_STEP}", f"--model.schedule.total_tokens={12 * TOKENS_PER_STEP}")
    tokens = train("tokens", *words)
    assert tokens.code == 0 and losses(tokens.run_dir) == losses(steps.run_dir)
    assert rates(tokens) == rates(steps)
    assert train("tokens", *words).code == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("at step 4 of 4; nothing to do")


@pytest.mark.parametrize(("words", "message"), [
    (("--max_tokens=1e6",), "max_tokens = 1000000.0 and trainer.max_steps = 12: give only one"),
    (("--max_tokens=0", "--trainer.max_steps=-1"), "max_tokens must be at least 1"),
    (("--trainer.max_steps=2",), "warmup_steps = 3"),
    (("--trainer.max_steps=2",), "set schedule.total_steps to the whole length"),
])  # fmt: skip
def test_lengths_that_contradict_each_other_are_refused(train, capsys, words, message):
    assert train("run", *words).code == 2
    assert message in capsys.readouterr().err
