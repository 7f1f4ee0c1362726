#!/usr/bin/env python3
"""What a tag `vX.Y.Z` starts: `.github/workflows/wheels.yml` calls it, and so can you (docs/maintaining.md).

    python .ci/release.py check v0.1.0 [--wheels FOLDER]    is everything ready for this tag?
    python .ci/release.py notes v0.1.0                      the section of CHANGELOG.md, for the page of the release

`check` prints what it finds, and exits with 1 if something is wrong. It needs nothing but Python, and no network.
"""

import argparse
import re
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The platforms that a release has wheels for, as the names of their files begin.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_14_0_arm64", "win_amd64")


def version(root: Path) -> str:
    """The only place where it is written."""
    return str(tomllib.loads((root / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"])


def notes(root: Path, wanted: str) -> str:
    """What CHANGELOG.md says of a version; empty if nothing."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(wanted)}\] - \d{{4}}-\d{{2}}-\d{{2}}\n(.*?)(?=^## \[|\Z)", text, re.M | re.S)
    return found[1].strip() if found else ""


def wrong_with_tree(root: Path, tag: str) -> list[str]:
    """What the sources lack."""
    wanted, problems = tag.removeprefix("v"), []
    if not re.fullmatch(r"v\d+\.\d+\.\d+(rc\d+)?", tag):
        problems.append(f"{tag}: expected a tag such as v0.1.0 or v0.1.0rc1")
    if version(root) != wanted:
        problems.append(f"Cargo.toml has version {version(root)}, the tag is {tag}")
    lock = (root / "Cargo.lock").read_text(encoding="utf-8")
    if f'name = "oxistep"\nversion = "{version(root)}"' not in lock:
        problems.append(f"Cargo.lock does not have oxistep {version(root)}: cargo update --workspace")
    if not notes(root, wanted):
        problems.append(f"CHANGELOG.md has no section `## [{wanted}] - YYYY-MM-DD` with entries")
    if "not on PyPI yet" in (root / "README.md").read_text(encoding="utf-8"):
        problems.append("README.md says that oxistep is not on PyPI yet: so does docs/start.md")
    return problems


def wrong_with_wheel(wheel: Path, wanted: str) -> list[str]:
    """What a wheel lacks."""
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        folder = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
    if metadata["Version"] != wanted:
        problems.append(f"{wheel.name}: its metadata have version {metadata['Version']}, the tag is v{wanted}")
    for licence in ("LICENSE-MIT", "LICENSE-APACHE", "LICENSE-THIRD-PARTY"):
        if not any(name.endswith(f"licenses/{licence}") for name in names):
            problems.append(f"{wheel.name}: {licence} is missing")
    relative = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", metadata.get_payload())
    problems += [
        f"{wheel.name}: its page on an index would have a link that leads nowhere: {link}" for link in relative
    ]
    return problems


def check(root: Path, tag: str, wheels: Path | None, every_platform: bool) -> list[str]:
    """All that is wrong."""
    problems = wrong_with_tree(root, tag)
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        problems += [problem for wheel in found for problem in wrong_with_wheel(wheel, tag.removeprefix("v"))]
        if not found:
            problems.append(f"{wheels} holds no wheel")
        if every_platform:
            missing = [platform for platform in PLATFORMS if not any(platform in wheel.name for wheel in found)]
            problems += [f"no wheel for {platform}" for platform in missing]
            problems += [] if list(wheels.glob("*.tar.gz")) else ["no source distribution"]
    return problems


def main(argv: list[str] | None = None) -> int:
    """Runs one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "notes"))
    parser.add_argument("tag", help="such as v0.1.0")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to look into")
    parser.add_argument("--every-platform", action="store_true", help="the folder must have all that is published")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.command == "notes":
        text = notes(given.root, given.tag.removeprefix("v"))
        print(text or f"CHANGELOG.md says nothing of {given.tag}", file=sys.stdout if text else sys.stderr)
        return int(not text)
    problems = check(given.root, given.tag, given.wheels, given.every_platform)
    print("\n".join(problems) if problems else f"{given.tag}: ready")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
