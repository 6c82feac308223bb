"""`monet index` on prepared text, as a user runs it: parts, a kill, export, and text that is hostile."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from monet import MonetForCausalLM
from monet.cli import main
from monet.eval.core.inputs import PreparedWindows
from monet.eval.index.index import Index
from monet.eval.inspection import neuronpedia
from monet.eval.inspection.cards import Card, Example
from monet.model.model_tokenizer import load_tokenizer
from tests.eval.index.conftest import content
from tests.eval.test_commands import road  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[3]


def index_words(road, out, *more) -> list[str]:  # noqa: F811
    return ["index", "--model", str(road / "model"), "--data", str(road / "data"), "--out", str(out), "--seq_len", "16",
            "--max_windows", "6", "--top", "3", "--progress", "false", *more]  # fmt: skip


@pytest.fixture(scope="module")
def indexed(road, tmp_path_factory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("indexed") / "index"
    assert main(index_words(road, out)) == 0
    return out


def test_parts_on_the_command_line_give_the_same_folder(road, indexed, tmp_path):  # noqa: F811
    for number in range(2):
        assert main(index_words(road, tmp_path / f"p{number}", "--part", f"{number}/2")) == 0
    assert main(["index", "merge", str(tmp_path / "p0"), str(tmp_path / "p1"), "--out", str(tmp_path / "both")]) == 0
    assert content(tmp_path / "both") == content(indexed)
    assert main(["index", "merge", str(tmp_path / "p0"), str(tmp_path / "p0"), "--out", str(tmp_path / "no")]) == 4
    assert main(["index", "merge", str(indexed), str(tmp_path / "p0"), "--out", str(tmp_path / "no")]) == 4


def test_a_killed_command_continues_with_the_same_bytes(road, indexed, tmp_path):  # noqa: F811
    words = index_words(road, tmp_path / "index", "--save_seconds", "0")
    started = subprocess.Popen(
        [sys.executable, "-m", "monet", *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    state = tmp_path / "index.partial" / "state.safetensors"
    while not state.exists() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert main(words) == 0
    assert content(tmp_path / "index") == content(indexed)


def test_info_has_the_promised_keys(road, indexed, capsys):  # noqa: F811
    assert main(["index", "info", str(indexed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = MonetForCausalLM.from_pretrained(road / "model")
    assert found["experts"] == 2 * 5 * 5 and found["top_k"] == 3 and found["units"] == 2 * (25 + 10)
    assert found["model_fingerprint"] == model.fingerprint()
    assert found["tokens"] == sum(found["labels"].values()) and found["windows"] == 18
    assert found["bytes"] == sum(len(one) for name, one in content(indexed).items() if name != "index.json")


def test_the_same_index_is_kept_and_another_refused(road, indexed, capsys):  # noqa: F811
    before = content(indexed)
    assert main(index_words(road, indexed)) == 0
    assert main(index_words(road, indexed, "--seed", "7")) == 2
    assert "settings.seed" in capsys.readouterr().err
    assert content(indexed) == before


def test_windows_hold_the_text_of_the_data(road, indexed):  # noqa: F811
    index = Index(indexed)
    text = PreparedWindows(road / "data", "identify", 16, max_windows=6)
    tokenizer = load_tokenizer(road / "model")
    for batch in text.batches(5):
        for row, number in enumerate(batch.index_B.tolist()):
            window = index.windows[number]
            assert window.ids == batch.input_ids_BT[row].tolist()
            assert window.label == text.labels[int(batch.label_B[row])] and window.document == batch.document_B[row]
            assert window.source is not None
            tokens = index.texts.texts(window.ids)
            assert len(tokens) == 16
            assert "".join(tokens) == tokenizer.decode(window.ids, clean_up_tokenization_spaces=False)


def test_lines_have_the_weight_of_every_token(road, indexed, capsys):  # noqa: F811
    index = Index(indexed)
    table = index.table(["group", "unit", "count"], [("kind", "==", "pair"), ("count", ">", 0)]).to_pylist()
    group, unit = table[0]["group"], table[0]["unit"]
    assert main(["index", "export", str(indexed), "--format", "jsonl", "--experts", f"{group}:{unit},1:i3"]) == 0
    pair, half = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(pair) == ["group", "i", "j", "id", "count", "max", "top"]
    assert (pair["group"], pair["id"], pair["i"], pair["j"]) == (group, unit, unit // 5, unit % 5)
    assert (half["i"], half["j"], half["id"]) == (3, None, None)
    model = MonetForCausalLM.from_pretrained(road / "model")
    for line in (pair, half):
        assert line["top"][0]["weight"] == line["max"]
        for one in line["top"]:
            assert list(one) == ["window", "position", "weight", "tokens", "weights"]
            assert len(one["tokens"]) == len(one["weights"]) == 16
            assert one["weights"][one["position"]] == pytest.approx(one["weight"], rel=1e-5)
            ids = torch.tensor([index.windows[one["window"]].ids])
            with torch.no_grad():
                probs = [pair for pair in model(ids, output_router_probs=True).router_probs if pair is not None]
            g1, g2 = (g[0].double() for g in probs[line["group"]])
            wanted = (
                g1[..., line["i"]].sum(1) if line["j"] is None else (g1[..., line["i"]] * g2[..., line["j"]]).sum(1)
            )
            assert one["weights"] == pytest.approx(wanted.tolist(), rel=1e-5)


ACTIVATION = (
    "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId createdAt dataSource "
    "dataIndex dfaValues dfaTargetIndex dfaMaxValue lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues"
)
FEATURE = (
    "modelId layer index sourceSetName creatorId createdAt maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices "
    "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson "
    "correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist"
)


def test_neuronpedia_gets_all_columns_in_every_line(indexed, tmp_path):
    out = tmp_path / "np"
    words = ["index", "export", str(indexed), "--format", "neuronpedia", "--experts", "0:3,0:4,1:7", "--out", str(out)]
    assert main([*words, "--around", "3"]) == 0
    assert sorted(path.name for path in (out / "model").iterdir()) == ["0-monet-experts", "2-monet-experts"]
    place = out / "model" / "0-monet-experts"
    for name in ("release", "model", "sourceset", "source"):
        assert len((place / f"{name}.jsonl").read_text().splitlines()) == 1
    with gzip.open(place / "features" / "batch-0.jsonl.gz", "rt") as file:
        features = [json.loads(line) for line in file]
    assert [one["index"] for one in features] == ["3", "4"] and all(list(one) == FEATURE.split() for one in features)
    with gzip.open(place / "activations" / "batch-0.jsonl.gz", "rt") as file:
        activations = [json.loads(line) for line in file]
    assert activations and all(list(one) == ACTIVATION.split() for one in activations)
    for one in activations:
        assert len(one["tokens"]) == len(one["values"]) <= 7
        assert one["values"][one["maxValueTokenIndex"]] == one["maxValue"] == max(one["values"])
        assert one["layer"] == "0-monet-experts" and len(one["id"]) == 25
    assert len({one["id"] for one in activations}) == len(activations)


def test_two_samples_of_one_window_have_two_identifiers(indexed):
    example = Example(3, ["a", "b", "c"], [0.0, 1.0, 0.0], 1)  # both are in the middle of their excerpts
    opened = Index(indexed)
    card = Card(opened.units.unit(0, 3), {"max": 1.0}, [], [], {7: [example, example]}, [1] * 16)
    lines = list(neuronpedia._activations(opened, "model", "0-monet-experts", card, "now"))
    assert len({line["id"] for line in lines}) == len(lines) == 2


def test_saedashboard_gets_its_batches(indexed, tmp_path):
    out = tmp_path / "sae"
    words = ["index", "export", str(indexed), "--format", "saedashboard", "--experts", "1:7", "--out", str(out)]
    assert main(words) == 0
    batch = json.loads((out / "2-monet-experts" / "batch-0.json").read_text())
    assert list(batch) == ["model_id", "layer", "sae_set", "sae_id_suffix", "features"] and batch["layer"] == 2
    (feature,) = batch["features"]
    assert feature["feature_index"] == 7 and sum(feature["freq_hist_data_bar_heights"]) > 0
    tops = [one for one in feature["activations"] if one["bin_min"] == -1]
    assert tops and all(one["bin_contains"] == -1 for one in tops)
    assert tops[0]["values"][tops[0]["qualifying_token_index"]] == pytest.approx(tops[0]["bin_max"], rel=1e-5)


def test_the_table_can_be_filtered(indexed):
    rows = pq.read_table(indexed / "experts.parquet").to_pylist()
    assert len(rows) == 2 * 35 and {row["kind"] for row in rows} == {"pair", "first", "second"}
    for row in rows:
        assert (row["i"] is None, row["j"] is None) == (row["kind"] == "second", row["kind"] == "first")
        assert (row["best_label"] is None) == (row["count"] == 0)
        assert sum(row["token_firings"]) <= row["count"] and len(row["tokens"]) == len(row["token_texts"])
        if row["count"]:
            assert max(row["label_means"]) == pytest.approx(row["label_share"] * sum(row["label_means"]), rel=1e-5)
    some = pq.read_table(indexed / "experts.parquet", filters=[("kind", "==", "first"), ("group", "==", 1)])
    assert some.column("i").to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--experts", "0:25"], 2),
        (["--experts", "2:0"], 2),
        (["--experts", "0-3"], 2),
        ([], 2),
        (["--experts", "0:i3", "--format", "neuronpedia", "--out", "x"], 2),
        (["--experts", "0:3", "--format", "saedashboard"], 2),
        (["--experts", "0:3", "--model", "nowhere"], 4),
    ],
)
def test_a_bad_export_is_refused(indexed, more, code, capsys):
    assert main(["index", "export", str(indexed), *more]) == code
    assert capsys.readouterr().err.startswith("monet: error: ")


def test_bad_options_are_refused(road, tmp_path):  # noqa: F811
    for more in (["--top", "0"], ["--tokens", "0"], ["--part", "2/2"], ["--seed", "-1"], ["--tokens", "9"]):
        assert main(index_words(road, tmp_path / "x", *more)) == 2
    assert main(["index", "info", str(tmp_path)]) == 4
