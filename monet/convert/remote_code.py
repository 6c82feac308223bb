"""The modelling file of an export, with which a folder loads where this package is not installed.

The file is built from this package's sources (see `monet/convert/bundle/`), in plain torch. It holds the classes that
transformers' Auto classes know for Monet, and everything they need: checked loading, masks, generation, losses.
"""

from __future__ import annotations

import functools
from pathlib import Path

from monet import __version__
from monet.configuration_monet import MonetConfig
from monet.convert.bundle.bundle import Bundle
from monet.errors import CheckpointError
from monet.files import atomic_write_json, atomic_write_text
from monet.json_text import read_json

MODELLING_FILE = "modeling_monet.py"

_PLAIN = "monet.kernels.plain"
_STAND_INS = {
    "monet.kernels.decode.choice": _PLAIN,
    "monet.kernels.decode.op": _PLAIN,
    "monet.kernels.dispatch": _PLAIN,
    "monet.kernels.mix_project_op": _PLAIN,
}
# The packages that torch and transformers need themselves; a file that imports other packages may be refused.
_PACKAGES = ("huggingface_hub", "numpy", "safetensors", "torch", "transformers", "typing_extensions")
_REFUSED = (
    "monet.convert.bundle",
    "monet.cli",
    "monet.data",
    "monet.eval",
    "monet.convert.export",
    "monet.kernels.decode",
    "monet.model.registry",
    "monet.convert.remote_code",
    "monet.training",
)

_HEADER = '''"""Monet {version} in one file: mixtures of monosemantic experts (arXiv 2412.04139) for transformers.

GENERATED from the sources of the package monet, version {version}; make changes there. Each section names the module
that it comes from. If two modules share a name, one of the two has its module's name in front. Code that a model does
not need is omitted, and so are the Triton and C++ kernels: everything here is plain torch.

It needs torch, transformers, safetensors and numpy. transformers loads it from a model's folder with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Licence: Apache-2.0, http://www.apache.org/licenses/LICENSE-2.0. The file comes without warranties of any kind.
"""

# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations
'''

_FOOTER = """
# {rule}
# The heads in transformers create the model below them through AutoModel, which must know the class in this file.
# {rule}


from transformers import AutoModel

AutoModel.register(MonetConfig, {base}, exist_ok=True)
"""
_RULE = "-" * 118


def auto_map() -> dict[str, str]:
    """The entries of config.json for the modelling file: each Auto class that knows Monet, and the class it creates."""
    return {auto: f"{MODELLING_FILE.removesuffix('.py')}.{cls.__name__}" for auto, cls in _classes().items()}


def _classes() -> dict[str, type]:
    from transformers.models.auto import modeling_auto

    found: dict[str, type] = {"AutoConfig": MonetConfig}
    for name, auto in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None:
            model_class = mapping.get(MonetConfig, None)
            if model_class is not None:
                found[name] = model_class
    return found


@functools.cache
def modelling_source() -> str:
    """The modelling file's text, which is the same for every model of one version of the package.

    Raises:
        BundleError: a module of this package cannot be copied into the file.
    """
    classes = _classes()
    roots = sorted({(cls.__module__, cls.__name__) for cls in classes.values()})
    bundle = Bundle(roots, _STAND_INS, _PACKAGES, _REFUSED)
    header = _HEADER.format(version=__version__)
    sections = "\n\n\n".join(bundle.sections(_heading))
    footer = _FOOTER.format(rule=_RULE, base=classes["AutoModel"].__name__)
    source = f"{header}\n{bundle.imports()}\n\n{sections}\n\n{footer}"
    compile(source, MODELLING_FILE, "exec")
    return source


def _heading(module: str, summary: str) -> str:
    lines = [f"{module}:", *summary.splitlines()]
    return "\n".join([f"# {_RULE}", *(f"# {line}".rstrip() for line in lines), f"# {_RULE}"])


def add_remote_code(folder: Path) -> None:
    """Put the modelling file into a folder that holds a saved Monet model, and name it in the folder's config.json.

    A stored expert mask stays unchanged: the modelling file loads and applies it as the package does.

    Args:
        folder: output of `save_pretrained` or `monet export`; an older modelling file in it is replaced.
    Raises:
        CheckpointError: the folder has no configuration of a Monet model.
    """
    path = folder / "config.json"
    try:
        keys = read_json(path)
        model_type = keys.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: no readable configuration ({error}); pass a saved model's folder") from None
    if model_type != MonetConfig.model_type:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; remote code exists only for {MonetConfig.model_type!r}"
        )
    atomic_write_text(folder / MODELLING_FILE, modelling_source())
    atomic_write_json(path, dict(sorted({**keys, "auto_map": auto_map()}.items())))
