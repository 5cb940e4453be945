"""A run's record: every measurement of `metrics`, with the conditions under which it was made.

Records are plain JSON.  Two are only compared where their conditions are the same: distances
depend on the number of images, the reference, the features and the sampler.
"""

from diffusion_lib.evaluation.measurement import (
    BUDGETS,
    Conditions,
    check_enough,
    load_splits,
    measure_samples,
    random_subset,
    read_samples,
    resolve_conditions,
)
from diffusion_lib.evaluation.record import (
    check_same_conditions,
    distinguishing_labels,
    evaluate,
    load,
    table,
    verdicts,
)
