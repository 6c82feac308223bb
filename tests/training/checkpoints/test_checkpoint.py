"""Checkpoint folders: whole or rejected, newest valid first, nothing overwritten, nothing pickled."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from monet.errors import CheckpointError
from monet.files import write_manifest
from monet.training.checkpoints import checkpoint as ck
from monet.training.checkpoints import tensor_files
from monet.training.checkpoints import verify as verify_module
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.run import RunDirectory

FILES = [
    "model.safetensors", "optimizer.safetensors", ck.CONFIG, ck.TENSORS, ck.STATE, "rank-00000.safetensors",
]  # fmt: skip


def state(tied=False, value=1.0):
    embedding = torch.full((4, 2), value)
    head = embedding if tied else torch.zeros(4, 2)
    return {
        "state_dict": {"model.model.embed_tokens.weight": embedding, "model.lm_head.weight": head,
                       "model.model.layers.0.router.norm1.num_batches_tracked": torch.tensor(3)},
        "config": {"model_type": "monet", "tie_word_embeddings": tied},
        "optimizer_states": [{"param_groups": [{"betas": (0.9, 0.95)}]}],
        "moments": {"model.embed_tokens.weight/step": torch.tensor(5.0),
                    "model.embed_tokens.weight/exp_avg": torch.randn(4, 2)},
        "rank_state": {"generators": (1, torch.arange(3))},
        "loops": {"fit_loop": {"done": 5}},
    }  # fmt: skip


def save(folder, step, **kwargs):
    path = ck.step_folder(folder, step)
    FolderCheckpointIO().save_checkpoint(state(**kwargs), path)
    return path


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_everything_comes_back(tmp_path):
    saved = state()
    path = ck.step_folder(tmp_path, 5)
    FolderCheckpointIO().save_checkpoint(saved, path)
    loaded = FolderCheckpointIO().load_checkpoint(path)
    assert loaded.keys() == {*saved.keys(), "world_size"}
    assert loaded["config"] == saved["config"] and loaded["loops"] == saved["loops"]
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    assert loaded["optimizer_states"] == saved["optimizer_states"]
    assert loaded["moments"].keys() == saved["moments"].keys()
    for name, tensor in saved["moments"].items():
        assert torch.equal(loaded["moments"][name], tensor)
    number, tensor = loaded["rank_state"]["generators"]
    assert number == 1 and torch.equal(tensor, torch.arange(3))


@pytest.mark.parametrize(("ranks", "files", "writers"), [(1, 4, 1), (2, 4, 2), (8, 8, 8), (40, 40, 40), (1000, 40, 40)])
def test_many_ranks_share_the_writing(monkeypatch, ranks, files, writers):
    """A layout of 40 tensors of 100 bytes in files of 10 to 1,000 bytes."""
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 1000)
    monkeypatch.setattr(tensor_files, "LEAST_BYTES", 10)
    tensors = {f"layer.{n}": torch.empty(25, device="meta") for n in range(40)}
    plan = tensor_files.plan("model", tensors, ranks, first_owner=3)
    assert [name for file in plan for name in file.tensors] == list(tensors)
    assert (len(plan), len({file.owner for file in plan})) == (files, writers)
    assert max(len(file.tensors) for file in plan) - min(len(file.tensors) for file in plan) == 0


def test_large_parts_are_split_and_hugging_face_reads_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 40)
    path = save(tmp_path, 5)
    names = {p.name for p in path.iterdir()}
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= names
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 72 and len(index["weight_map"]) == 3
    loaded = FolderCheckpointIO().load_checkpoint(path)
    for name, tensor in state()["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    assert ck.newest_valid(tmp_path).step == 5
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002" in ck.newest_valid(tmp_path).rejected[0][1]


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "link.safetensors"])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    index = {"metadata": {}, "weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        ck.read_weights(tmp_path)["a"]


def test_folder_holds_released_names_and_no_pickle(tmp_path):
    path = save(tmp_path, 5)
    assert path.name == "step-00000005"
    assert {p.name for p in path.iterdir()} == {*FILES, "MANIFEST.json"}
    assert set(load_file(path / "model.safetensors")) == {
        "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.router.norm1.num_batches_tracked"
    }  # fmt: skip


def test_a_tied_head_is_not_written_and_comes_back(tmp_path):
    path = save(tmp_path, 5, tied=True)
    assert "lm_head.weight" not in load_file(path / "model.safetensors")
    weights = FolderCheckpointIO().load_checkpoint(path)["state_dict"]
    assert torch.equal(weights["model.lm_head.weight"], weights["model.model.embed_tokens.weight"])


def test_weights_outside_the_model_are_refused(tmp_path):
    broken = state()
    broken["state_dict"]["probe.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"probe\.weight"):
        FolderCheckpointIO().save_checkpoint(broken, tmp_path / "step-00000001")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_value_leaves_nothing_behind(tmp_path):
    with pytest.raises(CheckpointError, match=r"callbacks\.x"):
        FolderCheckpointIO().save_checkpoint({**state(), "callbacks": {"x": object()}}, tmp_path / "step-00000001")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_overwritten(tmp_path):
    path = save(tmp_path, 5)
    before = (path / ck.STATE).read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save(tmp_path, 5, value=2.0)
    assert (path / ck.STATE).read_bytes() == before


def test_a_full_disk_is_reported_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"step-00000010.*No space left"):
        save(tmp_path, 10)
    assert ck.newest_valid(tmp_path).step == 5
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize(("name", "damage"), [
    *((name, damage) for name in [*FILES, "MANIFEST.json"] for damage in ("truncate", "empty", "delete")),
    *((name, "flip") for name in FILES),
])  # fmt: skip
def test_a_damaged_newest_is_passed_over_with_the_file_named(tmp_path, name, damage):
    save(tmp_path, 5)
    file = save(tmp_path, 10) / name
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "delete":
        file.unlink()
    else:
        flip_last_byte(file)
    selection = ck.newest_valid(tmp_path)
    assert selection.step == 5
    ((folder, reason),) = selection.rejected
    assert folder.name == "step-00000010"
    assert name in reason


def test_a_manifest_that_forgets_a_file_is_invalid(tmp_path):
    path = save(tmp_path, 5)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    del manifest["files"][ck.TENSORS]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    selection = ck.newest_valid(tmp_path)
    assert selection.folder is None and ck.TENSORS in selection.rejected[0][1]


def test_any_damage_of_a_manifest_is_a_reason_and_no_crash(tmp_path):
    save(tmp_path, 5)
    manifest = save(tmp_path, 10) / "MANIFEST.json"
    content = manifest.read_bytes()
    flipped = [
        content[:place] + bytes([byte ^ (1, 32)[place % 2]]) + content[place + 1 :]
        for place, byte in enumerate(content)
    ]
    wrong = [b"[]", b'{"files": []}', b'{"files": {"a": 3}}', b'{"files": {"a": {"bytes": 1e999, "sha256": ""}}}']
    for damaged in (*flipped, *wrong):
        manifest.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="step-00000010"):
            ck.verify_checkpoint(manifest.parent, full=True)
    assert ck.newest_valid(tmp_path).step == 5


def relist(path, *forgotten):
    """Write the manifest again, without some of the files."""
    (path / "MANIFEST.json").unlink()
    write_manifest(path)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    for name in forgotten:
        del manifest["files"][name]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def test_what_would_be_read_must_be_listed(tmp_path, monkeypatch):
    """A shard, an index next to a single file, another rank's file."""
    with monkeypatch.context() as small:
        small.setattr(tensor_files, "FILE_BYTES", 40)
        path = save(tmp_path, 5)
    relist(path, "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"does not list model-00002-of-00002\.safetensors"):
        ck.verify_checkpoint(path, full=False)
    path = save(tmp_path, 10)
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "optimizer.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"does not list model\.safetensors\.index\.json"):
        ck.verify_checkpoint(path, full=False)
    path = save(tmp_path, 15)
    stored = json.loads((path / ck.STATE).read_text())
    stored["state"]["world_size"] = 2
    (path / ck.STATE).write_text(json.dumps(stored))
    relist(path)
    with pytest.raises(CheckpointError, match=r"does not list rank-00001\.safetensors"):
        ck.verify_checkpoint(path, full=False)


def test_a_run_without_a_valid_checkpoint_is_not_begun_anew(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (5, 10):
        (save(run.checkpoints, step) / ck.STATE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none is valid: step-00000010: .*; step-00000005: .*another run_dir"):
        run.choose_checkpoint()
    assert [ck.step_of(folder) for folder in ck.list_checkpoints(run.checkpoints)] == [5, 10]
    shutil.rmtree(run.checkpoints)
    assert run.choose_checkpoint().folder is None


def test_a_checkpoint_that_a_run_deletes_while_it_is_looked_at_is_no_fault(tmp_path, monkeypatch, capsys):
    for step in (5, 10):
        save(tmp_path / "checkpoints", step)
    check = verify_module.verify_checkpoint

    def deleted(folder, *, full):
        if ck.step_of(folder) == 5:
            shutil.rmtree(folder)
        check(folder, full=full)

    monkeypatch.setattr(verify_module, "verify_checkpoint", deleted)
    verify_module.verify(tmp_path)
    assert "step-00000005  was deleted in the meantime" in capsys.readouterr().out


def test_steps_are_ordered_as_numbers_and_other_folders_ignored(tmp_path):
    for step in (9, 100_000_000, 10):
        save(tmp_path, step)
    (tmp_path / "step-00000011.invalid-0").mkdir()
    (tmp_path / "notes").mkdir()
    assert [ck.step_of(p) for p in ck.list_checkpoints(tmp_path)] == [9, 10, 100_000_000]
    assert ck.newest_valid(tmp_path / "absent").folder is None


def test_leftovers_go_and_checkpoints_stay(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".step-00000010.tmp-1a2b3c4d").mkdir()
    (tmp_path / ".step-00000010.tmp-1a2b3c4d" / "x").write_text("half")
    ck.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_an_invalid_checkpoint_is_set_aside_not_deleted(tmp_path):
    first = ck.set_aside(save(tmp_path, 5))
    second = ck.set_aside(save(tmp_path, 5))
    assert (first.name, second.name) == ("step-00000005.invalid-0", "step-00000005.invalid-1")
    assert (first / ck.STATE).is_file()
    assert ck.list_checkpoints(tmp_path) == []


def test_retention_keeps_the_newest(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    ck.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_retention_never_deletes_the_only_valid_one(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    for step in (10, 15):
        (ck.step_folder(tmp_path, step) / ck.STATE).write_bytes(b"")
    ck.prune(tmp_path, 2)
    assert ck.newest_valid(tmp_path).step == 5


def test_a_failed_deletion_is_reported_and_survived(tmp_path, monkeypatch, caplog):
    for step in (5, 10):
        save(tmp_path, step)

    def fail(*args, **kwargs):
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", fail)
    with caplog.at_level(logging.WARNING):
        ck.prune(tmp_path, 1)
    assert "busy" in caplog.text
    assert ck.newest_valid(tmp_path).step == 10


def test_another_format_version_is_refused(tmp_path):
    path = save(tmp_path, 5)
    stored = json.loads((path / ck.STATE).read_text())
    (path / ck.STATE).write_text(json.dumps({**stored, "format_version": 99}))
    (path / "MANIFEST.json").unlink()
    write_manifest(path)
    with pytest.raises(CheckpointError, match="format_version 99"):
        FolderCheckpointIO().load_checkpoint(path)
