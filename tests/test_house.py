"""The rules of the house that a machine can read: sizes, names, arrows between modules."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.conftest import code

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("nclib/**/*.py"))
LONGEST = 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def functions(path):
    """``(qualified name, definition)`` of every function and method, nested ones included."""

    def inside(node, prefix):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (*FUNCTIONS, ast.ClassDef))
            name = f"{prefix}.{child.name}" if named else prefix
            if isinstance(child, FUNCTIONS):
                yield name, child
            yield from inside(child, name)

    return inside(tree(path), module(path))


def docstring(node):
    """Lines of a definition's docstring."""
    first = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    return set(range(first.lineno, first.end_lineno + 1)) if first else set()


@cache
def code_lines(path):
    """Lines that hold code, comments left out."""
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in blank:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines


def imports(path):
    """Modules that a file imports anywhere in it: of nclib the modules meant, else the package."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in own]
        else:
            continue
        for name in names:
            yield name if name in MODULES else name.split(".")[0]


def reached(start):
    """Everything that a module imports, through any number of steps."""
    found, waiting = set(), [start]
    while waiting:
        for name in imports(MODULES[waiting.pop()]):
            if name not in found:
                found.add(name)
                if name in MODULES:
                    waiting.append(name)
    return found


def result(name):
    """The result that a module belongs to, or None."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["nclib", "results"] and len(parts) > 2 else None


def check(rule, offenders):
    assert set(offenders) == set(), f"{rule}: see the rules of the house in README.md"


def test_no_function_is_longer_than_a_screen():
    long = []
    for path in FILES:
        for name, node in functions(path):
            body = set(range(node.lineno, node.end_lineno + 1)) - docstring(node)
            if len(body & code_lines(path)) > LONGEST:
                long.append(name)
    check("longer than 60 lines", long)


def test_no_lambda_has_a_name():
    trees = {module(path): tree(path) for path in FILES}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        trees[path.stem] = ast.parse("\n".join(code(path.stem)))
    found = []
    for name, parsed in trees.items():
        for node in ast.walk(parsed):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                found += [f"{name}.{ast.unparse(target)}" for target in node.targets]
    check("named lambda", found)


def test_no_import_cycle():
    check("import cycle", [name for name in MODULES if name in reached(name)])


def test_the_kernel_knows_no_result_and_results_do_not_know_each_other():
    wrong = []
    for name, path in MODULES.items():
        for other in imports(path):
            if result(other) is not None and result(other) != result(name):
                wrong.append(f"{name} -> {other}")
    check("upward import", wrong)


def test_models_and_metrics_need_no_images():
    wrong = []
    for name in MODULES:
        if name.startswith(("nclib.ufm", "nclib.metrics")):
            wrong += [
                f"{name} -> {other}" for other in reached(name) & {"torchvision", "nclib.deep"}
            ]
    check("images", wrong)


def test_no_module_makes_names_up():
    found = [module(path) for path in FILES for node in tree(path).body
             if isinstance(node, FUNCTIONS) and node.name == "__getattr__"]  # fmt: skip
    check("__getattr__", found)


# Parameters ---------------------------------------------------------------------------------------


def calls():
    """Every call in the library, the notebooks and the README."""
    sources = [path.read_text(encoding="utf-8") for path in FILES]
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        sources += code(path.stem)
    for path in ROOT.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        sources += [block.replace("\n    ", "\n") for block in
                    re.findall(r"```python\n(.*?)```", text, re.DOTALL)]  # fmt: skip
    for source in sources:
        yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def name_of(node):
    return getattr(node, "attr", getattr(node, "id", None))


@cache
def passed():
    """``(names of keywords, most positions)`` by the name that is called, or handed on to be called
    with the keywords beside it (``partial``, ``seeded``, ``table.over``); ``"**"`` stands for all.
    """
    keywords, positions = defaultdict(set), defaultdict(int)
    for call in calls():
        own = {keyword.arg or "**" for keyword in call.keywords}
        starred = any(isinstance(argument, ast.Starred) for argument in call.args)
        keywords[name_of(call.func)] |= own | ({"**"} if starred else set())
        positions[name_of(call.func)] = max(positions[name_of(call.func)], len(call.args))
        for place, argument in enumerate(call.args):
            if isinstance(argument, ast.Name | ast.Attribute):
                keywords[name_of(argument)] |= own
                after = len(call.args) - place - 1
                positions[name_of(argument)] = max(positions[name_of(argument)], after)
    return keywords, positions


def optional(node, method):
    """``(name, position or None)`` of the parameters with a default."""
    arguments = node.args.posonlyargs + node.args.args
    first = len(arguments) - len(node.args.defaults)
    for place, argument in enumerate(arguments):
        if place >= first:
            yield argument.arg, place - method
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg, None


def test_every_optional_parameter_has_a_caller():
    keywords, positions = passed()
    unused = []
    for path in FILES:
        classes = {name.rsplit(".", 1)[0] for name, _ in functions(path)} - {module(path)}
        for name, node in functions(path):
            home, own = name.rsplit(".", 1)
            command = any("command" in ast.unparse(d) for d in node.decorator_list)
            outside = own.endswith("__") and own not in ("__init__", "__call__")  # Python calls it
            if command or outside or name.startswith(PUBLIC):
                continue
            called = home.rsplit(".", 1)[1] if own == "__init__" else own
            method = home in classes and node.args.args[:1] != [] and (
                node.args.args[0].arg in ("self", "cls")
            )  # fmt: skip
            for parameter, place in optional(node, method):
                given = {parameter, "**"} & keywords[called]
                if not given and (place is None or positions[called] <= place):
                    unused.append(f"{name}({parameter})")
    check("parameter without caller", unused)


# What people call whose code is not here.
PUBLIC = (
    "nclib.metrics.nc_metrics",
    "nclib.metrics.collapse.nc_metrics",
    "nclib.metrics.collapse.by_class",
    "nclib.metrics.statistics.ClassStatistics",
    "nclib.metrics.agreement.Agreement",
    "nclib.metrics.generalized.generalized_nc",
    "nclib.metrics.multi_label.multi_label_metrics",
    "nclib.metrics.certified.certified_gap",
    "nclib.metrics.geometry.frame_distances",
    "nclib.metrics.ood",
    "nclib.deep.collect",
    "nclib.tracker",
    "nclib.plots.panels",
)
