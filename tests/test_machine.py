"""What of a machine would bite is found from both numbers, needed and there, and each finding says what to do."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from dittool import installation, machine
from dittool.config.load import load_config
from dittool.machine import BITES, NOTE, OK

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch):
    """Sets what the system says of its limits: `limits(RLIMIT_NOFILE, soft, hard)`."""
    real, message = resource.getrlimit, {}
    monkeypatch.setattr(resource, "getrlimit", lambda which: message.get(which) or real(which))

    def put(which, soft, hard):
        message[which] = (soft, hard)

    return put


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages there are: `installed(torch=("2.10.0", []))`, a version and what it needs."""

    def put(**packages):
        def distribution(name):
            if name not in packages:
                raise PackageNotFoundError(name)
            return SimpleNamespace(version=packages[name][0], requires=packages[name][1])

        monkeypatch.setattr(installation, "distribution", distribution)

    return put


# Versions


def test_the_packages_of_this_installation_fit(capsys):
    (found,) = installation.versions()
    assert found.status == OK, found


def test_a_package_below_its_floor_is_told_with_both_versions(installed):
    installed(torch=("2.9.1+cu128", []))
    (found,) = installation.versions(["torch>=2.10"])
    assert (found.check, found.status) == ("torch", BITES)
    assert found.what == "dit needs torch>=2.10, and torch 2.9.1+cu128 is installed"
    assert found.remedy == "pip install 'torch>=2.10'"


def test_a_torchvision_of_another_torch_is_told_with_the_one_that_fits(installed):
    installed(torch=("2.11.0+cpu", []), torchvision=("0.28.0", ["torch==2.13.0"]))
    (found,) = installation.versions(["torch>=2.10", "torchvision>=0.25"])
    assert found.what == "torchvision 0.28.0 needs torch==2.13.0, and torch 2.11.0+cpu is installed"
    assert "'torchvision==0.26.*'" in found.remedy


def test_a_build_for_a_device_is_the_same_version(installed):
    installed(torch=("2.13.0+cpu", []), torchvision=("0.28.0", ["torch==2.13.0"]))
    assert [found.status for found in installation.versions(["torchvision>=0.25"])] == [OK]


def test_what_is_missing_is_told_and_what_another_system_needs_is_not(installed):
    installed(diffusers=("0.42.0", ["httpx<1", 'flax; extra == "flax"', 'pywin32; sys_platform == "win32"']))
    (found,) = installation.versions(["diffusers>=0.41"])
    assert found.what == "diffusers 0.42.0 needs httpx<1, and it is not installed"


def test_packages_that_need_each_other_are_looked_at_once(installed):
    installed(one=("1.0", ["two"]), two=("1.0", ["one"]))
    (found,) = installation.versions(["one"])
    assert found.status == OK


def test_an_old_python_is_told():
    assert installation.python_version((99, 0)).status == BITES
    assert installation.python_version().status in (OK, NOTE)


def test_a_torchvision_that_cannot_be_imported_is_told(monkeypatch):
    def broken(name):
        raise RuntimeError("Detected that PyTorch and torchvision were compiled with different CUDA major versions.\nX")

    monkeypatch.setattr(installation.importlib, "import_module", broken)
    found = installation.torchvision_build()
    assert found.status == BITES and "compiled with different CUDA major versions" in found.what
    assert "\n" not in found.what and "torchvision==0." in found.remedy


@pytest.mark.parametrize(("wanted", "status"), [(True, BITES), (False, OK)])
def test_a_missing_compiler_bites_only_who_compiles(monkeypatch, wanted, status):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert installation.compiler(wanted).status == status


# Limits


def test_shared_memory_is_compared_with_what_the_workers_hold(monkeypatch, tmp_path):
    needed = machine.shared_memory_needed(batch_bytes=10 << 20, workers=4, ahead=4)
    assert needed == 170 << 20 and machine.shared_memory_needed(10 << 20, 0, 4) == 0
    small = SimpleNamespace(f_bavail=64, f_blocks=64, f_frsize=1 << 20)  # what docker gives
    monkeypatch.setattr(machine.os, "statvfs", lambda folder: small)
    found = machine.shared_memory(needed, 4, tmp_path)
    assert found.status == BITES
    assert "178.3 MB" in found.what and "67.1 MB free of 67.1 MB" in found.what
    assert "--shm-size=213m" in found.remedy and "train.workers=0" in found.remedy
    assert machine.shared_memory(0, 0, tmp_path).status == OK
    assert machine.shared_memory(60 << 20, 1, tmp_path).status == OK
    assert machine.shared_memory(needed, 4, tmp_path / "none").status == OK


def test_a_limit_of_open_files_that_the_shell_can_raise(limits):
    limits(resource.RLIMIT_NOFILE, 1024, 4096)
    needed = machine.descriptors_needed(files=1000, workers=2, ahead=4)
    found = machine.descriptors(needed)
    assert needed > 1024 and found.status == BITES
    assert f"{needed:,} files" in found.what and "1,024" in found.what
    assert found.remedy.endswith(f"ulimit -n {needed}")


def test_a_limit_that_only_the_administrator_can_raise(limits):
    limits(resource.RLIMIT_NOFILE, 256, 256)
    assert "docker run --ulimit" in machine.descriptors(1000).remedy


def test_no_limit_is_no_finding(limits):
    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        limits(which, UNLIMITED, UNLIMITED)
    assert machine.descriptors(10**9).status == machine.file_size(10**15).status == OK
    assert machine.processes(0).status == OK


def test_a_file_limit_below_a_checkpoint_bites(limits):
    limits(resource.RLIMIT_FSIZE, 10**8, UNLIMITED)
    found = machine.file_size(7 * 10**8)
    assert found.status == BITES and "700.0 MB" in found.what and "100.0 MB" in found.what


