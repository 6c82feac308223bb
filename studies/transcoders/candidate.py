"""Transcoder latents as a candidate of a study of removal, next to experts and neurons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monet.errors import ConfigError
from monet.eval.attribution.rules import highest, information
from monet.eval.baselines.neurons import mean_inputs
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.intervention import Intervention
from monet.files import atomic_path
from monet.masks.controls import ControlKind
from studies.removal.candidates import Candidate, Llama, strongest
from studies.transcoders import folder
from studies.transcoders.intervention import LatentMask, Latents


class TranscoderLatents(Candidate):
    """Loses the latents whose firing has the most information on the domain, and less on every other domain.

    That is the rule by which a Monet loses experts. C labels, L layers with a transcoder, F latents of each.

    Args:
        transcoders: folder of `python -m studies.transcoders`.
        dense: the dense model, which it shares.

    Raises:
        ConfigError: the transcoders have other layers than the dense model's neurons may come from.
    """

    kind = "transcoder"

    def __init__(self, transcoders: Path, dense: Llama) -> None:
        self._dense = dense
        super().__init__(transcoders, dense.plan)
        self.trained_transcoders, modules = folder.load(transcoders)
        if dense.layers is not None and self.trained_transcoders.layers != list(dense.layers):
            raise ConfigError(
                f"{transcoders} has layers {self.trained_transcoders.layers}, but {list(dense.layers)} are compared; "
                "train transcoders with --like one of these conversions"
            )
        self.latents = Latents(modules)
        self.latents.mlps(self.model)

    def _load(self, folder: str) -> Any:
        return self._dense.model

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint}-{self.latents.digest[:16]}"

    @property
    def trained(self) -> dict[str, Any]:
        """Length of the transcoders' training."""
        return {"tokens_seen": self.trained_transcoders.tokens}

    def place(self, *what: Any) -> Path:
        return super().place(self.latents.digest, *what)

    def _means(self, data: PreparedWindows) -> dict[str, Tensor]:
        """The mean size of each latent's part of the output, and the share of tokens at which it is active."""
        path = self.place("latents", data.fingerprint).with_suffix(".safetensors")
        if not path.exists():
            modules = self.latents.ordered()
            norms = [one.columns_DF.norm(dim=0) for one in modules]

            def measure(number: int, x_BTD: Tensor) -> Tensor:
                z_BTF = modules[number].to(x_BTD.device).latents(x_BTD)
                return torch.cat([z_BTF * norms[number].to(x_BTD.device), (z_BTF > 0).float()], -1)

            found = mean_inputs(
                self.model, self.latents.mlps(self.model), measure, data, batch_size=self.plan.batch_size,
                what="latents",
            )  # fmt: skip
            sizes_CLF, rates_CLF = (part.contiguous() for part in found.chunk(2, dim=-1))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                save_file({"sizes_CLF": sizes_CLF, "rates_CLF": rates_CLF}, temporary)
        return load_file(path)

    @cached_property
    def _judged(self) -> dict[str, Tensor]:
        return self._means(self.plan.evaluate)

    def masks(self, share: float) -> Mapping[str, LatentMask]:
        data = self.plan.identify
        bits_CLF = information(self._means(data)["rates_CLF"])
        count = int(share * bits_CLF[0].numel())
        keeps = strongest(highest(bits_CLF), bits_CLF.amax(0), len(data.labels), count)
        notes = {"made_by": "top_latents", "fraction": share, "statistics": {"parts": [dict(data.description)]}}
        return {
            label: LatentMask(self.latents, keep_LF, {**notes, "label": label})
            for label, keep_LF in zip(data.labels, keeps, strict=True)
        }

    def weights(self, kind: ControlKind) -> dict[str, Tensor]:
        means_CLF = self._judged["rates_CLF" if kind == "activity" else "sizes_CLF"]
        return dict(zip(self.plan.evaluate.labels, means_CLF, strict=True))

    def keep(self, mask: Intervention) -> Tensor:
        assert isinstance(mask, LatentMask)
        return mask.keep_LF

    def mask(self, keep: Tensor) -> LatentMask:
        return LatentMask(self.latents, keep)
