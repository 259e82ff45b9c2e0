"""The process around the application: its address, its memory, its end."""

import ctypes
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftbench.errors import FtbenchError, UsageError

if TYPE_CHECKING:
    import uvicorn

    from ftbench.serving.limits import Limits
    from ftbench.serving.served import Served

_LEAVE_SECONDS = 5
"""How long replies may go on once the server is told to end."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def require_libraries() -> None:
    """Check that what serves is installed.

    Raises:
        FtbenchError: it is not.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise FtbenchError(f'serving needs {error.name}; pip install "ftbench[serve]"') from error


def check_address(host: str, key: str | None) -> None:
    """See that what other machines can reach asks for a key.

    Raises:
        UsageError: it does not, or the key is none that a header can carry.
    """
    if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
        raise UsageError("the API key must be printable ASCII without blanks around it")
    if key is None and not _is_loopback(host):
        raise UsageError(f"{host} can be reached from other machines: give an --api-key (or FTBENCH_API_KEY)")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def give_memory_back() -> None:
    """Make freed memory go back at once, and keep fewer kernels: a server must not grow for days.

    What `prompt_memory` says for runs, for a process that has begun. Before torch is imported, for oneDNN's part.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            set_option(option, 4 * 2**20)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that is bound to the address.

    Raises:
        FtbenchError: it cannot be: the port is taken, say.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise FtbenchError(f"cannot listen on {host}: {error.strerror or error}") from error
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(128)
        except OSError as error:
            raise FtbenchError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another --port"
            ) from error
        yield bound


def make_server(models: "Sequence[Served]", limits: "Limits", key: str | None) -> "uvicorn.Server":
    """Return the web server; `run([socket])` serves until the process is told to end (SIGINT, SIGTERM).

    Replies on their way have a few seconds more then; what is unfinished after that is refused.
    """
    import uvicorn

    from ftbench.serving.app import build_app
    from ftbench.serving.connection import Server

    app = build_app(models, limits, key)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # who asked what is nobody's business
        server_header=False,
        lifespan="on",
        timeout_keep_alive=15,
    )
    return Server(config, app.state.engine, limits, _LEAVE_SECONDS)
