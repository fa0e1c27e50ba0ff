"""Configuration from files and overrides: what is read, and how every mistake is told."""

from __future__ import annotations

import re

import pytest

from dittool.config.load import ConfigError, config_from_dict, config_to_dict, config_to_toml, load_config
from dittool.config.presets import preset_names
from dittool.errors import UsageError

MINIMAL = """\
description = "a test"
[model]
depth = 2
width = 32
heads = 2
[encoders]
image = "builtin:dinov3"
text = "builtin:words"
vae = "builtin:dct"
[data]
area = "128x128"
[dropout]
none = 0.1
text_only = 0.2
reference_only = 0.2
both = 0.5
[train]
steps = 100
batch_size = 4
"""


@pytest.fixture
def preset(tmp_path):
    """Writes a preset file, the minimal one unless another text is given, and returns its path as text."""

    def write(text: str | bytes = MINIMAL, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def problems_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def message_of(path: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.hint, "an error says what to do next"
    assert caught.value.exit_code == 2
    return caught.value.message


# What is read


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_preset_written_as_toml_reads_back_as_the_same_configuration(name, preset):
    config = load_config(name)
    assert load_config(preset(config_to_toml(config))) == config
    assert config_from_dict(config_to_dict(config), "a checkpoint") == config


def test_overrides_have_the_types_of_toml_and_a_bare_word_is_text(preset):
    config = load_config(
        preset(),
        [
            "train.lr=1e-4",
            "train.steps = 7",
            "model.qk_norm=true",
            "train.precision=bf16",
            'encoders.image="a folder/with = signs"',
            "encoders.text=google/t5-v1_1-large",
            "train.betas=[0.8, 0.9]",
            'validate.edits=[["red", "blue"]]',
        ],
    )
    assert (config.train.lr, config.train.steps, config.model.qk_norm, config.train.precision) == (
        1e-4,
        7,
        True,
        "bf16",
    )
    assert (config.encoders.image, config.encoders.text) == ("a folder/with = signs", "google/t5-v1_1-large")
    assert (config.train.betas, config.validate_.edits) == ([0.8, 0.9], [["red", "blue"]])


def test_the_last_of_two_overrides_of_one_key_counts(preset):
    assert load_config(preset(), ["train.lr=1e-4", "train.lr=1e-5"]).train.lr == 1e-5


def test_an_area_and_buckets_replace_each_other(preset):
    config = load_config(preset(), ['data.buckets=["128x128", "160x96"]'])
    assert (config.data.area, config.data.buckets) == (None, ["128x128", "160x96"])
    path = preset(config_to_toml(config), "buckets.toml")
    assert load_config(path, ["data.area=64x64"]).data.buckets is None


def test_a_derived_preset_changes_only_what_it_names_and_may_lead_through_several_bases(preset):
    preset()
    preset('base = "mine.toml"\n[train]\nsteps = 50\n', "second.toml")
    config = load_config(preset('base = "second.toml"\ndescription = "third"\n[train]\nbatch_size = 2\n', "third.toml"))
    assert (config.description, config.train.steps, config.train.batch_size, config.model.depth) == ("third", 50, 2, 2)


def test_a_base_may_be_a_shipped_preset(preset):
    assert load_config(preset('base = "nano"\n[train]\nsteps = 1234\n')).train.steps == 1234


def test_a_byte_order_mark_is_not_part_of_the_first_key(preset):
    assert load_config(preset(b"\xef\xbb\xbf" + MINIMAL.encode())).description == "a test"


# How mistakes are told


def test_three_mistakes_are_reported_at_once_each_with_key_line_and_reason(preset):
    text = (
        MINIMAL.replace("steps = 100", "steps = 100\nwarmup_steps = 100")
        .replace("width = 32", "widht = 32")
        .replace("both = 0.5", "both = 0.4")
    )
    path = preset(text)
    problems = problems_of(path)
    assert len(problems) == 4  # the misspelt width is also missing
    assert f"model.width: missing; it has no default ({path}:2)" in problems
    assert f"model.widht: unknown key, did you mean 'model.width'? ({path}:4)" in problems
    assert f"dropout: the four shares sum to 0.9, not 1 ({path}:12)" in problems
    assert f"train: warmup_steps 100 must be below steps 100, or the learning rate only rises ({path}:17)" in problems


def test_a_rule_between_keys_is_checked_although_the_section_has_an_unknown_key(preset):
    problems = problems_of(preset(), "train.warmup_steps=100", "train.wramup=1")
    assert [problem.split(" ")[0] for problem in problems] == ["train.wramup:", "train:"]


def test_two_broken_rules_of_one_section_are_both_told(preset):
    (problem,) = problems_of(preset(), "model.heads=3", "model.width=34")
    assert "not divisible by heads 3" in problem and "not divisible by 4" in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", "train.lerning_rate: unknown key"),
        ("train.warmup_step=1", "train.warmup_step: unknown key, did you mean 'train.warmup_steps'?"),
        ("trian.lr=1", "trian: unknown section, did you mean 'train'?"),
        ("model.lr=1", "model.lr: unknown key, did you mean 'train.lr'?"),
        ("validate.threshold.lpips=0.1", "validate.threshold: unknown section, did you mean 'validate.thresholds'?"),
        ("train=5", "train: must be a section, not 5"),
        ("train.precision=fp16", "train.precision: input should be 'fp32' or 'bf16', not 'fp16'"),
        ("train.betas=[0.9]", "train.betas: list should have at least 2 items, not 1"),
        ("data.area=128", "data.area: input should be a valid string, not 128"),
        ("data.area=128x", "data.area: '128x' is not WIDTHxHEIGHT"),
        ("data.buckets=[]", "data.buckets: list should have at least 1 item"),
        ("train.steps=1000000000000000000000", "train.steps: input should be less than"),
    ],
)
def test_a_wrong_override_is_told_with_its_key_the_nearest_name_and_the_override(preset, override, message):
    (problem,) = problems_of(preset(), override)
    assert problem.startswith(message)
    assert problem.endswith(f"(-s {override})")


