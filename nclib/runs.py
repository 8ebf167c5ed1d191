"""Batch runs: notebooks executed by papermill, with profiles, a manifest and no work done twice.

A run has a *name*: the profile, or ``<profile>-<hash>`` if parameters were changed.  Below the
output folder (default: the checkout) it writes ::

    runs/<name>/<notebook>/      executed notebook, checkpoints, log
    figures/<name>/<notebook>/   figures, tables, claims.json, manifest.json

Each notebook has a kernel of its own, so that a dead one costs one job only.  Results appear in
``figures`` when the notebook came to its end; a failed one leaves earlier results alone.

Results of a profile that are stored in the checkout are the reference: a later run is compared with
them (:mod:`nclib.reproduction`), keeps its own in ``runs/<name>/<notebook>/figures`` and replaces
them only if told to store.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nclib import checks, claims, files, kernels, notebook, parameters, paths, reproduction

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters and folders; plain values, so that it travels anywhere."""

    notebook: str
    name: str
    parameters: dict
    out: str | None = None
    threads: int = 1

    @property
    def source(self):
        """The notebook file."""
        return paths.NOTEBOOKS / f"{self.notebook}.ipynb"

    @property
    def folder(self):
        """Executed notebook, checkpoints and record."""
        return paths.runs(self.out) / self.name / self.notebook

    @property
    def figures(self):
        """Figures, tables, claims and manifest."""
        return paths.figures(self.out) / self.name / self.notebook

    @property
    def stored(self):
        """The stored results that this run should reproduce; only a plain profile has some."""
        if self.name not in profiles():
            return None
        folder = paths.figures() / self.name / self.notebook
        return folder if reproduction.intact(folder) else None

    @property
    def own(self):
        """Where results go instead of ``figures``, to leave the stored ones alone."""
        return self.folder / "figures"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``status`` is ``done``, ``unchanged`` or ``failed``.

    ``notes``: one line each about claims that fail and about what the stored results say otherwise;
    ``reproduced`` is ``None`` where nothing is stored.
    """

    job: Job
    status: str
    seconds: float
    message: str = ""
    verdicts: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    reproduced: bool | None = None


# Notebooks, parameters, profiles ------------------------------------------------------------------


def notebooks():
    """Names of all notebooks, in order."""
    found = sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise checks.InputError(
            f"no notebooks in {paths.NOTEBOOKS}; nclib runs from a checkout of the repository "
            "installed with `pip install -e .`"
        )
    return found


def title(name):
    """The first line of a notebook, without its marks."""
    texts = [text for _, text, _ in files.read_cells(paths.NOTEBOOKS / f"{name}.ipynb")]
    return "".join(texts[:1]).partition("\n")[0].lstrip("# ").strip() or name


def find(query):
    """The notebook meant by ``01``, ``1``, its full name or a part of it."""
    names = notebooks()
    text = str(query).removesuffix(".ipynb").rsplit("/", 1)[-1]
    exact = [n for n in names if n == text or (text and n.split("_")[0] == text.zfill(2))]
    matches = exact or [n for n in names if text and text in n]
    if len(matches) != 1:
        problem = "is ambiguous" if matches else "is unknown"
        raise checks.InputError(
            f"notebook {query!r} {problem}; choose from {', '.join(matches or names)}"
        )
    return matches[0]


def profiles():
    """Names of the profiles: quick, standard, paper and any other file beside them."""
    order = {"quick": 0, "standard": 1, "paper": 2}
    return sorted((p.stem for p in paths.PROFILES.glob("*.yaml")), key=lambda p: order.get(p, 9))


def profile(name):
    """The overrides of a profile: notebook -> parameters."""
    checks.choice("profile", name, profiles())
    path = paths.PROFILES / f"{name}.yaml"
    content = files.read_yaml(path)
    sections = {} if content is None else content
    if not isinstance(sections, dict):
        raise checks.InputError(f"{path.name} must map notebooks to parameters, got {content!r}")
    for entry, values in sections.items():
        if entry not in notebooks():
            raise checks.InputError(f"{path.name} has a section for unknown notebook {entry}")
        if not isinstance(values, dict | None):
            raise checks.InputError(f"{path.name}: {entry} must map parameters to values")
    return {entry: values or {} for entry, values in sections.items()}


def job(query, profile_name="quick", overrides=None, *, out=None, threads=1):
    """The :class:`Job` of a notebook, its parameters checked before anything starts.

    ``overrides``: parameter -> value; texts are read as the parameter's type says.
    """
    if "://" in str(out or ""):
        raise checks.InputError(
            f"--out {out} is no folder: runs need one that drivers and workers share; papermill "
            "alone writes executed notebooks to such addresses"
        )
    name = find(query)
    known = parameters.declared(name)
    values = profile(profile_name).get(name, {}) | {"profile": profile_name}
    changed = {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise parameters.unknown(key, known)
        value = parameters.read(key, value, known[key].kind) if isinstance(value, str) else value
        if value != values.get(key, known[key].default):
            changed[key] = value
    if "profile" in changed:
        raise checks.InputError(
            f"parameter profile is a name only: use --profile {changed['profile']}"
        )
    values |= changed
    for key in values:
        if key not in known:
            raise parameters.unknown(key, known)
    parameters.check({key: one.default for key, one in known.items()} | values, known)
    run_name = profile_name
    if changed:
        text = json.dumps(changed, sort_keys=True)
        run_name += "-" + hashlib.sha256(text.encode()).hexdigest()[:10]
    # Values that equal the defaults are left out: a default run keeps the notebook's own cells.
    values = {k: v for k, v in values.items() if v != known[k].default}
    # A worker of a cluster has another working directory.
    return Job(name, run_name, values, str(Path(out).resolve()) if out else None, threads)


# Executing one job --------------------------------------------------------------------------------


def fingerprint(job):
    """Hash of everything that decides the result: sources, parameters, versions, threads.

    Of the library it takes the modules that the notebook imports, directly or not; of a parameter
    ``folder`` all files below it.
    """
    own = sorted(Path(job.parameters["folder"]).rglob("*")) if job.parameters.get("folder") else []
    package = Path(__file__).parent
    library = notebook.library_files("\n".join(files.code(job.source)))
    catalogue = paths.CLAIMS / f"{job.notebook}.yaml"
    decide = [_cells(job.source), job.parameters, job.threads, notebook.versions()]
    parts = [
        json.dumps(decide, sort_keys=True),
        *(f"{p.relative_to(package)}:{p.read_text(encoding='utf-8')}" for p in library),
        catalogue.read_text(encoding="utf-8") if catalogue.exists() else "",
        *(f"{p}:{files.digest(p)}" for p in own if p.is_file()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cells(path):
    """Kinds and sources of the cells of a notebook, but for what papermill puts in."""
    cells = files.read_cells(path)
    return [(kind, text) for kind, text, tags in cells if "injected-parameters" not in tags]


def finished(job):
    """The manifest of a finished and undamaged run of this very job, or ``None``.

    That run must be the last one: an edit that was run and taken back has left its own results.
    """
    try:
        executed = _cells(job.folder / "notebook.ipynb")
    except checks.InputError:
        return None
    manifest = reproduction.intact(job.own if job.own.exists() else job.figures)
    good = manifest and executed == _cells(job.source)
    return manifest if good and manifest.get("fingerprint") == fingerprint(job) else None


def execute(job, force=False, progress=False, store=False):
    """Run one notebook; returns an :class:`Outcome` and never raises for it.

    While another nclib run works on the same job this one waits; what that run finished is not
    done again.  ``store``: replace stored results that this run does not reproduce to the byte.
    """
    start = time.monotonic()
    try:
        with _lock(job.folder):
            if not force and finished(job):
                return _outcome(job, "unchanged", 0.0, store)
            if message := _execute(job, progress, start):
                return Outcome(job, "failed", time.monotonic() - start, message)
            return _outcome(job, "done", time.monotonic() - start, store)
    except Exception as error:
        message = _explain(f"{type(error).__name__}: {error}", job)
        return Outcome(job, "failed", time.monotonic() - start, message)


def _outcome(job, status, seconds, store):
    """The :class:`Outcome` of a run that came to its end: verdicts, and what it reproduces."""
    if job.own.exists() and (store or job.stored != job.figures):
        _publish(job.own, job.figures)  # also where the stored ones are damaged
    folder = job.own if job.own.exists() else job.figures
    found = claims.read(folder / "claims.json")
    verdicts = {v: sum(c.verdict == v for c in found) for v in claims.VERDICTS}
    notes = [f"{claim.id} fails: {claim.statement}" for claim in found if claim.verdict == "fails"]
    comparison = None
    if not store and job.stored not in (None, folder):
        tables = reproduction.read_manifest(folder / "manifest.json")["tables"]
        comparison = reproduction.compare(folder, job.stored, tables)
        notes += [comparison.summary(), *comparison.lines()]
    reproduced = None if comparison is None else not comparison.differences
    record = {"reproduced": reproduced, "notes": notes}
    files.write_json(job.folder / "reproduction.json", record)
    return Outcome(job, status, seconds, "", verdicts, notes, reproduced)


def _explain(text, job):
    """What an error said, here or in a kernel, with the way out where nclib knows one."""
    folder, named = paths.runs(job.out).parent, re.search(r"\[Errno (\d+)\]", text)
    code = int(named[1]) if named else 0
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{text}; no space is left for {folder}: free some and run again"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{text}; {folder} cannot be written: choose another folder with --out DIR"
    return text


def _execute(job, progress, start):
    """Execute and publish; returns what went wrong, or ``None``."""
    # What a killed run left behind.  Its kernel may live a second longer: it writes to a staging
    # folder of its own, and checkpoints that are the same whoever writes them.
    for stale in job.folder.glob("staging*"):
        shutil.rmtree(stale, ignore_errors=True)
    for stale in job.folder.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="staging-", dir=job.folder))
    partial, failed = (job.folder / f"notebook.{end}.ipynb" for end in ("partial", "failed"))
    record, mark = staging / "record.json", fingerprint(job)
    try:
        if message := _kernel(job, staging, partial, progress):
            message = _explain(message, job)
        elif not record.exists():
            message = "the notebook stopped before its last cell (did a cell call sys.exit?)"
        if message:
            with contextlib.suppress(OSError):
                os.replace(partial, failed)
            return message
        manifest = files.read_json(record) | {
            "run": job.name,
            "fingerprint": mark,
            "seconds": round(time.monotonic() - start, 1),
            "machine": {"system": platform.system(), "cores": os.cpu_count()},
            "revision": revision(),
        }
        record.unlink()
        kept = sorted(p for p in staging.iterdir() if p.suffix not in (".pdf", ".tmp"))
        manifest["files"] = {p.name: files.digest(p) for p in kept}
        files.write_json(staging / "manifest.json", manifest)
        os.replace(partial, job.folder / "notebook.ipynb")
        shutil.rmtree(job.own, ignore_errors=True)
        _publish(staging, job.own if job.stored == job.figures else job.figures)
        failed.unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return None


def _kernel(job, staging, target, progress):
    """Execute the notebook into ``target``; returns what went wrong, or ``None``."""
    threads = str(job.threads)
    environment = {
        notebook.FOLDER: str(job.folder.resolve()),
        notebook.FIGURES: str(staging.resolve()),
        notebook.THREADS: threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
    }
    with open(job.folder / "log.txt", "a") as log:
        return kernels.execute(
            job.source, target, job.parameters, environment=environment, log=log, progress=progress
        )


def _publish(source, target):
    """Move new files over the old ones, then remove what the new run no longer makes."""
    target.mkdir(parents=True, exist_ok=True)
    new = {path.name for path in source.iterdir()}
    (target / "manifest.json").unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == "manifest.json"):
        os.replace(path, target / path.name)  # the manifest last: it marks the run as finished
    for path in target.iterdir():
        if path.is_file() and path.name not in new:
            path.unlink()
    source.rmdir()


@contextlib.contextmanager
def _lock(folder):
    """One process at a time per notebook and run name; a dead process holds no lock."""
    if fcntl is None:
        raise checks.InputError(
            "batch runs need the file locks of Linux or macOS; on Windows use WSL, or open the "
            "notebooks in Jupyter"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise checks.InputError(
                f"the file system of {folder} offers no locks ({error}); choose another folder "
                "with --out DIR"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def holder(job):
    """Who works on this job at the moment: ``"process 123 on host"``, or ``None``."""
    with contextlib.suppress(OSError, AttributeError), open(job.folder / ".lock") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle.read() or "another process"
    return None


def revision():
    """Git revision of the checkout, with ``+`` if files differ; empty without git."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# Executing many -----------------------------------------------------------------------------------


