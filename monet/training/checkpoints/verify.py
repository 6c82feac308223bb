"""The `monet verify` verb: checks whether a run's checkpoints match what was written."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from monet.errors import CheckpointError
from monet.files import MANIFEST_NAME
from monet.terminal import clean
from monet.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint


def verify(path: Path, full: bool = False) -> None:
    """Check a checkpoint, or every checkpoint of a run, against its manifest.

    It changes nothing and can check a run during training: an unfinished checkpoint has another name.

    Args:
        path: folder of a checkpoint or of a run.
        full: compare the content of every file with its SHA-256 and search for non-finite numbers; otherwise check
            only names and sizes.
    Raises:
        CheckpointError: there is no checkpoint, or one of them is not valid; names each and its fault.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give the folder of a run or of a checkpoint")
    if (path / MANIFEST_NAME).is_file() or path.parent.name == "checkpoints":
        folders = [path]
    else:
        folders = list_checkpoints(path / "checkpoints")
    if not folders:
        raise CheckpointError(f"{path}: no checkpoint; a run keeps them in its folder checkpoints")
    problems: list[str] = []
    for folder in folders:
        try:
            verify_checkpoint(folder, full=full)
            if full:
                _refuse_nonfinite(folder)
            size = sum(file.stat().st_size for file in folder.iterdir())
        except (CheckpointError, OSError) as error:
            if not folder.exists():  # a training run keeps only the newest
                print(f"{clean(folder.name)}  was deleted in the meantime")
                continue
            problems.append(str(error))
            print(clean(f"{folder.name}  NOT VALID  {error}"))
        else:
            print(f"{clean(folder.name)}  valid  {size:,} bytes, {'content' if full else 'names and sizes'} as written")
    if problems:
        valid = len(folders) - len(problems)
        raise CheckpointError(f"{len(problems)} of {len(folders)} not valid, {valid} left: {'; '.join(problems)}")


def _refuse_nonfinite(folder: Path) -> None:
    """Check every tensor of a checkpoint, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        raise CheckpointError(f"{path}: {name} holds numbers that are not finite")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
