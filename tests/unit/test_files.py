"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from sdxl_optim.files import write_atomically


def test_text_and_bytes_stand_as_given_and_nothing_beside(tmp_path):
    path = tmp_path / "a.txt"
    for content, expected in (("ü\r\n\n", "ü\r\n\n".encode()), (b"\x00", b"\x00")):
        write_atomically(path, content)
        assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_where_the_new_one_could_not_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def torn(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
