"""What only a store on a network has: faults, certificates, credentials, servers that lack something."""

import datetime
import hashlib
import http.server
import ipaddress
import json
import logging
import os
import pickle
import random
import re
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from faults import FAULTS, FaultProxy

from physion.errors import ConfigError, DataError, TransientError
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.cache import ShardCache
from physion.store.s3 import MiB
from physion.store.s3_requests import Patience
from physion.store.server import Server
from physion.store.uri import open_store

BIG = 6 * MiB  # two parts
HASTY = Patience(attempts=3, base=0.01, cap=0.02, connect=1.0, read=1.0)
BUSY = Patience(attempts=8, base=0.005, cap=0.02, connect=2.0, read=0.7)
TEST_FAULTS = int(os.environ.get("PHYSION_TEST_FAULTS", "1000"))
TEST_SEED = int(os.environ.get("PHYSION_TEST_SEED", "20241"))


def port_of(server):
    return int(server.endpoint.rpartition(":")[2])


@pytest.fixture
def through(s3, monkeypatch):
    """A proxy before the server, which the environment then names."""
    proxies = []

    def make(**options):
        proxy = FaultProxy(port_of(s3), **options).__enter__()
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    yield make
    for proxy in proxies:
        proxy.__exit__()


def file_of(store, data):
    path = store.scratch() / "file"
    path.write_bytes(data)
    return path


def warm(store):
    """The store connected, and knowing its server."""
    store.write("warm", b"", if_absent=True)
    store.upload("warm-big", file_of(store, bytes(BIG)))
    return store


def raw():
    """boto3 itself, as the environment says."""
    return boto3.client("s3")


def uploads(store):
    return raw().list_multipart_uploads(Bucket="tests", Prefix=store.prefix).get("Uploads", [])


# Every kind of fault heals, and what never heals ends clearly.


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_heals(s3_store, through, kind):
    store, data = s3_store(patience=BUSY), os.urandom(BIG)
    small = os.urandom(2000)  # of a byte, two truncations in a row would be the same wrong content, which is believed
    proxy = through(kinds=[kind], rate=0.3, seed=1)
    for number in range(3):
        assert store.upload(f"a/{number}", file_of(store, data))
        assert not store.write(f"a/{number}", b"late", if_absent=True)
        assert store.write(f"b/{number}", small)
        assert [store.read(f"none/{other}") for other in range(10)] == [None] * 10
    for number in range(3):
        assert store.fetch(f"a/{number}", size=BIG, sha256=hashlib.sha256(data).hexdigest()).read_bytes() == data
        assert store.fetch(f"a/{number}").read_bytes() == data
        assert store.read(f"b/{number}") == small
    assert store.list("a") == [f"a/{number}" for number in range(3)]
    assert proxy.faults[kind] > 1
    assert store._requests.client().meta.endpoint_url == proxy.url


@pytest.mark.parametrize("kind", ["503", "429", "cut off", "answer lost", "reset mid-body", "stalled"])
def test_a_fault_that_stays_is_worth_a_retry_later(s3_store, through, kind):
    store = s3_store(patience=HASTY)
    store.write("a", b"data")
    through(kinds=[kind], rate=1.0)
    spoiled = s3_store(patience=HASTY)
    with pytest.raises(TransientError, match=r"cannot read a: .*; .*, then run the same command again \(3 attempts\)"):
        spoiled.read("a")


