"""Compiles every Triton kernel without a GPU, and compares its use of registers and memory with stored limits.

    python -m benchmarks.aot [--sm 80 90] [--json FILE] [--update]

Each module with Triton kernels lists its launches in `AOT` (kernels/aot_case.py). The compiler that is included in
triton compiles each launch. Registers and stack come from the machine code, spills from ptxas. The figures depend on
triton's release, so benchmarks/aot_limits/ has one file of limits for each release. The exit code is 1 if a figure
exceeds its limit, if a launch has no limit, if a limit has no launch, or if a release has no file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from monet.errors import ConfigError, MonetError
from monet.files import atomic_write_json
from monet.kernels.aot_case import AotCase
from monet.kernels.dispatch import interpreted

MODULES = (
    "monet.kernels.active_keys",
    "monet.kernels.decode.triton_op",
    "monet.kernels.hde.triton_mix",
    "monet.kernels.vde.triton_mix",
    "monet.kernels.routing.triton_op",
)
# One file for each release of triton, VERSION.json.
LIMITS = Path(__file__).with_name("aot_limits")
# Largest shared memory of a block, in bytes: CUDA C programming guide, compute capabilities.
MAX_SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
# The hardware allocates the registers of a thread in steps of this size.
REGISTER_STEP = 8
COLUMNS = {
    "kernel": "", "sm": "", "registers": "", "spill_stores": "", "spill_loads": "", "stack": "", "shared": "",
    "warps": "", "tensor_cores": "", "seconds": ".2f",
}  # fmt: skip


def load_cases(modules: Sequence[str]) -> list[AotCase]:
    """Launches that the modules list.

    Raises:
        ConfigError: a module cannot be imported, lists no launch, or lists a name twice; or Triton is interpreted.
    """
    if interpreted():
        raise ConfigError(
            f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']} turns kernels into plain Python, which cannot be "
            "compiled; unset it for this command"
        )
    cases: dict[str, AotCase] = {}
    for name in modules:
        try:
            listed = importlib.import_module(name).AOT
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{name} gives no launches to compile: {error}") from error
        if not listed:
            raise ConfigError(f"{name}.AOT is empty; list its kernels' launches, or take the module off the list")
        for case in listed:
            if case.name in cases:
                raise ConfigError(f"{name}.AOT: the name {case.name!r} occurs twice; give each launch another name")
            cases[case.name] = case
    return list(cases.values())


def measure(case: AotCase, sm: int) -> dict[str, Any]:
    """Compile one launch for compute capability `sm` (90 is 9.0); its row of the table, bytes and registers a thread.

    Raises:
        ConfigError: the launch does not fit the kernel's arguments.
    """
    from triton.compiler import CompiledKernel

    kernel = _jit_function(case)
    known = [*case.signature, *case.constants]
    if sorted(known) != sorted(kernel.arg_names):
        wrong = sorted(set(known) ^ set(kernel.arg_names)) or "an argument named twice"
        raise ConfigError(f"launch {case.name!r} does not fit the arguments of {kernel.__name__}: {wrong}")
    started = time.perf_counter()
    compiled: CompiledKernel = _compile(case, kernel, sm)
    seconds = time.perf_counter() - started
    ptx = str(compiled.asm["ptx"])
    return {
        "kernel": case.name,
        "sm": sm,
        **_from_cubin(compiled.asm["cubin"]),
        **_from_ptxas(ptx, sm),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "tensor_cores": next((name for name in ("wgmma", "mma.sync") if name in ptx), "no"),
        "seconds": round(seconds, 3),
    }


def _jit_function(case: AotCase) -> Any:
    from triton.runtime.jit import JITFunction

    kernel = case.kernel
    while not isinstance(kernel, JITFunction):
        if not hasattr(kernel, "fn"):
            raise ConfigError(f"launch {case.name!r} names {kernel!r}, which is no Triton kernel")
        kernel = kernel.fn
    return kernel


def _compile(case: AotCase, kernel: Any, sm: int) -> Any:
    # Unset, some versions of triton warn that the default will change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    position = kernel.arg_names.index
    source: Any = ASTSource(
        kernel,
        {name: "constexpr" if name in case.constants else case.signature[name] for name in kernel.arg_names},
        constexprs={(position(name),): value for name, value in case.constants.items()},
        attrs={(position(name),): [["tt.divisibility", 16]] for name in case.divisible_by_16},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    with knobs.compilation.scope():
        knobs.compilation.always_compile = True
        return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def _from_cubin(cubin: Any) -> dict[str, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump's report is not understood: {text!r}")
    return {"registers": int(found[1]), "stack": int(found[2])}


def _from_ptxas(ptx: str, sm: int) -> dict[str, int]:
    """Spilled bytes, which only the assembler reports."""
    from triton.backends.nvidia.compiler import get_ptxas

    architecture = re.search(r"\.target\s+(\w+)", ptx)
    assert architecture is not None, "PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [get_ptxas(sm).path, "-v", f"-arch={architecture[1]}", str(source), "-o", str(Path(folder, "out"))]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if found is None:
        raise RuntimeError(f"ptxas' report is not understood: {text!r}")
    return {"spill_stores": int(found[1]), "spill_loads": int(found[2])}


def key(row: dict[str, Any]) -> str:
    """Key of a row's limits in the file."""
    return f"sm_{row['sm']} {row['kernel']}"


