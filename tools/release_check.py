"""May this checkout be released? Prints what is wrong and exits 1, or leaves the packages in dist/.

    python tools/release_check.py

Checks that the tree is clean, that `luthier.__version__` and the first heading of CHANGELOG.md name the
same version and day, that the packages build, that an index would take their metadata, and that the
wheel, installed, says the same version.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version_of(source: str) -> str:
    """The version that the text of ``luthier/__init__.py`` names."""
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise SystemExit('src/luthier/__init__.py has no line __version__ = "…"')
    return found[1]


def version_faults(version: str, changelog: str) -> list[str]:
    """What speaks against a release of ``version``, by its form and by the changelog."""
    faults = []
    if not re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", version):
        faults.append(f"__version__ is {version}: a release is X.Y.Z, or X.Y.ZrcN")
    heading = re.search(r"^## (\S+) – (.+)$", changelog, re.MULTILINE)
    if heading is None:
        return [*faults, "CHANGELOG.md has no heading '## VERSION – DATE'"]
    named, day = heading.groups()
    if named != version:
        faults.append(f"CHANGELOG.md begins with {named}, __version__ is {version}")
    try:
        date.fromisoformat(day)
    except ValueError:
        faults.append(
            f"CHANGELOG.md dates {named} '{day}': write the day of the release, YYYY-MM-DD"
        )
    return faults


def run(*command: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def package_faults(version: str, dist: Path) -> list[str]:
    """Build into ``dist`` from what git tracks, check, install, run."""
    with tempfile.TemporaryDirectory() as name:
        source, site = Path(name) / "source", Path(name) / "site"
        shutil.unpack_archive(_tracked(Path(name)), source)
        shutil.rmtree(dist, ignore_errors=True)
        python = sys.executable
        built = run(python, "-m", "build", "--no-isolation", "--outdir", dist, source)
        if built.returncode:
            return [f"the packages do not build:\n{built.stdout}{built.stderr}"]
        packages = sorted(dist.iterdir())
        faults = [
            f"{package.name} is not of version {version}"
            for package in packages
            if not package.name.startswith(f"luthier-{version}")
        ]
        checked = run(python, "-m", "twine", "check", "--strict", *packages)
        if checked.returncode:
            faults.append(f"an index would refuse the metadata:\n{checked.stdout}{checked.stderr}")
        (wheel,) = dist.glob("*.whl")
        run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
        said = run(python, site / "bin" / "luthier", "--version", PYTHONPATH=str(site))
        if said.stdout.strip() != f"luthier {version}":
            faults.append(f"the installed command says {said.stdout.strip()!r}:\n{said.stderr}")
        return faults


def _tracked(folder: Path) -> Path:
    archive = folder / "tracked.tar"
    done = run("git", "archive", "--output", archive, "HEAD")
    if done.returncode:
        raise SystemExit(f"git archive: {done.stderr}")
    return archive


def main() -> None:
    changed = run("git", "status", "--porcelain")
    faults = (
        [f"the tree is not clean:\n{changed.stdout}{changed.stderr}"]
        if (changed.returncode or changed.stdout)
        else []
    )
    version = version_of((ROOT / "src/luthier/__init__.py").read_text("utf-8"))
    faults += version_faults(version, (ROOT / "CHANGELOG.md").read_text("utf-8"))
    faults += package_faults(version, ROOT / "dist")
    for fault in faults:
        print(f"not ready: {fault}")
    if faults:
        raise SystemExit(1)
    print(f"luthier {version} is ready: dist/ holds what to upload")


if __name__ == "__main__":
    main()
