"""What S3 and its client say, as holdfast's errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from holdfast_s3.settings import S3Settings
from holdfast_storage import errors

_ABSENT = {"NoSuchKey", "404", "NotFound"}
_LOST = {"PreconditionFailed", "412"}
_REFUSED = {
    "AccessDenied", "403", "Forbidden", "AllAccessDisabled", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "401",
}  # fmt: skip
_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_PASSING = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "OperationAborted",
    "ConditionalRequestConflict", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
}  # fmt: skip
WRONG_REGION = {
    "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
    "301", "MovedPermanently",
}  # fmt: skip
_MISSING = {"NotImplemented", "501"}
_BAD_KEY = {"KeyTooLongError", "InvalidURI", "XMinioInvalidObjectName"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}


def translate(
    error: BaseException, settings: S3Settings, *, key: str, root: str, doing: str
) -> errors.StorageError | None:
    """The error of ours for what a request raised; None if it is not the store's.

    Args:
        error: From botocore, aiobotocore or aiohttp.
        settings: For the message.
        key: What it was about.
        root: The backend's root.
        doing: The API operation, such as `PutObject`.
    """
    from botocore import exceptions, parsers

    where = {"key": key, "root": root}
    match error:
        case exceptions.ClientError():
            return _answer(error.response, settings, doing, where)
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return errors.StoragePermissionError(
                f"no AWS credentials: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"name a profile, or use anon=true for a public bucket ({settings.describe()})",
                **where,
            )
        case exceptions.CredentialRetrievalError() | exceptions.TokenRetrievalError():
            return errors.StoragePermissionError(
                f"AWS credentials: {error} ({settings.describe()})", **where
            )
        case exceptions.ParamValidationError():
            return errors.InvalidKeyError(f"S3 cannot hold this key: {error}", **where)
        case parsers.ResponseParserError():
            return errors.TransientStorageError(
                f"the reply to {doing} is not S3's; is the endpoint right? {settings.describe()}",
                **where,
            )
        case exceptions.SSLError():
            return errors.StorageError(
                f"no secure connection: {error}; give the certificates with AWS_CA_BUNDLE "
                f"({settings.describe()})",
                **where,
            )
    return _connection(error, settings, doing, where)


def _connection(
    error: BaseException, settings: S3Settings, doing: str, where: dict[str, str]
) -> errors.StorageError | None:
    import aiohttp
    from botocore import exceptions

    match error:
        case exceptions.ConnectTimeoutError() | exceptions.ReadTimeoutError() | TimeoutError():
            return errors.StorageTimeoutError(
                f"no answer to {doing} in time ({settings.describe()})", **where
            )
        case (
            exceptions.HTTPClientError()
            | exceptions.ConnectionError()
            | exceptions.IncompleteReadError()
            | exceptions.ResponseStreamingError()
            | exceptions.FlexibleChecksumError()
            | aiohttp.ClientError()
            | ConnectionError()
            | asyncio.IncompleteReadError()
        ):
            return errors.TransientStorageError(
                f"{doing}: {error} ({settings.describe()})", **where
            )
        case exceptions.BotoCoreError():
            return errors.StorageError(f"{doing}: {error} ({settings.describe()})", **where)
    return None


def explain(
    status: int, body: str, settings: S3Settings, *, key: str, root: str
) -> errors.StorageError:
    """The error for a reply that TensorStore got, which moves the arrays."""
    found = dict(re.findall(r"<(Code|Message|Region)>([^<]*)</\1>", body))
    response = {"Error": found, "ResponseMetadata": {"HTTPStatusCode": status}}
    return _answer(response, settings, MOVING_ARRAYS, {"key": key, "root": root})


def _answer(
    response: Mapping[str, Any], settings: S3Settings, doing: str, where: dict[str, str]
) -> errors.StorageError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = response.get("Error", {}).get("Message") or code or f"status {status}"
    if code in WRONG_REGION or status == 301:
        return _wrong_region(response, settings, where)
    if code == "RequestTimeTooSkewed":
        return errors.StorageError(
            "S3 refuses requests because this machine's clock differs from its own by more than "
            f"15 minutes; set the clock: {said} ({settings.describe()})",
            **where,
        )
    if code in _REFUSED or status in (401, 403):
        return _refused(code, said, settings, doing, where)
    told = f"{doing}: {code or status}: {said} ({settings.describe()})"
    return _about_the_object(code, status, told, settings, where)


def _about_the_object(
    code: str, status: int, said: str, settings: S3Settings, where: dict[str, str]
) -> errors.StorageError:
    if code == "NoSuchBucket":
        return errors.StorageError(
            f"the bucket {settings.bucket!r} does not exist ({settings.describe()}); create it "
            "first, holdfast makes none",
            **where,
        )
    if code == "NoSuchUpload":
        return errors.TransientStorageError(said, **where)
    if code in _ABSENT or status == 404:
        return errors.ObjectNotFoundError("no such object", **where)
    if code in _LOST or status == 412:
        return errors.PreconditionFailedError("the object is not what was expected", **where)
    if code in _FULL or status == 507:
        return errors.StorageFullError(f"the store is full: {said}", **where)
    if code in _MISSING or status == 501:
        return errors.UnsupportedOperationError(f"the store lacks this: {said}", **where)
    if code in _PASSING or status in (408, 409, 429) or status >= 500:
        return errors.TransientStorageError(said, **where)
    if code in _BAD_KEY:
        return errors.InvalidKeyError(f"S3 refuses the key: {said}", **where)
    return errors.StorageError(said, **where)


def _wrong_region(
    response: Mapping[str, Any], settings: S3Settings, where: dict[str, str]
) -> errors.StorageError:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    right = response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    advice = f"set the region to {right}" if right else "set the bucket's region"
    return errors.StorageError(
        f"the bucket {settings.bucket!r} is not in this region: {advice} (AWS_REGION, or the "
        f"setting 'region'); settings: {settings.describe()}",
        **where,
    )


MOVING_ARRAYS = "moving arrays"
_READ = "s3:GetObject (and s3:ListBucket, without which S3 answers 403 for what is absent)"
# What a role must be allowed for each request.
_PERMISSIONS = {
    MOVING_ARRAYS: "s3:PutObject to save and s3:GetObject to load",
    "GetObject": _READ,
    "HeadObject": _READ,
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}


def _refused(
    code: str, said: str, settings: S3Settings, doing: str, where: dict[str, str]
) -> errors.StoragePermissionError:
    if code in _CREDENTIALS:
        advice = "check the key, the secret and the session token"
    else:
        advice = f"{doing} needs {_PERMISSIONS.get(doing, doing)}"
    return errors.StoragePermissionError(
        f"access refused: {said}; {advice} ({settings.describe()})", **where
    )
