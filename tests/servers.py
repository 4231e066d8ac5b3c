"""Servers on loopback: one that answers as a test says, and what is told about one that speaks S3."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes, int]], host: str = "127.0.0.1") -> Iterator[int]:
    """Its port. Of a path, `answer` gives the status, the body, and how many bytes are promised."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body, promised = answer(self.path)
            self.send_response(code)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def s3_variables(server: str) -> dict[str, str]:
    """What a process is told about a server that speaks S3; moto lets any key in."""
    keys = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1", "ENDPOINT_URL": server}
    return {f"AWS_{key}": value for key, value in {**keys, "EC2_METADATA_DISABLED": "true"}.items()}
