"""The modules of the project have no circles of imports, no runtime module needs tools/, and functions and files are short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = {"fastinfer": ROOT, "tools": ROOT / "tools"}  # folder -> where the names of its modules begin
COMPILED = {"fastinfer._cpu"}  # modules without a .py file; they import nothing


def module_name(path, base):
    """The dotted name of the module in a file: base/a/b.py is a.b, base/a/__init__.py is a."""
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types(node):
    """Whether an `if` tests TYPE_CHECKING, so that its body never runs."""
    test = node.test
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"


def imports(node, later):
    """The import statements that run at import and, if `later`, those in functions. Those under TYPE_CHECKING never count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and is_for_types(child):
            yield from imports(ast.Module(child.orelse, []), later)
        elif later or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(child, later)


def imported(statement, name, is_package):
    """The dotted names that an import statement of module `name` may import. Some may not be modules."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    package = name.split(".") if is_package else name.split(".")[:-1]
    base = package[: len(package) - statement.level + 1] if statement.level else []
    base = ".".join([*base, *([statement.module] if statement.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in statement.names)]


def graph(folder, base, later=False):
    """{module: the modules of the folder that it imports at import and, if `later`, in its functions}.

    `from a import b` needs the module a.b if it exists, else the module a. An import through a package needs the package's __init__.
    An import inside a package also runs that __init__ first, but Python resolves this, so it does not count as a circle.
    """
    files = {module_name(path, base): path for path in sorted(folder.rglob("*.py"))}
    edges = {}
    for name, path in files.items():
        edges[name] = set()
        for statement in imports(ast.parse(path.read_text("utf-8")), later):
            found = imported(statement, name, path.stem == "__init__")
            if isinstance(statement, ast.Import):
                edges[name] |= {f for f in found if f in files}
                continue
            modules = [f for f in found[1:] if f in files or f in COMPILED]
            edges[name] |= set(modules) - COMPILED
            if found[0] in files and len(modules) < len(statement.names):
                edges[name].add(found[0])
        edges[name].discard(name)
    return edges


def circles(edges):
    """The groups of modules that reach each other through imports, each sorted by name."""
    reached = {}

    def reach(name):
        if name not in reached:
            seen, left = set(), list(edges[name])
            while left:
                other = left.pop()
                if other not in seen:
                    seen.add(other)
                    left += edges[other]
            reached[name] = seen
        return reached[name]

    groups = {tuple(sorted(other for other in reach(name) if name in reach(other))) for name in edges if name in reach(name)}
    return sorted(groups)


def a_way_round(edges, group):
    """A shortest circle through the first module of the group, as "a -> b -> a"."""
    start = group[0]
    ways = [[start]]
    while ways:
        way = ways.pop(0)
        for other in sorted(edges[way[-1]]):
            if other == start:
                return " -> ".join([*way, start])
            if other in group and other not in way:
                ways.append([*way, other])


@pytest.mark.parametrize("root", ROOTS)
def test_no_circle_of_imports(root):
    """Imports in functions count, too, because they would only hide a circle from Python."""
    edges = graph(ROOT / root, ROOTS[root], later=True)
    assert sum(map(len, edges.values())) > 20
    found = [f"{', '.join(group)}: {a_way_round(edges, group)}" for group in circles(edges)]
    assert not found, "modules import each other: " + "; ".join(found)


def test_a_circle_is_found_by_its_names(tmp_path):
    """Three of five modules form a circle through a package and a relative import. Imports that do not run form no circle."""
    files = {
        "pack/__init__.py": "from . import a\n",
        "pack/a.py": "import os\ntry:\n    from pack.b import thing\nexcept ImportError:\n    pass\n",
        "pack/b.py": "class B:\n    import pack.c\n\ndef later():\n    import pack.d\n",
        "pack/c.py": "from .a import other\n",
        "pack/d.py": "from typing import TYPE_CHECKING\nimport pack.b\nif TYPE_CHECKING:\n    import pack.d2\n",
        "pack/d2.py": "from pack import d\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    edges = graph(tmp_path / "pack", tmp_path)
    assert circles(edges) == [("pack.a", "pack.b", "pack.c")]
    assert a_way_round(edges, circles(edges)[0]) == "pack.a -> pack.b -> pack.c -> pack.a"
    (group,) = circles(graph(tmp_path / "pack", tmp_path, later=True))  # pack.b imports pack.d in a function
    assert group == ("pack.a", "pack.b", "pack.c", "pack.d")
    (tmp_path / "pack/d.py").write_text("import pack.d2\n")
    assert ("pack.d", "pack.d2") in circles(graph(tmp_path / "pack", tmp_path))


def test_the_runtime_never_imports_tools():
    """It imports tools neither by the names that commands use nor as tools.NAME, and not in functions either."""
    files = [path for path in (ROOT / "tools").iterdir() if path.suffix == ".py" or path.is_dir()]
    known = {"tools", *(path.stem for path in files)}
    assert {"train", "training", "zoo"} <= known
    for path in (ROOT / "fastinfer").rglob("*.py"):
        name = module_name(path, ROOT)
        for statement in imports(ast.parse(path.read_text("utf-8")), later=True):
            if isinstance(statement, ast.Import) or not statement.level:
                found = {module.partition(".")[0] for module in imported(statement, name, path.stem == "__init__")}
                assert not found & known, f"{path} imports {', '.join(found & known)} of tools/"


@pytest.mark.parametrize("root", ROOTS)
def test_functions_and_files_are_short(root):
    """No function has over 60 lines, no file over 450; ruff bounds the complexity."""
    found = []
    for path in sorted((ROOT / root).rglob("*.py")):
        text, name = path.read_text("utf-8"), path.relative_to(ROOT)
        found += [f"{name} has {count} lines" for count in [text.count("\n")] if count > 450]
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = function.end_lineno - function.lineno + 1
                found += [f"{name}: {function.name} has {lines} lines"] if lines > 60 else []
    assert not found
