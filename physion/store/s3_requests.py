"""Requests to an S3 server: one client per process, many requests at once, retried while the failure may pass."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from physion.errors import ConfigError, DataError, TransientError
from physion.progress import say
from physion.store.s3_errors import FAILURES, KEYS, Damaged, diagnose

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")
AT_ONCE = 10
SILENCE = 10.0  # seconds between messages about failures
LONGEST_WAIT = 120.0  # seconds, whatever the server's Retry-After says


class Missing(Exception):
    """There is no such object (or multipart upload)."""


class Refused(Exception):
    """The condition of a conditional write does not hold."""


class Beyond(Exception):
    """The object ends before the requested range."""


class Unsupported(ConfigError):
    """The server does not support the request."""


_EXPECTED = {"NoSuchKey": Missing, "NoSuchUpload": Missing, "PreconditionFailed": Refused, "InvalidRange": Beyond}
_UNSUPPORTED = {"501", "NotImplemented", "InvalidArgument", "InvalidRequest"}


@dataclass(frozen=True)
class Patience:
    """How long to retry a request: timeouts in seconds, and random pauses between attempts of up to `base * 2**n` and `cap`."""

    attempts: int = 10
    base: float = 0.5
    cap: float = 20.0
    connect: float = 10.0
    read: float = 30.0


class Requests:
    """Requests for the store at `uri`. boto3's own retries are off: they do not cover answers that break off half-way."""

    def __init__(self, uri: str, patience: Patience) -> None:
        self.uri, self.patience = uri, patience
        self._process, self._next_word = 0, 0.0
        self._client: S3Client | None = None
        self._pool: ThreadPoolExecutor | None = None

    def attempt(self, doing: str, request: Callable[[S3Client], T]) -> T:
        """What `request` returns; retried after a random pause while the failure may pass.

        Raises Missing, Refused, Beyond; DataError if the same wrong content came twice; ConfigError (such as Unsupported) for
        what a person has to fix. Such an answer counts only once the server has given it twice, because a request damaged in
        transit also looks wrongly signed, or signed by nobody. Raises TransientError if the last attempt failed.
        """
        patience = self.patience
        wrong: str | None = None
        said = ""
        for attempt in range(1, patience.attempts + 1):
            try:
                return request(self.client())
            except (*FAILURES, Damaged) as error:
                found = diagnose(error, self._client.meta.endpoint_url if self._client else "S3")
                problem = f"store {self.uri}: cannot {doing}: {found.what}; {found.advice}"
                if not found.heals:
                    if found.code in _EXPECTED:
                        raise _EXPECTED[found.code](problem) from error
                    if found.code in ("", said):
                        raise (Unsupported if found.code in _UNSUPPORTED else ConfigError)(problem) from error
                    said = found.code
                if isinstance(error, Damaged) and error.content is not None:
                    if error.content == wrong:
                        raise DataError(error.verdict) from error
                    wrong = error.content
                if attempt == patience.attempts:
                    raise TransientError(f"{problem}, then run the same command again ({attempt} attempts)") from error
                if attempt > 2:
                    self._tell(f"{problem}; trying again")
                pause = random.uniform(0, min(patience.cap, patience.base * 2**attempt))
                time.sleep(min(LONGEST_WAIT, max(found.retry_after, pause)))
        raise AssertionError("no attempt was made")

    def at_once(self, jobs: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Results of the jobs, in order; AT_ONCE run at a time. After a failure no more start."""
        self.client()
        assert self._pool is not None
        futures = [self._pool.submit(job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _tell(self, problem: str) -> None:
        """Say what is going on, but rarely: many requests may fail for the same reason."""
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + SILENCE
            say(problem)

    def client(self) -> S3Client:
        """This process's client: sockets and threads do not survive a fork."""
        if self._client is None or self._process != os.getpid():
            config = Config(
                connect_timeout=self.patience.connect,
                read_timeout=self.patience.read,
                retries={"total_max_attempts": 1},
                max_pool_connections=2 * AT_ONCE,
                tcp_keepalive=True,
                s3={"payload_signing_enabled": False},  # the checksum of a body is signed instead
                # Some servers refuse checksums newer than MD5; S3Store sends them where the server accepts them.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            try:
                client = boto3.session.Session().client("s3", config=config)
            except ValueError as error:
                raise ConfigError(f"store {self.uri}: AWS_ENDPOINT_URL is not http(s)://host[:port]") from error
            if "@" in urlsplit(client.meta.endpoint_url).netloc:
                raise ConfigError(f"store {self.uri}: AWS_ENDPOINT_URL holds credentials; {KEYS}")
            self._pool = ThreadPoolExecutor(AT_ONCE, "s3")
            self._process, self._client = os.getpid(), client
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_pool": None}
