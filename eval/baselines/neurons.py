"""The paper's dense baseline: silence neurons of a LLaMA's MLPs that are chosen by the same rule as experts.

A neuron is a coordinate of the input of an MLP's `down_proj`. Its activity is the absolute value of this coordinate,
averaged over a label's tokens. It belongs to a label if its activity there is at least `ratio` times its activity for
any other label (arXiv 2412.04139, section 5.1, takes the neurons of the first layer). Silencing sets the coordinate to
zero at every token. docs/architecture.md explains the dims; L layers, F neurons a layer, C labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from monet.errors import CheckpointError, DataError, NonFiniteError
from monet.eval.ablation.measure import ablate
from monet.eval.attribution.selection import assign
from monet.eval.attribution.statistics.collectors import Tokens
from monet.eval.attribution.statistics.exclusion import Exclude, Exclusion
from monet.eval.core.announce import announce
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.inputs import LabelledData
from monet.eval.core.loading import (
    DType,
    check_batch_size,
    evaluating,
    load_as,
    own_tokenizer,
    vocab_size,
    windows_bar,
)
from monet.eval.core.options import Compute, TextIntervals, WindowOptions
from monet.eval.core.text_overlap import Signature
from monet.masks.controls import ControlKind, control_keep, removed_mass
from monet.masks.expert_mask import Model, keep_digest
from monet.model.fingerprint import hold

Layers = Literal["first", "all"]


@dataclasses.dataclass(frozen=True)
class NeuronControls:
    """Random controls of a dense model's neurons.

    Args:
        count: random controls of each domain; with n controls the smallest p-value is 1 / (n + 1).
        kind: what a control has in common with the removed neurons. number: the same number in every layer. mass:
            neurons with the same total activity. activity: for each neuron, a neuron of nearly the same activity.
        seed: another seed draws other controls.
    """

    count: int = DEFAULT_CONTROLS
    kind: ControlKind = "number"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class NeuronMask:
    """Keep-weights of the neurons of a dense model's MLPs: 1 keeps a neuron, 0 silences it; an `Intervention`.

    Args:
        keep_LF: (layers, neurons a layer), bool or float32 of at least 0.
        provenance: JSON-able notes on how it was made.
    """

    keep_LF: Tensor
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Name of the unit that the mask silences."""
        return "neuron"

    @property
    def group(self) -> str:
        """Name of the group by which neurons are counted."""
        return "layer"

    @property
    def digest(self) -> str:
        """Equal for masks that change the same neurons in the same way."""
        return keep_digest(self.keep_LF)

    @property
    def num_units(self) -> int:
        """Number of all neurons."""
        return self.keep_LF.numel()

    @property
    def removed_per_group(self) -> list[int]:
        """Number of changed neurons in each layer."""
        return (self.keep_LF != 1).sum(1).tolist()

    @property
    def num_removed(self) -> int:
        """Number of changed neurons."""
        return sum(self.removed_per_group)

    def check_fits(self, model: nn.Module) -> None:
        """Raise CheckpointError unless the model has the mask's number of layers and of neurons in each layer."""
        wanted = [projection.in_features for projection in down_projections(model)]
        layers, neurons = self.keep_LF.shape
        if wanted != [neurons] * layers:
            raise CheckpointError(f"a mask of {layers} layers of {neurons} neurons, but the model has {wanted} a layer")

    @contextlib.contextmanager
    def applied_to(self, model: Model) -> Iterator[Model]:
        """Change the neurons in every forward pass inside the block."""
        with contextlib.ExitStack() as stack:
            for projection, keep_F in zip(down_projections(model), self.keep_LF, strict=True):
                if bool((keep_F != 1).any()):
                    weight = projection.weight
                    kept_F = keep_F.to(weight.device, weight.dtype if keep_F.is_floating_point() else torch.bool)
                    hook = projection.register_forward_pre_hook(lambda _, x, kept_F=kept_F: (x[0] * kept_F,))
                    stack.callback(hook.remove)
            yield model

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> NeuronMask:
        """A random mask that matches this one in every layer; see `monet.masks.controls.control_keep`.

        Args:
            kind: what is matched.
            seed: seed for the random choice.
            weights: (L, F) from `activities`; needed for mass and activity.
        """
        keep_LF = control_keep(self.keep_LF, kind, seed, weights)
        return NeuronMask(keep_LF, {"made_by": "control", "kind": kind, "seed": seed, "of": self.provenance})

    def taken(self, weights: Tensor) -> float:
        """The sum of (L, F) weights that the mask takes."""
        return removed_mass(self.keep_LF, weights)

    def sites(self, model: nn.Module) -> list[nn.Module]:
        """The MLPs, from the first layer to the last."""
        down_projections(model)
        return [layer.mlp for layer in cast(Any, model).model.layers]


