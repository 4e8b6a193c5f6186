"""Where the API key comes from, and that no message shows it."""

import pytest

from imod_core.errors import InputError, MissingFileError
from imod_serve.client import Client
from imod_serve.key import checked_key, read_api_key
from imod_serve.launcher import Server


def test_a_key_comes_from_the_file_or_the_environment_without_its_line_end(tmp_path, monkeypatch):
    monkeypatch.delenv("IMOD_API_KEY", raising=False)
    assert read_api_key() is None
    monkeypatch.setenv("IMOD_API_KEY", "from-the-environment\n")
    assert read_api_key() == "from-the-environment"
    (tmp_path / "key").write_text(" from-a-file\r\n")
    assert read_api_key(tmp_path / "key") == "from-a-file"


@pytest.mark.parametrize(
    "content", [b"secret one\n", b"secret\nsecond", "secret-ü".encode(), b"secret\xff", b"se\x00cret"]
)
def test_what_no_header_carries_is_refused_and_not_shown(content, tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not one word of printable ASCII") as found:
        read_api_key(file)
    text = content.decode("latin-1").replace("\0", "")
    for use in (lambda: Client("http://127.0.0.1:9", api_key=text + "ü"), lambda: Server(tmp_path, api_key=text + "ü")):
        with pytest.raises(InputError, match="not one word of printable ASCII") as other:
            use()
        assert "secret" not in str(other.value)
    assert "secret" not in str(found.value)


def test_no_file_and_an_empty_one_are_told_apart(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        read_api_key(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="empty"):
        read_api_key(tmp_path / "empty")
    assert checked_key("", "there") is None
