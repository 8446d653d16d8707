"""Make ed25519 and ECDSA key pairs, and write them as OpenSSH does.

Why not ssh-keygen: in a clone under emulation, the dynamic linker and OpenSSL's start alone take ten times as long
as the arithmetic here, on every clone's way (measured: 560 ms for two keys, against 55 ms). The arithmetic is one
multiplication of a curve's base point; a table of its multiples is the same for every key, so it is computed
before the snapshot (`warm`) and each clone finds it in memory. Nothing here is done with other people's data, so time
that depends on the secret tells nobody anything.

Sources: RFC 8032 (ed25519), FIPS 186-5 and SP 800-186 (NIST curves), RFC 5656 (ECDSA in SSH), OpenSSH's PROTOCOL.key.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable

from .sha import sha256, sha512

TYPE_CHECKING = False
if TYPE_CHECKING:
    Draw = Callable[[int], bytes]
    Pair = tuple[int, int]
    Triple = tuple[int, int, int]
    Quadruple = tuple[int, int, int, int]


class KeyPair:
    """A new key pair: the private file, the public file."""

    def __init__(self, kind: str, public: bytes, secret: bytes, comment: str, check: bytes) -> None:
        blob = _string(kind.encode()) + public
        inner = check * 2 + _string(kind.encode()) + public + secret + _string(comment.encode())
        inner += bytes(range(1, 1 + -len(inner) % 8))
        outer = (
            _string(b"none")
            + _string(b"none")
            + _string(b"")
            + struct.pack(">I", 1)
            + _string(blob)
            + _string(inner)
        )
        text = _base64(b"openssh-key-v1\0" + outer)
        lines = "\n".join(text[at : at + 70] for at in range(0, len(text), 70))
        self.private = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{lines}\n-----END OPENSSH PRIVATE KEY-----\n"
        self.public = f"{kind} {_base64(blob)} {comment}\n"


def make_ed25519(draw: Draw, comment: str) -> KeyPair:
    """Return a new ed25519 pair from 32 bytes of `draw`."""
    seed = draw(32)
    public = _ed25519_public(seed)
    return KeyPair("ssh-ed25519", _string(public), _string(seed + public), comment, draw(4))


def make_ecdsa(draw: Draw, comment: str, bits: int = 256) -> KeyPair:
    """Return a new ECDSA pair on the NIST curve of 256, 384 or 521 bits."""
    curve = _CURVES[bits]
    # eight bytes more than needed, so that the remainder is not measurably uneven (FIPS 186-5, A.2.1)
    secret = int.from_bytes(draw(curve.size + 8), "big") % (curve.order - 1) + 1
    x, y = curve.multiply_base(secret)
    name = f"nistp{bits}".encode()
    point = b"\x04" + x.to_bytes(curve.size, "big") + y.to_bytes(curve.size, "big")
    public = _string(name) + _string(point)
    return KeyPair(f"ecdsa-sha2-nistp{bits}", public, _mpint(secret), comment, draw(4))


def has_curve(bits: int) -> bool:
    """Tell whether make_ecdsa() knows the curve of `bits`."""
    return bits in _CURVES


def warm() -> None:
    """Compute the tables of the two curves that nearly every guest uses: 0.4 MiB, 10 ms (300 under emulation)."""
    _ed25519_table()
    _CURVES[256].table()


def fingerprint(blob: str) -> str:
    """Return a public key's fingerprint as `ssh-keygen -l` prints it, from its base64 field."""
    return "SHA256:" + _base64(sha256(binascii.a2b_base64(blob)).digest()).rstrip("=")


# Both multiply the base point by a secret four bits at a time: for each place and digit, digit * 16**place * base
# lies in a table, so one addition a place is left. Tables are affine (Z = 1), which makes the addition shorter.
_DIGITS = range(1, 16)

# ed25519: -x*x + y*y = 1 + d*x*x*y*y over 2**255 - 19, points as (X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z

_P = 2**255 - 19
_2D = 2 * -121665 * pow(121666, -1, _P) % _P
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y = 4 * pow(5, -1, _P) % _P
_ed25519_places: list[list[Triple]] = []  # of each place and digit: y + x, y - x, 2*d*x*y


def _ed25519_table() -> list[list[Triple]]:
    if not _ed25519_places:
        point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)
        points = []
        for _ in range(64):
            place = point
            for _ in _DIGITS:
                points.append(point)
                point = _ed25519_add(point, place)
        inverses = _invert_all([point[2] for point in points], _P)
        table = []
        for point, inverse in zip(points, inverses):
            x, y = point[0] * inverse % _P, point[1] * inverse % _P
            table.append(((y + x) % _P, (y - x) % _P, x * y % _P * _2D % _P))
        _ed25519_places[:] = [table[at : at + 15] for at in range(0, len(table), 15)]
    return _ed25519_places


