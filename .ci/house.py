#!/usr/bin/env python3
"""Checks how the sources hang together: `make lint` runs it.

Files of a tree import each other in one direction only: no circle, whether at the top of a file or inside a function.
In the bindings each floor imports from floors below it, and few files say `unsafe`. Loops of the kernels are
written out, so that they are compiled for the SIMD level that they run at. What a file imports is read from
its `use` lines and paths, or from Python's own syntax tree; tests inside Rust files, comments, and imports for type
checkers alone do not count.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES_WITH_UNSAFE = 10
"""How many files of the bindings say `unsafe`: no more of them."""

FLOORS = ("memory", "optimizer", "services", "whole", "step")
"""Folders of the bindings, from the ground up. Files beside them lie below all, but `lib.rs`, which lies above."""

Module = tuple[str, ...]
Imports = dict[str, set[str]]


def without_tests(text: str) -> str:
    """Rust without comments, without the paths of `pub(in ...)`, and without what is compiled for tests only."""
    text = re.sub(r"//.*|pub\(in .*?\)", "", text)
    test = r"^( *)#\[cfg\(test\)\]\n( *#\[.*\n)* *(pub\(.*\) |pub )?(mod|fn) [^\n]*\{\n(.*\n)*?\1\}"
    return re.sub(test, "", text, flags=re.M)


def paths_of(use: str) -> list[str]:
    """`a::{b, c::{d, e}}` -> a::b, a::c::d, a::c::e."""
    group = re.fullmatch(r"(.*?)\{(.*)\}", use, re.S)
    if not group:
        return [use]
    paths, depth, item = [], 0, ""
    for char in group[2] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            paths += paths_of(group[1] + item) if item else []
            item = ""
        else:
            item += char
    return paths


def imports_of_rust(root: Path) -> Imports:
    """Which files of a crate each file imports."""

    def module(file: Path) -> Module:
        parts = file.relative_to(root).with_suffix("").parts
        return parts[:-1] if parts[-1] in ("mod", "lib") else parts

    files = {module(file): file for file in sorted(root.rglob("*.rs"))}
    imports: Imports = {str(file.relative_to(root)): set() for file in files.values()}
    for own, file in files.items():
        text = without_tests(file.read_text())
        inner = [
            (m.start(), m.end(), m[2])
            for m in re.finditer(r"^( *)(?:pub(?:\(.*?\))? )?mod (\w+) \{\n(?:.*\n)*?\1\}", text, re.M)
        ]
        use = r"(?:^\s*(?:pub(?:\([^)]*\))? )?use ([^;]+);)|\b((?:crate|super|self)(?:::\w+)+)"
        for m in re.finditer(use, text, re.M):
            here = own + tuple(name for start, end, name in inner if start < m.start() < end)
            for path in paths_of(re.sub(r"\s+", "", m[1] or m[2])):
                found = resolved(path.split("::"), here, files, is_use=bool(m[1]))
                if found is not None and found != own:
                    imports[str(file.relative_to(root))].add(str(files[found].relative_to(root)))
    return imports


def resolved(path: list[str], here: Module, files: dict[Module, Path], *, is_use: bool) -> Module | None:
    """The file in which a path ends; `None` if in another crate."""
    base: Module = ()
    if path[0] == "crate":
        path = path[1:]
    elif path[0] in ("super", "self"):
        base = here
        while path and path[0] in ("super", "self"):
            base = base[:-1] if path[0] == "super" else base
            path = path[1:]
    elif is_use and (*here, path[0]) in files:
        base = here
    else:
        return None
    while path and (*base, path[0]) in files:
        base, path = (*base, path[0]), path[1:]
    while base not in files:
        base = base[:-1]  # a module written out inside a file
    return base


def imports_of_python(root: Path) -> Imports:
    """Which files of a package each file imports, at any time."""

    def module(file: Path) -> str:
        parts = (root.name, *file.relative_to(root).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    files = {module(file): file for file in sorted([*root.rglob("*.py"), *root.rglob("*.pyi")])}
    imports: Imports = {}
    for own, file in files.items():
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = own.split(".") if file.stem == "__init__" else own.split(".")[:-1]
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                inside = [f"{base}.{alias.name}" for alias in node.names]
                found.update(name if name in files else base for name in inside)
        imports[str(file.relative_to(root))] = {
            str(files[name].relative_to(root)) for name in found if name in files and name != own
        }
    return imports


def circles(tree: str, imports: Imports) -> list[str]:
    """A circle of imports, if there is one."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [f"{tree}: files import each other in a circle: " + " <- ".join(error.args[1])]
    return []


def upward(tree: str, imports: Imports) -> list[str]:
    """Imports from a floor above."""
    rank = {floor: k for k, floor in enumerate(FLOORS)}
    floor_of = {file: rank.get(file.split("/")[0], -1) for file in imports}
    return [
        f"{tree}/{file} imports {other}, from a floor above it (bottom to top: {', '.join(FLOORS)})"
        for file, others in imports.items()
        for other in sorted(others)
        if file != "lib.rs" and floor_of[file] < floor_of[other]
    ]


def loops_outside(root: Path) -> list[str]:
    """Loops of code for a SIMD level that the compiler may put into a function of their own.

    `for_each` and `fold` are functions of the standard library, which nothing obliges the compiler to inline. Where it
    does not, the loop is compiled for the weakest processor, and intrinsics become calls: five times as slow.
    """
    inlined = r"^( *)#\[inline\(always\)\]\n(?: *#\[.*\n)* *[^\n]*\bfn [^;{]*\{\n((?:.*\n)*?)\1\}"
    return [
        f"{file.relative_to(ROOT)}: write `{call[1]}` as a loop: {call[0].strip()}"
        for file in sorted(root.rglob("*.rs"))
        for body in re.finditer(inlined, without_tests(file.read_text()), re.M)
        for call in re.finditer(r"[^\n]*\.(for_each|fold|try_for_each|try_fold)\(.*", body[2])
    ]


def main() -> int:
    """Prints what is wrong and returns how much it is."""
    wrong = []
    for crate in ("kernels", "bindings"):
        source = ROOT / "rust" / crate / "src"
        imports = imports_of_rust(source)
        wrong += circles(f"rust/{crate}/src", imports)
        if crate == "bindings":
            wrong += upward(f"rust/{crate}/src", imports)
            unsafe = [file for file in imports if re.search(r"\bunsafe\b", without_tests((source / file).read_text()))]
            if len(unsafe) > FILES_WITH_UNSAFE:
                wrong.append(f"rust/bindings/src: {len(unsafe)} files say unsafe: {', '.join(unsafe)}")
    wrong += loops_outside(ROOT / "rust" / "kernels" / "src")
    wrong += circles("python/oxistep", imports_of_python(ROOT / "python" / "oxistep"))
    print("\n".join(wrong))
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
