"""A server of files on the loopback, with the faults that downloads meet."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """Files and behaviour of the server, and the requests it got."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes of the next responses, which then end
    etag: str = ""
    content_type: str = "application/octet-stream"
    stall: float = 0.0  # seconds before the body
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # paths and ranges


@contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[Server]:
    """Yields a server of files by path; its fields may change meanwhile."""
    state, stopped = Server(files=dict(files or {})), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self):
            state.requests.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = self._start(content)
            if start is None:
                return
            body = content[start:]
            self.send_header("Content-Type", state.content_type)
            self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            stopped.wait(state.stall)
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def _start(self, content: bytes) -> int | None:
            """Sends the status; returns the first byte of the body, or None without one."""
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            if not (asked and state.ranges) or (condition and condition != state.etag):
                self.send_response(200)
                return 0
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            return start

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