@contextlib.contextmanager
def engine(jobs=1, scheduler=None):
    """A function that runs a callable elsewhere and returns its future.

    ``jobs`` threads of this process, or the Dask cluster at address ``scheduler``, through its
    ``concurrent.futures`` interface.  Raises :class:`~nclib.checks.InputError` if Dask is not
    installed or no scheduler answers.
    """
    if scheduler is None:
        pool = ThreadPoolExecutor(checks.integer("jobs", jobs))
        try:
            yield pool.submit
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an interrupt nothing new starts
        return
    try:
        from distributed import Client
    except ImportError:
        raise checks.InputError("--scheduler needs Dask: pip install -e '.[cluster]'") from None
    try:
        if not re.search(r":\d+$", scheduler):  # such a client would wait for itself when it goes
            raise ValueError("no port")
        client = Client(scheduler, timeout=CONNECT_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise checks.InputError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__}); start one with "
            "`dask scheduler` and give the address it prints, such as tcp://host:8786"
        ) from None
    with client:
        # pure=False: equal calls are separate jobs, never one shared result.
        yield client.get_executor(pure=False).submit


CONNECT_WITHIN = 10.0  # seconds that a scheduler has to answer
ARRIVE_WITHIN = 10.0  # and that a result of a worker has to be seen here


