"""The memory model compared with bytes counted in real forwards and backwards on the CPU."""

import pytest
import torch

from benchmarks.measure import peak_bytes
from benchmarks.measure import saved_bytes as counted_bytes
from monet.costs.flops import parameter_counts
from monet.costs.memory import (
    activation_bytes_per_token,
    copies_bytes,
    saved_bytes_per_token,
    state_bytes,
    widths,
)
from monet.kernels import limits
from monet.model.losses import RouterLoss
from monet.training.language_models import build
from monet.training.settings import ModelShape

SIZES = {"vocab_size": 2000, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
EXPERTS = {"moe_dim": 16, "moe_heads": 3, "moe_experts": 64, "moe_topk": 3, "moe_groups": 2}
KINDS = {
    "vertical": {**EXPERTS, "moe_decompose": "vertical"},
    "horizontal": {**EXPERTS, "moe_decompose": "horizontal"},
    "hybrid": {**EXPERTS, "moe_decompose": "vertical", "dense_layers": [1], "intermediate_size": 136},
    "llama": {"architecture": "llama", "intermediate_size": 136},
}
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ROWS, T = 2, 128


def make(kind: str, precision: str, **changes):
    torch.manual_seed(0)
    model = build(ModelShape(**{**SIZES, **KINDS[kind], **changes}).config(), "sdpa").train()
    return model.to(torch.bfloat16) if precision == "bf16-true" else model


def loss_of(model, precision: str, uniformity_on: str = "routing"):
    ids = torch.randint(100, (ROWS, T + 1), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        router_loss = RouterLoss(1e-3, 1e-3, uniformity_on)
        return model(ids[:, :-1], shift_labels=ids[:, 1:], router_loss=router_loss, use_cache=False).loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1, "num_hidden_layers": 5}], ids=["plain", "odd"])
def test_saved_bytes_within_three_percent(kind, precision, changes):
    model = make(kind, precision, **changes)
    known = [*model.parameters(), *model.buffers()]
    counted = counted_bytes(lambda: loss_of(model, precision), known)
    wide = widths(precision, "ddp")
    predicted = ROWS * T * saved_bytes_per_token(model.config, wide) + copies_bytes(model.config, wide, False)
    assert predicted == pytest.approx(counted, rel=0.03)


def checkpoint(model) -> None:
    # the old name warns if the new one exists
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})


def measured_peak(model, precision: str) -> int:
    loss_of(model, precision).backward()  # from now on the gradients exist
    return peak_bytes(lambda: loss_of(model, precision).backward())


def predicted_peak(model, precision: str, checkpointing: bool) -> float:
    wide = widths(precision, "ddp")
    parts = activation_bytes_per_token(model.config, wide, checkpointing)
    return ROWS * T * sum(parts.values()) + copies_bytes(model.config, wide, checkpointing)


@pytest.fixture
def small_chunks(monkeypatch):
    """Make the temporaries of the CPU's mixing proportional to these sizes, as a GPU's are to real sizes."""
    monkeypatch.setattr(limits, "GEMM_ELEMENTS", 1 << 14)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("vertical", "32-true"), ("horizontal", "bf16-mixed"), ("llama", "bf16-mixed"), ("vertical", "bf16-true")],
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_peaks_within_five_percent_where_the_loss_is_the_peak(small_chunks, kind, precision, checkpointing):
    """The loss is the peak at all released sizes; the next test covers the other case."""
    model = make(kind, precision, vocab_size=4000)
    if checkpointing:
        checkpoint(model)
    assert predicted_peak(model, precision, checkpointing) == pytest.approx(measured_peak(model, precision), rel=0.05)


@pytest.mark.parametrize(("kind", "checkpointing"), [("vertical", False), ("horizontal", True), ("llama", True)])
def test_peaks_are_not_underestimated_where_a_layer_is_the_peak(small_chunks, kind, checkpointing):
    """Except autocast's copies of one layer's weights, which outweigh the activations of few tokens."""
    model = make(kind, "bf16-mixed", vocab_size=100)
    if checkpointing:
        checkpoint(model)
    parts = activation_bytes_per_token(model.config, widths("bf16-mixed", "ddp"), checkpointing)
    assert parts["work"] > 0 or kind == "llama"
    assert predicted_peak(model, "bf16-mixed", checkpointing) > 0.85 * measured_peak(model, "bf16-mixed")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_state_is_what_a_real_optimiser_holds(precision):
    model = make("vertical", precision)
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model, precision).backward()
    optimizer.step()
    parameters = list(model.parameters())
    parts = state_bytes(model.config, precision, "ddp", 8)
    assert parts["weights"] == sum(p.nbytes for p in parameters)
    assert parts["gradients"] == sum(p.grad.nbytes for p in parameters)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert parts["optimiser"] == sum(tensor.nbytes for tensor in moments)
    assert parts["buffers"] == 0


def test_frozen_dense_weights_have_no_gradients_and_moments():
    model = make("vertical", "32-true")
    config = model.config
    learning = [p for name, p in model.named_parameters() if ".router." in name or ".moe." in name]
    trained = sum(p.numel() for p in learning)
    parts = state_bytes(config, "32-true", "ddp", 8, freeze_dense=True)
    assert parts["weights"] == state_bytes(config, "32-true", "ddp", 8)["weights"]
    assert (parts["gradients"], parts["optimiser"]) == (4 * trained, 8 * trained)


@pytest.mark.parametrize(
    ("precision", "weight", "gradient", "optimiser"), [("bf16-mixed", 2, 4, 12), ("bf16-true", 2, 4, 12),
                                                       ("32-true", 4, 4, 12)]
)  # fmt: skip
def test_zero_spreads_one_thing_more_a_stage(precision, weight, gradient, optimiser):
    config = make("vertical", "32-true").config
    total = sum(parameter_counts(config).values())
    for strategy, spread in (("zero1", (1, 1, 16)), ("zero2", (1, 16, 16)), ("zero3", (16, 16, 16))):
        parts = state_bytes(config, precision, strategy, 16)
        wanted = [each * total / n for each, n in zip((weight, gradient, optimiser), spread, strict=True)]
        assert [parts[part] for part in ("weights", "gradients", "optimiser")] == wanted
        assert parts["buffers"] > 0
        away = state_bytes(config, precision, strategy, 16, offload=True)
        assert away == {part: 0.0 if n == 16 else parts[part] for part, n in zip(parts, spread, strict=False)} | {
            "buffers": parts["buffers"]
        }
    sharded = state_bytes(config, precision, "fsdp2", 16)
    assert sum(sharded.values()) - sharded["buffers"] == (8 if precision == "bf16-true" else 16) * total / 16
