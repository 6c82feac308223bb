"""Loads the tokenizer in a model's folder: tokenizer.json, or the sentencepiece file of the authors' release."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from monet.errors import CheckpointError, ConfigError
from monet.extras import install_command
from monet.json_text import parse_json, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
_CONFIG = "tokenizer_config.json"
_BESIDE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_PLAIN_CLASS = "PreTrainedTokenizerFast"
_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
_SPACE = "▁"  # the character that sentencepiece uses for a space
# Texts for which a converted tokenizer must give sentencepiece's ids, in addition to a text of all tokens.
_PROBES = (
    "Hello world", "two  spaces and   three", "a tab\tand a line\nand a space ", "x = 1234567;", "½ ﬁ naïve 日本語 🙂",
    " a space first", f"{_SPACE}x",
)  # fmt: skip


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    transformers converts a tokenizer.model too. Depending on the release, it then gives other ids than sentencepiece
    for texts that begin with a space, or omits the beginning-of-text token. It also rebuilds the tokenizer of some
    classes (LlamaTokenizer, T5Tokenizer) without the normaliser or pre-tokenizer of tokenizer.json. This function gives
    the ids of tokenizer.json, or sentencepiece's ids for a tokenizer.model, under every release. There is one
    exception: if tokenizer_config.json has `legacy: false`, a text that begins with a space gets no second space.

    Args:
        name: local folder or hub name. Code in it never runs.
    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read.
        ConfigError: there is only a tokenizer.model, and sentencepiece is not installed.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    name = str(name)
    if (tokenizer := sentencepiece_tokenizer(name)) is not None:
        return tokenizer
    try:
        if (file := _file(name, TOKENIZER_FILE)) is None:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        written = Tokenizer.from_file(str(file))
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception:  # a class that cannot be built from this file
            return _as_written(name, file)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return _as_written(name, file) if backend is not None and different_parts(written, backend) else tokenizer
    except Exception as error:  # damaged files raise errors of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name}: no tokenizer found ({reason}); add {TOKENIZER_FILE} or {SENTENCEPIECE_FILE}"
        ) from None


def sentencepiece_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model that has a tokenizer.model and no tokenizer.json; None for any other model.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: sentencepiece is not installed.
    """
    if (path := _file(name, SENTENCEPIECE_FILE)) is None or _file(name, TOKENIZER_FILE) is not None:
        return None
    return _from_sentencepiece(name, path)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a file that `load_tokenizer` reads."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE))


def vocabulary(folder: Path) -> dict[str, int] | None:
    """The tokens of a folder's tokenizer with their ids; None if there is no tokenizer.

    For a tokenizer.model without sentencepiece installed, the result is None, with a warning.
    """
    found = backend_of(folder)
    return None if found is None else found.get_vocab()


