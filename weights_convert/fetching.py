"""Fetches sources: returns local files, and downloads URLs and hub repositories."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import is_remote, to_address
from dinotxt_jax.storage.downloads import cache_folder, download
from dinotxt_jax.storage.model_directory import FILE
from dinotxt_jax.storage.object_cache import local_copies
from dinotxt_jax.storage.retries import retried
from weights_convert.tokenizer_files import PIECE_FILE_NAMES

HUB = "hf://"
_WEB = ("http://", "https://")
_SHA256 = re.compile("[0-9a-f]{64}")
# Repository files that a conversion can use; the first kind of weights that exists is taken.
_WEIGHTS = (
    ("*.safetensors", "*.safetensors.index.json"),
    ("*.bin", "*.bin.index.json", "*.pth", "*.pt"),
)
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "open_clip_config.json",
    *PIECE_FILE_NAMES,
)


def fetch(source: Path | str) -> Path:
    """Returns a source's local path, downloading it if necessary.

    Args:
        source: a path, which is returned; an object in gs:// or s3://, or an http(s):// URL, copied
            once into the cache folder (a `#sha256=...` suffix of a URL is verified); or
            `hf://ORG/NAME[@REVISION][/FILE]`, downloaded by `huggingface_hub` into the hub's cache.

    Raises:
        UserError: the download failed, or the address is malformed.
    """
    text = str(source)
    if text.startswith(HUB):
        return _from_hub(text)
    if text.startswith(_WEB):
        return _from_web(text)
    address = to_address(source)
    if not is_remote(address):
        return address
    if not retried(address.is_file) or address.name.endswith(".index.json"):
        raise UserError(
            f"{address} is not one object that holds a whole checkpoint; copy the folder of a "
            "sharded one to a local disk, or correct the address."
        )
    return local_copies([address], "SOURCE")[0]


def display_name(source: Path | str) -> str:
    """Returns a source's name for messages and `model.json`: URLs lose query and fragment."""
    text = str(source)
    return re.split("[?#]", text)[0] if text.startswith(_WEB) else text


def _from_web(text: str) -> Path:
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise UserError(f"{text} is not an address ({error}); correct it.") from error
    before, _, sha256 = address.fragment.partition("sha256=")
    if before or (address.fragment and not _SHA256.fullmatch(sha256)):
        raise UserError(
            f"{display_name(text)} ends in #{address.fragment}, expected #sha256= and 64 "
            "hexadecimal digits; correct or remove it."
        )
    url = address._replace(fragment="").geturl()
    name = PurePosixPath(address.path).name or "checkpoint"
    # Different addresses may end in the same file name.
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    return download(url, cache_folder() / "checkpoints" / folder / name, sha256)


def hub_library(address: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Returns the module huggingface_hub, and the errors with which it refuses.

    Raises:
        UserError: it is not installed; `address` needs it.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError as error:
        raise UserError(
            f"{address} needs huggingface_hub, which is not installed; run "
            "pip install huggingface_hub."
        ) from error
    return huggingface_hub, (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError)


class _HubAddress(NamedTuple):
    """The parts of hf://ORG/NAME[@REVISION][/FILE]; "" for parts that are not given."""

    repository: str
    revision: str
    file: str


def _hub_address(text: str) -> _HubAddress:
    organisation, _, rest = text.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (organisation and name):
        raise UserError(f"{text} is not of the form hf://ORG/NAME[@REVISION][/FILE]; correct it.")
    return _HubAddress(f"{organisation}/{name}", revision, file)


def fetch_model_directory(text: str) -> Path | None:
    """Fetches a model directory from the hub, or returns None if the repository holds none.

    Raises:
        UserError: as for `fetch`.
    """
    hub, errors = hub_library(text)
    address = _hub_address(text)
    if address.file:
        return None
    revision = address.revision or None
    try:
        folder = Path(
            hub.snapshot_download(address.repository, revision=revision, allow_patterns=[FILE])
        )
        if not (folder / FILE).is_file():
            return None
        return Path(hub.snapshot_download(address.repository, revision=revision))
    except errors as error:
        raise _not_downloaded(text, error) from error


def _not_downloaded(text: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"{text} could not be downloaded ({reason}); check the name and your connection, log in "
        "(hf auth login) where a licence must be accepted, or pass a local file."
    )


def _from_hub(text: str) -> Path:
    hub, errors = hub_library(text)
    address = _hub_address(text)
    repository, file = address.repository, address.file
    revision = address.revision or None
    try:
        if file:
            parent = PurePosixPath(file).parent
            patterns = [file, *(str(parent / name) for name in _SETTINGS)]
            if file.endswith(".index.json"):
                patterns += [str(parent / "*.safetensors"), str(parent / "*.bin")]
            folder = hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
            if not (Path(folder) / file).is_file():
                raise UserError(f"{text} does not exist in that repository; correct the name.")
            return Path(folder) / file
        for weights in _WEIGHTS:
            folder = hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*weights, *_SETTINGS]
            )
            files = [path for pattern in weights for path in Path(folder).glob(pattern)]
            if files:
                return files[0] if len(files) == 1 else Path(folder)
    except errors as error:
        raise _not_downloaded(text, error) from error
    raise UserError(f"{text} holds no weights; name the file, as in {text.rstrip('/')}/FILE.")
