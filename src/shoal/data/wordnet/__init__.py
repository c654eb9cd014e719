"""WordNet 3.0 (Fellbaum, 1998), shipped: one list of relations, seen twice.

As **labels** (:func:`labels`): a document is a synset (title = lemmas, content = gloss), its labels
are the synsets that it points to. As a **graph** (:func:`graph`): nodes are synsets, edges the same
relations, classes the 45 lexicographer files. Both views test on the synsets whose uid satisfies
``int(md5(uid), 16) % 5 == 0``.

The file ``synsets.tsv.gz`` beside this module is made by tools/build_wordnet.py from Debian's
package wordnet-base; its format is in docs/reference/formats.md, WordNet's licence in NOTICE.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import fail
from shoal.data.lines import as_tensor, lines, shorten
from shoal.data.nodes import NodeData, tf_idf
from shoal.data.splits import random_split
from shoal.data.texts import Examples, LabelData, Texts

_SHIPPED = Path(__file__).with_name("synsets.tsv.gz")

# Names of the lexicographer files 00 … 44, from the manual page lexnames(5WN).
CLASS_NAMES = tuple(
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute "
    "noun.body noun.cognition noun.communication noun.event noun.feeling noun.food noun.group "
    "noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession "
    "noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time "
    "verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption "
    "verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl".split()
)


@dataclass(frozen=True, eq=False)
class Synsets:
    """What the shipped file holds: n = 117,659 sets of synonyms, by part of speech and offset.

    Attributes:
        texts: uid (part-of-speech letter n, v, a or r, and offset), lemmas, gloss.
        files: the lexicographer file of each, a position in :data:`CLASS_NAMES`.
        relations: ``[n, n]``; row i lists the synsets that i points to by any relation, sorted,
            each once, itself never.
    """

    texts: Texts
    files: Int[Tensor, " n"]
    relations: Csr


def read(path: str | Path = _SHIPPED) -> Synsets:
    """Read the shipped file, or one in its format.

    Args:
        path: the file; the default is the one that is shipped.

    Returns:
        its synsets, in its order.

    Raises:
        InputError: naming file and line, if the file is damaged.
    """
    texts, files, ids, ends = Texts([], [], []), array("q"), array("q"), array("q", [0])
    for number, line in lines(path):
        try:
            uid, file, title, content, targets = line.split("\t")
            files.append(int(file))
            ids.extend([int(i) for i in targets.split()])
        except ValueError:
            want = "uid, file, lemmas, gloss and row numbers between tabs"
            fail(f"{path}:{number}", want, shorten(line), "install shoal again")
        ends.append(len(ids))
        texts.uids.append(uid)
        texts.titles.append(title)
        texts.contents.append(content)
    indptr, indices, kinds = (as_tensor(x) for x in (ends, ids, files))
    return Synsets(texts, kinds, Csr(indptr, indices, len(texts)).validate())


def is_test(uids: list[str]) -> Bool[Tensor, " n"]:
    """Whether each synset is a test example: ``int(md5(uid), 16) % 5 == 0``.

    Example:
        >>> is_test(["n00001740", "n00015388"]).tolist()
        [False, True]
    """
    # The rule serves only to split, so builds that forbid md5 for security may still use it.
    digests = [md5(uid.encode(), usedforsecurity=False).digest() for uid in uids]
    return torch.tensor([int.from_bytes(digest) % 5 == 0 for digest in digests])


def labels() -> LabelData:
    """WordNet as extreme classification: 93,311 training and 9,115 test examples, 103,827 labels.

    Labels are the synsets that a training synset points to. Relations come in pairs, so the reverse
    of most test pairs stands in the training split: such pairs are left out of the test truth and
    stand in ``drop``, together with each example's own label. Examples without a label are left
    out.
    """
    synsets = read()
    pairs, n = synsets.relations, len(synsets.texts)
    test = is_test(synsets.texts.uids)
    row, col = pairs.row_ids(), pairs.indices
    is_label = torch.zeros(n, dtype=torch.bool)
    is_label[col[~test[row]]] = True
    known = pairs.find(col, row)[0] & test[row] & ~test[col]
    truth = is_label[col] & ~known
    own = is_label.nonzero().flatten()
    dropped = known & is_label[col]
    drop_row, drop_col = torch.cat([row[dropped], own]), torch.cat([col[dropped], own])
    label_of = is_label.cumsum(0) - 1

    def matrix(row: Tensor, col: Tensor) -> Csr:
        return Csr.from_coo(row, label_of[col], (n, len(own))).coalesce()

    everyone = Examples(synsets.texts, matrix(row[truth], col[truth]), matrix(drop_row, drop_col))
    labeled = everyone.labels.degrees() > 0
    train, held = (part.nonzero().flatten() for part in (labeled & ~test, labeled & test))
    texts = synsets.texts.subset(own)
    return LabelData("wordnet", everyone.subset(train), everyone.subset(held), texts)


def graph(*, valid: float = 0.25, seed: int = 0) -> NodeData:
    """WordNet as node classification: 117,659 nodes, 367,578 edge entries, 45 classes.

    The relation list is all but symmetric: 355,698 of its 361,638 pairs have their reverse in it
    (pertainyms, entailments, causes and some others do not). A node reads synsets that it points to
    and synsets that point to it, so the graph is made symmetric; 1,009 have no neighbor. Features
    are the tf-idf of the words of lemmas and gloss that at least two synsets have.

    Args:
        valid: share of the nodes outside the test split to choose by, in (0, 1); the default makes
            60/20/20 with the fifth that is tested.
        seed: of the split between training and validation.

    Raises:
        InputError: if `valid` is out of range.
    """
    synsets = read()
    pairs, n = synsets.relations, len(synsets.texts)
    row, col = pairs.row_ids(), pairs.indices
    both = Csr.from_coo(torch.cat([row, col]), torch.cat([col, row]), (n, n)).coalesce()
    test = is_test(synsets.texts.uids)
    rest = (~test).nonzero().flatten()
    train, chosen = (rest[part] for part in random_split(len(rest), valid, seed))
    features = tf_idf(synsets.texts.all())
    held = test.nonzero().flatten()
    return NodeData(
        "wordnet-graph", both, features, synsets.files, train, chosen, held, CLASS_NAMES
    )
