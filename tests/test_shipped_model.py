"""models/monet-7m loads, is small, and knows the languages that it was trained on."""

import json
import math
import tarfile
from pathlib import Path

import pytest
import torch

import monet
from monet import MonetForCausalLM
from monet.model.model_tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[1] / "models" / "monet-7m"


@pytest.fixture(scope="module")
def model() -> MonetForCausalLM:
    return MonetForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_folder_is_small_and_of_the_recipe():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) < 20 * 10**6
    notes = json.loads((FOLDER / "provenance.json").read_text())
    assert (notes["seed"], notes["step"], notes["dtype"]) == (0, 1600, "bfloat16")


@pytest.mark.parametrize("text", [
    "Der alte Mann ging langsam durch die Straße und dachte an seine Kinder.",
    "Il entra dans la maison et regarda par la fenêtre.",
    "public static void main(String[] args) {\n    int i = 0;\n}",
])  # fmt: skip
def test_text_of_its_languages_is_likelier_than_chance(model, text):
    ids_BT = load_tokenizer(FOLDER)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids_BT, labels=ids_BT).loss.item()
    assert loss < math.log(model.config.vocab_size) - 2


def test_its_index_opens_and_is_that_of_the_model(model, tmp_path):
    """`make look` opens this file; after a change of the model or of an index's format, run `make look-index`."""
    with tarfile.open(FOLDER / "index.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    inspection = monet.inspect(model, tmp_path / "look")  # refuses the index of another model
    assert (inspection.index.info.units.experts, len(inspection.index.info.data.labels)) == (3 * 64**2, 10)
    expert = inspection.expert(2, 4, 32)
    assert expert.row["best_label"] == "french" and expert.row["label_share"] > 0.99
    context = expert.contexts[0]
    weight = expert.weights(context)[context.position]
    assert weight == pytest.approx(context.weight, rel=1e-3)
