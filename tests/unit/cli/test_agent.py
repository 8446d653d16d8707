"""The verbs about the agent, on machines that have it from the start; others are in tests/vm/test_agent_install.py."""

from __future__ import annotations

from .conftest import Home


def test_a_machine_of_ours_has_its_agent(home: Home) -> None:
    home.run("run", "image", "--name", "web")
    said = home.run("agent", "status", "web")
    assert "agent" in said and "exec (its own)" in said
    found = home.json("agent", "status", "web")
    assert found["agent"] and found["problem"] == "" and found["stock"] == ""
    assert [(port["name"], port["live"], port["added"]) for port in found["ports"]] == [
        ("agent", True, False),
        ("exec", True, False),
    ]
    assert "answers in web" in home.run("agent", "install", "web")
    assert home.run("agent", "install", "--persistent", "--quiet", "web") == "web\n"
    ended = home.call("agent", "remove", "web")
    assert ended.returncode == 12 and b"no QEMU guest agent" in ended.stderr
    home.run("remove", "--force", "web")


def test_a_machine_that_does_not_run(home: Home) -> None:
    home.run("run", "image", "--name", "web")
    home.run("stop", "--force", "web")
    for words in ("status", "install", "remove"):
        ended = home.call("agent", words, "web")
        assert ended.returncode == 4 and b"does not run" in ended.stderr
    home.run("remove", "web")
