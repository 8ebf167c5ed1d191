"""Files: written whole or not at all; YAML and JSON read without running anything."""

import ast
import contextlib
import hashlib
import json
import os
import secrets
import threading
from pathlib import Path

import yaml

from nclib import checks


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    Who reads meanwhile, or after a kill or on a full disk, finds the old file or the new one, never
    half of one.  The temporary file is hidden and ends in ``.tmp``; only a kill leaves it behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path, table):
    """Write the DataFrame ``table``: equal tables give equal bytes, on every system."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def read_json(path, kind=dict):
    """The object or list in a JSON file that a run wrote.

    Raises :class:`~nclib.checks.InputError` if the file is missing or damaged.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, kind):
            raise ValueError(f"holds a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    return content


def write_json(path, content):
    """Write JSON atomically: a reader sees the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_cells(path):
    """``(kind, source, tags)`` of every cell of a notebook.

    Raises :class:`~nclib.checks.InputError` if the file is no notebook.
    """
    try:
        return [
            (cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {}).get("tags", []))
            for cell in json.loads(Path(path).read_bytes())["cells"]
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise checks.InputError(f"notebook {path} cannot be read ({reason})") from None


def code(path):
    """The sources of the code cells of a notebook, as :func:`read_cells` reads them."""
    return [text for kind, text, _ in read_cells(path) if kind == "code"]


_PARSER = threading.Lock()  # Python 3.11 counts the depth of all threads' trees together


def tree(source):
    """The syntax tree of a cell, whose lines of IPython's magics do not count."""
    lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    with _PARSER:
        return ast.parse("\n".join(lines))


def imports(source):
    """(name, full name of what it stands for) of all that Python ``source`` imports from nclib."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            pairs = [(alias.asname or alias.name, home + alias.name) for alias in node.names]
            yield from (pair for pair in pairs if pair[1].split(".")[0] == "nclib")


def damaged(path, reason):
    """The error for a file that a run wrote and that cannot be used."""
    return checks.InputError(
        f"{path} is missing or damaged ({reason}); `nclib run` makes this run again"
    )


def digest(path):
    """The first 16 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


class _Unique:
    """A key written twice, of which YAML would keep the last, is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"found the key {twice!r} twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class _Plain(_Unique, yaml.SafeLoader):
    pass


class _Texts(_Unique, yaml.BaseLoader):
    pass


def read_yaml(path, *, texts=False):
    """The content of a YAML file; plain values only, a tag that names Python objects is refused.

    ``texts``: as :func:`yaml_texts` reads them.  Raises :class:`~nclib.checks.InputError`, one line
    with the place, if the file cannot be read.
    """
    try:
        return (_Texts if texts else _Plain)(
            Path(path).read_text(encoding="utf-8")
        ).get_single_data()
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise checks.InputError(f"{path} cannot be read as YAML: {message}") from None


def yaml_texts(text):
    """Lists and dicts of YAML ``text`` with every leaf as it was written.

    For values whose type is known: YAML would read 010 as eight, 1e-3 as a text and ``no`` as
    False.  Raises ``yaml.YAMLError``.
    """
    return _Texts(text).get_single_data()


def inside(folder, name):
    """``folder / name``; raises :class:`~nclib.checks.InputError` if that lies elsewhere."""
    path = Path(folder) / name
    if path.parent != Path(folder) or name in ("", ".", ".."):
        raise checks.InputError(f"{name!r} must be a plain file name, without folders")
    return path
