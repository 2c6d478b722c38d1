"""tools/release_check.py finds what it is there to find."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "release_check.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_check", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_version_and_a_dated_heading_that_agree_pass(tool: ModuleType) -> None:
    version = tool.version_of('"""Doc."""\n\n__version__ = "1.2.3"\n')
    assert tool.version_faults(version, "# Changelog\n\n## 1.2.3 – 2026-12-01\n") == []


@pytest.mark.parametrize(
    ("version", "heading", "fault"),
    [
        ("1.2.3", "## 1.2.2 – 2026-12-01", "begins with 1.2.2, __version__ is 1.2.3"),
        ("1.2.3", "## 1.2.3 – unreleased", "write the day of the release"),
        ("1.2.3", "## Next", "no heading"),
        ("1.2.3.dev0", "## 1.2.3.dev0 – 2026-12-01", "a release is X.Y.Z"),
    ],
)
def test_each_planted_fault_is_found(
    tool: ModuleType, version: str, heading: str, fault: str
) -> None:
    (found,) = tool.version_faults(version, f"# Changelog\n\n{heading}\n")
    assert fault in found


@pytest.mark.packaging
def test_packages_of_another_version_are_found(tool: ModuleType, tmp_path: Path) -> None:
    faults = tool.package_faults("9.9.9", tmp_path / "dist")
    assert len([fault for fault in faults if "not of version 9.9.9" in fault]) == 2
    assert any("the installed command says 'luthier " in fault for fault in faults)
