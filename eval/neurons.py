"""The paper's dense baseline: neurons of a LLaMA's MLPs chosen by the same rule as experts, and silenced.

A neuron is a coordinate of the input of an MLP's `down_proj`. Its activity is that number's absolute value, averaged
over a label's tokens; it belongs to a label if its activity there is at least `ratio` times that for any other (arXiv
2412.04139, section 5.1, takes the first layer's). Silencing sets the coordinate to zero at every token. Dims as in
docs/architecture.md; L layers, F neurons a layer, C labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from monet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from monet.eval.bootstrap import Bootstrap
from monet.eval.conditions import check_seeds
from monet.eval.inputs import LabelledData
from monet.eval.loading import (
    DType,
    check_batch_size,
    evaluating,
    open_windows,
    provenance_now,
    vocab_size,
    weights_digest,
    windows_bar,
)
from monet.eval.losses import LossStore, WindowLosses
from monet.eval.results import RESULT_NAME, AblationResult
from monet.eval.selection import assign
from monet.eval.verdicts import Measured, summarise
from monet.files import atomic_write_json
from monet.fingerprint import hold, holds_weights
from monet.masks import keep_digest

Layers = Literal["first", "all"]


@dataclasses.dataclass(frozen=True)
class NeuronMask:
    """Which neurons of a dense model's MLPs are kept; it counts as `ExpertMask` does, a layer in a group's place.

    Args:
        keep_LF: bool, (layers, neurons a layer).
        provenance: JSON-able notes on how it was made.
    """

    keep_LF: Tensor
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def keep_REE(self) -> Tensor:
        """The same as (layers, 1, neurons): what an expert mask's readers look at."""
        return self.keep_LF[:, None]

    @property
    def digest(self) -> str:
        """As an expert mask's: equal for masks that silence the same neurons."""
        return keep_digest(self.keep_REE)

    @property
    def num_experts(self) -> int:
        """All neurons."""
        return self.keep_LF.numel()

    @property
    def removed_per_group(self) -> list[int]:
        """Silenced neurons of each layer."""
        return (~self.keep_LF).sum(1).tolist()

    @property
    def num_removed(self) -> int:
        """Silenced neurons."""
        return sum(self.removed_per_group)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Silence the neurons in every forward inside the block."""
        with contextlib.ExitStack() as stack:
            for projection, keep_F in zip(down_projections(model), self.keep_LF, strict=True):
                if not bool(keep_F.all()):
                    kept_F = keep_F.to(projection.weight.device)
                    hook = projection.register_forward_pre_hook(lambda _, x, kept_F=kept_F: (x[0] * kept_F,))
                    stack.callback(hook.remove)
            yield model

    def random_like(self, seed: int) -> NeuronMask:
        """As many neurons of every layer, at random places."""
        generator = torch.Generator().manual_seed(seed)
        rows = [row[torch.randperm(len(row), generator=generator)] for row in self.keep_LF]
        return NeuronMask(torch.stack(rows), {"made_by": "random_like", "seed": seed, "of": self.provenance})


def down_projections(model: nn.Module) -> list[nn.Linear]:
    """The MLPs' last matrices, in the order of the layers.

    Raises:
        CheckpointError: the model is not built like a LLaMA.
    """
    try:
        return [layer.mlp.down_proj for layer in cast(Any, model).model.layers]
    except AttributeError:
        raise CheckpointError(
            f"{type(model).__name__} has no MLPs with a down_proj; neurons are silenced in LLaMA-like models"
        ) from None


def activities(model: Any, data: LabelledData, *, batch_size: int = 8, progress: bool = True) -> Tensor:
    """Mean absolute input of every MLP's last matrix over the tokens of each label: (C, L, F) float64.

    Raises:
        DataError: a label without a token, or an id beyond the vocabulary.
        NonFiniteError: a NaN or infinite activity; names the label.
        CheckpointError: the model is not built like a LLaMA.
    """
    check_batch_size(batch_size)
    projections = down_projections(model)
    sums_CLF = torch.zeros(len(data.labels), len(projections), projections[0].in_features, dtype=torch.float64)
    tokens_C = torch.zeros(len(data.labels), dtype=torch.int64)
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        bar = stack.enter_context(windows_bar(data.num_windows, "neurons' activities", progress))
        seen: dict[int, Tensor] = {}

        def note(number: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] = inputs[0]

        for number, projection in enumerate(projections):
            hook = projection.register_forward_pre_hook(partial(note, number))
            stack.callback(hook.remove)
        for batch in data.batches(batch_size):
            batch.check_vocabulary(vocab_size(model))
            attention = batch.attention_mask_BT
            model.model(
                input_ids=batch.input_ids_BT.to(model.device),
                attention_mask=None if attention is None else attention.to(model.device),
                use_cache=False,
            )
            for number, input_BTF in seen.items():
                size_BTF = input_BTF.float().abs()
                if attention is not None:
                    size_BTF = size_BTF * attention.to(size_BTF.device)[..., None]
                sums_CLF[:, number].index_add_(0, batch.label_B, size_BTF.sum(1).double().cpu())
            tokens_C.index_add_(0, batch.label_B, batch.num_tokens_B)
            bar.update(len(batch.document_B))
    if empty := [label for label, tokens in zip(data.labels, tokens_C.tolist(), strict=True) if not tokens]:
        raise DataError(f"no token of {', '.join(map(repr, empty))} to choose neurons on; give more documents")
    finite_C = sums_CLF.isfinite().flatten(1).all(1).tolist()
    if wrong := [label for label, finite in zip(data.labels, finite_C, strict=True) if not finite]:
        raise NonFiniteError(
            f"activities of neurons are not finite on {', '.join(map(repr, wrong))}; check the checkpoint's weights, "
            "or load it as float32"
        )
    return sums_CLF / tokens_C[:, None, None]


def select_neurons(
    means_CLF: Tensor, labels: Sequence[str], ratio: float = 2.0, layers: Layers = "all"
) -> dict[str, NeuronMask]:
    """One mask a label that silences the neurons belonging to it.

    Args:
        means_CLF: of `activities`.
        labels: names along C.
        ratio: least ratio between a neuron's highest and second highest mean activity.
        layers: which layers' neurons may be silenced; the paper takes the first's.

    Raises:
        ConfigError: `ratio` below 1 or not finite.
        DataError: fewer than two labels.
    """
    owner_LF = assign(means_CLF, ratio)
    if layers == "first":
        owner_LF[1:] = -1
    notes = {"made_by": "select_neurons", "rule": "ratio", "ratio": ratio, "layers": layers}
    return {label: NeuronMask(owner_LF != index, {**notes, "label": label}) for index, label in enumerate(labels)}


@holds_weights
def ablate_neurons(
    model: Any,
    masks: Mapping[str, NeuronMask],
    data: LabelledData,
    *,
    out: str | os.PathLike[str],
    random_seeds: Sequence[int] = (0, 1, 2),
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    held_out: bool | None = None,
    progress: bool = True,
) -> AblationResult:
    """Every label's loss before and after silencing its neurons, and as many random ones; see `monet.eval.ablate`.

    Losses of a window are kept in `out` as soon as they are known; a second call goes on from them.

    Args:
        model: a LLaMA with its head.
        masks: of `select_neurons`.
        data: text to evaluate on, with every label of `masks`.
        out: folder for kept losses and result.json.
        random_seeds: one random mask a label and seed, measured on the label.
        bootstrap: how intervals are made.
        batch_size: sequences a forward.
        held_out: whether the neurons were chosen on other text; goes into the result.
        progress: show a bar on standard error.

    Raises:
        ConfigError: no or repeated random seeds.
        DataError: a domain with fewer than two documents.
        NonFiniteError: a NaN or infinite loss.
    """
    bootstrap = bootstrap or Bootstrap()
    if not random_seeds:
        raise ConfigError("random_seeds must name at least one seed; a removal is judged beside random ones")
    check_seeds(random_seeds)
    passes: dict[Measured, tuple[NeuronMask, LabelledData]] = {}
    for label, mask in masks.items():
        if mask.num_removed:
            passes[label, None] = (mask, data)
            passes |= {(label, seed): (mask.random_like(seed), data.only([label])) for seed in random_seeds}
    windows = data.num_windows + sum(part.num_windows for _, part in passes.values())
    store = LossStore(Path(out) / "losses", model, batch_size)
    provenance = {
        **provenance_now(),
        "removed": "MLP neurons of a dense model",
        "model_fingerprint": weights_digest(model)[:16],
        "data_fingerprint": data.fingerprint,
        "data": data.description,
        "masks": {label: mask.provenance for label, mask in masks.items()},
        "held_out": held_out,
        "random_seeds": list(random_seeds),
        "random_on": "target",
        "bootstrap": dataclasses.asdict(bootstrap),
        "losses": store.settings,
    }
    with windows_bar(windows, "whole model", progress) as bar:
        whole = store.losses(None, data, "no mask", bar.update)

        def losses() -> Iterator[tuple[Measured, WindowLosses]]:
            for (label, seed), (mask, part) in passes.items():
                bar.set_description(label if seed is None else f"random {seed} like {label}", refresh=False)
                yield (label, seed), store.losses(cast(Any, mask), part, label, bar.update)

        result = summarise(cast(Any, masks), data.labels, whole, losses(), bootstrap, provenance)
    atomic_write_json(Path(out) / RESULT_NAME, result.to_json())
    return result


def load_llama(name: str, device: str, dtype: DType) -> Any:
    """Load a LLaMA, checked as Monet's own models are.

    Raises:
        CheckpointError: no such folder or model, or another kind of model.
    """
    from monet.devices import choose_device
    from monet.training.language_models import LlamaForCausalLM

    where = choose_device(device)
    try:
        return LlamaForCausalLM.from_pretrained(name, dtype=dtype).to(where).eval()
    except OSError as error:
        raise CheckpointError(f"{name}: no model there ({str(error).splitlines()[0]})") from None


def run(
    model: str,
    data: Path,
    out: Path,
    ratio: float = 2.0,
    layers: Layers = "first",
    identify_split: str = "identify",
    split: str = "evaluate",
    seq_len: int | None = None,
    max_windows: int | None = None,
    domains: list[str] | None = None,
    random_seeds: list[int] = [0, 1, 2],  # noqa: B006 - shown in --help, never changed
    resamples: int = 2000,
    confidence: float = 0.95,
    unit: Literal["document", "window"] = "document",
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    dtype: DType = "auto",
    progress: bool = True,
) -> None:
    """Measure what every domain loses when the neurons of a dense LLaMA that belong to it are silenced.

    The paper's baseline beside which a Monet's removals are read: the same rule, text, losses and random controls.
    Writes OUT/result.json, which `monet report` reads. What is finished is kept in OUT/losses, so the same command
    goes on after a kill.

    Args:
        model: Hugging Face folder or name of a LLaMA.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        out: folder for result.json and kept losses.
        ratio: least ratio between a neuron's highest and second highest mean activity, at least 1.
        layers: first takes neurons of the first layer only, as the paper does; all takes any layer's.
        identify_split: split of DATA that neurons are chosen on.
        split: split of DATA to evaluate on.
        seq_len: tokens a window; without it the most the model was made for.
        max_windows: windows a domain and split, evenly spread over its text; without it all.
        domains: domains of DATA to take; without it all.
        random_seeds: one random mask per domain and seed, of as many neurons of every layer.
        resamples: bootstrap draws an interval, at least 1000.
        confidence: share of the draws inside an interval.
        unit: what is drawn again: documents or windows.
        seed: of the draws.
        batch_size: windows a forward.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps that of the files.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: no such model, or no LLaMA.
        ConfigError: an option out of range.
        DataError: no such split, or another tokenizer's data.
        NonFiniteError: a NaN or infinite loss; names mask, domain and window.
    """
    bootstrap = Bootstrap(resamples=resamples, confidence=confidence, unit=unit, seed=seed)
    loaded = load_llama(model, device, dtype)
    hold(loaded)
    chosen_on, windows = (
        open_windows(data, name, loaded, seq_len, max_windows, domains) for name in (identify_split, split)
    )
    means_CLF = activities(loaded, chosen_on, batch_size=batch_size, progress=progress)
    result = ablate_neurons(
        loaded,
        select_neurons(means_CLF, chosen_on.labels, ratio, layers),
        windows,
        out=out,
        random_seeds=random_seeds,
        bootstrap=bootstrap,
        batch_size=batch_size,
        held_out=identify_split != split,
        progress=progress,
    )
    print(result.sentence)
    print(f"result: {Path(out) / RESULT_NAME}; its tables: monet report --result {out} --out FOLDER")
