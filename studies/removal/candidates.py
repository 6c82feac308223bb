"""One interface for the models of a study: a Monet that loses experts, a dense twin that loses neurons.

Dims as in docs/architecture.md; C labels, F neurons a layer.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monet import ExpertMask
from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution import stats
from monet.eval.attribution.rules import Top, assign
from monet.eval.attribution.selection import select_by
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.weights import weights_of
from monet.eval.baselines import neurons
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.intervention import Intervention
from monet.eval.core.loading import fingerprint_of, load_model, own_tokenizer
from monet.eval.core.store import model_key
from monet.eval.core.window_losses import LossStore
from monet.files import atomic_path
from monet.json_text import read_json
from monet.masks.controls import ControlKind
from monet.model.fingerprint import hold
from studies.removal.plan import Plan

Kind = Literal["monet", "llama", "transcoder"]


class Candidate(ABC):
    """A model, the rule that chooses its units, and its kept measurements.

    Args:
        folder: exported model.
        plan: sizes of the measurements.

    Attributes:
        kind: "monet", "llama" or "transcoder".
        model: the loaded model.
        store: losses under its masks.
    """

    kind: ClassVar[Kind]

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.model = self._load(str(folder))
        hold(self.model)  # it never changes, because further training takes a copy
        self.store = LossStore(plan.out / "losses", self.model, plan.batch_size)

    @property
    def name(self) -> str:
        """Name of the run that the model was exported from."""
        return self.folder.resolve().parent.name if self.folder.name == "export" else self.folder.name

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        return fingerprint_of(self.model)

    @cached_property
    def trained(self) -> dict[str, Any]:
        """The export's information about the training; empty if there is none."""
        path = self.folder / "provenance.json"
        return read_json(path, CheckpointError) if path.exists() else {}

    def place(self, *what: Any) -> Path:
        """A path in `plan.out`, without its ending, for something that depends on the model, the code and `what`."""
        content = json.dumps([model_key(self.model), *what], sort_keys=True)
        return self.plan.out / self.name / hashlib.sha256(content.encode()).hexdigest()[:16]

    @abstractmethod
    def _load(self, folder: str) -> Any:
        """The model on its device, in eval mode."""

    @abstractmethod
    def masks(self, share: float) -> Mapping[str, Intervention]:
        """For each domain a mask that removes at most `share` of all units, chosen on `identify`."""

    @abstractmethod
    def weights(self, kind: ControlKind) -> dict[str, Tensor]:
        """For each domain the mass or activity of every unit on the text for judging removals; see `Controls`."""

    @abstractmethod
    def keep(self, mask: Intervention) -> Tensor:
        """A mask's keep-weights, shaped like `weights`."""

    def removable(self, keep: Tensor) -> Tensor:
        """Numbers of the units that a random removal may take, in a flat view of keep-weights; all by default."""
        return torch.arange(keep.numel())

    @abstractmethod
    def mask(self, keep: Tensor) -> Intervention:
        """The mask with these keep-weights."""


