"""Choice of layers over active keys, unchanged results of a model with them, and the build of their C++ code."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from monet import ExpertMask
from monet.kernels.decode import build, choice, op
from monet.kernels.masked import Keep
from monet.model.experts import EXPERTS
from tests.kernels.explicit import DECOMPOSITIONS, Example
from tests.model.tiny import fill, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close

forms = pytest.mark.parametrize("form", DECOMPOSITIONS)
needs_cpp = pytest.mark.skipif(not build.has_cpp(), reason="the C++ kernels cannot be built here")


def module_and_input(form: str = "horizontal", T: int = 1):
    torch.manual_seed(0)
    module = EXPERTS[form](tiny_config(form, moe_experts=16, hidden_size=32, moe_dim=8)).eval()
    fill(module)
    example = Example(form, T=T, E=16, H=3, dtype=torch.float32)
    x_BTD = torch.randn(1, T, 32)
    return module, (x_BTD, example.g1_THE[None], example.g2_THE[None])


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The sparse layers that ran; every layer counts as large enough."""
    seen: list[str] = []
    monkeypatch.setattr(choice, "SMALLEST_LAYER", 0)
    for name in ("active_horizontal", "active_vertical"):
        inner = getattr(op, name)

        def counted(*args, inner=inner, name=name):
            seen.append(name)
            return inner(*args)

        monkeypatch.setattr(f"monet.model.experts.{name}", counted)
    return seen


@forms
@pytest.mark.parametrize("mask", [False, True])
def test_module_gives_the_dense_layers_result(form, mask, calls, monkeypatch):
    module, inputs = module_and_input(form, T=6)
    keep = Keep(torch.rand(1, 16, 16) > 0.5) if mask else None
    with torch.no_grad():
        monkeypatch.setenv("MONET_DECODE", "dense")
        wanted = module(*inputs, keep)
        assert not calls
        monkeypatch.setenv("MONET_DECODE", "sparse")
        assert_close("sparse", module(*inputs, keep), wanted)
        assert calls == [f"active_{form}"]
        monkeypatch.setenv("MONET_DECODE_COPY", "0")
        assert_close("in place", module(*inputs, keep), wanted)


@needs_cpp
def test_choice_follows_the_share_of_active_keys(calls, monkeypatch):
    module, (x_BTD, g1, g2) = module_and_input(T=8)
    everything = torch.full_like(g1, 1 / 16)
    monkeypatch.setattr(choice, "LIMITS", {(torch.float32, True): ((8, 0.9),)})
    monkeypatch.setattr(choice, "LIMITS_SLOW_MKL", {})
    with torch.no_grad():
        module(x_BTD, g1, g2)
        assert len(calls) == 1
        module(x_BTD, everything, everything)
        module(*(part.repeat(1, 2, *[1] * (part.dim() - 2)) for part in (x_BTD, g1, g2)))
        assert len(calls) == 1
    monkeypatch.setattr(choice, "SMALLEST_LAYER", 1 << 21)
    with torch.no_grad():
        module(x_BTD, g1, g2)
    assert len(calls) == 1


@needs_cpp
def test_choice_knows_that_a_slow_mkl_makes_the_dense_layer_slow(calls, monkeypatch):
    module, inputs = module_and_input(T=8)
    monkeypatch.setattr(choice, "LIMITS", {(torch.float32, True): ((4, 0.9),)})
    monkeypatch.setattr(choice, "LIMITS_SLOW_MKL", {(torch.float32, True): ((8, 0.9),)})
    monkeypatch.setattr(choice, "mkl_is_slow", lambda: True)
    with torch.no_grad():
        module(*inputs)
        assert len(calls) == 1
        monkeypatch.setattr(choice, "onednn_products", lambda: True)
        module(*inputs)
        monkeypatch.setattr(choice, "onednn_products", lambda: False)
        monkeypatch.setattr(choice, "mkl_is_slow", lambda: False)
        module(*inputs)
    assert len(calls) == 1


@forms
def test_layer_stays_dense_where_sparse_would_be_wrong(form, calls, monkeypatch):
    monkeypatch.setenv("MONET_DECODE", "sparse")
    module, inputs = module_and_input(form)
    module(*inputs)  # the weights require gradients
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            module(*inputs)
        with pytest.raises(NotImplementedError, match="forward AD"):  # a sparse layer would drop the derivative
            torch.func.jvp(lambda x_BTD: module(x_BTD, *inputs[1:]), inputs[:1], inputs[:1])
        linear = module.u if form == "horizontal" else module.u2
        hook = linear.register_forward_hook(lambda *_: None)
        module(*inputs)
        hook.remove()
        linear.weight.data, whole = linear.weight.data[:0], linear.weight.data  # as under ZeRO-3
        with pytest.raises(RuntimeError):
            module(*inputs)
        linear.weight.data = whole
        assert not calls
        module(*inputs)
        module(inputs[0][:, :0], inputs[1][:, :0], inputs[2][:, :0])
    assert len(calls) == 1


def test_unknown_choice_is_refused(monkeypatch):
    module, inputs = module_and_input()
    monkeypatch.setenv("MONET_DECODE", "fast")
    with pytest.raises(ValueError, match=r"MONET_DECODE='fast'; set it to one of auto, dense, sparse"):
        module(*inputs)
    monkeypatch.setenv("MONET_DECODE", "sparse")
    monkeypatch.setenv("MONET_DECODE_COPY", "yes")
    with torch.no_grad(), pytest.raises(ValueError, match=r"MONET_DECODE_COPY='yes'; set it to 1, or to 0"):
        module(*inputs)