@pytest.mark.parametrize("override", ["train.lr", "=5", "train..lr=1", ".lr=1", ""])
def test_an_override_without_the_form_section_key_value_is_told(preset, override):
    assert problems_of(preset(), override) == [f"-s {override}: an override has the form section.key=value"]


def test_an_override_below_a_value_is_told(preset):
    assert problems_of(preset(), "train.lr.peak=1") == [] or "train.lr" in problems_of(preset(), "train.lr.peak=1")[0]


def test_a_rule_broken_by_an_override_names_the_section_and_the_override(preset):
    path = preset()
    (problem,) = problems_of(path, "train.warmup_steps=500")
    assert problem.endswith(f"({path}:17, -s train.warmup_steps=500)")


def test_a_mistake_in_a_base_names_the_base_file(preset):
    base = preset(MINIMAL.replace("steps = 100", "steps = -1"))
    (problem,) = problems_of(preset('base = "mine.toml"', "derived.toml"))
    assert problem == f"train.steps: input should be greater than 0, not -1 ({base}:18)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MINIMAL.replace("[train]\nsteps = 100", "[train]\n\n# a comment: steps = 5\nsteps = 0"), 20),
        ("train.steps = 0\ntrain.batch_size = 4\n" + MINIMAL.split("[train]")[0], 1),
        ("train = { batch_size = 4, steps = 0 }\n" + MINIMAL.split("[train]")[0], 1),
        (MINIMAL.replace("steps = 100", "'steps' = 0"), 18),
        (
            "train.steps = 0\ntrain.batch_size = 4\n"
            + MINIMAL.split("[train]")[0].replace('"a test"', '"""a\ntrain.steps = 3\n"""'),
            1,
        ),
        (MINIMAL.replace("[train]", " [ train ] # here").replace("steps = 100", "steps=0"), 18),
    ],
    ids=["plain", "dotted", "inline-table", "quoted", "not-inside-a-text", "spaced"],
)
def test_the_line_of_a_key_is_found_however_it_is_written(preset, text, line):
    path = preset(text)
    assert problems_of(path) == [f"train.steps: input should be greater than 0, not 0 ({path}:{line})"]


