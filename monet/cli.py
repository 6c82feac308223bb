"""The `monet` command: a table of verbs, each a plain function that is imported when it is called.

jsonargparse derives a verb's options from its function's signature and its help from the docstring. Every verb also
takes `--config FILE.yaml` with the same option names. Training has a separate program, `train.py`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from monet import __version__
from monet.errors import MonetError, recognised
from monet.options import arguments_of, defaults_of, groups_of, types_of
from monet.terminal import clean, clean_warnings


class Verb(NamedTuple):
    """One command: `target` is "module:function", `summary` is its line in `monet --help`.

    `takes_words`: arguments without a default are plain words, not options.
    `all_words`: every word is passed unchanged to the function, which parses them and returns the exit code.
    `words_into`: the option that collects all plain words before the first option, as a list.
    `reads_text`: a model reads much text; `monet.cpu.speed_up_cpu` then speeds up its matrix products.
    """

    target: str
    summary: str
    takes_words: bool = False
    all_words: bool = False
    words_into: str = ""
    reads_text: bool = False


GROUPS: dict[str, dict[str, Verb]] = {
    "Installation": {
        "doctor": Verb(
            "monet.doctor.command:run",
            "versions, devices and a self-test; failed checks name their fix",
            all_words=True,
        ),
    },
    "Data": {
        "data prepare": Verb(
            "monet.data.preparation.prepare:prepare", "text -> tokenizer, token shards and a hashed manifest"
        ),
        "data join": Verb("monet.data.preparation.join:join", "parts of a preparation -> one prepared folder"),
    },
    "Training": {
        "plan": Verb(
            "monet.planning.plan:plan", "training configuration and GPUs -> memory, time, cost, and settings that fit"
        ),
    },
    "Models": {
        "verify": Verb(
            "monet.training.checkpoints.verify:verify", "a run's or a checkpoint's files against their manifest", True
        ),
        "export": Verb(
            "monet.convert.export:export", "training checkpoint -> Hugging Face folder with tokenizer and card"
        ),
        "convert": Verb(
            "monet.convert.dense.command:convert", "layers of a dense language model -> Monet layers", reads_text=True
        ),
        "generate": Verb("monet.serve.generate:generate", "continue a prompt, with any expert mask"),
    },
    "Inspection": {
        "index": Verb(
            "monet.eval.index.command:run",
            "where every expert fires: contexts, samples, labels, tokens",
            reads_text=True,
        ),
        "index merge": Verb(
            "monet.eval.index.command:merge", "join indexes of parts of one text", words_into="indexes"
        ),
        "index info": Verb(
            "monet.eval.index.command:info", "what an index was made from, and its size", takes_words=True
        ),
        "index export": Verb(
            "monet.eval.inspection.export:run",
            "chosen experts -> JSON lines, Neuronpedia, SAEDashboard",
            takes_words=True,
            reads_text=True,
        ),
        "index numbers": Verb(
            "monet.eval.explain.numbers_command:run",
            "monosemanticity of experts, halves and neurons in numbers",
            takes_words=True,
            reads_text=True,
        ),
        "view": Verb(
            "monet.eval.view.command:run",
            "a page on an index: experts, prompts, removals, masks",
            takes_words=True,
            reads_text=True,
        ),
        "explain": Verb(
            "monet.eval.explain.command:run_explain",
            "a text for each expert, from its contexts",
            takes_words=True,
        ),
        "score": Verb(
            "monet.eval.explain.command:run_score",
            "how well the texts say where experts fire, next to controls",
            takes_words=True,
            reads_text=True,
        ),
        "score list": Verb(
            "monet.eval.explain.ranking:run", "experts worth seeing by their scores, and the others", takes_words=True
        ),
    },
    "Knowledge removal": {
        "stats": Verb(
            "monet.eval.attribution.stats:run",
            "sum each expert's routing weight per domain of labelled text",
            reads_text=True,
        ),
        "stats merge": Verb(
            "monet.eval.attribution.stats:merge", "add up the statistics of several passes", words_into="files"
        ),
        "select": Verb("monet.eval.attribution.selection:run", "statistics -> one expert mask per domain"),
        "ablate": Verb(
            "monet.eval.suites.loss.ablate:run",
            "loss per domain with and without each mask, and under random masks",
            reads_text=True,
        ),
        "curve": Verb(
            "monet.eval.suites.loss.curve:run",
            "loss per domain at each selection threshold, with nested masks",
            reads_text=True,
        ),
        "eval general": Verb(
            "monet.eval.suites.questions.general:run", "eight benchmarks, 0- and 5-shot, under masks", reads_text=True
        ),
        "eval domains": Verb(
            "monet.eval.suites.questions.domains:run",
            "MMLU's 14 categories: accuracy without the experts of each category",
            reads_text=True,
        ),
        "eval facts": Verb(
            "monet.eval.suites.facts.evaluate:run",
            "log-odds of facts under masks, by domain and relation",
            reads_text=True,
        ),
        "lm-eval": Verb(
            "monet.eval.suites.questions.command:run",
            "the command line of lm-eval, with --model monet",
            all_words=True,
            reads_text=True,
        ),
        "eval neurons": Verb(
            "monet.eval.baselines.neurons:run",
            "the dense baseline: loss per domain without neurons of a LLaMA",
            reads_text=True,
        ),
        "eval code": Verb(
            "monet.eval.suites.code.evaluate:run",
            "pass@k in six languages under masks; runs programs in a sandbox",
            reads_text=True,
        ),
        "eval toxicity": Verb(
            "monet.eval.suites.toxicity.evaluate:run",
            "toxicity of continuations under masks, with confidence intervals",
            reads_text=True,
        ),
        "eval toxicity-scores": Verb(
            "monet.eval.suites.toxicity.write_scores:run", "scored text, for correlation with experts"
        ),
        "reproduce": Verb(
            "monet.eval.paper.reproduce:run",
            "the paper's tables: needs, cost, and our numbers next to the published ones",
            reads_text=True,
        ),
        "report": Verb(
            "monet.eval.reporting.command:run",
            "any result, or results of several seeds -> one page, Markdown, figures, JSON",
        ),
    },
}
VERBS: dict[str, Verb] = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code.

    Code 0 means success. 1 is an error of the machine (disk, permissions, a missing package) or a bug in Monet (with a
    traceback). 2 is usage or configuration, 3 data, 4 checkpoint or mask, 5 non-finite loss, 6 out of memory, 130
    interrupted.

    Args:
        argv: words after the program's name; None reads them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    clean_warnings()
    try:
        return _dispatch(words)
    except (MonetError, OSError, RuntimeError, MemoryError) as error:
        known = recognised(error)
        if known is None and not isinstance(error, OSError):
            raise  # a bug in Monet needs its traceback
        if debug:
            traceback.print_exc()
        else:
            print(f"monet: error: {clean(' '.join(str(known or error).split()))}", file=sys.stderr)
        return 1 if known is None else known.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if debug or package in ("", "monet"):
            raise
        print(
            f"monet: error: the package {package} is not installed; install Monet again, which also installs the "
            "packages it needs: pip install monet-experts, or pip install -e . in its folder",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("monet: interrupted", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"monet {__version__}")
        return 0
    name, options = _split(words)
    if name in VERBS:
        return _run(name, options)
    if options and options[0] not in ("--help", "-h"):
        command = " ".join([*name.split(), options[0]])
        near = difflib.get_close_matches(command, VERBS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(
            f"monet: error: unknown command {command!r}; {hint}monet --help lists all commands",
            file=sys.stderr,
        )
        return 2
    print(_overview(name))
    return 0 if options else 2


def _split(words: list[str]) -> tuple[str, list[str]]:
    """Split the words into the longest prefix that names a verb, and the rest."""
    starts = {" ".join(verb.split()[:n]) for verb in VERBS for n in range(len(verb.split()) + 1)}
    taken = 0
    while taken < len(words) and " ".join(words[: taken + 1]) in starts:
        taken += 1
    return " ".join(words[:taken]), words[taken:]


def _overview(prefix: str) -> str:
    lines = [
        f"usage: monet {prefix + ' ' if prefix else ''}COMMAND [options]    (options: monet COMMAND --help)",
        "",
    ]
    width = max(map(len, VERBS))
    for title, verbs in GROUPS.items():
        shown = {name: verb for name, verb in verbs.items() if name.startswith(prefix)}
        if shown:
            lines += [f"{title}:", *(f"  {name:<{width}} {verb.summary}" for name, verb in shown.items()), ""]
    if not prefix:
        lines += ["To train a model:", "  python train.py fit --config configs/demo.yaml --run_dir runs/demo", ""]
    lines += ["  --config FILE  any command: options from a YAML file; options on the command line take precedence"]
    lines += ["  --debug        any command: show the full traceback of an error", "  --version      print the version"]
    return "\n".join(lines)


def _run(name: str, options: list[str]) -> int:
    module, _, function = VERBS[name].target.partition(":")
    target: Callable[..., Any] = getattr(importlib.import_module(module), function)
    if VERBS[name].reads_text and not {"--help", "-h", "--plugin"} & set(options):
        _speed_up()
    if VERBS[name].all_words:
        return target(options)
    options = _with_list(options, VERBS[name].words_into)
    try:
        arguments = parsed(target, options, f"monet {name}", VERBS[name].takes_words)
    except SystemExit as stop:  # --help, or options that cannot be parsed
        return stop.code if isinstance(stop.code, int) else 2
    target(**arguments)
    return 0


def parsed(target: Callable[..., Any], words: list[str], program: str, takes_words: bool = False) -> dict[str, Any]:
    """Arguments for a verb's function, parsed from the words of its command line."""
    from jsonargparse import ArgumentParser

    words = _with_values(words, target)
    parser = ArgumentParser(prog=program, description=(inspect.getdoc(target) or "").partition("\n\n")[0])
    own_files = "config" in inspect.signature(target).parameters
    if own_files:  # files of another kind, perhaps several: jsonargparse repeats a list option with a plus
        again = (word.replace("--config", "--config+", 1) for word in words)
        words = [
            plus if word.partition("=")[0] == "--config" else word for word, plus in zip(words, again, strict=True)
        ]
    else:
        parser.add_argument("--config", action="config", help="YAML file with options of this command")
    groups = groups_of(target)
    parser.add_function_arguments(target, as_group=False, as_positional=takes_words, skip=set(groups))
    for group in groups.values():
        parser.add_class_arguments(group)
    parser.set_defaults(**defaults_of(target))
    _refuse_unknown(words, target, parser)
    found = parser.instantiate(parser.parse_args(words)).as_dict()
    if not own_files:
        del found["config"]
    return arguments_of(target, found)


