"""A frozen language model whose next-token probabilities a student learns."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.json_text import read_json
from monet.model.dense_models import load_dense, read_dense_config, weights_digest
from monet.model.distillation import kl_divergence
from monet.model.losses import with_auxiliary
from monet.model.modeling_monet import MonetForCausalLM
from monet.training.checkpoints.sharded_state import whole
from monet.training.language_models import LanguageModel, refuse_other_tokenizer

_ATTENTION_KEYS = ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters")


@dataclass(frozen=True)
class TeacherSettings:
    """What a student learns besides the next tokens of its text: the probabilities of a teacher.

    loss = weight * KL(teacher || student) + (1 - weight) * next-token loss + the routers' losses

    Args:
        model: folder of the teacher: a LLaMA, Mistral, Qwen2 or Monet model as safetensors, with the tokenizer of the
            data. Every process holds a whole copy.
        temperature: divides the logits of both models in the divergence.
        weight: share of the divergence in the loss, from 0 to 1.
        dtype: data type of the teacher's weights; auto keeps that of its files.
    """

    model: str
    temperature: float = 1.0
    weight: float = 1.0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def check(self) -> None:
        """Refuse impossible values. The parser would hide an error of the constructor.

        Raises:
            ConfigError: names the setting, its value and the valid range.
        """
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"model.teacher.temperature = {self.temperature}: must be a positive number")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"model.teacher.weight = {self.weight}: must be from 0 to 1")


def teacher_settings(settings: Any) -> TeacherSettings | None:
    """The teacher that a training configuration names, see `monet.training.configs.read_training_config`."""
    teacher = settings.model.teacher
    return None if teacher is None else TeacherSettings(**teacher.as_dict())


class Teacher:
    """The loaded teacher. It is no module, so no checkpoint, optimiser or sharding strategy sees its weights.

    Args:
        settings: the model and the loss.
        device: where it runs.

    Raises:
        CheckpointError: the folder is missing, or its weights are incomplete or damaged.
        ConfigError: the architecture is not supported, or experts are removed from the teacher.
    """

    def __init__(self, settings: TeacherSettings, device: torch.device) -> None:
        self.settings = settings
        self.model = _load(settings).to(device)
        self.fingerprint = _fingerprint(self.model)
        self._upper: tuple[int, nn.Module] | None = None  # first layer, and the body without the layers below

    @property
    def head(self) -> Tensor:
        """(V, D) weight of the output head."""
        return self.model.get_output_embeddings().weight

    def check_fits(self, student: LanguageModel, tokenizer: str | Path | None) -> None:
        """Refuse a teacher with another number of tokens, or another tokenizer than the data's.

        Args:
            student: the learning model.
            tokenizer: folder of the data's tokenizer; None if it is unknown.
        Raises:
            ConfigError: names both numbers, or the first id that differs.
        """
        if tokenizer is not None:
            refuse_other_tokenizer(self.settings.model, Path(tokenizer), "model.teacher.model")
        ours, theirs = student.config.vocab_size, len(self.head)
        if ours != theirs:
            raise ConfigError(
                f"model.teacher.model = {self.settings.model} has {theirs} tokens, the student {ours}; set "
                "model.shape.vocab_size to the teacher's number"
            )

    def share_lower_layers(self, student: LanguageModel) -> int:
        """From now on, run only the layers from the student's first Monet layer on, if all that is below is equal.

        The layers below then run once, in the student. They must be frozen.

        Returns:
            number of shared layers; 0 if nothing is shared.
        """
        first = student.config.monet_layers[0] if isinstance(student, MonetForCausalLM) else 0
        if first == 0 or student.config.attention_dropout:
            return 0
        mine, theirs = dict(student.named_parameters()), dict(self.model.named_parameters())
        lower = ("model.embed_tokens.", *(f"model.layers.{layer}." for layer in range(first)))
        names = [name for name in mine if name.startswith(lower)]
        if any(mine[name].requires_grad for name in names) or not _same_layers(student, self.model):
            return 0
        # fsdp2 gathers one weight at a time; with zero3 each weight is elsewhere, and nothing is shared
        if not all(_equal(whole(mine[name]), theirs.get(name)) for name in names):
            return 0
        body = self.model.get_decoder()
        upper = copy.copy(body)
        upper._modules = {**body._modules, "layers": nn.ModuleList(list(body.layers)[first:])}
        upper.config = copy.copy(body.config)
        upper.config.num_hidden_layers -= first
        self._upper = (first, upper)
        return first

    @contextmanager
    def watching(self, student: LanguageModel) -> Iterator[dict[str, Tensor]]:
        """Inside the block, a forward of the student puts what the teacher shares into the yielded dictionary."""
        seen: dict[str, Tensor] = {}
        if self._upper is None:
            yield seen
            return

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["inputs_embeds"] = (args[0] if args else kwargs["hidden_states"]).detach()

        handle = student.model.layers[self._upper[0]].register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def states(self, input_ids: Tensor, position_ids: Tensor | None, seen: dict[str, Tensor]) -> Tensor:
        """(B, T, D) final states.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64 that restart at each document; None for plain windows.
            seen: what the student's forward shares, see `watching`.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        body: Any = self.model.get_decoder()
        given: dict[str, Tensor] = {"input_ids": input_ids}
        if self._upper is not None and seen:
            body, given = self._upper[1], {"inputs_embeds": seen["inputs_embeds"].to(self.head.dtype)}
        return body(**given, position_ids=position_ids, use_cache=False).last_hidden_state

    def loss(self, student: LanguageModel, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """The student's loss on a batch, its divergence, and its output.

        Args:
            student: the learning model.
            arguments: input_ids, position_ids, shift_labels, router_loss and further arguments of its forward.
        """
        with self.watching(student) as seen:
            out = student(**arguments)
        labels_BT = arguments["shift_labels"]
        states_BTD = self.states(arguments["input_ids"], arguments["position_ids"], seen)
        weight = self.settings.weight
        kl = kl_divergence(out.logits, states_BTD, self.head, labels_BT, self.settings.temperature)
        loss = kl if weight == 1 else weight * kl + (1 - weight) * out.lm_loss
        if out.uniformity_loss is not None and arguments["router_loss"] is not None:
            loss = with_auxiliary(loss, out.uniformity_loss, out.ambiguity_loss, arguments["router_loss"])
        return loss, kl, out

    @torch.no_grad()
    def divergence_of_rows(
        self, logits_BTV: Tensor, input_ids: Tensor, position_ids: Tensor | None, labels_BT: Tensor
    ) -> Tensor:
        """(B,) float32: divergence of each sequence at temperature 1, in nats, summed over its tokens."""
        states_BTD = self.states(input_ids, position_ids, {})
        rows = zip(logits_BTV, states_BTD, labels_BT, strict=True)
        return torch.stack(
            [
                kl_divergence(logits[None], states[None], self.head, labels[None]) * (labels != -100).sum()
                for logits, states, labels in rows
            ]
        )


def refuse_other_teacher(stored: str | None, teacher: Teacher | None) -> None:
    """Refuse to continue a run with another teacher than its checkpoint was trained with.

    Args:
        stored: fingerprint in the checkpoint; None if there was no teacher.
        teacher: the configured teacher.
    Raises:
        ConfigError: names both fingerprints.
    """
    now = None if teacher is None else teacher.fingerprint
    if stored != now:
        raise ConfigError(
            f"the run's checkpoint was trained with the teacher {stored}, but model.teacher is now {now}; restore the"
            " teacher, or start a new run_dir with model.init_from"
        )


def teacher_config(settings: TeacherSettings) -> Any:
    """The configuration in a teacher's folder: a `MonetConfig`, or that of a supported dense model.

    Raises:
        CheckpointError: the folder or its config.json is missing or damaged.
        ConfigError: the architecture is not supported.
    """
    folder = Path(settings.model)
    if not folder.is_dir():
        raise CheckpointError(
            f"model.teacher.model = {settings.model}: no such folder; give one with config.json and safetensors"
        )
    content = read_json(folder / "config.json", CheckpointError) if (folder / "config.json").is_file() else {}
    if not (isinstance(content, dict) and content.get("model_type") == MonetConfig.model_type):
        return read_dense_config(settings.model)
    return MonetConfig.from_pretrained(folder, local_files_only=True)


def _load(settings: TeacherSettings) -> Any:
    if not isinstance(teacher_config(settings), MonetConfig):
        return load_dense(settings.model, settings.dtype)
    model = MonetForCausalLM.from_pretrained(settings.model, dtype=settings.dtype, local_files_only=True)
    if model.expert_mask is not None:
        raise ConfigError(f"model.teacher.model = {settings.model} has removed experts; give the whole model")
    return model.eval().requires_grad_(False)


def _fingerprint(model: Any) -> str:
    """Equal for equal weights that compute the same; a longer context by itself does not change it."""
    told = {key: _computes(model.config, key) for key in _ATTENTION_KEYS} | {"act": model.config.hidden_act}
    content = json.dumps([weights_digest(model), told], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _same_layers(student: Any, teacher: Any) -> bool:
    """Whether equal weights of attention, norms and dense MLPs compute the same in both models."""
    mine, theirs = student.config, teacher.config
    acts = (mine.dense_act, getattr(theirs, "dense_act", theirs.hidden_act))
    return acts[0] == acts[1] and all(_computes(mine, key) == _computes(theirs, key) for key in _ATTENTION_KEYS)


def _computes(config: Any, key: str) -> Any:
    if key == "head_dim":
        return getattr(config, key, None) or config.hidden_size // config.num_attention_heads
    return getattr(config, key)


def _equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether both are equal; a bias that the teacher lacks must add nothing."""
    if other is None:
        return not one.any()
    return one.shape == other.shape and torch.equal(one.float(), other.to(one.device).float())
