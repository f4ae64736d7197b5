"""Requests to an ASGI application without sockets."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

BOUNDARY = "limit"


class Answer(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: Any, method: str, path: str, body: Iterable[bytes] = (b"",), headers: dict[str, str] | None = None,
    ends: bool = True,
) -> Answer:  # fmt: skip
    """Sends a request whose body comes in chunks, and perhaps never ends; returns the response."""
    path, _, query = path.partition("?")
    named = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "headers": named, "scheme": "http",
        "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    chunks, sent = iter([*body]), []
    coming = next(chunks, b"")

    async def receive() -> dict[str, Any]:
        nonlocal coming
        chunk, coming = coming, next(chunks, None)
        if chunk is None:
            await asyncio.Event().wait()  # the client waits for the response
        return {"type": "http.request", "body": chunk, "more_body": coming is not None or not ends}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], fields, b"".join(message.get("body", b"") for message in sent[1:]))


def call(app: Any, *arguments: Any, **options: Any) -> Answer:
    """Does the same outside of a coroutine."""
    return asyncio.run(request(app, *arguments, **options))


def form(data: bytes, name: str = "image", filename: str = 'filename="photo.png"') -> bytes:
    """Returns the body of a form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; {filename}\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