@pytest.mark.parametrize("kind", ["truncated", "flipped down"])
def test_wrong_bytes_are_never_returned(s3_store, through, kind):
    store, data = s3_store(), os.urandom(3 * MiB)
    store.write("a/small", b"some bytes")
    store.upload("a/big", file_of(store, data))
    through(kinds=[kind], rate=1.0)
    spoiled = s3_store(patience=HASTY)
    for read in (
        lambda: spoiled.read("a/small"),
        lambda: spoiled.fetch("a/big"),
        lambda: spoiled.fetch("a/big", size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    ):
        with pytest.raises(TransientError, match="check the network"):
            read()


def test_wrong_bytes_are_never_stored(s3_store, through):
    store = warm(s3_store())
    through(kinds=["flipped up"], rate=1.0)
    spoiled = s3_store(patience=HASTY)
    spoiled._conditional.update(store._conditional)
    spoiled._crc32 = store._crc32
    for size in (10, BIG):
        with pytest.raises(TransientError, match="cannot write a: BadDigest"):
            spoiled.upload("a", file_of(spoiled, os.urandom(size)))
    assert store.size("a") is None
    assert uploads(store) == []


class DamagedOnce(FaultProxy):
    """Flips a bit in the head of the next request, or of the answer to it."""

    where = None

    async def _forward(self, head, body):
        where, self.where = self.where, None
        if where == "request":
            head = self._flip(head[:-4]) + head[-4:]
        head, body = await super()._forward(head, body)
        if where == "answer":
            head = self._flip(head[:-4]) + head[-4:]
        return head, body


@pytest.mark.filterwarnings("ignore:tzname")
@pytest.mark.parametrize("where", ["request", "answer"])
def test_a_damaged_head_heals(s3_store, where, monkeypatch):
    """A server calls such a request wrongly signed, of nobody or forbidden; what its own head says may be no number or date."""
    data = os.urandom(1000)
    with DamagedOnce(port_of_environment(), seed=TEST_SEED) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = warm(s3_store(patience=BUSY))
        store.write("a/b", data)
        for _ in range(25):
            for ask, answer in (
                (lambda: store.read("a/b"), data),
                (lambda: store.read("a/none"), None),
                (lambda: store.size("a/none"), None),
                (lambda: store.read_range("a/b", 10, 100), data[10:110]),
                (lambda: store.fetch("a/b").read_bytes(), data),
                (lambda: store.list("a"), ["a/b"]),
                (lambda: store.write("a/b", data), True),
                (lambda: store.write("a/b", b"late", if_absent=True), False),
            ):
                proxy.where = where
                assert ask() == answer
                assert proxy.where is None


def test_a_server_that_asks_for_time_gets_it(s3_store, through):
    store = warm(s3_store())
    proxy = through(kinds=["429"], rate=1.0, retry_after=1)
    started = time.monotonic()
    with pytest.raises(TransientError, match="TooManyRequests"):
        s3_store(patience=HASTY).read("a")
    assert time.monotonic() - started >= 2
    assert proxy.faults["429"] == 3
    assert store.read("a") is None


def test_what_a_lost_answer_hid_is_known_for_ones_own(s3_store, through):
    """The server did as it was told; the second attempt is refused for the object of the first."""
    store = s3_store()
    for size in (10, BIG):
        proxy = through(kinds=["answer lost"], rate=0.5, seed=3)
        unsure = s3_store(patience=BUSY)
        for number in range(4):
            assert unsure.upload(f"{size}/{number}", file_of(store, os.urandom(size)))
        assert proxy.faults["answer lost"] > 2


def test_an_upload_that_fails_leaves_no_parts(s3_store, through):
    class Breaking(FaultProxy):
        def _fault(self, line, body):
            return "503" if "/a?" in line and "partNumber=1" in line else None

    store = warm(s3_store())
    with Breaking(port_of_environment()) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        breaking = s3_store(patience=HASTY)
        with pytest.raises(TransientError, match="SlowDown: as planned; wait for the server to recover"):
            breaking.upload("a", file_of(store, os.urandom(BIG)))
        assert any("/a?" in line and "partNumber=2" in line for line in proxy.requests)
    assert uploads(store) == []
    assert store.size("a") is None
    assert store.upload("a", file_of(store, os.urandom(BIG)))
    assert not store.upload("a", file_of(store, os.urandom(BIG)))
    assert uploads(store) == []


def port_of_environment():
    return int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])


