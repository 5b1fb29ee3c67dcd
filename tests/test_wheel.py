"""What pip installs: one package, whole, in a project whose own files have the names of our folders.

The wheel is built from a copy of the checkout and installed in a new environment, which sees the packages of this one
but not the checkout. A second one is built from the source archive, on a machine without a C++ compiler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pawl

ROOT = Path(__file__).parent.parent
ROOMS = ("lifecycle", "memory", "loops", "gpu", "actors")
BUILT_FROM = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
LEFT_AT_HOME = re.compile(r"memory/prefix/native/|\.so$|\.pyc$")
"""Sources that are compiled into the wheel, and what this checkout has made for itself."""
FAIL = "raise ImportError('this is the file of the project, not of Pawl')\n"
TEST_OF_A_USER = """
from pawl.testing import Workload

def test_runs_are_explored(explore):
    assert explore(Workload.random(seed=1), schedules=2).schedules == 2
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    """The wheel of a folder or an archive. Nothing is downloaded: setuptools of this environment builds it."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", source, *options, cwd=folder.parent, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without what was built in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, copy)
    for name in (*ROOMS, "pawl"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def archive(checkout: Path) -> Path:
    """The source archive."""
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=checkout)
    (made,) = (checkout / "dist").glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, with the compiler of this machine."""
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def plain_wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, where there is no compiler."""
    return build_wheel(archive, tmp_path_factory.mktemp("plain"), CC="no-compiler", CXX="no-compiler")


def install(wheel: Path, folder: Path) -> Path:
    """The `bin` of a new environment with this wheel. It sees packages installed here, after its own."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=wheel.parent)
    (own,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth file is a folder to look in; the .pth files of that folder, an editable Pawl's, are not read.
    others = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (own / "packages_of_the_tests.pth").write_text("\n".join(others))
    return folder / "bin"


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a user, whose modules have the names of our folders. Pawl must import none of them."""
    for name in ROOMS:
        (tmp_path / f"{name}.py").write_text(FAIL)
    (tmp_path / "lifecycle.py").unlink()
    (tmp_path / "lifecycle").mkdir()
    (tmp_path / "lifecycle" / "__init__.py").write_text(FAIL)
    return tmp_path


@contextmanager
def ghost_served(programs: Path, project: Path) -> Iterator[str]:
    """The address at which `pawl serve ghost` listens, started in the folder of the project."""
    command = [programs / "pawl", "serve", "ghost", "--port", "0", "--log-format", "json"]
    environment = os.environ | {"HOME": str(project), "PYTHONPATH": str(project)}
    with subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if '"event":"serving"' in line:
                break
        else:
            pytest.fail("".join(lines))
        yield json.loads(lines[-1])["url"]
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode == 0


def names_in(wheel: Path) -> set[str]:
    """Files of the package in a wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


def answer(url: str) -> str:
    """The text of a completion."""
    body = json.dumps({"prompt": "a", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["text"])


def test_the_wheel_has_one_package_and_every_file_of_it(wheel: Path, checkout: Path) -> None:
    ours = [path for folder in (*ROOMS, "pawl") for path in (checkout / folder).rglob("*") if path.is_file()]
    relative = [path.relative_to(checkout).as_posix() for path in ours]
    wanted = {name.removeprefix("pawl/") for name in relative if not LEFT_AT_HOME.search(name)}
    assert {"py.typed", "memory/prefix/_radix.pyi", "gpu/native/bf16.cpp", "viewer/page.js"} <= wanted
    extension = {name for name in names_in(wheel) if name.endswith(".so")}
    assert [name.partition(".")[0] for name in extension] == ["pawl/memory/prefix/_radix"]
    assert names_in(wheel) - extension == {f"pawl/{name}" for name in wanted}
    (top_level,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("top_level.txt")]
    assert zipfile.ZipFile(wheel).read(top_level).split() == [b"pawl"]


def test_an_archive_has_what_the_checkout_has_and_needs_no_compiler(wheel: Path, plain_wheel: Path) -> None:
    compiled = {name for name in names_in(wheel) if name.endswith(".so")}
    assert names_in(plain_wheel) == names_in(wheel) - compiled


def test_an_archive_holds_no_tests(archive: Path) -> None:
    with tarfile.open(archive) as contents:
        assert not [name for name in contents.getnames() if "/tests/" in name]


def test_a_project_with_files_of_our_names_serves_and_imports(programs: Path, project: Path) -> None:
    look = (
        "import pawl.testing, pawl.gpu.runner, sys; from pawl.memory.prefix import compiled; compiled.load(); "
        "from importlib.metadata import version; print(pawl.__file__, version(pawl.DISTRIBUTION))"
    )
    place, version = run(programs / "python", "-c", look, cwd=project).split()
    assert Path(place).is_relative_to(programs.parent)
    assert version == pawl.__version__
    with ghost_served(programs, project) as url:
        assert answer(url)


def test_only_pawl_can_be_imported(programs: Path, tmp_path: Path) -> None:
    look = f"import importlib.util as i; print([n for n in {ROOMS!r} if i.find_spec(n)])"
    assert run(programs / "python", "-c", look, cwd=tmp_path) == "[]\n"


def test_a_project_with_files_of_our_names_explores_with_the_pytest_plugin(programs: Path, project: Path) -> None:
    (project / "test_mine.py").write_text(TEST_OF_A_USER)
    shown = run(programs / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert "1 passed" in shown


def test_pawl_serves_where_nothing_was_compiled(plain_wheel: Path, project: Path, tmp_path: Path) -> None:
    with ghost_served(install(plain_wheel, tmp_path / "environment"), project) as url:
        assert answer(url)


def test_the_name_that_pip_knows_is_said_once() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert stated["name"] == pawl.DISTRIBUTION
    assert stated["scripts"] == {"pawl": "pawl.cli:main"}


def test_nobody_is_told_to_install_the_package_of_another_project() -> None:
    foreign = re.compile(
        r"(?:(?:pip install|uv add) (?:-\S+ )*['\"]?|(?:requires|version|distribution)\(['\"])pawl(?![\w-])"
    )
    assert foreign.search("pip install 'pawl[hub]'")
    assert not foreign.search(f"pip install '{pawl.DISTRIBUTION}[hub]'")
    places = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in (*ROOMS, "pawl", "docs", "tests"):
        places += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md") and path.is_file()]
    said = {path.relative_to(ROOT).as_posix(): foreign.findall(path.read_text()) for path in places}
    assert {name: found for name, found in said.items() if found and name != "tests/test_wheel.py"} == {}
