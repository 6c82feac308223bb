"""Monet: language models that are interpretable by construction.

Importing this package is fast: torch and transformers load when a model class is first used. The import also makes
`AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and the Auto classes of the three task heads know the model type
"monet" (see `monet/model/registry.py`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monet.configuration_monet import MonetConfig
    from monet.masks.expert_mask import ExpertMask
    from monet.model.heads import MonetForQuestionAnswering, MonetForSequenceClassification, MonetForTokenClassification
    from monet.model.modeling_monet import MonetForCausalLM, MonetModel

__version__ = "0.1.0"
__all__ = [
    "ExpertMask",
    "MonetConfig",
    "MonetForCausalLM",
    "MonetForQuestionAnswering",
    "MonetForSequenceClassification",
    "MonetForTokenClassification",
    "MonetModel",
]

# In a checkout kernels/ and eval/ are next to this package, not in it; docs/architecture.md explains why.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root))

_MODULE_OF = {
    "ExpertMask": "monet.masks.expert_mask",
    "MonetConfig": "monet.configuration_monet",
    "MonetForCausalLM": "monet.model.modeling_monet",
    "MonetForQuestionAnswering": "monet.model.heads",
    "MonetForSequenceClassification": "monet.model.heads",
    "MonetForTokenClassification": "monet.model.heads",
    "MonetModel": "monet.model.modeling_monet",
    "inspect": "monet.eval.inspection.objects",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


importlib.import_module("monet.other_distribution").refuse_other_distribution()
importlib.import_module("monet.model.registry").install()
importlib.import_module("monet.moved").install()
