"""Layout of the code: floors of the library, sizes of files and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

LIBRARY = REPOSITORY / "mrcnn_jax"
GROUND = (
    "structures run_length_masks errors messages typing atomic_io directory_lock machine paths signals "
    "runtime compiled_programs distributed config ops"
)
FLOORS = [
    set(GROUND.split()),
    {"models", "data", "detections", "visualize"},
    {"evaluation", "run_description", "checkpoint"},
    {"inference", "weights"},
    {"training"},
    {"presets", "inspection", "serving", "cli", "__init__", "__main__"},
]
"""Modules and packages from the ground up; an import may stay on its floor or point downward."""
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
"""Exceptions by path (``path:function``), each with its reason."""


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yields the absolute names of all imports, also of those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {name_of(path): ast.parse(path.read_text()) for path in python_files(LIBRARY)}


def floor_of(part: str) -> int:
    """Returns the floor of a module or package directly below mrcnn_jax."""
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def part_of(file: str) -> str:
    return Path(file).parts[1].removesuffix(".py")


def test_every_part_of_the_library_has_a_floor():
    parts = {part_of(file) for file in FILES}
    assert parts == set.union(*FLOORS)


@pytest.mark.parametrize("part", sorted(set.union(*FLOORS) - {"__init__"}))
def test_imports_never_point_upward(part):
    upward = []
    for file, tree in FILES.items():
        if part_of(file) != part:
            continue
        for module in imported_modules(tree):
            names = module.split(".")
            if names[0] == "mrcnn_jax":
                target = names[1] if names[1] in set.union(*FLOORS) else "__init__"
                if floor_of(target) > floor_of(part):
                    upward.append((file, module))
    assert upward == []


def test_ops_and_config_import_only_the_ground_floor():
    """Operations know no configuration, configurations no arrays."""
    for file, tree in FILES.items():
        ours = {module.split(".")[1] for module in imported_modules(tree) if module.startswith("mrcnn_jax.")}
        if part_of(file) == "ops":
            assert ours <= {"ops", "structures", "typing", "runtime", "errors", "distributed"}, file
        if part_of(file) == "config":
            assert ours <= {"config", "errors", "paths"}, file


def test_the_library_does_not_import_experiments_nor_benchmarks():
    for file, tree in FILES.items():
        for module in imported_modules(tree):
            assert module.split(".")[0] not in ("experiments", "benchmarks", "tests"), (file, module)


FOLDERS = ("mrcnn_jax", "experiments", "benchmarks")
SCRIPTS = [path for folder in FOLDERS for path in python_files(REPOSITORY / folder)]


def test_files_are_short():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in SCRIPTS}
    too_long = {name: number for name, number in lines.items() if number > MAX_FILE_LINES}
    assert too_long.keys() == LONG_FILES.keys()


def test_functions_are_short():
    too_long = {}
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                number = node.end_lineno - node.lineno + 1
                if number > MAX_FUNCTION_LINES:
                    too_long[f"{name_of(path)}:{node.name}"] = number
    assert too_long.keys() == LONG_FUNCTIONS.keys()


def test_every_module_has_a_docstring():
    assert [file for file, tree in FILES.items() if not ast.get_docstring(tree)] == []
