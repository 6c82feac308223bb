"""Data replaced between two starts of a run: refused with both fingerprints, and nothing is written."""

from __future__ import annotations

import json
import shutil

import numpy as np

from monet.data.storage.shards import fingerprint_of
from monet.files import sha256_file
from tests.training.runs import losses


def test_a_run_does_not_go_on_in_other_data(train, settings, data_dir, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    settings["data"]["data_dir"] = str(folder)
    settings["trainer"]["max_steps"] = 4
    run = train()
    before = losses(run.run_dir)
    path = folder / "train" / "code" / "shard-00000.bin"
    ids = np.memmap(path, dtype="<u2", mode="r+")
    ids[3] = ids[3] ^ 1
    ids.flush()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["code"]["shards"][0]["files"][".bin"]["sha256"] = sha256_file(path)
    old, manifest["fingerprint"] = manifest["fingerprint"], fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings["trainer"]["max_steps"] = 8
    assert train().code == 3
    error = capsys.readouterr().err
    assert manifest["fingerprint"][:12] in error
    assert old[:12] in error
    assert losses(run.run_dir) == before
