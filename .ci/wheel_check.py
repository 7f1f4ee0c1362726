"""Is a wheel what it should be? Reproducible, free of local paths, and no more demanding than its tags say.

    python .ci/wheel_check.py --tools FOLDER --maturin PROGRAM WHEEL

It is built a second time, from a copy of the sources elsewhere, and both files must be the same byte for byte. Prints
what it finds, and exits with 1 if something is wrong.
"""

import argparse
import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["Cargo.toml", "Cargo.lock", "Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT"]
SOURCES += ["LICENSE-APACHE", "LICENSE-THIRD-PARTY", "rust", "python", "requirements", "tests", "benches", "examples"]
EXPECTED = {"oxistep/py.typed", "oxistep/_core.pyi", "oxistep/__init__.py"}


def check(name: str, problems: list[str]) -> bool:
    """Reports one finding; true if there is no problem."""
    print(f"{'FAILED' if problems else 'ok':7} {name}", *problems, sep="\n          ")
    return not problems


def run(*command: str | Path, **keywords: object) -> str:
    """What a command prints; one that fails ends this program."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **keywords)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return str(done.stdout + done.stderr)


def attempt(name: str, *command: str | Path) -> bool:
    """Reports whether a command succeeds."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return check(name, (done.stdout + done.stderr).splitlines() if done.returncode else [])


def remapped(root: Path) -> str:
    """The flags that take the builder's paths out of messages; the Makefile's."""
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    return f"{os.environ.get('RUSTFLAGS', '')} --remap-path-prefix={root}=. --remap-path-prefix={cargo}=cargo"


def built_again(maturin: str, wheel: Path) -> list[str]:
    """Builds from a copy of the sources, in a folder of another name, and compares."""
    with tempfile.TemporaryDirectory(prefix="somewhere-else-") as folder:
        copy = Path(folder) / "sources"
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "target"))
            else:
                copy.mkdir(exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        environment = {**os.environ, "RUSTFLAGS": remapped(copy), "CARGO_TARGET_DIR": str(copy / "elsewhere")}
        environment["PYO3_PYTHON"] = sys.executable
        options = ("build", "--release", "--locked", "--interpreter", sys.executable, "--out", "out")
        run(maturin, *options, cwd=copy, env=environment)
        [again] = (copy / "out").glob("*.whl")
        if again.name != wheel.name:
            return [f"it is called {again.name} when built elsewhere"]
        if again.read_bytes() == wheel.read_bytes():
            return []
        with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
            if one.namelist() != other.namelist():
                return [f"files differ: {sorted(set(one.namelist()) ^ set(other.namelist()))}"]
            different = [name for name in one.namelist() if one.read(name) != other.read(name)]
        return [f"{name} differs when built elsewhere" for name in different or ["the archive, not its contents,"]]


def paths_in(wheel: Path) -> list[str]:
    """Places of the builder's that stand in a file of the wheel."""
    places = {str(ROOT), str(Path.home()), os.environ.get("CARGO_HOME", ""), "/home/", "/root/", "/Users/"}
    places.add(tempfile.gettempdir() + "/")
    if getpass.getuser() not in ("root", "runner"):
        places.add(getpass.getuser())
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            for place in sorted(places - {""}):
                at = content.find(place.encode())
                if at >= 0:
                    found.append(f"{name}: {content[max(0, at - 40) : at + 100]!r}")
    return found


def contents(wheel: Path) -> list[str]:
    """Files that are missing, or should be."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    problems = [f"{name} is missing" for name in EXPECTED - names]
    licences = ("LICENSE-MIT", "LICENSE-APACHE", "LICENSE-THIRD-PARTY")
    problems += [f"no {licence}" for licence in licences if not any(licence in n for n in names)]
    strays = [n for n in names if not re.match(r"oxistep(-[0-9.]+\.dist-info)?/", n) or "test" in n]
    return problems + [f"{name} has no business there" for name in strays]


def platform_tag(tools: Path, wheel: Path) -> list[str]:
    """Symbols of the C library beyond what the tag promises."""
    shown = " ".join(run(tools / "auditwheel", "show", wheel).split())
    tag = wheel.stem.split("-")[-1].split(".")[0]
    print(f"          tag {tag}; {shown}")
    fits = re.search(r'consistent with the following platform tag: "([^"]+)"', shown)
    if not fits or fits[1] not in wheel.stem.split("-")[-1].split("."):
        return [f"auditwheel finds {fits and fits[1]}, its name says {tag}"]
    return []


def main() -> int:
    """Looks at the wheel from all sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True, help="where twine, abi3audit and auditwheel are")
    parser.add_argument("--maturin", required=True)
    parser.add_argument("wheel", type=Path)
    given = parser.parse_args()
    wheel = given.wheel.resolve()
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    good = [
        attempt("metadata and README can be shown (twine)", given.tools / "twine", "check", "--strict", wheel),
        attempt("only symbols of Python's stable ABI (abi3audit)", given.tools / "abi3audit", "--strict", wheel),
        check("what is in it", contents(wheel)),
        check("no paths of the builder's", paths_in(wheel)),
    ]
    if sys.platform == "linux":
        good.append(check("no symbols beyond its platform tag (auditwheel)", platform_tag(given.tools, wheel)))
    good.append(check("built elsewhere it is the same, byte for byte", built_again(given.maturin, wheel)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
