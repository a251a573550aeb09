"""The direction of imports, read from the source: schemas <- models <- workers, vendors only in adapters, no cycles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "models", "workers")
ALLOWED = {"schemas": {"schemas"}, "models": {"schemas", "models"}, "workers": {"schemas", "models", "workers"}}
VENDORS = {
    "redis": {"workers/stores"},
    "httpx": {"workers/http_client.py", "workers/towers/rest.py"},
    "pymilvus": {"workers/index"},
    "grpc": {"workers/index", "workers/towers/rpc.py", "workers/local/probes.py"},
    "faiss": {"workers/index"},
    "google": {"workers/towers/messages.py"},
    "onnxruntime": {"workers/towers/onnx.py"},
    "pyarrow": {"workers/parquet.py", "workers/parquet_columns.py"},
    "faust": {"workers/transport.py", "workers/liveness.py"},
    "onnx": {"models/graphs.py", "models/pack.py"},
    "scipy": {"models/samples.py", "models/closed_form.py", "models/polish.py", "models/evaluation"},
    "implicit": {"models/evaluation/baselines/ials.py"},
    "matplotlib": {"models/evaluation/chart.py"},
    "torch": {"models/training", "workers/cli/model_train.py"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    """Modules that a file imports; of `from a import b` both a and a.b."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_packages_import_in_one_direction() -> None:
    for name, path in modules().items():
        package = name.partition(".")[0]
        ours = {module.partition(".")[0] for module in imports(path)} & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_vendors_are_imported_by_their_adapters_alone() -> None:
    for path in modules().values():
        where = str(path.relative_to(ROOT))
        for vendor in {module.partition(".")[0] for module in imports(path)} & set(VENDORS):
            assert any(where.startswith(place) for place in VENDORS[vendor]), f"{where} imports {vendor}"


def test_modules_form_no_cycle() -> None:
    known = modules()
    graph = {name: {m for m in imports(path) if m in known and m != name} for name, path in known.items()}
    for name, targets in graph.items():  # a package's own __init__ runs before its modules: that is no cycle
        graph[name] = {target for target in targets if not name.startswith(f"{target}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_help_imports_nothing_heavy() -> None:
    vendors = ("numpy", "aiokafka", "redis", "pymilvus", "onnxruntime", "faust", "pydantic", "pyarrow")
    heavy = (*vendors, "models", "workers.settings")
    code = (
        "import sys\n"
        "from workers.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_worker_loads_none_of_what_pymilvus_is_made_for() -> None:
    code = "import sys, workers.app, workers.recall_parts; print({'pymilvus', 'pandas', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_no_file_outgrows_its_subject() -> None:
    long = {str(path): len(path.read_text().splitlines()) for path in modules().values()}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


@pytest.mark.parametrize("command", ["demo", "bench", "model", "model_dataset", "model_evaluate", "model_train"])
def test_commands_that_say_how_many_threads_numpy_has_are_there_before_it(command: str) -> None:
    script = f"import sys, workers.cli.{command}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
