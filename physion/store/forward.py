"""One port of a server on loopback, opened to other machines: python -m physion.store.forward PORT SERVER_PORT

SeaweedFS binds all of its ports to one address, and most of them ask for no key: its filer gives and takes every object, and
the gRPC twin of its S3 port takes new identities. In compose and in the cluster it listens on loopback, and only this does not.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress

CHUNK = 2**20  # bytes that move at once, from socket to socket within the kernel
WAITING = 1024  # connections


def forward(listener: socket.socket, port: int) -> None:
    """Connect whoever comes to a port of this machine's loopback, for ever."""
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else one whose machine died stays
        threading.Thread(target=_join, args=(client, port), daemon=True).start()


def listening(port: int) -> socket.socket:
    """A socket that listens on every address of this machine."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=WAITING, dualstack_ipv6=both)


def _join(client: socket.socket, port: int) -> None:
    with client, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_move, args=(server, client), daemon=True)
        back.start()
        _move(client, server)
        back.join()


def _move(source: socket.socket, target: socket.socket) -> None:
    """Move bytes until the source has no more; then the target hears so. When an end is gone, so is the other."""
    read, write = os.pipe()
    try:
        while moved := os.splice(source.fileno(), write, CHUNK):
            while moved:
                moved -= os.splice(read, target.fileno(), moved)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(read)
        os.close(write)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection takes six
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which the first process of a container has to ask for
    forward(listening(int(sys.argv[1])), int(sys.argv[2]))
