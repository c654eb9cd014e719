"""The public names of shoal, grouped by what they are for; imported from here at first use."""

# three models, and how tasks are registered
from shoal.models.base import open as open
from shoal.models.hub import from_pretrained as from_pretrained
from shoal.models.base import Result as Result
from shoal.models.nodes import NodeModel as NodeModel
from shoal.models.links import LinkModel as LinkModel
from shoal.tasks import task as task
from shoal.tasks import named as named

# labels
from shoal.models.labels import LabelModel as LabelModel
from shoal.data import load as load
from shoal.data import load_labels as load_labels
from shoal.text.bag import BagEncoder as BagEncoder
from shoal.text.bag import BagSum as BagSum
from shoal.text.transformer import TransformerEncoder as TransformerEncoder
from shoal.text.transformer import TokenTransformer as TokenTransformer
from shoal.text.encoder import TextEncoder as TextEncoder
from shoal.text.encoder import encoder_kind as encoder_kind
from shoal.sample.batches import Clustered as Clustered
from shoal.sample.batches import Random as Random
from shoal.sample.batches import refreshed as refreshed
from shoal.sample.expand import dst_then_src as dst_then_src
from shoal.core.ranks import spread as spread
from shoal.sample.hardness import batch_hardness as batch_hardness
from shoal.rank.classifiers import Classifiers as Classifiers
from shoal.rank.one_vs_all import OneVsAll as OneVsAll
from shoal.rank.rankers import EncoderRanker as EncoderRanker
from shoal.rank.rankers import ClassifierRanker as ClassifierRanker
from shoal.rank.rankers import NeighborRanker as NeighborRanker
from shoal.rank.rankers import PlainRanker as PlainRanker
from shoal.rank.rankers import WordRanker as WordRanker
from shoal.rank.rankers import NameRanker as NameRanker
from shoal.rank.rankers import LinearRanker as LinearRanker
from shoal.rank.rankers import RANKERS as RANKERS
from shoal.rank.ranker import ranker_kind as ranker_kind
from shoal.rank.ensemble import NetworkCombiner as NetworkCombiner
from shoal.rank.tree import TreeCombiner as TreeCombiner
from shoal.rank.ensemble import combiner_kind as combiner_kind
from shoal.rank.predictor import Predictor as Predictor
from shoal.rank.predictor import Prediction as Prediction
from shoal.rank.fusing import Evidence as Evidence
from shoal.rank.fusing import evidence as evidence
from shoal.rank.fusing import fit_ensemble as fit_ensemble
from shoal.rank.fusing import with_known as with_known
from shoal.rank.evaluate import validate as validate
from shoal.rank.hnsw import HnswSearch as HnswSearch
from shoal.data.splits import Fold as Fold
from shoal.data.texts import Examples as Examples
from shoal.data.texts import LabelData as LabelData
from shoal.data.texts import Texts as Texts
from shoal.tasks.graphs import GraphSettings as GraphSettings
from shoal.tasks.graphs import reading as reading

# nouns
from shoal.core.errors import InputError as InputError
from shoal.core.csr import Csr as Csr
from shoal.core.block import Block as Block
from shoal.core.block import Batch as Batch
from shoal.data.nodes import NodeData as NodeData
from shoal.data.links import LinkData as LinkData
from shoal.data.graph import GraphData as GraphData
from shoal.data.graph import graph_format as graph_format
from shoal.data.graphs import load_nodes as load_nodes
from shoal.data.graphs import load_links as load_links

# who is in the batch
from shoal.sample.seeds import Subset as Subset
from shoal.sample.seeds import RandomBatchSampler as RandomBatchSampler
from shoal.sample.seeds import ClusterBatchSampler as ClusterBatchSampler
from shoal.sample.seeds import EmbeddingBank as EmbeddingBank
from shoal.sample.clusters import balanced_clusters as balanced_clusters
from shoal.sample.hardness import hard_negative_recall as hard_negative_recall

