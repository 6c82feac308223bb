"""Names and texts from hostile files reach the terminal without commands, and rich without markup."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from monet.cli import main
from monet.data.report import Progress, print_notes, print_table
from monet.eval.attribution.stats import ExpertStatistics, _print
from monet.files import MANIFEST_NAME
from monet.serve.generate import _streamer
from monet.terminal import clean, clean_warnings, markup
from tests.model.tiny import tiny_model

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/red][link=https://example.org]x\u202e\x9b1m\r"


def shown(capsys) -> str:
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    return text


def test_clean_keeps_text_and_breaks_commands():
    assert clean("größer\n\t日本語 🙂 [x]") == "größer\n\t日本語 🙂 [x]"
    assert clean("a\x1bb\ud800c\x7f\x00") == "a\ufffdb\ufffdc\ufffd\ufffd"
    assert markup("[/red]\x1b") == "\\[/red]\ufffd"


def test_an_error_that_names_a_tensor(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), HOSTILE: torch.ones(1)}, path, {"format": "pt"})
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a"]) == 4
    assert "holds unknown 1 tensors" in shown(capsys)


def test_verify_of_a_manifest_with_such_a_name(tmp_path, capsys):
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps({"files": {HOSTILE: {"bytes": 1, "sha256": "0"}}}))
    assert main(["verify", str(folder)]) == 4
    assert "NOT VALID" in (text := shown(capsys)) and "[2J" in text


def test_what_a_preparation_prints(capsys):
    print_notes([HOSTILE], {"counts": {HOSTILE: 1}, "examples": [HOSTILE]})
    cell = {"documents": 1, "tokens": 2, "text_bytes": 3}
    made = {"tokens_per_second": 1.0, "processes": 1}
    manifest = {"splits": {HOSTILE: {HOSTILE: cell}}, "domains": [HOSTILE], "vocab_size": 9, "dtype": "uint16"}
    print_table({**manifest, "throughput": made})
    with Progress() as progress:
        progress.start(HOSTILE, 1, "rows").describe(HOSTILE)
    assert shown(capsys).count("[/red]") >= 5


def test_labels_of_statistics(capsys, tmp_path):
    one = torch.ones(1, dtype=torch.int64)
    sums = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    _print(ExpertStatistics([HOSTILE], sums, one, one, one, "0", {"parts": []}), tmp_path)
    assert "[/red]" in shown(capsys)


def test_what_a_model_writes(capsys):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, HOSTILE: 1}, "a")))
    streamer = _streamer(tokenizer)
    streamer.put(torch.tensor([0, 1]))
    streamer.end()
    assert "[/red]" in shown(capsys)


@pytest.mark.filterwarnings("default")
def test_warnings_that_quote_files(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    clean_warnings()
    once = warnings.formatwarning
    clean_warnings()
    assert warnings.formatwarning is once
    assert "\x1b" not in warnings.formatwarning(HOSTILE, UserWarning, "a.py", 1)
