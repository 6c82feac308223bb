"""Private parts of Lightning and DeepSpeed are used in one file each, so that a new release affects only one file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOMES = {
    "lightning": ROOT / "monet" / "training" / "private" / "lightning.py",
    "deepspeed": ROOT / "monet" / "training" / "private" / "deepspeed.py",
}
# Add a name here when a file above starts to use it.
NAMES = {
    "lightning": {
        "_broadcast_sigterm_tensor", "_checkpoint_connector", "_ckpt_path", "_data_connector", "_data_fetcher",
        "_data_parallel_size", "_init_deepspeed_distributed", "_optimizer", "_run", "_run_stage",
        "_setup_model_and_optimizer", "_should_accumulate", "_should_check_val_fx",
    },
    "deepspeed": {
        "__compatible_ops__", "_configure_bf16_optimizer", "_configure_zero_optimizer", "_get_norm_groups",
        "_get_param_partition_rank", "_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state",
        "check_grad_overflow", "fp32_partitioned_groups_flat", "single_partition_of_fp32_groups",
    },
}  # fmt: skip
# Modules of DeepSpeed that are not documented for users.
PRIVATE_MODULES = {"lightning": (), "deepspeed": ("deepspeed.runtime", "deepspeed.ops")}
# kernels/ imports nothing of monet/; it asks whether a parameter is DeepSpeed's.
ALLOWED = {(ROOT / "kernels" / "checks.py", "ds_id")}
FILES = [
    ROOT / "train.py",
    *(path for folder in ("monet", "eval", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))),
]


def private_parts(source: str, library: str) -> set[str]:
    """Private names of a library that some code imports, reads, sets, defines or names in a string."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            is_import = isinstance(node, (ast.Import, ast.ImportFrom))
            if name in NAMES[library] or (library == "deepspeed" and name.startswith("ds_") and name.isidentifier()):
                found.add(name)
            elif is_import and parts[0] == library:
                hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
                if hidden or any(f"{name}.".startswith(f"{module}.") for module in PRIVATE_MODULES[library]):
                    found.add(name)
    return found


def is_allowed(path: Path, name: str) -> bool:
    """Outside monet/training, `_run` is a name of ours."""
    return (path, name) in ALLOWED or (name == "_run" and path.parent != ROOT / "monet" / "training")


@pytest.mark.parametrize("library", HOMES)
def test_one_file_uses_private_parts(library):
    found = {}
    for path in FILES:
        if path != HOMES[library]:
            names = private_parts(path.read_text("utf-8"), library)
            if wrong := sorted(name for name in names if not is_allowed(path, name)):
                found[str(path.relative_to(ROOT))] = wrong
    assert not found, f"move what uses these to {HOMES[library].relative_to(ROOT)}: {found}"


@pytest.mark.parametrize("library", HOMES)
def test_the_list_of_names_is_that_of_the_file(library):
    """Each private attribute in the file is on the list, so that no other file can use it unnoticed."""
    tree = ast.parse(HOMES[library].read_text("utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in used if name.startswith("_") and not name.endswith("__")}
    assert private - NAMES[library] == set()


@pytest.mark.parametrize(
    ("source", "library", "wanted"),
    [
        ("trainer.fit_loop._data_fetcher", "lightning", {"_data_fetcher"}),
        ("getattr(optimizer, '_optimizer', None)", "lightning", {"_optimizer"}),
        ("class T:\n def _run(self): pass", "lightning", {"_run"}),
        ("from lightning.pytorch._x import y", "lightning", {"lightning.pytorch._x", "lightning.pytorch._x.y"}),
        ("from lightning.pytorch import Trainer", "lightning", set()),
        ("from deepspeed.runtime import engine", "deepspeed", {"deepspeed.runtime", "deepspeed.runtime.engine"}),
        ("from deepspeed.utils import safe_get_full_fp32_param", "deepspeed", set()),
        ("hasattr(weight, 'ds_shape')", "deepspeed", {"ds_shape"}),
    ],
)
def test_the_reader_sees_private_parts(source, library, wanted):
    assert private_parts(source, library) == wanted
