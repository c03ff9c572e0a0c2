"""Files on a web server, read-only."""

from __future__ import annotations

import base64
import errno
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import certifi

from physion.config.schema import shown_source, without_secrets
from physion.errors import ConfigError, DataError, TransientError
from physion.store.keys import one_line
from physion.store.protocol import MOST_READ

T = TypeVar("T")

ATTEMPTS = 5
AGAIN = (408, 429)  # statuses, besides those from 500 on, after which a retry may succeed


def opened(address: str, start: int = 0, end: int | None = None) -> http.client.HTTPResponse:
    """A server's answer to a request for a file, or for its bytes from `start` up to `end`, if it supports ranges.

    A user and password in the address are sent, but not forwarded when the server redirects us.
    """
    url = urlsplit(address)
    user, _, host = url.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(url._replace(netloc=host, fragment="")))  # noqa: S310 (http or https: the schema, and WebFolder)
    if start or end is not None:
        request.add_header("Range", f"bytes={start}-{'' if end is None else end - 1}")
    if user:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    trusted = ssl.create_default_context()  # the machine's certificates or, for images without any, certifi's
    trusted.load_verify_locations(certifi.where())
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=60, context=trusted)  # noqa: S310 (as above)
    return response


def persistently(address: str, work: Callable[[], T], say: Callable[[str], None] = lambda _: None) -> T:
    """Do work that asks a server for `address`; retry failures that may pass, a few times.

    Raises ConfigError if the address is invalid or the server refuses, TransientError if the last attempt fails.
    """
    shown = shown_source(address)
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            say(f"{shown}: {said(reason)}; attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(2 ** (attempt - 1))
        try:
            return work()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in AGAIN:
                raise ConfigError(f"{shown}: the server answers {error.code} {said(error.reason)}") from error
            reason = error
        except (http.client.InvalidURL, UnicodeError) as error:  # its text may hold a secret
            raise ConfigError(f"{shown}: not a valid address") from error
        except (OSError, http.client.HTTPException, TransientError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = error
    raise TransientError(f"{shown}: cannot be downloaded ({said(reason)}); run the same command again")


def said(reason: object) -> str:
    """What a server or a library says, in one line, without signatures in addresses or terminal control characters."""
    return one_line(without_secrets((str(reason).splitlines() or [""])[0]))


class WebFolder:
    """A folder on a web server, such as a model hub's: its files can be read by name, not listed."""

    def __init__(self, address: str) -> None:
        if urlsplit(address).scheme not in ("http", "https"):  # urllib would also open file: and ftp:
            raise ConfigError(f"{shown_source(address)}: not a web address (http or https)")
        self.address, self.uri = address.rstrip("/"), shown_source(address.rstrip("/"))

    def read(self, key: str) -> bytes | None:
        """The bytes of a small file; None if it does not exist. Raises as `persistently`, and DataError if it is not small."""

        def get() -> bytes | None:
            try:
                with opened(self._address(key)) as response:
                    return _read(response, MOST_READ + 1)
            except urllib.error.HTTPError as error:
                if error.code == http.HTTPStatus.NOT_FOUND:
                    return None
                raise

        data = persistently(self._address(key), get)
        if data is not None and len(data) > MOST_READ:
            raise DataError(f"{self.uri}/{key} is larger than {MOST_READ} bytes")
        return data

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on, fewer if it ends before. Raises what `persistently` does."""

        def get() -> bytes:
            with opened(self._address(key), start, start + length) as response:
                if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the whole file
                    _read(response, start)
                elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise TransientError("the server sent a different part than requested")
                return _read(response, length)

        return persistently(self._address(key), get)

    def _address(self, key: str) -> str:
        url = urlsplit(self.address)
        return urlunsplit(url._replace(path=f"{url.path}/{quote(key)}"))


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """At most so many bytes of an answer. Raises TransientError if the connection ended before: `read` does not tell."""
    data = response.read(most)
    if len(data) < most and response.length:
        raise TransientError(f"the connection ended {response.length} bytes early")
    return data