class Monet(Candidate):
    """Loses the experts whose firing has the most information on the domain, and less on every other domain."""

    kind = "monet"

    def _load(self, folder: str) -> Any:
        return load_model(folder)

    def _statistics(self, data: PreparedWindows) -> stats.ExpertStatistics:
        exclusion = Exclusion.chosen(self.model, own_tokenizer(self.model))
        path = self.place("statistics", data.fingerprint, exclusion.notes(0)).with_suffix(".safetensors")
        if path.exists():
            return stats.ExpertStatistics.load(path, model=self.model)
        wanted = stats.Wanted(firing=True)
        found = stats.collect(
            self.model, data, batch_size=self.plan.batch_size, wanted=wanted, exclusion=exclusion
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return found

    @cached_property
    def statistics(self) -> stats.ExpertStatistics:
        """Statistics of the split that experts are chosen on."""
        return self._statistics(self.plan.identify)

    @cached_property
    def _judged(self) -> stats.ExpertStatistics:
        return self._statistics(self.plan.evaluate)

    def masks(self, share: float) -> Mapping[str, ExpertMask]:
        return select_by(self.statistics, Top(fraction=share, by="mutual_information"))

    def weights(self, kind: ControlKind) -> dict[str, Tensor]:
        return weights_of(self._judged, kind)

    def keep(self, mask: Intervention) -> Tensor:
        assert isinstance(mask, ExpertMask)
        return mask.keep_REE

    def mask(self, keep: Tensor) -> ExpertMask:
        return ExpertMask(keep)


class Llama(Candidate):
    """Loses neurons that are most active for the domain: the ones with the largest lead over the next domain."""

    kind = "llama"

    def __init__(self, folder: Path, plan: Plan, layers: Sequence[int] | None = None) -> None:
        """A dense model that loses neurons of these layers only; None allows all layers.

        Raises:
            ConfigError: the model does not have one of the layers.
        """
        super().__init__(folder, plan)
        self.layers = None if layers is None else tuple(layers)
        count = len(neurons.down_projections(self.model))
        if wrong := [layer for layer in self.layers or () if not 0 <= layer < count]:
            raise ConfigError(f"layers {wrong}: {folder} has layers 0 to {count - 1}")

    def _load(self, folder: str) -> Any:
        return neurons.load_llama(folder, "auto", "auto")

    def _activities(self, data: PreparedWindows) -> Tensor:
        path = self.place("activities", data.fingerprint).with_suffix(".safetensors")
        if not path.exists():
            found = neurons.activities(self.model, data, batch_size=self.plan.batch_size)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                save_file({"means_CLF": found}, temporary)
        return load_file(path)["means_CLF"]

    @cached_property
    def means_CLF(self) -> Tensor:
        """Mean activity of every neuron on the split that neurons are chosen on."""
        return self._activities(self.plan.identify)

    @cached_property
    def _judged_CLF(self) -> Tensor:
        return self._activities(self.plan.evaluate)

    def masks(self, share: float) -> Mapping[str, neurons.NeuronMask]:
        data = self.plan.identify
        return top_neurons(self.means_CLF, data.labels, share, data.description, self.layers)

    def first_layer(self) -> Mapping[str, neurons.NeuronMask]:
        """The paper's baseline: neurons of the first layer that are twice as active for the domain as for any other."""
        data = self.plan.identify
        return neurons.select_neurons(self.means_CLF, data.labels, 2.0, "first", data.description)

    def weights(self, kind: ControlKind) -> dict[str, Tensor]:
        return dict(zip(self.plan.evaluate.labels, self._judged_CLF, strict=True))

    def keep(self, mask: Intervention) -> Tensor:
        assert isinstance(mask, neurons.NeuronMask)
        return mask.keep_LF

    def removable(self, keep: Tensor) -> Tensor:
        numbers_LF = torch.arange(keep.numel()).view_as(keep)
        return numbers_LF.flatten() if self.layers is None else numbers_LF[list(self.layers)].flatten()

    def mask(self, keep: Tensor) -> neurons.NeuronMask:
        return neurons.NeuronMask(keep)


def top_neurons(
    means_CLF: Tensor, labels: Sequence[str], share: float, text: Mapping[str, Any], layers: Sequence[int] | None = None
) -> dict[str, neurons.NeuronMask]:
    """Neurons for each label: among those most active for it, the ones furthest above the next label.

    Args:
        means_CLF: of `monet.eval.baselines.neurons.activities`.
        labels: names along C.
        share: how many, as a share of the neurons of `layers`, rounded down; a label that owns fewer gets fewer.
        text: description of the text that the activities were taken on.
        layers: layers whose neurons may be silenced; None means all.
    """
    owner_LF = assign(means_CLF, 1.0)
    used = range(len(owner_LF)) if layers is None else layers
    owner_LF[[layer for layer in range(len(owner_LF)) if layer not in used]] = -1
    wanted = int(share * len(used) * owner_LF.shape[1])
    highest_2LF = means_CLF.topk(2, dim=0).values
    keeps = strongest(owner_LF, highest_2LF[0] - highest_2LF[1], len(labels), wanted)
    masks = {}
    for label, keep_LF in zip(labels, keeps, strict=True):
        notes = {"made_by": "top_neurons", "fraction": share, "label": label, "statistics": {"parts": [dict(text)]}}
        if layers is not None:
            notes["layers"] = list(layers)
        masks[label] = neurons.NeuronMask(keep_LF, notes)
    return masks


def strongest(owner_LF: Tensor, strength_LF: Tensor, labels: int, count: int) -> list[Tensor]:
    """For each label the keep-weights that remove its strongest units, (L, F) bool.

    Args:
        owner_LF: number of the label that a unit belongs to; -1 for none.
        strength_LF: what orders a label's units.
        labels: number of labels.
        count: units of a label; a label that owns fewer gets fewer.
    """
    keeps = []
    for index in range(labels):
        rank_N = torch.where(owner_LF == index, strength_LF, -torch.inf).flatten()
        chosen_N = rank_N.topk(count).indices
        keep_N = torch.ones(rank_N.numel(), dtype=torch.bool)
        keep_N[chosen_N[rank_N[chosen_N] > -torch.inf]] = False
        keeps.append(keep_N.view_as(owner_LF))
    return keeps