def test_a_mistake_inside_a_list_has_the_line_of_its_key(preset):
    path = preset(MINIMAL + 'betas = [\n  0.9,\n  "x",\n]\n')
    assert problems_of(path) == [f"train.betas.1: input should be a valid number, not 'x' ({path}:20)"]


def test_a_missing_preset_is_told_with_the_nearest_name():
    with pytest.raises(UsageError, match="preset 'nanoo' does not exist; shipped are base, base-open, demo") as caught:
        load_config("nanoo")
    assert caught.value.hint.startswith("did you mean 'nano'?")


def test_a_missing_file_or_base_is_told(preset, tmp_path):
    assert "no such file" in message_of(str(tmp_path / "no.toml"))
    path = preset('description = ""\nbase = "nonsense"')
    assert message_of(path).startswith(f"{path}:2: base: preset 'nonsense' does not exist")


def test_bases_that_lead_back_to_themselves_are_told_with_the_chain(preset):
    one = preset('base = "two.toml"', "one.toml")
    two = preset('base = "one.toml"', "two.toml")
    assert message_of(one) == f"{two}:1: the base leads back to itself: {one} → {two} → {one}"
    assert "leads back to itself" in message_of(preset('base = "self.toml"', "self.toml"))


@pytest.mark.parametrize("base", ["5", '["nano"]', "{ x = 1 }"])
def test_a_base_that_is_not_a_name_is_told(preset, base):
    assert "base must be the name of a preset" in message_of(preset(f"base = {base}"))


# Row 60 of the catalogue of faults: what a TOML file can hold that a configuration cannot


@pytest.mark.row(60)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("true", "valid integer, not True"),
        ("1.5", "valid integer, not 1.5"),
        ('"100"', "valid integer, not '100'"),
        ("2026-11-20", "valid integer, not 2026-11-20"),
        ("12:30:00", "valid integer, not 12:30:00"),
        ("[100]", "valid integer, not [100]"),
        ("0", "greater than 0, not 0"),
        ("-100", "greater than 0, not -100"),
        ("nan", "valid integer, not nan"),
        ("9223372036854775808", "less than or equal to"),
    ],
)
def test_a_value_that_is_no_count_is_told(preset, value, message):
    path = preset(MINIMAL.replace("steps = 100", f"steps = {value}"))
    (problem,) = problems_of(path)
    assert (
        problem.startswith("train.steps: input should be") and message in problem and problem.endswith(f"({path}:18)")
    )


@pytest.mark.row(60)
@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e400", "true", "-1.0", "0", '"1e-4"', "2026-11-20T12:00:00Z", "1" + "0" * 400]
)
def test_a_value_that_is_no_positive_finite_number_is_told(preset, value):
    path = preset(MINIMAL + f"lr = {value}\n")
    (problem,) = problems_of(path)
    assert re.match(r"train\.lr: input should be (a finite number|a valid number|greater than 0), not ", problem)
    assert problem.endswith(f"({path}:20)") and len(problem) < 300


