"""Adapters of peft in the folder that `from_pretrained` is given: never applied unasked, and checked like weights."""

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
_PLACE = "_adapter_model_path"  # where transformers' Auto classes say which folder holds the adapter


@dataclass(frozen=True)
class Adapter:
    """An adapter that the user named.

    Args:
        source: its folder, or its name on the hub.
        name: what peft calls it in the model.
        hub: arguments for `hub_file` with which it is found.
    """

    source: str | os.PathLike
    name: str
    hub: dict[str, Any]

    def put_on(self, model: Any) -> None:
        """Load the adapter into its base model.

        Raises:
            CheckpointError: the weights are absent, damaged, or those of another adapter or base model.
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
                    f"{self.source}: the adapter {what} {len(keys)} tensors: {listed}; if it is whole, load it with "
                    "peft.PeftModel, since this release of transformers does not read this kind"
                )


def split_adapter(source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[str | os.PathLike, Adapter | None]:
    """The model to load and the adapter to put on it.

    transformers applies an adapter that it finds in a model's folder, and then reports what the adapter lacks in place
    of what the model lacks. So a folder with both is refused, and of a folder with only an adapter the base model is
    loaded and checked first.

    Args:
        source: what `from_pretrained` was given: a folder or a hub name.
        kwargs: the keywords of `from_pretrained`; what concerns only the adapter is taken out.
    Returns:
        The base model's folder or name, and the adapter or None.
    Raises:
        CheckpointError: both a model and an adapter are there; the adapter is damaged; or its base model has an adapter
            too.
        ConfigError: there is an adapter, and peft is not installed.
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
                f"{source} holds both a model and an adapter ({CONFIG_FILE}), which would change the model unasked; "
                f"move the adapter's files into a folder of their own, and name that folder to load the model with it"
            )
        source, revision = _base_of(path)
        for key in ("revision", "subfolder"):  # these say where the adapter is
            kwargs.pop(key, None)
        hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        if revision is not None:
            kwargs["revision"] = hub["revision"] = revision
    if hub_file(source, CONFIG_FILE, hub) is not None:
        raise CheckpointError(
            f"{folder} is an adapter of {source}, which holds an adapter too ({CONFIG_FILE}); merge that one first"
        )
    if hub_file(folder, WEIGHTS_FILE, hub_of_adapter) is None:
        raise CheckpointError(f"{folder}: the adapter has no {WEIGHTS_FILE}; pickled adapters are never read")
    return source, Adapter(folder, name, hub_of_adapter)


def hub_file(source: str | os.PathLike, name: str, hub: dict[str, Any]) -> Path | None:
    """The local path of a file in a folder or hub repository; None if it is not there.

    Args:
        source: folder or hub name.
        name: of the file.
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
    """Name and revision of the base model, by an adapter's adapter_config.json."""
    from transformers.utils.import_utils import is_peft_available

    try:
        settings = read_json(path)
        name, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no readable adapter configuration ({error!r})") from None
    if not isinstance(name, str) or not name or not isinstance(revision, (str, type(None))):
        raise CheckpointError(
            f"{path}: base_model_name_or_path {name!r} and revision {revision!r} do not name a base model; state there "
            "which model the adapter belongs to"
        )
    if not is_peft_available():
        raise ConfigError(
            f"{path.parent} is an adapter of peft for {name}, and peft is not installed: pip install peft"
        )
    return name, revision
