"""Text on which masks were chosen is recognised, whole or in part, and statistics do not count it twice."""

from dataclasses import replace

import pytest

from monet.errors import CheckpointError
from monet.eval.attribution.selection import select, summarise
from monet.eval.attribution.stats import collect
from monet.eval.core import text_overlap
from monet.eval.core.held_out import held_out, is_other_text
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from monet.eval.core.text_overlap import Signature, same_source, shares_text
from tests.data.samples import make_shards
from tests.eval.conftest import LABELS


@pytest.fixture
def chosen(random_model, random_data):
    """Provenance of masks that were chosen on `random_data`."""
    return [mask.provenance for mask in select(collect(random_model, random_data, progress=False)).values()]


def sequences(rows, labels=None):
    return LabelledSequences(LABELS, rows, labels or [0] * len(rows))


OTHER = [[23, 22, 21, number % 20] for number in range(20)]

PARTS = {
    "the same": lambda data: data,
    "two labels": lambda data: data.only(LABELS[:2]),
    "a shard": lambda data: data.shard(0, 2),
    "a shard of a shard": lambda data: data.shard(1, 2).shard(0, 2),
    "a shard of a label": lambda data: data.only(LABELS[:1]).shard(1, 2),
    "a copy of half": lambda data: sequences(data.sequences[::2]),
    "another order": lambda data: sequences(data.sequences[::-1], data.label_of[::-1]),
    "other pads": lambda data: replace(data, padding_side="left", pad_id=3, kept=[2, 4]),
    "one among others": lambda data: sequences([*OTHER, data.sequences[3]]),
    "with scores": lambda data: replace(data, scores=[[1.0] * len(row) for row in data.sequences], notes={"x": 1}),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_no_part_of_the_text_is_held_out(chosen, random_data, part):
    assert held_out(chosen, part(random_data)) is False


def test_other_sequences_are_held_out(chosen, random_data):
    assert held_out(chosen, sequences(OTHER)) is True
    assert held_out(chosen, sequences([row[:-1] for row in random_data.sequences if len(row) > 4])) is True


def test_two_shards_of_one_text_are_held_out_from_each_other(random_model, random_data):
    first = [m.provenance for m in select(collect(random_model, random_data.shard(0, 2), progress=False)).values()]
    assert held_out(first, random_data.shard(1, 2)) is True
    assert held_out(first, random_data.shard(0, 2).shard(1, 3)) is False
    assert held_out(first, random_data.shard(1, 2).shard(1, 3)) is True


def test_what_was_described_without_its_sequences_is_not_known(chosen, random_data):
    for notes in chosen:
        notes["statistics"]["parts"][0].pop("signature", None)  # the masks may share these notes
    assert held_out(chosen, random_data) is False and held_out(chosen, random_data.shard(0, 2)) is False
    assert held_out(chosen, sequences(random_data.sequences[::2])) is None
    assert held_out(chosen, sequences(OTHER)) is None


def folder_of(path, shift=0):
    documents = {
        name: [[3 + (7 * n + 5 * k + t * t + shift) % 20 for t in range(30)] for n in range(3)]
        for k, name in enumerate(LABELS)
    }
    return make_shards(path, {"identify": documents, "evaluate": documents}, vocab_size=24)


def test_prepared_text_and_copies_of_its_windows(random_model, tmp_path):
    windows = PreparedWindows(folder_of(tmp_path / "a"), "identify", 8)
    rows = [windows.dataset[number]["input_ids"].tolist() for number in range(windows.num_windows)]
    of_windows = collect(random_model, windows, progress=False).provenance["parts"]
    for copy in (sequences(rows[::2]), sequences([row[:-1] for row in rows])):
        assert is_other_text(of_windows, copy) is False
        assert is_other_text(collect(random_model, copy, progress=False).provenance["parts"], windows) is False
    assert is_other_text(of_windows, sequences(OTHER)) is True
    assert is_other_text(of_windows, PreparedWindows(tmp_path / "a", "evaluate", 8)) is True, (
        "splits have no original in common"
    )
    assert is_other_text(of_windows, PreparedWindows(tmp_path / "a", "identify", 4)) is False, "cut at other places"
    assert is_other_text(of_windows, PreparedWindows(folder_of(tmp_path / "b", shift=3), "identify", 8)) is True


def test_parts_of_prepared_text(tmp_path):
    whole = PreparedWindows(folder_of(tmp_path), "identify", 8)

    def share(one, other):
        return shares_text(one.description, other.description)

    assert share(whole, whole.shard(0, 2)) and share(whole.shard(0, 2), whole.shard(0, 2).shard(1, 2))
    assert share(whole.shard(1, 2), whole.shard(1, 3)) and not share(whole.shard(1, 2), whole.shard(2, 4))
    assert not share(whole.shard(0, 2), whole.shard(1, 2).shard(0, 2))
    assert not share(whole.only(LABELS[:1]), whole.only(LABELS[1:]))
    some = PreparedWindows(tmp_path, "identify", 4, domains=LABELS[1:])
    assert not share(whole.only(LABELS[:1]), some) and share(whole, some)
    twice, once = whole.shard(1, 2).shard(1, 2), whole.shard(3, 4)
    assert twice.description == once.description and twice._windows == once._windows


def test_statistics_of_common_sequences_do_not_add_up(random_model, random_data):
    mine = collect(random_model, random_data, progress=False)
    for number, rows in ((1, [*OTHER, random_data.sequences[3]]), (9, random_data.sequences[::2])):
        with pytest.raises(
            CheckpointError, match=f"both statistics have {number} of the same sequences.* collect both"
        ):
            mine.merge(collect(random_model, sequences(rows), progress=False))
    merged = mine.merge(collect(random_model, sequences(OTHER), progress=False))
    with pytest.raises(CheckpointError, match="20 of the same sequences"):
        merged.merge(collect(random_model, sequences(OTHER[::-1]), progress=False))


def test_shards_of_a_text_that_repeats_itself_add_up(random_model, random_data):
    data = sequences(random_data.sequences * 2)
    first, second = (collect(random_model, data.shard(index, 2), progress=False) for index in range(2))
    assert int(first.merge(second).windows_C.sum()) == 34


def test_samples_of_large_texts_are_comparable(monkeypatch, random_model):
    monkeypatch.setattr(text_overlap, "LIMIT", 64)
    monkeypatch.setattr(text_overlap, "ENOUGH_HASHES", 20)
    rows = [[n % 24, n // 24 % 24, n // 576, 5] for n in range(4000)]
    large, known = sequences(rows), Signature.of(sequences(rows))
    assert len(known.hashes) == 64 and known.bound == max(known.hashes)
    assert Signature.read(known.notes()) == known
    all_hashes = frozenset().union(*(Signature.of(sequences(rows[at : at + 50])).hashes for at in range(0, 4000, 50)))
    assert known.hashes == frozenset(sorted(all_hashes)[:64])
    part = {"sha256": "x", **known.notes()}
    assert is_other_text([part], sequences(rows[::2])) is False
    fresh = sequences([[*row, 7] for row in rows])
    assert is_other_text([part], fresh) is True, "64 hashes of either are compared"
    few = sequences([[*row, 7] for row in rows[:100]])
    assert is_other_text([part], few) is None, "about two of the hundred are in the sample's range"
    parts = text_overlap.thinned([part, {"sha256": "y", **Signature.of(fresh).notes()}, {"sha256": "z"}])
    found = [Signature.read(one) for one in parts]
    assert found[2] is None and sum(len(one.hashes) for one in found if one is not None) == 64
    assert is_other_text(parts[:1], large) is False and is_other_text(parts[1:2], fresh) is False


def test_people_are_shown_the_number_of_sequences(chosen, random_model, random_data):
    statistics = collect(random_model, random_data, progress=False)
    (part,) = summarise(statistics, select(statistics), 2.0)["statistics"]["parts"]
    assert part["signature"] == 17


def test_a_damaged_signature_is_none(chosen):
    for content in (7, {"hashes": "A", "bound": "1"}, {"hashes": "AAAA", "bound": "1"}, {"hashes": "", "bound": "x"}):
        assert Signature.read({"signature": content}) is None
    assert same_source({}, {"sha256": "x"}) is None and shares_text({"split": "x"}, {"sha256": "x"}) is None


def test_a_prepared_folder_without_hashes_is_unknown_and_not_other_text():
    old, new = {"content": "a", "split": "identify"}, {"content": "b", "split": "evaluate"}
    assert shares_text(old, new) is None


def test_two_shards_that_hold_the_same_sequence_are_not_held_out():
    rows = [[n, 5, 6, 7] for n in range(8) for _ in range(2)]
    data = sequences(rows)
    first, second = data.shard(0, 2), data.shard(1, 2)
    part = {**first.description, **Signature.of(first).notes()}
    common = Signature.of(first).hashes & Signature.of(second).hashes
    assert common and is_other_text([part], second) is False
