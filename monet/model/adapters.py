"""peft adapters in the folder given to `from_pretrained`: applied only on request, and checked like weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils.hub import cached_file

from monet.errors import CheckpointError, ConfigError
from monet.json_text import read_json
from monet.terminal import clean_log

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_PLACE = "_adapter_model_path"  # here transformers' Auto classes store the adapter's folder


@dataclass(frozen=True)
class Adapter:
    """An adapter that the user named.

    Args:
        source: its folder, or its name on the hub.
        name: its name in the model, for peft.
        hub: arguments with which `hub_file` finds it.
    """

    source: str | os.PathLike
    name: str
    hub: dict[str, Any]

    def put_on(self, model: Any) -> None:
        """Load the adapter into its base model.

        Raises:
            CheckpointError: the weights are missing, damaged, or belong to another adapter or base model.
        """
        try:
            with clean_log("transformers.modeling_utils"):
                info = model.load_adapter(
                    os.fspath(self.source), adapter_name=self.name, adapter_kwargs=self.hub, use_safetensors=True
                )
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.source}: the adapter cannot be loaded ({error})") from error
        for what, keys in (("lacks", info.missing_keys), ("holds unknown", info.unexpected_keys)):
            if keys:
                listed = ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
                raise CheckpointError(
                    f"{self.source}: the adapter {what} {len(keys)} tensors: {listed}; if it is complete, load "
                    "the adapter with peft.PeftModel, since this release of transformers does not read this kind"
                )


def split_adapter(source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[str | os.PathLike, Adapter | None]:
    """The model to load and the adapter to apply to it.

    transformers applies any adapter that it finds in a model's folder. It then reports the tensors that the adapter
    lacks instead of those that the model lacks. So a folder with both is refused. If a folder has only an adapter, the
    base model is loaded and checked first.

    Args:
        source: argument of `from_pretrained`: a folder or a hub name.
        kwargs: keywords of `from_pretrained`; those that concern only the adapter are removed.
    Returns:
        The base model's folder or name, and the adapter or None.
    Raises:
        CheckpointError: the folder has both a model and an adapter; the adapter is damaged; or its base model has an
            adapter too.
        ConfigError: there is an adapter, but peft is not installed.
    """
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
    own: dict[str, Any] = dict(kwargs.pop("adapter_kwargs", None) or {})
    name = kwargs.pop("adapter_name", None) or "default"
    folder = own.pop(_PLACE, None)
    hub_of_adapter = {**hub, **{key: value for key, value in own.items() if value is not None}}
    if folder is None or os.fspath(folder) == os.fspath(source):
        folder, hub_of_adapter = source, hub
        if (path := hub_file(source, CONFIG_FILE, hub)) is None:
            return source, None
        if _has_weights(source, hub, kwargs.get("variant")):
            raise CheckpointError(
                f"{source} contains both a model and an adapter ({CONFIG_FILE}), which would change the model without "
                f"being requested; move the adapter's files into a separate folder, and pass that folder to load both"
            )
        source, revision = _base_of(path)
        for key in ("revision", "subfolder"):  # these say where the adapter is
            kwargs.pop(key, None)
        hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        if revision is not None:
            kwargs["revision"] = hub["revision"] = revision
    if hub_file(source, CONFIG_FILE, hub) is not None:
        raise CheckpointError(
            f"{folder} is an adapter of {source}, which has an adapter too ({CONFIG_FILE}); merge that one first"
        )
    if hub_file(folder, WEIGHTS_FILE, hub_of_adapter) is None:
        raise CheckpointError(
            f"{folder}: the adapter has no {WEIGHTS_FILE}; convert it, since pickled adapters are never read"
        )
    return source, Adapter(folder, name, hub_of_adapter)


def hub_file(source: str | os.PathLike, name: str, hub: dict[str, Any]) -> Path | None:
    """The local path of a file in a folder or hub repository; None if the file does not exist.

    Args:
        source: folder or hub name.
        name: name of the file.
        hub: values of `HUB_ARGUMENTS`.
    """
    path = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False, **hub
    )
    return None if path is None else Path(path)


def _has_weights(source: str | os.PathLike, hub: dict[str, Any], variant: str | None) -> bool:
    middles = {"", f".{variant}" if variant else ""}
    names = [name for m in sorted(middles) for name in (f"model{m}.safetensors", f"model.safetensors.index{m}.json")]
    return any(hub_file(source, name, hub) is not None for name in names)


def _base_of(path: Path) -> tuple[str, str | None]:
    """Name and revision of the base model, from an adapter's adapter_config.json."""
    from transformers.utils.import_utils import is_peft_available

    try:
        settings = read_json(path)
        name, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no readable adapter configuration ({error!r})") from None
    if not isinstance(name, str) or not name or not isinstance(revision, (str, type(None))):
        raise CheckpointError(
            f"{path}: base_model_name_or_path {name!r} and revision {revision!r} do not name a base model; set them to "
            "the model that the adapter belongs to"
        )
    if not is_peft_available():
        raise ConfigError(f"{path.parent} is a peft adapter for {name}, but peft is not installed: pip install peft")
    return name, revision
