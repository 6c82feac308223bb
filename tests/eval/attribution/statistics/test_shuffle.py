"""Statistics under permuted labels: whole documents are shuffled, and the sums equal those of the shuffled text."""

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.statistics import limits
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.shuffle import Shuffle
from monet.eval.attribution.stats import ExpertStatistics, Wanted, collect
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from tests.data.samples import make_shards
from tests.eval.attribution.statistics.test_result import EVERYTHING, same

TWICE = Wanted(firing=True, permutations=2)


@pytest.fixture
def documents(random_data) -> LabelledSequences:
    """Texts of two pieces, and a score for every token."""
    generator = torch.Generator().manual_seed(5)
    scores = [torch.rand(len(sequence), generator=generator).tolist() for sequence in random_data.sequences]
    label_of = [number // 6 for number in range(17)]
    return replace(random_data, label_of=label_of, scores=scores, documents=[f"d{n // 2}" for n in range(17)])


def shuffled_by_hand(data: LabelledSequences, giver_of: dict[str, str]) -> LabelledSequences:
    """The same sequences, each document with the label and scores of another one."""
    assert data.documents is not None and data.scores is not None
    label_of = dict(zip(data.documents, data.label_of, strict=True))
    scores_of: dict[str, list[float]] = {}
    for name, scores in zip(data.documents, data.scores, strict=True):
        scores_of.setdefault(name, []).extend(scores)
    streams = {name: itertools.cycle(scores_of[giver]) for name, giver in giver_of.items()}
    return replace(
        data,
        label_of=[label_of[giver_of[name]] for name in data.documents],
        scores=[[next(streams[name]) for _ in ids] for name, ids in zip(data.documents, data.sequences, strict=True)],
    )


@pytest.mark.parametrize(("batch_size", "side"), [(4, "right"), (17, "left")])
def test_they_are_the_statistics_of_the_shuffled_documents(random_model, documents, batch_size, side):
    names = list(dict.fromkeys(documents.documents))
    shuffle = Shuffle(documents, 8, Exclusion(), 2, 0)
    data = replace(documents, padding_side=side)
    found = collect(random_model, data, batch_size=batch_size, wanted=TWICE, progress=False)
    assert len(found.permuted) == 2 and found.provenance["parts"][0]["permutations"]["documents"] == 9
    for giver_U, permuted in zip(shuffle.giver_QU.tolist(), found.permuted, strict=True):
        by_hand = shuffled_by_hand(documents, {name: names[giver] for name, giver in zip(names, giver_U, strict=True)})
        assert by_hand.label_of != documents.label_of
        same(permuted, collect(random_model, by_hand, wanted=replace(TWICE, permutations=0), progress=False))
    same(found, collect(random_model, documents, wanted=replace(TWICE, permutations=0), progress=False))


def test_products_and_lists_permute_alike(random_model, random_data, monkeypatch):
    found = []
    for products_a_pair in (0, 10**9):
        monkeypatch.setattr(limits, "PRODUCTS_A_PAIR", products_a_pair)
        found.append(collect(random_model, random_data, batch_size=5, wanted=Wanted(permutations=3), progress=False))
    assert not torch.equal(found[0].permuted[0].sums_CREE, found[1].permuted[0].sums_CREE)
    for one, other in zip(found[0].permuted, found[1].permuted, strict=True):
        same(one, other)


def test_documents_stay_whole_and_labels_keep_their_number_of_documents(random_data):
    label_of = [0] * 2 + [1] * 5 + [2] * 10
    shuffle = Shuffle(replace(random_data, label_of=label_of), 4, Exclusion(), 50, 0)
    assert {tuple(sorted(label_U)) for label_U in shuffle.label_QU.tolist()} == {tuple(label_of)}
    assert all(sorted(giver_U) == list(range(17)) for giver_U in shuffle.giver_QU.tolist())
    assert len(set(map(tuple, shuffle.label_QU.tolist()))) == 50
    assert shuffle.counts(3)[2].tolist() == [2, 5, 10] and int(shuffle.counts(3)[1].sum()) == 17


def test_windows_that_begin_in_one_document_move_together(random_model, tmp_path):
    text = {"a": [[5] * 40, [6] * 3, [7] * 25], "b": [[9] * 30, [3] * 30]}
    data = PreparedWindows(make_shards(tmp_path / "data", {"identify": text}, vocab_size=24), "identify", 8)
    shuffle = Shuffle(data, 3, Exclusion(), 1, 0)
    begins = [(int(label), name) for batch in data.batches(2) for label, name in
              zip(batch.label_B, batch.document_B, strict=True)]  # fmt: skip
    assert shuffle.documents == len(set(begins)) < len(begins)
    numbers = dict.fromkeys(begins)
    assert shuffle.found.document_S.tolist() == [list(numbers).index(one) for one in begins]
    found = collect(random_model, data, progress=False)
    assert int(found.permuted[0].windows_C.sum()) == len(begins)


def test_excluded_tokens_are_not_counted_and_documents_without_others_stay(random_model, documents):
    sequences = [[23, 23], *documents.sequences[1:]]
    scores = [[9.0, 9.0], *(documents.scores or [])[1:]]
    names = ["alone", *(documents.documents or [])[1:]]
    data = replace(documents, sequences=sequences, scores=scores, documents=names)
    shuffle = Shuffle(data, 8, Exclusion((23,)), 20, 0)
    assert shuffle.documents == 9 and not shuffle.giver_QU[:, 0].any()
    found = collect(random_model, data, exclusion=Exclusion((23,)), wanted=TWICE, progress=False)
    for one in found.permuted:
        assert int(one.tokens_C.sum()) == int(found.tokens_C.sum())
        assert one.scores is not None and float(one.scores.score_max) < 9


def test_equal_seeds_give_equal_permutations_and_a_killed_pass_leaves_nothing(random_model, documents):
    whole = collect(random_model, documents, wanted=TWICE, progress=False)
    calls = []

    def killed(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = random_model.register_forward_pre_hook(killed)
    handle_body = random_model.base_model.register_forward_pre_hook(killed)
    with pytest.raises(KeyboardInterrupt):
        collect(random_model, documents, batch_size=4, wanted=TWICE, progress=False)
    handle.remove(), handle_body.remove()
    again = collect(random_model, documents, wanted=TWICE, progress=False)
    for one, other in zip(whole.permuted, again.permuted, strict=True):
        assert torch.equal(one.sums_CREE, other.sums_CREE) and torch.equal(one.tokens_C, other.tokens_C)
    assert torch.equal(whole.sums_CREE, again.sums_CREE)
    other = collect(random_model, documents, wanted=replace(TWICE, permutation_seed=1), progress=False)
    assert not torch.equal(other.permuted[0].sums_CREE, whole.permuted[0].sums_CREE)
    assert torch.equal(other.sums_CREE, whole.sums_CREE)


def test_merged_parts_carry_their_permutations(random_model, documents):
    parts = [collect(random_model, documents.shard(n, 3), wanted=TWICE, progress=False) for n in range(3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert len(merged.permuted) == 2
    for number, one in enumerate(merged.permuted):
        summed_CREE = sum(part.permuted[number].sums_CREE for part in parts)
        assert torch.allclose(one.sums_CREE, torch.as_tensor(summed_CREE))
        assert torch.equal(one.documents_C, merged.documents_C) and one.firing is not None and one.scores is not None
        assert not torch.equal(one.sums_CREE, merged.sums_CREE)
        assert int(one.tokens_C.sum()) == int(merged.tokens_C.sum())
    fewer = collect(random_model, documents.shard(1, 3), wanted=replace(TWICE, permutations=1), progress=False)
    assert len(parts[0].merge(fewer).permuted) == 1


def test_parts_get_independent_permutations(random_data):
    data = replace(random_data, label_of=[n % 3 for n in range(17)] + [0], sequences=[*random_data.sequences, [1, 2]])
    first, second = (Shuffle(data.shard(n, 2), 8, Exclusion(), 4, 0).giver_QU for n in range(2))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_one_label_alone_is_not_permuted(random_model, random_data):
    one = random_data.only(["left"])
    assert collect(random_model, one, progress=False).permuted == []
    scored = replace(one, scores=[[float(n)] * len(ids) for n, ids in enumerate(one.sequences)])
    assert len(collect(random_model, scored, progress=False).permuted) == 1  # its scores are
    with pytest.raises(ConfigError, match="permutations -1 must be at least 0"):
        Wanted(permutations=-1)


def test_they_survive_the_file_and_older_files_are_read(random_model, documents, tmp_path):
    statistics = collect(random_model, documents, wanted=replace(EVERYTHING, permutations=2), progress=False)
    path = tmp_path / "s.safetensors"
    statistics.save(path)
    loaded = ExpertStatistics.load(path, model=random_model)
    assert len(loaded.permuted) == 2 and set(loaded.permuted[0].extras) == {"firing", "scores"}
    for one, other in zip(loaded.permuted, statistics.permuted, strict=True):
        same(one, other)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["format"] == "monet-expert-statistics/2"
    tensors = load_file(path)
    older = {name: tensor for name, tensor in tensors.items() if not name.startswith("permuted.")}
    save_file(older, path, {**header, "format": "monet-expert-statistics/1"})
    read = ExpertStatistics.load(path, model=random_model)
    same(read, statistics)
    assert read.permuted == []
    save_file({**tensors, "permuted.1.sums": tensors["sums"][:, :1].contiguous()}, path, header)
    with pytest.raises(CheckpointError, match=r"s\.safetensors: .*does not fit|do not fit"):
        ExpertStatistics.load(path)
    save_file({**tensors, "permuted.x.sums": tensors["sums"].clone()}, path, header)
    with pytest.raises(CheckpointError, match="unreadable statistics"):
        ExpertStatistics.load(path)


def test_documents_of_one_source_move_together(random_data):
    """Records of one original are not independent, so a permutation moves originals."""

    sources = [f"original {n // 9}" for n in range(len(random_data.sequences))]
    shuffle = Shuffle(replace(random_data, sources=sources), 4, Exclusion(), 1, 0)
    units = {(label, source) for label, source in zip(random_data.label_of, sources, strict=True)}
    assert shuffle.documents == len(units) < len(random_data.sequences)
    assert Shuffle(random_data, 4, Exclusion(), 1, 0).documents == len(random_data.sequences)
