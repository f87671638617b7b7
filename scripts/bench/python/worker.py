"""One measurement of the PyTorch side, in a process of its own: `worker.py ROW '{"threads": 2, ...}'` prints one line of JSON."""

import sys
import time

START = time.perf_counter()

if sys.argv[1] == "import":  # measured before anything else is imported
    import torch

    print(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    INSIDE = time.perf_counter() - START

import json  # noqa: E402

import torch  # noqa: E402

from measure import peak_rss, timed  # noqa: E402


def main():
    row, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    if row == "import":
        result = {"seconds": INSIDE}
    elif row == "info":
        result = info(options)
    else:
        from rows import ROWS

        result = ROWS[row](options, timed)
    result["rss"] = peak_rss()
    print("RESULT " + json.dumps(result), flush=True)


def info(options):
    """Version, and the machine's matrix-product peak as PyTorch reaches it (float32)."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    out = torch.empty(n, n)
    best = min(timed(lambda: torch.mm(a, b, out=out), warmup=3, steps=12)["all"])
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "parallel": torch.__config__.parallel_info().splitlines()[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "flops_per_second": 2 * n**3 / best,
    }


main()
