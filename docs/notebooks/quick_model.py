"""The model that the notebooks use: that of `make demo` if it exists, else a small one that trains in a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs"
DATA = ROOT / "data"


def model_and_text() -> tuple[Path, Path]:
    """The folder of an exported model, and the folder of prepared text that it was trained on."""
    for name in ("demo", "quick"):
        if (RUNS / name / "export" / "config.json").is_file() and (DATA / name).is_dir():
            return RUNS / name / "export", DATA / name
    run, data = RUNS / "quick", DATA / "quick"
    commands = [
        ["-m", "monet", "data", "prepare", "--config", "configs/data/quick.yaml", "--out", str(data)],
        ["train.py", "fit", "--config", "configs/quick.yaml", "--run_dir", str(run), "--data.data_dir", str(data)],
        ["-m", "monet", "export", "--run", str(run), "--out", str(run / "export")],
    ]
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
    return run / "export", data
