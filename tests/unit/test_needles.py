"""Secrets in all the forms they take, and the search for them: what is planted is found, wherever a block ends."""

from __future__ import annotations

import base64
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Refused
from liveclone.formats.finder import Finder, Search
from liveclone.formats.needles import Kind, Needle, Secret, parse_list, render_needles, secrets_in
from liveclone.formats.private_keys import find_blocks

SECRET = random.Random(7).randbytes(32)
NOISE = random.Random(8).randbytes(5000)

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda value: value,
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64 of more, 1": lambda value: base64.b64encode(b"x" + value + b"yy"),
    "base64 of more, 2": lambda value: base64.b64encode(b"xx" + value + b"y"),
    "base64url": base64.urlsafe_b64encode,
    "base64 in lines": lambda value: base64.encodebytes(b"0123456789" * 4 + value),
}

values = st.binary(min_size=8, max_size=200).filter(lambda value: len(set(value)) >= 4)


def find(secret: Secret, data: bytes) -> set[str]:
    return {needle.form for _, needle in Finder(list(render_needles(secret))).find(data)}


@pytest.mark.parametrize("form", FORMS)
def test_every_encoding_is_found(form: str) -> None:
    planted = NOISE[:1001] + FORMS[form](SECRET) + NOISE[1001:]
    assert find(Secret("s", SECRET), planted)
    assert not find(Secret("s", SECRET), NOISE)


def test_text_in_utf_16_and_numbers_reversed() -> None:
    token = "gho_16C7e42F292c6912E7710c838347Ae178B4a"
    assert find(Secret("s", token.encode()), b"\0" + token.encode("utf-16-le")) == {"utf-16"}
    assert find(Secret("s", SECRET, Kind.NUMBER), NOISE + SECRET[::-1]) == {"reversed"}
    assert not find(Secret("s", SECRET), NOISE + SECRET[::-1])


@given(
    value=values,
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    form=st.sampled_from(sorted(FORMS)),
)
def test_whatever_is_planted_is_found(value: bytes, before: bytes, after: bytes, form: str) -> None:
    secret = Secret("s", value)
    if form == "base64 in lines" and len(value) < 32:
        return  # its one piece may be broken
    if list(render_needles(secret)) == []:
        return
    assert find(secret, before + FORMS[form](value) + after)


@given(cut=st.integers(0, 32))
def test_half_of_a_secret_is_found(cut: int) -> None:
    """As when a page ends in it: the other half is anywhere, or nowhere."""
    pages = NOISE[:100] + SECRET[:cut], SECRET[cut:] + NOISE[100:]
    assert any(find(Secret("s", SECRET), page) for page in pages)


@given(data=st.data())
def test_a_search_does_not_depend_on_where_blocks_end(data: st.DataObject) -> None:
    content = NOISE[:700] + SECRET + NOISE[700:900] + SECRET.hex().encode() + NOISE[900:1500]
    finder = Finder(list(render_needles(Secret("s", SECRET))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=20)))
    search = Search(finder)
    found: list[tuple[int, Needle]] = []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += search.feed(start, content[start:end])
    whole = list(finder.find(content))
    assert len(whole) == 4  # two pieces, in two forms
    assert sorted(found, key=repr) == sorted(whole, key=repr)


def test_a_block_may_end_anywhere() -> None:
    content = NOISE[:50] + SECRET.hex().encode() + NOISE[50:100]
    finder = Finder(list(render_needles(Secret("s", SECRET))))
    for cut in range(1, len(content)):
        search = Search(finder)
        found = [*search.feed(0, content[:cut]), *search.feed(cut, content[cut:])]
        assert sorted(at for at, _ in found) == [50, 82], cut


def test_blocks_that_do_not_adjoin_are_not_joined() -> None:
    search = Search(Finder(list(render_needles(Secret("s", SECRET[:16])))))
    assert not list(search.feed(0, SECRET[:8]))
    assert not list(search.feed(4096, SECRET[8:16]))
    assert not list(search.feed(0, SECRET[:8]))
    assert [at for at, _ in search.feed(8, SECRET[8:16])] == [0]


