"""The page as a folder without a server: it opens from disk or from any host.

A page from disk cannot fetch files. So the data are scripts, which register compressed JSON by name. The page loads the
table of its experts once, and each expert with the others of its file. Dims: X experts of the page.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.eval.core.loading import windows_bar
from monet.eval.index.plan import readable
from monet.eval.index.units import Unit
from monet.eval.inspection.promoted import static_of_each
from monet.eval.inspection.weights import unit_weights
from monet.eval.view import files, limits
from monet.eval.view.bundle import bundled
from monet.eval.view.live import PROMOTED
from monet.eval.view.query import Query
from monet.eval.view.similar import neighbours
from monet.eval.view.store import Store, cut
from monet.eval.view.visible import encoded
from monet.files import begin_directory, publish_directory
from monet.json_text import read_json

FORMAT = "monet-page/1"
MARK = "monet-page.json"
# Experts that fire more rarely say too little to be among the most specialised.
FEWEST = 50
_POLICY = "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file:; base-uri 'none'"


@dataclass(frozen=True)
class Wanted:
    """What a static page holds.

    Args:
        experts: names of units, separated by commas; "" takes the most specialised experts, and those of the masks.
        most: number of the most specialised experts, and at most as many of the masks.
        max_size: largest size in megabytes.
        progress: show a bar on standard error.
    """

    experts: str = ""
    most: int = 5000
    max_size: float = 200.0
    progress: bool = True


def write(store: Store, model: Any, out: Path, wanted: Wanted) -> None:
    """Write a static page. An earlier static page in the folder is replaced; any other folder is refused.

    Args:
        store: the index.
        model: the model, for the weight at every token and for promoted tokens; None leaves them out.
        out: the folder.
        wanted: what to write.

    Raises:
        ConfigError: the folder holds something else, no expert is left, or the page would be too large.
    """
    check_folder(out)
    units = chosen(store, wanted)
    content = dict(contents(store, model, units, wanted.progress))
    size = sum(map(len, content.values()))
    print(f"{len(units):,} experts, {readable(size)} in {len(content)} files: {out}", flush=True)
    if size > wanted.max_size * 1e6:
        raise ConfigError(
            f"the page has {readable(size)}, more than --max_size {wanted.max_size:g} MB; show fewer experts with "
            "--most, or raise --max_size"
        )
    notes = {
        "format": FORMAT,
        "files": sorted(content),
        "experts": len(units),
        "index": store.index.info.model.fingerprint,
    }
    content[MARK] = json.dumps(notes, indent=2).encode()
    temporary = begin_directory(out if not out.exists() else out.with_name(f"{out.name}.new"))
    try:
        for name, each in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(each)
        check_folder(out)
        if out.exists():
            shutil.rmtree(out)
        publish_directory(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"open {out / 'index.html'}")


def check_folder(out: Path) -> None:
    """Refuse a folder that would lose files that are not a static page's.

    Raises:
        ConfigError: the folder is no static page, or has other files too.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        notes = read_json(out / MARK)
        known = set(notes["files"]) if notes["format"] == FORMAT else set()
    except (OSError, DataError, KeyError, TypeError):
        known = set()
    here = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()} if out.is_dir() else {"."}
    if not known or (strangers := sorted(here - known - {MARK})):
        other = f"; it has {strangers[0]}" if known else ""
        raise ConfigError(f"{out} exists and is not only a static page of monet view{other}; choose another --static")


def chosen(store: Store, wanted: Wanted) -> list[Unit]:
    """The units of a page, in the order of the index.

    Raises:
        ConfigError: a unit does not exist, or there is none.
    """
    if wanted.experts:
        units = store.index.units.parse(wanted.experts)
    else:
        if wanted.most < 1:
            raise ConfigError(f"most {wanted.most} must be at least 1 expert")
        queries = [Query(low={"count": FEWEST}), *(Query(mask=name) for name in store.masks.names)]
        rows: set[int] = set()
        for query in queries:
            rows |= set(store.browser.page(query, 0, wanted.most)[1].tolist())
        units = [store.columns.unit(row) for row in rows]
    if not units:
        raise ConfigError(f"no expert fires at {FEWEST} tokens or more; name some with --experts")
    return sorted(set(units), key=store.columns.row)