def test_a_thousand_faults(s3_store, through, tmp_path):
    """Nothing wrong is ever read or published; every failure heals or is worth a retry later."""
    direct = s3_store()
    assert direct.list("artifacts") == []
    draws = [random.Random(TEST_SEED + worker) for worker in range(8)]
    # A stall takes long, and most answers are no errors.
    kinds = [*FAULTS, *(kind for kind in FAULTS if kind != "stalled"), *["flipped error"] * 3]
    proxy = through(rate=0.45, seed=TEST_SEED, kinds=kinds)
    store = s3_store(patience=replace(BUSY, attempts=5))
    contents, failures = {}, []

    def study(worker, number):
        """Publish an artifact, in competition with another worker, and read it back."""
        draw = draws[worker]
        fingerprint = f"{number:020d}"
        writer = ArtifactWriter(store, "frames", fingerprint)
        big = number % 8 < 2
        try:
            for part in range(2):
                data = draw.randbytes(6 * MiB if big and part else draw.randrange(1, 30_000))
                path = writer.scratch / f"{part}"
                path.write_bytes(data)
                contents[hashlib.sha256(data).hexdigest()] = len(data)
                if str(part) not in writer.parts():
                    writer.add_part(str(part), {f"{part}.bin": path})
            files = [record for part in writer.parts().values() for record in part.files]
            if len(files) == 2:
                writer.publish(
                    Manifest(
                        stage="frames",
                        instance="frames-test",
                        fingerprint=fingerprint,
                        config={},
                        inputs={},
                        files=files,
                        code="1",
                        created="2026-01-01T00:00:00+00:00",
                        seconds=1.0,
                    )
                )
            manifest = read_manifest(store, "frames", fingerprint)
            if manifest is not None:
                artifact = Artifact(store, manifest)
                for record in manifest.files:
                    assert hashlib.sha256(artifact.path(record.name).read_bytes()).hexdigest() == record.sha256
            store.write(f"notes/{worker}", b"%020d" % number * 50)
            note = store.read(f"notes/{worker}")
            assert note == note[:20] * 50
        except TransientError as error:
            failures.append(str(error))
        finally:
            writer.close()

    def work(worker):
        """Two workers make each artifact."""
        number = worker // 2
        while sum(count for kind, count in proxy.faults.items() if kind) < TEST_FAULTS:
            study(worker, number)
            number += 4

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    published = 0
    for key in direct.list("artifacts"):
        if key.endswith("/manifest.json"):
            manifest = read_manifest(direct, "frames", key.split("/")[2])
            artifact = Artifact(direct, manifest)
            for record in manifest.files:
                assert contents[hashlib.sha256(artifact.path(record.name).read_bytes()).hexdigest()] == record.size
            published += 1
    faults = {kind: count for kind, count in sorted(proxy.faults.items(), key=str) if kind}
    print(f"seed {TEST_SEED}: {sum(faults.values())} faults in {len(proxy.requests)} requests: {faults}")
    print(f"{published} artifacts published and whole; {len(failures)} failures, each worth a retry")
    assert published > 20
    assert set(faults) == set(FAULTS)


# Servers that lack something.


