"""The C++ library is loaded as our own code, so no other user may be able to write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

from monet.kernels.decode import build

OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def loaded(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Calls to torch's loader, which builds nothing here; extensions are in `tmp_path`/shared."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "shared"))
    monkeypatch.setattr(cpp_extension, "load", lambda *_, **options: calls.append(options))
    monkeypatch.setattr(build, "library_name", lambda *_: "monet_decode_test")
    (tmp_path / "shared").mkdir(0o755)
    return calls


def planted(tmp_path: Path, mode: int = 0o755) -> Path:
    folder = tmp_path / "shared" / "monet_decode_test"
    folder.mkdir()
    library = folder / "monet_decode_test.so"
    library.write_bytes(b"code of another user")
    folder.chmod(mode)
    return folder


def writable_folder(tmp_path: Path) -> None:
    planted(tmp_path, 0o777)


def writable_library(tmp_path: Path) -> None:
    (planted(tmp_path) / "monet_decode_test.so").chmod(0o666)


def writable_parent(tmp_path: Path) -> None:
    planted(tmp_path)
    (tmp_path / "shared").chmod(0o777)


def shared_group(tmp_path: Path) -> None:
    planted(tmp_path, 0o775)
    if os.geteuid() == 0:
        os.chown(tmp_path / "shared" / "monet_decode_test", -1, OTHER)
    else:
        planted_folder = tmp_path / "shared" / "monet_decode_test"
        planted_folder.chmod(0o777)


def linked_library(tmp_path: Path) -> None:
    library = planted(tmp_path) / "monet_decode_test.so"
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")


def foreign_folder(tmp_path: Path) -> None:
    os.chown(planted(tmp_path), OTHER, OTHER)


def foreign_library(tmp_path: Path) -> None:
    os.chown(planted(tmp_path) / "monet_decode_test.so", OTHER, OTHER)


OPEN = [writable_folder, writable_library, writable_parent, shared_group, linked_library]
FOREIGN = [pytest.param(attack, marks=needs_root) for attack in (foreign_folder, foreign_library)]


@pytest.mark.parametrize("attack", [*OPEN, *FOREIGN])
def test_a_planted_library_is_not_loaded(attack, loaded, tmp_path):
    attack(tmp_path)
    with pytest.raises(PermissionError, match="set TORCH_EXTENSIONS_DIR to a folder that only you can write"):
        build.load()
    assert not loaded


@pytest.mark.parametrize("mode", [0o755, 0o1777], ids=oct)
def test_a_folder_of_ones_own_is_used(loaded, tmp_path, mode):
    (tmp_path / "shared").chmod(mode)
    build.load()
    (call,) = loaded
    assert Path(call["build_directory"]) == (tmp_path / "shared" / "monet_decode_test").resolve()


@pytest.mark.parametrize("place", ["monet_decode_test.lock", "monet_decode_test/monet.lock"])
def test_a_lock_that_is_a_link_empties_no_file(loaded, tmp_path, place):
    (tmp_path / "victim").write_text("precious")
    link = tmp_path / "shared" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "victim")
    try:
        build.load()
    except OSError:
        assert not loaded
    assert (tmp_path / "victim").read_text() == "precious"
