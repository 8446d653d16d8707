"""Without the line in api-paste.ini, Nova is as ever."""

from __future__ import annotations

from .base import PluginTestCase


class WithoutThePasteLine(PluginTestCase):
    paste_line = False

    def test_the_action_is_as_unknown_as_any_other_word(self) -> None:
        server = self.boot()
        ours = self.refuse(server, 400)
        theirs = self.api.api_post(
            f"/servers/{server['id']}/action", {"no_such": {}}, check_response_status=[400]
        ).body["badRequest"]["message"]
        assert ours == "There is no such action: live_snapshot"
        assert theirs == "There is no such action: no_such"

    def test_an_ordinary_snapshot_is_taken_by_the_driver_as_ever(self) -> None:
        server = self.boot()
        body = {"createImage": {"name": "cold"}}
        image = self.api.api_post(f"/servers/{server['id']}/action", body, check_response_status=[202])
        assert self.glance.images[image.body["image_id"]]["name"] == "cold"
