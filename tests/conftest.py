"""Sets up eight simulated CPU devices for every test and locates the reference data."""

from __future__ import annotations

import gc
import hashlib
import http.server
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinotxt_jax.storage.addresses import Address

ROOT = Path(__file__).parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# NPROC sets the number of threads in XLA's pool. One thread per device is not enough where a
# device waits in several collectives.
os.environ.setdefault("NPROC", "32")
_XLA_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    # JAX 0.12 may start independent collectives in a different order on each simulated device. This
    # deadlocks on machines with fewer cores than devices.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in _GIVEN:
    # Most programs in the tests run once, and optimising them takes longer than it could save.
    # `make slow` compiles as in real runs.
    _XLA_FLAGS |= {
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": "true",
    }
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        # Compiles a train step in half the time. XLA refuses flags that it does not know, and later
        # versions have no other emitters.
        _XLA_FLAGS |= {"xla_cpu_use_fusion_emitters": "false"}
os.environ["XLA_FLAGS"] = " ".join(
    [_GIVEN, *(f"--{name}={value}" for name, value in _XLA_FLAGS.items() if name not in _GIVEN)]
)
# All tests, workers, commands and the next test run share compiled programs. Two processes may
# write the same file concurrently: both write the same content, and JAX recompiles what it cannot
# read.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from buckets import serve  # noqa: E402
from hypothesis import settings  # noqa: E402

# `make slow` draws ten times as many examples (--hypothesis-profile=thorough).
settings.register_profile("fast", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("fast")

# Shapes and dtypes are checked at run time, in tests only; the hook must be installed before the
# imports. `visualize` is excluded: it checks shapes itself, with messages for users.
ARRAY_ROOMS = (
    "curation data evaluation inference ingestion losses models sharding tokenizers training"
)
jaxtyping.install_import_hook(
    [f"dinotxt_jax.{room}" for room in ARRAY_ROOMS.split(" ")], "shape_checks.checked"
)

# Garbage collection over all JAX objects takes a tenth of the test time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Folders with the slowest test files. They start first, so that none is still running when the
# other workers have finished.
_FIRST = ("training", "runtime", "evaluation", "planning", "inference", "models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the slowest test files to the front; `--dist loadfile` keeps this order."""
    items.sort(key=lambda item: [folder != item.path.parent.name for folder in _FIRST])


# A process may map 65,530 areas of memory, of which each compiled program takes several: LLVM
# crashes beyond that, and all that maps memory becomes slow before.
_MOST_AREAS = 20_000


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forgets compiled programs when the tests so far have left too many."""
    yield
    areas = Path("/proc/self/maps")
    if areas.exists() and areas.read_text().count("\n") > _MOST_AREAS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats failed reads without the pauses that real storage needs."""
    monkeypatch.setattr("dinotxt_jax.storage.retries.PAUSES", (0.0,) * 4)


GOLDENS = ROOT / "tests" / "goldens"
SHARED = ROOT.parent / "shared"


@pytest.fixture
def goldens() -> Path:
    """Returns the folder with the small reference arrays that are part of the repository."""
    return GOLDENS


@pytest.fixture
def shared_goldens() -> Path:
    """Returns the folder with all reference arrays, which is not part of the repository."""
    folder = SHARED / "goldens"
    if not folder.is_dir():
        pytest.skip("the full reference arrays are not beside this checkout (../shared/goldens)")
    return folder


@pytest.fixture
def shared_data() -> Path:
    """Returns the folder with small real data sets and weights, not part of the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the reference DINOv2 (4 registers, random weights) as a model directory."""
    return _converted(tmp_path_factory, "backbones/dinov2_tiny_reg.pth")


@pytest.fixture(scope="session")
def tiny_dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a DINOv3 with random weights in the official layout as a model directory."""
    from drawn import checkpoint
    from safetensors.numpy import save_file

    from weights_convert.convert import convert

    folder = tmp_path_factory.mktemp("dinov3")
    save_file(checkpoint("dinov3", p=16, q=16, r=4), folder / "dinov3.safetensors")
    convert([folder / "dinov3.safetensors"], folder / "model", show_progress=False)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_dinotxt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the reference dino.txt (vocabulary size 133, no tokenizer) as a model directory."""
    return _converted(
        tmp_path_factory,
        "backbones/dinov2_tiny_reg.pth",
        "dinotxt_v2/vision_head.safetensors",
        "dinotxt_v2/text_encoder.safetensors",
    )


def _converted(tmp_path_factory: pytest.TempPathFactory, *files: str) -> Path:
    from weights_convert.convert import convert
    from weights_convert.settings import parse_settings

    output = tmp_path_factory.mktemp("models") / "model"
    heads = ["num_heads=4", "text_num_heads=4"][: 1 + (len(files) > 1)]
    sources = [GOLDENS / file for file in files]
    convert(sources, output, settings=parse_settings(heads), show_progress=False)
    return output


@pytest.fixture(scope="session")
def served_buckets() -> Iterator[None]:
    """Serves buckets on this machine for all tests of a worker that use them."""
    with serve():
        yield


@pytest.fixture
def bucket(
    served_buckets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Address]:
    """Returns an empty folder in a bucket; local copies are in `tmp_path / "cache"`."""
    from dinotxt_jax.storage.addresses import remove_folder, to_address

    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    folder = to_address(f"gs://pod/{uuid.uuid4().hex[:12]}")
    yield folder
    remove_folder(folder)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Web:
    """A web server on this machine.

    Attributes:
        folder: the folder that is served.
        requests: (path, Range header) for every request.
        cut: number of bytes in a file after which the connection is closed.
        cuts: how many more connections are closed so; None for all.
        answers: status codes for the next requests, before files are served.
        ranges: whether range requests are supported.
    """

    folder: Path
    root: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    cut: int | None = None
    cuts: int | None = None
    answers: list[int] = field(default_factory=list)
    ranges: bool = True

    def url(self, name: str) -> str:
        return f"{self.root}/{name}"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Serves `web.folder` at `web.url(NAME)`."""
    site = Web(tmp_path / "served")
    site.folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            range_header = self.headers.get("Range")
            site.requests.append((self.path, range_header))
            if site.answers:
                return self.send_error(site.answers.pop(0))
            file = site.folder / self.path.partition("?")[0].lstrip("/")
            if not file.is_file():
                return self.send_error(404)
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            same = self.headers.get("If-Range", etag) == etag
            first, end = 0, len(content)
            if range_header and site.ranges and same:
                texts = range_header.removeprefix("bytes=").split("-")
                first, end = int(texts[0]), min(int(texts[1] or end) + 1, end)
                if first and first >= len(content):
                    return self.send_error(416)
            part = content[first:end]
            self.send_response(206 if len(part) < len(content) else 200)
            self.send_header("Content-Length", str(len(part)))
            # Metadata headers that model hubs send for a file.
            self.send_header("ETag", etag)
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(part if site.cut is None else content[first : site.cut])
                self.close_connection = site.cut is not None
                if site.cuts is not None:
                    site.cuts -= 1
                    site.cut = site.cut if site.cuts > 0 else None
            return None

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        site.root = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
