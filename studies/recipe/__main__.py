"""Compares recipes of `monet convert`'s first stage, and transcoders, at equal tokens: the table in docs/conversion.md.

    python -m studies.recipe --dense data/smollm2 --data data/subjects --layers 22-26 --tokens 400000 \
        --rows base k16 transcoder --out runs/recipe [--losses] [--docs docs]

Without --rows it runs all of them; --list prints them. Finished rows are kept in --out, and a stopped row continues
with the same bits. So several processes may run different rows, and one last command with all rows writes the page.
Without --docs it prints the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monet.convert.dense.layers import parse_layers
from monet.convert.dense.local import LocalOptions
from monet.convert.dense.options import RunOptions
from monet.convert.dense.stream import TextOptions
from monet.files import atomic_write_json
from monet.model.dense_models import read_dense_config
from studies.recipe import page
from studies.recipe.results import RecipeResult, RowResult
from studies.recipe.rows import BASE, NOT_TRIED, ROWS, chosen
from studies.recipe.training import Common, run_row
from studies.removal.page import insert


def result_of(common: Common, names: Sequence[str]) -> RecipeResult:
    """Run the rows, or read them.

    Raises:
        ConfigError: a row was started with other settings, or does not have the common layers.
    """
    rows: dict[str, RowResult] = {}
    for name in names:
        rows[name] = run_row(common, name, ROWS[name], rows.get(BASE))
        print(rows[name].sentence, flush=True)
    count = read_dense_config(str(common.dense)).num_hidden_layers
    return RecipeResult(
        model=common.dense.name, tokens=min(one.tokens for one in rows.values()),
        layers=parse_layers(common.layers, count), rows=list(rows.values()), not_tried=NOT_TRIED,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows, then write the page or print it."""
    given = parser().parse_args(arguments)
    if given.list:
        print("\n".join(f"{name}: {row.question}; {row.change}" for name, row in ROWS.items()))
        return
    if missing := [name for name in ("dense", "data", "layers", "tokens", "out") if getattr(given, name) is None]:
        parser().error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    common = Common(
        given.dense, given.data, given.layers, given.out,
        TextOptions(seq_len=given.seq_len, batch_size=given.batch_size, seed=given.seed),
        LocalOptions(tokens=given.tokens),
        RunOptions(device=given.device, precision=given.precision, report_windows=given.windows),
        sample_tokens=given.sample_tokens, losses=given.losses,
    )  # fmt: skip
    result = result_of(common, chosen(given.rows))
    result.save(given.out)
    if given.docs is None:
        print(page.body(result))
        return
    atomic_write_json(given.docs / "conversion.json", result.to_json())
    insert(given.docs / "conversion.md", page.body(result), page.BEGIN)
    print(result.sentence)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--dense", type=Path, help="folder of the dense model")
    found.add_argument("--data", type=Path, help="text prepared with its tokenizer")
    found.add_argument("--layers", help="layers of all rows: 22-26, top:5, 3,5,7 or all")
    found.add_argument("--tokens", type=int, help="tokens of each row's training")
    found.add_argument("--out", type=Path, help="folder of all rows")
    found.add_argument("--rows", nargs="*", default=[], help="rows to run; default: all")
    found.add_argument("--docs", type=Path, help="folder with the conversion.md to write; default: print the table")
    found.add_argument("--losses", action="store_true", help="also measure the loss with the new layers in place")
    found.add_argument("--list", action="store_true", help="print the rows, and do nothing else")
    found.add_argument("--seed", type=int, default=TextOptions.seed, help="for random starts and the order of the text")
    found.add_argument("--seq_len", type=int, default=TextOptions.seq_len, help="tokens of a window")
    found.add_argument("--batch_size", type=int, default=TextOptions.batch_size, help="windows of a step")
    found.add_argument("--windows", type=int, default=RunOptions.report_windows, help="held-out windows of each domain")
    found.add_argument("--sample_tokens", type=int, default=Common.sample_tokens, help="tokens before the training")
    found.add_argument("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    found.add_argument("--precision", default="auto", choices=["auto", "bf16", "float32"], help="of matrix products")
    return found


if __name__ == "__main__":
    main()
