"""The distributions as a user meets them: wheels, installed into a fresh environment, one of them removed again."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLED = ["stdbp", "strsbp", "tssl"]
RELEASE = {"SNN_RULES_RELEASE": "1"}
REPORT = """
import json, snn_rules
found = snn_rules.rules()
report = {name: [info.distribution, info.error, type(snn_rules.get_rule(name)).__module__] for name, info in found.items()}
try:
    snn_rules.get_rule("tssl")
    refusal = None
except snn_rules.RuleError as error:
    refusal = str(error)
print(json.dumps([snn_rules.__file__, report, refusal]))
"""


def run(*command: object, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "SNN_RULES_DISABLE", *RELEASE}}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**kept, **variables})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: object, **variables: str) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **variables)


def wheel(target: Path, *sources: Path, **variables: str) -> dict[str, Path]:
    """Build the wheels of some folders with what is installed here; {distribution, as in the file name: wheel}."""
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", target, *sources, **variables)
    return {path.name.partition("-")[0]: path for path in target.glob("*.whl")}


def metadata(path: Path) -> Message:
    with zipfile.ZipFile(path) as archive:
        return message_from_bytes(archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    for name in ("snn_rules", "plugins", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "dist"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def wheels(checkout: Path) -> dict[str, Path]:
    return wheel(checkout / "dist", checkout, *(checkout / "plugins" / rule for rule in BUNDLED), **RELEASE)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new virtual environment, which borrows from the running one all but this project."""
    links = tmp_path / "links"
    links.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(folder).iterdir():
            if "snn_rules" not in entry.name:
                (links / entry.name).symlink_to(entry)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(f"{links}\n")
    return tmp_path / "venv" / "bin"


def test_wheels_hold_their_package_their_licence_and_no_tests(wheels: dict[str, Path]) -> None:
    assert sorted(wheels) == ["snn_rules", *(f"snn_rules_{rule}" for rule in BUNDLED)]
    for package, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            licence = next(name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
            assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert {name.partition("/")[0] for name in names} == {package, path.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
        assert f"{package}/py.typed" in names  # PEP 561
        assert metadata(path)["Description-Content-Type"] == "text/markdown"
        assert f"# {path.name.split('-')[0]}".replace("_", "-") in str(metadata(path).get_payload()).replace("_", "-")  # its README


def test_the_core_brings_the_three_rules(checkout: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    def rules(path: Path) -> list[str]:
        return [line for line in metadata(path).get_all("Requires-Dist", []) if line.startswith("snn-rules")]

    plain = [f"snn-rules-{rule}" for rule in BUNDLED]
    assert rules(wheels["snn_rules"]) == plain
    assert rules(wheel(tmp_path, checkout)["snn_rules"]) == [f"{name} @ {(checkout / 'plugins' / name[10:]).as_uri()}" for name in plain]
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, checkout, **RELEASE)
    (source,) = tmp_path.glob("*.tar.gz")
    assert rules(wheel(tmp_path / "again", source)["snn_rules"]) == plain
    assert all(metadata(wheels[f"snn_rules_{rule}"]).get_all("Requires-Dist") == ["snn-rules>=0.1"] for rule in BUNDLED)


def test_install_use_and_remove(wheels: dict[str, Path], environment: Path) -> None:
    python = environment / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", *wheels.values())
    file, found, refusal = json.loads(run(python, "-I", "-c", REPORT))
    assert Path(file).is_relative_to(environment.parent)
    bundled = {rule: [f"snn-rules-{rule}", None, f"snn_rules_{rule}.rule"] for rule in BUNDLED}
    assert found == {"surrogate": ["snn-rules", None, "snn_rules.surrogate"], **bundled}
    assert refusal is None
    assert all(rule in run(environment / "snn-rules", "list") for rule in found)

    pip("--python", python, "uninstall", "--yes", "snn-rules-tssl")
    _, rest, refusal = json.loads(run(python, "-I", "-c", REPORT))
    assert rest == {name: info for name, info in found.items() if name != "tssl"}
    assert refusal == "unknown rule 'tssl'; installed are stdbp, strsbp, surrogate"
    assert "tssl" not in run(environment / "snn-rules", "list")
