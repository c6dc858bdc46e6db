"""Seconds and certified gaps of this project's solvers and of every installed peer, on Grams of real activations.

    python tests/benchmarks/solver.py --data ROOT --cache DIR [--n 500 1000] [--tau 10] [--solvers ours spams] ...

ROOT holds CIFAR-10 as torchvision keeps it; the network's Grams are made once and kept in DIR. Every solver runs in a
process of its own, with ``OMP_WAIT_POLICY=PASSIVE`` and two threads where it has any, on the same float64 Gram (or a
factor of it, not timed); compilation is not timed but printed. What is judged is the returned solution: the worst
relative duality gap of any row, in float64. Of peers that solve one sample at a time only as many as fit into --limit
seconds are solved; their seconds are then scaled to all samples and marked "~".

Peers (optional, never dependencies): spams-bin, scikit-learn, celer, skglm.
"""

import argparse
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import activations
import numpy as np
import torch

from lightning_ssc.functional import duality_gap, self_expression

THREADS = 2
PEERS = {"spams": "spams", "lars_path_gram": "sklearn", "sklearn_cd": "sklearn", "celer": "celer", "skglm": "skglm"}
OURS = ("ours", "ours_float32", "admm_100", "admm_300")


def one_row(name: str, factor: np.ndarray, gram: np.ndarray, tau: float) -> Callable[[int], np.ndarray]:
    """A peer's solution of one sample."""
    d, n = factor.shape

    def others(i: int, solve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        c, index = np.zeros(n), np.delete(np.arange(n), i)
        c[index] = solve(index)
        return c

    if name == "lars_path_gram":
        from sklearn.linear_model import lars_path_gram

        def lars(i: int, index: np.ndarray) -> np.ndarray:
            return lars_path_gram(
                Xy=gram[index, i].copy(),
                Gram=gram[np.ix_(index, index)],
                n_samples=1,
                alpha_min=1 / tau,
                method="lasso",
                return_path=False,
                max_iter=5 * n,
            )[2]

        return lambda i: others(i, lambda index: lars(i, index))
    if name == "sklearn_cd":
        from sklearn.linear_model import Lasso

        def descent(i: int, index: np.ndarray) -> np.ndarray:
            inner = np.ascontiguousarray(gram[np.ix_(index, index)])
            model = Lasso(alpha=1 / (tau * d), fit_intercept=False, precompute=inner, tol=1e-7, max_iter=100_000)
            return model.fit(factor[:, index], factor[:, i]).coef_

        return lambda i: others(i, lambda index: descent(i, index))
    if name == "celer":
        from celer.homotopy import celer_path

        def homotopy(i: int) -> np.ndarray:
            weights = np.ones(n)
            weights[i] = np.inf
            y, alphas = np.ascontiguousarray(factor[:, i]), np.array([1 / (tau * d)])
            path = celer_path(factor, y, pb="lasso", alphas=alphas, weights=weights, tol=1e-10, max_iter=100, prune=1)
            return path[1][:, 0]

        return homotopy
    import skglm

    def working_set(i: int, index: np.ndarray) -> np.ndarray:
        model = skglm.Lasso(alpha=1 / (tau * d), fit_intercept=False, tol=1e-10, max_iter=200)
        return model.fit(factor[:, index], factor[:, i]).coef_

    return lambda i: others(i, lambda index: working_set(i, index))


def factor_of(gram: torch.Tensor) -> np.ndarray:
    """F with F'F = G, (rank, N) in Fortran order."""
    values, vectors = torch.linalg.eigh(gram)
    keep = values > values[-1] * 1e-14
    return np.asfortranarray((vectors[:, keep] * values[keep].sqrt()).T.numpy())


def timed(solve: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Least seconds of some runs, and the result."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = solve()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 10:
            break
    return min(seconds), result


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Time one solver on one problem; runs in a process of its own."""
    torch.set_num_threads(THREADS)
    name, n, tau = args.solvers[0], args.n[0], args.tau[0]
    gram = activations.load(args.cache, args.layers[0], n, args.lengths[0] == "unit")
    share, compiled = 1.0, 0.0
    if name in OURS:
        options: dict[str, Any] = {"tau": tau, "normalize": False}
        if name.startswith("admm"):
            options |= {"solver": "admm", "max_iter": int(name[5:]), "tol": 0.0}
        g = gram.float() if name == "ours_float32" else gram
        start = time.perf_counter()
        self_expression(gram=torch.eye(3, dtype=g.dtype) + 0.5, **options)
        compiled = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, found = timed(lambda: self_expression(gram=g, **options), args.repeat)
        gap = found.gap if name != "ours_float32" else duality_gap(g, found.coef, tau)[1]
        memory = [before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
        edges = found.coef.values().numel() / n
    else:
        factor = factor_of(gram)
        if name == "spams":
            import spams

            weights = np.asfortranarray(np.ones((n, n)))
            np.fill_diagonal(weights, 1e8)
            seconds, sparse = timed(
                lambda: spams.lassoWeighted(factor, factor, weights, mode=2, lambda1=1 / tau, numThreads=THREADS),
                args.repeat,
            )
            solved = sparse.toarray().T
            rows = range(n)
        else:
            solve = one_row(name, factor, gram.numpy(), tau)
            solve(0)
            seconds, solved, rows = 0.0, np.zeros((n, n)), []
            for i in np.random.default_rng(0).permutation(n):
                start = time.perf_counter()
                solved[i] = solve(i)
                seconds += time.perf_counter() - start
                rows.append(i)
                if seconds > args.limit:
                    break
            share = len(rows) / n
        np.fill_diagonal(solved, 0)
        gap = duality_gap(gram, torch.from_numpy(solved), tau)[1][list(rows)]
        memory = []
        edges = float((solved != 0).sum() / len(rows))
    return {
        "seconds": seconds / share,
        "share": share,
        "gap": float(gap.max()),
        "above": float((gap > 1e-5).double().mean()),
        "edges": edges,
        "compiled": compiled,
        "memory": [m / 1e6 for m in memory],
    }


def run(args: argparse.Namespace, layer: str, n: int, tau: float, length: str, solver: str) -> dict[str, Any] | None:
    """``work`` in a new process; None when it takes longer than the timeout or fails."""
    command = [sys.executable, __file__, "--work", "--cache", str(args.cache), "--limit", str(args.limit)]
    command += ["--repeat", str(args.repeat), "--layers", layer, "--n", str(n), "--tau", str(tau)]
    command += ["--lengths", length, "--solvers", solver]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, check=True)
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        print(error.stderr[-500:])
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(args: argparse.Namespace) -> None:
    """One line a problem and solver; ratios are against ours."""
    print("layer   length     N  tau solver             seconds  / ours  worst gap  > 1e-5  neighbours")
    for layer, length, n, tau in itertools.product(args.layers, args.lengths, args.n, args.tau):
        if n > activations.SAMPLES[layer] or (length == "raw" and n > args.raw_most):
            continue
        ours = None
        for solver in args.solvers:
            found = run(args, layer, n, tau, length, solver)
            label = f"{layer:7s} {length:6s} {n:5d} {tau:4g} {solver:15s}"
            if found is None:
                print(f"{label} more than {args.timeout:.0f} s, or failed", flush=True)
                continue
            ours = found["seconds"] if solver == "ours" else ours
            ratio = f"{found['seconds'] / ours:7.2f}" if ours else "      -"
            mark = "~" if found["share"] < 1 else " "
            print(
                f"{label} {mark}{found['seconds']:10.3f} {ratio}    {found['gap']:.1e}  {found['above']:6.2%}"
                f"  {found['edges']:8.1f}"
                + (f"  (peak {found['memory'][1]:.2f} GB)" if found["memory"] else "")
                + (f"  (compiled in {found['compiled']:.1f} s)" if solver in OURS else ""),
                flush=True,
            )


def growth(args: argparse.Namespace) -> None:
    """The exponent of time in N, from a line through log seconds."""
    sizes = [1000, 2000, 4000, 8000]
    found = [run(args, "last", n, 10.0, "unit", "ours") for n in sizes]
    if any(result is None for result in found):
        print(f"growth: a run took more than {args.timeout:.0f} s, or failed", flush=True)
        return
    seconds = [result["seconds"] for result in found]
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    print(f"growth: {dict(zip(sizes, np.round(seconds, 3), strict=True))} s, exponent {slope:.2f}", flush=True)


def warm(args: argparse.Namespace) -> None:
    """What starting from the previous epoch's graph saves."""
    for layer, tau in itertools.product(("early", "last"), (10.0, 100.0)):
        before = activations.load(args.cache, f"{layer}-before", 1000, True)
        now = activations.load(args.cache, layer, 1000, True)
        init = self_expression(gram=before, tau=tau).coef
        cold, found = timed(partial(self_expression, gram=now, tau=tau), args.repeat)
        hot, again = timed(partial(self_expression, gram=now, tau=tau, init=init), args.repeat)
        rounds = f"{again.n_iter} rounds instead of {found.n_iter}"
        print(f"warm start, {layer}, tau {tau:g}: {hot / cold:.2f} of the time, {rounds}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [peer for peer, module in PEERS.items() if importlib.util.find_spec(module)]
    parser.add_argument("--data", type=Path, help="folder of cifar-10-batches-py")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the Grams")
    parser.add_argument("--layers", nargs="+", default=["early", "middle", "last", "logits"])
    parser.add_argument("--lengths", nargs="+", default=["unit", "raw"], choices=["unit", "raw"])
    parser.add_argument("--n", nargs="+", type=int, default=[500, 1000, 2000, 5000])
    parser.add_argument("--tau", nargs="+", type=float, default=[10.0, 100.0])
    parser.add_argument("--solvers", nargs="+", default=[*OURS, *installed], choices=[*OURS, *PEERS])
    parser.add_argument(
        "--raw-most", type=int, default=1000, help="largest N for raw lengths, whose graphs are complete"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for peers that solve one sample at a time")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a solver is given up")
    parser.add_argument("--only", choices=["table", "growth", "warm"], help="one part")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(work(args)))
        return
    if args.data:
        activations.prepare(args.data, args.cache)
    for part in (table, growth, warm):
        if args.only in (None, part.__name__):
            part(args)


if __name__ == "__main__":
    main()
