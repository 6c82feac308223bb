"""Every refusal names the bad value and the fix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monet.errors import CheckpointError, ConfigError, DataError, MonetError, NonFiniteError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.selection import load_masks, select
from monet.eval.attribution.stats import ExpertStatistics, collect
from monet.eval.attribution.stats import run as run_stats
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from monet.eval.core.loading import load_model, open_windows
from monet.eval.reporting import command as report
from monet.masks.expert_mask import ExpertMask
from tests.data.samples import make_shards
from tests.eval.conftest import LABELS


class Given:
    """Objects that a row of the table may use."""

    def __init__(self, model, other_model, data, folder: Path) -> None:
        self.model, self.other_model, self.data, self.folder = model, other_model, data, folder
        self.masks = {label: ExpertMask.random(model.config, 5, seed=i) for i, label in enumerate(LABELS)}

    def collect(self, data=None, model=None, **options):
        return collect(model or self.model, data or self.data, progress=False, **options)

    def ablate(self, **changes):
        options = {"model": self.model, "masks": self.masks, "data": self.data, "progress": False, **changes}
        return ablate(out=self.folder / "out", **options)

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def shards(self, tokens: int = 40, vocab_size: int = 24) -> Path:
        documents = {domain: [[7] * tokens] for domain in ("a", "b")}
        return make_shards(self.folder / "data", {"identify": documents}, vocab_size=vocab_size)


@pytest.fixture
def given(random_model, planted_model, random_data, tmp_path) -> Given:
    return Given(random_model, planted_model, random_data, tmp_path)


def statistics_of_another_model(given):
    given.collect().save(given.folder / "s.safetensors")
    ExpertStatistics.load(given.folder / "s.safetensors", model=given.other_model)


def statistics_cut_short(given):
    given.collect().save(given.folder / "s.safetensors")
    ExpertStatistics.load(given.write("t.safetensors", (given.folder / "s.safetensors").read_bytes()[:500]))


def statistics_with_nan(given):
    statistics = given.collect()
    statistics.sums_CREE[1, 0, 2, 3] = float("nan")
    statistics.save(given.folder / "s.safetensors")
    ExpertStatistics.load(given.folder / "s.safetensors")


def a_mask_for_statistics(given):
    given.masks["left"].save(given.folder / "m.safetensors")
    ExpertStatistics.load(given.folder / "m.safetensors")


def merged_models(given):
    other = LabelledSequences(LABELS, [[1, 2]], [0])
    given.collect().merge(given.collect(model=given.other_model, data=other))


def merged_labels(given):
    given.collect().merge(given.collect(replace(given.data, labels=["x", "y", "z"])))


def a_label_without_text(given):
    select(given.collect(replace(given.data, labels=[*LABELS, "lost"])))


def one_label(given):
    sequences = given.data.sequences
    select(given.collect(LabelledSequences(["only"], sequences, [0] * len(sequences))))


def ids_beyond_the_vocabulary(given):
    given.collect(replace(given.data, sequences=[*given.data.sequences[:-1], [1, 24, 2]]))


def a_negative_id(given):
    given.collect(replace(given.data, sequences=[*given.data.sequences[:-1], [1, -5, 2]]))


def ids_beyond_the_vocabulary_in_ablation(given):
    given.ablate(data=replace(given.data, sequences=[*given.data.sequences[:-1], [1, 2, 99]]))


def a_nan_weight_in_a_router(given):
    given.model.routers()[1].w1.weight.data[0, 0] = float("nan")
    given.collect()


def a_nan_weight_in_the_head(given):
    given.model.lm_head.weight.data[3, 0] = float("nan")
    given.ablate()


def one_domain(given):
    sequences = given.data.sequences
    given.ablate(data=LabelledSequences(["left"], sequences, [0] * len(sequences)), masks={"left": given.masks["left"]})


def one_document_a_domain(given):
    given.ablate(data=LabelledSequences(LABELS, given.data.sequences[:3], [0, 1, 2]))


def a_bound_mask_of_another_model(given):
    given.ablate(masks={"left": ExpertMask(given.masks["left"].keep_REE, fingerprint="0" * 32)})


def a_larger_vocabulary(given):
    open_windows(given.shards(vocab_size=25), "identify", given.model, seq_len=8)


def another_tokenizer(given):
    from tokenizers import Tokenizer, models

    data = given.shards()
    for folder, words in ((data / "tokenizer", "ab"), (given.folder / "model", "ba")):
        folder.mkdir(exist_ok=True)
        vocabulary = {word: i for i, word in enumerate(words)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(folder / "tokenizer.json"))
    given.model.name_or_path = str(given.folder / "model")
    open_windows(data, "identify", given.model, seq_len=8)


def a_changed_mask_folder(given):
    given.write("summary.json", b'{"labels": {"left": {"file": "left.safetensors", "sha256": "0"}}}')
    load_masks(given.folder)


ROWS = [
    (lambda g: select(g.collect(), ratio=0.5), ConfigError, r"ratio .* at least 1 .* got 0\.5"),
    (statistics_of_another_model, CheckpointError, r"belongs to model .* not to this one .* collect them again"),
    (statistics_cut_short, CheckpointError, r"t\.safetensors: unreadable statistics .* run `monet stats`"),
    (statistics_with_nan, CheckpointError, r"sums hold NaN"),
    (a_mask_for_statistics, CheckpointError, r"not expert statistics .* `monet stats`"),
    (lambda g: ExpertStatistics.load(g.folder / "none"), CheckpointError, r"none: no such file"),
    (merged_models, CheckpointError, r"model \w+ and of model \w+ do not add up"),
    (merged_labels, CheckpointError, r"\['left', .* over \['x', .* do not add up"),
    (lambda g: g.collect(LabelledSequences(LABELS, [], [])), DataError, r"no text to collect .* larger split"),
    (a_label_without_text, DataError, r"no token of 'lost' .* more documents"),
    (one_label, DataError, r"at least two, got 1"),
    (ids_beyond_the_vocabulary, DataError, r"token id 24 in window 16 .* vocabulary of 24"),
    (a_negative_id, DataError, r"token id -5 in window 16"),
    (ids_beyond_the_vocabulary_in_ablation, DataError, r"token id 99 .* vocabulary of 24"),
    (lambda g: g.collect(batch_size=0), ConfigError, r"batch_size 0"),
    (a_nan_weight_in_a_router, NonFiniteError, r"windows \[0, 1, .*document 0"),
    (a_nan_weight_in_the_head, NonFiniteError, r"nan under mask 'no mask' in window 0 \(left, document 0\)"),
    (one_domain, DataError, r"only \['left'\]"),
    (one_document_a_domain, DataError, r"'left' has 1 document .*--unit window"),
    (lambda g: g.ablate(masks={}), DataError, r"`monet select`"),
    (lambda g: g.ablate(masks={"lost": g.masks["left"]}), DataError, r"'lost' in the data; choose from .*\['left'"),
    (lambda g: g.ablate(model=g.other_model), CheckpointError, r"mask for 'left': a mask of shape"),
    (a_bound_mask_of_another_model, CheckpointError, r"mask for 'left': .* another model .*0000"),
    (lambda g: g.ablate(controls=Controls(0)), ConfigError, r"controls\.count = 0: .* at least one"),
    (lambda g: Controls(-1), ConfigError, r"controls must be at least 0, got -1"),
    (lambda g: g.ablate(batch_size=0), ConfigError, r"batch_size 0"),
    (lambda g: load_masks(g.folder), CheckpointError, r"no summary\.json; .* `monet select`"),
    (a_changed_mask_folder, CheckpointError, r"left\.safetensors: missing or changed"),
    (lambda g: load_masks(g.write("summary.json", b"{").parent), CheckpointError, r"summary\.json: unreadable"),
    (lambda g: AblationResult.load(g.folder), CheckpointError, r"result\.json: no such file; .* `monet ablate`"),
    (
        lambda g: AblationResult.load(g.write("r.json", b"[]")),
        CheckpointError,
        r"r\.json: format None instead of 'monet-ablation/2'",
    ),
    (lambda g: AblationResult.load(g.write("r.json", b'{"format": "v9"}')), CheckpointError, r"format 'v9'"),
    (lambda g: report.run(g.write("r.json", b"\xff"), g.folder), CheckpointError, r"r\.json: no JSON"),
    (lambda g: run_stats(str(g.folder), g.folder, g.folder), ConfigError, r"is a folder; name a file"),
    (lambda g: load_model(str(g.folder / "none")), CheckpointError, r"none: no model found"),
    (lambda g: load_model(str(g.folder), device="abacus"), ConfigError, r"device 'abacus'"),
    (a_larger_vocabulary, DataError, r"vocabulary of 25, but the model has 24"),
    (another_tokenizer, DataError, r"another tokenizer than the one in .*model"),
    (lambda g: open_windows(g.shards(), "identify", g.model, 33), ConfigError, r"33 .* max_position_embeddings 32"),
    (lambda g: open_windows(g.shards(8), "identify", g.model, 16), DataError, r"'identify' .* has 9 tokens"),
    (lambda g: open_windows(g.shards(), "identity", g.model, 16), DataError, r"no split 'identity'"),
    (lambda g: PreparedWindows(g.shards(), "identify", 8, max_windows=0), ConfigError, r"max_windows 0"),
    (lambda g: PreparedWindows(g.shards(), "identify", 8).only(["c"]), DataError, r"'c' in the data; choose from"),
    (lambda g: LabelledSequences(LABELS, [[1, 2]], []), DataError, r"1 sequences but 0 labels"),
    (lambda g: LabelledSequences(LABELS, [[1, 2], [1]], [0, 0]), DataError, r"sequence 1 has 1 tokens"),
    (lambda g: LabelledSequences(LABELS, [[1, 2]], [3]), DataError, r"sequence 0 .* label 3"),
]


@pytest.mark.parametrize(("act", "kind", "text"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_refused(given, act, kind, text):
    with pytest.raises(MonetError, match=text) as caught:
        act(given)
    assert type(caught.value) is kind
    assert not (given.folder / "out" / "result.json").exists()


def test_nothing_is_written_for_what_was_refused(given):
    with torch.no_grad(), pytest.raises(NonFiniteError):
        a_nan_weight_in_the_head(given)
    assert not list(given.folder.rglob("*.safetensors"))
