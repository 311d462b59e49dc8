"""The declarations that the compiled module shares with its Python stub and the C headers must be equal.

Cython takes the offsets of structs and the values of enumerators from the headers, but their names and types are declared twice.
"""

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import fastinfer
from fastinfer.activations import ACTIVATIONS
from fastinfer.backends import COMPUTE_DTYPES, search
from fastinfer.config import MAX_DEPTH, HeadLayer

_cpu = pytest.importorskip("fastinfer._cpu", reason="the compiled module is missing")
from fastinfer.backends.cpu import CPU  # noqa: E402

SOURCES = Path(__file__).parents[1] / "src" / "cpu"
STUB = Path(fastinfer.__file__).with_name("_cpu.pyi")
# {C type: its names in the stub}. Only the stub says whether None is accepted.
ANNOTATIONS = {
    "": {"NDArray[Any]", "str", "Callable[[int], NDArray[np.uint8]]"},  # any Python object
    "str": {"str"},
    "int": {"int"},
    "bint": {"bool"},
    "bool": {"bool"},
    "size_t": {"int"},
    "float": {"float"},
    "list": {"list[Stored]"},
    "float[]": {"NDArray[np.float32]"},
    "int8_t[]": {"NDArray[np.int8]"},
    "int32_t[]": {"NDArray[np.int32]"},
    "Trees": {"Trees"},
    "Matrix": {"Matrix"},
    "Blocks": {"Blocks"},
    "Relative": {"Relative"},
    "Kernels": {"Kernels"},
}


