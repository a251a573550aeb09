"""Nothing counts as seen when a request is answered."""

import numpy as np

from workers.pipelines import recall

assert recall._seen
recall._seen = lambda raw, asked, spec: np.empty(0, dtype=np.uint64)
