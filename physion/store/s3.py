"""A store in a bucket on any S3-compatible server: `s3://bucket/prefix`.

Endpoint, region, credentials and certificates come from the standard AWS sources (`AWS_ENDPOINT_URL`, `AWS_PROFILE`,
`AWS_CA_BUNDLE`, web identity, ...). Every object carries its SHA-256 in its metadata; reads are checked against that or against
the manifest's. Writes carry their MD5, which servers check. Parts of large objects instead carry a CRC32, which takes a quarter
of the time, if the server says that it checks that. boto3's own transfers do not support SHA-256 and start over completely when
a part fails, so parts are sent and fetched here, each in its own request.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import mmap
import os
import re
import shutil
import threading
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from physion.errors import ConfigError, DataError, TransientError
from physion.store.checksums import sha256_of
from physion.store.disk_errors import clear_errors
from physion.store.keys import checked_key, is_key
from physion.store.protocol import MOST_READ, Upload
from physion.store.s3_errors import FAILURES, Damaged
from physion.store.s3_requests import Beyond, Missing, Patience, Refused, Requests, Unsupported
from physion.store.scratch import make_scratch, scratch

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef, HeadObjectOutputTypeDef

    from physion.store.cache import ShardCache

T = TypeVar("T")
MiB = 1 << 20
PART = 16 * MiB  # part of a large object: one request
MOST_PARTS = 10_000  # S3's limit
LARGE = 1 << 30  # bytes: of a larger object the server is asked first, for a manifest may say anything
PIECE = 256 * 1024  # bytes read from a connection at once: small enough to be written while still in the processor's cache
PROBE = ".physion/conditional-write"
CRC32_PROBE = ".physion/crc32"
IF_ABSENT = {"IfNoneMatch": "*"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Send(Protocol):
    """A way to send an object."""

    __name__: str

    def __call__(self, key: str, body: bytes | Path, metadata: dict[str, str], *, conditional: bool) -> bool:
        """Returns whether the server accepted it."""


class S3Store:
    """Objects in a bucket, below a prefix.

    `write(if_absent=True)` and `upload` send `If-None-Match: *`, so exactly one of several writers wins. If a server does not
    support or ignores that (tested once per process, on a separate object), the store checks before and after every such write:
    only an object that is then ours counts as written. One case remains: a second runner that replaces a file a moment later,
    with floats that differ in the last bit. Readers of that artifact are then told that it is corrupt. They never get content
    that does not match the manifest.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        scratch: Path,
        cache: ShardCache | None = None,
        patience: Patience | None = None,
        part: int = PART,
    ) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.uri = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self.cache, self._scratch_root, self._part = cache, scratch, part
        self._requests = Requests(self.uri, patience or Patience())
        self._conditional: dict[str, bool] = {}  # way of sending -> whether the server honors conditions
        self._crc32: bool | None = None  # whether the server checks CRC32; None until it was asked
        self._fetched: Path | None = None

    def scratch(self) -> Path:
        """A new local directory."""
        with clear_errors(f"store {self.uri}: cannot make a scratch directory"):
            return make_scratch(self._scratch_root, private=True)

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None if it does not exist."""
        return self._head(key, lambda head: head["ContentLength"])

    def digest(self, key: str) -> str | None:
        """The SHA-256 that an object carries, or that of its bytes if it carries none; None if it does not exist."""
        carried = self._head(key, lambda head: head["Metadata"].get("sha256", ""))
        if carried != "":
            return carried
        try:
            path = self.fetch(key)
        except FileNotFoundError:
            return None
        found = sha256_of(path)
        path.unlink()
        return found

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None if it does not exist."""

        def get(client: S3Client) -> bytes:
            answer = client.get_object(Bucket=self.bucket, Key=self._key(key))
            if answer["ContentLength"] > MOST_READ:
                raise Damaged(f"{answer['ContentLength']}", f"{self.uri}/{key} is far too large for what it should be")
            data = answer["Body"].read()
            found = hashlib.sha256(data).hexdigest()
            if answer["Metadata"].get("sha256", found) != found:
                raise Damaged(found, f"{self.uri}/{key} is corrupt (its SHA-256 is not the one that it carries)")
            return data

        try:
            return self._requests.attempt(f"read {key}", get)
        except Missing:
            return None

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on, fewer if it ends before. Raises DataError if there is no such object."""

        def get(client: S3Client) -> bytes:
            answer = client.get_object(Bucket=self.bucket, Key=self._key(key), Range=f"bytes={start}-{start + length - 1}")
            data = answer["Body"].read()
            whole = int(answer["ContentRange"].rpartition("/")[2])
            end = min(start + length, whole)
            if answer["ContentRange"] != f"bytes {start}-{end - 1}/{whole}" or len(data) != end - start:
                raise Damaged
            return data

        try:
            return self._requests.attempt(f"read {key}", get)
        except Missing as error:
            raise DataError(f"{self.uri}/{key} is missing") from error
        except Beyond:
            return b""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent`, only if there is none yet. Returns whether it wrote."""
        return self._put(key, data, hashlib.sha256(data).hexdigest(), self._send, if_absent=if_absent)

    def upload(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        """Move a local file into the store unless the object already exists. Returns whether it did."""
        with clear_errors(f"store {self.uri}: cannot write {key}"):
            sha256 = sha256 or sha256_of(path)
            if path.stat().st_size <= self._part:
                made = self._put(key, path, sha256, self._send, if_absent=True)
            else:
                made = self.size(key) is None and self._put(key, path, sha256, self._send_parts, if_absent=True)
            path.unlink()
        return made

    def fetch(self, key: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local, read-only file with the verified content of the object.

        Raises FileNotFoundError if there is none, DataError if it does not match `size` and `sha256`.
        """
        if size is not None and size > LARGE and self.size(key) != size and (there := self.size(key)) != size:
            if there is None:
                raise FileNotFoundError(f"{self.uri}/{key}")
            raise DataError(f"{self.uri}/{key} is corrupt (it has {there} bytes, not {size})")  # before room is made for it
        if sha256 is not None and size is not None and self.cache is not None:
            return self.cache.get(sha256, size, partial(self._download, key, size, sha256))
        if self._fetched is None or not self._fetched.exists():
            self._fetched = self.scratch()
            weakref.finalize(self, _remove, self._fetched, os.getpid())
        path = self._fetched / uuid.uuid4().hex
        known: tuple[int, str | None] | None = None if size is None or sha256 is None else (size, sha256)
        before = known
        while True:
            facts = known or self._head(key, lambda head: (head["ContentLength"], head["Metadata"].get("sha256")))
            if facts is None:
                raise FileNotFoundError(f"{self.uri}/{key}")
            try:
                self._download(key, *facts, path)
                return path
            except DataError:  # unless the header was damaged in transit, or belongs to an object that has been replaced since
                if facts == before:
                    raise
                before = facts

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), sorted."""
        below = self._key(prefix) + "/"

        def ask(client: S3Client, after: dict[str, Any]) -> Any:
            page = client.list_objects_v2(Bucket=self.bucket, Prefix=below, **after)
            cut_off = not page["IsTruncated"] and page.get("NextContinuationToken")
            if cut_off or not all(item["Key"].startswith(below) for item in page.get("Contents", [])):
                raise Damaged  # as far as that can be seen: a listing has no checksum
            return page

        pages = self._pages(f"list {prefix}", ask, ContinuationToken="NextContinuationToken")
        found = (self._name(item["Key"]) for page in pages for item in page.get("Contents", []))
        return sorted(filter(is_key, found))  # some servers list folders, `a/b/`

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        with contextlib.suppress(Missing):
            self._requests.attempt(f"delete {key}", lambda client: client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def age(self, key: str) -> float | None:
        """Seconds since an object was written, by the server's clock; None if it does not exist."""
        return self._head(key, lambda head: (_served(head) - _utc(head["LastModified"])).total_seconds())

    def unfinished_uploads(self) -> Sequence[Upload]:
        """Multipart uploads below the prefix that are neither completed nor aborted. None if the server cannot list them."""
        below = f"{self.prefix}/" if self.prefix else ""

        def ask(client: S3Client, after: dict[str, Any]) -> Any:
            return client.list_multipart_uploads(Bucket=self.bucket, Prefix=below, **after)

        marks = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        found = []
        with contextlib.suppress(Unsupported):
            for page in self._pages("list unfinished uploads", ask, **marks):
                for item in page.get("Uploads", []):
                    if not is_key(self._name(item["Key"])):
                        continue
                    with contextlib.suppress(Missing):  # completed or aborted meanwhile
                        found.append(self._unfinished(item["Key"], item["UploadId"], _utc(item["Initiated"])))
        return found

    def _unfinished(self, key: str, upload: str, begun: datetime) -> Upload:
        """What an upload has sent so far, and when it last did."""

        def ask(client: S3Client, after: dict[str, Any]) -> Any:
            page = client.list_parts(Bucket=self.bucket, Key=key, UploadId=upload, **after)
            return {**page, "served": _served(page)}

        size, last, now = 0, begun, begun
        for page in self._pages(f"look at the upload of {key}", ask, PartNumberMarker="NextPartNumberMarker"):
            now = page["served"]
            for part in page.get("Parts", []):
                size, last = size + part["Size"], max(last, _utc(part["LastModified"]))
        return Upload(self._name(key), upload, size, max(0.0, (now - last).total_seconds()))

    def abort(self, upload: Upload) -> None:
        """Remove the parts of an unfinished upload, if they still exist."""
        where: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(upload.key), "UploadId": upload.id}
        with contextlib.suppress(Missing):
            self._requests.attempt(f"abort the upload of {upload.key}", lambda client: client.abort_multipart_upload(**where))

    def clock_skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the server's."""

        def ask(client: S3Client) -> float:
            served = _served(client.head_bucket(Bucket=self.bucket))
            return (datetime.now(UTC) - served).total_seconds()

        return self._requests.attempt("ask for the time", ask)

    def create(self) -> None:
        """Create the bucket, unless it exists and is ours."""

        def make(client: S3Client) -> None:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                region = client.meta.region_name
                # The oldest region is the default, and naming it is an error.
                where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
                client.create_bucket(Bucket=self.bucket, **where)

        self._requests.attempt(f"make bucket {self.bucket}", make)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetched": None}

    def _key(self, key: str) -> str:
        """The key in the bucket."""
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _name(self, key: str) -> str:
        """The key in the store for a key in the bucket."""
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key

    def _pages(self, doing: str, ask: Callable[..., Any], **marks: str) -> Iterator[Any]:
        """The pages of a listing; `marks` maps arguments of the next request to the fields of a page that hold their values."""

        def turn(client: S3Client, after: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
            page = ask(client, after)
            if not page["IsTruncated"]:
                return page, None
            after = {argument: page[name] for argument, name in marks.items() if page.get(name)}
            if not after:
                raise Damaged
            return page, after

        after: dict[str, Any] | None = {}
        while after is not None:
            page, after = self._requests.attempt(doing, partial(turn, after=after))
            yield page

    def _head(self, key: str, facts: Callable[[HeadObjectOutputTypeDef], T]) -> T | None:
        """What `facts` returns for an object's header; None if the object does not exist."""
        try:
            return self._requests.attempt(
                f"look at {key}", lambda client: facts(client.head_object(Bucket=self.bucket, Key=self._key(key)))
            )
        except Missing:
            return None

    def _put(self, key: str, body: bytes | Path, sha256: str, send: Send, *, if_absent: bool) -> bool:
        conditional = if_absent and self._honours_conditions(send)
        if if_absent and not conditional and self.size(key) is not None:
            return False
        writer = uuid.uuid4().hex
        sent = send(key, body, {"sha256": sha256, "writer": writer}, conditional=conditional)
        if sent and send == self._send and conditional == if_absent:
            return True
        # Refused because of another's object, or of ours if the answer to an earlier attempt was lost; or assembled from parts.
        standing = self._head(key, lambda head: (head["Metadata"].get("writer"), head["ContentLength"]))
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        if standing is not None and standing[0] != writer:
            return False
        if standing == (writer, size):
            return True
        if standing is not None:
            self.delete(key)
        raise TransientError(f"store {self.uri}: {key} did not arrive whole; run the same command again")

    def _honours_conditions(self, send: Send) -> bool:
        """Whether this server honors conditions for this way of sending; tested once per process."""
        known = self._conditional
        if send.__name__ not in known:
            with scratch(self._scratch_root, private=True) as folder:
                body = folder / "probe"
                body.write_bytes(b"This server was asked whether it honours If-None-Match.\n")
                try:
                    known[send.__name__] = not all(send(PROBE, body, {}, conditional=True) for _ in range(2))
                except Unsupported:
                    known[send.__name__] = False
        return known[send.__name__]

    def _send(self, key: str, body: bytes | Path, metadata: dict[str, str], *, conditional: bool) -> bool:
        """Send an object in one request. Returns whether the server accepted it."""
        data = body if isinstance(body, bytes) else body.read_bytes()
        rest: dict[str, Any] = {"Metadata": metadata, **(IF_ABSENT if conditional else {})}
        try:
            self._requests.attempt(
                f"write {key}",
                lambda client: client.put_object(
                    Bucket=self.bucket, Key=self._key(key), Body=data, ContentMD5=_md5(data), **rest
                ),
            )
        except Refused:
            return False
        return True

    def _send_parts(self, key: str, body: bytes | Path, metadata: dict[str, str], *, conditional: bool) -> bool:
        """Send an object in many requests at once. Returns whether the server accepted it and has all of it."""
        assert isinstance(body, Path)
        doing, size = f"write {key}", body.stat().st_size
        length = max(self._part, -(-size // MOST_PARTS))
        where: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(key)}
        crc32 = self._checks_crc32()
        options: dict[str, Any] = {"Metadata": metadata, **({"ChecksumAlgorithm": "CRC32"} if crc32 else {})}
        upload = self._requests.attempt(doing, lambda client: client.create_multipart_upload(**where, **options)["UploadId"])

        def send_part(number: int) -> CompletedPartTypeDef:
            with body.open("rb") as file:
                file.seek((number - 1) * length)
                data = file.read(length)
            check: dict[str, Any] = {"ChecksumCRC32": _crc32(data)} if crc32 else {"ContentMD5": _md5(data)}
            rest: dict[str, Any] = {**where, **check, "UploadId": upload, "PartNumber": number}
            etag = self._requests.attempt(doing, lambda client: client.upload_part(Body=data, **rest)["ETag"])
            named: CompletedPartTypeDef = {"PartNumber": number, "ETag": etag}
            return {**named, "ChecksumCRC32": check["ChecksumCRC32"]} if crc32 else named

        try:
            parts = list(self._requests.at_once([partial(send_part, number) for number in range(1, -(-size // length) + 1)]))
            rest: dict[str, Any] = {"MultipartUpload": {"Parts": parts}, **(IF_ABSENT if conditional else {})}
            self._requests.attempt(doing, lambda client: client.complete_multipart_upload(**where, UploadId=upload, **rest))
            return True
        except Missing:  # completed by an attempt whose answer was lost, if the object is ours; the caller checks
            return False
        except BaseException as error:
            with contextlib.suppress(*FAILURES):  # leave no parts behind, if the server can be reached at all
                self._requests.client().abort_multipart_upload(**where, UploadId=upload)
            if isinstance(error, Refused):
                return False
            raise

    def _checks_crc32(self) -> bool:
        """Whether the server checks a CRC32, which it shows by repeating it; tested once per process."""
        if self._crc32 is None:
            data = b"This server was asked whether it checks CRC32.\n"
            where: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(CRC32_PROBE)}
            try:
                answer = self._requests.attempt(
                    "ask for CRC32", lambda client: client.put_object(**where, Body=data, ChecksumCRC32=_crc32(data))
                )
                self._crc32 = answer.get("ChecksumCRC32") == _crc32(data)
            except Unsupported:
                self._crc32 = False
        return self._crc32

    def _download(self, key: str, size: int, sha256: str | None, path: Path) -> bool:
        """Fetch an object of known size into a file, in many requests at once; returns whether it was checked on arrival."""
        corrupt = f"{self.uri}/{key} is corrupt (its SHA-256 is not the manifest's)"
        writing = threading.Lock()  # a file takes one writer at a time; the others would spin in the kernel

        def fetch_part(start: int) -> None:
            end = min(size, start + self._part)

            def get(client: S3Client) -> None:
                answer = client.get_object(Bucket=self.bucket, Key=self._key(key), Range=f"bytes={start}-{end - 1}")
                whole = answer.get("ContentRange", "").rpartition("/")[2]
                if whole not in ("", str(size)):
                    raise Damaged(whole, corrupt)
                if not whole or answer["ContentLength"] != end - start:
                    raise Damaged
                with path.open("r+b") as file:
                    file.seek(start)
                    while piece := answer["Body"].read(PIECE):
                        with writing:
                            file.write(piece)

            try:
                self._requests.attempt(f"fetch {key}", get)
            except Beyond as error:
                raise Damaged("a shorter one", corrupt) from error

        def fetch(_: S3Client) -> None:
            digest = hashlib.sha256()
            with path.open("w+b") as file:
                file.truncate(size)
                starts = range(0, size, self._part)
                for start, _done in zip(starts, self._requests.at_once([partial(fetch_part, s) for s in starts]), strict=True):
                    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                        digest.update(view[start : start + self._part])
            if sha256 not in (None, digest.hexdigest()):
                raise Damaged(digest.hexdigest(), corrupt)

        try:
            with clear_errors(f"store {self.uri}: cannot fetch {key}"):
                self._requests.attempt(f"fetch {key}", fetch)
        except Missing:
            path.unlink()
            raise FileNotFoundError(f"{self.uri}/{key}") from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return sha256 is not None


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`.

    Raises ConfigError.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"store {uri}: '{bucket}' is not a valid bucket name (3 to 63 of a-z, 0-9, '-' and '.'): s3://bucket/prefix"
        )
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ConfigError(f"store {uri}: a prefix must not have an empty part, '.' or '..': s3://bucket/prefix")
    return bucket, prefix


def _served(answer: Any) -> datetime:
    """When the server says it answered."""
    return _utc(parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]))


def _utc(moment: datetime) -> datetime:
    """A server's time, which is UTC even if its zone was damaged in transit."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork that drops its copy of the store
        shutil.rmtree(folder, ignore_errors=True)