def stub():
    """{name: function or class of the stub}."""
    return {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def members(cls):
    return {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}


def compiled(owner):
    """{name: object} of the public definitions in a module or class of the compiled module."""
    found = {name: value for name, value in vars(owner).items() if not name.startswith("_") and not inspect.ismodule(value)}
    return {name: value for name, value in found.items() if not (inspect.isclass(value) and value.__module__ != _cpu.__name__)}


def parameters(signature):
    """[(name, C type)] of a signature that Cython embedded. An array of any shape has the type "float[]"."""
    inside, found = signature[signature.index("(") + 1 : signature.rindex(")")], []
    for part in re.split(r",\s*(?![^\[]*\])", inside):
        *kind, name = part.removeprefix("const ").rsplit(maxsplit=1) if part else [""]
        if name and name != "self":
            found.append((name, re.sub(r"\[.*\]", "[]", kind[0] if kind else "")))
    return found


def check_parameters(where, signature, function):
    want = [(a.arg, ast.unparse(a.annotation).removesuffix(" | None")) for a in function.args.args if a.arg != "self"]
    got = parameters(signature)
    assert [name for name, _ in got] == [name for name, _ in want], where
    assert not function.args.defaults, where
    assert not function.args.kwonlyargs, where
    for (name, kind), (_, annotation) in zip(got, want, strict=True):
        assert annotation in ANNOTATIONS[kind], f"{where}: {name} is {kind or 'an object'}, the stub says {annotation}"


def test_the_stub_names_what_the_module_has():
    assert set(compiled(_cpu)) == set(stub())
    for name, node in stub().items():
        if isinstance(node, ast.ClassDef):
            assert set(compiled(getattr(_cpu, name))) == set(members(node)) - {"__init__"}, name
            assert [base.__name__ for base in getattr(_cpu, name).__bases__ if base is not object] == [ast.unparse(b) for b in node.bases]


def test_signatures_of_the_stub():
    checked = 0
    for name, node in stub().items():
        if isinstance(node, ast.FunctionDef):
            check_parameters(name, getattr(_cpu, name).__doc__.splitlines()[0], node)
            continue
        for method, function in members(node).items():
            where, own = f"{name}.{method}", getattr(_cpu, name)
            if method == "__init__":
                check_parameters(where, own.__doc__.splitlines()[0], function)
            elif function.decorator_list:
                assert [ast.unparse(d) for d in function.decorator_list] == ["property"], where
                assert inspect.isgetsetdescriptor(vars(own)[method]), where
            else:
                check_parameters(where, vars(own)[method].__doc__.splitlines()[0], function)
                checked += 1
    assert checked >= 11


def without_comments(text):
    return re.sub(r"/\*.*?\*/|#[^\n]*", " ", text, flags=re.S)


def types_of(parameters):
    """The types of a function's parameters, in C or Cython, without their names."""
    found = [re.match(r"(const )?(\w+)\s*(\**)", parameter.strip()) for parameter in parameters.split(",") if parameter.strip()]
    return [(m[1] or "") + m[2] + m[3] for m in found if m[0] != "void"]


def declared(line):
    """[(name, type)] of a declaration in C or Cython, such as "const float *x, *y". A function has the type (result, parameters)."""
    function = re.fullmatch(r"(\w+) \(\*(\w+)\)\((.*)\)(?: noexcept nogil)?", line)
    if function:
        return [(function[2], (function[1], types_of(function[3])))]
    kind, names = re.fullmatch(r"((?:const )?\w+) ?(.*)", line).groups()
    if kind == "array_kernel":  # Cython names this one function type, and kernels.h writes it out
        return [(name.strip(), ("void", ["const float*", "float*", "size_t"])) for name in names.split(",")]
    return [(name.strip(" *"), kind.replace("ptrdiff_t", "Py_ssize_t") + "*" * name.count("*")) for name in names.split(",")]


def fields(lines):
    return sorted(field for line in lines if line.strip() for field in declared(" ".join(line.split())))


def declared_in_c(header):
    """{name: fields of a struct, or type of a function} that a header defines."""
    text = without_comments((SOURCES / header).read_text())
    structs = re.findall(r"typedef struct(?: \w+)? \{(.*?)\} (\w+);", text, flags=re.S)
    functions = re.findall(r"typedef (\w+) \(\*(\w+)\)\(([^)]*)\);", text)
    return {name: fields(body.split(";")) for body, name in structs} | {name: (kind, types_of(of)) for kind, name, of in functions}


def declared_in_cython(header):
    """The same for the declarations of that header in _cpu.pyx."""
    text = without_comments((SOURCES / "_cpu.pyx").read_text()).split(f'cdef extern from "{header}" nogil:')[1]
    text = re.split(r"^\w", text, maxsplit=1, flags=re.M)[0]
    structs = re.findall(r"^    ctypedef struct (\w+):\n((?:        .*\n)+)", text, flags=re.M)
    functions = re.findall(r"^    ctypedef (\w+) \(\*(\w+)\)\((.*)\) noexcept nogil", text, flags=re.M)
    return {name: fields(body.splitlines()) for name, body in structs} | {name: (kind, types_of(of)) for kind, name, of in functions}


@pytest.mark.parametrize(("header", "least"), [("kernels.h", 11), ("ladder.h", 4)])
def test_cython_declares_what_the_headers_define(header, least):
    theirs, ours = declared_in_c(header), declared_in_cython(header)
    assert len(ours) >= least
    for name, declaration in ours.items():
        assert declaration == theirs[name], name


def enumerators():
    """{name: value} of the enumerators in kernels.h that have an explicit value."""
    text = without_comments((SOURCES / "kernels.h").read_text())
    return {name: int(value) for name, value in re.findall(r"\b(FI_\w+) = (\d+)", text)}


def test_the_deepest_tree_is_the_same_everywhere():
    assert enumerators()["FI_MOST_DEPTH"] == MAX_DEPTH


def test_activations_are_the_same_everywhere():
    values, ours = enumerators(), _cpu.activations()
    assert ours == {None: values["FI_LINEAR"], **{name: values[f"FI_{name.upper()}"] for name in ours if name}}
    assert set(ours) - {None} == set(ACTIVATIONS) == set(get_args(get_type_hints(HeadLayer)["activation"]))


def test_dtypes_are_the_same_everywhere():
    values, ours = enumerators(), _cpu.dtypes()
    assert ours == {"float32": values["FI_F32"], "bfloat16": values["FI_BF16"], "int8": values["FI_I8"]}
    assert set(CPU.dtypes) == set(ours) <= set(COMPUTE_DTYPES)
    assert all(b - a == 1 for a, b in pairwise(sorted(ours.values())))  # they are indices of tables


def test_both_backends_have_room_for_as_many_of_the_best():
    [room] = re.findall(r"FI_BEST_ROOM = (\d+)", (SOURCES / "kernels.h").read_text())
    assert int(room) == search.ROOM
