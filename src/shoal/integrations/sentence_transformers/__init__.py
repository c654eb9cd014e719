"""shoal's batches, losses and metrics for the trainer of sentence-transformers (6.2 or later).

:func:`number_pairs` gives the rows of data sets ids that pass through the trainer's ``label``
column; :class:`NgameBatches` is what its ``batch_sampler`` argument takes, and makes the callback
that goes with it; :class:`MaskedSoftmaxLoss` and :class:`HardestTripletsLoss` take the known
positives out of the in-batch negatives; :func:`xc_evaluator` reports the metrics of extreme
classification. ``docs/how-to/integrations.md`` shows them together.
"""

from shoal.integrations.batches import NgameBatchSampler as NgameBatchSampler
from shoal.integrations.sentence_transformers.batches import NgameBatches as NgameBatches
from shoal.integrations.sentence_transformers.batches import encode as encode
from shoal.integrations.sentence_transformers.evaluation import xc_evaluator as xc_evaluator
from shoal.integrations.sentence_transformers.losses import (
    HardestTripletsLoss as HardestTripletsLoss,
)
from shoal.integrations.sentence_transformers.losses import MaskedSoftmaxLoss as MaskedSoftmaxLoss
from shoal.integrations.sentence_transformers.losses import cached as cached
from shoal.integrations.sentence_transformers.pairs import number_pairs as number_pairs
