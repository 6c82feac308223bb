"""`monet view`: a page on an index, served on this machine, or as a folder without a server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monet.errors import ConfigError
from monet.eval.core.loading import load_model
from monet.eval.index.index import Index
from monet.eval.view.store import Store
from monet.extras import install_command
from monet.terminal import clean

PORT = 8765


def run(
    index: Path,
    model: str | None = None,
    masks: list[Path] = [],  # noqa: B006 - shown in --help, never changed
    out: Path | None = None,
    port: int = PORT,
    open: bool = False,
    static: Path | None = None,
    experts: str = "",
    most: int = 5000,
    max_size: float = 200.0,
    device: str = "auto",
) -> None:
    """Show an index as a page: all experts, their contexts, a prompt of yours, removals, and a workshop for masks.

    The page is served on 127.0.0.1 until you press Ctrl+C. Its address has a random word, so that no other site and no
    other user can open it. With --static it is written as a folder that opens from disk or from any host.

    Args:
        index: folder of `monet index`.
        model: the indexed model. Without it, the page has no colours inside contexts, no prompt and no removals.
        masks: folders of `monet select`, or of masks that were saved on the page; the page shows which masks remove an
            expert.
        out: folder for masks that are saved on the page; if omitted, INDEX-masks next to the index. Each mask is a
            folder for `monet ablate --masks`.
        port: port of the server; 0 takes any free one.
        open: open the page in a browser, if this machine has a screen.
        static: write the page to this new folder instead. An earlier static page is replaced.
        experts: for --static: the experts of the page, separated by commas, such as 0:17,1:402,0:i3.
        most: for --static without --experts: number of experts. Those are taken whose mean weights are most
            concentrated in one label, among experts that fire at 50 tokens or more.
        max_size: for --static: refuse to write more than this many megabytes.
        device: device of the model.

    Raises:
        CheckpointError: the index is damaged, or the model or a mask is another one.
        ConfigError: the extra view is not installed, the port is taken, or an option is out of range.
    """
    opened = Index(index)
    loaded = None if model is None else load_model(model, device)
    if loaded is not None:
        opened = Index(index, loaded)
    folder = out if out is not None else index.with_name(f"{index.resolve().name}-masks")
    if static is not None:
        from monet.eval.view.static import Wanted, write

        write(Store(opened, masks, folder), loaded, static, Wanted(experts, most, max_size))
        return
    check_installed()
    with listening(port) as server:
        store = Store(opened, masks, folder)
        serve(store, loaded, server, open)


def check_installed() -> None:
    """Refuse to serve without the packages of the extra `view`.

    Raises:
        ConfigError: one is missing; the message names the command that installs it.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"the page needs {package}, which is not installed: {install_command('view')}")


def listening(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1.

    Raises:
        ConfigError: the port is taken, or is no port.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port {port} must be from 0, which takes any free one, to 65535")
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
        server.listen()  # a browser that is quicker than the server waits
    except OSError as error:
        server.close()
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another --port, or 0") from None
    return server


def _has_screen() -> bool:
    """Whether a browser can open; a browser for terminals would keep the page from being served."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def serve(store: Store, model: Any, server: socket.socket, opens: bool) -> None:
    """Serve the page until Ctrl+C.

    Args:
        store: the index.
        model: the model, or None.
        server: see `listening`.
        opens: open a browser.
    """
    import uvicorn

    from monet.eval.view.api import application
    from monet.eval.view.live import Live

    token = secrets.token_urlsafe(24)
    app = application(store, None if model is None else Live(model, store), token)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/{token}/"
    print(f"{clean(store.index.folder.name)}: {store.index.info.units.experts:,} experts", flush=True)
    print(f"open {address}\npress Ctrl+C to end", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, proxy_headers=False, server_header=False, lifespan="off",
        limit_concurrency=64, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if opens and _has_screen():
            webbrowser.open(stack.enter_context(link_file(address)).as_uri())
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        uvicorn.Server(config).run(sockets=[server])


@contextlib.contextmanager
def link_file(address: str) -> Iterator[Path]:
    """A file that only this user can read, and that leads a browser to an address.

    All users of a machine can read the arguments of a browser's process, so the secret address cannot be one of them.
    """
    with tempfile.TemporaryDirectory(prefix="monet-view-") as folder:
        path = Path(folder) / "open.html"
        path.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Open</a>'
        )
        yield path
