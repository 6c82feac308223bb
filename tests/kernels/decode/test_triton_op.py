"""Sparse decoding on a GPU, as far as it can be tested without one: launches, traces, the choice, weights in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import ACT2FN

from monet import MonetForCausalLM
from monet.kernels import dispatch
from monet.kernels.decode import choice
from monet.kernels.decode.op import active_horizontal, active_vertical
from monet.kernels.masked import Keep
from monet.model.experts import EXPERTS, lay_out_for_decoding
from tests.kernels.explicit import DECOMPOSITIONS
from tests.model.tiny import tiny_config, tiny_model, tokens

triton_op = pytest.importorskip("monet.kernels.decode.triton_op", exc_type=ImportError)
forms = pytest.mark.parametrize("form", DECOMPOSITIONS)
E, H, M, D = 12, 3, 8, 20


def arguments(form: str, T: int, device: str) -> tuple:
    """Arguments of the op up to the activation, in bfloat16."""

    def some(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device)

    routing = (some(T, D), some(T, H, E), some(T, H, E))
    if form == "horizontal":
        return (*routing, some(E * M, D), some(E * M), some(D, E * M).t(), some(E, D))
    half = E * M // 2
    first = (some(half, D), some(half), some(half, D), some(half))
    projections = tuple(some(D // 2, half).t() for _ in range(4))
    return (*routing, first, projections, (some(E, D // 2), some(E, D // 2)))


def run(form: str, *args) -> torch.Tensor:
    return (active_horizontal if form == "horizontal" else active_vertical)(*args)


class Recorder(TorchDispatchMode):
    """The operators that were called, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@forms