def _speed_up() -> None:
    import torch

    from monet.cpu import speed_up_cpu

    if not torch.cuda.is_available():  # it would lower the precision of products on a GPU
        speed_up_cpu()


def _with_list(options: list[str], name: str) -> list[str]:
    """Turn plain words at the start into one list option, so that `A B --out C` is `--files [A, B] --out C`."""
    count = next((n for n, word in enumerate(options) if word.startswith("-")), len(options)) if name else 0
    return [*([f"--{name}={json.dumps(options[:count])}"] if count else []), *options[count:]]


def _with_values(options: list[str], target: Callable[..., Any]) -> list[str]:
    """Give values to boolean options and lists, so that `--full` means `--full=true`. A list may be plain words.

    `--result A B` becomes `--result [A, B]`, and `--prompts FILE` becomes `--prompts [FILE]`.
    """
    kinds = {f"--{name}": kind for name, kind in types_of(target).items()}
    words: list[str] = []
    place = 0
    while place < len(options):
        name, has_value, own = options[place].partition("=")
        place += 1
        takes_list = _list_of(kinds.get(name)) is not None
        if kinds.get(name) is bool and not has_value:
            given = place < len(options) and options[place].lower() in ("true", "false")
            words.append(f"{name}={options[place].lower() if given else 'true'}")
            place += given
        elif takes_list and has_value:
            words.append(f"{name}={_as_list([own], kinds[name])}")
        elif takes_list and place < len(options) and not _is_option(options[place]):
            end = next((n for n in range(place + 1, len(options)) if _is_option(options[n])), len(options))
            words.append(f"{name}={_as_list(options[place:end], kinds[name])}")
            place = end
        else:
            words.append(options[place - 1])
    return words


