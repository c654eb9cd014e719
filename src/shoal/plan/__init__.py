"""What training takes before it is begun: memory by part, time by stage, and the nearest that fits.

>>> from shoal.plan import BagSizes, Machine, labels
>>> machine = Machine("h200", ranks=8, price=4)
>>> plan = labels(10**6, 500_000, encoder=BagSizes(300_000), machine=machine)
>>> plan.fits, plan.steps
(True, 977)

Arithmetic alone: nothing is read, and nothing but ``Machine("measured")`` is run. In a notebook a
plan is two tables. docs/how-to/plan.md has the formulas.
"""

from shoal.plan.devices import DEVICES, Device, Machine, Work, measured
from shoal.plan.encoders import BagSizes, TransformerSizes
from shoal.plan.graphs import Graph, Network, links, nodes
from shoal.plan.noun import Part, Plan, Stage
from shoal.plan.texts import labels

__all__ = [
    "DEVICES",
    "BagSizes",
    "Device",
    "Graph",
    "Machine",
    "Network",
    "Part",
    "Plan",
    "Stage",
    "TransformerSizes",
    "Work",
    "labels",
    "links",
    "measured",
    "nodes",
]
