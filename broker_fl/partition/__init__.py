"""Split one data set over many learners, as the literature simulates owners of data; seeded, repeatable.

Each function gives, for every part, the positions of its examples, ascending; every example is in exactly one
part. The same arguments give the same parts.

==================  ================================================  ===================================
function            parts differ in                                   source
==================  ================================================  ===================================
``iid``             nothing                                           McMahan et al. 2017
``shards``          labels: each part has a few of them               McMahan et al. 2017
``dirichlet``       labels, and by that in size                       Yurochkin et al. 2019
``power_law``       size: a few parts have most examples              Li et al. 2020 (FedProx)
``dirichlet_sizes`` size: shares drawn from Dir(alpha)                Li et al. 2022 (NIID-Bench)
``by_key``          whatever the owners of the data differ in         Caldas et al. 2018 (LEAF)
==================  ================================================  ===================================
"""

from broker_fl.partition.dirichlet import dirichlet
from broker_fl.partition.iid import iid
from broker_fl.partition.keys import by_key
from broker_fl.partition.parts import Indices
from broker_fl.partition.shards import shards
from broker_fl.partition.sizes import dirichlet_sizes, power_law

__all__ = ["Indices", "by_key", "dirichlet", "dirichlet_sizes", "iid", "power_law", "shards"]
