"""Writes what users read as programs for type checkers: `make types` checks them against the installed wheel.

The `python` blocks of a page become one file, as `tests/test_docs.py` runs them in one namespace; so does the example
of each docstring. Code keeps its line: `of_README.py:66` is line 66 of README.md. The examples, and what `tests/typed`
expects, are copied: beside the sources a checker would read those and not the wheel.

    python docs/typed_snippets.py FOLDER
"""

import ast
import doctest
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "examples/*.md")
NOT_RUN = re.compile(r"<!-- not run: .* -->\s*")

# What pyright does by default. basedpyright stands in for it: pyright's own package downloads its program from npm.
PYRIGHT = {
    "typeCheckingMode": "standard",
    "reportUnusedExpression": False,  # what a prompt would print
    "reportPossiblyUnboundVariable": False,  # a loop over range(300) does run
}


def placed(pieces: list[tuple[int, str]]) -> str:
    """One program of pieces of code, each at its line, counted from 0."""
    lines: list[str] = []
    for line, code in pieces:
        lines += [""] * (line - len(lines))
        lines += code.rstrip("\n").split("\n")
    return "\n".join(lines) + "\n"


def without_prompts(code: str, line: int) -> list[tuple[int, str]]:
    """What is typed at the prompts of a session that begins at `line`."""
    return [(line + example.lineno, example.source) for example in doctest.DocTestParser().get_examples(code)]


def of_page(text: str) -> list[tuple[int, str]]:
    """The code of a page, but for blocks that are marked as not run."""
    pieces: list[tuple[int, str]] = []
    tokens = MarkdownIt().parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type != "fence" or token.info != "python" or token.map is None:
            continue
        if before is not None and before.type == "html_block" and NOT_RUN.fullmatch(before.content):
            continue
        line = token.map[0] + 1
        pieces += without_prompts(token.content, line) if ">>>" in token.content else [(line, token.content)]
    return pieces


def of_docstrings(source: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """The examples in the docstrings of a module, each with the name of what it explains."""

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None and (pieces := without_prompts(docstring, node.body[0].lineno - 1)):
                yield name or "module", pieces
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef):
                    yield from visit(child, f"{name}.{child.name}".strip("."))

    yield from visit(ast.parse(source), "")


def main(folder: Path) -> None:
    """Writes all files anew."""
    shutil.rmtree(folder, ignore_errors=True)
    programs = {
        str(path.relative_to(ROOT).with_suffix("")): of_page(path.read_text(encoding="utf-8"))
        for pattern in PAGES
        for path in sorted(ROOT.glob(pattern))
    }
    package = ROOT / "python"
    for path in sorted(package.glob("oxistep/**/*.py")):
        for name, pieces in of_docstrings(path.read_text(encoding="utf-8")):
            programs[f"docstrings/{path.relative_to(package).with_suffix('')}.{name}"] = pieces
    for name, pieces in programs.items():
        if pieces:
            # one flat folder of modules with names that no other module has
            path = folder / ("of_" + re.sub(r"\W", "_", name) + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(placed(pieces), encoding="utf-8")
    for copied in ("examples", "tests/typed"):
        (folder / copied).mkdir(parents=True, exist_ok=True)
        for path in sorted((ROOT / copied).glob("*.py")):
            shutil.copy(path, folder / copied)
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
