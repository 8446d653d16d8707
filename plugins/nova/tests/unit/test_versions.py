"""Only a Nova on which the tests pass is worked with."""

from __future__ import annotations

from importlib import metadata

import pytest

from liveclone_nova import versions


def test_the_nova_that_these_tests_run_on_is_supported() -> None:
    versions.check_nova()


@pytest.mark.parametrize("found", ["34.0.0", "34.1.2", "34.0.0.0rc1", "34.0.1.dev7"])
def test_every_release_of_a_supported_series_is(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    versions.check_nova()


@pytest.mark.parametrize("found", ["33.0.1", "35.0.0", "3.4", "340.0.0", "unknown"])
def test_another_one_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: found)
    with pytest.raises(
        versions.UnsupportedNova, match=f"works with Nova 34 .* this is Nova {found}: install"
    ):
        versions.check_nova()


def test_nova_reports_it_as_an_import_that_failed() -> None:
    """nova.virt.driver.load_compute_driver logs an ImportError and stops the service; another error it does not catch."""
    assert issubclass(versions.UnsupportedNova, ImportError)
