"""docs/clusters/: what each file starts is what `dit` and torchrun take; the SLURM script saves, requeues and goes on;
a node that is lost and comes back costs the steps since the last checkpoint.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

from dittool.ckpt.files import list_checkpoints, resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.data.shards.read import ShardSet
from dittool.train.signals import STOPPING

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "docs" / "clusters"
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
SIGNALS = ["--signals-to-handle", ",".join(stop.name for stop in STOPPING), "--shutdown-timeout", "60"]
together = pytest.mark.xdist_group("torchrun")


def documents() -> list[dict]:
    return list(yaml.safe_load_all((FILES / "kubernetes.yaml").read_text(encoding="utf-8")))


def sky() -> dict:
    return yaml.safe_load((FILES / "skypilot.yaml").read_text(encoding="utf-8"))


def program(folder: Path, name: str, text: str) -> None:
    """A program of that name for a script that has `folder` first in its PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The surroundings of a job on one node, of whose SLURM programs each does the least that is asked of it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    program(programs, "scontrol", f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/scontrol.txt')
    program(programs, "torchrun", f'printf "%s\\n" "$@" > {tmp_path}/torchrun.txt')
    program(programs, "dit", f'exec {sys.executable} -m dittool "$@"')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    path = f"{programs}:{os.environ['PATH']}"
    return {**os.environ, **slurm, "SLURM_GPUS_ON_NODE": "2", "PATH": path, "OMP_NUM_THREADS": "1"}


def of_slurm(cluster: dict[str, str], tmp_path: Path) -> list[str]:
    subprocess.run(["bash", FILES / "train.sbatch"], env=cluster, check=True)
    return (tmp_path / "torchrun.txt").read_text().splitlines()


def of_kubernetes(_cluster: dict[str, str], _tmp_path: Path) -> list[str]:
    job = next(one for one in documents() if one["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "torchrun"
    return container["command"][1:]


def of_skypilot(cluster: dict[str, str], tmp_path: Path) -> list[str]:
    given = {"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_TASK_ID": "sky-1"}
    subprocess.run(
        ["bash", "-c", sky()["run"]], env={**cluster, **given, "SKYPILOT_NUM_GPUS_PER_NODE": "8"}, check=True
    )
    return (tmp_path / "torchrun.txt").read_text().splitlines()


@pytest.mark.parametrize("words_of", [of_slurm, of_kubernetes, of_skypilot])
def test_what_a_file_starts_is_understood(words_of, cluster, tmp_path, tiny_shards, dit):
    launcher = get_args_parser().parse_args(words_of(cluster, tmp_path))
    assert launcher.signals_to_handle == SIGNALS[1] and launcher.shutdown_timeout >= 600
    assert launcher.rdzv_endpoint and launcher.rdzv_backend == "c10d" and launcher.rdzv_id
    assert launcher.module and launcher.training_script == "dittool"
    words = [word for joined in launcher.training_script_args for word in joined.split("=", 1)]
    assert words[0] == "train" and "--continue" in words
    words[words.index("--preset") + 1] = "demo"
    words[words.index("--data") + 1] = tiny_shards.folder
    words[words.index("--out") + 1] = tmp_path / "run"
    small = [word for key in ("model.depth=1", "model.width=32", "model.heads=2") for word in ("-s", key)]
    ended = dit(*words, *small, "--dry-run")
    assert ended.code == 0, ended.err


def test_the_shell_understands_the_scripts():
    for text in (*(path.read_text() for path in FILES.glob("*.sbatch")), sky()["setup"], sky()["run"]):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_kubernetes_understands_its_file():
    kinds = {one["kind"]: one for one in documents()}
    for one in kinds.values():
        kubernetes_validate.validate(one, "1.31", strict=True)
    job, service = kinds["Job"], kinds["Service"]
    pod = job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name} and pod["subdomain"] == service["metadata"]["name"]
    words = pod["containers"][0]["command"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:29400" in words
    assert f"--nnodes={job['spec']['completions']}" in words
    assert f"--nproc-per-node={pod['containers'][0]['resources']['limits']['nvidia.com/gpu']}" in words
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    (memory,) = (volume for volume in pod["volumes"] if "emptyDir" in volume)
    assert mounts[memory["name"]] == "/dev/shm" and memory["emptyDir"]["medium"] == "Memory"


def test_every_file_lets_a_node_that_comes_back_find_the_others():
    """torchrun's own store, shared with the processes, is not announced to a node that joins later."""
    (container,) = (pod["spec"]["template"]["spec"]["containers"][0] for pod in documents() if pod["kind"] == "Job")
    assert {"name": _OWN_STORE, "value": "1"} in container["env"] and sky()["envs"][_OWN_STORE] == "1"
    assert f"export {_OWN_STORE}=1\n" in (FILES / "train.sbatch").read_text(encoding="utf-8")


def test_skypilot_has_only_keys_of_its_own():
    assert sky().keys() <= {"name", "num_nodes", "workdir", "resources", "file_mounts", "setup", "run", "envs"}


def test_an_image_holds_all_that_an_installation_needs():
    lines = (FILES / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {source for line in lines if line.startswith("COPY ") for source in shlex.split(line)[1:-1]}
    shown = (FILES / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in shown if line.startswith("!")}
    assert copied == {"dittool", "commands", "presets", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)


def test_the_page_names_every_file():
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    named = set(re.findall(r"clusters/([\w.]+)", page))
    assert {path.name for path in FILES.iterdir() if path.suffix != ".dockerignore"} <= named


SAVES = 'trap "echo saved >> {log}; exit 1" USR1 TERM; echo begun >> {log}; while :; do sleep 0.05; done'


@pytest.mark.parametrize(
    ("sent", "code", "asked"), [(signal.SIGUSR1, 0, "requeue 7\n"), (signal.SIGTERM, 1, "")], ids=["time is up", "TERM"]
)
def test_the_slurm_script_waits_for_the_run_to_be_saved(cluster, tmp_path, sent, code, asked):
    log, asked_of = tmp_path / "log.txt", tmp_path / "scontrol.txt"
    program(tmp_path / "bin", "torchrun", SAVES.format(log=log))
    script = subprocess.Popen(["bash", FILES / "train.sbatch"], env=cluster)
    while not log.exists():
        assert script.poll() is None
        time.sleep(0.02)
    script.send_signal(sent)
    assert script.wait(timeout=20) == code
    assert log.read_text() == "begun\nsaved\n"
    assert (asked_of.read_text() if asked_of.exists() else "") == asked


@pytest.mark.parametrize("code", [0, 6])
def test_the_slurm_script_ends_as_the_run_does(cluster, tmp_path, code):
    program(tmp_path / "bin", "torchrun", f"exit {code}")
    assert subprocess.run(["bash", FILES / "train.sbatch"], env=cluster, check=False).returncode == code
    assert not (tmp_path / "scontrol.txt").exists()


def words_of_run(tiny_shards, out: Path, *settings: str) -> list[str]:
    places = ["--preset", "demo", "--data", str(tiny_shards.folder), "--out", str(out)]
    return [*places, *(word for one in (*tiny_shards.overrides, *settings) for word in ("-s", one))]


def until_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or not any(row["step"] >= step for row in read_log(out)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@together
@pytest.mark.slow
def test_a_job_whose_time_is_up_is_saved_queued_again_and_goes_on(cluster, tiny_shards, tmp_path):
    """The script of the page and the real torchrun, twice: to the signal, and from there to the end."""
    out, asked_of = tmp_path / "run", tmp_path / "scontrol.txt"
    program(tmp_path / "bin", "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    words = words_of_run(tiny_shards, out, "train.steps=150", "checkpoint.every=1000", "train.batch_size=4")
    command, surroundings = ["bash", FILES / "train.sbatch", *words, "--no-audit"], {**cluster, "PORT": "0"}
    first = subprocess.Popen(command, env=surroundings)
    until_step(out, 20, first)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=120) == 0 and asked_of.read_text() == "requeue 7\n"
    (saved,) = list_checkpoints(out / "checkpoints")
    assert 20 <= saved.step < 150
    subprocess.run(command, env=surroundings, check=True, timeout=240)
    assert load_checkpoint(resolve_checkpoint(out))["step"] == 150
    subprocess.run(command, env=surroundings, check=True, timeout=120)  # finished: ends at once
    assert asked_of.read_text() == "requeue 7\n"


@pytest.mark.slow
def test_an_array_of_jobs_makes_the_shards_of_one_process(cluster, tiny_shards, tmp_path, dit):
    one, many = tmp_path / "one", tmp_path / "many"
    assert dit("embed", tiny_shards.images, "--into-shards", "--out", one, "--preset", "demo").code == 0
    job = {**cluster, "IMAGES": str(tiny_shards.images), "SHARDS": str(many), "PRESET": "demo"}
    for task in ("0", "1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3"}
        subprocess.run(["bash", FILES / "embed.sbatch"], env={**job, **array}, check=True)
    subprocess.run(["bash", FILES / "embed.sbatch"], env={**job, "LAST": "yes"}, check=True)
    shards = [ShardSet.open(folder) for folder in (one, many)]
    assert [path.relative_to(one) for path in sorted(one.rglob("*.tar"))] == [
        path.relative_to(many) for path in sorted(many.rglob("*.tar"))
    ]
    for path in one.rglob("*.tar"):
        assert path.read_bytes() == (many / path.relative_to(one)).read_bytes()
    assert len(shards[0].split("train")) == len(shards[1].split("train")) > 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@together
@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost_and_comes_back(tiny_shards, tmp_path):
    """Two torchruns with a rendezvous, as on two nodes. The second and its process are killed; started again it joins,
    and the run goes on from the last checkpoint to its end.
    """
    out, meeting = tmp_path / "run", f"localhost:{free_port()}"
    words = words_of_run(tiny_shards, out, "train.steps=200", "checkpoint.every=10", "checkpoint.keep=2")
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting]
    launcher += ["--rdzv-id", "7", "--rdzv-conf", "keep_alive_interval=2", "--max-restarts", "5", *SIGNALS]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "dittool", "train", "--no-audit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", _OWN_STORE: "1"}

    def node() -> subprocess.Popen:
        return subprocess.Popen([*command, "--continue", *words], env=environment, start_new_session=True)

    first = node()
    time.sleep(2)  # the one that comes first holds the meeting
    second = node()
    until_step(out, 40, first)
    os.killpg(second.pid, signal.SIGKILL)
    reached = max(file.step for file in list_checkpoints(out / "checkpoints"))
    time.sleep(12)  # torchrun gives a node up after three intervals; one that is back before is taken for the lost one
    again = node()
    assert first.wait(timeout=240) == 0 and again.wait(timeout=60) == 0
    assert load_checkpoint(resolve_checkpoint(out))["step"] == 200
    steps = [row["step"] for row in read_log(out)]
    assert steps == list(range(1, 201)) and reached >= 30
