"""Import paths of earlier versions: each returns the module under its present path, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import cast

MOVED = {
    "monet.controls": "monet.masks.controls",
    "monet.data.datamodule": "monet.data.loading.datamodule",
    "monet.data.prepare": "monet.data.preparation.prepare",
    "monet.data.shards": "monet.data.storage.shards",
    "monet.data.tokenizer": "monet.data.tokens.tokenizer",
    "monet.data.windows": "monet.data.loading.windows",
    "monet.experts": "monet.model.experts",
    "monet.export": "monet.convert.export",
    "monet.generate": "monet.serve.generate",
    "monet.heads": "monet.model.heads",
    "monet.losses": "monet.model.losses",
    "monet.masking": "monet.masks.active",
    "monet.model_tokenizer": "monet.model.model_tokenizer",
    "monet.modeling_monet": "monet.model.modeling_monet",
    "monet.outputs": "monet.model.outputs",
    "monet.packing": "monet.model.packing",
    "monet.plan": "monet.planning.plan",
    "monet.pretrained": "monet.model.pretrained",
    "monet.ranks": "monet.model.ranks",
    "monet.remote_code": "monet.convert.remote_code",
    "monet.router": "monet.model.router",
    "monet.eval.ablate": "monet.eval.suites.loss.ablate",
    "monet.eval.bootstrap": "monet.eval.core.bootstrap",
    "monet.eval.code": "monet.eval.suites.code",
    "monet.eval.conditions": "monet.eval.core.conditions",
    "monet.eval.curve": "monet.eval.suites.loss.curve",
    "monet.eval.document": "monet.eval.core.document",
    "monet.eval.harness": "monet.eval.suites.questions",
    "monet.eval.harness.model": "monet.eval.suites.questions.model",
    "monet.eval.inputs": "monet.eval.core.inputs",
    "monet.eval.losses": "monet.eval.core.window_losses",
    "monet.eval.neurons": "monet.eval.baselines.neurons",
    "monet.eval.report": "monet.eval.reporting.command",
    "monet.eval.results": "monet.eval.ablation.results",
    "monet.eval.rules": "monet.eval.attribution.rules",
    "monet.eval.selection": "monet.eval.attribution.selection",
    "monet.eval.statistics": "monet.eval.attribution.statistics",
    "monet.eval.stats": "monet.eval.attribution.stats",
    "monet.eval.toxicity": "monet.eval.suites.toxicity",
    "monet.eval.toxicity.choose": "monet.eval.scorers.choose",
    "monet.eval.toxicity.evaluate": "monet.eval.suites.toxicity.evaluate",
    "monet.eval.toxicity.prompts": "monet.eval.suites.toxicity.prompts",
    "monet.eval.toxicity.scorers": "monet.eval.scorers.scorers",
}


def _new_name(name: str) -> str | None:
    """Where a module is today; None if it has not moved. A module in a package that has moved is in the new package."""
    start = name
    while start and start not in MOVED:
        start = start.rpartition(".")[0]
    return MOVED[start] + name[len(start) :] if start else None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Must be the first finder: otherwise an empty folder left by an update would be taken for the module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("monet.") or _new_name(fullname) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def get_code(self, fullname: str) -> None:
        raise ImportError(f"{fullname} has moved to {_new_name(fullname)}; run that")

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, cast(str, _new_name(module.__name__))
        warnings.warn(f"{old} has moved to {new}; import it from there", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Make imports of the old paths work."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
