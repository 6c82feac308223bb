"""An index equals loops over explicit experts, for any batch size, any division and any kill."""

from __future__ import annotations

import pytest
import torch
from safetensors.numpy import load_file

from monet.errors import ConfigError
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.index import build as building
from monet.eval.index.build import Wanted
from monet.eval.index.info import IndexInfo
from monet.eval.index.keys import priorities, token_hashes, unit_part
from monet.eval.index.merge import merge_indexes
from monet.eval.index.tables import bin_edges
from monet.parts import Part
from tests.eval.index.conftest import E, all_weights, content, make_data, make_index, make_model

U = E * E + 2 * E
NONE = 2**32 - 1


def best_contexts(weights, unit: int, top: int) -> list[tuple[float, int, int]]:
    """Weight, window and position of the strongest token of each window, strongest first, then by window."""
    found = []
    for window, w_TU in enumerate(weights):
        column = w_TU[:, unit].float()
        if float(column.max()) > 0:
            found.append((float(column.max()), window, int(column.argmax())))
    return sorted(found, key=lambda one: (-one[0], one[1]))[:top]


def test_contexts_equal_brute_force_for_any_batch_size(model, data, tmp_path):
    make_index(model, data, tmp_path / "index")
    for batch_size in (1, 7, 64):
        make_index(model, data, tmp_path / str(batch_size), batch_size=batch_size)
        assert content(tmp_path / str(batch_size)) == content(tmp_path / "index")
    found = load_file(tmp_path / "index" / "top.safetensors")
    assert found["weight_RUQ"].shape == (2, U, 4)
    for group, weights in all_weights(model, data).items():
        for unit in range(U):
            wanted = best_contexts(weights, unit, 4)
            got = [
                (float(weight), int(window), int(position))
                for weight, window, position in zip(
                    *(found[f"{name}_RUQ"][group, unit] for name in ("weight", "window", "position")), strict=True
                )
                if window != NONE
            ]
            assert [one[1:] for one in got] == [one[1:] for one in wanted], (group, unit)
            assert [one[0] for one in got] == pytest.approx([one[0] for one in wanted], rel=1e-6)


def test_counts_equal_brute_force(model, data, tmp_path):
    info = make_index(model, data, tmp_path / "index")
    counts = load_file(tmp_path / "index" / "counts.safetensors")
    tokens = load_file(tmp_path / "index" / "tokens.safetensors")
    label = torch.tensor([label for label, ids in zip(data.label_of, data.sequences, strict=True) for _ in ids])
    ids = torch.tensor([token for sequence in data.sequences for token in sequence])
    assert info.num_tokens == len(ids) and info.windows == [14, 13, 13]
    edges = torch.tensor(bin_edges(2), dtype=torch.float64)  # 3 heads: weights of up to 4
    for group, weights in all_weights(model, data).items():
        w_XU = torch.cat(weights)
        for c in range(3):
            sums = torch.from_numpy(counts["sum_RCU"][group, c]).double() / 2**30
            assert torch.allclose(sums, w_XU[label == c].sum(0), atol=1e-6)
        assert torch.allclose(
            torch.from_numpy(counts["square_RU"][group]).double() / 2**32, w_XU.square().sum(0), atol=1e-6
        )
        histogram = torch.from_numpy(counts["histogram_RUY"][group].astype("int64"))
        assert torch.equal(histogram.sum(1), (w_XU > 0).sum(0))
        inside = w_XU[..., None].float()
        wanted = ((inside > 0) & (inside >= edges[:-1]) & (inside < edges[1:])).sum(0)
        wanted[:, -1] += (w_XU.float() == 4.0).sum(0)
        assert torch.equal(histogram, wanted)
        fired_UV = torch.stack([(w_XU[ids == v] > 0).sum(0) for v in range(24)], dim=1)
        best = fired_UV.sort(dim=1, descending=True, stable=True)
        assert torch.equal(torch.from_numpy(tokens["firings_RUF"][group]).long(), best.values[:, :8])
        names = torch.where(best.values > 0, best.indices, -1)[:, :8]
        assert torch.equal(torch.from_numpy(tokens["token_RUF"][group]).long(), names)
        assert torch.equal(torch.from_numpy(tokens["distinct_RU"][group]).long(), (fired_UV > 0).sum(1))


