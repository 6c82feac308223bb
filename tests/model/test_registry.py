"""`import monet` stays fast, and transformers' Auto classes know the model type in any order of imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import monet
from tests.marks import nightly

TINY = dict(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=32, moe_dim=2, moe_heads=2, moe_experts=4, moe_topk=2, moe_groups=2,
    moe_decompose="vertical", hidden_act="relu2",
)  # fmt: skip


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    monet.MonetForCausalLM(monet.MonetConfig(**TINY)).save_pretrained(path)
    return str(path)


def test_import_is_cheap():
    code = (
        "import sys, monet; heavy = {'torch', 'transformers', 'numpy', 'safetensors'};"
        "print(sorted(heavy & sys.modules.keys()), 'MonetConfig' in dir(monet), len(sys.modules) < 200)"
    )
    assert python(code) == "[] True True"


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MonetModle"):
        _ = monet.MonetModle  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "imports",
    [
        "import monet\nimport transformers",
        nightly("import transformers\ntransformers.AutoModelForCausalLM, transformers.AutoTokenizer\nimport monet"),
        nightly("import transformers\nimport monet"),
        nightly("import transformers\ntransformers.AutoConfig\nimport monet"),
        nightly("import monet\nmonet.MonetForCausalLM\nimport transformers"),
        nightly("import monet\nmonet.MonetConfig\nimport transformers"),
    ],
)
def test_auto_classes_load_a_folder(imports, folder):
    code = f"""import sys
{imports}
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
base = transformers.AutoModel.from_pretrained(sys.argv[1])
assert type(config) is monet.MonetConfig and type(model) is monet.MonetForCausalLM and type(base) is monet.MonetModel
assert type(transformers.AutoConfig.for_model(**config.to_dict())) is monet.MonetConfig
assert type(transformers.AutoModelForCausalLM.from_config(config)) is monet.MonetForCausalLM
for task in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
    head = getattr(transformers, "AutoModelFor" + task).from_config(config)
    assert type(head) is getattr(monet, "MonetFor" + task)
print("loaded")"""
    assert python(code, folder) == "loaded"


def test_registration_itself_imports_no_model_code():
    code = (
        "import sys, monet; from transformers import AutoConfig, AutoModelForCausalLM;"
        "print([name for name in sys.modules if name.startswith('monet.')])"
    )
    assert python(code) == "['monet.other_distribution', 'monet.model', 'monet.model.registry', 'monet.moved']"


def test_public_registration_does_the_same(folder):
    code = """import sys, monet
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
del CONFIG_MAPPING._mapping["monet"], MODEL_FOR_CAUSAL_LM_MAPPING._model_mapping["monet"]
try:
    AutoConfig.from_pretrained(sys.argv[1])
except ValueError:
    monet.model.registry.register()
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._model_mapping.pop("monet")
monet.model.registry.register()
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
print(type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__name__)"""
    assert python(code, folder).split() == ["MonetForCausalLM", "MonetForSequenceClassification"]


def test_another_form_of_the_tables_is_warned_about():
    code = """import sys, types, warnings
for name in ("configuration_auto", "modeling_auto"):
    sys.modules[f"transformers.models.auto.{name}"] = types.ModuleType(f"transformers.models.auto.{name}")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import monet
print([str(w.message).split(";")[1] for w in caught][0])"""
    assert "monet.model.registry.register()" in python(code)


def test_code_beside_a_checkpoint_is_never_run(tmp_path, folder):
    """The released folders name the authors' files in `auto_map`; but our code runs."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.MonetConfig", "AutoModelForCausalLM": "evil.MonetForCausalLM"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = """import sys, monet
from transformers import AutoModelForCausalLM
for trust in (False, True):
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=trust)
    assert type(model) is monet.MonetForCausalLM"""
    python(code, str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()
