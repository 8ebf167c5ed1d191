"""One notebook executed by papermill, in a kernel of this very interpreter."""

import json
import logging
import os
import sys
from pathlib import Path


def execute(source, target, parameters, *, environment, log, progress=False):
    """Execute the notebook ``source`` into ``target``; returns what went wrong, or ``None``.

    ``environment``: variables of the kernel, beside those of this process; ``log``: the open file
    that keeps what it says outside of its cells.
    """
    # jsonschema would compile a grammar of internationalised web addresses, for more than a second
    # in every process; notebooks hold none.  A module that is None counts as not installed.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    # Silent about declarations that papermill cannot parse, and deaths that are reported below.
    for name in ("papermill", "traitlets"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                _literal(source),
                _literal(target),
                parameters=parameters,
                kernel_name="python3",
                language="python",
                progress_bar=progress,
                log_output=False,
                shutdown_kernel="immediate",  # everything is written by then
                kernel_manager_class=_own_kernel(environment, log),
            )
            break
        except papermill.PapermillExecutionError as error:
            return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        except OSError:
            raise
        except Exception as error:
            # Many kernels starting at once can lose a race for a port; nothing has run yet then.
            if attempt == 1 and _cells_run(target) == 0:
                continue
            kind = type(error).__name__
            where = f"after {_cells_run(target)} cells" if target.exists() else "at the start"
            return f"the kernel died or timed out {where} ({kind}: {error})"
    return None


def _own_kernel(environment, log):
    """A kernel manager that starts this interpreter, whatever a kernelspec of that name starts.

    A kernelspec ``python3`` of another environment, in the home directory or on ``JUPYTER_PATH``,
    hides the own one; its kernel has another nclib or none, or ends at once.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())

        async def start_kernel(self, **options):
            options |= {"env": os.environ | environment, "stdout": log, "stderr": log}
            await super().start_kernel(**options)

    return OwnKernel


def _literal(path):
    """``path`` for papermill, which would fill parameters into braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _cells_run(path):
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return 0
    return sum(bool(cell.get("execution_count")) for cell in content["cells"])
