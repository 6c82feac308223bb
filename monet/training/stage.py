"""The next stage of a training: weights and moments of another run; everything else is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from monet.errors import CheckpointError, ConfigError
from monet.training.checkpoints.checkpoint import chosen_checkpoint
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.language_models import POSITIONS
from monet.training.settings import differing_keys

STAGE = "stage_from"  # entry of a checkpoint in memory: the folder that a stage starts from


def stage_folder(stage_from: str, run_dir: Path) -> Path:
    """Return the checkpoint that a new run starts from.

    Args:
        stage_from: folder of a run (its newest valid checkpoint is used) or of one checkpoint.
        run_dir: folder of the new run.
    Raises:
        ConfigError: stage_from is the new run's own folder.
        CheckpointError: there is no valid checkpoint.
    """
    path = Path(stage_from)
    if not path.is_dir():
        raise CheckpointError(f"stage_from = {stage_from}: no such folder; give the folder of a run or of a checkpoint")
    if path.resolve() == run_dir.resolve():
        raise ConfigError(f"stage_from = {stage_from} is the run itself; give the new stage another run_dir")
    return chosen_checkpoint(path, None) if (path / "checkpoints").is_dir() else chosen_checkpoint(None, path)


class StageCheckpointIO(FolderCheckpointIO):
    """Reads a run's own checkpoints completely, and only weights and moments of any other checkpoint.

    Args:
        checkpoints: folder of the run's own checkpoints.
    """

    def __init__(self, checkpoints: Path) -> None:
        super().__init__()
        self.checkpoints = checkpoints

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        if Path(path).parent.resolve() == self.checkpoints.resolve():
            return checkpoint
        # the rest starts again: steps, schedule, place in the data, random generators, callbacks
        kept = ("state_dict", "moments", "optimizer_states", "config", "monet", "pytorch-lightning_version")
        fresh = {"epoch": 0, "global_step": 0, "lr_schedulers": [], "callbacks": {}, "rank_state": None}
        return {**{key: checkpoint[key] for key in kept}, **fresh, STAGE: str(path)}


def refuse_other_model(stage: str, stored: dict[str, Any], configured: dict[str, Any]) -> None:
    """Refuse to start a stage with another model; only keys of the attention positions may differ.

    Args:
        stage: the checkpoint's folder.
        stored, configured: config.json of the checkpoint, and of the configured model.
    Raises:
        ConfigError: names every key that differs, with both values.
    """
    if changed := differing_keys(stored, configured, POSITIONS):
        raise ConfigError(
            f"stage_from = {stage} holds another model ({'; '.join(changed)}), but a stage keeps the optimiser's"
            " moments and so the model: restore the old values, or use model.init_from, which loads only the weights"
        )
