"""Fixtures: a small model, problems with right and wrong bodies, and the libraries that their tests need."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monet import MonetForCausalLM
from monet.eval.sandbox.views import find_command
from monet.eval.suites.code.problems import CODES, ProblemSet, read_problems
from tests.eval.conftest import config
from tests.eval.sandbox.conftest import python as python
from tests.eval.sandbox.conftest import sandbox as sandbox

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def problems() -> ProblemSet:
    return read_problems(DATA / "problems", list(CODES))


@pytest.fixture(scope="session")
def bodies() -> dict[str, dict[str, dict[str, str]]]:
    """A `right` and a `wrong` completion by our language name and problem."""
    content = json.loads((DATA / "solutions.json").read_text())
    return {language: content[code] for language, code in CODES.items()}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> Path:
    """A folder with the parts of luaunit.lua and javatuples.jar that these problems use."""
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
    """A byte-level tokenizer with few merges."""
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
    """A small random model."""
    torch.manual_seed(3)
    return MonetForCausalLM(config(vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=64)).eval()
