"""``environment.yml`` for conda, generated from the one dependency list in ``pyproject.toml``.

``python -m nclib.environment`` rewrites it; a test keeps the two equal.
"""

import tomllib

from nclib import files, paths


def text():
    """Contents of environment.yml."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = [*project["dependencies"], *extras["test"], *extras["cluster"]]
    lines = [
        "# Generated from pyproject.toml by `python -m nclib.environment`; do not edit.",
        "name: nclib",
        "channels: [conda-forge]",
        "dependencies:",
        f"  - python{project['requires-python']},<3.14",
        "  - pip",
        "  - pip:",
        *(f'      - "{package}"' for package in packages),
        "      - -e .",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with files.replacing(paths.ROOT / "environment.yml") as temporary:
        temporary.write_text(text(), encoding="utf-8")
