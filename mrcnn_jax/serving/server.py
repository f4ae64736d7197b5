"""The server: address, start, and an end that completes what has begun."""

import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from mrcnn_jax import signals
from mrcnn_jax.errors import InputError

SECONDS_TO_FINISH = 60
"""Time that requests have to be completed after a signal; a second signal does not wait."""


def bind(host: str, port: int) -> socket.socket:
    """Reserves an address for this process; connections are refused until the server runs.

    Args:
        host: name or address of this machine; "0.0.0.0" is all of its addresses.
        port: 0 takes a free one.

    Raises:
        InputError: there is no such address, or it is in use or reserved.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            try:
                bound.bind(address)
            except OSError:  # perhaps of connections that a server has left a minute ago: those may be reused
                # not before, as two sockets that may be reused share an address until one of them listens
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot serve at --host {host} --port {port}: {reason}; choose another") from error
    return bound


def url(bound: socket.socket) -> str:
    """Returns the address for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def run(app: Any, bound: socket.socket, close: Callable[[], None], started: Callable[[], None]) -> None:
    """Serves until a signal comes, and returns when all requests are answered.

    Args:
        app: an ASGI application.
        bound: from ``bind``; its caller closes it.
        close: called at the end.
        started: called when the server listens.
    """
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", loop="asyncio", http="h11",
        server_header=False, timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )  # fmt: skip
    server = _Server(config, started)

    def receive(kind: int) -> None:
        if kind == signal.SIGHUP:
            signals.detach_terminal()
        if server.should_exit:
            signals.end_process(kind, f"stopped by {signals.NAMES[kind]}")
        server.should_exit = True

    # in a thread, where uvicorn leaves the handlers of signals alone
    with ThreadPoolExecutor(1) as executor, signals.receiving(receive):
        executor.submit(server.run, [bound]).result()
        close()


class _Server(uvicorn.Server):
    """Calls a function when it listens. Its connections do not keep the address when it has ended."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]):
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for bound in sockets or ():
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._started()
