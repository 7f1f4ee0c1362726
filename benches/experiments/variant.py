"""What a change of the sources costs or gains: both trees are built, and their wheels take turns.

    python benches/experiments/variant.py --change rust/kernels/src/driver/sweep.rs "FAR_AHEAD: usize = 1280" \
        "FAR_AHEAD: usize = 2560" -- --quick --only flat_16-Adam --seconds 10
    python benches/experiments/variant.py --before v0.1.0 -- --quick

The first tree is the working tree, or --before; the second is the working tree, or --after, with the changes. Each
--change replaces a text that stands in a file exactly once. Neither touches the working tree: copies lie in
target/variants. What follows `--` goes to `oxistep bench wheels` (above 1: the second tree is faster). With --loop the
wheels go to one_loop.py, which shows what code in the caches costs. With --kernels a speed test of the kernels runs in
each tree in place of wheels: compact_speed or program_speed. Building takes minutes.

Run it with the Python of `make env`, outside of `python` in the tree. docs/experiments.md has what it gave.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ROOT / "target" / "variants"


def take_tree(revision: str | None, folder: Path) -> None:
    """Fills a folder with the sources of a revision, or of the working tree."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if revision is not None:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "--touch"], cwd=folder, input=archive.stdout, check=True)
        return
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # not deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # not with its time: cargo takes what is older than the last build for unchanged
            shutil.copyfile(ROOT / name, folder / name)


def change(folder: Path, file: str, old: str, new: str) -> None:
    """Replaces a text in a file of a tree."""
    path = folder / file
    if not path.is_file():
        sys.exit(f"--change: there is no {file}")
    text = path.read_text(encoding="utf-8")
    if (count := text.count(old)) != 1:
        sys.exit(f"--change: {old!r} stands in {file} {count} times, not once: give more of the line")
    path.write_text(text.replace(old, new), encoding="utf-8")


def environment() -> dict[str, str]:
    """Both trees share what they have built of other crates."""
    return os.environ | {"CARGO_TARGET_DIR": str(VARIANTS / "build"), "PYO3_PYTHON": sys.executable}


def wheel_of(folder: Path) -> Path:
    """Builds the wheel of a tree."""
    print(f"building {folder.name}", file=sys.stderr, flush=True)
    maturin = str(Path(sys.executable).with_name("maturin"))
    out = folder.with_name(f"{folder.name}-wheel")
    shutil.rmtree(out, ignore_errors=True)
    command = [maturin, "build", "--release", "--locked", "--interpreter", sys.executable, "--out", str(out), "--quiet"]
    subprocess.run(command, cwd=folder, env=environment(), check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def kernels(folder: Path, test: str) -> None:
    """Runs a speed test of the kernels in a tree."""
    print(f"{folder.name}:", flush=True)
    command = ["cargo", "test", "--release", "-p", "oxistep-kernels", "--test", test, "--", "--ignored", "--nocapture"]
    subprocess.run(command, cwd=folder, env=environment() | {"OXISTEP_SPEED": "large"}, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--change", nargs=3, action="append", default=[], metavar=("FILE", "OLD", "NEW"))
    parser.add_argument("--before", metavar="REVISION", help="of the first tree; default: the working tree")
    parser.add_argument("--after", metavar="REVISION", help="of the second tree; default: the working tree")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--loop", action="store_true", help="compare with one_loop.py")
    how.add_argument("--kernels", choices=("compact_speed", "program_speed"), help="run this test of the kernels")
    parser.add_argument("arguments", nargs="*", help="of `oxistep bench wheels` or one_loop.py, behind --")
    options = parser.parse_args()
    if options.before == options.after and not options.change:
        parser.error("both trees are the same: give --change, --before or --after")
    before, after = VARIANTS / "before", VARIANTS / "after"
    take_tree(options.before, before)
    take_tree(options.after, after)
    for file, old, new in options.change:
        change(after, file, old, new)
    if options.kernels:
        kernels(before, options.kernels)
        kernels(after, options.kernels)
        return 0
    wheels = [str(wheel_of(before)), str(wheel_of(after))]
    program = [str(ROOT / "benches/experiments/one_loop.py")] if options.loop else ["-m", "oxistep", "bench", "wheels"]
    return subprocess.run([sys.executable, *program, *wheels, *options.arguments], cwd=VARIANTS).returncode


if __name__ == "__main__":
    sys.exit(main())