def contents(store: Store, model: Any, units: Sequence[Unit], progress: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a page without its mark."""
    places = [store.columns.row(unit) for unit in units]
    rows = [{**store.row(row), "explanations": store.explanations.texts(row)} for row in places]
    place = {unit.name: n for n, unit in enumerate(units)}
    modules = {name.removesuffix(".js"): text.decode() for name, text, _ in files.files() if name.endswith(".js")}
    for name, text, _ in files.files():
        if name == "index.html":
            yield name, _static_html(text.decode()).encode()
        elif not name.endswith(".js"):
            yield name, text
    yield "page.js", bundled(modules, "main").encode()
    info = store.info()
    info = {
        **info,
        "model": _without_folder(info["model"]),
        "data": Path(info["data"]).name,
        "live": False,
        "shown": len(units),
        "shard": limits.STATIC_SHARD,
        "overview": store.overview(),
    }
    opens = "globalThis.MONET_PAGE = { found: {}, put(name, text) { this.found[name] = text; } };\n"
    yield "data/info.js", opens.encode() + _script("info", info)
    masks = {
        name: [place[unit.name] for unit in units if name in store.masks.removing(unit)] for name in store.masks.names
    }
    yield "data/table.js", _script("table", {"rows": rows, "masks": masks})
    near = neighbours(store.index, units, limits.STATIC_NEIGHBOURS)
    cards = _cards(store, model, units, progress)
    for begin in range(0, len(units), limits.STATIC_SHARD):
        shard = []
        for n in range(begin, min(begin + limits.STATIC_SHARD, len(units))):
            card = {key: value for key, value in next(cards).items() if key not in rows[n]}
            shard.append({**card, "neighbours": near[n]})
        name = f"shard-{begin // limits.STATIC_SHARD}"
        yield f"data/{name}.js", _script(name, shard)


def _cards(store: Store, model: Any, units: Sequence[Unit], progress: bool) -> Iterator[dict[str, Any]]:
    around = limits.STATIC_AROUND
    known = _weights(store, model, units, progress) if model is not None else {}
    names = {unit.name for unit in units}
    effects = static_of_each(model, [unit for unit in units if unit.kind == "pair"])
    with windows_bar(len(units), "experts", progress, "expert") as bar:
        for n, unit in enumerate(units):
            card = store.expert(unit, around)
            card["contexts"] = card["contexts"][: limits.STATIC_CONTEXTS]
            card["samples"] = _first_of_each(card["samples"])
            card["previous"], card["next"] = units[n - 1].name, units[(n + 1) % len(units)].name
            card["halves"] = [name for name in card["halves"] if name in names]
            for one in card["explained"]["explanations"]:
                one["model"] = _without_folder(one["model"])
            for context in [*card["contexts"], *card["samples"]]:
                if known:
                    context["weights"] = known[unit.name, context["window"], context["start"] + context["position"]]
            if model is not None and unit.kind == "pair":
                found, text = next(effects), store.index.texts.text
                card["promoted"] = {"how": "static", "contexts": 0} | {
                    name: [[text(token), _rounded(effect)] for token, effect in best]
                    for name, best in (
                        ("promoted", found.promoted(PROMOTED)),
                        ("suppressed", found.suppressed(PROMOTED)),
                    )
                }
            bar.update()
            yield card


def _weights(
    store: Store, model: Any, units: Sequence[Unit], progress: bool
) -> dict[tuple[str, int, int], list[float]]:
    """Weights around each context, by unit, window and position: one forward pass for each distinct window."""
    wanted: dict[int, list[tuple[Unit, int]]] = {}
    for unit in units:
        few = store.index.contexts(unit)[: limits.STATIC_CONTEXTS]
        for context in [*few, *_first_of_each(store.index.samples(unit))]:
            wanted.setdefault(context.window, []).append((unit, context.position))
    found = {}
    with windows_bar(len(wanted), "weights", progress) as bar:
        for number in sorted(wanted):
            needed = sorted({unit for unit, _ in wanted[number]}, key=store.columns.row)
            weight_TX = unit_weights(model, store.index.windows[number], needed)
            column = {unit.name: n for n, unit in enumerate(needed)}
            for unit, position in wanted[number]:
                piece = weight_TX[cut(position, limits.STATIC_AROUND), column[unit.name]]
                found[unit.name, number, position] = [_rounded(weight) for weight in piece.tolist()]
            bar.update()
    return found


def _first_of_each(samples: Sequence[Any]) -> list[Any]:
    """The first samples of each interval."""
    found, counts = [], dict[Any, int]()
    for sample in samples:
        interval = sample["interval"] if isinstance(sample, dict) else sample.interval
        counts[interval] = counts.get(interval, 0) + 1
        if counts[interval] <= limits.STATIC_SAMPLES:
            found.append(sample)
    return found


def _without_folder(model: str) -> str:
    """The name of a model; the page may be shown to others, so it names no folder of this machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _rounded(value: float) -> float | int:
    """Two digits, which colours need; whole numbers without a point."""
    short = float(f"{value:.2g}")
    return int(short) if short == int(short) else short


def _script(name: str, content: Any) -> bytes:
    """A script that registers JSON; the same content gives the same bytes."""
    packed = base64.b64encode(gzip.compress(encoded(content), 9, mtime=0)).decode()
    return f'MONET_PAGE.put("{name}", "{packed}");\n'.encode()


def _static_html(text: str) -> str:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    scripts = '<script src="data/info.js"></script>\n<script src="page.js"></script>'
    module = '<script type="module" src="main.js"></script>'
    assert module in text, "the page starts with its main module"
    return text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}').replace(module, scripts)
