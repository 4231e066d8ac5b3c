"""A proxy on loopback that misbehaves as it is told, in front of a server that does not."""

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = tuple[str, float] | None  # ("status", 503), ("slow", seconds), ("cut", 0): half an answer, ("drop", 0): none


class FaultyServer(ThreadingHTTPServer):
    """`fault(method, path)` says what goes wrong with a request."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = urlsplit(behind).netloc
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.faults = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: connections are dropped on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind, value = self.server.fault(self.command, self.path) or ("", 0.0)
        self.server.faults += bool(kind)
        if kind == "status":
            self.send_response(int(value))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == "drop":
            self.close_connection = True
            return
        time.sleep(value)
        line = http.client.HTTPConnection(self.server.behind, timeout=30)
        passed = {name: text for name, text in self.headers.items() if name.lower() not in ("expect", "connection")}
        line.request(self.command, self.path, body, passed)
        given = line.getresponse()
        content = given.read()
        self.send_response(given.status)
        for name, text in given.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, text)
        length = given.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)
        self.close_connection = kind == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
