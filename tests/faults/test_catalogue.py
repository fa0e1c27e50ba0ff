"""The catalogue of faults: 62 rows, what each is, and where its tests are.

A row names files, in which it has tests with its number in their names (`test_row_49_…`), or tests one by one,
`file::test`, where they stand beside other proofs of the same code. A row without a test fails here, and so does a test
that is named and not there.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
IMAGES, ITEMS, CONTAINERS = (
    "faults/test_rows_27_to_39_images.py",
    "faults/test_rows_40_to_48_items.py",
    "faults/test_rows_49_to_56_containers.py",
)
RUNS, EMBED, SHARDS, TAKEN = (
    "faults/test_rows_01_to_26_runs.py",
    "data/features/test_embed_faults.py",
    "data/shards/test_shard_faults.py",
    "ckpt/test_load.py",
)
FILES, LOOP, MATRIX, RANKS = (
    "ckpt/test_files.py",
    "train/test_loop.py",
    "train/test_resume_matrix.py",
    "train/test_distributed.py",
)

# row → (what goes wrong, the files that hold its tests, or the tests; others may hold more)
CATALOGUE: dict[int, tuple[str, tuple[str, ...]]] = {
    # A. Kill, disk, processes
    1: (
        "embed killed while it writes a feature",
        (f"{EMBED}::test_killed_at_a_file_event_the_next_run_completes_with_the_same_bytes",),
    ),
    2: (
        "embed killed between a feature and its journal line",
        (
            f"{EMBED}::test_what_a_journal_line_promises_is_on_disk_before_it_is_written",
            "data/features/test_embed.py::test_a_file_without_a_journal_line_does_not_count",
        ),
    ),
    3: (
        "shard killed inside a tar",
        (f"{SHARDS}::test_rows_3_and_4_killed_anywhere_the_same_command_gives_the_same_bytes",),
    ),
    4: (
        "shard killed between a tar and its index",
        (f"{SHARDS}::test_a_shard_that_was_damaged_in_between_is_made_again",),
    ),
    5: (
        "killed while a checkpoint is written",
        (
            f"{FILES}::test_05_06_a_kill_at_any_moment_of_a_save_leaves_a_valid_checkpoint",
            f"{FILES}::test_05_leftovers_of_interrupted_writers_are_no_checkpoints",
            f"{RUNS}::test_row_05_06_07_killed_at_a_file_event_a_run_resumes_to_the_same_bits",
        ),
    ),
    6: (
        "killed between a checkpoint and the pointer to it",
        (
            f"{FILES}::test_the_file_is_durable_before_it_gets_its_name_and_the_sidecar_comes_last",
            f"{FILES}::test_a_checkpoint_whose_save_was_interrupted_is_saved_again",
        ),
    ),
    7: (
        "killed while old checkpoints are removed",
        (
            f"{FILES}::test_07_a_kill_in_rotation_is_finished_by_the_next_one",
            f"{FILES}::test_07_rotation_deletes_nothing_unless_the_newest_verifies",
        ),
    ),
    8: ("killed while pictures and reports are written", (RUNS,)),
    9: (
        "disk full at any write",
        (
            SHARDS,
            f"{EMBED}::test_no_space_at_the_n_th_write_leaves_nothing_half_written",
            f"{FILES}::test_09_a_disk_that_fills_up_while_saving_says_so_and_costs_nothing",
            f"{FILES}::test_09_a_disk_without_room_is_noticed_before_anything_is_written",
        ),
    ),
    10: ("disk full while the log grows", (RUNS,)),
    11: (
        "output folder that cannot be written to",
        (
            RUNS,
            f"{EMBED}::test_a_folder_that_cannot_be_written_to_is_told_before_any_encoder_is_loaded",
        ),
    ),
    12: ("one input that may not be read", ("data/source/test_sources.py",)),
    13: ("two writers of one folder", (RUNS, "data/features/test_embed.py::test_a_second_writer_is_turned_away")),
    14: ("a lock whose owner is dead", (RUNS,)),
    15: (
        "SIGTERM and SIGINT in training",
        (
            RUNS,
            f"{LOOP}::test_sigterm_finishes_the_step_saves_and_exits_143",
            f"{RANKS}::test_a_signal_to_one_process_stops_all_and_saves_once",
        ),
    ),
    16: ("SIGTERM during a save", (RUNS,)),
    17: (
        "SIGHUP, and a reader of stdout that has gone",
        (
            RUNS,
            "train/test_signals.py::test_a_run_whose_terminal_goes_away_saves",
            "test_cli.py::test_a_reader_that_leaves_ends_nothing_with_a_traceback",
            "test_cli.py::test_closed_streams_end_nothing",
        ),
    ),
    18: ("a worker process killed", (RUNS, f"{EMBED}::test_a_decoding_process_that_is_killed_is_named")),
    19: ("one rank dies", (RUNS,)),
    20: ("a save that fails where nobody looks", (RUNS,)),
    21: ("clocks that jump", (f"{FILES}::test_21_the_newest_is_the_highest_step_whatever_the_clock_says",)),
    22: (
        "a link or a file where the output folder should be",
        (
            RUNS,
            f"{FILES}::test_22_a_folder_or_a_file_in_the_wrong_place_is_refused",
            f"{FILES}::test_22_rotation_removes_a_link_and_not_what_it_leads_to",
        ),
    ),
    23: (
        "resumed with another configuration",
        (
            f"{LOOP}::test_a_changed_configuration_must_be_named",
            f"{LOOP}::test_other_data_are_refused",
            f"{RANKS}::test_one_then_two_then_one_processes_see_the_same_samples",
        ),
    ),
    24: (
        "resumed several times in one epoch",
        (
            f"{MATRIX}::test_stopped_after_every_step_a_run_ends_with_the_same_bits",
            f"{LOOP}::test_a_chain_of_interruptions_with_workers_and_accumulation_ends_with_the_same_bits",
        ),
    ),
    25: (
        "resumed where there is no checkpoint",
        (
            f"{LOOP}::test_resume_without_a_checkpoint_is_an_error",
            f"{FILES}::test_no_checkpoint_and_no_valid_checkpoint_are_errors",
        ),
    ),
    26: (
        "the newest checkpoint is damaged",
        (
            f"{LOOP}::test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before",
            f"{FILES}::test_26_a_damaged_newest_checkpoint_is_skipped_loudly_with_the_steps_that_it_costs",
        ),
    ),
    # B. Images and captions
    27: ("no image at all: empty, a web page, a pointer", (IMAGES, "data/source/test_images.py")),
    28: ("an image cut off", (IMAGES, "data/source/test_images.py")),
    29: ("many pixels in few bytes", (IMAGES, "data/source/test_images.py")),
    30: ("a header of two billion by two billion", (IMAGES, "data/source/test_images.py")),
    31: ("no width, too small, too long", (IMAGES, "data/source/test_images.py")),
    32: ("inks instead of colours: CMYK, YCCK, Adobe's inversion", (IMAGES, "data/source/test_image_colours.py")),
    33: ("16 bits a channel, floating point", (IMAGES, "data/source/test_image_colours.py")),
    34: ("transparency and the colour it hides", (IMAGES, "data/source/test_image_colours.py")),
    35: ("EXIF orientation", (IMAGES, "data/source/test_images.py")),
    36: ("several frames", (IMAGES, "data/source/test_images.py")),
    37: ("a wrong suffix, a dangerous format", (IMAGES, "data/source/test_images.py")),
    38: ("huge or broken profiles and texts", (IMAGES, "data/source/test_images.py")),
    39: ("one image under two names", (IMAGES, "data/source/test_scan.py")),
    40: ("a file that changes under the reader", (ITEMS, "data/source/test_scan.py")),
    41: ("an empty caption", (ITEMS, "data/source/test_captions.py")),
    42: ("a caption longer than the encoder reads", (ITEMS,)),
    43: ("a caption that is damaged or no text", (ITEMS, "data/source/test_captions.py")),
    44: ("captions without images, images without captions", (ITEMS, "data/source/test_sources.py")),
    45: ("names that are equal, lead elsewhere or are no text", (ITEMS, "data/source/test_sources.py")),
    46: ("names with dots, names that differ in case", (ITEMS,)),
    47: ("features that are not finite", (ITEMS,)),
    48: ("features of another model in the same folder", (ITEMS,)),
    # C. Containers
    49: ("a tar cut off, also between two members", (CONTAINERS,)),
    50: ("a tar without its end, garbage, an empty tar", (CONTAINERS,)),
    51: ("a member twice, a sample in two places", (CONTAINERS,)),
    52: ("members that lead out of the folder or are no files", (CONTAINERS,)),
    53: ("archives made to fool or to stall who unpacks them", (CONTAINERS,)),
    54: ("commands and addresses where a folder should stand", (CONTAINERS,)),
    55: ("arrays that hold objects, or lie about their size", (CONTAINERS, "data/shards/test_shards.py")),
    56: ("safetensors that the library would accept", (CONTAINERS,)),
    57: (
        "hostile and damaged .pt files",
        (
            f"{TAKEN}::test_57_a_pickle_that_calls_something_is_refused_unread",
            f"{TAKEN}::test_57_a_hostile_pickle_is_refused_by_name",
            f"{TAKEN}::test_57_a_tensor_that_its_file_does_not_hold_is_refused_before_memory_is_taken",
            f"{TAKEN}::test_57_58_a_file_of_another_kind_gets_one_clear_sentence",
        ),
    ),
    58: (
        "a checkpoint of another architecture",
        (
            f"{TAKEN}::test_58_weights_of_another_architecture_are_refused_with_counts_and_the_first_ten_differences",
            f"{TAKEN}::test_58_a_foreign_state_dict_is_found_and_its_wrappers_are_taken_off",
            f"{LOOP}::test_weights_to_start_from_must_fit_and_be_finite",
        ),
    ),
    59: (
        "a checkpoint with NaN",
        (
            f"{TAKEN}::test_59_tensors_with_nan_are_named_wherever_they_are",
            f"{LOOP}::test_weights_to_start_from_must_fit_and_be_finite",
        ),
    ),
    60: ("faults in TOML", ("config/test_load.py",)),
    61: (
        "model weights that are missing",
        (
            "encoders/test_pretrained.py::test_missing_weights_are_named_with_what_to_do",
            "encoders/test_pretrained.py::test_weights_cut_short_are_named_as_a_file",
            "encoders/test_pretrained.py::test_a_damaged_copy_on_this_disk_is_not_called_absent",
        ),
    ),
    62: (
        "loss or gradient that is not finite",
        (
            f"{LOOP}::test_non_finite_loss_stops_before_the_update",
            f"{LOOP}::test_an_update_that_is_not_finite_is_left_out_up_to_a_cap",
            f"{LOOP}::test_one_more_than_the_cap_ends_the_run",
            f"{LOOP}::test_the_count_of_left_out_updates_is_part_of_the_state",
        ),
    ),
}


@cache
def names_in() -> dict[str, list[str]]:
    """The names of the test functions of each file under tests/."""
    return {
        path.relative_to(TESTS).as_posix(): [
            node.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        for path in TESTS.rglob("test_*.py")
    }


def rows_of(test: str) -> set[int]:
    """The rows in a test's name: `test_row_05_06_killed_…` has two."""
    match = re.match(r"test_row_((?:\d+_)+)", test)
    return {int(row) for row in match[1].split("_") if row} if match else set()


def is_there(place: str, row: int) -> bool:
    """Whether a `file::test` exists, or a file has a test with the row's number in its name."""
    file, _, test = place.partition("::")
    names = names_in().get(file, [])
    return test in names if test else any(row in rows_of(name) for name in names)


def test_the_catalogue_is_whole():
    assert list(CATALOGUE) == list(range(1, 63))
    assert len({title for title, _ in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("row", CATALOGUE)
def test_every_row_has_its_tests(row):
    title, places = CATALOGUE[row]
    assert places, f"row {row} ({title}) names no test"
    missing = [place for place in places if not is_there(place, row)]
    assert not missing, f"row {row} ({title}) has no such test: {', '.join(missing)}"


def test_no_test_belongs_to_a_row_that_does_not_exist():
    assert {row for names in names_in().values() for name in names for row in rows_of(name)} <= set(CATALOGUE)


def test_a_place_that_is_not_there_is_noticed():
    assert is_there("faults/test_catalogue.py::test_the_catalogue_is_whole", 1)
    assert not is_there("faults/test_catalogue.py::test_of_nothing", 1) and not is_there(
        "faults/test_nowhere.py::test_x", 1
    )
    assert is_there(CONTAINERS, 49) and not is_there(CONTAINERS, 1)