@pytest.mark.parametrize("value", [b"hunter2", b"\0" * 40, b"ababababababab"])
def test_what_would_be_found_everywhere_is_not_searched(value: bytes) -> None:
    assert not Secret("s", value).is_searched
    assert list(render_needles(Secret("s", value))) == []


def test_a_secret_does_not_show() -> None:
    secret = Secret("s", b"very secret indeed")
    assert "very" not in repr(secret) + repr(list(render_needles(secret)))


def test_a_list_of_secrets() -> None:
    text = "plain words here\n\nhex:00ff10203040506070\nbase64:" + base64.b64encode(SECRET).decode() + "\n"
    values = [secret.value for secret in parse_list(text, "list")]
    assert values == [b"plain words here", bytes.fromhex("00ff10203040506070"), SECRET]
    assert [secret.name for secret in parse_list(text, "list")] == ["line 1", "line 3", "line 4"]
    for bad in ("hex:xyz", "base64:!", "", "\n \n"):
        with pytest.raises(Refused) as caught:
            parse_list("ok\n" * bool(bad.strip()) + bad, "list")
        assert caught.value.code == "bad-needles"


def test_tokens_in_a_file_are_secrets_of_their_own() -> None:
    config = b"github.com:\n    oauth_token: gho_16C7e42F292c6912E7710c838347Ae178B4a\n    user: somebody-with-a-name\n"
    found = {secret.value for secret in secrets_in("hosts.yml", config)}
    assert b"gho_16C7e42F292c6912E7710c838347Ae178B4a" in found
    assert b"somebody-with-a-name" not in found
    assert {s.kind for s in secrets_in("history", config, words=False)} == {Kind.TEXT}


def make_key(folder: Path, *options: str) -> tuple[bytes, bytes]:
    """Return the private and the public file of a new key."""
    path = folder / "key"
    subprocess.run(
        ["ssh-keygen", "-q", *options, "-C", "", "-f", str(path)], check=True, stdin=subprocess.DEVNULL
    )
    return path.read_bytes(), path.with_suffix(".pub").read_bytes()


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")
@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ed25519"),
        ("-t", "ecdsa"),
        ("-t", "rsa", "-b", "2048"),
        ("-t", "rsa", "-b", "2048", "-m", "PEM"),
        ("-t", "ecdsa", "-m", "PKCS8"),
    ],
    ids=" ".join,
)
def test_of_a_key_the_secret_half_alone_is_searched(tmp_path: Path, options: tuple[str, ...]) -> None:
    private, public = make_key(tmp_path, *options, "-N", "")
    other = tmp_path / "other"
    other.mkdir()
    another, _ = make_key(other, *options, "-N", "")
    finder = Finder([needle for s in secrets_in("k", private) for needle in render_needles(s)])
    assert {needle.form for _, needle in finder.find(private)} >= {"raw"}
    blob = base64.b64decode(b"".join(private.splitlines()[1:-1]))
    assert {needle.form for _, needle in finder.find(blob)} == {"raw"}
    assert not list(finder.find(public))
    assert not list(finder.find(base64.b64decode(public.split()[1])))
    assert not list(finder.find(another)), "what all keys have in common is no secret"


def test_a_key_with_a_passphrase_or_of_an_unknown_kind_counts_whole(tmp_path: Path) -> None:
    block = (
        b"-----BEGIN STRANGE PRIVATE KEY-----\n"
        + base64.encodebytes(NOISE[:200])
        + b"-----END STRANGE PRIVATE KEY-----\n"
    )
    (found,) = find_blocks(b"first\n" + block)
    assert found.numbers == (NOISE[:200],)
    assert find_blocks(block.replace(b"PRIVATE", b"PUBLIC")) == []
