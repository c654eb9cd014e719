"""Everything about reading host rows that only a device can settle, in one run of some minutes.

Sections are run in order, each by itself: one that fails leaves a line that says why, and what it
had measured until then. Numbers are medians of wall times with the device waited for. Where there
is no CUDA device the CPU plays one: every line of this script then runs, and no number counts.

    python benchmarks/device.py --out docs/results/device    # writes device.md and device.jsonl
    python benchmarks/device.py --device cpu --quick         # a dry run, half a minute
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from device_ import epochs, here, large, reads, training
from device_.here import Here, Row, Section

SECTIONS: dict[str, Section] = {
    "the machine": here.facts,
    "equal rows": reads.equality,
    "registering memory": reads.registering,
    "rivals": reads.rivals,
    "zero-copy against the model of the bus": reads.bandwidth,
    "size of the grid": reads.programs,
    "hit rates": reads.hits,
    "reads beside compute": reads.overlap,
    "sampling": epochs.sampling,
    "epochs": epochs.epochs,
    "clusters": training.clusters,
    "transformers": training.transformers,
    "spectra": large.spectra,
    "learning rates": large.advice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing new after")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="some sections")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.jsonl")
    parser.add_argument("--data", type=Path, default=os.environ.get("SHOAL_DATA"))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    machine = Here(torch.device(args.device), args.quick, until, args.data)
    found: dict[str, list[Row]] = {}
    for title in args.only or SECTIONS:
        found[title] = run(title, SECTIONS[title], machine)
        if args.out:  # after each, so that a crash of the device loses nothing
            write(args.out, found, machine)
    print(json.dumps({"benchmark": "device", "device": str(machine.device), **found}))


def run(title: str, section: Section, machine: Here) -> list[Row]:
    """Collect a section's rows; what goes wrong becomes one."""
    rows: list[Row] = []
    begin = time.monotonic()
    if machine.late():
        return [{"left out": "the time was up"}]
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for row in section(machine):
                print(f"{title}: {row}", file=sys.stderr)
                rows.append(row)
    except Exception as error:
        rows.append({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})
    rows += [{"warned": text} for text in dict.fromkeys(str(x.message) for x in told)]
    print(f"{title}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return rows


def write(out: Path, found: dict[str, list[Row]], machine: Here) -> None:
    """Write the tables for people and the lines for programs."""
    command = f"python {shlex.join(sys.argv)}"
    date = datetime.date.today().isoformat()
    about: dict[str, Any] = {"command": command, "date": date, "device": str(machine.device)}
    with out.with_suffix(".jsonl").open("w") as file:
        for title, rows in found.items():
            for row in rows:
                file.write(json.dumps({"section": title, **about, **row}) + "\n")
    played = "" if machine.real else " The CPU played the device: no number counts."
    parts = [f"# Reading host rows on a device\n\n{date}, `{command}`.{played}\n"]
    parts += [f"## {title.capitalize()}\n\n{table(rows)}\n" for title, rows in found.items()]
    out.with_suffix(".md").write_text("\n".join(parts))


def table(rows: list[Row]) -> str:
    """A markdown table for each kind of row."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    return "\n".join(
        "\n".join(
            [
                f"| {' | '.join(names)} |",
                f"|{'---|' * len(names)}",
                *(f"| {' | '.join(str(row[name]) for name in names)} |" for row in same),
                "",
            ]
        )
        for names, same in kinds.items()
    )


if __name__ == "__main__":
    main()