def down_projections(model: nn.Module) -> list[nn.Linear]:
    """The `down_proj` of each MLP, in the order of the layers.

    Raises:
        CheckpointError: the model is not built like a LLaMA.
    """
    try:
        return [layer.mlp.down_proj for layer in cast(Any, model).model.layers]
    except AttributeError:
        raise CheckpointError(
            f"{type(model).__name__} has no MLPs with a down_proj; use a LLaMA-like model to silence neurons"
        ) from None


def activities(
    model: Any, data: LabelledData, *, batch_size: int = 8, exclusion: Exclusion | None = None, progress: bool = True
) -> Tensor:
    """Mean absolute input of every MLP's last matrix over the tokens of each label: (C, L, F) float64.

    Args:
        model: the whole model.
        data: labelled sequences.
        batch_size: sequences in each forward pass.
        exclusion: tokens that are not counted; None uses the default of `monet.eval.attribution.stats.collect`.
        progress: show a bar on standard error.

    Raises:
        DataError: a label has no token, or an id is beyond the vocabulary.
        NonFiniteError: an activity is NaN or infinite; the message names the label.
        CheckpointError: the model is not built like a LLaMA.
    """
    sites = down_projections(model)
    return mean_inputs(
        model, sites, lambda _, input_BTF: input_BTF.float().abs(), data, batch_size=batch_size, exclusion=exclusion,
        progress=progress, what="neurons",
    )  # fmt: skip


def mean_inputs(
    model: Any,
    sites: Sequence[nn.Module],
    measure: Callable[[int, Tensor], Tensor],
    data: LabelledData,
    *,
    batch_size: int = 8,
    exclusion: Exclusion | None = None,
    progress: bool = True,
    what: str,
) -> Tensor:
    """Means over the tokens of each label of something that is computed from the inputs of modules: (C, L, F) float64.

    Args:
        model: the whole model.
        sites: L modules that take a positional tensor.
        measure: from the number of a site and its input, (B, T, ...), the numbers to average, (B, T, F) float32.
        data, batch_size, exclusion, progress: see `activities`.
        what: name of the units, in the plural.

    Raises:
        DataError, NonFiniteError: as for `activities`.
    """
    check_batch_size(batch_size)
    exclusion = Exclusion.chosen(model, own_tokenizer(model)) if exclusion is None else exclusion
    sums_LCF: dict[int, Tensor] = {}
    tokens_C = torch.zeros(len(data.labels), dtype=torch.int64)
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        bar = stack.enter_context(windows_bar(data.num_windows, f"{what}' activities", progress))
        seen: dict[int, Tensor] = {}

        def note(number: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] = measure(number, inputs[0])

        for number, site in enumerate(sites):
            stack.callback(site.register_forward_pre_hook(partial(note, number)).remove)
        for batch in data.batches(batch_size):
            batch.check_vocabulary(vocab_size(model))
            counted_BT = Tokens.of(batch, torch.device("cpu"), exclusion).chosen_BT
            # Not the body's own forward: the whole model's forward separates documents under flash attention too.
            model(**batch.inputs(model.device), logits_to_keep=1)
            for number, size_BTF in seen.items():
                if counted_BT is not None:
                    size_BTF = size_BTF * counted_BT.to(size_BTF.device)[..., None]
                sum_BF = size_BTF.sum(1).double().cpu()
                sums_LCF.setdefault(number, torch.zeros(len(tokens_C), sum_BF.shape[1], dtype=torch.float64))
                sums_LCF[number].index_add_(0, batch.label_B, sum_BF)
            tokens_C.index_add_(0, batch.label_B, batch.num_tokens_B if counted_BT is None else counted_BT.sum(1))
            bar.update(len(batch.document_B))
    if empty := [label for label, tokens in zip(data.labels, tokens_C.tolist(), strict=True) if not tokens]:
        raise DataError(f"no token of {', '.join(map(repr, empty))} to choose {what} on; give more documents")
    sums_CLF = torch.stack([sums_LCF[number] for number in range(len(sites))], 1)
    finite_C = sums_CLF.isfinite().flatten(1).all(1).tolist()
    if wrong := [label for label, finite in zip(data.labels, finite_C, strict=True) if not finite]:
        raise NonFiniteError(
            f"activities of {what} are not finite on {', '.join(map(repr, wrong))}; check the checkpoint's weights, "
            "or load it as float32"
        )
    return sums_CLF / tokens_C[:, None, None]