@pytest.mark.parametrize("lacking", ["without", "unsupported"])
def test_a_server_without_conditional_writes(s3_store, moto, lacking, monkeypatch):
    with FaultProxy(moto, **{lacking: ["if-none-match"]}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = s3_store()
        assert store.write("a", b"first", if_absent=True)
        assert not store.write("a", b"second", if_absent=True)
        assert store.read("a") == b"first"
        data = os.urandom(BIG)
        assert store.upload("b", file_of(store, data))
        assert not store.upload("b", file_of(store, os.urandom(BIG)))
        assert store.fetch("b").read_bytes() == data


class Heard(FaultProxy):
    """Notes the heads of requests; changes what servers say of CRC32."""

    def __init__(self, target, **options):
        self.heads = []
        super().__init__(target, **options)

    async def _forward(self, head, body):
        self.heads.append(head.lower())
        return await super()._forward(head, body)

    def with_checks(self, word):
        return [word in head for head in self.heads if b"partnumber=" in head.split(b"\r\n", 1)[0]]


def test_a_server_that_checks_crc32_gets_it(s3_store, monkeypatch):
    with Heard(port_of_environment()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store, data = s3_store(), os.urandom(BIG)
        assert store.upload("checked", file_of(store, data))
        assert store.fetch("checked").read_bytes() == data
        assert set(proxy.with_checks(b"x-amz-checksum-crc32:")) == {True}
        assert set(proxy.with_checks(b"content-md5:")) == {False}


@pytest.mark.parametrize("unsupported", [(), ["x-amz-checksum-crc32"]])
def test_a_server_that_does_not_check_crc32_gets_md5(s3_store, moto, unsupported, monkeypatch):
    """It says nothing of it, as moto does, or refuses it."""
    with Heard(moto, unsupported=unsupported) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store, data = s3_store(), os.urandom(BIG)
        for number in range(2):
            assert store.upload(f"{number}", file_of(store, data))
            assert store.fetch(f"{number}").read_bytes() == data
        assert set(proxy.with_checks(b"content-md5:")) == {True}
        assert set(proxy.with_checks(b"x-amz-checksum-crc32:")) == {False}


def test_an_object_of_another_tool_is_read_without_a_checksum(s3_store):
    store = s3_store()
    raw().put_object(Bucket="tests", Key=f"{store.prefix}/a", Body=b"not ours")
    assert store.digest("a") == hashlib.sha256(b"not ours").hexdigest()
    assert store.read("a") == b"not ours"
    assert store.fetch("a").read_bytes() == b"not ours"


def test_folders_of_another_tool_are_no_objects(s3_store):
    store = s3_store()
    store.write("a/b", b"")
    raw().put_object(Bucket="tests", Key=f"{store.prefix}/a/folder/", Body=b"")
    assert store.list("a") == ["a/b"]


# What a person has to mend: one clear line, at once.


def wrong(store, said, error=ConfigError):
    started = time.monotonic()
    with pytest.raises(error, match=said) as raised:
        store.write("a", b"")
    assert time.monotonic() - started < 10
    return str(raised.value)


def test_there_is_no_such_bucket(s3, tmp_path):
    store = open_store("s3://not-there/x", ShardCache(tmp_path, 10**9))
    wrong(store, "store s3://not-there/x: cannot write a: NoSuchBucket: .*; make the bucket, or correct --store")
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        store.read("a")


def test_the_key_is_not_known(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    wrong(s3_store(), "InvalidAccessKeyId: .*; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    with pytest.raises(ConfigError, match=r"AccessDenied.*; the policy of this key must allow it"):
        s3_store().size("a")


def test_the_secret_is_wrong(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    said = wrong(s3_store(), "SignatureDoesNotMatch: .*; check AWS_ACCESS_KEY_ID")
    assert "not-the-secret" not in said


def test_there_are_no_credentials(s3_store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    wrong(s3_store(), "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def test_the_profile_is_not_there(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    wrong(s3_store(), r"profile \(nobody\) could not be found; check the AWS settings of this shell")


def test_the_clock_is_off(s3_store, monkeypatch):
    import botocore.auth

    class Yesterday(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) - datetime.timedelta(days=1)

        @classmethod
        def utcnow(cls):
            return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(days=1)

    if hasattr(botocore.auth, "get_current_datetime"):
        now = botocore.auth.get_current_datetime
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: now(*a, **k) - datetime.timedelta(days=1))
    else:
        monkeypatch.setattr(botocore.auth.datetime, "datetime", Yesterday)
    wrong(s3_store(), "RequestTimeTooSkewed: .*; set this machine's clock")


def test_nobody_listens_there(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = r"http://127.0.0.1:9 cannot be reached \(Connection refused\); check AWS_ENDPOINT_URL and that the server runs"
    wrong(s3_store(patience=HASTY), said, TransientError)


def test_what_listens_there_is_no_s3(s3_store, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    store = s3_store(patience=HASTY)
    wrong(store, "AWS_ENDPOINT_URL", (ConfigError, TransientError))
    with pytest.raises((ConfigError, TransientError), match=r"does not answer as S3 does .*; check AWS_ENDPOINT_URL"):
        store.read("a")
    server.shutdown()


@pytest.mark.parametrize("endpoint", ["localhost:8333", "nonsense", "http://"])
def test_the_endpoint_is_no_url(s3_store, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    wrong(s3_store(), r"AWS_ENDPOINT_URL is not http\(s\)://host\[:port\]")


def test_the_disk_is_full(s3_store, small_disk):
    store = s3_store()
    store.upload("a", file_of(store, os.urandom(3 * MiB)))
    full = s3_store(scratch=small_disk / "scratch")
    with pytest.raises(TransientError, match="cannot fetch a: no space left on the disk; free some"):
        full.fetch("a")
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size]


# Certificates.


def certificate(folder):
    """An authority's own certificate for 127.0.0.1, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "physion tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = folder / "authority.pem"
    authority.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*encoding))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    return authority, context


def test_a_certificate_of_ones_own_authority(s3_store, through, tmp_path, monkeypatch):
    authority, tls = certificate(tmp_path)
    through(tls=tls)
    said = r"the certificate of https://127.0.0.1:\d+ is not trusted \(self.signed certificate\); set AWS_CA_BUNDLE"
    wrong(s3_store(), said)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    store, data = s3_store(), os.urandom(BIG)
    assert store.upload("a", file_of(store, data))
    assert store.fetch("a").read_bytes() == data


def test_a_certificate_for_another_name(s3_store, through, tmp_path, monkeypatch):
    authority, tls = certificate(tmp_path)
    proxy = through(tls=tls)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("127.0.0.1", "localhost"))
    wrong(s3_store(), "is not trusted .*localhost.*; set AWS_CA_BUNDLE")


# Addressing.


def test_paths_unless_the_settings_say_otherwise(s3_store, through, tmp_path, monkeypatch):
    proxy = through()
    assert s3_store().size("a") is None
    assert proxy.requests[-1].startswith("HEAD /tests/")
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("127.0.0.1", "localhost"))
    url = s3_store()._requests.client().generate_presigned_url("get_object", Params={"Bucket": "tests", "Key": "a"})
    assert url.startswith("http://tests.localhost:")


# Secrets.


@pytest.mark.parametrize(
    "uri", ["s3://AKIA7:hunter2@bucket/x", "s3://AKIA7:hun/ter2@bucket", "https://AKIA7:hunter2@host/x", "s3://AKIA7@b/x"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(physion, preset, uri):
    ended = physion("plan", "-p", preset, "-s", uri)
    assert ended.code == 2
    assert "without credentials" in ended.err
    assert not re.search("AKIA7|hun|ter2", ended.out + ended.err)


def test_credentials_in_the_endpoint_are_refused_and_not_repeated(s3_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://AKIA7:hunter2@127.0.0.1:9")
    assert "hunter2" not in wrong(s3_store(), "AWS_ENDPOINT_URL holds credentials; check AWS_ACCESS_KEY_ID")


def test_the_secret_is_nowhere(s3, s3_store, physion, preset, tmp_path, monkeypatch, caplog):
    """Not in what is printed and what libraries log, nor in the store and on the disk."""
    monkeypatch.setenv("PHYSION_CACHE", str(tmp_path))
    caplog.set_level(logging.DEBUG)
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    store = s3_store()
    said = ""
    for arguments in (
        ["stage", "fetch", "-p", preset, "-s", store.uri],
        ["stage", "frames", "--subset", "test", "-p", preset, "-s", store.uri, "--set", "frames.frames=99"],
        ["plan", "-p", preset, "-s", store.uri, "--json"],
        ["config", "show", "-p", preset],
        ["stage", "fetch", "-p", preset, "-s", "s3://not-there/x"],
    ):
        ended = physion(*arguments)
        said += ended.out + ended.err
    assert "NoSuchBucket" in said
    assert "99 are needed" in said
    assert "PutObject" in caplog.text
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    objects = [store.read(key) for key in store.list("artifacts")]
    assert objects
    heads = [raw().head_object(Bucket="tests", Key=f"{store.prefix}/{key}") for key in store.list("artifacts")]
    for text in (said.encode(), caplog.text.encode(), str(heads).encode(), *files, *objects):
        assert secret.encode() not in text


# A server that dies.


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """A server to kill."""
    server = Server(tmp_path / "server", "tests")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.process.kill()
    server.process.wait()


def test_a_server_that_is_killed_and_comes_back(own_server, tmp_path):
    store = open_store("s3://tests/x", ShardCache(tmp_path / "cache", 10**9))
    data = os.urandom(40 * MiB)
    store.write("before", b"kept")
    done = threading.Event()

    def work():
        for number in range(3):
            assert store.upload(f"a/{number}", file_of(store, data))
        done.set()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while store.size("a/0") is None:
            assert not working.done()
        own_server.process.kill()
        own_server.process.wait()
        assert not done.is_set()
        own_server.start()
        working.result()
    assert store.read("before") == b"kept"
    for number in range(3):
        assert store.fetch(f"a/{number}").read_bytes() == data


def test_what_a_dead_process_left_is_swept(s3_store, tmp_path):
    code = (
        "import os, pickle, sys; store = pickle.load(sys.stdin.buffer); "
        "[(store.scratch() / 'x').write_bytes(b'x') for _ in range(3)]; os.kill(os.getpid(), 9)"
    )
    store = s3_store()
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(store))
    left = list((tmp_path / "scratch").iterdir())
    assert len(left) == 3
    mine = store.scratch()
    assert list((tmp_path / "scratch").iterdir()) == [mine]
    assert store.scratch().parent == mine.parent
    assert Path(mine).exists()


def test_corrupt_in_the_store_is_said_at_once(s3_store, through):
    store = s3_store()
    store.write("a", b"wrong")
    proxy = through()
    with pytest.raises(DataError, match="a is corrupt"):
        s3_store().fetch("a", size=5, sha256=hashlib.sha256(b"right").hexdigest())
    assert len(proxy.requests) == 2


# Uploads that nobody finishes.


@pytest.fixture(params=["seaweedfs", "moto"])
def begun(request, s3_store, monkeypatch):
    """Makes a store with an upload of two parts that a dead process left, on either server."""
    if request.param == "moto":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{request.getfixturevalue('moto')}")

    def make(*keys):
        store = s3_store()
        for key in keys:
            where = {"Bucket": "tests", "Key": f"{store.prefix}/{key}"}
            upload = raw().create_multipart_upload(**where)["UploadId"]
            for number, size in ((1, 5 * MiB), (2, 1000)):
                raw().upload_part(**where, UploadId=upload, PartNumber=number, Body=bytes(size))
        return store

    return make


def test_unfinished_uploads_are_listed_and_aborted(begun):
    store = begun("a/one", "a/two", "b")
    begun_elsewhere = {"Bucket": "tests", "Key": f"{store.prefix}-other/a"}
    elsewhere = raw().create_multipart_upload(**begun_elsewhere)["UploadId"]
    events = store._requests.client().meta.events  # so that several pages come
    events.register("provide-client-params.s3.ListMultipartUploads", lambda params, **_: params | {"MaxUploads": 2})
    events.register("provide-client-params.s3.ListParts", lambda params, **_: params | {"MaxParts": 1})
    found = {upload.key: upload for upload in store.unfinished_uploads()}
    assert sorted(found) == ["a/one", "a/two", "b"]
    assert all(upload.bytes == 5 * MiB + 1000 and 0 <= upload.age < 60 for upload in found.values())
    for _ in range(2):  # the second time it is gone
        store.abort(found["a/one"])
    assert sorted(upload.key for upload in store.unfinished_uploads()) == ["a/two", "b"]
    raw().abort_multipart_upload(**begun_elsewhere, UploadId=elsewhere)


def test_gc_aborts_uploads_that_nobody_added_to(begun, physion):
    store = begun("artifacts/tokenize/f/00001.safetensors")
    store.write("artifacts/tokenize/f/parts/00000.json", b"{}")

    def collect(*options):
        ended = physion("store", "gc", "-s", store.uri, *options)
        assert ended.code == 0, ended.err
        return ended.out

    def row(*options):
        (found,) = (row for row in json.loads(collect("--json", *options))["result"] if "upload" in row)
        assert found["keys"] == ["artifacts/tokenize/f/00001.safetensors"]
        assert found["bytes"] == 5 * MiB + 1000
        return found["action"], found["reason"]

    said = "an unfinished upload, last added to 0.0 days ago"
    assert row("--delete") == ("keep", said)  # somebody may be at it
    assert row("--days", "0") == ("would remove", said)
    line = f"would remove  5.24 MB  artifacts/tokenize/f/00001.safetensors: {said}"
    assert line in collect("--days", "0").splitlines()
    assert "--delete would free 5.24 MB" in collect("--days", "0")
    assert len(uploads(store)) == 1
    assert row("--days", "0", "--delete") == ("removed", said)
    assert uploads(store) == []
    assert store.list("artifacts") == []


def test_who_uploads_while_gc_aborts_it_starts_over(begun, monkeypatch):
    store, data = begun(), os.urandom(BIG)
    warm(store)
    at_once = type(store._requests).at_once

    def aborted(requests, jobs):
        yield from at_once(requests, jobs)
        for upload in store.unfinished_uploads():
            store.abort(upload)

    with monkeypatch.context() as patch:
        patch.setattr(type(store._requests), "at_once", aborted)
        with pytest.raises(TransientError, match="run the same command again"):  # moto breaks down
            store.upload("a", file_of(store, data))
    assert store.upload("a", file_of(store, data))
    assert store.fetch("a").read_bytes() == data


def test_a_server_that_cannot_list_uploads(s3_store, moto, monkeypatch):
    class Older(FaultProxy):
        async def _answer(self, head, body, writer):
            if b"GET" in head and b"?uploads" in head.split(b"\r\n", 1)[0]:
                return writer.write(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")
            return await super()._answer(head, body, writer)

    with Older(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert s3_store().unfinished_uploads() == []
