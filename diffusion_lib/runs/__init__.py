"""Runs on disk: train, resume, load, sample."""

from diffusion_lib.runs.driver import train
from diffusion_lib.runs.folder import fingerprint
from diffusion_lib.runs.run import GuidedRun, Run, load, released, releases
from diffusion_lib.runs.sampling import sample, sample_batches, write_npz
