"""Who may log in: a user and a hash of the password on each line of a file.

  python -m for_app.server.users ann >> users.txt

asks for ann's password, and prints her line. The hash is scrypt's, so that the file tells nobody a password.
"""

import argparse
import base64
import binascii
import getpass
import hashlib
import hmac
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from for_model.cli import run_command
from for_model.errors import UsageError

_COST = 2**14  # scrypt's N; with r = 8 and p = 1 a guess takes 16 MiB, and about 50 ms of one core
_BLOCK = 8
_AT_ONCE = 2  # so that guesses leave cores and memory to the searches
_FORM = "USER:scrypt:SALT:HASH"


@dataclass(frozen=True)
class HashedPassword:
    """A password, as far as it can be told from others.

    salt: 16 random bytes.
    hash: 32 bytes of scrypt.
    """

    salt: bytes
    hash: bytes

    @classmethod
    def of(cls, password: str) -> "HashedPassword":
        salt = secrets.token_bytes(16)
        return cls(salt, _scrypt(password, salt))

    def fits(self, password: str) -> bool:
        """Whether it is this one, in a time that doesn't depend on how much of it is right."""
        return hmac.compare_digest(_scrypt(password, self.salt), self.hash)


class Users:
    """Everybody who may log in."""

    def __init__(self, passwords: dict[str, HashedPassword]) -> None:
        self._passwords = passwords
        self._nobody = HashedPassword(bytes(16), bytes(32))  # takes as long for a name that isn't known
        self._limiter: anyio.CapacityLimiter | None = None

    @classmethod
    def only(cls, name: str, password: str) -> "Users":
        return cls({name: HashedPassword.of(password)})

    @classmethod
    def read(cls, path: Path) -> "Users":
        """The users of a file. Raises UsageError for one that can't be read, is empty, or says something else."""
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} can't be read ({error}): expected lines {_FORM}") from error
        passwords: dict[str, HashedPassword] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, rest = line.strip().partition(":")
            try:
                kind, salt, hashed = rest.split(":")
                password = HashedPassword(*(base64.b64decode(each, validate=True) for each in (salt, hashed)))
            except (ValueError, binascii.Error):
                kind = ""
            if not name or kind != "scrypt" or len(password.hash) != 32 or name in passwords:
                wrong = f"{name} is there twice" if name in passwords else f"expected {_FORM}"
                raise UsageError(f"{path}, line {number}: {wrong}; `python -m for_app.server.users USER` prints a line")
            passwords[name] = password
        if not passwords:
            raise UsageError(f"{path} names no user: `python -m for_app.server.users USER >> {path}` adds one")
        return cls(passwords)

    async def admits(self, name: str, password: str) -> bool:
        """Whether there is such a user with such a password."""
        if self._limiter is None:  # made where the loop runs
            self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        known = self._passwords.get(name, self._nobody)
        return await anyio.to_thread.run_sync(known.fits, password, limiter=self._limiter)


def user_line(name: str, password: str) -> str:
    """What stands in a file for a user. Raises UsageError for a name that can't, and for no password."""
    if not name.strip() or name != name.strip() or name.startswith("#") or ":" in name or not name.isprintable():
        raise UsageError(f"{name!r} can't be a user: expected letters without a colon, a # or spaces around them")
    if not password:
        raise UsageError("a password needs at least one character")
    hashed = HashedPassword.of(password)
    return ":".join((name, "scrypt", *(base64.b64encode(each).decode() for each in (hashed.salt, hashed.hash))))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=_COST, r=_BLOCK, p=1, dklen=32)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a user's line. Returns 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m for_app.server.users", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("user", help="the name to log in with")

    def run() -> None:
        arguments = parser.parse_args(argv)
        if sys.stdin.isatty():
            password = getpass.getpass(f"Password of {arguments.user}: ")
            if getpass.getpass("Once more: ") != password:
                raise UsageError("these were two different passwords: try again")
        else:
            password = sys.stdin.readline().rstrip("\n")
        print(user_line(arguments.user, password))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
