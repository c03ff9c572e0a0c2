"""What an S3 server says with a byte of it damaged: it means the same or is tried again, and no word is taken for another."""

import io
from itertools import combinations

import boto3
import pytest
import urllib3
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from physion.errors import ConfigError, TransientError
from physion.store.s3 import S3Store
from physion.store.s3_errors import _FINAL, diagnose
from physion.store.s3_requests import Missing, Patience, Requests

AT_ONCE = Patience(attempts=3, base=0.0)
OBJECT = {"Bucket": "tests", "Key": "damage/a"}


def complete(s3, upload, *numbers):
    parts = [{"PartNumber": number, "ETag": '"of none"'} for number in numbers]
    return s3.complete_multipart_upload(**OBJECT, UploadId=upload, MultipartUpload={"Parts": parts})


# What SeaweedFS says no to; of "tests" there is an upload with one part.
REFUSED = {
    "NoSuchKey": lambda s3, _: s3.get_object(**OBJECT | {"Key": "damage/none"}),
    "NoSuchUpload": lambda s3, _: s3.upload_part(**OBJECT, UploadId="none", PartNumber=1, Body=b""),
    "PreconditionFailed": lambda s3, _: s3.put_object(**OBJECT, Body=b"", IfNoneMatch="*"),
    "InvalidRange": lambda s3, _: s3.get_object(**OBJECT, Range="bytes=7-9"),
    "NoSuchBucket": lambda s3, _: s3.list_objects_v2(Bucket="not-there"),
    "InvalidAccessKeyId": lambda s3, _: s3.get_object(**OBJECT),
    "SignatureDoesNotMatch": lambda s3, _: s3.get_object(**OBJECT),
    "AccessDenied": lambda s3, _: s3.get_object(**OBJECT),
    "BadDigest": lambda s3, _: s3.put_object(**OBJECT, Body=b"", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA=="),
    "InvalidDigest": lambda s3, _: s3.put_object(**OBJECT, Body=b"", ContentMD5="zz"),
    "InvalidPart": lambda s3, upload: complete(s3, upload, 1),
    "InvalidPartOrder": lambda s3, upload: complete(s3, upload, 2, 1),
    "BucketAlreadyOwnedByYou": lambda s3, _: s3.create_bucket(Bucket="tests"),
}
WITH = {
    "InvalidAccessKeyId": {"aws_access_key_id": "nobody", "aws_secret_access_key": "wrong"},
    "SignatureDoesNotMatch": {"aws_secret_access_key": "wrong"},
    "AccessDenied": {"config": Config(signature_version=UNSIGNED)},
}


@pytest.fixture
def said(s3):
    """Asks the server for an error: status, headers and body."""

    def said(code):
        heard = []
        direct = boto3.client("s3")
        direct.put_object(**OBJECT, Body=b"")
        upload = direct.create_multipart_upload(**OBJECT)["UploadId"]
        direct.upload_part(**OBJECT, UploadId=upload, PartNumber=1, Body=b"a")
        keys = {name: s3.environment[name.upper()] for name in ("aws_access_key_id", "aws_secret_access_key")}
        client = boto3.session.Session().client("s3", **keys | WITH.get(code, {}))
        client.meta.events.register_first("before-parse.s3.*", lambda response_dict, **_: heard.append(response_dict))
        with pytest.raises(ClientError):
            REFUSED[code](client, upload)
        direct.abort_multipart_upload(**OBJECT, UploadId=upload)
        assert f"<Code>{code}</Code>".encode() in heard[-1]["body"]
        return heard[-1]["status_code"], dict(heard[-1]["headers"]), heard[-1]["body"]

    return said


def flipped(body, at, bit):
    return body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]


def flips(body):
    """The body with one bit of it flipped, each in turn."""
    return [flipped(body, at, bit) for at in range(len(body)) for bit in range(8)]


PARSER = create_parser("rest-xml")


def meaning(status, headers, body):
    """What an error means: its code, or None when it is tried again."""
    parsed = PARSER.parse({"status_code": status, "headers": headers, "body": body}, None)
    found = diagnose(ClientError(parsed, "GetObject"), "https://s3.example.org")
    return None if found.heals else found.code


@pytest.mark.parametrize("code", REFUSED)
def test_no_damaged_byte_of_an_error_changes_what_it_means(said, code):
    status, headers, body = said(code)
    means = meaning(status, headers, body)
    assert means == (code if code in _FINAL else None)
    for damaged in flips(body):
        assert meaning(status, headers, damaged) in (means, None), damaged


@pytest.mark.parametrize("code", REFUSED)
def test_an_error_with_a_status_that_is_not_its_own_is_tried_again(said, code):
    status, headers, body = said(code)
    others = [int(digits) for digits in flips(b"%d" % status) if digits.isdigit() and int(digits) > 300]
    assert len(others) > 5
    assert {meaning(other, headers, body) for other in others} == {None}


