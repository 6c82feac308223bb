"""Bad configurations, checkpoints and masks, each with its expected error.

The text must name the key or file, the bad value, and the valid values or the fix. The error class determines the
exit code of a command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from monet import ExpertMask, MonetConfig, MonetForCausalLM
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import tiny_config, tiny_model, tokens

WHOLE = "must be a whole number"

# if transformers writes the text, the parts that it must contain are listed
CONFIGURATIONS: list[tuple[dict[str, Any], str | tuple[str, ...]]] = [
    # impossible values
    ({"moe_decompose": "diagonal"}, "moe_decompose='diagonal': must be 'vertical' or 'horizontal'"),
    ({"moe_decompose": "Vertical"}, "moe_decompose='Vertical': must be"),
    ({"moe_topk": 0}, "moe_topk=0: must be from 1 to moe_experts=6"),
    ({"moe_topk": 7}, "moe_topk=7: must be from 1 to moe_experts=6"),
    ({"moe_dim": 3}, "moe_dim=3: the vertical decomposition halves it; use an even number"),
    ({"hidden_size": 27, "head_dim": 8}, "hidden_size=27: the vertical decomposition halves it"),
    ({"moe_groups": 0}, f"moe_groups=0: {WHOLE} from 1 to"),
    ({"moe_heads": -2}, f"moe_heads=-2: {WHOLE} from 1 to"),
    ({"moe_experts": 10**9}, f"moe_experts=1000000000: {WHOLE} from 1 to"),
    ({"num_hidden_layers": 0}, f"num_hidden_layers=0: {WHOLE} from 1 to"),
    ({"vocab_size": 0}, f"vocab_size=0: {WHOLE} from 1 to"),
    ({"hidden_size": 26, "num_attention_heads": 4}, "hidden_size=26: must be a multiple of num_attention_heads=4"),
    ({"hidden_size": 22}, ("head_dim", "11")),
    ({"head_dim": 7}, "head_dim=7: "),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads=3: must divide num_attention_heads=4"),
    ({"pad_token_id": 61}, "pad_token_id=61: must be from 0 to vocab_size-1=60, or null"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05: must be at least 0"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps=nan: must be at least 0"),
    ({"attention_dropout": 1.5}, "attention_dropout=1.5: must be at least 0 and less than 1"),
    ({"initializer_range": -1.0}, ("initializer_range", "-1.0")),
    ({"rope_theta": -1.0}, "rope_theta=-1.0: must be a positive number"),
    ({"rope_theta": math.nan}, "rope_theta=nan: must be a positive number"),
    ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "rope_type='spiral' in rope_scaling: must be one of"),
    ({"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor=-2.0: must be a positive number"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor='2': must be a positive number"),
    ({"rope_scaling": 2.0}, "rope_scaling=2.0: must be null or"),
    # wrong types
    ({"moe_dim": "8"}, f"moe_dim='8': {WHOLE}"),
    ({"moe_dim": 4.0}, f"moe_dim=4.0: {WHOLE}"),
    ({"moe_experts": True}, f"moe_experts=True: {WHOLE}"),
    ({"moe_topk": "2"}, f"moe_topk='2': {WHOLE}"),
    ({"moe_decompose": 1}, "moe_decompose=1: must be 'vertical' or 'horizontal'"),
    ({"max_position_embeddings": "long"}, ("max_position_embeddings", "'long'")),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5': must be at least 0"),
    ({"rope_theta": "10000"}, "rope_theta='10000': must be a positive number"),
    ({"tie_word_embeddings": "no"}, ("tie_word_embeddings", "'no'")),
    ({"attention_bias": 1}, ("attention_bias", "1")),
    ({"output_router_probs": "yes"}, "output_router_probs='yes': must be true or false"),
    # misspelt keys
    ({"moe_topkk": 3}, "moe_topkk: unknown key"),
    ({"moe_num_experts": 8}, "moe_num_experts: unknown key"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGURATIONS, ids=[str(changes) for changes, _ in CONFIGURATIONS])
def test_configurations(changes, message, tmp_path):
    """The error is the same for a value from a call and from a file."""
    keys = {key: value for key, value in tiny_config().to_dict().items() if key != "head_dim"} | changes
    (tmp_path / "config.json").write_text(json.dumps(keys))
    for make in (
        lambda: tiny_config(**changes),
        lambda: MonetConfig.from_pretrained(tmp_path),
        lambda: AutoConfig.from_pretrained(tmp_path),
        lambda: MonetForCausalLM.from_pretrained(tmp_path),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        for part in (message,) if isinstance(message, str) else message:
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_topk": 99}, "moe_topk=99: must be from 1 to moe_experts=6"),
        ({"moe_topk": 0}, "moe_topk=0: must be from 1 to moe_experts=6"),
        ({"moe_decompose": "x"}, "moe_decompose='x': must be 'vertical' or 'horizontal'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0: must be at least 0"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0: must be a positive number"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
        ({"moe_topkk": 3}, "moe_topkk: unknown key"),
    ],
    ids=str,
)
def test_overrides_at_loading_are_checked_too(changes, message, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained, MonetForCausalLM.from_pretrained):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, **changes)
        assert message in str(caught.value)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ConfigError, match=r"hidden_act='relu3': must be one of .*relu2"):
        MonetForCausalLM(tiny_config(hidden_act="relu3"))


@pytest.mark.parametrize("key", ["moe_topk", "moe_dim", "moe_decompose", "hidden_size", "rms_norm_eps", "rope_theta"])
def test_a_checkpoint_that_lacks_a_key_is_never_completed(tmp_path, key):
    """The authors' class would use 32 for moe_topk and 8 for moe_dim, which no release has."""
    tiny_model().save_pretrained(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    del keys[key]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained, MonetForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=f"{key} is missing: Monet has no default for it; state it in config"):
            load(tmp_path)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Rewrites the weights of a checkpoint."""

    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return apply


def keys_of(**changes: Any) -> Callable[[Path], None]:
    """Rewrites the configuration of a checkpoint."""

    def apply(folder: Path) -> None:
        keys = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(keys))

    return apply


def cut(size: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:size])

    return apply


def without_a_shard(folder: Path) -> None:
    MonetForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def mask_file(**options: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        E = options.get("E", 6)
        mask = ExpertMask(torch.rand(2, E, E) > 0.5, fingerprint=options.get("fingerprint"))
        mask.save(folder / "expert_mask.safetensors")

    return apply


B1, VAR = "model.layers.0.moe.b1", "model.layers.0.router.norm1.running_var"
BROKEN = "holds values that are NaN or infinite"

CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tensor is missing": (tensors(lambda t: t.pop(B1)), rf"lacks 1 tensors: {B1}"),
    "statistics are missing": (tensors(lambda t: t.pop(VAR)), rf"lacks 1 tensors: {VAR}"),
    "an unknown tensor": (tensors(lambda t: t.update(extra=torch.ones(1))), r"holds unknown 1 tensors: extra"),
    "a NaN": (tensors(lambda t: t[B1][1].fill_(math.nan)), rf"tensor {B1} {BROKEN}"),
    "an infinity": (tensors(lambda t: t[VAR][0].fill_(math.inf)), rf"tensor {VAR} {BROKEN}"),
    "a negative variance": (tensors(lambda t: t[VAR].neg_()), rf"tensor {VAR} holds a negative variance"),
    "a misshapen tensor": (tensors(lambda t: t.update({B1: torch.ones(6, 3)})), r"misshapen"),
    "a layer too many": (keys_of(num_hidden_layers=3), r"holds unknown 16 tensors: model\.layers\.3"),
    "a layer too few": (keys_of(num_hidden_layers=5), r"lacks 24 tensors: model\.layers\.4"),
    "another grouping": (keys_of(moe_groups=4), r"holds unknown 8 tensors: model\.layers\.2\.router"),
    "the other decomposition": (keys_of(moe_decompose="horizontal"), r"lacks 16 tensors: model\.layers\.0\.moe\.b,"),
    "more experts than weights": (keys_of(moe_experts=7), r"misshapen"),
    "an empty file": (cut(0), r"unreadable"),
    "a cut header": (cut(1000), r"unreadable"),
    "cut data": (cut(-100), r"unreadable"),
    "a shard is missing": (without_a_shard, r"unreadable.*model-00002"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors"),
    "another model's mask": (
        mask_file(fingerprint="f00d"),
        r"made for another model \(fingerprint f00d, but this model has",
    ),
    "a mask of another size": (
        mask_file(E=5),
        r"a mask of shape \(2, 5, 5\) does not fit the model, .* \(2, 6, 6\)",
    ),
    "a damaged mask": (
        lambda folder: (folder / "expert_mask.safetensors").write_bytes(b"x" * 99),
        r"damaged mask file",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(tmp_path, case):
    change, message = CHECKPOINTS[case]
    tiny_model().save_pretrained(tmp_path)
    change(tmp_path)
    for load in (AutoModelForCausalLM.from_pretrained, MonetForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value) or "mask" in case


def test_the_unchanged_checkpoint_of_these_tests_loads(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for change in (tensors(lambda t: None), keys_of(), mask_file()):
        change(tmp_path)
        assert MonetForCausalLM.from_pretrained(tmp_path)(tokens()).logits.isfinite().all()


def test_another_kind_of_model_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    keys_of(model_type="llama")(tmp_path)
    with pytest.raises(ConfigError, match="model_type='llama' in the configuration: must be 'monet'"):
        MonetForCausalLM.from_pretrained(tmp_path)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def test_the_bomb_is_live(tmp_path):
    torch.save({"x": Bomb(tmp_path / "canary")}, tmp_path / "pytorch_model.bin")
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, CheckpointError, "no model.safetensors; pickled weights are never read, so convert them first"),
        ({"weights_only": False}, CheckpointError, "pickled weights are never read"),
        ({"use_safetensors": False}, ConfigError, "Monet reads only safetensors; convert the checkpoint first"),
        ({"use_safetensors": None}, CheckpointError, "no model.safetensors; pickled weights are never read"),
    ],
    ids=str,
)
def test_pickles_are_never_opened(tmp_path, options, error, message):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "expert_mask.bin", "model.pt"):
        torch.save({"x": Bomb(tmp_path / "canary")}, tmp_path / name)
    for load in (AutoModelForCausalLM.from_pretrained, MonetForCausalLM.from_pretrained):
        with pytest.raises(error, match=message):
            load(tmp_path, **options)
    assert not (tmp_path / "canary").exists()


def test_safetensors_are_read_whatever_transformers_default_is(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    MonetForCausalLM.from_pretrained(tmp_path, use_safetensors=None)
    with pytest.raises(ConfigError, match="use_safetensors='no': Monet reads only safetensors"):
        MonetForCausalLM.from_pretrained(tmp_path, use_safetensors="no")


def test_a_missing_variant_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no safetensors weights of variant='fp16'; name an existing variant"):
        MonetForCausalLM.from_pretrained(tmp_path, variant="fp16")


def test_random_weights_are_never_taken_for_loaded_ones(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    keys_of(moe_experts=7)(tmp_path)
    with pytest.raises(ConfigError, match="ignore_mismatched_sizes=True"):
        AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


ONES, CONFIG = torch.ones(2, 6, 6), tiny_config()

MASKS: dict[str, tuple[Callable[[], Any], str]] = {
    "id too large": (
        lambda: ExpertMask.from_removed(CONFIG, {0: [36]}),
        "expert id 36 in group 0: must be from 0 to 35",
    ),
    "id negative": (
        lambda: ExpertMask.from_removed(CONFIG, {1: [3, -1]}),
        "expert id -1 in group 1: must be from 0 to 35",
    ),
    "id a fraction": (lambda: ExpertMask.from_removed(CONFIG, {0: [1.7]}), "in group 0: must be whole numbers"),
    "ids as booleans": (lambda: ExpertMask.from_removed(CONFIG, {0: ONES[0] > 0}), "must be whole numbers"),
    "group too large": (
        lambda: ExpertMask.from_removed(CONFIG, {2: [0]}),
        "routing group 2: the model has groups 0 to 1",
    ),
    "group negative": (
        lambda: ExpertMask.from_removed(CONFIG, {-1: [0]}),
        "routing group -1: the model has groups 0 to 1",
    ),
    "too many at random": (lambda: ExpertMask.random(CONFIG, 73, 0), "num_removed=73: must be from 0 to 72"),
    "too many in a group": (lambda: ExpertMask.random(CONFIG, [37, 0], 0), "num_removed=37: must be from 0 to 36"),
    "fewer than none": (lambda: ExpertMask.random(CONFIG, -1, 0), "num_removed=-1: must be from 0 to 72"),
    "counts of other groups": (
        lambda: ExpertMask.random(CONFIG, [1, 2, 3], 0),
        "num_removed has numbers for 3 groups, but the model has 2",
    ),
    "weight far above one": (lambda: ExpertMask(ONES * 2000), "keep-weight 2000.0: must be from 0, "),
    "weight negative": (lambda: ExpertMask(-ONES), "keep-weight -1.0: must be from 0, "),
    "weight NaN": (lambda: ExpertMask(ONES * math.nan), "keep-weight nan: must be from 0, "),
    "no group axis": (lambda: ExpertMask(ONES[0]), r"a mask of shape (6, 6); expected (routing groups, E, E)"),
    "not square": (lambda: ExpertMask(ONES[:, :4]), r"a mask of shape (2, 4, 6); expected (routing groups, E, E)"),
    "no groups": (lambda: ExpertMask(ONES[:0]), r"a mask of shape (0, 6, 6); expected (routing groups, E, E)"),
    "threshold NaN": (lambda: ExpertMask.from_scores(ONES, math.nan), "threshold=nan"),
    "scores of another shape": (lambda: ExpertMask.from_scores(ONES[0], 0.5), r"a mask of shape (6, 6)"),
}


@pytest.mark.parametrize(
    "wrong", [ONES, "m.safetensors", [ONES, None], {0: [1]}], ids=["tensor", "path", "list", "dict"]
)
def test_what_is_no_mask_is_refused_by_name(wrong):
    with pytest.raises((ConfigError, TypeError), match="ExpertMask"):
        tiny_model()(tokens(), expert_mask=wrong)


@pytest.mark.parametrize("case", MASKS)
def test_masks(case):
    make, message = MASKS[case]
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
