"""Rules of the house that a linter does not know. Each test names every place that breaks its rule."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("lifecycle", "memory", "loops", "gpu", "actors")
OURS = (*ROOMS, "pawl")
WITHOUT_TORCH = ("lifecycle", "memory", "loops", "actors/runtime", "actors/simulation")

MAX_FUNCTION_LINES = 60
MAX_TEST_FUNCTION_LINES = 70
MAX_FILE_LINES = 350
MAX_TEST_FILE_LINES = 500
"""A suite of one subject is read in parts."""

SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".js", ".css", ".html"}

STATE_WRITERS = {"lifecycle/requests.py", "lifecycle/machine.py"}
"""The files that may store into a request's state: the table of rows, and the executors of the table of transitions."""


def python_files(*folders: str) -> list[Path]:
    """Every Python file under these folders of the repository; each folder must have some."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no Python file under {folders}: has a folder moved?"
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.AST | None = None) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"{name}:{getattr(node, 'lineno', 1)}" if node is not None else name


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """(dotted module, statement) for each import of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node


def breaches(paths: list[Path], found: Callable[[ast.AST], bool]) -> list[str]:
    """Where a node of these files is one that must not be."""
    return [place(path, node) for path in paths for node in ast.walk(tree_of(path)) if found(node)]


def name_of(node: ast.Attribute) -> str | None:
    """`a` of `a.b`; None where what stands before the dot is more than a name."""
    return node.value.id if isinstance(node.value, ast.Name) else None


def pure_files() -> list[Path]:
    """Files whose decisions must depend on nothing but their arguments."""
    driving = {"runtime", "simulation"}
    actors = [path for path in python_files("actors") if not driving & set(path.relative_to(ROOT).parts)]
    return actors + python_files("loops", "memory", "lifecycle")


def importing(paths: list[Path], *modules: str) -> list[str]:
    """Where one of `modules` (or a part of it) is imported."""
    return [place(path, node) for path in paths for name, node in imports(path) if name.partition(".")[0] in modules]


def test_actors_loops_and_memory_get_clock_and_threads_from_outside() -> None:
    def reads_clock(node: ast.AST) -> bool:
        """`datetime.now()` and the like; a datetime made from a given time is a value as any other."""
        return (
            isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today") and name_of(node) == "datetime"
        )

    assert importing(pure_files(), "time", "threading", "asyncio", "secrets", "uuid") == []
    assert breaches(pure_files(), reads_clock) == []


def test_chance_comes_from_seeded_generators_only() -> None:
    def shared_generator(node: ast.AST) -> bool:
        """`random.shuffle` and the like draw from a generator that nobody seeded; `random.Random(seed)` does not."""
        if isinstance(node, ast.ImportFrom):
            return node.module == "random" and any(alias.name != "Random" for alias in node.names)
        return isinstance(node, ast.Attribute) and name_of(node) == "random" and node.attr != "Random"

    assert breaches(pure_files(), shared_generator) == []


def test_rooms_below_gpu_do_not_name_torch() -> None:
    assert importing(python_files(*WITHOUT_TORCH), "torch") == []


def test_the_actor_runtime_imports_nothing_of_ours_but_itself() -> None:
    foreign = [
        place(path, node)
        for path in python_files("actors/runtime")
        for name, node in imports(path)
        if name.partition(".")[0] in OURS and not name.startswith("pawl.actors.runtime")
    ]
    assert foreign == []


def test_rooms_below_gpu_import_where_torch_is_not_installed() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in python_files(*WITHOUT_TORCH)
    ]
    program = f"""
import importlib, sys
sys.modules["torch"] = None  # importing it now raises ImportError, as where it is not installed
for module in {modules!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rooms_are_imported_by_their_installed_names() -> None:
    """`memory` alone may be a file of the user's."""
    assert importing(python_files(*OURS, "tests", "benchmarks"), *ROOMS) == []


def names_of(path: Path) -> set[str]:
    """What can be imported from a module: every name that is bound or imported anywhere in it."""
    nodes = list(ast.walk(tree_of(path)))
    defined = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return defined | bound | imported


