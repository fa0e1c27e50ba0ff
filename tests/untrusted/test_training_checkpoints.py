"""Training checkpoints of public trainers are read, and nothing in them is imported."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch

from dittool.ckpt.load import check_pt, load_checkpoint
from dittool.ckpt.parts import state_dicts
from dittool.ckpt.tensors import load_mapped
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError, UnsafeFileError
from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.tensor_spec import TensorSpec
from tests.untrusted import benign
from tests.untrusted.disguised import called, raw
from tests.untrusted.handmade import FOUR_FLOATS, Calls, program, pt, storage, tensor, text
from tests.untrusted.hidden import FOREIGN


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[Path, dict[str, torch.Tensor]]:
    return benign.write(tmp_path_factory.mktemp("benign"))


def content_of(files, name: str) -> dict:
    """Of the legacy file, the oldest form."""
    return next(check_pt(path).content for path in files if path.name == f"{name}, legacy.pth")


def test_no_benign_file_is_refused_and_each_gives_its_weights(files):
    assert len(files) >= 125
    for path, weights in files.items():
        loaded = load_weights(path)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items()), path


def test_no_module_that_a_file_names_is_imported(files):
    names = {"omegaconf", "lightning", "trainer", "acme"}
    assert not any(module.split(".")[0] in names for module in sys.modules)
    for path in files:
        check_pt(path)
    assert not any(module.split(".")[0] in names for module in sys.modules)


def test_the_commands_read_them(dit, files):
    for path in [path for path in files if path.name.endswith("legacy.pth")]:
        assert dit("inspect-ckpt", path, "--tree", "--json").code == 0, path
        assert dit("audit", path, "--select", "K1,K2").code == 0, path


def test_settings_are_read_as_names_and_values(files):
    arguments = content_of(files, "a Namespace")["args"]
    assert type(arguments) is ForeignObject and str(arguments.kind) == "argparse.Namespace"
    assert arguments.entries["lr"] == 1e-4 and arguments.entries["betas"] == (0.9, 0.95)
    assert arguments.entries["out"].arguments == ("runs", "x")
    config = content_of(files, "OmegaConf")["config"]
    assert config.entries["_content"]["lr"].entries["_content"] == 1e-4
    assert config.entries["_content"]["lr"].entries["_parent"] is config  # a circle
    hyper = content_of(files, "Lightning")["hyper_parameters"]
    assert hyper.entries["optimizer"] == ClassName("torch.optim.adamw", "AdamW") and hyper.entries["lr"] == 1e-4


def test_numbers_of_numpy_are_plain_and_arrays_keep_their_shape(files):
    content = content_of(files, "numpy")
    assert (content["step"], content["loss"], content["ok"], content["name"]) == (5, 0.5, True, "run")
    assert content["history"].attributes == TensorSpec("float64", (2, 3))
    assert content["order"].attributes == TensorSpec("float16", (2, 3))
    assert content["rng"][1].attributes == TensorSpec("uint32", (624,))


@pytest.mark.parametrize("key", ["", "model", "ema"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_network_that_was_pickled_whole_gives_its_state_dict(tmp_path, key, legacy, dit):
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Sequential(torch.nn.Linear(2, 2))
    )
    torch.save({key: model} if key else model, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(tmp_path / "a.pt")
    assert list(loaded) == list(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert dit("inspect-ckpt", tmp_path / "a.pt", "--tree").code == 0 and dit("audit", tmp_path / "a.pt").code == 0


def test_pythons_own_values_are_read(files):
    content = content_of(files, "Python's own")
    assert content["bytes"] == b"\x00\xff" and content["array"] == b"ab" and content["set"] == [1, 2]
    assert content["count"].entries == {"a": 2, "b": 1} and content["default"].entries == {"a": [1]}
    assert content["meter"].elements == [1.0, 2.0] and content["large"] == 2**70
    assert {"('a', 1)", "None", "0.5", str(2**40), "True"} <= content.keys()


def test_a_trainers_own_classes_are_read(files):
    content = content_of(files, "a trainer's own")
    assert content["precision"].arguments == ("bf16",) and content["state"].arguments == (3, 0.5)
    assert content["ema"].entries == {"decay": 0.999} and content["config"].entries["depth"] == 2
    assert content["class"] == ClassName("__main__", "Config")


def test_enumerations_are_read_as_their_values(files):
    content = content_of(files, "enumerations")
    assert str(content["prediction"].kind) == "trainer.choices.PredictionType"
    assert [one.arguments for one in content["schedule"]] == [(("shifted cosine", 3),), ((1, 2.5),)]
    assert content["prediction"].arguments == ("v prediction",)
    assert content["features"].arguments == (3,) and content["stage"].arguments == (2,)


@pytest.mark.parametrize("value", [3, 0.5, True, None, (1, 2), "bf16", "v prediction", ("cosine", 3), "80%", "a+b"])
def test_words_belong_to_classes_of_choices_and_numbers_to_any(tmp_path, value):
    """The two sides of one form: a member of an enumeration, and a class that runs what it is given."""
    pickled = pickle.dumps(value, 2)[2:-1]
    for name in ("trainer.Precision", "trainer.LossType", "trainer._NoiseSchedule", "trainer.Mode"):
        content = check_pt(pt(tmp_path / "a.pt", program(called(name, pickled)))).content
        assert content.arguments == (value,) and str(content.kind) == name
    path = pt(tmp_path / "b.pt", program(called("psutil.Popen", pickled)))
    if isinstance(value, str) or value == ("cosine", 3):
        with pytest.raises(UnsafeFileError, match=r"global psutil\.Popen, called") as refusal:
            check_pt(path)
        assert "save its weights alone" in refusal.value.hint
    else:
        assert check_pt(path).content.arguments == (value,)


def test_what_is_written_as_a_call_is_a_placeholder_with_its_arguments(files):
    content = content_of(files, "enumerations of any name")
    assert [one.arguments for one in content["color"][:3]] == [("red",), ("dark blue",), ("",)]
    assert str(content["by name"]) == "acme.settings.ByName.FAST"
    inside = content_of(files, "classes in classes")
    assert str(inside["mode"].kind) == "acme.settings.Outer.Mode" and inside["inner"].entries == {"width": 3}
    values = content_of(files, "values written as calls")
    assert values["point"].arguments == ("left", 0.5) and values["dict"].entries == {"a": [1]}
    kept = content_of(files, "kept calls of a trainer's own")["schedule"]
    assert str(kept.arguments[0]) == "acme.schedule.warm_up" and kept.entries == {"steps": 3}


def test_tensors_without_plain_values_are_described(files):
    content = content_of(files, "tensors without plain values")
    assert content["sparse"].entries["shape"] == (3, 3) and content["meta"].entries["dtype"] == "torch.float32"
    assert content["quantized"].entries["integers"] == TensorSpec("int8", (3,))
    assert content["quantized"].entries["scale"] == [pytest.approx(0.1), 0]
    assert content_of(files, "numpy's objects")["objects"].elements == [{"a": 1}, None, "x"]


def test_a_network_with_quantized_layers_gives_its_other_weights(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"model": {"a": torch.ones(2), "b": quantized, "c": torch.eye(2).to_sparse()}}, tmp_path / "a.pt")
    assert list(load_weights(tmp_path / "a.pt")) == ["a"]


def test_a_call_with_words_is_read_and_warned_of_unless_its_class_is_named_as_a_choice(dit, files):
    warned = next(path for path in files if path.name == "enumerations of any name, protocol 2.ckpt")
    named = next(path for path in files if path.name == "enumerations, protocol 2.ckpt")
    said = dit("audit", warned, "--select", "K1")
    assert said.code == 0 and "warn" in said.out and "whoever unpickles it calls" in " ".join(said.out.split())
    assert "warn" not in dit("audit", named, "--select", "K1", "--format", "junit").out
    assert "acme.settings.Color('red')" in dit("inspect-ckpt", warned, "--json").out


def test_a_file_of_the_old_habit_pth_tar_is_a_checkpoint(dit, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "model_best.pth.tar")
    assert dit("audit", tmp_path / "model_best.pth.tar", "--select", "K1").code == 0
    assert dit("inspect-ckpt", tmp_path / "model_best.pth.tar").code == 0


def test_kinds_of_containers_keep_what_is_in_them(files):
    content = content_of(files, "kinds of containers")
    assert content["ordered"].entries == {"a": 1, "b": [2]} and content["default"].entries == {"a": 1}
    assert content["window"].elements == [0.5, 0.25] and content["values"].elements == [1, {"a": 2}]
    assert content["shape"].arguments == (2, 3) and content["frozen"].attributes == [2, "x"]


def test_calls_that_are_kept_and_random_states_are_shown(files):
    content = content_of(files, "Hydra's")
    assert str(content["optimizer"].arguments[0]) == "torch.optim.adamw.AdamW"
    assert content["optimizer"].entries == {"lr": 1e-4, "betas": (0.9, 0.95)}
    assert content["filter"].arguments[0] == r"blocks\.(\d+)\." and content["fraction"].arguments == (1, 3)
    states = content_of(files, "random states")
    assert states["torch"].attributes[2].shape == (5056,) and states["python"].attributes[0] == 3
    assert states["states"][0]["bit_generator"] == "PCG64"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\x80\x04N.", b"cannot\nbe read", bytes(range(256)), b"\x0a\x10model", b"X"]
)
def test_bytes_that_are_no_pickle_are_read(tmp_path, data):
    """A tokenizer's state is bytes, too."""
    state = FOREIGN + b"C" + bytes([len(data)]) + data + b"b" if len(data) < 256 else FOREIGN + raw(data) + b"b"
    assert check_pt(pt(tmp_path / "a.pt", b"\x80\x03" + state + b".")).content.attributes == data


