"""Paths in files are seen from the file's folder, and found after the files were moved."""

from __future__ import annotations

import shutil

import pytest

from dittool.whereabouts import find, remembered


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with data and a run; the working folder is elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    root = tmp_path / "project"
    (root / "data" / "shards").mkdir(parents=True)
    (root / "runs" / "nano").mkdir(parents=True)
    return root


def test_a_path_is_remembered_from_the_folder_of_its_file(project):
    text = remembered(project / "data" / "shards", project / "runs" / "nano")
    assert text == "../../data/shards"
    assert find(text, project / "runs" / "nano") == project / "data" / "shards"


def test_a_folder_behind_a_link_is_remembered_from_where_it_is(project, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "project" / "runs" / "linked"
    link.symlink_to(tmp_path / "disk")
    assert find(remembered(project / "data" / "shards", link), link) == project / "data" / "shards"


def test_a_moved_project_is_found_from_its_relative_and_from_its_old_absolute_paths(project, tmp_path):
    texts = [remembered(project / "data" / "shards", project / "runs" / "nano"), str(project / "data" / "shards")]
    moved = project.rename(tmp_path / "moved")
    assert [find(text, moved / "runs" / "nano") for text in texts] == [moved / "data" / "shards"] * 2


def test_a_run_that_left_its_project_finds_the_data_of_the_working_folder(project, tmp_path, monkeypatch):
    text = remembered(project / "data" / "shards", project / "runs" / "nano")
    away = (project / "runs" / "nano").rename(tmp_path / "elsewhere" / "nano")
    assert find(text, away) is None
    monkeypatch.chdir(project)
    assert str(find(text, away)) == "data/shards"


def test_elsewhere_only_what_fits_is_taken(project, tmp_path):
    text = str(tmp_path / "gone" / "data" / "shards")
    assert find(text, project / "runs" / "nano", lambda path: (path / "index.json").is_file()) is None
    (project / "data" / "shards" / "index.json").touch()
    assert find(text, project / "runs" / "nano", lambda path: (path / "index.json").is_file()) is not None


def test_a_copy_finds_its_own_data_and_not_those_of_the_original(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy")
    text = remembered(project / "data" / "shards", project / "runs" / "nano")
    assert find(text, copy / "runs" / "nano") == copy / "data" / "shards"
