"""Measurements that mean the same for every schedule, prediction and sampler.

Likelihood     `bits_per_dim`, the variational bound; `ode_bits_per_dim`, the probability flow
Errors         `errors_per_t`: of x_0_hat, eps_hat and v_hat, on fixed draws
Samples        `quality` of a set beside a reference, in a small classifier's features: Frechet and
               kernel distance, precision, recall, classes; `fidelity` in Inception's or DINOv2's
Memorization   `nearest_distances` to the training images
Labels         `label_accuracy_and_diversity` of samples that were drawn for labels

An `Interval` is a number with its 95 % interval.  For the bits it is 1.96 standard errors to each
side.  For distances and shares it comes from a bootstrap: images are drawn again with replacement,
200 times, and the middle 95 % of what comes out is the interval.  Precision and recall would not
survive that, as an image drawn twice is its own nearest neighbor: there random halves stand in.

A distance between finite sets is not 0 even where both come from one distribution: hold every
distance against its floor, the same measurement of real images, as many of them.  Near that floor
the bootstrap's intervals of distances are too wide, as drawing images again moves two nearly equal
sets apart by as much as they are apart already: verdicts there say "not distinguishable" too often,
and "different" hardly ever wrongly.
"""

from diffusion_lib.metrics.intervals import Interval
from diffusion_lib.metrics.likelihood import (
    Bits,
    Bound,
    Errors,
    bits_per_dim,
    errors_per_t,
    ode_bits_per_dim,
)
from diffusion_lib.metrics.samples import (
    CONFIDENT,
    check_count,
    fidelity,
    frechet_distance,
    kernel_distance,
    label_accuracy_and_diversity,
    memorization,
    nearest_distances,
    point_estimates,
    precision_recall,
    quality,
)
