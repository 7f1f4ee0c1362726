"""Builds and tests the optimizer of docs/new-optimizer.md in a copy of the tree: `make worked-example`.

The page marks its blocks by comments: `file:` is a new file, `in: ... after: ...` (or `before: ...`) a line put after
(or before) one that is there, `test` what is run in the end.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "target" / "worked-example"
BLOCK = re.compile(r"^<!-- (?P<mark>.*?) -->\n(?:<!-- .*? -->\n)?```\w+\n(?P<code>.*?)^```$", re.M | re.S)


def write(path, text):
    """Leaves a file alone that says so already: cargo goes by times."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def changed(text, line, code, before):
    found = [i for i, there in enumerate(text.splitlines(), 1) if there == line]
    if len(found) != 1:
        raise SystemExit(f"{line!r} stands {len(found)} times where the page says it stands once")
    lines = text.splitlines(keepends=True)
    lines.insert(found[0] - before, code)
    return "".join(lines)


def build_tree():
    """The tree with what the page adds; returns the test."""
    names = ["Cargo.toml", "Cargo.lock"]
    names += [str(p.relative_to(ROOT)) for top in ("rust", "python") for p in (ROOT / top).rglob("*") if p.is_file()]
    texts = {
        n: (ROOT / n).read_text(encoding="utf-8") for n in names if n.endswith((".rs", ".toml", ".lock", ".py", ".pyi"))
    }
    test = None
    for block in BLOCK.finditer((ROOT / "docs" / "new-optimizer.md").read_text(encoding="utf-8")):
        mark, code = block["mark"], block["code"]
        if mark.startswith("file: "):
            texts[mark.removeprefix("file: ")] = code
        elif mark == "test":
            test = code
        elif found := re.fullmatch(r"in: (\S+) (after|before): (.*)", mark):
            name, where, line = found.groups()
            texts[name] = changed(texts[name], line, code, where == "before")
    for top in ("rust", "python"):
        for path in (COPY / top).rglob("*"):
            if path.is_file() and str(path.relative_to(COPY)) not in texts:
                path.unlink()
    for name, text in texts.items():
        write(COPY / name, text)
    return test


def main():
    test = build_tree()
    target = ROOT / "target" / "worked-example-build"
    environment = os.environ | {"PYO3_BUILD_EXTENSION_MODULE": "1", "PYO3_PYTHON": sys.executable}
    command = ["cargo", "build", "--package", "oxistep", "--locked", "--target-dir", target]
    subprocess.run(command, cwd=COPY, env=environment, check=True)
    library = next(p for p in ("lib_core.so", "lib_core.dylib", "_core.dll") if (target / "debug" / p).exists())
    shutil.copy(
        target / "debug" / library, COPY / "python" / "oxistep" / ("_core.pyd" if os.name == "nt" else "_core.abi3.so")
    )
    write(COPY / "test_lion.py", test)
    subprocess.run(
        [sys.executable, COPY / "test_lion.py"], env=environment | {"PYTHONPATH": str(COPY / "python")}, check=True
    )


if __name__ == "__main__":
    main()
