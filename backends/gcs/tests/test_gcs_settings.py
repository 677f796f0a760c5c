"""Settings are resolved once, and what only one plane would follow is refused."""

import pytest

from holdfast_gcs.settings import PUBLIC, resolve
from holdfast_storage import errors


def test_an_emulator_is_reached_without_credentials():
    found = resolve("bucket", {}, {"STORAGE_EMULATOR_HOST": "localhost:9"})
    assert (found.endpoint, found.token, found.emulated) == ("http://localhost:9", "anon", True)


def test_without_settings_it_is_googles_own_service():
    found = resolve("bucket", {}, {})
    assert (found.endpoint, found.token, found.emulated) == (PUBLIC, None, False)


def test_who_pays_is_a_project():
    assert resolve("bucket", {"requester_pays": "p"}, {}).user_project == "p"
    assert resolve("bucket", {"requester_pays": True, "project": "q"}, {}).user_project == "q"
    with pytest.raises(errors.InvalidURLError, match="paying project"):
        resolve("bucket", {"requester_pays": True}, {})


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(errors.InvalidURLError, match="endpont_url"):
        resolve("bucket", {"endpont_url": "http://x"}, {})
