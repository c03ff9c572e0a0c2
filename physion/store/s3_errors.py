"""What went wrong between here and an S3 server: whether it may pass by itself, and what to check if it does not."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

# Everything a request or the reading of its answer can raise. The last two: an invalid number, a missing field.
FAILURES = (boto.BotoCoreError, boto.ClientError, ResponseParserError, HTTPError, ValueError, LookupError)

# Permanent errors, each code with its status. Anything else may be caused by a damaged byte (no single byte turns one of these
# into another) or pass by itself, and is retried.
_FINAL = {
    "501": 501,
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "ExpiredToken": 400,
    "IllegalLocationConstraintException": 400,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidToken": 400,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "PermanentRedirect": 301,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
}
_BUSY = {408, 409, 425, 429}  # and from 500 on

_ENDPOINT = "check AWS_ENDPOINT_URL and that the server runs"
_NETWORK = "check the network and the proxies between here and the server"
KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REGION = "set AWS_REGION to the bucket's region"
_ADVICE = {
    "NoSuchBucket": "make the bucket, or correct --store; if it exists, check AWS_ENDPOINT_URL",
    "AccessDenied": f"the policy of this key must allow it; {KEYS}",
    "InvalidAccessKeyId": KEYS,
    "SignatureDoesNotMatch": KEYS,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the session credentials",
    "InvalidToken": "renew the session credentials",
}
_HEAD = {301: "PermanentRedirect", 403: "AccessDenied"}
_REASONS = {  # for HEAD, whose answer has no body that could say it
    "HeadObject": {**_HEAD, 404: "NoSuchKey"},
    "HeadBucket": {**_HEAD, 404: "NoSuchBucket"},
}


class Damaged(Exception):
    """A body that is not what was requested.

    `content` identifies what it is instead, and `verdict` says what it means if the same comes again; both None for a mere
    piece.
    """

    def __init__(self, content: str | None = None, verdict: str | None = None) -> None:
        super().__init__("the data received is not what was stored")
        self.content, self.verdict = content, verdict


@dataclass(frozen=True)
class Diagnosis:
    """What a failure means."""

    heals: bool
    what: str
    advice: str
    retry_after: float = 0.0
    code: str = ""


def diagnose(error: Exception, endpoint: str) -> Diagnosis:
    """The meaning of a failure: one of the classes FAILURES, or a Damaged."""
    if isinstance(error, Damaged):
        return Diagnosis(True, str(error), _NETWORK)
    if isinstance(error, boto.ClientError):
        return _answered(error, endpoint)
    if isinstance(error, ResponseParserError):
        return Diagnosis(True, f"{endpoint} does not answer as S3 does", "check AWS_ENDPOINT_URL")
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError | CertificateError) for cause in causes):
        advice = "set AWS_CA_BUNDLE to the file of the authority that signed it"
        return Diagnosis(False, f"the certificate of {endpoint} is not trusted ({_last_words(causes)})", advice)
    if isinstance(error, boto.IncompleteReadError | boto.ResponseStreamingError):
        return Diagnosis(True, "the connection broke", "check the network")
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | HTTPError):
        timeout = isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError)
        why = "no answer in time" if timeout else _last_words(causes)
        return Diagnosis(True, f"{endpoint} cannot be reached ({why})", _ENDPOINT)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return Diagnosis(False, "there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    if isinstance(error, ValueError | LookupError):
        return Diagnosis(True, f"{endpoint} gives an answer that makes no sense ({error!r})"[:300], _NETWORK)
    heals = isinstance(error, boto.CredentialRetrievalError | boto.MetadataRetrievalError)
    return Diagnosis(heals, str(error), "check the AWS settings of this shell (AWS_* and ~/.aws)")


def _answered(error: boto.ClientError, endpoint: str) -> Diagnosis:
    """The server said no, or not now."""
    facts = error.response.get("ResponseMetadata", {})
    status = facts.get("HTTPStatusCode", 0)
    said = error.response.get("Error", {})
    code = str(said.get("Code") or status)
    what = f"{code}: {str(said.get('Message') or '')[:200]}".rstrip(":. ")
    if code == str(status) and (reason := _REASONS.get(error.operation_name, {}).get(status)):
        code = what = reason
    heals = _FINAL.get(code) != status
    advice = _ENDPOINT
    if code in _ADVICE:
        advice = _ADVICE[code]
    elif status in _BUSY or (status >= 500 and heals):
        advice = "wait for the server to recover"
    elif code == str(status) and heals:  # the wrong server, or an answer that broke off
        what = f"{endpoint} does not answer as S3 does ({what})"
    elif heals:
        advice = f"fix that, or {_NETWORK}"
    after = facts.get("HTTPHeaders", {}).get("retry-after", "")
    return Diagnosis(heals, what, advice, float(after) if after.isdecimal() else 0.0, code)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes; urllib3 and botocore also keep those in attributes and arguments."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        error = todo.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        inner = (getattr(error, "reason", None), getattr(error, "kwargs", {}).get("error"), *error.args)
        todo += [error.__cause__, error.__context__, *(cause for cause in inner if isinstance(cause, BaseException))]


def _last_words(causes: list[BaseException]) -> str:
    """The system's own text, such as "Connection refused", if there is one."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError | CertificateError):
            return getattr(cause, "verify_message", str(cause))
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, boto.BotoCoreError | HTTPError):
            return cause.strerror
    return type(causes[0]).__name__
