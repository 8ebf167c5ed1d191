"""Files are written whole or not at all."""

import os
import threading

import pandas as pd
import pytest

from nclib import checks, files


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    files.write_csv(path, pd.DataFrame({"a": [1]}))
    before = path.read_bytes()

    def half(self, target, **_):
        assert target.parent == tmp_path  # to replace it, on the same file system
        with open(target, "w") as handle:
            handle.write("a\n1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(OSError, match="No space"):
        files.write_csv(path, pd.DataFrame({"a": [2]}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("write", [files.write_json, lambda p, x: files.write_csv(p, frame(x))])
def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, write):
    """At no moment of the writing is the file at its place anything else."""
    path, seen = tmp_path / "file", set()
    write(path, {"a": [0] * 20_000})
    old = path.read_bytes()
    writer = threading.Thread(target=write, args=(path, {"a": [1] * 20_000}))
    writer.start()
    while writer.is_alive():
        seen.add(path.read_bytes())
    writer.join()
    assert seen | {path.read_bytes()} <= {old, path.read_bytes()}


def frame(content):
    return pd.DataFrame(content)


def test_json_that_is_damaged_or_of_another_kind_names_the_file(tmp_path):
    path = tmp_path / "x.json"
    for content in (None, b"", b"{", b"[1]", b"\xff\xfe"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(checks.InputError, match="x.json is missing or damaged"):
            files.read_json(path)
    path.write_text("[1]")
    assert files.read_json(path, list) == [1]


def test_the_digest_is_that_of_the_content(tmp_path):
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"1"), two.write_bytes(b"1")
    os.utime(two, (0, 0))
    assert files.digest(one) == files.digest(two) == "6b86b273ff34fce1"


def test_only_plain_names_lie_in_a_folder(tmp_path):
    assert files.inside(tmp_path, "x.csv") == tmp_path / "x.csv"
    for name in ("..", ".", "", "a/b", "../x"):
        with pytest.raises(checks.InputError, match="must be a plain file name"):
            files.inside(tmp_path, name)
