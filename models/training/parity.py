"""Whether exported towers give what PyTorch gives, on real samples, whatever the batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import signature
from models.tensors import Encoding, Inputs
from models.training.samples import HISTORY_VECTORS, TrainingSet
from models.training.towers import ItemTower, UserTower

TOLERANCE = 1e-5
ROWS = 64