def test_samples_are_those_with_the_largest_priorities(model, data, tmp_path):
    make_index(model, data, tmp_path / "index", wanted=Wanted(top=2, seed=5))
    found = load_file(tmp_path / "index" / "samples.safetensors")
    edges = bin_edges(2)
    for group, weights in all_weights(model, data).items():
        for unit in range(0, U, 7):
            by_interval: dict[int, list] = {}
            for window, w_TU in enumerate(weights):
                for position, weight in enumerate(w_TU[:, unit].float().tolist()):
                    if weight > 0:
                        interval = min(sum(weight >= edge for edge in edges[1:]), 15) // 2
                        place = (torch.tensor([one]) for one in (window, position))
                        hashed = token_hashes(5, *place) + unit_part(group * U)
                        priority = int(priorities(hashed, torch.tensor([unit])))
                        by_interval.setdefault(interval, []).append((-priority, window, position, weight))
            for interval in range(8):
                wanted = [one[1:] for one in sorted(by_interval.get(interval, []))[:2]]
                got = [
                    (int(window), int(position), float(weight))
                    for window, position, weight in zip(
                        *(found[f"{name}_RUAZ"][group, unit, interval] for name in ("window", "position", "weight")),
                        strict=True,
                    )
                    if window != NONE
                ]
                assert [one[:2] for one in got] == [one[:2] for one in wanted]
                assert [one[2] for one in got] == pytest.approx([one[2] for one in wanted], rel=1e-6)


@pytest.mark.parametrize("tokens", [512, 0], ids=["exact", "sampled"])
@pytest.mark.parametrize("count", [2, 3])
def test_merged_parts_have_the_bytes_of_one_pass(model, data, tmp_path, count, tokens):
    wanted = Wanted(top=4, token_memory=tokens)
    make_index(model, data, tmp_path / "whole", wanted=wanted)
    folders = []
    for number in range(count):
        folders.append(tmp_path / f"part{number}")
        info = make_index(model, data, folders[-1], wanted=wanted, part=Part(number, count))
        assert info.part is not None and info.part.held == [number]
    merge_indexes(folders[::-1], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    if count == 3:
        merge_indexes(folders[:2], tmp_path / "two")
        assert IndexInfo.load(tmp_path / "two").part.held == [0, 1]
        merge_indexes([tmp_path / "two", folders[2]], tmp_path / "three")
        assert content(tmp_path / "three") == content(tmp_path / "whole")


class Killed(BaseException):
    pass


def test_a_killed_pass_continues_with_the_same_bytes(model, tmp_path, monkeypatch):
    data = make_data(31)
    make_index(model, data, tmp_path / "whole")
    ran = []

    def dies(self, batch, length_B):
        if len(ran) == 3:
            raise Killed
        ran.append(len(length_B))
        count(self, batch, length_B)

    count = building._Pass.count_batch
    monkeypatch.setattr(building._Pass, "count_batch", dies)
    with pytest.raises(Killed):
        make_index(model, data, tmp_path / "index", save_seconds=0)
    assert not (tmp_path / "index").exists() and (tmp_path / "index.partial" / "state.safetensors").exists()
    monkeypatch.setattr(building._Pass, "count_batch", lambda self, *args: (ran.append(0), count(self, *args)))
    make_index(model, data, tmp_path / "index", save_seconds=0)
    assert len(ran) == 31  # no window twice
    assert content(tmp_path / "index") == content(tmp_path / "whole")
    assert not (tmp_path / "index.partial").exists()


def test_excluded_tokens_are_not_indexed(model, data, tmp_path):
    info = make_index(model, data, tmp_path / "index", exclusion=Exclusion(ids=(3,), first=1))
    left = sum(token != 3 for sequence in data.sequences for token in sequence[1:])
    assert info.num_tokens == left and info.excluded == sum(map(len, data.sequences)) - left
    position = load_file(tmp_path / "index" / "top.safetensors")["position_RUQ"]
    window = load_file(tmp_path / "index" / "top.safetensors")["window_RUQ"]
    assert (position[window != NONE] >= 1).all()
    tokens = load_file(tmp_path / "index" / "tokens.safetensors")["token_RUF"]
    assert not (tokens == 3).any()


def test_another_index_is_not_replaced(tmp_path):
    model, data = make_model(), make_data()
    make_index(model, data, tmp_path / "index")
    before = content(tmp_path / "index")
    make_index(model, data, tmp_path / "index")  # the same: kept
    assert content(tmp_path / "index") == before
    with pytest.raises(ConfigError, match=r"settings\.top"):
        make_index(model, data, tmp_path / "index", wanted=Wanted(top=5))
    for name in ("answers", "scores"):
        (tmp_path / "index" / name).mkdir()
        (tmp_path / "index" / name / "a.jsonl").write_text("{}\n")
    make_index(model, data, tmp_path / "index", wanted=Wanted(top=5), overwrite=True)
    assert (tmp_path / "index" / "answers" / "a.jsonl").read_text() == "{}\n", "answers may have cost money"
    assert not (tmp_path / "index" / "scores").exists(), "scores are of the other index"
    assert IndexInfo.load(tmp_path / "index").settings.top == 5
