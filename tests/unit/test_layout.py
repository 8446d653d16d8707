"""The folders of a home, and what is said when they cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.errors import StoreError
from liveclone.store.layout import Layout


def test_all_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home", tmp_path / "hot")
    for _ in range(2):
        layout.prepare()
    folders = [layout.machines, layout.snapshots, layout.network, layout.lock("x").parent, layout.hot]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


@pytest.mark.parametrize(("broken", "setting"), [("home", "LIVECLONE_HOME"), ("hot", "LIVECLONE_HOT")])
def test_a_folder_that_cannot_be_made_is_an_error_of_the_store(
    tmp_path: Path, broken: str, setting: str
) -> None:
    (tmp_path / "file").touch()
    paths = {"home": tmp_path / "home", "hot": tmp_path / "hot", broken: tmp_path / "file" / broken}
    with pytest.raises(StoreError) as caught:
        Layout(**paths).prepare()
    fields = caught.value.fields()
    assert set(fields) == {"error", "kind", "message", "tried", "on", "seen", "source_state", "next_step"}
    assert fields["on"].startswith(str(paths[broken]))
    assert setting in fields["next_step"]


def test_a_file_in_the_place_of_a_folder_is_one_too(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home", tmp_path / "hot")
    layout.home.mkdir()
    layout.machines.touch()
    with pytest.raises(StoreError) as caught:
        layout.prepare()
    assert caught.value.on == str(layout.machines)