# what they touch
from shoal.sample.expand import expand as expand
from shoal.sample.expand import Hop as Hop
from shoal.sample.expand import Chain as Chain
from shoal.sample.expand import ShortlistSampler as ShortlistSampler
from shoal.sample.expand import NeighborSampler as NeighborSampler
from shoal.sample.links import PairSampler as PairSampler
from shoal.sample.links import LinkSampler as LinkSampler

# how their rows arrive, and learn
from shoal.fetch.unified import unified as unified
from shoal.fetch.unified import UnifiedTensor as UnifiedTensor
from shoal.fetch.tiered import TieredTable as TieredTable
from shoal.fetch.quantized import QuantizedRows as QuantizedRows
from shoal.sample.touch import touch_probability as touch_probability
from shoal.training.loader import Loader as Loader
from shoal.fetch.update import RowAdam as RowAdam
from shoal.fetch.update import RowAdagrad as RowAdagrad
from shoal.fetch.update import RowSGD as RowSGD

# the joint, and one step
from shoal.graph.sage import Sage as Sage
from shoal.graph.sage import SageLayer as SageLayer
from shoal.graph.sage import GcnLayer as GcnLayer
from shoal.graph.gat import Gat as Gat
from shoal.graph.gat import GatLayer as GatLayer
from shoal.graph.layers import ConvLayer as ConvLayer
from shoal.graph.layers import Layered as Layered
from shoal.graph.layers import stacked as stacked
from shoal.graph.layers import LinkEncoder as LinkEncoder
from shoal.graph.layers import full_graph as full_graph
from shoal.graph.residual import ResidualNetwork as ResidualNetwork
from shoal.graph.heuristics import LinkScorer as LinkScorer
from shoal.graph.features import feature_rows as feature_rows
from shoal.graph.features import words_of as words_of
from shoal.graph.features import WordRows as WordRows
from shoal.graph.features import word_rows as word_rows
from shoal.core.objectives import Objective as Objective
from shoal.core.objectives import in_batch as in_batch
from shoal.core.objectives import node_cross_entropy as node_cross_entropy
from shoal.core.objectives import node_binary_cross_entropy as node_binary_cross_entropy
from shoal.core.objectives import link_softmax as link_softmax
from shoal.core.objectives import link_binary_cross_entropy as link_binary_cross_entropy
from shoal.core.graph_metrics import node_metrics as node_metrics
from shoal.core.graph_metrics import link_metrics as link_metrics
from shoal.core.graph_metrics import link_ranks as link_ranks
from shoal.core.losses import decoupled_softmax as decoupled_softmax
from shoal.core.losses import hardest_triplets as hardest_triplets
from shoal.core.losses import lowest_triplets as lowest_triplets
from shoal.training.job import Job as Job
from shoal.training.gradients import Gradients as Gradients
from shoal.training.job import Budget as Budget
from shoal.training.job import Progress as Progress
from shoal.training.callbacks import Callback as Callback
from shoal.training.callbacks import EarlyStopping as EarlyStopping
from shoal.training.callbacks import ShowProgress as ShowProgress
from shoal.training.track import Tracker as Tracker
from shoal.training.loop import fit as fit

# what curvature says
from shoal.curvature.measure import spectrum as spectrum
from shoal.curvature.spectrum import Spectrum as Spectrum

# how far it may step
from shoal.step.size import learning_rate as learning_rate
from shoal.step.rules import rescale as rescale
from shoal.step.rules import rates as rates
from shoal.step.find_lr import find_lr as find_lr
from shoal.step.schedule import BatchSizeLR as BatchSizeLR
from shoal.step.job import spectral_step as spectral_step
from shoal.step.loop import spectral_learner as spectral_learner
from shoal.step.learner import StepLearner as StepLearner
from shoal.step.damped import DampedDiagonal as DampedDiagonal

# what came of it
from shoal.training.run import Run as Run
from shoal.core.search import top_k as top_k

__version__: str