def _ed25519_add(one: Quadruple, two: Quadruple) -> Quadruple:
    """Add two points; the formulas hold for every pair, equal ones too (RFC 8032, 5.1.4)."""
    a = (one[1] - one[0]) * (two[1] - two[0]) % _P
    b = (one[1] + one[0]) * (two[1] + two[0]) % _P
    c = one[3] * two[3] % _P * _2D % _P
    d = 2 * one[2] * two[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _ed25519_public(seed: bytes) -> bytes:
    scalar = int.from_bytes(sha512(seed).digest()[:32], "little")
    scalar = scalar & ~7 & ((1 << 255) - 1) | 1 << 254
    x, y, z, t = 0, 1, 1, 0
    for place in _ed25519_table():
        digit = scalar & 15
        scalar >>= 4
        if digit:  # the same addition, with a point of the table
            plus, minus, product = place[digit - 1]
            a, b, c, d = (y - x) * minus % _P, (y + x) * plus % _P, t * product % _P, 2 * z
            e, f, g, h = b - a, d - c, d + c, b + a
            x, y, z, t = e * f % _P, g * h % _P, f * g % _P, e * h % _P
    inverse = pow(z, -1, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


# NIST curves: y*y = x*x*x - 3*x + b over a prime, points as (X, Y, Z) with x = X/(Z*Z), y = Y/(Z*Z*Z)


class _Curve:
    def __init__(self, prime: int, order: int, base_x: int, base_y: int) -> None:
        self.prime = prime
        self.order = order
        self.size = (prime.bit_length() + 7) // 8
        self._base = (base_x, base_y, 1)
        self._places: list[list[Pair]] = []

    def table(self) -> list[list[Pair]]:
        """Return x and y of each place and digit."""
        if not self._places:
            p = self.prime
            place = self._base
            points = []
            for _ in range((self.order.bit_length() + 3) // 4):
                multiples = [place, self._double(place)]
                while len(multiples) < len(_DIGITS):
                    multiples.append(self._add(multiples[-1], place[0], place[1]))
                points += multiples
                place = self._normal(self._double(multiples[7]))
            inverses = _invert_all([point[2] for point in points], p)
            table = []
            for point, inverse in zip(points, inverses):
                square = inverse * inverse % p
                table.append((point[0] * square % p, point[1] * square * inverse % p))
            self._places = [table[at : at + 15] for at in range(0, len(table), 15)]
        return self._places

    def multiply_base(self, scalar: int) -> Pair:
        """Return x and y of the base point times `scalar`, 0 < scalar < order."""
        total = None
        for place in self.table():
            digit = scalar & 15
            scalar >>= 4
            if digit:
                # The sum so far is less than 16**place times the base, and with this digit still less than the order:
                # never the point to be added nor its opposite, the two cases that _add does not cover.
                x, y = place[digit - 1]
                total = (x, y, 1) if total is None else self._add(total, x, y)
        if total is None:
            raise ValueError("a scalar of 0 has no point")
        return self._normal(total)[:2]

    def _normal(self, point: Triple) -> Triple:
        p = self.prime
        inverse = pow(point[2], -1, p)
        square = inverse * inverse % p
        return point[0] * square % p, point[1] * square * inverse % p, 1

    def _double(self, point: Triple) -> Triple:
        p = self.prime
        x, y, z = point
        yy = y * y % p
        s = 4 * x * yy % p
        zz = z * z % p
        m = 3 * (x - zz) * (x + zz) % p
        x3 = (m * m - 2 * s) % p
        return x3, (m * (s - x3) - 8 * yy * yy) % p, 2 * y * z % p

    def _add(self, point: Triple, x: int, y: int) -> Triple:
        """Add a point and another one, not its opposite, with Z = 1."""
        p = self.prime
        x1, y1, z1 = point
        zz = z1 * z1 % p
        h, r = x * zz - x1, y * zz * z1 - y1
        hh = h * h % p
        hhh, v = h * hh % p, x1 * hh % p
        x3 = (r * r - hhh - 2 * v) % p
        return x3, (r * (v - x3) - y1 * hhh) % p, z1 * h % p


def _invert_all(numbers: list[int], prime: int) -> list[int]:
    """Return the inverses of all, for one inversion and three multiplications each (Montgomery's trick)."""
    products = [1]
    for number in numbers:
        products.append(products[-1] * number % prime)
    inverse = pow(products[-1], -1, prime)
    inverses = []
    for number, product in zip(reversed(numbers), reversed(products[:-1])):
        inverses.append(inverse * product % prime)
        inverse = inverse * number % prime
    return inverses[::-1]


_CURVES = {
    256: _Curve(
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    ),
    384: _Curve(
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        int(
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
            16,
        ),
        int(
            "AA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7",
            16,
        ),
        int(
            "3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F",
            16,
        ),
    ),
    521: _Curve(
        2**521 - 1,
        int("01" + "FF" * 32 + "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16),
        int(
            "00C6858E06B70404E9CD9E3ECB662395B4429C648139053FB521F828AF606B4D3D"
            "BAA14B5E77EFE75928FE1DC127A2FFA8DE3348B3C1856A429BF97E7E31C2E5BD66",
            16,
        ),
        int(
            "011839296A789A3BC0045C8A5FB42C7D1BD998F54449579B446817AFBD17273E66"
            "2C97EE72995EF42640C550B9013FAD0761353C7086A272C24088BE94769FD16650",
            16,
        ),
    ),
}


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _mpint(number: int) -> bytes:
    return _string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")
