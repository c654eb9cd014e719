"""Spectra against curvlinops, PyHessian and hessian-eigenthings: time and memory at equal residual.

Three jobs on the Hessian of an MLP, a CNN and a two-layer transformer, over four batches of data:
the top eigenvalue to a residual of a thousandth of it, 30 Lanczos steps, and the trace from 30
products. Rivals live in a Python of their own (``--rivals-python``), since they need packages that
shoal does not; without it shoal is measured alone. Each is used as well as it allows:
hessian-eigenthings with the fewest Lanczos steps that reach the residual, PyHessian with the
loosest tolerance that does and with the function that torch has removed put back, and all of them
with the attention kernel that has second derivatives.

Shoal runs twice: with graphs kept between products ("free", a gigabyte allowed), and with none
("tight"). Seconds are CPU seconds on one thread, the least of several rounds in which the systems
take turns; memory is the peak above what stood before the job.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "spectrum_"
NETS = ("mlp", "cnn", "transformer")
RIVALS = ("curvlinops", "hessian-eigenthings", "PyHessian")
RESIDUAL = 1e-3
OURS = {"shoal, free": 1 << 30, "shoal, tight": 0}


class Side:
    """A Python that answers jobs."""

    def __init__(self, python: str, script: str = "worker.py") -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        threads = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen([python, str(HERE / script)], env=threads, **pipes)

    def ask(self, **job: Any) -> dict[str, Any]:
        """Send a job and wait."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a side ended while it worked on {job}: see above")
        return json.loads(answer)

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Field:
    """All systems, each asked in its own words."""

    def __init__(self, rivals_python: str | None, quick: bool) -> None:
        self.ours, self.quick = Side(sys.executable), quick
        self.theirs = Side(rivals_python) if rivals_python else None
        self.systems = [*OURS, *(RIVALS if self.theirs else ())]
        self.effort: dict[tuple[str, str], Any] = {}

    def ask(self, system: str, net: str, job: str, option: Any) -> dict[str, Any]:
        """Run one job."""
        common = {"net": net, "quick": self.quick, "job": job, "option": option}
        if system in OURS:
            options = {"memory": OURS[system], "route": "double-backward"}
            return self.ours.ask(system="shoal", options=options, **common)
        assert self.theirs is not None
        return self.theirs.ask(system=system, options={}, **common)

    def least(self, system: str, net: str) -> Any:
        """The least effort with which a rival's top eigenvalue reaches the residual."""
        tries = {
            "hessian-eigenthings": (10, 15, 20, 25, 30, 35, 40, 45, 50),
            "PyHessian": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
        }.get(system, (None,))
        for effort in tries:
            if self.ask(system, net, "top", effort).get("residual", 0.0) <= RESIDUAL:
                return effort
        return tries[-1]

    def rounds(self, net: str, job: str, repeats: int) -> dict[str, dict[str, Any]]:
        """Best of several rounds, system by system."""
        best: dict[str, dict[str, Any]] = {}
        option = {"top": None, "steps": 30, "trace": 30}[job]
        for system in self.systems:
            self.effort[system, job] = self.least(system, net) if job == "top" else option
        for _ in range(repeats):
            for system in self.systems:
                found = self.ask(system, net, job, self.effort[system, job])
                if "failed" in found:
                    show(f"{net:12s}{job:6s}{system:20s}{found['failed']}")
                    continue
                kept = best.setdefault(system, found)
                kept["cpu"] = min(kept["cpu"], found["cpu"])
                kept["peak"] = min(kept["peak"], found["peak"])
        return best

    def close(self) -> None:
        """End both sides."""
        self.ours.close()
        self.theirs.close() if self.theirs else None


def compare(field: Field, net: str, job: str, repeats: int) -> dict[str, Any]:
    """One row a system, and our ratios to the fastest rival."""
    found = field.rounds(net, job, repeats)
    if job == "trace":
        true = field.ask("shoal, free", net, "trace", 200)["value"]
        for row in found.values():
            row["error"] = abs(row["value"] / true - 1)
    for system, row in found.items():
        facts = f"{row['cpu']:8.3f} s {row['peak'] / 1e6:8.1f} MB  value {row['value']:.6g}"
        more = f"residual {row['residual']:.1e}" if "residual" in row else ""
        more = f"error {row['error']:.2%}" if "error" in row else more
        show(f"{net:12s}{job:6s}{system:20s}{facts}  products {row['products']}  {more}")
    rivals = {name: found[name] for name in RIVALS if name in found}
    result: dict[str, Any] = {"net": net, "job": job, "systems": found}
    if rivals:
        name = min(rivals, key=lambda x: rivals[x]["cpu"])
        result["fastest_rival"] = name
        for ours in OURS:
            short = ours.split(", ")[1]
            result[f"{short}_time"] = found[ours]["cpu"] / rivals[name]["cpu"]
            result[f"{short}_memory"] = found[ours]["peak"] / rivals[name]["peak"]
        show(
            f"  → {name} is the fastest rival; free: {result['free_time']:.2f} × its time at "
            f"{result['free_memory']:.2f} × its memory; tight: {result['tight_time']:.2f} × at "
            f"{result['tight_memory']:.2f} ×"
        )
    return result


def failures(rivals_python: str | None) -> dict[str, Any]:
    """What a user who takes the defaults is given, beside the dense matrix's eigenvalue."""
    found: dict[str, Any] = {}
    for python in (sys.executable, rivals_python):
        if python is not None:
            side = Side(python, "defaults.py")
            found.update(side.ask(which="shoal" if python == sys.executable else "rivals"))
            side.close()
    for name, value in found.items():
        show(f"defaults    {name:44s}{value}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small nets: under a minute")
    parser.add_argument("--rivals-python", help="a Python with the three rivals installed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    asked = parser.parse_args()
    if not asked.rivals_python:
        show("no --rivals-python: rivals are skipped")
    field = Field(asked.rivals_python, asked.quick)
    rows = [
        compare(field, net, job, 2 if asked.quick else asked.repeats)
        for net in asked.nets
        for job in ("top", "steps", "trace")
    ]
    field.close()
    print(
        json.dumps(
            {
                "benchmark": "spectrum",
                "rows": rows,
                "defaults": failures(asked.rivals_python),
            }
        )
    )


if __name__ == "__main__":
    main()