@forms
def test_copies_follow_the_weights(form, calls, monkeypatch):
    monkeypatch.setenv("MONET_DECODE", "sparse")
    module, inputs = module_and_input(form)
    name = "v" if form == "horizontal" else "v21"
    linear = getattr(module, name)

    def check(what: str) -> None:
        monkeypatch.setenv("MONET_DECODE_COPY", "0")
        wanted = module(*inputs)
        monkeypatch.setenv("MONET_DECODE_COPY", "1")
        assert_close(what, module(*inputs), wanted)
        assert len(module._output_rows._copies) == (1 if form == "horizontal" else 4)

    with torch.no_grad():
        check("first")
        kept = module._output_rows._copies[name].rows_PD
        check("again")
        assert module._output_rows._copies[name].rows_PD is kept
        linear.weight.mul_(2)
        check("changed in place")
        for entry in range(5):
            linear.weight[entry, entry * 7] += 1
            check("a single entry changed in place")
        linear.weight.data = torch.randn_like(linear.weight)
        check("another storage")
        linear.weight = torch.nn.Parameter(torch.randn_like(linear.weight))
        check("another parameter")
        module.load_state_dict({key: value * 3 for key, value in module.state_dict().items()})
        check("loaded")
        linear.weight.data[:, -1] += 1
        check("one key's entries written through .data")
        linear.weight.data *= 2
        check("all entries written through .data")
        module.train()
        assert not module._output_rows._copies
        linear.weight.data.mul_(2)
        module.eval()
        check("trained")
        module.double().float()
        assert not module._output_rows._copies
    assert not copy.deepcopy(module)._output_rows._copies
    assert not pickle.loads(pickle.dumps(module._output_rows))._copies


@forms
def test_inference_mode(form, calls, monkeypatch):
    monkeypatch.setenv("MONET_DECODE", "sparse")
    module, inputs = module_and_input(form)
    with torch.no_grad():
        wanted = module(*inputs)
    with torch.inference_mode():
        module.load_state_dict({key: value.clone() for key, value in module.state_dict().items()}, assign=True)
        assert_close("inference mode", module(*inputs), wanted)


@forms
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("masked", [False, True])
def test_generation_gives_the_dense_models_tokens(form, cache, masked, calls, monkeypatch):
    model, ids = tiny_model(form), tokens(3)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8,
               "pad_token_id": 0, "cache_implementation": cache}  # fmt: skip
    if masked:
        options["expert_mask"] = [
            ExpertMask.random(model.config, 15, seed=1),
            None,
            ExpertMask.random(model.config, 9, seed=2),
        ]
    monkeypatch.setenv("MONET_DECODE", "dense")
    wanted = model.generate(ids, **options)
    monkeypatch.setenv("MONET_DECODE", "sparse")
    assert torch.equal(model.generate(ids, **options), wanted)
    assert len(calls) == 8 * 4


@forms
def test_compiled_graph_takes_the_sparse_layer_by_the_number_of_tokens(form, calls, monkeypatch):
    torch._dynamo.reset()
    graphs = []

    def remember(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    module, one = module_and_input(form)
    _, five = module_and_input(form, T=5)
    compiled = torch.compile(module, backend=remember, fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert_close("one", compiled(*one), module(*one))
        assert_close("five", compiled(*five), module(*five))
    assert "monet.active_sum" in graphs[0] or not build.has_cpp()
    assert "monet.active" not in graphs[1]
    torch._dynamo.reset()


@pytest.fixture
def fresh_build():
    build.has_cpp.cache_clear()
    yield
    build.has_cpp.cache_clear()


def test_a_failing_compiler_is_told_once_and_torch_takes_over(fresh_build, monkeypatch):
    def fail() -> None:
        raise RuntimeError("Ninja is required to load C++ extensions\nmore")

    monkeypatch.setattr(build, "load", fail)
    with pytest.warns(UserWarning, match=r"could not be built.*Ninja is required to load C\+\+ extensions\. Install g"):
        assert not build.has_cpp()
    assert not build.has_cpp()


@pytest.mark.parametrize("variable", [("MONET_CPP", "0"), ("MONET_KERNELS", "torch")], ids="=".join)
def test_cpp_can_be_left_out(fresh_build, monkeypatch, variable):
    monkeypatch.setenv(*variable)
    monkeypatch.setattr(build, "load", lambda: pytest.fail("built"))
    assert not build.has_cpp()


def test_unknown_setting_is_refused(fresh_build, monkeypatch):
    monkeypatch.setenv("MONET_CPP", "yes")
    with pytest.raises(ValueError, match="MONET_CPP='yes'"):
        build.has_cpp()


def test_a_build_is_named_by_its_sources(monkeypatch, tmp_path):
    names = {
        build.library_name("AVX2", ["-O3"]),
        build.library_name("AVX512", ["-O3"]),
        build.library_name("AVX2", ["-O2"]),
    }
    for source in (*build._SOURCES, *build._HEADERS):
        (tmp_path / source).write_bytes((build.FOLDER / source).read_bytes())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.library_name("AVX2", ["-O3"]) in names
    (tmp_path / "mixing.h").write_text("// changed")
    assert build.library_name("AVX2", ["-O3"]) not in names