def test_what_tests_and_benchmarks_import_of_ours_exists() -> None:
    """The type checker reads the source only: a name that moved would be missed until its test is run."""
    missing = []
    for path in python_files("tests", "benchmarks"):
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in ("pawl", "tests"):
                continue
            base = ROOT.joinpath(*(node.module or "").split("."))
            module = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            module = module if module.exists() else module.with_suffix(".pyi")
            known = names_of(module) if module.exists() else set()
            beside = {found.stem for found in base.iterdir()} if base.is_dir() else set()
            missing += [
                f"{place(path, node)}: {alias.name}" for alias in node.names if alias.name not in known | beside
            ]
    assert missing == []


def test_nothing_read_from_outside_can_run_code() -> None:
    def runs_code(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id in ("eval", "exec", "compile")
        return isinstance(node, ast.Attribute) and node.attr == "load" and name_of(node) in ("torch", "yaml")

    paths = python_files(*OURS)
    assert importing(paths, "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib") == []
    assert breaches(paths, runs_code) == []


def test_only_the_table_writes_a_state() -> None:
    def stores_state(node: ast.AST) -> bool:
        """`x.state = ...` and `x.state[row] = ...`, in all their forms."""
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            node = node.value
            return isinstance(node, ast.Attribute) and node.attr == "state"
        return isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)

    pure = [path for path in pure_files() if place(path) not in STATE_WRITERS]
    assert breaches(pure, stores_state) == []
    writers = [path for path in pure_files() if place(path) in STATE_WRITERS]
    assert len(breaches(writers, stores_state)) >= len(STATE_WRITERS), "the rule looks at nothing: has a file moved?"


SIMULATION = re.compile("simulat", re.IGNORECASE)


def asks_whether_it_is_simulated(node: ast.AST) -> bool:
    """Whether this is a condition that depends on how the code is run."""
    if not isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert | ast.comprehension | ast.match_case):
        return False
    conditions = (
        node.ifs
        if isinstance(node, ast.comprehension)
        else [node.guard if isinstance(node, ast.match_case) else node.test]
    )
    parts = [part for condition in conditions if condition is not None for part in ast.walk(condition)]
    words = [getattr(part, name, "") for part in parts for name in ("id", "attr", "value", "arg")]
    return any(isinstance(word, str) and SIMULATION.search(word) for word in words)


