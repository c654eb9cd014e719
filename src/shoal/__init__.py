"""Train on mini-batches when the labels, the rows or the graph are too many for the accelerator.

Public names, grouped by stage; each is imported from its home when it is first used, so that
importing shoal costs nothing and starts nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.core.block import Batch as Batch
    from shoal.core.block import Block as Block
    from shoal.core.csr import Csr as Csr
    from shoal.core.errors import InputError as InputError
    from shoal.core.losses import decoupled_softmax as decoupled_softmax
    from shoal.core.losses import hardest_triplets as hardest_triplets
    from shoal.core.objectives import Objective as Objective
    from shoal.core.objectives import in_batch as in_batch
    from shoal.core.objectives import node_cross_entropy as node_cross_entropy
    from shoal.core.search import top_k as top_k
    from shoal.curvature.measure import spectrum as spectrum
    from shoal.curvature.spectrum import Spectrum as Spectrum
    from shoal.data import load as load
    from shoal.fetch.quantized import QuantizedRows as QuantizedRows
    from shoal.fetch.tiered import TieredTable as TieredTable
    from shoal.fetch.unified import UnifiedTensor as UnifiedTensor
    from shoal.fetch.unified import unified as unified
    from shoal.fetch.update import RowAdagrad as RowAdagrad
    from shoal.fetch.update import RowAdam as RowAdam
    from shoal.fetch.update import RowSGD as RowSGD
    from shoal.graph.gat import Gat as Gat
    from shoal.graph.sage import Sage as Sage
    from shoal.models.base import Result as Result
    from shoal.models.base import open as open
    from shoal.rank.new_labels import with_labels as with_labels
    from shoal.rank.predictor import Labeler as Labeler
    from shoal.sample.clusters import balanced_clusters as balanced_clusters
    from shoal.sample.expand import Chain as Chain
    from shoal.sample.expand import Hop as Hop
    from shoal.sample.expand import NeighborSampler as NeighborSampler
    from shoal.sample.expand import ShortlistSampler as ShortlistSampler
    from shoal.sample.expand import expand as expand
    from shoal.sample.hardness import hard_negative_recall as hard_negative_recall
    from shoal.sample.seeds import ClusterBatchSampler as ClusterBatchSampler
    from shoal.sample.seeds import EmbeddingBank as EmbeddingBank
    from shoal.sample.seeds import RandomBatchSampler as RandomBatchSampler
    from shoal.sample.touch import touch_probability as touch_probability
    from shoal.step.damped import DampedDiagonal as DampedDiagonal
    from shoal.step.evidence import evidence as evidence
    from shoal.step.job import spectral_step as spectral_step
    from shoal.step.learner import StepLearner as StepLearner
    from shoal.step.learner import learner_for as learner_for
    from shoal.step.rules import rates as rates
    from shoal.step.rules import rescale as rescale
    from shoal.step.schedule import BatchSizeLR as BatchSizeLR
    from shoal.step.size import learning_rate as learning_rate
    from shoal.tasks import named as named
    from shoal.tasks import task as task
    from shoal.text.bag import BagEncoder as BagEncoder
    from shoal.text.transformer import TransformerEncoder as TransformerEncoder
    from shoal.training.callbacks import Callback as Callback
    from shoal.training.callbacks import EarlyStopping as EarlyStopping
    from shoal.training.callbacks import ShowProgress as ShowProgress
    from shoal.training.gradients import Gradients as Gradients
    from shoal.training.job import Budget as Budget
    from shoal.training.job import Job as Job
    from shoal.training.loader import Loader as Loader
    from shoal.training.loop import fit as fit
    from shoal.training.run import Run as Run
    from shoal.training.track import Tracker as Tracker

_HOMES = {
    # three models, and how tasks are registered
    "open": "models.base",
    "Result": "models.base",
    "task": "tasks",
    "named": "tasks",
    # nouns
    "InputError": "core.errors",
    "Csr": "core.csr",
    "Block": "core.block",
    "Batch": "core.block",
    "load": "data",
    # who is in the batch
    "RandomBatchSampler": "sample.seeds",
    "ClusterBatchSampler": "sample.seeds",
    "EmbeddingBank": "sample.seeds",
    "balanced_clusters": "sample.clusters",
    "hard_negative_recall": "sample.hardness",
    # what they touch
    "expand": "sample.expand",
    "Hop": "sample.expand",
    "Chain": "sample.expand",
    "ShortlistSampler": "sample.expand",
    "NeighborSampler": "sample.expand",
    # how their rows arrive, and learn
    "unified": "fetch.unified",
    "UnifiedTensor": "fetch.unified",
    "TieredTable": "fetch.tiered",
    "QuantizedRows": "fetch.quantized",
    "touch_probability": "sample.touch",
    "Loader": "training.loader",
    "RowAdam": "fetch.update",
    "RowAdagrad": "fetch.update",
    "RowSGD": "fetch.update",
    # the joint, and one step
    "BagEncoder": "text.bag",
    "TransformerEncoder": "text.transformer",
    "Sage": "graph.sage",
    "Gat": "graph.gat",
    "Objective": "core.objectives",
    "in_batch": "core.objectives",
    "node_cross_entropy": "core.objectives",
    "decoupled_softmax": "core.losses",
    "hardest_triplets": "core.losses",
    "Job": "training.job",
    "Gradients": "training.gradients",
    "Budget": "training.job",
    "Callback": "training.callbacks",
    "EarlyStopping": "training.callbacks",
    "ShowProgress": "training.callbacks",
    "Tracker": "training.track",
    "fit": "training.loop",
    # how far
    "spectrum": "curvature.measure",
    "Spectrum": "curvature.spectrum",
    # how far
    "learning_rate": "step.size",
    "rescale": "step.rules",
    "rates": "step.rules",
    "evidence": "step.evidence",
    "BatchSizeLR": "step.schedule",
    "spectral_step": "step.job",
    "StepLearner": "step.learner",
    "learner_for": "step.learner",
    "DampedDiagonal": "step.damped",
    # what came of it
    "Run": "training.run",
    "with_labels": "rank.new_labels",
    "Labeler": "rank.predictor",
    "top_k": "core.search",
}

# `open` would hide the built-in one from `import *`
__all__ = sorted(set(_HOMES) - {"open"})  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(f"shoal.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
