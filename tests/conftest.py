"""What every test finds: one thread, no network, and `dit` as a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dittool.console import Talk

if TYPE_CHECKING:
    from dittool.config.drift_schema import DriftConfig
    from dittool.config.schema import Config
    from dittool.data.features.store import FeatureStore
    from dittool.data.shards.stream import BatchStream

# Before torch is imported: results of float arithmetic depend on the number of threads, and small models are faster on
# one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


MEMORY_A_PROCESS = 3 * 2**30  # what torch, the encoders and the largest test take together


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` means: a core and three gigabytes for each, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // MEMORY_A_PROCESS))


# Here every run of the tests tries the family with captions, and `pytest -m slow` the one with classes as well: what is
# tried is the loop around them. tests/train/test_resume_matrix.py tries both every time.
ONE_FAMILY = ("ablate/test_ablate.py", "faults/test_runs.py", "train/test_beginning.py", "train/test_loop.py")


@pytest.hookimpl(tryfirst=True)  # before "not slow" chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        of_classes = getattr(item, "callspec", None) and item.callspec.params.get("family_shards") == "drift"
        if of_classes and item.path.as_posix().endswith(ONE_FAMILY):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    code: int
    out: str
    err: str


def empty_plot(_rows: object, path: Path) -> None:
    """In place of `plot_losses`, which tests/ckpt/test_run_log.py tries."""
    from PIL import Image

    Image.new("L", (8, 4)).save(path)


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    for name in ("dittool.train.log", "dittool.validate.report"):  # a plot takes a third of a run of eight steps
        if name in sys.modules:
            monkeypatch.setattr(sys.modules[name], "plot_losses", empty_plot)
    for name in ("DIT_DEBUG", "DIT_LPIPS_BACKBONE", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


class Listener(Talk):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="session")
def new_listener() -> type[Listener]:
    """For fixtures of a wider scope, and where one is not enough."""
    return Listener


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def dit(capsys) -> Callable[..., Outcome]:
    """Runs a command line in this process: `dit("train", "--preset", "demo").code`."""
    from dittool.cli import run

    def call(*arguments: object) -> Outcome:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


TINY = (
    "model.patch_fusion=attended",
    "model.mlp=gelu",
    "model.positions=sincos",
    "model.qk_norm=false",
    "flow.shift=1.0",
    "dropout.none=0.1",
    "dropout.text_only=0.2",
    "dropout.reference_only=0.2",
    "dropout.both=0.5",
    "sample.guidance=additive",
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "data.holdout=0.2",
    "train.steps=8",
    "train.optimizer=adamw",
    "train.batch_size=4",
    "train.warmup_steps=2",
    "train.log_every=1",
    "train.sample_every=0",
    "train.eval_every=0",
    "checkpoint.every=3",
    "sample.steps=2",
)


@dataclass(frozen=True)
class TinyShards:
    """Two dozen drawn images, embedded and sharded with a small configuration. Read only: copy the folder to damage
    it.
    """

    folder: Path  # the shards
    images: Path
    config: Config
    overrides: tuple[str, ...] = TINY  # what makes the demo preset this small
    preset: str = "demo"

    def config_with(self, *overrides: str) -> Config:
        from dittool.config.load import load_config

        return load_config("demo", [*TINY, *overrides])

    @property
    def store(self) -> FeatureStore:
        from dittool.data.features.store import FeatureStore

        return FeatureStore(self.folder.parent / "derived")

    def stream(self, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> BatchStream:
        """Batches of four of the training samples."""
        from dittool.data.provenance import Provenance
        from dittool.data.shards.read import ShardSet
        from dittool.data.shards.stream import BatchStream

        shards = ShardSet.open(self.folder)
        refs = shards.split("train")
        return BatchStream(
            shards,
            refs,
            Provenance.of(shards, refs, self.config).norm,
            4,
            seed=0,
            rank=rank,
            ranks=ranks,
            accumulate=accumulate,
        )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> TinyShards:
    from dittool.config.load import load_config
    from dittool.data.features.embed import embed
    from dittool.data.shards.write import shard
    from dittool.demo.drawing import draw_dataset

    root, config = tmp_path_factory.mktemp("tiny"), load_config("demo", TINY)
    draw_dataset(root / "images", 24, seed=0)
    embed(root / "images", root / "derived", config)
    shard(root / "derived", root / "shards")
    return TinyShards(root / "shards", root / "images", config)


@pytest.fixture(scope="session")
def tiny_run(tiny_shards, tmp_path_factory) -> Path:
    """The folder of a run of eight steps on `tiny_shards`. Read only."""
    from dittool.train.loop import train

    out = tmp_path_factory.mktemp("tiny_run") / "run"
    train(tiny_shards.config, tiny_shards.folder, out)
    return out


SMALL_CLASSES = (
    "model.depth=1",
    "model.width=16",
    "model.heads=2",
    "model.mlp_width=16",
    "model.registers=2",
    "model.style_tokens=2",
    "model.input=4x4",
    'data.buckets=["32x32"]',
    "data.holdout=0.1",
    "drift.generated=4",
    "drift.positives=4",
    "drift.unconditional=2",
    "drift.class_queue=6",
    "drift.global_queue=12",
    "drift.pushed=5",
    'drift.features=["raw", "moments"]',
    "drift.encoder=seeded",
    "drift.maps_weight=1.0",
    "train.steps=6",
    "train.batch_size=8",
    "train.warmup_steps=1",
    "train.log_every=2",
    "train.eval_every=3",
    "train.sample_every=0",
    "checkpoint.every=2",
    "checkpoint.keep=9",
)


@dataclass(frozen=True)
class ClassShards:
    """Shards of drawn shapes in class folders. Read only."""

    folder: Path
    overrides: tuple[str, ...] = SMALL_CLASSES
    preset: str = "drift-demo"

    def config_with(self, *overrides: str) -> DriftConfig:
        from dittool.config.load import load_config

        return load_config(self.preset, [*self.overrides, *overrides])


@pytest.fixture(scope="session")
def class_shards(tmp_path_factory) -> ClassShards:
    from dittool.config.load import load_config
    from dittool.data.features.embed import embed
    from dittool.data.shards.write import shard
    from dittool.demo.class_drawing import draw_class_folders

    root = tmp_path_factory.mktemp("classes")
    draw_class_folders(root / "images", 96, 0, 32)
    embed(root / "images", root / "derived", load_config("drift-demo", SMALL_CLASSES))
    shard(root / "derived", root / "shards")
    return ClassShards(root / "shards")


@pytest.fixture(scope="session")
def class_run(class_shards, tmp_path_factory) -> Path:
    """The folder of a run of six steps. Read only."""
    from dittool.train.loop import train

    out = tmp_path_factory.mktemp("class_run") / "run"
    train(class_shards.config_with(), class_shards.folder, out)
    return out


@pytest.fixture(scope="session", params=["flow", "drift"])
def family_shards(request) -> TinyShards | ClassShards:
    """The shards of each family that reads some, whose runs take eight steps and save every third. Read only."""
    if request.param == "flow":
        return request.getfixturevalue("tiny_shards")
    same_steps = ("train.steps=8", "train.warmup_steps=2", "train.log_every=1", "train.eval_every=0")
    return replace(
        request.getfixturevalue("class_shards"), overrides=(*SMALL_CLASSES, *same_steps, "checkpoint.every=3")
    )


@pytest.fixture(scope="session")
def family_run(family_shards, request, tmp_path_factory) -> Path:
    """The folder of a run of eight steps on `family_shards`. Read only."""
    from dittool.train.loop import train

    if family_shards.preset == "demo":
        return request.getfixturevalue("tiny_run")
    out = tmp_path_factory.mktemp("family_run") / "run"
    train(family_shards.config_with(), family_shards.folder, out)
    return out


@pytest.fixture
def forget_digests() -> Callable[[Path], None]:
    """Makes a derived folder's journal one that knows no digests, as of the first versions: what a test changes in
    features goes unnoticed.
    """
    import numpy as np

    from dittool.data.features.journal import ROW

    def forget(derived: Path) -> None:
        rows = np.fromfile(derived / "journal.rows", ROW)
        rows["digests"] = 0
        rows.tofile(derived / "journal.rows")

    return forget


@pytest.fixture
def bucket(monkeypatch, tmp_path_factory):
    """Address of a new bucket of a real S3 server, with keys in the environment."""
    server_module = pytest.importorskip("moto.server")
    import s3fs

    from dittool.data.remote import requests

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "KEYOFTEST",
        "AWS_SECRET_ACCESS_KEY": "SECRETOFTEST",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests._opened.cache_clear()
    name = f"bucket-{tmp_path_factory.mktemp('bucket').name}"  # its buckets outlive a server of the same process
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}"
    requests._opened.cache_clear()
    server.stop()
