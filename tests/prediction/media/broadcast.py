"""Servers on loopback that send a video as cameras do: JPEGs over HTTP without an end, and RTSP."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Feed = Callable[[socket.socket], None]


@contextmanager
def serving(feed: Feed) -> Iterator[int]:
    """The port of a server that answers each connection by `feed`, in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # whoever asked may hang up
            feed(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def request(connection: socket.socket) -> str:
    """The head of one request."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(4096)
        if not part:
            raise ConnectionResetError
        head += part
    return head.decode()


def motion_jpeg(pictures: list[bytes], pause_s: float) -> Feed:
    """The pictures one after the other, then the connection ends."""

    def feed(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")
        for picture in pictures:
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            connection.sendall(head.encode() + picture + b"\r\n")
            time.sleep(pause_s)

    return feed


def ranged(data: bytes, heads: list[str]) -> Feed:
    """A file, from the byte on that is asked for; the heads of the requests go into `heads`."""

    def feed(connection: socket.socket) -> None:
        head = request(connection)
        heads.append(head)
        asked = re.search(r"Range: bytes=(\d+)-(\d*)", head, re.IGNORECASE)
        start, end = (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
        lines = f"Content-Range: bytes {start}-{end}/{len(data)}\r\nContent-Length: {end + 1 - start}\r\n"
        connection.sendall(f"HTTP/1.1 206 Partial Content\r\n{lines}Connection: close\r\n\r\n".encode())
        connection.sendall(data[start : end + 1])

    return feed


def without_length(data: bytes, *, chunked: bool) -> Feed:
    """A file of which nobody is told how long it is, nor sent a part: in chunks, or until the connection ends."""

    def feed(connection: socket.socket) -> None:
        request(connection)
        if not chunked:
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n" + data)
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

    return feed


def rtsp(transport_stream: bytes, pause_s: float) -> Feed:
    """A transport stream in RTP, interleaved with RTSP; it ends when it is over."""

    def feed(connection: socket.socket) -> None:
        while True:
            head = request(connection)
            number = next(line for line in head.split("\r\n") if line.lower().startswith("cseq"))
            more, body = "", ""
            if head.startswith("DESCRIBE"):
                body = "v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:1\r\n"
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif head.startswith("SETUP"):
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            elif head.startswith("PLAY"):
                more = "Session: 1\r\n"
            connection.sendall(f"RTSP/1.0 200 OK\r\n{number}\r\n{more}\r\n{body}".encode())
            if head.startswith("PLAY"):
                break
        size = 7 * 188
        for count, start in enumerate(range(0, len(transport_stream), size)):
            part = transport_stream[start : start + size]
            packet = struct.pack(">BBHII", 0x80, 33, count & 0xFFFF, count * 900, 1) + part
            connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            time.sleep(pause_s)

    return feed