def test_what_runs_cannot_tell_whether_it_is_simulated() -> None:
    outside = [
        path
        for path in python_files(*OURS)
        if not path.relative_to(ROOT).as_posix().startswith(("actors/simulation/", "pawl/testing/"))
    ]
    assert breaches(outside, asks_whether_it_is_simulated) == []
    for line in ("if self.simulated: pass", "a = 1 if version == 'simulated' else 2", "while not is_simulated(): pass"):
        assert any(asks_whether_it_is_simulated(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize(
    ("folders", "limit"), [((*OURS, "benchmarks"), MAX_FUNCTION_LINES), (("tests",), MAX_TEST_FUNCTION_LINES)]
)
def test_functions_fit_a_screen(folders: tuple[str, ...], limit: int) -> None:
    def too_long(node: ast.AST) -> bool:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return False
        return (node.end_lineno or node.lineno) - node.lineno + 1 > limit

    assert breaches(python_files(*folders), too_long) == []


@pytest.mark.parametrize(
    ("folders", "limit"), [((*OURS, "benchmarks"), MAX_FILE_LINES), (("tests",), MAX_TEST_FILE_LINES)]
)
def test_files_have_one_idea(folders: tuple[str, ...], limit: int) -> None:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    assert {path.suffix for path in files} >= {".py"}
    lengths = {place(path): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def imported_at_run_time(body: list[ast.stmt]) -> Iterator[str]:
    """Modules and names that are imported somewhere in these statements, but not for the type checker alone."""
    for node in body:
        if isinstance(node, ast.If) and any(
            isinstance(part, ast.Name) and part.id == "TYPE_CHECKING" for part in ast.walk(node.test)
        ):
            yield from imported_at_run_time(node.orelse)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            for part in ("body", "orelse", "finalbody", "handlers"):
                yield from imported_at_run_time(getattr(node, part, []))


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Ways from a module back to it, in a graph of who imports whom; one for each module that ends one."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {
        ".".join(("pawl", *path.relative_to(ROOT).with_suffix("").parts))
        .replace("pawl.pawl", "pawl", 1)
        .removesuffix(".__init__"): path
        for path in python_files(*OURS)
    }
    graph = {
        module: {
            known
            for name in imported_at_run_time(tree_of(path).body)
            for known in (name if name in modules else name.rpartition(".")[0],)
            if known in modules and known != module
        }
        for module, path in modules.items()
    }
    assert sum(map(len, graph.values())) > len(modules), "the reader of imports reads nothing"
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles(graph) == []


def names_of_sources(room: str) -> set[str]:
    """Each module and folder of a room, by its name and by its path joined with underscores."""
    sources = [path for path in (ROOT / room).rglob("*") if path.is_dir() or path.suffix == ".py"]
    paths = [path.relative_to(ROOT / room).with_suffix("").parts for path in sources]
    return {"_".join(parts[start:]) for parts in paths for start in range(len(parts))}


@pytest.mark.parametrize("room", ["lifecycle", "memory", "loops", "actors", "pawl"])
def test_test_files_are_named_after_what_they_test(room: str) -> None:
    """tests/README.md: `test_storage_faults.py` is about `storage.py`."""
    known = names_of_sources(room)
    files = {path: path.stem.removeprefix("test_").split("_") for path in (ROOT / "tests" / room).glob("test_*.py")}
    assert files
    nameless = [
        place(path)
        for path, words in sorted(files.items())
        if not any("_".join(words[:count]) in known for count in range(1, len(words) + 1))
    ]
    assert nameless == []


def test_tests_wait_for_events_not_for_time() -> None:
    def sleeps(node: ast.AST) -> bool:
        """A call of `sleep` with anything but 0, which only lets others run."""
        if not isinstance(node, ast.Call):
            return False
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        return name == "sleep" and not yields

    assert breaches(python_files("tests"), sleeps) == []


def text_files() -> list[Path]:
    """What a reader of the repository sees: code, docs, scripts. Not results, which name the machine they are from."""
    suffixes = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".yaml", ".yml", ".json", ""}
    folders = (*OURS, "tests", "docs", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    return [path for path in inside + top if path.suffix in suffixes and "__pycache__" not in path.parts]


def test_nothing_names_a_folder_of_one_machine() -> None:
    # A home, or a scratch folder: such a path works for one person.
    machine_path = re.compile(r"(?<![\w.~}/])/(?:home|root|Users|work|workspace|mnt|tmp)/\w")
    assert machine_path.search("cd " + "/home/" + "someone")
    found = [
        f"{place(path)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert found == []


def documented_commands(page: Path) -> set[tuple[str, str]]:
    """(program, command) for each `make x` and `pawl x` in code, in blocks or in lines, of a page."""
    text = page.read_text()
    code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text)
    pattern = re.compile(r"(?:^|[`\s|])(make|pawl) ([a-z][a-z-]*)", re.MULTILINE)
    return {match for block in code for match in pattern.findall(block)}


def test_every_command_in_the_readme_exists() -> None:
    from pawl.cli import COMMANDS

    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = documented_commands(ROOT / "README.md")
    assert {("make", "serve"), ("make", "test"), ("pawl", "serve")} <= commands, "the reader of the page reads nothing"
    missing = [
        f"{program} {name}"
        for program, name in sorted(commands)
        if name not in (targets if program == "make" else COMMANDS)
    ]
    assert missing == []


def test_every_file_that_a_page_links_to_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert len(links) >= 50, "the reader of the pages reads nothing"
    assert [f"{place(page)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_every_test_that_the_documents_name_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {match for page in pages for match in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text())}
    assert len(named) >= 10, "the reader of the pages reads nothing"
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_every_name_in_the_list_of_words_stands_in_the_file_that_its_row_names() -> None:
    page = (ROOT / "docs" / "words.md").read_text()
    rows = re.findall(r"^\| (?:`(\w+)`)?.* \| \[[^]]+\]\(\.\./([^)]+)\) \|$", page, re.MULTILINE)
    assert len(rows) >= 60, "the reader of the page reads nothing"
    missing = [
        f"{name} in {file}"
        for name, file in rows
        if not (ROOT / file).exists() or (name and not re.search(rf"\b{name}\b", (ROOT / file).read_text()))
    ]
    assert missing == []


def test_every_make_target_says_what_it_is_for() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    targets = [line for line in lines if re.match(r"^[a-z][a-z-]*:(?!=)", line)]
    assert targets
    assert [line for line in targets if "  ## " not in line] == []
