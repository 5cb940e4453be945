"""A run's record: every measurement of `metrics`, with the conditions under which it was made.

Records are plain JSON.  Two are only compared where their conditions are the same: distances
depend on the number of images, the reference, the features and the sampler.
"""

from diffusion_lib.evaluation.measurement import (
    BUDGETS,
    Conditions,
    Plan,
    dataset_name,
    evaluate,
    measure_likelihood,
    measure_samples,
    plan,
    random_subset,
    sample,
)
from diffusion_lib.evaluation.npz import read_samples
from diffusion_lib.evaluation.record import load
from diffusion_lib.evaluation.tables import (
    check_same_conditions,
    differences,
    distinguishing_labels,
    effects,
    table,
)
