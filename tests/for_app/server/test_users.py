"""Users in a file of hashes."""

import asyncio
import io
from pathlib import Path

import pytest

from for_app.server.users import Users, main, user_line
from for_model.errors import UsageError


def test_users_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    lines = [user_line("ann", "secret"), user_line("Bob Ö", "pass:word\udc80")]
    file.write_text("# who may look\n\n" + "\n".join(lines) + "\n", "utf-8")
    assert "secret" not in file.read_text("utf-8")
    users = Users.read(file)
    for name, password, expected in (
        ("ann", "secret", True),
        ("Bob Ö", "pass:word\udc80", True),
        ("ann", "Secret", False),
        ("ann", "", False),
        ("nobody", "secret", False),
        ("nobody", "", False),
    ):
        assert asyncio.run(Users.read(file).admits(name, password)) is expected
    assert asyncio.run(users.admits("ann", "secret"))
    assert user_line("ann", "secret") != lines[0]  # salted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no user"),
        ("ann:secret\n", "line 1: expected USER:scrypt"),
        ("ann:md5:AAAA:AAAA\n", "line 1: expected"),
        ("ann:scrypt:AAAA:AAAA\n", "line 1: expected"),
        ("ann:scrypt:!:!\n", "line 1: expected"),
        (f"{user_line('ann', 'a')}\n{user_line('ann', 'b')}", "line 2: ann is there twice"),
    ],
)
def test_a_file_that_says_something_else_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "users.txt").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=said) as error:
        Users.read(tmp_path / "users.txt")
    assert "secret" not in str(error.value)
    with pytest.raises(UsageError, match="can't be read"):
        Users.read(tmp_path / "gone.txt")


def test_the_command_prints_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert main(["ann"]) == 0
    (tmp_path / "users.txt").write_text(capsys.readouterr().out, "utf-8")
    assert asyncio.run(Users.read(tmp_path / "users.txt").admits("ann", "secret"))
    for user, password in (("a:b", "x\n"), ("ann", "\n"), ("#ann", "x\n"), (" ann", "x\n")):
        monkeypatch.setattr("sys.stdin", io.StringIO(password))
        assert main([user]) == 2
