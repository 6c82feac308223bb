"""Registers Monet with transformers' Auto classes without importing transformers or torch.

transformers keeps its own models as tables of names and imports a class when it is first used. Monet enters those
tables the same way: by name, with this package as the module that provides the names. The tables exist only after
transformers' auto modules have run, so a finder on `sys.meta_path` waits for them. The hook must not import modelling
code, because it runs in the middle of transformers' own imports.

Why not call transformers' public `register()` in `import monet`? It takes classes, not names. Measured with
transformers 5.24 and torch 2.13 on a CPU, in seconds of processor time:

    import monet                0.03    with register() 4.9
    monet --help                0.05    with register() 4.9

Calling it from the finder fails: `import monet` followed by `from transformers import LlamaForCausalLM` would import
Monet's model classes while transformers.modeling_layers is only half imported, which is an ImportError. `register`
below makes the public calls, for a release of transformers with another form of tables; a test compares both ways.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPE = "monet"

# auto module -> its tables, each with the class that it gets; the table of configurations has no model class
_TABLES: dict[str, dict[str, str | None]] = {
    "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING": None},
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING": "MonetModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING": "MonetForCausalLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": "MonetForSequenceClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING": "MonetForTokenClassification",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING": "MonetForQuestionAnswering",
    },
}


def install() -> None:
    """Register with the auto modules that are loaded, and with the others as soon as they are loaded."""
    waiting = [name for name in _TABLES if name not in sys.modules]
    for name in _TABLES.keys() - set(waiting):
        _enter_names(sys.modules[name])
    if waiting and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register() -> None:
    """Register through transformers' public calls, which import the classes now.

    Only needed with a release of transformers whose tables have another form; `install` then warns.
    """
    import transformers

    from monet.configuration_monet import MonetConfig
    from monet.model import heads, modeling_monet

    transformers.AutoConfig.register(MODEL_TYPE, MonetConfig, exist_ok=True)
    for auto_class, model_class in (
        (transformers.AutoModel, modeling_monet.MonetModel),
        (transformers.AutoModelForCausalLM, modeling_monet.MonetForCausalLM),
        (transformers.AutoModelForSequenceClassification, heads.MonetForSequenceClassification),
        (transformers.AutoModelForTokenClassification, heads.MonetForTokenClassification),
        (transformers.AutoModelForQuestionAnswering, heads.MonetForQuestionAnswering),
    ):
        auto_class.register(MonetConfig, model_class, exist_ok=True)


def _enter_names(auto_module: ModuleType) -> None:
    package = sys.modules["monet"]
    try:
        for table_name, class_name in _TABLES[auto_module.__name__].items():
            table: Any = getattr(auto_module, table_name)
            if class_name is None:
                table._mapping[MODEL_TYPE] = "MonetConfig"
            else:
                table._config_mapping[MODEL_TYPE] = "MonetConfig"
                table._reverse_config_mapping["MonetConfig"] = MODEL_TYPE
                table._model_mapping[MODEL_TYPE] = class_name
            table._modules[MODEL_TYPE] = package
    except (AttributeError, TypeError) as error:
        warnings.warn(
            f"this version of transformers keeps its Auto classes in another form ({error}); call "
            "monet.model.registry.register() once before AutoModelForCausalLM.from_pretrained",
            RuntimeWarning,
            stacklevel=2,
        )


class _AfterImport:
    """Lets the other finders do their work, and calls `_enter_names` right after one of the auto modules has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _TABLES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                _call_after_exec(spec)
                return spec
        return None


def _call_after_exec(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    exec_module = loader.exec_module

    def exec_and_register(module: ModuleType) -> None:
        exec_module(module)
        _enter_names(module)

    loader.exec_module = exec_and_register
