"""Exit codes are a contract: scripts branch on them."""

from __future__ import annotations

import errno
import os

import pytest

from dittool import errors


def test_each_kind_of_error_has_the_exit_code_of_the_contract():
    assert {
        kind.__name__: kind.exit_code for kind in errors.DitError.__subclasses__() if kind is not errors.Interrupted
    } == {
        "UsageError": 2,
        "BadDataError": 3,
        "UnsafeFileError": 4,
        "StorageError": 5,
        "NonFiniteError": 6,
        "WeightsMissingError": 7,
    }
    assert (errors.DONE, errors.ANSWER_IS_NO, errors.BUG) == (0, 1, 70)


def test_a_long_list_is_its_first_items_and_a_count():
    assert errors.listed(["a", "b"], most=2) == "a, b"
    assert errors.listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"
    assert errors.listed(["a", "b", "c"], most=2, separator="\n  ") == "a\n  b\n  and 1 more"
    assert errors.listed([]) == ""


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143)])
def test_an_interruption_ends_with_128_plus_the_signal(signal_number, code):
    assert errors.Interrupted("stopped", "run it again", signal_number).exit_code == code


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
def test_an_operating_system_error_about_storage_names_the_file_and_the_next_step(number):
    message = errors.from_os_error(OSError(number, os.strerror(number), "runs/nano/log.jsonl"))
    assert (message.exit_code, message.message) == (5, f"runs/nano/log.jsonl: {os.strerror(number)}")
    assert message.hint


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ECONNREFUSED, errno.EPIPE])
def test_any_other_operating_system_error_is_not_called_a_storage_error(number):
    assert errors.from_os_error(OSError(number, os.strerror(number), "somewhere")) is None


def test_an_operating_system_error_without_a_file_still_says_where_to_look():
    assert errors.from_os_error(OSError(errno.ENOSPC, "No space left on device")).message.startswith(
        "the output folder: "
    )


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EISDIR, "move it away"),
        (errno.EROFS, "another with --out"),
        (errno.ENOLCK, "locks"),
        (errno.EIO, "dmesg"),
    ],
)
def test_advice_fits_what_the_file_system_said(number, advice):
    assert advice in errors.from_os_error(OSError(number, os.strerror(number), "runs/nano")).hint