def _is_option(word: str) -> bool:
    """Whether a word is an option and not a value; a negative number is a value."""
    return word.startswith("-") and re.match(r"-\.?\d", word) is None


def _refuse_unknown(words: Sequence[str], target: Callable[..., Any], parser: Any) -> None:
    """End with a usage error at the first unknown option, and name the nearest known one."""
    known = [*types_of(target), "config", "print_config", "help"]
    for word in words:
        if word.startswith("--") and word != "--":
            name = word[2:].partition("=")[0].rstrip("+")
            first, _, rest = name.partition(".")
            if first not in known:
                near = (
                    [rest] if first in groups_of(target) else difflib.get_close_matches(first, known, n=1, cutoff=0.5)
                )
                parser.error(f"unknown option --{name}{f'; did you mean --{near[0]}?' if near else ''}")


def _list_of(kind: Any) -> Any:
    """The item type, if the type is a list or allows a list; None otherwise."""
    return next((get_args(one)[0] for one in (kind, *get_args(kind)) if get_origin(one) is list), None)


def _as_list(values: list[str], kind: Any) -> str:
    """Words as one list, unless they are a list already, or one word for an option that also takes a single value."""
    value = " ".join(values)
    takes_one = get_origin(kind) is not list and any(
        get_origin(one) is not list and one is not type(None) for one in get_args(kind)
    )
    if (takes_one and len(values) == 1) or value.lstrip().startswith("[") or value == "null":
        return value
    return f"[{', '.join(values)}]" if _list_of(kind) in (int, float) else json.dumps(values)
