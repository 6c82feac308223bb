"""Describes the machine: processor, GPUs, compiler, and the programs that optional parts need."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monet.doctor.packages import Package

_CPUINFO = Path("/proc/cpuinfo")
# Processor features that torch can query, by `_is_NAME_supported` in torch.cpu.
_FEATURES = ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")
_GIB = 1 << 30
_VARIABLES = (
    "MONET_KERNELS",
    "MONET_CPP",
    "MONET_DECODE",
    "MONET_DECODE_COPY",
    "MONET_BROWSER",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "CXX",
)
# What each extra is for, as shown for its packages; an extra that is not listed is shown by its name.
_PURPOSES = {
    "deepspeed": "training with ZeRO",
    "gpu": "flash attention on a GPU",
    "eval": "monet lm-eval, monet eval general, monet eval domains",
    "sentencepiece": "models whose tokenizer is a tokenizer.model",
    "browser": "tests that look at reports and at the page of monet view",
    "view": "monet view",
}
# Languages of `monet eval code` -> groups of programs, one of each group is needed; the names of Debian's packages.
RUNTIMES: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {
    "cpp": ((("g++",),), "g++"),
    "java": ((("javac",), ("java",)), "default-jdk libjavatuples-java"),
    "javascript": ((("node", "nodejs"),), "nodejs"),
    "lua": ((("lua", "lua5.4", "lua5.3", "lua5.2", "lua5.1", "luajit"),), "lua5.4 lua-unit"),
    "php": ((("php", *(f"php8.{minor}" for minor in range(5, -1, -1))),), "php-cli"),
}
BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Part:
    """A package or program that only some commands need.

    Attributes:
        name: name of the package or program.
        found: its version or path; None if it is missing, which is not a failure.
        needed_for: what does not run without it.
        install: how to install it.
    """

    name: str
    found: str | None
    needed_for: str
    install: str


def devices() -> dict[str, Any]:
    """The processor as torch sees it, and the GPUs that torch can use; plain values for JSON."""
    import torch

    asked = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in _FEATURES}
    cpu = {
        "name": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name, ask in asked.items() if ask is not None and ask()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1),
    }
    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        capability = f"{found.major}.{found.minor}"
        gpus.append({"name": found.name, "memory_gib": round(found.total_memory / _GIB, 1), "capability": capability})
    return {"cpu": cpu, "gpus": gpus, "cuda_of_torch": torch.version.cuda}


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def build_tools() -> dict[str, str | None]:
    """Paths of the tools that build the C++ kernels: torch's choice of a compiler, and ninja. None if missing."""
    own_programs = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
    compiler = os.environ.get("CXX", "c++")
    return {"compiler": shutil.which(compiler), "ninja": shutil.which("ninja", path=own_programs)}


def compiler() -> dict[str, str | None]:
    """`build_tools` and the version that the compiler reports."""
    found: dict[str, str | None] = {**build_tools(), "version": None}
    if found["compiler"] is not None:
        try:
            shown = subprocess.run([found["compiler"], "--version"], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            shown = ""
        found["version"] = next(iter(shown.splitlines()), None)
    return found


def optional_parts(of_extras: list[Package]) -> list[Part]:
    """Packages of extras, and programs outside Python, installed or missing."""
    parts = [
        Part(package.name, package.installed, _PURPOSES.get(package.extra, f"extra {package.extra}"), package.fix)
        for package in of_extras
    ]
    jail = shutil.which("bwrap")
    parts.append(Part("bubblewrap", jail, "monet eval code: runs generated programs in a sandbox",
                      "Debian: apt install bubblewrap (0.8 or later; docs/suites.md: without root)"))  # fmt: skip
    for language, (groups, debian) in RUNTIMES.items():
        paths = [next(filter(None, map(shutil.which, names)), None) for names in groups]
        found = None if None in paths else ", ".join(filter(None, paths))
        parts.append(Part(f"{language} runtime", found, "monet eval code", f"Debian: apt install {debian}"))
    parts.append(
        Part(
            "browser",
            _browser(),
            "tests that look at reports and at the page of monet view",
            "playwright install chromium",
        )
    )
    return parts


def _browser() -> str | None:
    """A Chromium from the environment variables, the search path, or playwright's folder of browsers."""
    named = os.environ.get("MONET_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if named or importlib.util.find_spec("playwright") is None:
        return named
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return next((str(path) for path in sorted(folder.glob("chromium*"))), None) if folder.is_dir() else None


def variables() -> dict[str, str]:
    """The environment variables that change which code Monet runs."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def parts_as_json(parts: list[Part]) -> dict[str, dict[str, str | None]]:
    """Parts by name, as JSON objects."""
    return {part.name: {key: value for key, value in asdict(part).items() if key != "name"} for part in parts}