def select_neurons(
    means_CLF: Tensor,
    labels: Sequence[str],
    ratio: float = 2.0,
    layers: Layers = "all",
    text: Mapping[str, Any] | None = None,
) -> dict[str, NeuronMask]:
    """One mask for each label, which silences the label's neurons.

    Args:
        means_CLF: means from `activities`.
        labels: names along C.
        ratio: smallest ratio between a neuron's highest and second highest mean activity.
        layers: layers whose neurons may be silenced; the paper takes the first.
        text: description of the text of the activities, and its `Signature.notes()`, for the masks' provenance.

    Raises:
        ConfigError: `ratio` is below 1 or not finite.
        DataError: fewer than two labels.
    """
    owner_LF = assign(means_CLF, ratio)
    if layers == "first":
        owner_LF[1:] = -1
    notes: dict[str, Any] = {"made_by": "select_neurons", "rule": "ratio", "ratio": ratio, "layers": layers}
    if text is not None:
        notes["statistics"] = {"parts": [dict(text)]}
    return {label: NeuronMask(owner_LF != index, {**notes, "label": label}) for index, label in enumerate(labels)}


def load_llama(name: str, device: str, dtype: DType) -> Any:
    """Load a LLaMA, with the same checks as for Monet models.

    Raises:
        CheckpointError: the folder or model does not exist, or is another kind of model.
    """
    from monet.training.language_models import LlamaForCausalLM

    return load_as(LlamaForCausalLM, name, device, dtype)


def run(
    model: str,
    data: Path,
    out: Path,
    ratio: float = 2.0,
    layers: Layers = "first",
    identify_split: str = "identify",
    exclude: Exclude = "special",
    split: str = "evaluate",
    controls: NeuronControls = NeuronControls(),
    control_on: ControlOn = "target",
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    intervals: TextIntervals = TextIntervals(),  # noqa: B008 - frozen
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> None:
    """Measure what every domain loses when the neurons of a dense LLaMA that belong to it are silenced.

    This is the paper's baseline for the removals from a Monet: the same rule, text, losses and random controls. Writes
    OUT/result.json, which `monet report` reads. Finished losses are kept in OUT/losses, so the same command continues
    after a kill.

    Args:
        model: Hugging Face folder or name of a LLaMA.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        out: folder for result.json and kept losses.
        ratio: smallest ratio between a neuron's highest and second highest mean activity, at least 1.
        layers: first takes only neurons of the first layer, as the paper does; all takes neurons of any layer.
        identify_split: split of DATA on which neurons are chosen.
        exclude: special does not count the tokens that begin, end and pad a text; none counts all, as the paper does.
        split: split of DATA to evaluate on.
        controls: random controls of each domain's neurons.
        control_on: measure controls only on their target, or on all domains, which takes that many times longer.

    Raises:
        CheckpointError: the model does not exist, or is not a LLaMA.
        ConfigError: an option is out of range.
        DataError: the split does not exist, or the data have another tokenizer.
        NonFiniteError: a loss is NaN or infinite; the message names mask, domain and window.
    """
    bootstrap = intervals.bootstrap()
    loaded = load_llama(model, compute.device, compute.dtype)
    hold(loaded)
    chosen_on, judged_on = (windows.open(data, name, loaded) for name in (identify_split, split))
    exclusion = Exclusion.chosen(loaded, own_tokenizer(loaded), exclude)
    means_CLF = activities(
        loaded, chosen_on, batch_size=compute.batch_size, exclusion=exclusion, progress=compute.progress
    )
    weights = dict(zip(chosen_on.labels, means_CLF, strict=True))
    text = {**chosen_on.description, "excluded": exclusion.notes(), **Signature.of(chosen_on).notes()}
    chosen = select_neurons(means_CLF, chosen_on.labels, ratio, layers, text)
    result = ablate(
        loaded,
        chosen,
        judged_on,
        out=out,
        controls=Controls(controls.count, controls.kind, controls.seed, weights, {"mass": weights}),
        control_on=control_on,
        bootstrap=bootstrap,
        batch_size=compute.batch_size,
        progress=compute.progress,
    )
    announce(result, out)
