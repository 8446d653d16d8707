"""Settings that a scrub changes are what they were afterwards, whoever dies meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.guest import settings as kernel_settings

LOW = {"/proc/sys/vm/min_free_kbytes": 1024, "/proc/sys/vm/watermark_scale_factor": 1}
USUAL = {"min_free_kbytes": "45056", "watermark_scale_factor": "1"}


@pytest.fixture
def settings(root: Path) -> Path:
    folder = root / "proc/sys/vm"
    folder.mkdir(parents=True)
    for name, text in USUAL.items():
        (folder / name).write_text(text + "\n")
    return folder


def read(settings: Path) -> dict[str, str]:
    return {name: (settings / name).read_text().strip() for name in USUAL}


def state(root: Path) -> Path:
    return root / kernel_settings.STATE.lstrip("/")


def test_they_are_low_in_the_block_and_put_back_whatever_happens_in_it(root: Path, settings: Path) -> None:
    seen = []

    def fail() -> None:
        with kernel_settings.changed(LOW, str(root)):
            seen.append(read(settings))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [{"min_free_kbytes": "1024", "watermark_scale_factor": "1"}]
    assert read(settings) == USUAL
    assert not state(root).exists()


def test_one_that_is_lower_stays(root: Path, settings: Path) -> None:
    (settings / "min_free_kbytes").write_text("800\n")
    with kernel_settings.changed(LOW, str(root)):
        assert read(settings)["min_free_kbytes"] == "800"
    assert read(settings)["min_free_kbytes"] == "800"


def test_a_text_is_written_as_it_is(root: Path, settings: Path) -> None:
    with kernel_settings.changed({"/proc/sys/vm/min_free_kbytes": "90000"}, str(root)):
        assert read(settings)["min_free_kbytes"] == "90000"
    assert read(settings) == USUAL


def test_one_that_cannot_be_read_leaves_all(root: Path, settings: Path) -> None:
    with pytest.raises(FileNotFoundError), kernel_settings.changed(LOW | {"/proc/nothing": 0}, str(root)):
        pytest.fail("the block was begun")
    assert read(settings) == USUAL
    assert not state(root).exists()
