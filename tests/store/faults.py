"""A proxy before an S3 server that is as bad as a network can be, by a seeded plan."""

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter

FAULTS = (
    "503",
    "429",
    "cut off",
    "answer lost",
    "reset mid-body",
    "truncated",
    "flipped down",
    "flipped up",
    "flipped error",
    "stalled",
    "slow",
)


class FaultProxy:
    """Forwards requests to a server, one a connection; of a share `rate` of them something goes wrong.

    `faults` counts what did. `without` are request headers it takes away, `unsupported` ones it answers with 501. With `tls`,
    an ssl.SSLContext, it talks TLS. Bodies are spoiled only where they are an object's or say what is wrong: against a listing
    that was changed on its way without leaving a trace there is nothing but TLS.
    """

    def __init__(self, target, *, seed=0, rate=0.0, kinds=FAULTS, retry_after=0, tls=None, without=(), unsupported=()):
        self.target, self.rate, self.kinds, self.retry_after, self.tls = target, rate, kinds, retry_after, tls
        self.without, self.unsupported = without, unsupported
        self.faults, self.requests = Counter(), []
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _run(self):
        async def serve():
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 26, ssl=self.tls)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(serve())
        self._loop.close()

    async def _connected(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"\r\nexpect:" in head.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(_length(head))
            await self._answer(head, body, writer)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _answer(self, head, body, writer):
        line = head.split(b"\r\n", 1)[0].decode()
        self.requests.append(line)
        fault = self._fault(line, body)
        if fault != "flipped error":
            self.faults[fault] += 1
        if fault == "503":
            return _refuse(writer, "503 Slow Down", "SlowDown")
        if fault == "429":
            return _refuse(writer, "429 Too Many Requests", "TooManyRequests", f"Retry-After: {self.retry_after}\r\n")
        if any(f"\r\n{name}:".encode() in head.lower() for name in self.unsupported):
            return _refuse(writer, "501 Not Implemented", "NotImplemented")
        if fault == "cut off":
            return _reset(writer)
        if fault == "stalled":
            return await asyncio.sleep(600)
        if fault == "flipped up":
            body = self._flip(body)
        head, body = await self._forward(head, body)
        if fault == "answer lost":
            return _reset(writer)
        if fault == "truncated":
            body = body[: self._draw.randrange(len(body))]
            head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % len(body), head)
            head = re.sub(rb"^HTTP/1.1 206 \S+", b"HTTP/1.1 200 OK", head)
        if fault == "flipped error":
            fault = fault if body and head.split()[1] >= b"400" else None
            self.faults[fault] += 1
        if fault in ("flipped down", "flipped error"):
            body = self._flip(body)
        writer.write(head)
        if fault == "reset mid-body":
            writer.write(body[: self._draw.randrange(len(body) + 1)])
            with contextlib.suppress(OSError):
                await writer.drain()
            return _reset(writer)
        if fault == "slow":
            step = len(body) // 8 + 1
            for start in range(0, len(body), step):
                writer.write(body[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.005)
            return None
        writer.write(body)
        return None

    def _fault(self, line, body):
        """What goes wrong with this request; None mostly. Bodies are spoiled where there is one and it is an object's."""
        if self._draw.random() >= self.rate:
            return None
        method, path, _ = line.split()
        of_object = len(path.partition("?")[0].split("/")) > 3
        kinds = list(self.kinds)
        if method != "GET" or not of_object:
            kinds = [kind for kind in kinds if kind not in ("truncated", "flipped down")]
        if method != "PUT" or not body:
            kinds = [kind for kind in kinds if kind != "flipped up"]
        return self._draw.choice(kinds) if kinds else None

    def _flip(self, body):
        body = bytearray(body)
        if body:
            body[self._draw.randrange(len(body))] ^= 1 << self._draw.randrange(8)
        return bytes(body)

    async def _forward(self, head, body):
        """The server's answer: head and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target, limit=1 << 26)
        gone = ("connection", "expect", *self.without)
        lines = [line for line in head.split(b"\r\n") if line.partition(b":")[0].decode("latin-1").lower() not in gone]
        writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + body)
        try:
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head:
            raise ConnectionResetError
        return head + b"\r\n\r\n", body


def _length(head):
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _refuse(writer, status, code, headers=""):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as planned</Message></Error>"
    writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())


def _reset(writer):
    """End the connection as a machine does that knows nothing of it any more."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# faults.py PORT SEED RATE: prints its address, and for each line that it is given what went wrong so far
if __name__ == "__main__":
    with FaultProxy(int(sys.argv[1]), seed=int(sys.argv[2]), rate=float(sys.argv[3])) as proxy:
        print(proxy.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({kind: times for kind, times in proxy.faults.items() if kind}), flush=True)
