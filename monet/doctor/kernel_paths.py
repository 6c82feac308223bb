"""Compares every kernel that this machine can run with plain torch in float64 on the CPU."""

from __future__ import annotations

import importlib
import os
import warnings

import torch
from torch import Tensor

from monet.cpu import use_onednn_products
from monet.doctor.findings import Caution, Fault, Skipped
from monet.doctor.layer_case import ALLOWED, D, LayerCase, compare, softmax
from monet.doctor.machine import build_tools
from monet.doctor.tiny import FORMS, values
from monet.kernels import products
from monet.kernels.decode.build import has_cpp
from monet.kernels.dispatch import backend, interpreted
from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax

# From this number of tokens on, the layer of `LayerCase` uses the backward that keeps only its inputs.
_TOKENS = 512
_DECODED = (1, 5)  # one token, and one more than a group of four
_NO_BUILD = "install g++ 11 or newer to build the C++ kernels, or set MONET_CPP=0 to run without them, more slowly"


def routing(implementation: str) -> str:
    """Check the routing ops: active keys and their probabilities, the means, and the moments of the logits.

    Args:
        implementation: "torch" or "triton", also in the other checks of this file.
    """
    device = _device(implementation, "thresholded_softmax")
    T, H, E = 64, 2, 24
    z_TP = values("logits", (T, H * E)).to(device) * 3
    threshold_H = torch.tensor([0.5, 1.2], dtype=torch.float64)
    z_THE = z_TP.cpu().double().view(T, H, E)
    wanted_THE = softmax(z_THE, threshold_H)
    sums = route_with_losses(z_TP.clone(), threshold_H.to(device))
    moments = batch_statistics(z_TP.view(1, T, H, E))
    errors = []
    for what, g_TP in (
        ("probabilities", thresholded_softmax(z_TP.clone(), threshold_H.to(device))),
        ("probabilities with their means", sums.g_TP),
    ):
        if not torch.equal(g_TP.cpu().view(T, H, E) > 0, wanted_THE > 0):
            raise Fault(f"{what}: the active keys differ from plain torch")
        errors.append(compare(what, g_TP, wanted_THE.flatten(1)))
    variance_H = moments.m2_H / moments.count
    for what, got, wanted in (
        ("mean probabilities", sums.mean_HE, wanted_THE.mean(0)),
        ("mean maxima", sums.mean_max_H, wanted_THE.amax(-1).mean(0)),
        ("mean logits", moments.mean_H, z_THE.mean((0, 2))),
        ("variances of logits", variance_H, z_THE.var((0, 2), correction=0)),
    ):
        errors.append(compare(what, got, wanted, torch.float32))
    return _words(device, errors)


def mixing(implementation: str) -> str:
    """Check expert layers that read all keys, with and without masks: outputs and gradients."""
    device = _device(implementation, "horizontal_mixing")
    tokens = 5 if implementation == "triton" and interpreted() else _TOKENS
    errors = []
    for form in FORMS:
        case = LayerCase(form, tokens, device, torch.float32)
        exact = case.doubles()
        for name, keep in case.keeps().items():
            ours, theirs = _leaves(case), _leaves(exact)
            got, wanted = case.dense(ours[: len(case.first)], keep), exact.formula(theirs[: len(case.first)], keep)
            errors.append(compare(f"{form}, {name}", got, wanted))
            upstream = values("upstream", (tokens, D))
            gradients = zip(
                torch.autograd.grad(got, ours, upstream.to(got)),
                torch.autograd.grad(wanted, theirs, upstream.to(wanted)),
                strict=True,
            )
            errors.extend(compare(f"gradient, {form}, {name}", ours, theirs) for ours, theirs in gradients)
    return _words(device, errors)


def active(implementation: str) -> str:
    """Check expert layers that read only active keys, as in decoding; `implementation` may be "cpp"."""
    if implementation == "cpp":
        _need_cpp()
    device = _device("triton" if implementation == "triton" else "torch", "active_experts")
    # In float64 the CPU uses plain torch, which has the same code in every dtype.
    dtypes = (torch.float64,) if implementation == "torch" else (torch.float32, torch.bfloat16)
    if implementation == "triton" and interpreted():
        dtypes = (torch.float32,)
    errors: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for form in FORMS:
        for dtype, found in errors.items():
            for tokens in _DECODED:
                case = LayerCase(form, tokens, device, dtype)
                exact = case.doubles()
                for name, keep in case.keeps().items():
                    wanted = exact.formula(exact.pre_activations(), keep)
                    found.append(compare(f"{form}, {name}, {tokens} tokens, {dtype}", case.active(keep), wanted))
    return "; ".join(_words(device, found, dtype) for dtype, found in errors.items())


