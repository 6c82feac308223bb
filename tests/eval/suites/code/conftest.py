"""The sandbox of this machine, a small model, problems with right and wrong bodies, libraries that their tests need."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from corpus.fetch import fetch
from corpus.recipe import Source
from monet import MonetForCausalLM
from monet.errors import ConfigError, DataError
from monet.eval.sandbox import jail
from monet.eval.sandbox.limits import Limits, Outcome
from monet.eval.sandbox.processes import is_running
from monet.eval.sandbox.sandbox import Sandbox, open_sandbox
from monet.eval.sandbox.views import Command, find_command, python_interpreters
from monet.eval.suites.code.problems import CODES, ProblemSet, read_problems
from tests.eval.conftest import config

DATA = Path(__file__).parent / "data"
# A machine that runs many other things may take minutes for a second's work.
PATIENT = Limits(cpu_seconds=30, wall_seconds=300)


@pytest.fixture(scope="session")
def sandbox(request) -> Iterator[Sandbox]:
    """bubblewrap that holds everything back. Where it is not installed, Debian's package is unpacked, without root."""
    with pytest.MonkeyPatch.context() as patch:
        if jail.version() is None:
            try:
                files, _ = fetch(
                    Source("bubblewrap", "LGPL-2.0-or-later", 1.0, ()), request.config.cache.mkdir("packages")
                )
            except DataError as error:
                pytest.skip(f"no bubblewrap here: {error}")
            patch.setenv("PATH", str(files / "usr/bin"), prepend=os.pathsep)
        try:
            yield open_sandbox(PATIENT)
        except ConfigError as error:
            assert not namespaces_work(), f"namespaces work here, and yet: {error}"
            pytest.skip(f"no sandbox here: {error}")


def namespaces_work() -> bool:
    """Whether this machine lets a process have namespaces and mounts of its own."""
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork"]
    try:
        mounts = ["mount", "-t", "proc", "proc", "/proc"]
        return subprocess.run(["unshare", *mapped, *spaces, *mounts], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session")
def problems() -> ProblemSet:
    return read_problems(DATA / "problems", list(CODES))


@pytest.fixture(scope="session")
def bodies() -> dict[str, dict[str, dict[str, str]]]:
    """By our language name and problem a `right` and a `wrong` completion."""
    content = json.loads((DATA / "solutions.json").read_text())
    return {language: content[code] for language, code in CODES.items()}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> Path:
    """A folder with luaunit.lua and javatuples.jar: as much of them as the problems here use."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "luaunit.lua").write_text((DATA / "luaunit.lua").read_text())
    compiler = find_command("javac")
    if compiler is not None:
        subprocess.run([compiler.path, "-d", folder, DATA / "Pair.java"], check=True)
        with zipfile.ZipFile(folder / "javatuples.jar", "w") as jar:
            jar.write(folder / "org/javatuples/Pair.class", "org/javatuples/Pair.class")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with few merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["def f(x):\n    return x\n" * 3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture(scope="session")
def model(tokenizer) -> MonetForCausalLM:
    """Small, and at random."""
    torch.manual_seed(3)
    return MonetForCausalLM(config(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=64)).eval()


@pytest.fixture(scope="session")
def python(sandbox: Sandbox) -> Command:
    """How an interpreter is started inside, and what has to be shown for it."""
    for found in python_interpreters():
        if sandbox.run({}, f"{found.command} -c 1", found.view).status == "ok":
            return found
    raise AssertionError("no interpreter runs in the sandbox")


def attack(sandbox: Sandbox, python: Command, program: str, **limits: float) -> Outcome:
    """Run a Python program under other limits; its marker is on the command line of all its processes."""
    marker = f"marker-{uuid.uuid4().hex}"
    shut_in = replace(sandbox, limits=replace(sandbox.limits, **limits))
    outcome = shut_in.run({"program.py": program}, f"{python.command} -S $PROGRAM/program.py {marker}", python.view)
    assert not is_running(marker), "a process outlived its run"
    return outcome