def test_started_anew_workers_are_told_with_what_a_script_needs(monkeypatch):
    monkeypatch.setattr(machine.multiprocessing, "get_start_method", lambda allow_none: "spawn")
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    found = machine.processes(4)
    assert found.status == NOTE and "spawn" in found.what and '__name__ == "__main__"' in found.remedy


def test_more_workers_than_cores_are_told(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.processes(16).remedy.endswith("-s train.workers=2")


def test_the_lowest_limit_of_memory_counts(limits):
    limits(resource.RLIMIT_AS, 1 << 20, UNLIMITED)
    found = machine.memory(1 << 30)
    assert found.status == BITES and "ulimit -v" in found.what and "1.0 MB" in found.what


def test_a_disk_that_is_too_small_and_a_folder_that_is_not_there(tmp_path):
    folder = tmp_path / "a b" / "run"
    assert machine.disk(folder, 1, "checkpoints need").status == OK
    found = machine.disk(folder, 10**18, "checkpoints need")
    assert found.status == BITES and "1000000.0 TB" in found.what
    assert not folder.exists() and list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refused(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refused)
    found = machine.disk(tmp_path, 1, "")
    assert found.status == BITES and "Read-only file system" in found.what


# Device


def fake_cuda(monkeypatch, capability=(9, 0), free=80 << 30, codes=("sm_90",)):
    import torch

    properties = SimpleNamespace(name="NVIDIA Fake", major=capability[0], minor=capability[1])
    for name, answer in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda index: properties,
        "mem_get_info": lambda index: (free, 80 << 30),
        "get_arch_list": lambda: list(codes),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)


@pytest.mark.parametrize(
    ("there", "status", "words"),
    [
        ({}, OK, "NVIDIA Fake: at least 1.0 GB needed"),
        ({"free": 1 << 20}, BITES, "1.0 MB of 85.9 GB free"),
        ({"capability": (12, 0)}, BITES, "is of sm_120, this torch is for sm_90"),
        ({"capability": (12, 0), "codes": ("compute_90",)}, OK, ""),
        ({"capability": (8, 6), "codes": ("sm_80",)}, OK, ""),
        ({"capability": (7, 5), "codes": ("sm_75",)}, NOTE, "no bf16"),
    ],
)
def test_a_gpu_is_held_against_what_a_run_needs(monkeypatch, there, status, words):
    fake_cuda(monkeypatch, **there)
    (found,) = machine.device(10**9, bf16=True)
    assert found.status == status and words in found.what and (found.status == OK or found.remedy)


@pytest.mark.parametrize(
    ("built_for", "hidden", "words"),
    [(None, None, "built for CPUs"), ("13.0", None, "cannot use it"), ("13.0", "", "CUDA_VISIBLE_DEVICES hides it")],
)
def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch, built_for, hidden, words):
    monkeypatch.setattr(Path, "exists", lambda path: str(path).startswith(("/dev/nvidia", "/proc/driver/nvidia")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = machine._no_gpu(built_for, bf16=False)
    assert found.status == BITES and words in found.what and found.remedy


# The command


def test_doctor_prints_each_finding_with_what_to_do_and_leaves_nothing(dit, tmp_path, monkeypatch, limits):
    monkeypatch.chdir(tmp_path)
    limits(resource.RLIMIT_NOFILE, 80, 80)
    shown = dit("doctor", "--preset", "demo", "-s", "train.workers=2")
    assert shown.code == 1 and shown.err == ""
    assert "✘ open files: " in shown.out and "docker run --ulimit" in shown.out
    assert shown.out.splitlines()[-1].startswith("1 will bite a run of demo")
    assert "no preset was named: nano was assumed" in dit("doctor").out
    assert list(tmp_path.iterdir()) == []


def test_doctor_as_json(dit, tmp_path):
    shown = dit("doctor", "--preset", "demo", "--out", tmp_path / "runs", "--json")
    found = json.loads(shown.out)
    assert {"python", "versions", "torchvision", "compiler", "memory", "/dev/shm", "open files", "terminal"} <= {
        one["check"] for one in found["findings"]
    }
    assert set(found["findings"][0]) == {"check", "status", "what", "remedy"}
    assert found["ok"] == (shown.code == 0) == (found["counts"]["bites"] == 0)


@pytest.mark.parametrize("preset", ["drift-b2", "drift-toy", "base"])
def test_every_family_can_be_examined(preset, tmp_path):
    from dittool.train.readiness import needs_of

    needs = needs_of(load_config(preset), tmp_path)
    assert needs is not None and needs.checkpoint > 0
    assert (needs.batch > 0) == (needs.workers > 0)


def test_every_average_that_is_followed_takes_room(tmp_path):
    from dittool.train.readiness import needs_of

    one, three = (needs_of(load_config("nano", keys), tmp_path) for keys in ([], ["ema.averages=[0.05, 0.1]"]))
    assert one is not None and three is not None
    assert three.checkpoint == one.checkpoint * 6 // 4 and three.model == one.model * 7 // 5


def test_a_preset_with_encoders_of_unknown_width_is_examined_without_its_size(dit, tmp_path):
    shown = dit("doctor", "--preset", "nano", "-s", "encoders.vae=/some/folder", "--out", tmp_path)
    assert "the size of this preset's model is not known" in shown.out and "Traceback" not in shown.err


@pytest.mark.slow
def test_the_limit_of_a_real_shell_is_seen(tmp_path):
    script = f"ulimit -n 100; {sys.executable} -m dittool doctor --preset nano --json"
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False
    )
    (found,) = [one for one in json.loads(run.stdout)["findings"] if one["check"] == "open files"]
    assert run.returncode == 1 and found["status"] == "bites" and "the limit is 100" in found["what"]
