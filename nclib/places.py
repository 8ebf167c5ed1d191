"""From a row of a claim table to the cells that check and compute it, and the functions called."""

import ast
import contextlib
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from nclib import files, paths

SKIPPED = ("nclib.notebook", "nclib.claims", "nclib.losses")  # what every cell calls
DEFINED = ast.FunctionDef | ast.ClassDef
FORMULAS = ("theory", "linear", "ramps")  # the modules of a result that hold its closed forms


@dataclass(frozen=True)
class Place:
    """A cell that checks a row, by its execution count, and what its numbers come from.

    ``computed``: the cells that compute them, the nearest first; ``calls``: the functions of nclib
    that these call, by full name, and then the closed forms that those use.
    """

    cell: int
    computed: list
    calls: list


@cache
def _statements(path, changed):
    """(cell, statement) of a notebook in order; the names that come from nclib."""
    found, imported = [], {}
    for cell, source in enumerate(files.code(path), 1):
        with contextlib.suppress(SyntaxError):  # more magic, or a cell that never ran
            imported |= dict(files.imports(source))
            if "notebook.start(" not in source:
                found += [(cell, node) for node in files.tree(source).body]
    return found, imported


def places(notebook, row):
    """The cells of ``notebook`` that check ``row``, as :class:`Place` objects."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    statements, imported = _statements(path, path.stat().st_mtime_ns)
    found = {}
    for index, (cell, node) in enumerate(statements):
        for call in ast.walk(node):
            if _checks(call, row):
                steps = _origins(statements[: index + 1], call)
                computed, calls = found.setdefault(cell, ({}, {}))
                computed.update(dict.fromkeys(at for at, _ in steps))
                calls.update(dict.fromkeys(name for _, n in steps for name in _calls(n, imported)))
    return [
        Place(cell, list(computed), list(dict.fromkeys([*calls, *chain(*map(_formulas, calls))])))
        for cell, (computed, calls) in found.items()
    ]


def _checks(node, row):
    """Whether ``node`` is a call ``run.claim(row, …)``."""
    claim = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "claim" and node.args
    return bool(claim) and getattr(node.args[0], "value", None) == row


def _origins(statements, call):
    """(cell, node) of ``call`` and of the statements that its numbers come from, nearest first."""
    wanted, steps = _loaded(call), [(statements[-1][0], call)]
    for cell, node in reversed(statements):
        made, filled = _stored(node), _filled(node)
        computes = not isinstance(node, ast.Import | ast.ImportFrom | ast.AnnAssign)
        if computes and wanted & (made | filled):
            steps.append((cell, node))
            wanted = (wanted - (made - filled)) | _loaded(node)
    return steps


def _loaded(node):
    """Names that ``node`` needs from outside: not those of its loops and functions."""
    if isinstance(node, ast.For):
        needed = set()
        for part in reversed(node.body):
            needed = (needed - _stored(part)) | _loaded(part)
        return (needed - _stored(node.target)) | _loaded(node.iter)
    inner = set()
    for part in ast.walk(node):
        if isinstance(part, ast.For | ast.comprehension):
            inner |= _stored(part.target)
        if isinstance(part, ast.arg):
            inner.add(part.arg)
    names = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return {n.id for n in names} - inner


def _stored(node):
    """Names that ``node`` leaves behind."""
    hidden = (ast.comprehension, ast.Lambda, ast.FunctionDef)
    if isinstance(node, DEFINED):
        return {node.name}
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    parts = (n for n in ast.iter_child_nodes(node) if not isinstance(n, hidden))
    return names.union(*map(_stored, parts))


def _filled(node):
    """Names that ``node`` adds to: ``x += …``, ``x[…] = …`` or ``x.append(…)``."""
    parts = list(ast.walk(node))
    held = [p.target for p in parts if isinstance(p, ast.AugAssign)]
    held += [
        p.value for p in parts if isinstance(p, ast.Subscript) and isinstance(p.ctx, ast.Store)
    ]
    held += [p.value for p in parts if isinstance(p, ast.Attribute) and p.attr == "append"]
    return {one.id for one in held if isinstance(one, ast.Name)}


def _calls(node, imported):
    """What ``node`` calls, or hands on to be called, of the modules imported from nclib."""
    for part in ast.walk(node):
        name = ""
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            name = f"{imported.get(part.value.id, '')}.{part.attr}"
        elif isinstance(part, ast.Name):
            name = imported.get(part.id, "")
        if name.startswith("nclib.") and not name.startswith(SKIPPED) and source(name):
            yield name


def is_formula(name):
    """Whether ``name`` is that of a function in a module of closed forms."""
    return name.split(".")[-2] in FORMULAS


@cache
def _formulas(name):
    """The closed forms that the function called ``name`` uses, also through other functions."""
    waiting, found = [source(name)], {}
    for place in waiting:  # which grows
        calls, others = _used(*place)
        found |= dict.fromkeys(filter(is_formula, calls))
        waiting += [other for other in others if other not in waiting]
    return list(found)


@cache
def _used(file, line):
    """The functions of nclib that the one defined there calls, by full name, and where those stand
    that are no closed forms, with the others of its module that it names."""
    nodes, imported = _module(file)
    lines = {node.name: node.lineno for node in nodes if isinstance(node, DEFINED)}
    node = next(node for node in nodes if node.lineno == line)
    calls = list(dict.fromkeys(_calls(node, imported)))
    used = _loaded(node).difference(*map(_stored, node.body))
    others = [(file, at) for one, at in lines.items() if one in used]
    others += [source(call) for call in calls if not is_formula(call)]
    return calls, list(dict.fromkeys(others))


@cache
def _module(file):
    """The statements of a module of nclib, and the names that it imports from nclib."""
    text = file.read_text(encoding="utf-8")
    return files.tree(text).body, dict(files.imports(text))


@cache
def source(name):
    """``(file, line)`` of the function or class of nclib called ``name``; ``None`` for others.

    Nothing is imported for it: a module may need seconds.
    """
    module, _, attribute = name.rpartition(".")
    stem = Path(__file__).parents[1].joinpath(*module.split("."))
    if (stem / f"{attribute}.py").is_file() or (stem / attribute).is_dir():
        return None  # a module
    home = next(filter(Path.is_file, (stem.with_suffix(".py"), stem / "__init__.py")), None)
    # A package offers what its modules define.
    for file in [home, *sorted(stem.glob("[!_]*.py"))] if home else []:
        for node in _module(file)[0]:
            if isinstance(node, DEFINED) and node.name == attribute:
                return file, node.lineno
            for alias in node.names if isinstance(node, ast.ImportFrom) and file == home else []:
                if (alias.asname or alias.name) == attribute:
                    return source(f"{node.module}.{alias.name}")
    return None
