"""What is installed, under which names, and what an import costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("networkx", "typer", "rich", "matplotlib", "sklearn", "snntorch", "norse", "spikingjelly")
LIBRARIES = ("snntorch", "norse", "spikingjelly", "sinabs", "tracetorch", "nir")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in the repository root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def expected_contents() -> set[str]:
    """All files of the packages as they lie in the checkout, under their installed names."""
    found = set()
    for name in ("tracecompile", "passes"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                found.add(path.relative_to(ROOT).as_posix())
    # some Pythons follow the symlink and some do not
    found = {name for name in found if not name.startswith("tracecompile/passes/")}
    return {f"tracecompile/{name}" if name.startswith("passes/") else name for name in found}


@pytest.fixture(scope="module", params=["with the symlink", "without symlinks"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # from a copy: setuptools would put what an earlier build left in build/ into the wheel
    source = tmp_path_factory.mktemp("source") / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("tracecompile", "passes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    if request.param == "without symlinks":
        # what git leaves where the file system, or the user, does not do links
        (source / "tracecompile" / "passes").unlink()
        (source / "tracecompile" / "passes").write_text("../passes")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = source.parent / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_exactly_the_packages(wheel: zipfile.ZipFile) -> None:
    contents = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    expected = expected_contents()
    assert {"tracecompile/py.typed", "tracecompile/passes/__init__.py", "tracecompile/nn/__init__.py"} <= expected
    assert contents == expected


def test_wheel_puts_one_name_into_site_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tracecompile"}


def test_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "tracecompile = tracecompile.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_installed_wheel_imports_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import tracecompile, tracecompile.nn, tracecompile.passes as p; print(p.__file__)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == tmp_path / "tracecompile" / "passes" / "__init__.py"


def test_passes_under_its_bare_name_is_refused() -> None:
    result = python("import passes")
    assert result.returncode == 1
    assert "its import name is 'tracecompile.passes'" in result.stderr


def test_passes_has_one_copy_in_the_checkout() -> None:
    link = ROOT / "tracecompile" / "passes"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "passes"
    result = python("import tracecompile.passes as p; print(p.__name__)")
    assert result.stdout.strip() == "tracecompile.passes", result.stderr


def test_import_loads_nothing_heavy() -> None:
    """Torch alone is the price of ``import tracecompile``; what torch itself loads does not count."""
    code = (
        "import sys, torch; before = set(sys.modules); import tracecompile, tracecompile.nn; "
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = {path.parent for path in (ROOT / "tracecompile").rglob("__init__.py")} | {ROOT / "tracecompile" / "passes"}
    names = {path.relative_to(ROOT).as_posix().replace("/", ".") for path in inside}
    assert set(settings["packages"]) == names


def test_constraints_name_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {line.split(">=")[0] for group in groups for line in group if not line.startswith("tracecompile")}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert wanted <= set(pinned)
    assert not [name for name, version in pinned.items() if "+" in version]


def test_every_library_is_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in LIBRARIES:
        assert [line.split(">=")[0] for line in extras[name]] == [name]
    assert extras["libraries"] == [f"tracecompile[{','.join(sorted(LIBRARIES, key=extras['libraries'][0].index))}]"]


def test_continuous_integration_fails_where_a_library_is_missing() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    (line,) = (line for line in commands if line.endswith("-m libraries"))
    assert line.startswith("TRACECOMPILE_REQUIRE_LIBRARIES=1 ")
    result = subprocess.run(
        [sys.executable, "-c", "import requirements; requirements.library('no_such_library')"],
        cwd=ROOT / "tests",
        env={**os.environ, "TRACECOMPILE_REQUIRE_LIBRARIES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "ModuleNotFoundError: No module named 'no_such_library'" in result.stderr


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    command = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "-m pytest" in line)
    assert command in [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
