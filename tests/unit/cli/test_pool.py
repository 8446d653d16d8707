"""The verbs about pools: what they print, and with which code they end."""

from __future__ import annotations

from liveclone.host import process

from .conftest import PATIENCE_S, Home


def test_a_pool_from_its_beginning_to_its_end(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("snapshot", "web", "--name", "warm")
    assert home.json("pool", "list") == []
    assert home.run("pool", "set", "warm", "2") == "warm: 2 of 2 machines wait for clones\n"
    (pool,) = home.json("pool", "list")
    assert (pool["snapshot"], pool["size"]) == ("warm", 2)
    assert set(pool["waiting"].values()) == {"ready"}
    header, line = home.run("pool", "ls").splitlines()
    assert header.split() == ["SNAPSHOT", "SIZE", "READY", "MACHINES"]
    assert line.split()[:3] == ["warm", "2", "2"]
    assert all(machine_id in line for machine_id in pool["waiting"])
    assert home.run("list", "-q") == "web\n"
    (made,) = home.json("clone", "warm", "--name", "one")
    assert made["pooled"] is True
    assert made["machine"]["id"] in pool["waiting"]
    for filler in process.find_logging_into(home.folder / "snapshots" / pool["id"] / "pool"):
        assert process.wait_gone(filler, PATIENCE_S)
    (pool,) = home.json("pool", "list")
    assert list(pool["waiting"].values()) == ["ready", "ready"]
    assert home.json("pool", "drain", "warm") == {"snapshot": "warm", "ended": 2}
    assert home.run("pool", "drain", "warm") == "0 waiting machines of warm ended\n"
    (pool,) = home.json("pool", "list")
    assert (pool["size"], pool["waiting"]) == (2, {})
    assert home.run("pool", "set", "warm", "0", "-q") == "warm\n"
    assert home.run("pool", "ls", "-q") == ""
    assert home.fail(3, "pool", "set", "warm", "1000")["error"] == "bad-size"
    assert home.fail(4, "pool", "set", "nothing", "1")["error"] == "no-snapshot"
    assert home.fail(4, "pool", "drain", "nothing")["error"] == "no-snapshot"
    home.remove_all()