@pytest.mark.parametrize("name", ["relu2", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_on_a_gpu_is_two_operators_that_look_at_no_data(form, name, masked):
    """Fake tensors have no data: code that reads data would fail here."""
    with FakeTensorMode(), torch.no_grad(), Recorder() as recorder:
        args = arguments(form, 3, "cuda")
        keep = None
        if masked:
            keep = Keep(
                torch.empty(2, E, E, dtype=torch.bool, device="cuda"),
                torch.empty(3, dtype=torch.int64, device="cuda"),
            )
        recorder.seen.clear()
        out = run(form, *args, ACT2FN[name], keep)
    assert (out.shape, out.dtype, out.device.type) == ((3, D), torch.bfloat16, "cuda")
    wanted = ["monet.gathered_hidden.default", "aten.gelu.default", "monet.gathered_output.default"]
    assert recorder.seen == [op for op in wanted if name == "gelu" or "gelu" not in op]


class Launches:
    """Replaces a kernel and records its launches."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **constants: None


@forms
@pytest.mark.parametrize("T", [1, 5, 40])
def test_launches_depend_on_shapes_alone(form, T, monkeypatch):
    """The launching code runs on tensors without data, so it neither waits for the device nor reads data for sizes."""
    recorded = {name: Launches() for name in ("hidden_kernel", "mix_kernel", "output_kernel")}
    for name, launches in recorded.items():
        monkeypatch.setattr(triton_op.kernels, name, launches)
    x, g1, g2, *weights = arguments(form, T, "meta")
    if form == "horizontal":
        u, u_bias, v, b = weights
        units, unit_biases, projections, biases = [u], [u_bias], [v], [b]
    else:
        (u1, c1, u2, c2), projections, biases = weights
        units, unit_biases = [u1, u2], [c1, c2]
    keep = torch.empty(2, E, E, dtype=torch.bool, device="meta")
    index = torch.empty(T, dtype=torch.int64, device="meta")
    # the functions behind the operators
    hidden, keys, count = triton_op.gathered_hidden._init_fn(x, g1, g2, units, unit_biases, 1)
    for mask in ((None, None), (keep, None), (keep, index)):
        out = triton_op.gathered_output._init_fn(hidden, keys, count, g1, g2, *mask, list(projections), list(biases))
        assert out.shape == (T, D)
    sides, m = len(units), M // len(units)
    block = min(16, 1 << (T - 1).bit_length())
    rows = -(-m // min(4, m))
    assert recorded["hidden_kernel"].grids == [(2 * block + sides * E * rows, -(-T // block))]
    assert recorded["mix_kernel"].grids == [(sides * E, T)] * 3
    assert recorded["output_kernel"].grids == [(sides * -(-D // sides // 16), T)] * 3
    assert hidden.shape == (sides, T, E, m)
    assert keys.shape == (2, T, E), "a list has room for every key"


def chosen(form: str, T: int, topk: int, rows: bool = True, width: int = 2048) -> bool:
    """The choice for a layer with E = 512, H = 8, M = 16 on a GPU, made from tensors without data."""
    config = tiny_config(form, moe_experts=512, moe_heads=8, moe_dim=16, moe_topk=topk, hidden_size=width)
    with torch.device("meta"):
        module = EXPERTS[form](config).to(torch.bfloat16)
    if rows:
        lay_out_for_decoding(module)
    linears = [module.u] if form == "horizontal" else [module.u1, module.u2]
    projections = [getattr(module, name).weight for name in module.projections]
    biases = [module.b] if form == "horizontal" else [module.b1, module.b2]
    with FakeTensorMode(), torch.no_grad():
        x_TD = torch.empty(T, width, dtype=torch.bfloat16, device="cuda")
        g_THE = torch.empty(T, 8, 512, dtype=torch.bfloat16, device="cuda")
        return choice.is_sparse(x_TD, g_THE, g_THE, linears, projections, biases, config.moe_topk)


@forms
def test_choice_on_a_gpu_follows_tokens_and_k(form, monkeypatch):
    # the weights would be on the GPU too
    monkeypatch.setattr(choice, "is_inference", lambda *_: True)
    monkeypatch.setenv("MONET_DECODE", "auto")
    assert [chosen(form, T, 8) for T in (1, 4, 5, 64)] == [True, True, False, False]
    assert [chosen(form, T, 8, rows=False) for T in (1, 2, 3)] == [True, True, False]
    assert [chosen(form, T, 32) for T in (1, 2)] == [True, False]
    assert not chosen(form, 1, 32, rows=False)
    assert not chosen(form, 1, 8, width=64), "the layer is too small"
    monkeypatch.setenv("MONET_DECODE", "dense")
    assert not chosen(form, 1, 8)
    monkeypatch.setenv("MONET_DECODE", "sparse")
    assert chosen(form, 64, 32)


def test_without_triton_a_gpu_stays_dense(monkeypatch):
    """The sparse layer in plain torch would wait for the device."""
    monkeypatch.setattr(choice, "is_inference", lambda *_: True)
    monkeypatch.setenv("MONET_KERNELS", "torch")
    assert not chosen("horizontal", 1, 8)

    def broken(name: str) -> None:
        raise ImportError("no module named triton")

    monkeypatch.setenv("MONET_KERNELS", "auto")
    monkeypatch.setattr(dispatch.importlib, "import_module", broken)
    dispatch._cached_choice.cache_clear()
    try:
        with pytest.warns(UserWarning, match="active_experts runs as plain torch on this GPU") as warned:
            assert not chosen("horizontal", 1, 8)
            assert not chosen("horizontal", 2, 8)
        assert len(warned) == 1
    finally:
        dispatch._cached_choice.cache_clear()


def test_weights_on_a_gpu_are_read_where_they_lie(monkeypatch):
    monkeypatch.setenv("MONET_DECODE_COPY", "1")
    with FakeTensorMode(), torch.no_grad():
        weight_DP = torch.nn.Parameter(torch.empty(6, 10, device="cuda"))
        rows = choice.OutputRows()
        rows_PD = rows.of("v", weight_DP)
    assert rows_PD.stride() == (1, 10) and not rows._copies


@forms
def test_weights_laid_out_for_decoding_are_the_same_weights(form, tmp_path):
    model = tiny_model(form)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fingerprint, ids = model.fingerprint(), tokens(2)
    with torch.no_grad():
        wanted = model(ids).logits
    lay_out_for_decoding(model)
    experts = [module for module in model.modules() if hasattr(module, "projections")]
    assert len(experts) == 4
    changed = [getattr(module, name).weight for module in experts for name in module.projections]
    assert all(weight.t().is_contiguous() and not weight.is_contiguous() for weight in changed)
    assert model.fingerprint() == fingerprint
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, wanted)
    for other in (copy.deepcopy(model), model.to(torch.float64)):
        weight = getattr(other.model.layers[0].moe, experts[0].projections[0]).weight
        assert weight.t().is_contiguous()
    model.float().save_pretrained(tmp_path)
    loaded = MonetForCausalLM.from_pretrained(tmp_path)
    for found in (model.state_dict(), loaded.state_dict()):
        assert found.keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in found.items())
    model.load_state_dict({name: tensor * 2 for name, tensor in before.items()})
    assert all(weight.t().is_contiguous() for weight in changed)