def backend_of(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder as an object of the tokenizers library; None if there is none.

    For a tokenizer.model without sentencepiece installed, the result is None, with a warning.
    """
    from tokenizers import Tokenizer

    if (folder / TOKENIZER_FILE).is_file():
        return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    if not has_tokenizer(folder):
        return None
    try:
        return cast("PreTrainedTokenizerFast", load_tokenizer(folder)).backend_tokenizer
    except ConfigError as error:
        warnings.warn(f"the tokenizer in {folder} is not compared with any other: {error}", stacklevel=2)
        return None


def different_parts(first: Tokenizer, second: Tokenizer) -> list[str]:
    """The parts in which two tokenizers differ and that can change the ids of a text or the text of ids.

    The ids added around a text (beginning-of-text) are not among them, see `added_around`.
    """
    one, other = (parse_json(tokenizer.to_str(), "a tokenizer") for tokenizer in (first, second))
    return [part for part in _PARTS if one[part] != other[part]]


def added_around(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that a tokenizer adds before and after a text by itself; empty if it cannot encode a letter."""
    probe = "a"
    try:
        plain, whole = (backend.encode(probe, add_special_tokens=special).ids for special in (False, True))
    except Exception:  # the library raises only this type; encoding the first text will name the fault
        return [], []
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
    return whole[:before], whole[before + len(plain) :]


def different_starts(places: Sequence[tuple[Path, Tokenizer]]) -> str | None:
    """A description of what each of two tokenizers adds before a text by itself; None if both add the same ids.

    Args:
        places: each tokenizer, preceded by the folder it is from.
    """
    starts = [added_around(tokenizer)[0] for _, tokenizer in places]
    if starts[0] == starts[1]:
        return None
    return "; ".join(
        f"{place} begins a text with {[tokenizer.id_to_token(index) for index in ids] or 'no special token'}"
        for (place, tokenizer), ids in zip(places, starts, strict=True)
    )


def put_around(folder: Path, bos: str | None) -> None:
    """Change the tokenizer in a folder so that by itself it adds only `bos` before a text, or nothing.

    Writes tokenizer.json and tokenizer_config.json, which then names no class that would change this.
    """
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    if bos is None:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    else:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, backend.token_to_id(bos))]
        )
    backend.save(str(folder / TOKENIZER_FILE))
    path = folder / _CONFIG
    config = read_json(path, CheckpointError) if path.is_file() else {}
    config.pop("auto_map", None)
    config |= {"tokenizer_class": _PLAIN_CLASS, "add_bos_token": bos is not None, "add_eos_token": False}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _file(name: str, file: str) -> Path | None:
    """The local path of a file in a folder or hub repository; None if it does not exist or cannot be reached."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )  # fmt: skip
    except OSError:
        return None
    return None if path is None else Path(path)


def _from_sentencepiece(name: str, path: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer with the ids of a sentencepiece BPE model and the settings of the files next to it."""
    try:
        from sentencepiece import SentencePieceProcessor  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{name} stores its tokenizer as {SENTENCEPIECE_FILE}, which needs sentencepiece: "
            f"{install_command('sentencepiece')}"
        ) from None
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a sentencepiece model ({' '.join(str(error).split())})") from None
    config_file = _file(name, _CONFIG)
    config = {} if config_file is None else read_json(config_file, CheckpointError)
    # LLaMA's settings are the defaults for settings that the file does not state
    defaults = {"add_bos_token": True, "padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    for kind in ("bos", "eos", "unk"):
        if (index := getattr(pieces, f"{kind}_id")()) >= 0:
            defaults[f"{kind}_token"] = pieces.id_to_piece(index)
    config = {**defaults, **config}
    return _plain_tokenizer(name, lambda file: _backend(pieces, path, config).save(str(file)), config)


def _as_written(name: str, file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a tokenizer.json; the class that the settings next to it name is ignored."""
    config_file = _file(name, _CONFIG)
    config = {} if config_file is None else read_json(config_file, CheckpointError)
    return _plain_tokenizer(name, lambda target: shutil.copyfile(file, target), config)


def _plain_tokenizer(name: str, write: Callable[[Path], Any], config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer of the plain fast class, from settings and a tokenizer.json that `write` makes."""
    from transformers import PreTrainedTokenizerFast

    config = {key: value for key, value in config.items() if key != "auto_map"} | {"tokenizer_class": _PLAIN_CLASS}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, TOKENIZER_FILE))
        Path(folder, _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        for file in _BESIDE:
            if (found := _file(name, file)) is not None:
                shutil.copyfile(found, Path(folder, file))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    tokenizer.name_or_path = name
    return tokenizer


def _backend(pieces: Any, path: Path, config: dict[str, Any]) -> Tokenizer:
    """`pieces`, a SentencePieceProcessor, converted to a tokenizer of the tokenizers library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    indices = range(pieces.get_piece_size())
    tokens = {pieces.id_to_piece(index): index for index in indices}
    special = [index for index in indices if pieces.is_control(index) or pieces.is_unknown(index)]
    bytes_ = [index for index in indices if pieces.is_byte(index)]
    plain = tokens.keys() - {pieces.id_to_piece(index) for index in (*special, *bytes_)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=tokens,
            merges=_merges({token: (-pieces.get_score(tokens[token]), tokens[token]) for token in plain}),
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=bool(bytes_),
        )
    )
    # A "legacy" tokenizer adds a space before the text after each special token, a newer one only before the text.
    legacy = config.get("legacy") is not False
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    every_token = " ".join(["all", *sorted(plain)]).replace(_SPACE, " ")
    for text in (every_token, *(_PROBES if legacy else _PROBES[:-2])):  # a newer one adds no space before a space
        if tokenizer.encode(text).ids != pieces.encode(text):
            raise CheckpointError(
                f"{path} is not a BPE model like LLaMA's, the only kind that can be read; add a {TOKENIZER_FILE}"
            )
    tokenizer.add_special_tokens([AddedToken(pieces.id_to_piece(i), normalized=False) for i in special])
    first = [pieces.id_to_piece(pieces.bos_id())] if config["add_bos_token"] and pieces.bos_id() >= 0 else []
    last = [pieces.id_to_piece(pieces.eos_id())] if config.get("add_eos_token") and pieces.eos_id() >= 0 else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)],
        special_tokens=[(token, tokens[token]) for token in {*first, *last}],
    )
    return tokenizer


def _merges(ranks: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """The pairs of tokens that merge into another token; pairs of the best-ranked token come first."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left][1], ranks[right][1], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
