"""The container: a file becomes one blob of bytes, compressed, then sealed; and comes back, or does not.

Layout (big-endian)::

    version 1 | flags 1 | body_bytes 4 | log2_n 1, salt 16 if encrypted | body | tag 16

``flags``: 1 = the body is deflated (RFC 1951), 2 = it is encrypted. The body, before both, is
``name_bytes 1 | name, UTF-8 | data``. Bytes after the tag are ignored: the erasure code pads.

With a password the body is encrypted by ChaCha20-Poly1305 (RFC 8439), everything before it being
authenticated too; key and nonce are derived by scrypt (RFC 7914, r = 8, p = 1) from the password and a
random salt, so that no two containers share them. Without one the tag is a BLAKE2s hash of all before it:
it finds damage, and keeps nothing secret.

A second key, of the same password and a salt that all firths share, says where in the frames the bits
stand (:func:`locator_key`). It has to be found before a single byte is read, and so has no salt of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firth.errors import FormatError, MissingExtra, SettingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

VERSION = 1
DEFLATED, ENCRYPTED = 1, 2
TAG_BYTES = 16
SALT_BYTES = 16
LOG2_N = 15  # scrypt: 32 MiB and about 0.1 s
LOG2_N_READ = range(10, 18)  # what a container may ask of its reader: 128 MiB at most
MOST_NAME_BYTES = 255
MOST_BODY_BYTES = 0xFFFFFFFF
MOST_DATA_BYTES = 1 << 30

_FIXED = struct.Struct(">BBI")
_PUBLIC_LOCATOR = hashlib.blake2s(b"firth video: nobody's secret").digest()
_LOCATOR_SALT = b"firth video locator 1"


@dataclass(frozen=True)
class Payload:
    """What was hidden.

    Attributes:
        data: the bytes.
        name: the file name that they had, without folders, or ``None``.
        secret: a password sealed them.
    """

    data: bytes
    name: str | None
    secret: bool


def pack(data: bytes, name: str | None = None, password: str | None = None) -> bytes:
    """The container of ``data``.

    Args:
        data: any bytes but none.
        name: a file name to keep; folders are dropped.
        password: seals the container; ``None`` leaves it open to everybody.

    Returns:
        The blob: at most 23 bytes longer than name and data, 40 with a password.

    Raises:
        SettingError: nothing to hide, more than 4 GiB, or an empty password.
        MissingExtra: a password, and the package cryptography is not installed.
    """
    if not data:
        raise SettingError("hide: the payload is empty, there is nothing to hide")
    _check_password(password)
    title = (_base_name(name) or "").encode()[:MOST_NAME_BYTES].decode(errors="ignore").encode()
    plain = bytes([len(title)]) + title + data
    body = _deflate(plain)
    flags = DEFLATED if len(body) < len(plain) else 0
    if not flags:
        body = plain
    if len(body) > MOST_BODY_BYTES:
        raise SettingError(
            f"hide: the payload has {len(body):,} bytes, a container takes {MOST_BODY_BYTES:,}"
        )
    if password is None:
        open_part = _FIXED.pack(VERSION, flags, len(body)) + body
        return open_part + _digest(open_part)
    salt = secrets.token_bytes(SALT_BYTES)
    head = _FIXED.pack(VERSION, flags | ENCRYPTED, len(body)) + bytes([LOG2_N]) + salt
    key, nonce = _data_key(password, salt, LOG2_N)
    return head + _cipher(key).encrypt(nonce, body, head)


def unpack(blob: bytes, password: str | None = None, most_bytes: int = MOST_DATA_BYTES) -> Payload:
    """The payload of a container; bytes after its end are ignored.

    Args:
        blob: what :func:`pack` returned, perhaps padded.
        password: the one it was sealed by.
        most_bytes: refuse data that inflate beyond this.

    Raises:
        FormatError: no container, cut, changed, of a later version, or sealed by another password.
        MissingExtra: it is encrypted and the package cryptography is not installed.
    """
    if len(blob) < _FIXED.size:
        raise FormatError(f"hidden container: cut after {len(blob)} bytes, its head alone has {_FIXED.size}")
    version, flags, body_bytes = _FIXED.unpack_from(blob)
    if version != VERSION or flags & ~(DEFLATED | ENCRYPTED):
        raise FormatError(
            f"hidden container: version {version}, flags {flags}; "
            f"this firth reads version {VERSION}, flags 0 to 3"
        )
    start = _FIXED.size + (1 + SALT_BYTES if flags & ENCRYPTED else 0)
    end = start + body_bytes + TAG_BYTES
    if len(blob) < end:
        raise FormatError(f"hidden container: cut after {len(blob):,} bytes of {end:,}")
    if flags & ENCRYPTED:
        body = _decrypted(blob[:start], blob[start:end], password)
    else:
        if not hmac.compare_digest(_digest(blob[: end - TAG_BYTES]), blob[end - TAG_BYTES : end]):
            raise FormatError("hidden container: its bytes do not fit their check, they were changed")
        body = blob[start : end - TAG_BYTES]
    plain = _inflate(body, most_bytes + 1 + MOST_NAME_BYTES) if flags & DEFLATED else body
    if not plain or len(plain) < 1 + plain[0]:
        raise FormatError("hidden container: the file name is longer than the container")
    title = plain[1 : 1 + plain[0]].decode(errors="replace")
    return Payload(plain[1 + plain[0] :], _base_name(title), bool(flags & ENCRYPTED))


def locator_key(password: str | None = None) -> bytes:
    """The key of places, dither and pilots: 32 bytes, the same for the same password everywhere.

    Raises:
        SettingError: an empty password.
    """
    _check_password(password)
    if password is None:
        return _PUBLIC_LOCATOR
    return _scrypt(password, _LOCATOR_SALT, LOG2_N, 32)


def _check_password(password: str | None) -> None:
    if password == "":
        raise SettingError("the password is empty; give one, or none at all to hide without secrecy")


def _base_name(name: str | None) -> str | None:
    """The last part of a path of any system, without characters that steer a terminal."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    kept = "".join(mark for mark in last if mark.isprintable())
    return None if kept in {"", ".", ".."} else kept


