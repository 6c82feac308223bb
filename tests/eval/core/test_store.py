"""Outcomes survive a kill, are reused only for the same evaluation, and are never counted twice."""

import json

import pytest

from monet.errors import ConfigError, DataError
from monet.eval.core.conditions import conditions
from monet.eval.core.controls import Controls
from monet.eval.core.store import ExampleStore, model_key, sources_digest
from monet.masks.expert_mask import ExpertMask

KEY = {"weights": "a", "settings": {"shots": 0}}


def fill(folder, examples, key=KEY, mask=None):
    with ExampleStore(folder, key, mask) as store:
        for example in examples:
            store.put(example, {"correct": len(example)})
        return store.path


def test_outcomes_are_there_again(tmp_path):
    fill(tmp_path, ["a", "bb"])
    with ExampleStore(tmp_path, KEY) as store:
        assert len(store) == 2 and "bb" in store and store["bb"] == {"correct": 2} and "c" not in store
        store.put("c", None)
    with ExampleStore(tmp_path, KEY) as store:
        assert store["c"] is None


def test_outcomes_that_are_not_remembered_are_streamed(tmp_path):
    store = ExampleStore(tmp_path, KEY, remember=lambda _: None)
    assert list(store.stream()) == []
    with store:
        store.put("a", ["text", "more"])
        assert "a" in store and store["a"] is None
        store.put("b", [])
    assert list(store.stream()) == [("a", ["text", "more"]), ("b", [])]
    store.path.write_bytes(store.path.read_bytes()[:-2])
    assert list(store.stream()) == [("a", ["text", "more"])]


def test_a_half_written_line_is_done_again(tmp_path):
    path = fill(tmp_path, ["a", "bb"])
    path.write_bytes(path.read_bytes()[:-5])
    with ExampleStore(tmp_path, KEY) as store:
        assert "a" in store and "bb" not in store
        store.put("bb", 1)
    with ExampleStore(tmp_path, KEY) as store:
        assert store["bb"] == 1 and len(store) == 2


def test_other_settings_and_masks_are_other_files(tmp_path, random_model):
    mask = ExpertMask.random(random_model.config, 5, seed=0)
    fill(tmp_path, ["a"])
    for key, other in (({**KEY, "settings": {"shots": 5}}, None), (KEY, mask)):
        with ExampleStore(tmp_path, key, other) as store:
            assert len(store) == 0


def test_a_key_is_known_again_as_json_holds_it(tmp_path):
    for _ in range(2):
        fill(tmp_path, [], {"shots": (0, 5)})


def test_damage_and_repeats_are_named(tmp_path):
    path = fill(tmp_path, ["a", "bb"])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(DataError, match="line 2 is damaged"), ExampleStore(tmp_path, KEY):
        pass
    path.write_text(json.dumps({"format": "other"}) + "\n")
    with pytest.raises(DataError, match="line 1"), ExampleStore(tmp_path, KEY):
        pass
    path.unlink()
    with ExampleStore(tmp_path, KEY) as store:
        store.put("a", 1)
        with pytest.raises(DataError, match="'a' occurs twice"):
            store.put("a", 2)
        with pytest.raises(ConfigError, match="another process"), ExampleStore(tmp_path, KEY):
            pass


def test_every_mask_comes_with_its_controls(random_model):
    masks = {
        "a": ExpertMask.random(random_model.config, 5, seed=0),
        "nothing": ExpertMask.keep_all(random_model.config),
    }
    found = conditions(masks, Controls(2), "text")
    assert [condition.name for condition in found] == ["no mask", "a", "random 0 like a", "random 1 like a"]
    assert all(c.mask.removed_per_group == masks["a"].removed_per_group for c in found[1:])


def test_other_code_is_another_key(tmp_path, monkeypatch, random_model):
    """After a change of the package's sources, outcomes are computed again, even in the same version."""
    import monet

    sources_digest.cache_clear()
    assert model_key(random_model)["sources"] == sources_digest()
    (tmp_path / "package").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "tests").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(monet, "__path__", [str(tmp_path / "package"), str(tmp_path)])
        found = []
        for name, text in (
            ("package/a.py", "1"), ("package/a.py", "2"), ("kernels/a.cpp", "1"), ("tests/a.py", "1"),
            ("package/a.md", "1"),
        ):  # fmt: skip
            (tmp_path / name).write_text(text)
            sources_digest.cache_clear()
            found.append(sources_digest())
    sources_digest.cache_clear()
    assert len(set(found)) == 3 and found[2] == found[3] == found[4]
