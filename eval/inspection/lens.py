"""A Monet in TransformerLens: its usual hook points, and those of the routers."""

from __future__ import annotations

from typing import Any

from monet import MonetForCausalLM
from monet.errors import ConfigError


def lens(model: MonetForCausalLM, tokenizer: Any) -> Any:
    """The model as a `TransformerBridge` of TransformerLens.

    Its hook points have TransformerLens' names. `blocks.N.mlp.hook_out` is the sum of layer N's experts, (B, T, D).
    The first layer of each routing group has `blocks.N.router.hook_g1` and `hook_g2`, the routing probabilities of the
    group, (B, T, H, E) float32. A hook that returns changed probabilities changes what the group's layers mix with.

    Args:
        model: a Monet; the bridge wraps its modules in place, so use it only through the bridge from here on.
        tokenizer: its tokenizer.
    Raises:
        ConfigError: the model is a hybrid, or TransformerLens (extra `lens`) is not installed.
    """
    if model.config.dense_layers:
        raise ConfigError(
            f"dense_layers = {list(model.config.dense_layers)}: TransformerLens expects layers of one kind; use hooks"
            " or nnsight for a hybrid"
        )
    try:
        from transformer_lens.factories import architecture_adapter_factory as known  # pyright: ignore[reportMissingImports]
        from transformer_lens.hook_points import HookPoint  # pyright: ignore[reportMissingImports]
        from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]
        from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent  # pyright: ignore[reportMissingImports]
        from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"TransformerLens cannot be used ({error}); pip install 'monet-experts[lens]'") from None

    class RouterBridge(GeneralizedComponent):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(name, **options)
            self.hook_g1, self.hook_g2 = HookPoint(), HookPoint()

        def set_original_component(self, component: Any) -> None:
            super().set_original_component(component)
            component.register_forward_hook(self._show)

        def _show(self, module: Any, inputs: Any, output: Any) -> Any:
            return output._replace(g1_BTHE=self.hook_g1(output.g1_BTHE), g2_BTHE=self.hook_g2(output.g2_BTHE))

    class MonetAdapter(LlamaArchitectureAdapter):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            parts = self.component_mapping["blocks"].submodules
            parts["router"] = RouterBridge("router", optional=True)  # only the first layer of a group has one
            parts["mlp"] = GeneralizedComponent("moe")

    # the lookup of a loaded model's architecture reads this table, not the one that register_adapter fills
    known.SUPPORTED_ARCHITECTURES[type(model).__name__] = MonetAdapter
    known.ArchitectureAdapterFactory.register_adapter(type(model).__name__, MonetAdapter)
    return TransformerBridge.boot_transformers(
        model.name_or_path or type(model).__name__, hf_model=model, tokenizer=tokenizer, device=model.device
    )