def torch_products() -> str:
    """Check that torch computes its own matrix products in float32, not in a shorter type."""
    if not products.is_float32(torch.mm):
        raise Fault(
            "float32 matrix products are rounded like bfloat16",
            "remove the setting that lowers torch's matmul precision",
        )
    return "float32 products have float32 accuracy"


def onednn_products() -> str:
    """Check that products sent to oneDNN, by the operator and by torch's setting, are exact."""
    if not products.mkl_is_slow():
        raise Skipped("not used here: torch's own products are the fastest on this processor")
    before = torch.get_float32_matmul_precision()
    taken, errors = [], []
    a_MK, b_KN = values("a", (130, 200)), values("b", (200, 150))
    wanted = a_MK.double() @ b_KN.double()
    if products.takes_onednn(a_MK, b_KN):
        taken.append("by torch's operator")
        errors.append(compare("oneDNN's operator", products.product(a_MK, b_KN), wanted))
    try:
        if use_onednn_products():
            taken.append("by torch's setting")
            errors.append(compare("oneDNN by torch's setting", a_MK @ b_KN, wanted))
    finally:
        torch.set_float32_matmul_precision(before)
    if not taken:
        raise Skipped("not used here: this torch has no oneDNN products of float32 accuracy")
    return f"{' and '.join(taken)}; {_words(a_MK.device, errors)}"


def _leaves(case: LayerCase) -> list[Tensor]:
    """Pre-activations, output weights and biases of a case as new leaves that require gradients; the case uses them."""
    hidden = [tensor.requires_grad_() for tensor in case.pre_activations()]
    case.projections = [tensor.detach().requires_grad_() for tensor in case.projections]
    case.biases = [tensor.detach().requires_grad_() for tensor in case.biases]
    return [*hidden, *case.projections, *case.biases]


def _device(implementation: str, op: str) -> torch.device:
    """The device on which an implementation of an op runs on this machine.

    Raises:
        Skipped: it cannot run here, or a setting disables it.
        Fault: it should run here but does not.
    """
    forced = os.environ.get("MONET_KERNELS", "auto")
    if implementation == "triton":
        on_cpu = forced == "triton" and interpreted()
        if not torch.cuda.is_available() and not on_cpu:
            raise Skipped("torch sees no CUDA device")
        device = torch.device("cpu" if on_cpu else "cuda")
    else:
        device = torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = backend(op, torch.empty(0, device=device))
    if chosen == implementation:
        return device
    if implementation == "torch" or forced == "torch":
        raise Skipped(f"MONET_KERNELS={forced} disables it")
    try:
        importlib.import_module("monet.kernels.routing.triton_op")
    except Exception as error:  # of any kind: a broken installation
        raise Fault(f"the Triton kernels cannot be imported: {error}") from None
    raise Fault("the Triton kernels are not chosen on this device")


def _need_cpp() -> None:
    """Load the C++ kernels; build them if no earlier run did."""
    if os.environ.get("MONET_CPP") == "0" or os.environ.get("MONET_KERNELS") == "torch":
        raise Skipped("MONET_CPP=0 or MONET_KERNELS=torch disables it")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if has_cpp():
            return
    missing = [name for name, path in build_tools().items() if path is None]
    if missing:
        raise Caution(
            f"no {' and no '.join(missing)} on the search path; decoding on the CPU uses plain torch, more slowly",
            "Debian: apt install g++; pip install ninja",
        )
    raise Fault(str(told[0].message) if told else "the C++ kernels could not be built", _NO_BUILD)


def _words(device: torch.device, errors: list[float], dtype: torch.dtype = torch.float32) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    kind = str(dtype).removeprefix("torch.")
    return f"{name}, {kind}: largest error {max(errors):.0e}, allowed {ALLOWED[dtype]:.0e}"
