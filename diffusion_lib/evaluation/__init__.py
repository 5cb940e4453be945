"""A run's record: every measurement of `metrics`, with the conditions under which it was made.

Records are plain JSON.  Two are only compared where their conditions are the same: distances
depend on the number of images, the reference, the features and the sampler.
"""

from diffusion_lib.evaluation.measurement import (
    BUDGETS,
    Conditions,
    check_enough,
    measure_samples,
    measured_under,
    read_samples,
    some,
    splits,
)
from diffusion_lib.evaluation.record import (
    check_alike,
    evaluate,
    interval,
    load,
    table,
    titles,
    verdicts,
)