@pytest.mark.row(60)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "steps = 5\n", r"not valid TOML: .*line 20"),
        (MINIMAL + "[train]\n", r"not valid TOML: .*line 20"),
        (MINIMAL + "lr = \n", r"not valid TOML: .*line 20"),
        (MINIMAL + "lr = " + "[" * 20_000 + "]" * 20_000, "nested too deeply|not valid TOML"),
        (MINIMAL + "lr = " + "1" * 5_000, "a number has thousands of digits"),
        (MINIMAL.encode() + b"# caf\xe9\n", "not UTF-8 text at byte"),
        (MINIMAL.encode("utf-16"), "UTF-16 text, not UTF-8; save it as UTF-8"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not UTF-8 text at byte 0"),
        (MINIMAL + "#" * 2_000_000, "larger than 1,048,576 bytes"),
    ],
    ids=["duplicate-key", "duplicate-section", "no-value", "deep", "many-digits", "latin-1", "utf-16", "jpeg", "huge"],
)
def test_a_file_that_is_no_readable_toml_is_told(preset, text, expected):
    path = preset(text)
    message = message_of(path)
    assert message.startswith(path) and re.search(expected, message) and "\n" not in message


@pytest.mark.row(60)
def test_keys_nested_a_thousand_deep_are_told_as_unknown(preset):
    (problem,) = problems_of(preset(MINIMAL + "[" + ".".join(["a"] * 1000) + "]\nx = 1\n"))
    assert problem.startswith("a: unknown section")


def test_an_empty_file_is_told_key_by_key(preset):
    assert [problem.split(":")[0] for problem in problems_of(preset(""))] == [
        "description",
        "model",
        "encoders",
        "data",
        "dropout",
        "train",
    ]


def test_a_configuration_from_a_checkpoint_names_the_checkpoint():
    tree = config_to_dict(load_config("nano"))
    tree["train"]["steps"] = 0
    with pytest.raises(ConfigError, match=r"train\.steps: input should be greater than 0, not 0 \(final\.pt\)"):
        config_from_dict(tree, "final.pt")


# What people write


@pytest.mark.parametrize("value", ["1e3", "1000.0", "1_000"])
def test_a_whole_number_may_be_written_as_a_power_of_ten(value, tmp_path):
    assert load_config("nano", [f"train.steps={value}", "train.warmup_steps=1e2"]).train.steps == 1000
    (tmp_path / "mine.toml").write_text(f'base = "nano"\n[train]\nsteps = {value}\nwarmup_steps = 10\n')
    steps = load_config(str(tmp_path / "mine.toml")).train.steps
    assert steps == 1000 and type(steps) is int


@pytest.mark.parametrize("value", ["1.5", "1e300", "1e-3", "inf", "true"])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ConfigError, match=r"train\.steps: "):
        load_config("nano", [f"train.steps={value}"])


def test_one_element_of_a_list_can_be_overridden():
    config = load_config("nano", ['validate.edits.0=["cat", "dog"]', "validate.edits.1.1=lying", "train.betas.1=0.99"])
    assert config.validate_.edits[:3] == [["cat", "dog"], ["sitting", "lying"], ["black", "white"]]
    assert config.train.betas == [0.9, 0.99]  # the preset does not give it: the default, changed
    assert load_config("nano").train.betas == [0.9, 0.95]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validate.edits.9=x", "validate.edits has 4 elements, and the first is number 0; there is no number 9"),
        ("validate.edits.first=x", "validate.edits is a list; its elements are validate.edits.0"),
        ("train.betas.0=2", "train.betas.0: "),
        ("train.lr.0=2", "'lr' is no list in this preset"),
    ],
)
def test_an_element_that_is_not_there_is_told(override, message):
    with pytest.raises(ConfigError) as error:
        load_config("nano", [override])
    assert message in error.value.message and override in error.value.message


def test_the_ending_of_a_file_may_be_written_in_capitals(tmp_path):
    (tmp_path / "A.TOML").write_text('base = "nano"\n')
    (tmp_path / "b.toml").write_text('base = "A.TOML"\n')
    assert load_config(str(tmp_path / "A.TOML")) == load_config(str(tmp_path / "b.toml")) == load_config("nano")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_preset_in_utf_16_is_told_as_that(tmp_path, encoding):
    (tmp_path / "a.toml").write_bytes('base = "nano"\n'.encode(encoding))
    with pytest.raises(UsageError) as error:
        load_config(str(tmp_path / "a.toml"))
    assert "UTF-16 text, not UTF-8" in error.value.message
