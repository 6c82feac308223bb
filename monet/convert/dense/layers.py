"""Reads which layers to convert, and how they share routers."""

from __future__ import annotations

from collections.abc import Sequence

from monet.errors import ConfigError

_FORMS = "write top:5, 22-26, 3,5,7 or all"


def parse_layers(text: str, num_layers: int) -> list[int]:
    """The layers that an option names, sorted; layers are numbered from 0.

    Args:
        text: `all`, `top:N` for the last N layers, or numbers and ranges with commas between them (`3,5,7`, `22-26`).
        num_layers: layers of the model.
    Raises:
        ConfigError: the text has another form, or names a layer twice or a layer that the model does not have.
    """
    text = text.replace(" ", "")
    if text == "all":
        return list(range(num_layers))
    if text.startswith("top:"):
        count = text.removeprefix("top:")
        if not (count.isdecimal() and 1 <= int(count) <= num_layers):
            raise ConfigError(f"layers {text!r}: the number must be from 1 to the model's {num_layers} layers")
        return list(range(num_layers - int(count), num_layers))
    found: list[int] = []
    for item in text.split(","):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"layers {text!r}: cannot read {item!r}; {_FORMS}")
        start, stop = int(first), int(last or first)
        if start > stop:
            raise ConfigError(f"layers {text!r}: {item!r} ends before it starts; {_FORMS}")
        if stop >= num_layers:
            raise ConfigError(
                f"layers {text!r}: layer {stop} does not exist; the model has layers 0 to {num_layers - 1}"
            )
        found += range(start, stop + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"layers {text!r}: a layer is named twice; name each layer once")
    return sorted(found)


def routing_groups(layers: Sequence[int], group_size: int) -> list[list[int]]:
    """Split sorted layers into groups that share a router; the first layer of each group owns it."""
    return [list(layers[start : start + group_size]) for start in range(0, len(layers), group_size)]
