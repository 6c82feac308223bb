"""An export holds one file of weights in memory at a time, for models of any size."""

import subprocess
import sys
from pathlib import Path

import pytest

from monet.training.checkpoints import tensor_files
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.language_models import build, config_json
from monet.training.settings import ModelShape
from tests.training.runs import SHAPE

FILE_BYTES = 8 << 20
EXPORT = """
import sys, threading, time
from pathlib import Path
import tokenizers
import monet.training.language_models
from monet.convert.export import export
from monet.training.checkpoints import tensor_files

def anonymous():  # bytes of this process that are no file's: mapped weights can be dropped at any time
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

tensor_files.FILE_BYTES = int(sys.argv[5])
before = peak = anonymous()
done = False
thread = threading.Thread(target=watch)
thread.start()
export(Path(sys.argv[1]), checkpoint=Path(sys.argv[2]), tokenizer=Path(sys.argv[3]), dtype=sys.argv[4])
done = True
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.slow
def test_a_model_is_never_in_memory_as_a_whole(tmp_path, data_dir, monkeypatch):
    shape = ModelShape(**{**SHAPE, "hidden_size": 128, "num_hidden_layers": 24, "moe_experts": 64, "moe_dim": 64})
    model = build(shape.config(), "sdpa")
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 12 * FILE_BYTES
    monkeypatch.setattr(tensor_files, "FILE_BYTES", FILE_BYTES)
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "config": config_json(model.config), "moments": {}, "monet": {"tokens_seen": 0},
    }  # fmt: skip
    folder = tmp_path / "checkpoints" / "step-00000004"
    FolderCheckpointIO().save_checkpoint(checkpoint, folder)
    for dtype in ("float32", "bfloat16"):
        words = [tmp_path / dtype, folder, data_dir / "tokenizer", dtype, FILE_BYTES]
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / dtype).glob("*.safetensors"))) > 4
        assert int(done.stdout.splitlines()[-1]) < 3 * FILE_BYTES < size / 4, dtype
