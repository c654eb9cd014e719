"""Build the WordNet that shoal ships, from the data files of Debian's package wordnet-base.

    apt-get download wordnet-base
    dpkg -x wordnet-base_*.deb wordnet-base
    python tools/build_wordnet.py --dict wordnet-base/usr/share/wordnet

Writes ``synsets.tsv.gz`` and ``NOTICE``. One line a synset, nouns, verbs, adjectives, adverbs, each
by offset: uid, lexicographer file, lemmas, gloss, row numbers of the synsets that it points to. The
format of the data files is in the manual page wndb(5WN). The same input makes the same bytes (with
the same zlib).
"""

from __future__ import annotations

import argparse
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "shoal" / "data" / "wordnet"
FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
NOTICE = """\
synsets.tsv.gz in this folder is derived from the WordNet 3.0 database by tools/build_wordnet.py:
synsets, lemmas, glosses and relations as they are, without syntactic markers, kinds of relation and
word senses. WordNet's licence follows.

"""


@dataclass(frozen=True)
class Synset:
    """One line of a data file."""

    uid: str
    file: int
    lemmas: str
    gloss: str
    targets: tuple[str, ...]


def parse(line: str, letter: str) -> Synset:
    """Read one line: offset, file, type, words (count in hexadecimal), pointers, ``|``, gloss."""
    fields, _, gloss = line.partition("|")
    offset, file, _, n_words, *rest = fields.split()
    words = rest[: 2 * int(n_words, 16) : 2]
    rest = rest[2 * int(n_words, 16) :]
    pointers = rest[1 : 1 + 4 * int(rest[0])]
    # A pointer is symbol, offset, part of speech, words; satellites ("s") are in data.adj.
    ends = zip(pointers[2::4], pointers[1::4], strict=True)
    targets = tuple({"s": "a"}.get(pos, pos) + target for pos, target in ends)
    lemmas = ", ".join(_clean(word) for word in words)
    return Synset(letter + offset, int(file), lemmas, gloss.strip(), targets)


def _clean(word: str) -> str:
    """Drop an adjective's syntactic marker, (a), (p) or (ip), and write spaces as spaces."""
    return re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ")


def read(folder: Path) -> list[Synset]:
    synsets = []
    for letter, name in FILES.items():
        with (folder / name).open(encoding="utf-8") as file:
            # Lines that begin with a space are the licence.
            synsets += [parse(line, letter) for line in file if not line.startswith(" ")]
    return synsets


def licence(folder: Path) -> str:
    """The lines at the head of a data file, without their numbers."""
    with (folder / FILES["n"]).open(encoding="utf-8") as file:
        head = [line for line in file if line.startswith("  ")]
    return "".join(re.sub(r"^ +\d+ ", "", line).rstrip() + "\n" for line in head)


def table(synsets: list[Synset]) -> str:
    row = {synset.uid: i for i, synset in enumerate(synsets)}
    lines = []
    for i, synset in enumerate(synsets):
        targets = sorted({row[uid] for uid in synset.targets} - {i})
        cells = (synset.uid, synset.file, synset.lemmas, synset.gloss, " ".join(map(str, targets)))
        lines.append("\t".join(map(str, cells)) + "\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the WordNet that shoal ships.")
    parser.add_argument("--dict", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    synsets = read(args.dict)
    args.out.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(table(synsets).encode(), 9, mtime=0)
    (args.out / "synsets.tsv.gz").write_bytes(packed)
    (args.out / "NOTICE").write_text(NOTICE + licence(args.dict), encoding="utf-8")
    print(f"{len(synsets):,} synsets, {len(packed):,} bytes -> {args.out}")


if __name__ == "__main__":
    main()
