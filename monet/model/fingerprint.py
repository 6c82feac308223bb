"""The fingerprint that ties masks and statistics to a model, and the weights that it is computed from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError

_STRUCTURAL_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "moe_dim",
    "moe_heads",
    "moe_experts",
    "moe_topk",
    "moe_groups",
    "moe_decompose",
)
# The attribute under which peft keeps the layer that it wraps.
_WRAPPED = ("base_layer", "original_module")
# Hashes by held module: the state that each hash was computed from, and the hash.
_HELD: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, str]]] = WeakKeyDictionary()

Function = TypeVar("Function", bound=Callable[..., Any])


class LostSigns(CheckpointError):
    """Weights are quantised, which loses the signs of small weights, or they are not in memory."""


class Identity:
    """The identity of a model's body: its fingerprint, which is kept even after quantisation loses the signs.

    The fingerprint is the first 32 hexadecimal digits of SHA-256 over the structural keys and the signs of all weights.
    Signs survive every cast, so a checkpoint loaded in another dtype is still the same model. Adapters do not count:
    with or without them, the experts belong to the base model. Weights that accelerate has offloaded are read.

    Attributes:
        names: the parameters that the body had when it was built, in their order.
        known: the last computed fingerprint; None before that, and again after training.
        files: the safetensors files that the weights were loaded from; empty if there are none, or after training.
        times_forgotten: number of times that the body entered training mode.
    """

    def __init__(self, body: nn.Module) -> None:
        self.names = tuple(name for name, _ in body.named_parameters())
        self.times_forgotten = 0
        self.forget()

    def forget(self) -> None:
        """Drop the known fingerprint, because the weights may change from now on."""
        self.known: str | None = None
        self.files: tuple[Path, ...] = ()
        self.times_forgotten += 1

    def of(self, config: MonetConfig, body: nn.Module) -> str:
        """The fingerprint, from the weights; if they are quantised, the known one, or the one from the files.

        Raises:
            CheckpointError: the weights are quantised, and no fingerprint or file is known.
        """
        try:
            self.known = hashed_once(
                body,
                "fingerprint",
                _structure(config),
                body.parameters(),
                lambda: digest_of_signs(config, base_weights(body), self.names),
            )
        except LostSigns as error:
            try:
                self.known = self.known or digest_of_signs(config, _weights_in(self.files, self.names), self.names)
            except LostSigns:
                raise CheckpointError(
                    f"this model has no fingerprint: {error}; call model.fingerprint() before quantising it, or load "
                    "it with from_pretrained(quantization_config=...) from unquantised files"
                ) from None
        return self.known


def digest_of_signs(config: MonetConfig, weights: Iterable[Tensor], names: Sequence[str]) -> str:
    """Hash of the model's shape and of the signs of its weights: 32 hexadecimal digits.

    Raises:
        LostSigns: some weights are no longer parameters.
    """
    digest = hashlib.sha256(_structure(config).encode())
    found = 0
    for weight in weights:
        digest.update(np.packbits(weight.detach().signbit().cpu().numpy().reshape(-1)).data)
        found += 1
    if found != len(names):
        raise LostSigns(f"{len(names) - found} of its {len(names)} weights are no longer parameters")
    return digest.hexdigest()[:32]


def _structure(config: MonetConfig) -> str:
    dense = [config.dense_layers] if config.dense_layers else []
    return json.dumps([*(getattr(config, key) for key in _STRUCTURAL_KEYS), *dense])


def hold(model: nn.Module) -> None:
    """From now on, hash this model's weights once, and again only after a detected change.

    Detected changes are in-place changes that torch counts, exchanged storages, and a Monet model that enters training
    mode. Undetected changes are writes through `.data`, by fused optimizers and by other libraries' kernels to a model
    that stays in eval mode. So hold only a model that nothing else changes.

    Args:
        model: a model, or a module that contains a Monet model.
    """
    for module in _hashed_parts(model):
        _HELD.setdefault(module, {})


@contextmanager
def holding(model: nn.Module) -> Iterator[None]:
    """Inside the block, `hold` the model; a model that was already held stays held afterwards."""
    new = [module for module in _hashed_parts(model) if module not in _HELD]
    hold(model)
    try:
        yield
    finally:
        for module in new:
            _HELD.pop(module, None)


def holds_weights(function: Function) -> Function:
    """Decorator for a function that evaluates its first argument, `model`: the function hashes the weights once."""

    @functools.wraps(function)
    def held(*args: Any, **options: Any) -> Any:
        with holding(args[0] if args else options["model"]):
            return function(*args, **options)

    return cast(Function, held)


def hashed_once(module: nn.Module, name: str, also: str, weights: Iterable[Tensor], take: Callable[[], str]) -> str:
    """A hash of a module's weights, kept while the module is held and its weights do not change.

    Args:
        module: the module whose weights are hashed.
        name: name of the hash.
        also: text for further values that the hash depends on.
        weights: tensors that the hash depends on.
        take: computes the hash.
    """
    kept = _HELD.get(module)
    state = None if kept is None else _state(module, weights)
    if kept is None or state is None:
        return take()
    found = kept.get(name)
    if found is None or found[0] != (also, state):
        found = kept[name] = ((also, state), take())
    return found[1]


def _bodies(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "identity", None), Identity)]


def _hashed_parts(model: nn.Module) -> set[nn.Module]:
    return {model, *_bodies(model)}


def _state(module: nn.Module, weights: Iterable[Tensor]) -> list[Any] | None:
    """Addresses of the weights and counts of their changes; None if torch does not provide these."""
    found: list[Any] = [cast(Any, body).identity.times_forgotten for body in _bodies(module)]
    for weight in weights:
        if weight.is_meta or weight.is_inference() or hasattr(weight, "__tensor_flatten__"):
            return None
        found.append((weight.data_ptr(), weight._version, weight.dtype, weight.shape))
    return found


def _weights_in(files: Sequence[Path], names: Sequence[str]) -> Iterator[Tensor]:
    """The named weights of safetensors files, in the order of the names."""
    place = {}
    for path in files:
        with safe_open(path, "pt") as file:
            place.update({name.removeprefix("model."): (path, name) for name in file.keys()})  # noqa: SIM118
    for name in names:
        if name not in place:
            raise LostSigns(f"the files that it was loaded from have no weight {name}")
        path, key = place[name]
        with safe_open(path, "pt") as file:
            yield file.get_tensor(key)


def base_weights(module: nn.Module) -> Iterator[Tensor]:
    """The parameters except those of adapters, in the order of `parameters()`; offloaded ones are loaded first.

    Raises:
        LostSigns: a weight is quantised or on the meta device.
    """
    for part in _base_modules(module):
        own = list(part.named_parameters(recurse=False))
        with _brought_in(part):
            for name, weight in own:
                weight = getattr(part, name) if weight.is_meta else weight
                if weight.is_meta:
                    raise LostSigns(f"weight {name} is on the meta device and has no content")
                if hasattr(weight, "__tensor_flatten__"):
                    raise LostSigns(f"weight {name} is quantised ({type(weight).__name__})")
                yield weight


def base_parameters(module: nn.Module) -> Iterator[Tensor]:
    """The same parameters, unchanged: offloaded ones without content, quantised ones in their own class."""
    for part in _base_modules(module):
        yield from part.parameters(recurse=False)


def _base_modules(module: nn.Module) -> Iterator[nn.Module]:
    wrapped = next((part for name in _WRAPPED if isinstance(part := getattr(module, name, None), nn.Module)), None)
    if wrapped is not None:
        yield from _base_modules(wrapped)
        return
    yield module
    for child in module.children():
        yield from _base_modules(child)


def _brought_in(module: nn.Module) -> AbstractContextManager[Any]:
    """accelerate's context that loads the weights of a module that it has offloaded."""
    offloaded = any(weight.is_meta for weight in module.parameters(recurse=False))
    if not offloaded or find_spec("accelerate") is None:
        return nullcontext()
    from accelerate.utils import align_module_device, has_offloaded_params

    return align_module_device(module, torch.device("cpu")) if has_offloaded_params(module) else nullcontext()
