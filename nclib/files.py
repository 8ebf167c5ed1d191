"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path


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