def run_all(
    jobs, *, parallel=1, scheduler=None, force=False, store=False, progress=None, report=print
):
    """Execute jobs side by side; returns their :class:`Outcome` objects in the order of ``jobs``.

    A failed notebook does not stop the others.  ``report`` receives one line per finished job.
    """
    outcomes = {}
    single = parallel == 1 and scheduler is None and bool(progress)
    options = {"force": force, "progress": single, "store": store}
    with engine(parallel, scheduler) as submit:
        for job in jobs:
            if who := holder(job):
                report(f"{job.notebook} [{job.name}] waits: {who} is working in {job.folder}")
        futures = {submit(execute, job, **options): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            try:
                outcome = future.result()
            except Exception as error:
                outcome = Outcome(job, "failed", 0.0, _lost(error))
            if scheduler and outcome.status != "failed" and not _arrived(job):
                outcome = Outcome(job, "failed", outcome.seconds, _ELSEWHERE.format(job.figures))
            outcomes[job.name, job.notebook] = outcome
            report(describe(outcome))
    return [outcomes[job.name, job.notebook] for job in jobs]


def _lost(error):
    """One line about a job whose worker gave no answer."""
    kind = type(error).__name__
    if kind == "KilledWorker":
        return "every worker that tried it died (out of memory?); see the logs of the workers"
    if isinstance(error, CancelledError):
        return "the connection to the scheduler was lost; run the same command again"
    return f"{kind}: {error}"


_ELSEWHERE = (
    "the worker finished it, but {} here does not hold this result: driver and workers must share "
    "that folder (--out DIR) and have the same notebooks, library and versions"
)


def _arrived(job):
    """Whether the result can be read here; network file systems take a moment to show new files."""
    deadline = time.monotonic() + ARRIVE_WITHIN
    while not (found := finished(job)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found is not None


def describe(outcome):
    """One line about an outcome."""
    job = outcome.job
    text = f"{job.notebook} [{job.name}] {outcome.status}"
    if outcome.status == "failed":
        return f"{text}: {outcome.message} (partial notebook in {job.folder})"
    counts = ", ".join(f"{n} {v}" for v, n in outcome.verdicts.items() if n)
    took = "" if outcome.status == "unchanged" else f" in {outcome.seconds:.0f} s"
    notes = outcome.notes[:_SHOWN]
    if len(outcome.notes) > _SHOWN:
        rest = len(outcome.notes) - _SHOWN
        notes.append(f"… {rest} more in {job.folder / 'reproduction.json'}")
    if outcome.verdicts.get("fails"):
        notes.append(f"the executed notebook is in {job.folder}")
    if outcome.reproduced is False:
        notes.append(f"this run's figures are in {job.own}; `nclib run --store` keeps them")
    return "\n    ".join([f"{text}{took}: {counts}", *notes])


_SHOWN = 8  # notes that are printed


# Reading results ----------------------------------------------------------------------------------


def results(out=None):
    """Folders of the results of all finished runs below ``out``: (run, notebook) -> folder.

    That of the stored results, unless a run on this machine did not reproduce them.
    """
    found = {}
    for path in sorted(paths.figures(out).glob("*/*/manifest.json")):
        name, book = path.parts[-3:-1]
        here = paths.runs(out) / name / book
        found[name, book] = path.parent
        with contextlib.suppress(checks.InputError):
            reproduced = files.read_json(here / "reproduction.json").get("reproduced")
            if reproduced is False and (here / "figures" / "manifest.json").exists():
                found[name, book] = here / "figures"
    return found


def load(out=None, names=None):
    """All claims of all finished runs below ``out`` as one tidy table (a DataFrame).

    ``names``: only these ``(run, notebook)`` pairs.  Columns: run, notebook, those of the claim,
    and the run's parameters as ``p.<name>``.  Raises :class:`~nclib.checks.InputError` naming the
    file if one is damaged.
    """
    import pandas as pd

    rows = []
    for (name, book), folder in results(out).items():
        if names is not None and (name, book) not in names:
            continue
        given = reproduction.read_manifest(folder / "manifest.json")["parameters"]
        extra = {f"p.{key}": value for key, value in given.items()}
        for claim in claims.read(folder / "claims.json"):
            rows.append({"run": name, "notebook": book} | asdict(claim) | extra)
    return pd.DataFrame(rows)


# Storing outputs in the committed notebooks -------------------------------------------------------


def store(query):
    """Execute a notebook's quick profile and keep its outputs in the committed file.

    A finished run of that profile is the same execution and is taken.  Its results become the
    stored ones.  Timing metadata is stripped, so that the same outputs give the same file.  Raises
    :class:`~nclib.checks.InputError` if the notebook fails.
    """
    import nbformat

    quick = job(find(query), "quick")
    outcome = execute(quick, store=True)
    if outcome.status == "failed":
        raise checks.InputError(describe(outcome))
    content = nbformat.read(quick.folder / "notebook.ipynb", as_version=4)
    content.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(content.cells):
        cell["id"] = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        for result in cell.get("outputs", []):
            data = result.get("data", {})
            for kind in {"text/plain", "text/html"} & data.keys():
                # Addresses of objects and names of styled tables differ every time.
                data[kind] = re.sub(r"(0x)[0-9a-f]{6,}|(T_)[0-9a-f]{5}", r"\1\g<2>0", data[kind])
    with files.replacing(quick.source) as temporary:
        nbformat.write(content, temporary)
    return quick.source
