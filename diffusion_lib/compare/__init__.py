"""Paired comparisons: arms over seeds, intervals, verdicts.

    arms = {"eps": config.MNIST, "x_0": other}
    record = compare(Study(arms, seeds=(0, 1, 2), steps=(500, 1000), conditions=Conditions(n=500)))
    viz.table(differences(record, "Frechet distance", 1000))

An arm is an `Experiment`.  All arms of a seed start from the same weights (where their networks
have the same shapes) and see the same batches, times and noise; all of them are measured on the
same test images with the same noise, and their samples start from the same x_T.  So what arms have
in common cancels in their difference d_s at seed s, and

    mean(d) +- t_{n-1}(0.975) * sd(d) / sqrt(n)

is a 95 % interval for what another seed would have given [Student 1908].  If no arms
differed, one comparison in twenty would still leave 0 out: correct for the number of rows.

Every training and every measurement is a file under "runs", named after the experiment that made
it.  A study that was stopped goes on, and an added arm, seed or number of steps costs only itself;
where the files are gone, a record to `start` from takes their place (not their weights').
Processes share a study by locking what they work on: several of them, started by torchrun or by
hand in one folder, do it together.
"""

from diffusion_lib.compare.record import Study, describe, load, read_study, save, stored_samples
from diffusion_lib.compare.study import ERRORS, compare
from diffusion_lib.compare.tables import (
    Difference,
    difference,
    differences,
    errors,
    paired,
    pairwise_differences,
    series,
    table,
    values,
    variance_reduction,
)
