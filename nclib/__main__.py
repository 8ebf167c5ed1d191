"""``python -m nclib`` is the ``nclib`` command."""

from nclib.cli import main

if __name__ == "__main__":
    main(prog_name="nclib")
