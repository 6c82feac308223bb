"""Arguments that the public ops refuse; the message names the value and the expected one."""

from __future__ import annotations

import pytest
import torch

from monet.kernels import dispatch
from monet.kernels.masked import Keep
from monet.kernels.routing.op import thresholded_softmax
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op

HIDDEN = {"horizontal": 1, "vertical": 2}


def with_input(form: str, position: int, change) -> tuple[Example, tuple[torch.Tensor, ...]]:
    example = Example(form)
    inputs = list(example.op_inputs())
    inputs[position] = change(inputs[position])
    return example, tuple(inputs)


# position is counted from the first routing tensor; the shapes in the text are those of Example
BAD = {
    "g1 of another number of tokens": (0, lambda g: g[:-1], r"g1_THE has shape \(6, 2, 5\); expected \(7, any, 5\)"),
    "g1 of another number of keys": (0, lambda g: g[..., :-1], r"g1_THE has shape \(7, 2, 4\)"),
    "g1 without heads": (0, lambda g: g[:, 0], r"g1_THE has shape \(7, 5\)"),
    "g2 with other heads": (1, lambda g: g[:, :1], r"g2_THE has shape \(7, 1, 5\); expected \(7, 2, 5\)"),
    "boolean g2": (1, lambda g: g > 0, r"g2_THE has dtype torch\.bool; cast it to one of"),
    "integer g1": (0, lambda g: g.long(), r"g1_THE has dtype torch\.int64"),
    "output weight of another E": (
        2,
        lambda v: v[:, :-1],
        r"v\w* has shape \(\d, (19|9)\); expected \((any|3), (20|10)\)",
    ),
    "output bias of another E": (-1, lambda b: b[:-1], r"b\w* has shape \(4, \d\); expected \(5, \d\)"),
    "output bias of another width": (-1, lambda b: b[:, :-1], r"b\w* has shape \(5, \d\); expected \(5, \d\)"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_bad_tensors(form, case):
    position, change, message = BAD[case]
    position = position if position < 0 else position + HIDDEN[form]
    with pytest.raises(ValueError, match=message):
        call_op(form, with_input(form, position, change)[1])


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_bad_hidden_units(form):
    with pytest.raises(ValueError, match=r"shape \(7, (20|10)\); expected three dimensions"):
        call_op(form, with_input(form, 0, lambda p: p.flatten(1))[1])
    with pytest.raises(ValueError, match=r"hidden units has dtype torch\.int64"):
        call_op(form, with_input(form, 0, lambda p: p.long())[1])


def test_halves_of_vertical_experts_must_agree():
    with pytest.raises(ValueError, match=r"p2_TEM has shape \(7, 5, 1\); expected \(7, 5, 2\)"):
        call_op("vertical", with_input("vertical", 1, lambda p: p[..., :1])[1])


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_bad_masks(form):
    example = Example(form)
    keep = example.random_keep(S=2)
    for wrong, message in [
        (Keep(keep[:, :-1]), r"keep\.weights_SEE has shape \(2, 4, 5\); expected \(any, 5, 5\)"),
        (Keep(keep[0]), r"keep\.weights_SEE has shape \(5, 5\)"),
        (Keep(keep, torch.zeros(6, dtype=torch.int64)), r"keep\.index_T has shape \(6,\); expected \(7,?\)"),
        (Keep(keep), r"holds 2 masks; set keep\.index_T to the number"),
    ]:
        with pytest.raises(ValueError, match=message):
            example.op(wrong)


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_a_mask_index_beyond_the_masks_is_refused(form):
    example = Example(form)
    with pytest.raises((ValueError, IndexError)):
        example.op(Keep(example.random_keep(S=2), torch.full((7,), 2)))


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_devices_must_agree(form):
    example, inputs = with_input(form, HIDDEN[form], lambda g: g.to("meta"))
    with pytest.raises(ValueError, match="g1_THE is on meta, hidden units on cpu"):
        call_op(form, inputs)
    with pytest.raises(ValueError, match="keep is on meta, hidden units on cpu"):
        example.op(Keep(example.random_keep().to("meta")))


def test_bad_logits():
    threshold_H = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"z_TP has dtype torch\.int64"):
        thresholded_softmax(torch.zeros(3, 8, dtype=torch.int64), threshold_H)
    with pytest.raises(ValueError, match=r"z_TP has shape \(3, 2, 4\); expected \(any, any\)"):
        thresholded_softmax(torch.zeros(3, 2, 4), threshold_H)
    with pytest.raises(ValueError, match=r"threshold_H has shape \(4,\); expected \(H,\); H must divide 9 logits"):
        thresholded_softmax(torch.zeros(3, 9), threshold_H)
    with pytest.raises(ValueError, match=r"threshold_H has shape \(0,\)"):
        thresholded_softmax(torch.zeros(3, 9), threshold_H[:0])


def test_backends(monkeypatch):
    hidden = torch.zeros(2)
    monkeypatch.setenv("MONET_KERNELS", "fast")
    with pytest.raises(ValueError, match="MONET_KERNELS='fast' is no known backend; use one of auto, torch, triton"):
        dispatch.resolve("horizontal_mixing", hidden)
    monkeypatch.setenv("MONET_KERNELS", "torch")
    torch_mixing = dispatch.resolve("horizontal_mixing", hidden)
    monkeypatch.setenv("MONET_KERNELS", "auto")
    assert dispatch.resolve("horizontal_mixing", hidden) is torch_mixing
    with pytest.raises(ValueError, match="'vertical_mixing' already has a torch implementation"):
        dispatch.enter_torch("vertical_mixing", torch_mixing)


def test_forced_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setenv("MONET_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="horizontal_mixing cannot use it: the tensors are on cpu; move them to cuda"):
        dispatch.resolve("horizontal_mixing", torch.zeros(2))
    with pytest.raises(ValueError, match=r"no torch\.float64; cast to float32"):
        dispatch.resolve("vertical_mixing", torch.zeros(2, dtype=torch.float64))


def test_a_broken_triton_is_named_and_torch_goes_on(monkeypatch):
    def broken(name: str) -> None:
        raise ImportError("no module named triton.language")

    monkeypatch.setattr(dispatch.importlib, "import_module", broken)
    dispatch._cached_choice.cache_clear()
    try:
        with pytest.warns(UserWarning, match="plain torch on this GPU.*no module named triton.language.*pip install"):
            assert dispatch._cached_choice("horizontal_mixing", "cuda", torch.bfloat16, "auto", False) == "torch"
    finally:
        dispatch._cached_choice.cache_clear()