def problems(rows: list[dict[str, Any]], limits: dict[str, Any]) -> list[str]:
    """Figures beyond their limits, launches without limits, and limits without launches; empty if there are none."""
    found, written = [], limits["limits"]
    for row in rows:
        if row["shared"] > MAX_SHARED.get(row["sm"], MAX_SHARED[90]):
            found.append(f"{key(row)}: {row['shared']} bytes of shared memory do not fit the device")
        if (limit := written.get(key(row))) is None:
            found.append(f"{key(row)}: no limit; read the table, then write one with --update")
            continue
        for field, figure in _limited(row).items():
            if figure > limit[field]:
                found.append(f"{key(row)}: {field} is {figure}, the limit {limit[field]}")
    compiled, targets = {key(row) for row in rows}, {f"sm_{row['sm']}" for row in rows}
    gone = [name for name in written if name.split()[0] in targets and name not in compiled]
    return found + [f"{name}: a limit without a launch; drop it with --update" for name in gone]


def _limited(row: dict[str, Any]) -> dict[str, int]:
    spilled = max(row["spill_stores"], row["spill_loads"])
    return {"registers": row["registers"], "spill_bytes": spilled, "shared": row["shared"]}


def updated(rows: list[dict[str, Any]], limits: dict[str, Any], triton_version: str) -> dict[str, Any]:
    """Limits equal to the rows' figures. The allowed spills do not change (at first 0): edit the file to allow them."""
    targets = {f"sm_{row['sm']}" for row in rows}
    written = {name: limit for name, limit in limits["limits"].items() if name.split()[0] not in targets}
    for row in rows:
        spill_bytes = limits["limits"].get(key(row), {}).get("spill_bytes", 0)
        registers = -(-row["registers"] // REGISTER_STEP) * REGISTER_STEP
        written[key(row)] = {"registers": registers, "spill_bytes": spill_bytes, "shared": row["shared"]}
    return {"triton": triton_version, "limits": dict(sorted(written.items()))}


def read_limits(path: Path) -> dict[str, Any]:
    """Limits in the file; none if the file does not exist yet.

    Raises:
        ConfigError: the file is not what `--update` writes.
    """
    try:
        limits = json.loads(path.read_text(encoding="utf-8"))
        for limit in limits["limits"].values():
            _ = int(limit["registers"]), int(limit["spill_bytes"]), int(limit["shared"])
        return {"triton": limits["triton"], "limits": limits["limits"]}
    except FileNotFoundError:
        return {"triton": None, "limits": {}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: unreadable limits ({error!r}); remove it and write it with --update") from error


def main(argv: list[str] | None = None, modules: Sequence[str] = MODULES, limits_folder: Path = LIMITS) -> int:
    """Compile, print the table and compare it with the limits; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, nargs="+", default=[80, 90], help="compute capabilities; 90 is Hopper")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--update", action="store_true", help="write the figures found as the new limits")
    options = parser.parse_args(argv)
    try:
        cases = load_cases(modules)
        import triton

        limits_path = limits_folder / f"{triton.__version__}.json"
        limits = read_limits(limits_path)
        rows = [measure(case, sm) for case in cases for sm in options.sm]
    except MonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"triton {triton.__version__}; memory in bytes, registers a thread\n\n{markdown(rows, COLUMNS)}\n")
    if options.update:
        limits = updated(rows, limits, triton.__version__)
        limits_folder.mkdir(exist_ok=True)
        atomic_write_json(limits_path, limits)
    if options.json:
        atomic_write_json(options.json, {"triton": triton.__version__, "rows": rows})
    found = problems(rows, limits)
    for problem in found:
        print(problem, file=sys.stderr)
    if not limits_path.is_file():
        print(f"triton {triton.__version__} has no limits; read the table, then add --update", file=sys.stderr)
    if not found:
        print(f"{len(rows)} launches within their limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
