"""Everything that needs a CUDA device, in one command: tests, kernels against limits, whole steps of an 8B model.

    python -m benchmarks.gpu              (or `make gpu-check`)
    python -m benchmarks.gpu --no-tests   figures only

It needs PyTorch, Triton, numpy and this repository's other packages to be importable, and no network, no weights and no
virtual environment. Weights are random and are made on the device. Exit status: 0 when all tests passed and every
figure was measured, 1 otherwise, 2 where there is no CUDA device. Figures that miss their goal are marked, no more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import RESULTS, Result, table

ROOT = Path(__file__).parent.parent
FILE = RESULTS / "gpu-check.json"
EXIT_FAILED, EXIT_NO_DEVICE = 1, 2
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
TEST_RUNS = {
    "marked gpu": [
        "-m",
        "gpu",
        "tests/gpu",
        "tests/pawl/test_explore_real.py",
        "tests/pawl/test_build_device_shares.py",
    ],
    # Without a device these run under Triton's interpreter; with one they run on it.
    "kernels": ["-m", "not gpu", *(str(path) for path in sorted((ROOT / "tests/gpu").glob("test_[kc][eu]*.py")))],
}


def why_not() -> str | None:
    """What keeps this machine from being measured; None: nothing."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error})"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return None


def hardware() -> dict[str, object]:
    """What was measured, and with which versions."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": properties.name,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }


def run_tests() -> dict[str, dict[str, object]]:
    """Each run of tests in a process of its own: one that breaks the device must not end the rest."""
    found: dict[str, dict[str, object]] = {}
    for name, arguments in TEST_RUNS.items():
        print(f"tests, {name}:", flush=True)
        done = subprocess.run([*PYTEST, *arguments], cwd=ROOT, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        print("\n".join(lines[-40:]), flush=True)
        found[name] = {"passed": done.returncode == 0, "status": done.returncode, "end": lines[-5:]}
    return found


def report(
    facts: dict[str, object], tests: dict[str, dict[str, object]] | None, results: list[Result]
) -> dict[str, object]:
    """What goes into the file."""
    return {"hardware": facts, "tests": tests, "results": [result.record() | {"met": result.met} for result in results]}


def measure() -> list[Result]:
    """Every figure. Limits are measured first, in the same run: a device is held against itself."""
    from benchmarks.gpu_kernels import kernel_results
    from benchmarks.gpu_steps import one, step_results
    from benchmarks.gpu_timing import copy_bandwidth, product_rate

    bandwidth, rate = copy_bandwidth(), product_rate()
    limits = [
        Result("limit: copy", one(bandwidth / 1e12), "TB/s"),
        Result("limit: bfloat16 product", one(rate / 1e12), "TFLOP/s"),
    ]
    return [*limits, *kernel_results(bandwidth, rate), *step_results(bandwidth, rate)]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--no-tests", action="store_true", help="figures only")
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason is not None:
        print(f"gpu-check needs a CUDA device: {reason}. Nothing was checked.", file=sys.stderr)
        return EXIT_NO_DEVICE
    facts = hardware()
    print(json.dumps(facts, indent=1), flush=True)
    tests = None if options.no_tests else run_tests()
    results = measure()
    print(table("on one device, in percent of what it could do at the most", results))
    RESULTS.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(report(facts, tests, results), indent=1) + "\n")
    print(f"written: {FILE}")
    return 0 if tests is None or all(run["passed"] for run in tests.values()) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
