"""The address of a server: reserved before the model is loaded, and free again at once."""

import socket
from threading import Event, Thread

import pytest
import uvicorn

from mrcnn_jax.errors import InputError
from mrcnn_jax.serving import server


def test_an_address_is_reserved_before_the_server_listens():
    with server.bind("127.0.0.1", 0) as bound:
        host, port = bound.getsockname()
        with pytest.raises(InputError, match=f"--host {host} --port {port}: .* in use; choose another$"):
            server.bind(host, port)


def test_a_server_can_be_started_again_at_once():
    started = Event()
    with server.bind("127.0.0.1", 0) as bound:
        address = bound.getsockname()
        running = server._Server(uvicorn.Config(_answer, lifespan="off", log_level="error"), started.set)
        thread = Thread(target=running.run, args=([bound],))
        thread.start()
        assert started.wait(10)
        with socket.create_connection(address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while client.recv(1000):  # the server closes first, so that its end of the connection waits
                pass
        running.should_exit = True
        thread.join()
    with server.bind(*address) as again:
        assert again.getsockname() == address


async def _answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
