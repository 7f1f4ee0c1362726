#!/usr/bin/env python3
"""The licences of the Rust crates that are linked into the wheel: LICENSE-THIRD-PARTY, which the wheel carries.

    python .ci/notices.py            write it anew (`make notices`)
    python .ci/notices.py --check    does it name what Cargo.lock would link? (`make lint`, no network)

Of a crate under several licences, MIT's text is taken: it is the one that wants to be handed on.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "LICENSE-THIRD-PARTY"
OURS = ("oxistep", "oxistep-kernels")
# The first of these that a crate has. Only files count that hold a licence, not those that name one.
NAMES = (
    "LICENSE-MIT",
    "LICENSE-MIT.txt",
    "LICENSE-MIT.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "license-mit",
    "LICENSE-APACHE",
)
HEAD = """\
oxistep's wheels contain compiled code of the following Rust crates. Their licences are below.
The Rust standard library, which they contain too, is licensed under MIT or Apache-2.0 (https://www.rust-lang.org).

"""


def cargo(*arguments: str) -> str:
    """What cargo prints."""
    command = ["cargo", *arguments, "--locked", "--manifest-path", str(ROOT / "rust/bindings/Cargo.toml")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def linked() -> list[str]:
    """`name version` of every crate that is linked on any platform, without what only builds or only runs in rustc."""
    tree = cargo("tree", "--offline", "-e", "normal,no-proc-macro", "--target", "all", "--prefix", "none")
    found = set(re.findall(r"^(\S+) v(\S+)", tree, re.M))
    return sorted(f"{name} {version}" for name, version in found if name not in OURS)


def named() -> list[str]:
    """What the file names."""
    return re.findall(r"^  (\S+ \S+), ", FILE.read_text(encoding="utf-8"), re.M)


def written() -> str:
    """The file: crates with the same text share it."""
    packages = {
        f"{p['name']} {p['version']}": p for p in json.loads(cargo("metadata", "--format-version", "1"))["packages"]
    }
    texts: dict[str, list[str]] = {}
    for crate in linked():
        package = packages[crate]
        folder = Path(package["manifest_path"]).parent
        file = next((folder / name for name in NAMES if (folder / name).exists()), None)
        if file is None:
            raise SystemExit(
                f"{crate} ({package['license']}) has no file of its licence: {sorted(p.name for p in folder.iterdir())}"
            )
        text = "\n".join(line.rstrip() for line in file.read_text(encoding="utf-8").strip().splitlines())
        texts.setdefault(text, []).append(f"  {crate}, {package['license'].replace('/', ' OR ')}")
    parts = ["\n".join(crates) + "\n\n" + text for text, crates in sorted(texts.items(), key=lambda one: one[1])]
    rule = "\n\n" + "-" * 80 + "\n\n"
    return HEAD + rule.join(parts) + "\n"


def main() -> int:
    """Writes or checks."""
    if sys.argv[1:] == ["--check"]:
        missing, extra = set(linked()) - set(named()), set(named()) - set(linked())
        if missing or extra:
            print(
                f"{FILE.name}: missing {sorted(missing)}, no longer linked {sorted(extra)}: make notices",
                file=sys.stderr,
            )
        return int(bool(missing or extra))
    FILE.write_text(written(), encoding="utf-8")
    print(f"{FILE.name}: {len(named())} crates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
