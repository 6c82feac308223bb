"""The four commands on prepared text, from folder to folder, as a user runs them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monet import MonetForCausalLM
from monet.cli import main
from monet.data.preparation.prepare import prepare
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution import selection, stats
from monet.eval.core.inputs import PreparedWindows
from monet.eval.reporting import command as report
from monet.eval.reporting import markdown
from monet.eval.reporting.command import report_of
from monet.eval.suites.loss import ablate
from tests.data.samples import write_corpus
from tests.eval.conftest import config

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"stats": stats.run, "select": selection.run, "ablate": ablate.run, "report": report.run}


@pytest.fixture(scope="session")
def road(tmp_path_factory) -> Path:
    """Prepared text of three domains, and a model with the data's tokenizer."""
    folder = tmp_path_factory.mktemp("road")
    corpus = write_corpus(folder / "corpus")
    shards = prepare(
        str(corpus), folder / "data", vocab_size=300, splits={"train": 0.4, "identify": 0.3, "evaluate": 0.3}
    )
    torch.manual_seed(0)
    MonetForCausalLM(config(vocab_size=300, initializer_range=0.3)).save_pretrained(folder / "model")
    for file in shards.tokenizer_dir.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    return folder


def words(verb: str, road: Path, out: Path) -> list[str]:
    source = ["--model", str(road / "model"), "--data", str(road / "data"), "--seq_len", "16", "--progress", "false"]
    return {
        "stats": ["stats", *source, "--out", str(out / "statistics.safetensors")],
        "select": ["select", "--statistics", str(out / "statistics.safetensors"), "--out", str(out / "masks"),
                   "--ratio", "1.2"],
        "ablate": ["ablate", *source, "--masks", str(out / "masks"), "--out", str(out / "ablation"),
                   "--controls.count", "2"],
        "report": ["report", "--result", str(out / "ablation"), "--out", str(out / "report")],
    }[verb]  # fmt: skip


def test_folder_to_folder(road, tmp_path, capsys):
    for verb in VERBS:
        assert main(words(verb, road, tmp_path)) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    result = AblationResult.load(tmp_path / "report" / "report.json")
    assert [verdict.name for verdict in result.domains] == ["english", "italian", "python"]
    assert result == AblationResult.load(tmp_path / "ablation")
    assert result.provenance["controls"]["count"] == 2 and result.provenance["held_out"]
    assert result.provenance["bootstrap"]["unit"] == "source" and "intervals: 95% bootstraps over sources" in shown
    assert all(one.sources and one.sources < one.documents for one in result.evaluated)
    assert ("sources are unreliable" in shown) == any((one.sources or 0) < 10 for one in result.evaluated)
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    (part,) = summary["statistics"]["parts"]
    assert part["excluded"]["ids"] and part["excluded"]["tokens"] > 0  # the end of each document
    for verdict in result.domains:
        assert verdict.removed == summary["labels"][verdict.name]["experts"] > 0
        assert f"{verdict.removed_per_group[0]}" in shown
    for path in (tmp_path / "report").iterdir():
        assert f"report: {path}" in shown
    assert {path.suffix for path in (tmp_path / "report").iterdir()} == {".html", ".json", ".md", ".png"}


def test_evaluating_on_the_identification_split_is_told(road, tmp_path):
    for verb in ("stats", "select"):
        assert main(words(verb, road, tmp_path)) == 0
    assert main([*words("ablate", road, tmp_path), "--split", "identify"]) == 0
    result = AblationResult.load(tmp_path / "ablation")
    assert not result.provenance["held_out"]
    assert "chosen on the text they are evaluated on" in markdown.render(report_of(result))


def test_a_refusal_is_one_line_and_an_exit_code(road, tmp_path, capsys):
    assert main(words("select", road, tmp_path)) == 4
    error = capsys.readouterr().err
    assert error.startswith("monet: error: ") and "monet stats" in error and error.count("\n") == 1
    assert main([*words("stats", road, tmp_path), "--split", "nowhere"]) == 3
    assert main([*words("stats", road, tmp_path), "--max_windows", "0"]) == 2


def test_windows_cover_each_domain_evenly_and_never_twice(road):
    everything = PreparedWindows(road / "data", "evaluate", 16)
    some = PreparedWindows(road / "data", "evaluate", 16, max_windows=7)
    assert some.num_windows == 21 < everything.num_windows
    assert some.fingerprint != everything.fingerprint
    for label in range(3):
        indices = [
            torch.cat([batch.index_B[batch.label_B == label] for batch in data.batches(4)]).tolist()
            for data in (everything, some)
        ]
        assert set(indices[1]) < set(indices[0]) and len(set(indices[1])) == 7
        gaps = [b - a for a, b in itertools.pairwise(indices[1])]
        assert max(gaps) - min(gaps) <= 1
    only = everything.only(["python"])
    assert {int(label) for batch in only.batches(8) for label in batch.label_B} == {everything.labels.index("python")}


def test_some_domains_of_the_folder(road, tmp_path):
    for verb in VERBS:
        chosen = ["--domains", "[python, english]"] if verb in ("stats", "ablate") else []
        assert main([*words(verb, road, tmp_path), *chosen]) == 0
    result = AblationResult.load(tmp_path / "ablation")
    assert [verdict.name for verdict in result.domains] == ["python", "english"]
    assert [baseline.name for baseline in result.evaluated] == ["python", "english"]
    whole = PreparedWindows(road / "data", "evaluate", 16)
    python = next(iter(whole.only(["python"]).batches(1000)))
    assert result.evaluated[0].windows == len(python.label_B)
    assert set(python.label_B.tolist()) == {2}


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_same_numbers(road, tmp_path):
    for verb in ("stats", "select"):
        assert main(words(verb, road, tmp_path)) == 0
    options = ["--controls.count", "12", "--control_on", "all", "--max_windows", "20"]

    def kept(folder: Path) -> int:
        """Number of windows with a kept loss; each file also has a header line."""
        return sum(file.read_bytes().count(b"\n") - 1 for file in folder.glob("losses/*.jsonl"))

    for name in ("whole", "killed"):
        command = [*words("ablate", road, tmp_path), *options, "--out", str(tmp_path / name)]
        if name == "killed":
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen([sys.executable, "-m", "monet", *command], cwd=ROOT, env=environment)
            deadline = time.monotonic() + 120
            while kept(tmp_path / name) < 5 * 60 + 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (tmp_path / name / "result.json").exists()
            assert 5 * 60 + 8 <= kept(tmp_path / name) < (1 + 3 * 13) * 60
        assert main(command) == 0
    contents = [AblationResult.load(tmp_path / name).to_json() for name in ("whole", "killed")]
    for content in contents:
        del content["provenance"]["date"]
    assert contents[0] == contents[1]
