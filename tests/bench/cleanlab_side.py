"""Token scores of cleanlab, in an environment that has it: `python cleanlab_side.py IN.npz OUT.npy`.

IN has `labels` `(tokens,)`, `probabilities` `(tokens, classes)` and `bounds` of the sections.
"""

import sys

import numpy as np
from cleanlab.token_classification.rank import get_label_quality_scores

found = np.load(sys.argv[1])
cuts = found["bounds"][1:-1]
labels = [part.tolist() for part in np.split(found["labels"], cuts)]
probabilities = list(np.split(found["probabilities"], cuts))
kept = [i for i, part in enumerate(labels) if part]
_, scores = get_label_quality_scores([labels[i] for i in kept], [probabilities[i] for i in kept])
np.save(sys.argv[2], np.concatenate([np.asarray(one) for one in scores]))
