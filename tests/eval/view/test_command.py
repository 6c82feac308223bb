"""`monet view`: its socket, its errors, and a served page."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from monet import cli
from monet.errors import ConfigError
from monet.eval.view import command


def test_a_taken_port_is_an_error_with_a_fix():
    with command.listening(0) as server:
        port = server.getsockname()[1]
        assert server.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match="--port"):
            command.listening(port)
    with pytest.raises(ConfigError, match="65535"):
        command.listening(99999)


def test_a_missing_package_is_an_error_with_a_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"uvicorn.*view"):
        command.check_installed()


def test_a_folder_that_is_no_index_is_refused(tmp_path, capsys):
    assert cli.main(["view", str(tmp_path)]) == 4
    assert "monet index" in capsys.readouterr().err


@pytest.mark.slow
def test_the_printed_address_shows_the_page(view_folder):
    words = [sys.executable, "-m", "monet", "view", str(view_folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next(found[1] for line in process.stdout if (found := re.match(r"open (\S+)", line)))
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", address)
            assert b"main.js" in urllib.request.urlopen(address).read()
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(address[:-2] + "x/")
        finally:
            process.terminate()
        assert process.wait(20) is not None
