"""`.ci/release.py`: a tag is refused unless sources and wheels are those of a release."""

import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / ".ci" / "release.py"
if not PROGRAM.exists():
    pytest.skip("not in a source distribution", allow_module_level=True)
spec = importlib.util.spec_from_file_location("release", PROGRAM)
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

VERSION = release.version(ROOT)
TAG = f"v{VERSION}"


@pytest.fixture
def ready(tmp_path):
    """Sources that are ready for the tag."""
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("Install it with pip.\n")
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-12-01\n\n### Added\n- All.\n"
        "\n## [0.0.1] - 2020-01-01\n- Less.\n"
    )
    return tmp_path


def wheel_in(
    folder, version=VERSION, readme="[a](https://example.org)", licences=("MIT", "APACHE", "THIRD-PARTY"), platform=None
):
    folder.mkdir(exist_ok=True)
    path = folder / f"oxistep-{version}-cp311-abi3-{platform or release.PLATFORMS[0]}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"oxistep-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: oxistep\nVersion: {version}\n\n{readme}\n")
        for licence in licences:
            archive.writestr(f"{info}/licenses/LICENSE-{licence}", "text")
    return path


def said(capsys, *arguments):
    code = release.main([str(argument) for argument in arguments])
    output, errors = capsys.readouterr()
    return code, (output + errors).splitlines()


def test_a_release_that_is_ready(ready, capsys):
    for platform in release.PLATFORMS:
        wheel_in(ready / "dist", platform=platform)
    (ready / "dist" / "oxistep.tar.gz").touch()
    arguments = ("check", TAG, "--root", ready, "--wheels", ready / "dist", "--every-platform")
    assert said(capsys, *arguments) == (0, [f"{TAG}: ready"])


def test_the_notes_are_those_of_the_version(ready, capsys):
    assert said(capsys, "notes", TAG, "--root", ready) == (0, ["### Added", "- All."])
    assert said(capsys, "notes", "v9.9.9", "--root", ready) == (1, ["CHANGELOG.md says nothing of v9.9.9"])


@pytest.mark.parametrize(
    ("tag", "message"),
    [("v9.9.9", f"Cargo.toml has version {VERSION}, the tag is v9.9.9"), (VERSION, "expected a tag such as v0.1.0")],
)
def test_a_tag_of_another_version_or_form(ready, capsys, tag, message):
    code, lines = said(capsys, "check", tag, "--root", ready)
    assert code == 1 and any(message in line for line in lines)


def test_what_the_sources_lack(ready, capsys):
    (ready / "CHANGELOG.md").write_text("## [Unreleased]\n- All.\n")
    (ready / "README.md").write_text("oxistep is not on PyPI yet")
    lock = (ready / "Cargo.lock").read_text(encoding="utf-8")
    (ready / "Cargo.lock").write_text(
        lock.replace(f'name = "oxistep"\nversion = "{VERSION}"', 'name = "oxistep"\nversion = "0.0.0"')
    )
    code, lines = said(capsys, "check", TAG, "--root", ready)
    assert code == 1 and [line.split()[0] for line in lines] == ["Cargo.lock", "CHANGELOG.md", "README.md"]


def test_what_the_wheels_lack(ready, capsys):
    wheel_in(
        ready / "dist",
        version="0.0.7",
        readme="[a](docs/start.md) [b](#here) [c](https://example.org)",
        licences=("MIT",),
    )
    code, lines = said(capsys, "check", TAG, "--root", ready, "--wheels", ready / "dist", "--every-platform")
    text = "\n".join(lines)
    assert code == 1 and "have version 0.0.7" in text and "LICENSE-THIRD-PARTY is missing" in text
    assert text.count("leads nowhere") == 1 and "docs/start.md" in text
    assert text.count("no wheel for") == len(release.PLATFORMS) - 1 and "no source distribution" in text


def test_the_readme_has_no_link_that_an_index_could_not_follow(tmp_path):
    wheel = wheel_in(tmp_path / "dist", readme=(ROOT / "README.md").read_text(encoding="utf-8"))
    assert release.wrong_with_wheel(wheel, VERSION) == []
