"""PECOS XR-Linear, run by a Python that has libpecos: needs neither shoal nor torch.

As its READMEs recommend: tf-idf of words, pairs of words and character trigrams, then
``Indexer.gen`` over label features and ``XLinearModel.train``, else its defaults. Chosen on
validation: label features (PIFA, or PIFA beside the label's own text), then how a positive is
weighed, and for each of these the width of the beam. Where examples have features in place of
texts, these are read as they are or with rows of length one, whichever is better.

    python with_pecos.py FOLDER THREADS

FOLDER holds ``tune`` and ``final``, each as PECOS wants it; predictions go to FOLDER/top.npy.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pecos.utils import smat_util  # pyright: ignore[reportMissingImports]
from pecos.utils.featurization.text.vectorizers import (  # pyright: ignore[reportMissingImports]
    Vectorizer,
)
from pecos.xmc import Indexer, LabelEmbeddingFactory  # pyright: ignore[reportMissingImports]
from pecos.xmc.xlinear.model import XLinearModel  # pyright: ignore[reportMissingImports]
from sklearn.preprocessing import normalize  # pyright: ignore[reportMissingImports]

N_GRAMS = [("word", 1), ("word", 2), ("char_wb", 3)]
CONFIG = {
    "type": "tfidf",
    "kwargs": {
        "base_vect_configs": [
            {"ngram_range": [n, n], "max_df_ratio": 0.98, "analyzer": kind} for kind, n in N_GRAMS
        ]
    },
}
METHODS = ("pifa", "pifa_lf_concat")
SCALES = ("pifa", "pifa, rows of length one")
# as many as its loss has it; each point's positives by their number; four negatives' worth
WEIGHTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relevance": {"rel_mode": "induce", "rel_norm": "l1"},
    "Cp 4": {"Cp": 4.0},
}
BEAMS = (10, 50)
DEEP = 50


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter(), time.process_time()
    found = tune(folder / "tune", threads)
    method, weight, beam = max(found, key=lambda option: found[option])
    seconds = spent("tune", start)
    start = time.perf_counter(), time.process_time()
    vectorize, x, y = read(folder / "final", threads, method)
    model = train(vectorize, x, y, lines(folder / "final" / "Y.txt"), method, weight, threads)
    seconds |= spent("train", start)
    start = time.perf_counter(), time.process_time()
    top = predict(model, vectorize(asked(folder / "final")), beam, threads)
    seconds |= spent("predict", start)
    np.save(folder / "top.npy", top)
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    facts = {"label_features": method, "positives": weight, "beam": beam}
    told = {f"{m}, {w}, beam {b}": round(value, 2) for (m, w, b), value in found.items()}
    facts |= {"features": int(x.shape[1]), "validation_P@1": told}
    memory = int(peak.split()[1]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": memory, "facts": facts}))


def tune(folder: Path, threads: int) -> dict[tuple[str, str, int], float]:
    """P@1 of choices: all label features, then all weights with the best of these."""
    names, test = lines(folder / "Y.txt"), asked(folder)
    truth = smat_util.load_matrix(str(folder / "Y.tst.npz")).tocsr()
    found: dict[tuple[str, str, int], float] = {}

    def judge(method: str, weight: str) -> None:
        vectorize, x, y = read(folder, threads, method)
        model = train(vectorize, x, y, names, method, weight, threads)
        for beam in BEAMS:
            top = predict(model, vectorize(test), beam, threads)
            best = truth[np.arange(len(top)), top[:, 0].clip(min=0)].A1 > 0
            found[method, weight, beam] = 100 * float(best.mean())

    for method in SCALES if featured(folder) else METHODS:
        judge(method, "plain")
    best = max(found, key=lambda option: found[option])[0]
    for weight in [name for name in WEIGHTS if name != "plain"]:
        judge(best, weight)
    return found


def featured(folder: Path) -> bool:
    """Whether examples have features in place of texts."""
    return (folder / "X.trn.npz").is_file()


def asked(folder: Path) -> Any:
    """The test points: texts, or features."""
    if featured(folder):
        return smat_util.load_matrix(str(folder / "X.tst.npz"))
    return lines(folder / "X.tst.txt")


def read(folder: Path, threads: int, method: str) -> tuple[Any, Any, Any]:
    """A fitted vectorizer, the features of the training points, and their labels."""
    labels = smat_util.load_matrix(str(folder / "Y.trn.npz")).tocsr().astype(np.float32)
    labels.data[:] = 1
    if featured(folder):

        def scale(x: Any) -> Any:
            x = x.tocsr().astype(np.float32)
            return normalize(x) if method == SCALES[1] else x

        return scale, scale(smat_util.load_matrix(str(folder / "X.trn.npz"))), labels
    texts = lines(folder / "X.trn.txt")
    fitted = Vectorizer.train(texts, copy.deepcopy(CONFIG))  # it writes into it

    def vectorize(corpus: list[str]) -> Any:
        return fitted.predict(corpus, threads=threads)

    return vectorize, vectorize(texts), labels


def train(
    vectorize: Any, x: Any, y: Any, names: list[str], method: str, weight: str, threads: int
) -> Any:
    """Cluster the labels and train; what comes back is made for prediction, far faster."""
    also = {"Z": vectorize(names)} if method == "pifa_lf_concat" else {}
    features = LabelEmbeddingFactory.create(y, x, method=method.split(",")[0], **also)
    chain = Indexer.gen(features, indexer_type="hierarchicalkmeans", threads=threads)
    model = XLinearModel.train(x, y, C=chain, threads=threads, **WEIGHTS[weight])
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return XLinearModel.load(folder, is_predict_only=True)


def predict(model: Any, x: Any, beam: int, threads: int) -> Any:
    """Ids of the best labels, best first, -1 behind them."""
    found = model.predict(x, only_topk=DEEP, beam_size=beam, threads=threads).tocsr()
    top = np.full((found.shape[0], DEEP), -1, dtype=np.int64)
    for i, (a, b) in enumerate(zip(found.indptr[:-1], found.indptr[1:], strict=True)):
        order = np.argsort(-found.data[a:b], kind="stable")
        top[i, : b - a] = found.indices[a:b][order]
    return top


def lines(path: Path) -> list[str]:
    """Lines of a file."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def spent(name: str, start: tuple[float, float]) -> dict[str, float]:
    """Wall and CPU seconds since `start`."""
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return {f"{name}_wall": wall, f"{name}_cpu": cpu}


if __name__ == "__main__":
    main()
