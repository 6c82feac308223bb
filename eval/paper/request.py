"""The user's options, the steps that follow from them, and the requirements of the steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monet.eval.attribution.control_options import ControlOptions
from monet.eval.core.decoding import GENERATED_CONTROLS
from monet.eval.core.loading import DType
from monet.eval.paper.scorer import PaperScorer
from monet.eval.scorers.scorers import ScorerSettings
from monet.extras import install_command

_COMMANDS = {
    "C++": ("g++",),
    "Java": ("javac",),
    "JavaScript": ("node", "nodejs"),
    "Lua": ("lua", "lua5.4", "lua5.3"),
    "PHP": ("php",),
}


@dataclass(frozen=True)
class Request:
    """Options of `monet reproduce`; see its help."""

    model: str | None = None
    out: Path | None = None
    data: Path | None = None
    prompts: list[Path] = field(default_factory=list)
    problems: str = "nuprl/MultiPL-E"
    libraries: list[Path] = field(default_factory=list)
    scorer: ScorerSettings = ScorerSettings(kind="classifier")  # noqa: RUF009 - frozen
    allow_code_execution: bool = False
    held_out: bool = False
    controls: ControlOptions = ControlOptions(count=GENERATED_CONTROLS)  # noqa: RUF009 - frozen
    limit: int | None = None
    gpu: str = "h100"
    device: str = "auto"
    dtype: DType = "auto"
    progress: bool = True

    @property
    def computing(self) -> dict[str, Any]:
        """Options of every command that runs a model."""
        return {"model": self.model, "device": self.device, "dtype": self.dtype, "progress": self.progress}


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        verb: command of `monet`.
        options: options by the names of their arguments.
        writes: file that exists once the step has finished.
        resumes: whether the command continues from its own kept results; other commands are skipped once they have
            finished.
        reads: files and folders that a command which does not resume depends on; it runs again if they change.
    """

    verb: str
    options: dict[str, Any]
    writes: Path
    resumes: bool = True
    reads: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command line; options that are None are left out."""
        words = ["monet", *self.verb.split()]
        for name, value in plain(self.options).items():
            given = value.items() if isinstance(value, dict) else [("", value)]
            for key, inner in given:
                if inner is not None:
                    shown = inner if isinstance(inner, str) else json.dumps(inner)
                    words += [f"--{name}{'.' if key else ''}{key}", shown]
        return shlex.join(words)


def plain(value: Any) -> Any:
    """Make a value JSON-able: paths become text, settings become mappings of their first and all changed fields."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        first, *others = ((f.name, getattr(value, f.name), f.default) for f in fields)
        return plain({first[0]: first[1]} | {name: own for name, own, default in others if own != default})
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Need:
    """Something that an experiment needs to run, or needs to match the paper.

    Args:
        name: name of one or two words.
        what: exact description.
        missing: function from a request to what is missing and how to get it; empty if nothing is.
        required: whether the experiment cannot start without it.
        settled: whether it changes the result, so that the report must mention its absence.
    """

    name: str
    what: str
    missing: Callable[[Request], str]
    required: bool = True
    settled: bool = True


def _model(request: Request) -> str:
    return "" if request.model else "name a model with --model"


def _out(request: Request) -> str:
    return "" if request.out else "name a folder for the results with --out"


def _lm_eval(request: Request) -> str:
    return "" if importlib.util.find_spec("lm_eval") else install_command("eval")


def _folder(request: Request) -> str:
    if request.data is None:
        return "name it with --data"
    return "" if request.data.is_dir() else f"{request.data} is not a folder; correct --data"


def _hub_or_folder(request: Request) -> str:
    return _folder(request) if request.data else "--data is not given, so the data are read from the hub or its cache"


def _problems(request: Request) -> str:
    path = Path(request.problems)
    return "" if path.exists() or not path.suffix else f"{path} does not exist; correct --problems"


def _permission(request: Request) -> str:
    return "" if request.allow_code_execution else "the programs are untrusted; allow them with --allow_code_execution"


def _runtimes(request: Request) -> str:
    gone = [language for language, names in _COMMANDS.items() if not any(map(shutil.which, names))]
    return f"{', '.join(gone)} not found; the result is partial, without these languages" if gone else ""


def _prompts(request: Request) -> str:
    if not request.prompts:
        return "name the files with --prompts"
    return ", ".join(f"{path} is not a file" for path in request.prompts if not path.is_file())


def _key(request: Request) -> str:
    if request.scorer.kind == "perspective" and not os.environ.get("PERSPECTIVE_API_KEY"):
        return "PERSPECTIVE_API_KEY is not set; set it, or score with --scorer.kind classifier or words"
    return ""


def _classifier(scorer: ScorerSettings) -> str:
    """Whether a classifier is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if scorer.kind != "classifier" or scorer.model is None or Path(scorer.model).is_dir():
        return ""
    found = try_to_load_from_cache(scorer.model, "config.json", revision=scorer.revision)
    return (
        ""
        if isinstance(found, str)
        else "not on this machine; it is downloaded (--scorer.kind words needs no download)"
    )


def _gpu(request: Request) -> str:
    import torch

    return "" if torch.cuda.is_available() else "no GPU found; a CPU takes very long for models of this size"


OUT = Need("folder", "for results; the same command continues after a kill", _out)
GPU = Need("GPU", "for the hours below", _gpu, required=False, settled=False)
LM_EVAL = Need("lm-eval", "lm-evaluation-harness", _lm_eval)
BENCHMARKS = Need(
    "data", "copies of the hub's benchmarks (docs/suites.md)", _hub_or_folder, required=False, settled=False
)
PERMISSION = Need("permission", "to run the model's programs in the sandbox", _permission)
PROBLEMS = Need("problems", "MultiPL-E, HumanEval's, about 161 per language", _problems)
RUNTIMES = Need("runtimes", "Python, C++, Java, JavaScript, Lua, PHP", _runtimes, required=False)


def model(what: str) -> Need:
    """The weights."""
    return Need("weights", what, _model)


def text(what: str) -> Need:
    """A folder of `monet data prepare`."""
    return Need("text", what, _folder)


def prompts(what: str) -> Need:
    """Files of prompts."""
    return Need("prompts", what, _prompts)


def scorer(paper: PaperScorer) -> list[Need]:
    """A scorer of the continuations."""
    own = paper.classifier
    revision = f" --scorer.revision {own.revision}" if own.revision else ""
    what = f"--scorer.kind classifier --scorer.model {own.model}{revision} --scorer.label {own.label}, or another"

    def weights(request: Request) -> str:
        return _classifier(paper.chosen(request.scorer))

    local = Need("classifier", "weights of the scorer, if it is a classifier", weights, required=False, settled=False)
    return [Need("scorer", what, _key), local]
