"""A model trained with document masks is evaluated with them: a document in a window gives its separate results."""

import json

import pytest
import torch
import torch.nn.functional as F

from monet import MonetConfig
from monet.cli import main
from monet.errors import CheckpointError, ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.stats import ExpertStatistics, Wanted, collect
from monet.eval.baselines.neurons import activities
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from monet.eval.core.loading import open_windows, weights_digest
from monet.eval.core.mean_ablation import removed_means
from monet.eval.core.window_losses import LossStore, window_losses
from monet.masks.expert_mask import ExpertMask
from tests.data.samples import make_shards
from tests.eval.conftest import config

SEQ_LEN = 16


@pytest.fixture
def folder(tmp_path):
    """Documents of 3 to 8 tokens, so that a window of 16 holds several."""
    documents = {
        name: [[2 + (7 * n + 3 * k + t * (t + n)) % 22 for t in range(3 + (n + k) % 6)] for n in range(24)]
        for k, name in enumerate("ab")
    }
    return make_shards(tmp_path / "data", {"identify": documents, "evaluate": documents}, vocab_size=24)


def pieces(windows):
    """The label of every window, and its documents one by one: inputs and the tokens that follow them."""
    for batch in windows.batches(1):
        ids, targets, positions = (
            tensor[0].tolist() for tensor in (batch.input_ids_BT, batch.targets_BT, batch.position_ids_BT)
        )
        begins = [place for place, position in enumerate(positions) if position == 0]
        yield (
            int(batch.label_B[0]),
            [(ids[begin:end], targets[begin:end]) for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True)],
        )


@pytest.mark.parametrize("kind", ["monet", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_of_a_window_is_that_of_its_documents(random_model, llama, folder, kind, attention, batch_size):
    model = random_model if kind == "monet" else llama
    model.set_attn_implementation(attention)
    windows = PreparedWindows(folder, "evaluate", SEQ_LEN, document_mask=True)
    wanted = []
    with torch.no_grad():
        for _, documents in pieces(windows):
            losses = [
                F.cross_entropy(model(torch.tensor([ids])).logits[0], torch.tensor(targets), reduction="sum")
                for ids, targets in documents
            ]
            wanted.append(float(sum(losses)))
    found = window_losses(model, None, windows, batch_size=batch_size).loss_sum_W
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    plain = window_losses(model, None, PreparedWindows(folder, "evaluate", SEQ_LEN), batch_size=batch_size).loss_sum_W
    assert abs(plain - found).max() > 1e-3


def both(folder):
    """Windows, and the same text as separate documents."""
    for seq_len in range(20, 40):
        windows = PreparedWindows(folder, "identify", seq_len, document_mask=True)
        found = [(label, ids) for label, documents in pieces(windows) for ids, _ in documents]
        if all(len(ids) > 1 for _, ids in found):
            return windows, LabelledSequences(windows.labels, [ids for _, ids in found], [label for label, _ in found])
    raise AssertionError("every length cuts off a single token")


@pytest.mark.parametrize("first", [0, 2])
def test_statistics_are_those_of_the_documents(random_model, folder, first):
    windows, documents = both(folder)
    options = {"exclusion": Exclusion((1,), first), "progress": False}
    found = collect(random_model, windows, batch_size=2, wanted=Wanted(firing=True), **options)
    wanted = collect(random_model, documents, batch_size=2, wanted=Wanted(firing=True), **options)
    torch.testing.assert_close(found.sums_CREE, wanted.sums_CREE, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.firing.fired_CREE, wanted.firing.fired_CREE)
    assert torch.equal(found.tokens_C, wanted.tokens_C)
    assert found.provenance["parts"][0]["document_mask"] is True


def test_neurons_and_means_are_those_of_the_documents(random_model, llama, folder):
    windows, documents = both(folder)
    found, wanted = (activities(llama, data, batch_size=2, progress=False) for data in (windows, documents))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    mask = ExpertMask.random(random_model.config, 20, seed=0)
    for mine, theirs in zip(*(removed_means(random_model, mask, data) for data in (windows, documents)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("asked", ["auto", True, False])
def test_commands_follow_the_configuration(random_model, folder, tmp_path, trained, asked):
    random_model.config.document_mask = trained
    windows = open_windows(folder, "evaluate", random_model, SEQ_LEN, document_mask=asked)
    used = trained if asked == "auto" else asked
    assert windows.description["document_mask"] is used and windows.dataset.document_mask is used
    plain = open_windows(folder, "evaluate", random_model, SEQ_LEN, document_mask=not used)
    store = LossStore(tmp_path, random_model, 8)
    assert store.path(None, windows) != store.path(None, plain)


@pytest.mark.parametrize(
    ("words", "used"), [([], True), (["--document_mask", "auto"], True), (["--document_mask", "false"], False)]
)
def test_the_command_line_takes_auto_and_yes_or_no(random_model, folder, tmp_path, words, used):
    random_model.config.document_mask = True
    random_model.save_pretrained(tmp_path / "model")
    out = tmp_path / "statistics.safetensors"
    options = ["--data", str(folder), "--out", str(out), "--seq_len", "16", "--progress", "false"]
    assert main(["stats", "--model", str(tmp_path / "model"), *options, *words]) == 0
    assert ExpertStatistics.load(out).provenance["parts"][0]["document_mask"] is used
    assert main(["stats", "--model", str(tmp_path / "model"), *options, "--document_mask", "maybe"]) == 2


def test_a_result_says_whether_masks_were_used(random_model, folder, tmp_path):
    masks = {"a": ExpertMask.random(random_model.config, 20, seed=0)}
    data = PreparedWindows(folder, "evaluate", SEQ_LEN, document_mask=True)
    result = ablate(random_model, masks, data, out=tmp_path, controls=Controls(1), progress=False)
    assert result is not None and result.provenance["data"]["document_mask"] is True


def test_statistics_with_and_without_do_not_add_up(random_model, folder):
    masked, plain = (
        collect(random_model, PreparedWindows(folder, "identify", SEQ_LEN, None, [name], used), progress=False)
        for name, used in (("a", True), ("a", False))
    )
    with pytest.raises(CheckpointError, match="with and without document masks"):
        masked.merge(plain)


def test_the_configuration_carries_it(tmp_path, random_model):
    assert "document_mask" not in random_model.config.to_dict()
    digest = weights_digest(random_model)
    random_model.config.document_mask = True
    random_model.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["document_mask"] is True
    assert MonetConfig.from_pretrained(tmp_path).document_mask is True
    assert weights_digest(random_model) == digest, "the computed digest stays the same"
    with pytest.raises(ConfigError, match="document_mask"):
        config(document_mask="yes")