def test_no_damaged_byte_turns_a_code_into_another():
    for one, other in combinations(_FINAL, 2):
        assert len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) > 1


# From here on with a client whose answers are given.


def replay(requests, *answers, second_page=None):
    """Answers given in place of a server's, one after another, the last one for ever; tells what was asked."""
    asked = []

    def answer(request, **_):
        given = second_page if "continuation-token=" in request.url else answers[min(len(asked), len(answers) - 1)]
        status, headers, body = given
        asked.append(request.url)
        stream = urllib3.HTTPResponse(io.BytesIO(body), headers, status, preload_content=False)
        return AWSResponse(request.url, status, stream.headers, stream)

    events = requests.client().meta.events
    events.unregister("before-send.s3", unique_id="replay")
    events.register("before-send.s3", answer, unique_id="replay")
    return asked


@pytest.fixture
def requests(s3):
    return Requests("s3://tests/damage", AT_ONCE)


def get(client):
    return client.get_object(**OBJECT)["Body"].read()


def error(status, code, message="as planned"):
    return status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


WELL = (200, {"Content-Length": "2"}, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        error(404, "NoSubhKey"),
        error(403, "NoSuchKey"),
        error(403, "AccessDenied"),
        error(403, "SignatureDoesNotMatch"),
        error(501, "NotImplemented"),
        error(400, ""),
        (404, {}, b"<Error><Code>NoSuchKey</Code><Message/>"),
        (404, {}, b"<html><body>Not here</body></html>"),
        (429, {"Retry-After": "\xb2"}, b""),
        (200, {"Content-Length": "r"}, b"ok"),
        (204, {"Content-Length": "2"}, b""),
        (200, {"Content-Length": "2", "Last-Modified": "Wed, 2x Nov 2026 19:27:20 GMT"}, b"ok"),
    ],
)
def test_what_is_said_once_is_asked_again(requests, answer):
    asked = replay(requests, answer, WELL)
    assert requests.attempt("read a", get) == b"ok"
    assert len(asked) == 2


def test_what_a_person_has_to_mend_is_believed_when_it_is_said_twice(requests):
    asked = replay(requests, error(403, "AccessDenied"), error(503, "SlowDown"), error(403, "AccessDenied"), WELL)
    with pytest.raises(ConfigError, match="cannot read a: AccessDenied: as planned; the policy of this key must allow it"):
        requests.attempt("read a", get)
    assert len(asked) == 3
    replay(requests, error(403, "AccessDenied"), error(403, "InvalidAccessKeyId"), error(403, "SignatureDoesNotMatch"))
    with pytest.raises(TransientError, match="SignatureDoesNotMatch"):
        requests.attempt("read a", get)


def test_that_there_is_no_object_is_said_once(requests):
    asked = replay(requests, error(404, "NoSuchKey", ""))
    with pytest.raises(Missing, match="NoSuchKey;"):
        requests.attempt("read a", get)
    assert len(asked) == 1


def test_a_code_that_nobody_knows_ends_with_the_servers_words(requests):
    asked = replay(requests, error(400, "QuotaExceeded", "Your bucket is full."))
    said = "cannot read a: QuotaExceeded: Your bucket is full; fix that, or check the network .*run the same command again"
    with pytest.raises(TransientError, match=said):
        requests.attempt("read a", get)
    assert len(asked) == AT_ONCE.attempts


@pytest.mark.filterwarnings("ignore:tzname")
def test_no_damaged_byte_of_a_listing_goes_unnoticed_but_in_a_name(s3_store, tmp_path):
    """A page that was cut short or is of another folder is asked for again; a name itself is protected by TLS alone."""
    store, pages = s3_store(), []
    for name in "ab":
        store.write(f"folder/{name}", b"")
    events = store._requests.client().meta.events
    events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: params | {"MaxKeys": 1})
    events.register_first(
        "before-parse.s3.ListObjectsV2",
        lambda response_dict, **_: pages.append((200, dict(response_dict["headers"]), response_dict["body"])),
    )
    names = store.list("folder")
    first, last = pages
    again = S3Store("tests", store.prefix, scratch=tmp_path, patience=AT_ONCE)
    unprotected = set()
    for tag, key in (("Key", "a"), ("NextContinuationToken", "a")):
        name = f"{store.prefix}/folder/{key}"
        start = first[2].index(f"<{tag}>{name}".encode()) + len(tag) + 2
        unprotected |= set(range(start, start + len(name)))
    for at in range(len(first[2])):
        damaged = (200, first[1], flipped(first[2], at, at % 8))
        asked = replay(again._requests, damaged, first, second_page=last)
        assert again.list("folder") == names or at in unprotected, damaged
        assert len(asked) <= 3