def _digest(open_part: bytes) -> bytes:
    return hashlib.blake2s(open_part, digest_size=TAG_BYTES, person=b"firthtag").digest()


def _scrypt(password: str, salt: bytes, log2_n: int, length: int) -> bytes:
    n = 1 << log2_n
    return hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=8, p=1, maxmem=1024 * n + (1 << 20), dklen=length
    )


def _data_key(password: str, salt: bytes, log2_n: int) -> tuple[bytes, bytes]:
    derived = _scrypt(password, salt, log2_n, 44)
    return derived[:32], derived[32:]


def _decrypted(head: bytes, sealed: bytes, password: str | None) -> bytes:
    log2_n = head[_FIXED.size]
    if log2_n not in LOG2_N_READ:
        raise FormatError(
            f"hidden container: it asks for scrypt with n = 2^{log2_n}, "
            f"2^{LOG2_N_READ[0]} to 2^{LOG2_N_READ[-1]} are read"
        )
    if not password:
        raise FormatError("hidden container: it is encrypted; give its password")
    key, nonce = _data_key(password, head[_FIXED.size + 1 :], log2_n)
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, sealed, head)
    except InvalidTag:
        raise FormatError(
            "hidden container: the password is not its own, or its bytes were changed"
        ) from None


def _cipher(key: bytes) -> ChaCha20Poly1305:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    except ModuleNotFoundError as error:
        raise MissingExtra("a password needs the package cryptography: pip install 'firth[video]'") from error
    return ChaCha20Poly1305(key)


def _deflate(plain: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(plain) + packer.flush()


def _inflate(body: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        plain = unpacker.decompress(body, most)
    except zlib.error as error:
        raise FormatError(f"hidden container: its body does not inflate ({error})") from error
    if not unpacker.eof:
        why = f"inflates to more than {most:,} bytes" if len(plain) >= most else "is cut"
        raise FormatError(f"hidden container: its body {why}")
    return plain
