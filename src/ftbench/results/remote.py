"""File systems behind URLs, as fsspec has them, and what went wrong with one in a line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftbench.errors import FtbenchError, UsageError

_S3 = ("s3", "s3a")
_CREDENTIALS = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_RETRIES = 2
"""Tries of s3fs around those of botocore: both are 5 by themselves, and a silent server is waited for 7 minutes."""
_WAITING = {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 2, "mode": "standard"}}
"""A silent server is given up after 80 s."""


def open_remote(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        UsageError: nothing knows the protocol, or what does is not installed.
        FtbenchError: its settings are wrong.
    """
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        needed = 'pip install "ftbench[s3]"' if protocol in _S3 else " ".join(str(error).split())
        raise UsageError(f"{url}: what reads {protocol}:// is not installed; {needed}") from error
    except ValueError as error:
        raise UsageError(f"{url}: fsspec knows no {protocol}://; choose a folder, or s3://BUCKET/FOLDER") from error
    with telling(url, "open"):
        files, root = fsspec.core.url_to_fs(url, **(_patience(protocol) if protocol in _S3 else {}))
        if protocol in _S3:
            files.retries = _RETRIES
    return files, root.rstrip("/")


def _patience(protocol: str) -> dict[str, Any]:
    """Return how long an S3 server is waited for, unless the user has said so."""
    import fsspec.config

    own = dict(_WAITING)
    if "AWS_MAX_ATTEMPTS" in os.environ:
        del own["retries"]
    said = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {**own, **said}}


def server_of(url: str) -> str:
    """Return which server answers for a URL, where settings say it: the same URL may lead to another."""
    import fsspec.config

    protocol = url.partition("://")[0].lower()
    said = fsspec.config.conf.get(protocol, {})
    own = said.get("endpoint_url") or said.get("client_kwargs", {}).get("endpoint_url") or said.get("host")
    of_aws = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return str(own or (of_aws if protocol in _S3 else None) or "")


def has_folders(files: Any) -> bool:
    """Whether a file system has folders that must be made, and renames; object stores have neither.

    Their buckets are not to be made by a slip of the pen, and what is put there appears whole.
    """
    return not hasattr(files, "split_path")


@contextmanager
def telling(url: str, doing: str) -> Iterator[None]:
    """Say in one line why something could not be done with a URL: a file system's code may raise anything.

    Raises:
        FtbenchError: it could not.
    """
    try:
        yield
    except FtbenchError:
        raise
    except Exception as error:
        raise FtbenchError(f"cannot {doing} {url}: {_explain(url, error)}") from error


def _explain(url: str, error: Exception) -> str:
    is_s3 = url.partition("://")[0].lower() in _S3
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        is_bucket = "bucket" in text.lower()
        return f"{text}; {'make it first, or write another --out' if is_bucket else 'is it being removed? try again'}"
    if isinstance(error, PermissionError):
        return f"{text}; " + (f"is it yours? {_CREDENTIALS} say who asks" if is_s3 else "say who asks in its settings")
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return f"{text}; set {_CREDENTIALS}"
    if any("Connect" in kind or "Timeout" in kind for kind in kinds):
        return f"no server answers ({text}); " + (
            "is it running, and AWS_ENDPOINT_URL right?" if is_s3 else "is it running?"
        )
    return f"{type(error).__name__}: {text}"