def test_a_wrapper_that_unpickles_its_state_runs_what_its_bytes_say(tmp_path):
    """The control: such a class exists in many packages, and nothing but its bytes tells."""
    wrapper = type("Wrapper", (), {"__setstate__": lambda self, state: pickle.loads(state)})
    wrapper.__module__, wrapper.__qualname__ = "trainer", "Wrapper"
    made = wrapper.__new__(wrapper)
    made.__setstate__(pickle.dumps(Calls(Path.touch, tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_tensors_are_built_as_torch_builds_them(tmp_path):
    """Views, strides, dtypes, empty tensors and shared storages, from both formats."""
    base = torch.arange(24.0)
    saved = {
        "views": [base.view(4, 6), base.view(4, 6).T, base[3:9:2], base],
        "dtypes": [torch.arange(4).to(getattr(torch, name)) for name in ("float8_e4m3fn", "bfloat16", "int8", "bool")],
        "complex": torch.complex(torch.ones(3), torch.zeros(3)),
        "empty": [torch.zeros(0), torch.zeros(2, 0, 3), torch.tensor(1.5)],
    }
    for legacy in (False, True):
        if legacy:
            saved["dtypes"] = saved["dtypes"][1:]  # torch itself cannot read an 8-bit float back from that format
        path = tmp_path / f"{legacy}.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
        report = check_pt(path)
        built, loaded = load_mapped(report, report.content), torch.load(path)
        for name in saved:
            both = (
                zip(built[name], loaded[name], strict=True)
                if isinstance(saved[name], list)
                else [(built[name], loaded[name])]
            )
            for one, other in both:
                assert one.dtype == other.dtype and one.stride() == other.stride()
                assert torch.equal(
                    one.view(torch.uint8) if one.element_size() == 1 else one,
                    other.view(torch.uint8) if one.element_size() == 1 else other,
                )
        built["views"][0].zero_()
        assert not built["views"][3].any()  # they share one storage


def test_to_resume_or_draw_from_a_file_it_must_hold_plain_values_alone(files):
    for path in files:
        if not path.name.startswith("a scheduler, protocol 2"):  # which has nothing else
            with pytest.raises(UnsafeFileError):
                load_checkpoint(path)


def test_a_legacy_file_that_was_cut_is_called_so_wherever_it_was_cut(tmp_path):
    torch.save(
        {"w": torch.ones(4), "x": "a text of some length"}, tmp_path / "a.pt", _use_new_zipfile_serialization=False
    )
    raw = (tmp_path / "a.pt").read_bytes()
    for length in range(40, len(raw)):
        (tmp_path / "b.pt").write_bytes(raw[:length])
        with pytest.raises(BadDataError, match="cut short"):
            check_pt(tmp_path / "b.pt")


def test_objects_in_circles_and_chains_are_read_in_no_time(tmp_path):
    """Each holds the one before twice: 2^60 if they were unfolded."""
    body = FOREIGN + b"q\x01"
    for _ in range(60):
        body += FOREIGN + b"q\x02}" + b"X\1\0\0\0ah\x01s" + b"X\1\0\0\0bh\x01sbq\x01"
        body = body + b"\x85"  # in a tuple, so that one value is left
    content = check_pt(pt(tmp_path / "a.pt", program(b"(" + body + b"t"))).content
    assert repr(content[-1][0]) == "trainer.state.State(a=trainer.state.State(…), b=trainer.state.State(…))"


def test_objects_in_circles_through_dicts_are_shown(dit, tmp_path):
    body = b"}" + text("w") + tensor(storage()) + b"s" + text("args") + FOREIGN + b"q\1}" + text("x")
    body += b"}" + text("y") + b"h\1ssbs"
    shown = dit("inspect-ckpt", pt(tmp_path / "a.pt", program(body), FOUR_FLOATS), "--tree", "--json")
    assert shown.code == 0 and "trainer.state.State" in shown.out


def test_names_of_thousands_of_parts_are_shown_as_they_are(dit, tmp_path):
    torch.save({"a." * 3000 + "w": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"model": {"module." * 3000 + "w": torch.ones(2)}}, tmp_path / "b.pt")
    for name in "ab":
        assert dit("inspect-ckpt", tmp_path / f"{name}.pt", "--tree").code == 0
        assert dit("audit", tmp_path / f"{name}.pt", "--select", "K").code == 0


def test_state_dicts_are_looked_for_among_a_million_keys_at_most(tmp_path):
    """Four levels of two thousand averages each, all of them the same objects: 2000^4 if each were opened."""
    body = FOREIGN + b"q\1"
    for _ in range(5):
        names = b"".join(text(f"ema_{index}") + b"h\1" for index in range(2000))
        body += FOREIGN + b"q\2}(" + names + b"ubq\1"
    path = pt(tmp_path / "a.pt", program(b"(" + body + b"}" + text("model") + b"h\1st"))
    assert state_dicts(check_pt(path).content[-1]) == []


def test_names_that_unfold_beyond_measure_are_refused(tmp_path):
    body = b"(" + text("k" * 5000) + b"q\1" + tensor(storage()) + b"q\2}("
    body += b"".join(text(f"n{index}") + b"h\2" for index in range(5000)) + b"uq\3"
    body += b"}h\1h\3sq\3" * 55
    with pytest.raises(UnsafeFileError, match="names that unfold to more than"):
        check_pt(pt(tmp_path / "a.pt", program(body + b"t"), {"0": bytes(16)}))


def test_tensors_that_together_claim_far_more_than_the_file_are_refused(tmp_path):
    """A million values, referred to two hundred times: hours of work for whoever looks at each."""
    one = tensor(storage(count=1 << 18), shape=(1 << 18,))
    for body in (one + b"q\x01(" + b"h\x01" * 200 + b"t\x86", b"(" + one * 200 + b"t"):
        with pytest.raises(UnsafeFileError, match="tensors that unfold to"):
            check_pt(pt(tmp_path / "a.pt", program(body), {"0": bytes(1 << 20)}))
