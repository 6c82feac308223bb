"""Token ids on disk: reads shards, checks them and maps them into memory (`writer` writes them).

A prepared folder holds

    manifest.json                        index of the folder: sizes, SHA-256, dtype, vocabulary, counts, settings
    tokenizer/                           files for `AutoTokenizer.from_pretrained`
    SPLIT/DOMAIN/shard-00000.bin         token ids, little endian, uint16 or uint32; each document ends with eos
    SPLIT/DOMAIN/shard-00000.offsets     uint64: start of each document in the shard, then the shard's end
    SPLIT/DOMAIN/shard-00000.names.jsonl one line per document: where its text was read

A line of names.jsonl is `[name, source]`, two JSON strings. The source is the original that the document was cut from,
as its text names it. If the text names no source, the line is only the name, as one JSON string. Folders that were
prepared before sources were stored have only such lines. Sources are not part of the fingerprint: preparing the same
text again with sources keeps the fingerprint. The entry of a shard with sources has `names_sha256`, the hash of its
names without sources.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from monet.data.storage.mapped import MappedFiles, other_size
from monet.data.storage.names import read_line
from monet.errors import DataError
from monet.files import atomic_write_json, sha256_file
from monet.json_text import read_json

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
PARTS = (".bin", ".offsets", ".names.jsonl")
_SAMPLED_BOUNDARIES = 16


def dtype_for(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 (little endian) that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenStream:
    """All tokens of one (split, domain) as one sequence across its shards, mapped and never fully loaded.

    Attributes:
        num_tokens, num_documents: counts; tokens include each document's eos.
    """

    def __init__(
        self, folder: Path, entries: list[dict[str, Any]], dtype: np.dtype, vocab_size: int, mapped: MappedFiles
    ) -> None:
        self._folder = folder
        self._entries = entries
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._ends = np.cumsum([entry["tokens"] for entry in entries])
        self._document_ends = np.cumsum([entry["documents"] for entry in entries])
        self._mapped_files = mapped

    @property
    def num_tokens(self) -> int:
        return int(self._ends[-1]) if self._entries else 0

    @property
    def num_documents(self) -> int:
        return int(self._document_ends[-1]) if self._entries else 0

    def path(self, shard: int, suffix: str = ".bin") -> Path:
        return self._folder / (self._entries[shard]["stem"] + suffix)

    def _mapped(self, shard: int, suffix: str, dtype: np.dtype) -> np.ndarray:
        return self._mapped_files(self.path(shard, suffix), dtype, self._entries[shard]["files"][suffix]["bytes"])

    def shard_ids(self, shard: int) -> np.ndarray:
        """Ids of one shard, a view of the file; (tokens,) uint16 or uint32."""
        return self._mapped(shard, ".bin", self._dtype)

    def shard_offsets(self, shard: int) -> np.ndarray:
        """Starts of the shard's documents, then the shard's end, a view of the file; (documents + 1,) uint64."""
        return self._mapped(shard, ".offsets", np.dtype("<u8"))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids start..stop-1 of the stream; a view of the file unless the span crosses shards.

        Raises:
            IndexError: the span is not inside the stream.
            DataError: an id is not below the vocabulary size; names file, offset and id.
        """
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} of a stream of {self.num_tokens}")
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left"))
        pieces = []
        for shard in range(first, last + 1):
            base = int(self._ends[shard]) - self._entries[shard]["tokens"]
            offset = max(start - base, 0)
            piece = self.shard_ids(shard)[offset : stop - base]
            if piece.max() >= self._vocab_size:
                raise self._bad_id(shard, offset + int(np.argmax(piece >= self._vocab_size)))
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _bad_id(self, shard: int, offset: int) -> DataError:
        return DataError(
            f"{self.path(shard)}: id {self.shard_ids(shard)[offset]} at token {offset} is outside the vocabulary of "
            f"{self._vocab_size}; the shard is damaged or was made with another tokenizer, prepare the data again"
        )

    def document_at(self, token: int) -> int:
        """Return the number, inside the stream, of the document that holds this token."""
        shard = int(np.searchsorted(self._ends, token, side="right"))
        base = int(self._ends[shard]) - self._entries[shard]["tokens"]
        local = int(np.searchsorted(self.shard_offsets(shard), np.uint64(token - base), side="right")) - 1
        return int(self._document_ends[shard]) - self._entries[shard]["documents"] + local

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens after `start` and before `stop` at which documents start; (any number,) int64."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left"))
        found = []
        for shard in range(first, last + 1):
            base = int(self._ends[shard]) - self._entries[shard]["tokens"]
            starts = self.shard_offsets(shard)[:-1]
            begin = 0 if start < base else int(np.searchsorted(starts, np.uint64(start - base), side="right"))
            end = int(np.searchsorted(starts, np.uint64(stop - base), side="left"))
            found.append(starts[begin:end].astype(np.int64) + base)
        return np.concatenate(found)

    def document_starts(self) -> np.ndarray:
        """Token at which each document starts, then the stream's end; (num_documents + 1,) int64, loaded."""
        starts = [
            self.shard_offsets(shard)[:-1].astype(np.int64) + int(self._ends[shard]) - entry["tokens"]
            for shard, entry in enumerate(self._entries)
        ]
        return np.concatenate([*starts, np.array([self.num_tokens])])

    def document_name(self, document: int) -> str:
        """Return where the document's text was read: its file, and the number of its record."""
        return self._named([document])[document][0]

    def document_sources(self, documents: Iterable[int]) -> dict[int, str | None]:
        """Return, by document, the source that its text names; None if it is not known.

        Raises:
            DataError: a line is damaged.
        """
        return {document: source for document, (_, source) in self._named(documents).items()}

    def _named(self, documents: Iterable[int]) -> dict[int, tuple[str, str | None]]:
        """Return names and sources; each shard's file is read once, up to the last requested document."""
        found = {}
        wanted = sorted(set(documents))
        shards = np.searchsorted(self._document_ends, wanted, side="right").tolist()
        for shard, pairs in itertools.groupby(zip(shards, wanted, strict=True), key=lambda pair: pair[0]):
            path, at = self.path(shard, ".names.jsonl"), int(self._document_ends[shard])
            at -= self._entries[shard]["documents"]
            with open(path, "rb") as file:
                for _, document in pairs:
                    found[document] = read_line(next(itertools.islice(file, document - at, None), b""), path)
                    at = document + 1
        return found

    def check(self, eos_id: int, *, full: bool) -> None:
        """Check files and sizes, the ends of shards, and eos at document ends (a sample); `full` checks all content.

        Raises:
            DataError: names the file and what differs.
        """
        known = {self.path(shard, suffix).name for shard in range(len(self._entries)) for suffix in PARTS}
        there = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
        if foreign := sorted(there - known):
            raise DataError(f"{self._folder / foreign[0]}: not in the manifest; remove it, or prepare the data again")
        for shard, entry in enumerate(self._entries):
            self._check_files(shard, entry, full=full)
            ids, ends = self.shard_ids(shard), np.fromfile(self.path(shard, ".offsets"), dtype="<u8")
            if len(ends) != entry["documents"] + 1 or ends[0] != 0 or ends[-1] != len(ids):
                raise DataError(f"{self.path(shard, '.offsets')}: does not cover the {len(ids)} ids of its shard")
            if full and (np.diff(ends.astype(np.int64)) <= 0).any():
                raise DataError(f"{self.path(shard, '.offsets')}: document starts do not increase")
            step = 1 if full else max(1, (len(ends) - 1) // _SAMPLED_BOUNDARIES)
            sample = ends[1::step].astype(np.int64).clip(1, len(ids))
            if (wrong := ids[sample - 1] != eos_id).any():
                raise DataError(
                    f"{self.path(shard)}: no end-of-text id {eos_id} before token {sample[np.argmax(wrong)]}, where a "
                    "document ends; the shard belongs to other data or another dtype, prepare the data again"
                )
            if full and ids.max() >= self._vocab_size:
                raise self._bad_id(shard, int(np.argmax(ids >= self._vocab_size)))

    def _check_files(self, shard: int, entry: dict[str, Any], *, full: bool) -> None:
        if entry["dtype"] != self._dtype.name:
            raise DataError(
                f"{self.path(shard)}: dtype {entry['dtype']} in a data set of {self._dtype.name}; it is a foreign shard"
            )
        for suffix in PARTS:
            path, wanted = self.path(shard, suffix), entry["files"][suffix]
            if not path.is_file():
                raise DataError(f"{path}: missing; prepare the data again")
            if (size := path.stat().st_size) != wanted["bytes"]:
                raise other_size(path, size, wanted["bytes"])
            if full and sha256_file(path) != wanted["sha256"]:
                raise DataError(f"{path}: content differs from the manifest's SHA-256; prepare the data again")
        if entry["files"][".bin"]["bytes"] != entry["tokens"] * self._dtype.itemsize:
            raise DataError(f"{self.path(shard)}: {entry['tokens']} ids of {self._dtype.name} do not fill its bytes")


class TokenShards:
    """A prepared folder, checked when it is opened.

    Args:
        folder: a folder that `monet.data.preparation.prepare.prepare` made.
        full: also hash every file and check every id; otherwise check names, sizes and a sample of document ends.
        trusted: read only the manifest, because another process has just checked the folder.
    Attributes:
        manifest: the parsed manifest.json.
        domains: names in sorted order; a domain's number is its index in this list.
        splits: names of the existing splits.
        vocab_size, eos_id: vocabulary size and end-of-text id of the tokenizer.
        fingerprint: SHA-256 over all content; equal data have equal fingerprints on every machine.
    Raises:
        DataError: the folder or one of its files is missing, truncated, foreign or damaged; names it.
    """

    def __init__(self, folder: str | Path, *, full: bool = False, trusted: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.domains: list[str] = self.manifest["domains"]
        self.splits: list[str] = list(self.manifest["splits"])
        self.vocab_size: int = self.manifest["vocab_size"]
        self.eos_id: int = self.manifest["eos_id"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self._mapped_files = MappedFiles()
        if trusted:
            return
        for name, digest in self.manifest["tokenizer_files"].items():
            path = self.folder / TOKENIZER / name
            if not path.is_file():
                raise DataError(f"{path}: missing; prepare the data again")
            if sha256_file(path) != digest:
                raise DataError(
                    f"{path}: changed since the data were prepared, so ids would mean other text; restore it"
                )
        if fingerprint_of(self.manifest) != self.fingerprint:
            raise DataError(
                f"{self.folder / MANIFEST}: the fingerprint does not match the entries; the file was edited"
            )
        for split, domain in itertools.product(self.splits, self.domains):
            self.stream(split, domain).check(self.eos_id, full=full)

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / TOKENIZER

    def stream(self, split: str, domain: str) -> TokenStream:
        """Return the tokens of one split and domain.

        Raises:
            DataError: the split or domain does not exist; names the existing ones.
        """
        if split not in self.splits:
            raise DataError(f"{self.folder}: no split {split!r}; it has {', '.join(self.splits)}")
        if domain not in self.domains:
            raise DataError(f"{self.folder}: no domain {domain!r}; it has {', '.join(self.domains)}")
        entries = self.manifest["splits"][split][domain]["shards"]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        return TokenStream(self.folder / split / domain, entries, dtype, self.vocab_size, self._mapped_files)


def write_manifest(
    folder: Path, parts: dict[str, dict[str, list[dict[str, Any]]]], vocab_size: int, eos_id: int, **more: Any
) -> None:
    """Write the manifest of finished shards; a folder without this file is not prepared data.

    Args:
        folder: holds the shards, and the tokenizer's files in tokenizer/.
        parts: entries of the writers, by split and domain; every split has the same domains.
        vocab_size, eos_id: vocabulary size and end-of-text id of the tokenizer.
        more: further keys, such as the settings; they are not part of the fingerprint.
    """
    counts = ("documents", "tokens", "text_bytes")
    manifest = {
        "format": FORMAT,
        "dtype": dtype_for(vocab_size).name,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "tokenizer_files": {path.name: sha256_file(path) for path in sorted((folder / TOKENIZER).glob("*"))},
        "domains": sorted(next(iter(parts.values()))),
        "splits": {
            split: {
                domain: {key: sum(entry[key] for entry in entries) for key in counts} | {"shards": entries}
                for domain, entries in sorted(domains.items())
            }
            for split, domains in parts.items()
        },
        **more,
    }
    atomic_write_json(folder / MANIFEST, {"fingerprint": fingerprint_of(manifest), **manifest})


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 over the content: hashes, order, vocabulary and tokenizer; not sources, paths or times."""
    content = {key: manifest[key] for key in ("format", "dtype", "vocab_size", "eos_id", "tokenizer_files", "domains")}
    content["shards"] = {
        split: {
            domain: [
                [file.get("names_sha256", file["sha256"]) for file in (entry["files"][suffix] for suffix in PARTS)]
                for entry in part["shards"]
            ]
            for domain, part in domains.items()
        }
        for split, domains in manifest["splits"].items()
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the parsed manifest.json of a prepared folder.

    Raises:
        DataError: the manifest is missing, unreadable, or has another format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["format"] != FORMAT:
            raise DataError(
                f"{path}: format {manifest['format']!r}, but this version reads {FORMAT}; prepare the data again"
            )
        fingerprint_of(manifest)
        if manifest["dtype"] not in ("uint16", "uint32"):
            raise DataError(f"{path}: dtype {manifest['dtype']!r}; token ids are uint16 or uint32")
        return manifest
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {MANIFEST}, so no prepared data; make them with `monet data prepare --out {folder}`"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest of prepared data ({error!r})") from None
