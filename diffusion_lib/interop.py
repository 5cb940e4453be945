"""Denoisers of Hugging Face diffusers, in and out.

    denoiser = from_diffusers("google/ddpm-cifar10-32")
    to_diffusers(denoiser, "exported")    # DDPMPipeline.from_pretrained("exported") samples from it

diffusers stores a network, a `UNet2DModel`, and the settings of a scheduler:

    prediction_type: epsilon, sample, v_prediction    prediction: eps, x_0, v
    trained_betas; beta_schedule and its range        schedule
    clip_sample, clip_sample_range                    clip
    timestep 0 .. T - 1                               t = 1 .. T

The noise of a step and the times of few steps (`timestep_spacing`, `steps_offset`) are arguments of
a sampler here, not parts of a denoiser: `variance_type` fixed_small is the default of
`samplers.ddpm`, fixed_large its `variance=samplers.beta`, learned_range a network of two outputs.
diffusers is imported only by the functions that need it.

To add an export format, write one function (denoiser, folder) and list it in `FORMATS`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_lib import predictions
from diffusion_lib.checkpoints import check_weights, prediction_name
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import files

# What DDPM's network is, in the words of diffusers' UNet2DModel.
_DDPM = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "attention_head_dim": None,
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": predictions.eps,
    "sample": predictions.x_0,
    "v_prediction": predictions.v,
}
# Those that hold what a network was trained with; the settings of other schedulers lack some of it.
_SCHEDULERS = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Names that attention had in older models.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_diffusers(denoiser: Denoiser, folder: str | Path) -> None:
    """Write a folder that `diffusers.DDPMPipeline.from_pretrained` loads and samples from.

    The pipeline takes the steps of `samplers.ddpm`, by default 1,000 of them: where T is smaller,
    give it `num_inference_steps`.  Fewer than T are at the times of `schedule.timesteps` where
    their number divides T; with a learned variance they go evenly from T to t = 1 instead.

    Args:
        denoiser: denoiser with a `UNet` that predicts `eps`, `x_0` or `v`, on any device.
        folder: folder to write; it may exist if it is empty.

    Raises:
        ValueError, TypeError: a part that diffusers has nothing for, named.
        OSError: something is in the folder, or it could not be written; then it is as before.
    """
    diffusers = _diffusers()
    network, schedule = denoiser.network, denoiser.schedule
    if not isinstance(network, UNet):
        raise TypeError(f"only a UNet can be exported; this network is a {type(network).__name__}")
    names = {prediction: name for name, prediction in _PREDICTIONS.items()}
    if denoiser.prediction not in names:
        name = prediction_name(denoiser.prediction)
        raise ValueError(f"diffusers knows no prediction {name!r}: export eps, x_0 or v")
    if schedule.betas is None:
        raise ValueError("diffusers' DDPMScheduler takes betas, and this schedule has none")
    unet = diffusers.UNet2DModel(**_description(network))
    with torch.no_grad():
        for weight, target in _weights(network, unet):
            target.copy_(weight)
    learned = network.config.outputs == 2
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=schedule.num_timesteps,
        # Always as numbers: diffusers' named schedules are other functions of T than ours.
        trained_betas=schedule.betas.tolist(),
        prediction_type=names[denoiser.prediction],
        variance_type="learned_range" if learned else "fixed_small",
        clip_sample=denoiser.clip is not None,
        clip_sample_range=1.0 if denoiser.clip is None else denoiser.clip,
        # Both begin at T.  In a last step from t > 1 diffusers adds noise: next to none with
        # a fixed variance, but too much with a learned one, whose last step must be from t = 1.
        timestep_spacing="linspace" if learned else "trailing",
    )
    with files.atomic_folder(folder) as temporary:
        diffusers.DDPMPipeline(unet, scheduler).save_pretrained(temporary)


FORMATS: dict[str, Callable[[Denoiser, str | Path], None]] = {"diffusers": to_diffusers}


def from_diffusers(path_or_name: str | Path) -> Denoiser:
    """Read a pipeline of diffusers, or a network with its scheduler's settings.

    Models of the google/ddpm-* family can be read, and others with DDPM's network in any size.
    The defaults of diffusers' UNet2DModel describe another network, so most models of its training
    script and course cannot; the error names each difference.

    Args:
        path_or_name: folder, or name of a model on huggingface.co, which is downloaded; the files
            lie in `unet` and `scheduler`, or side by side, as in google/ddpm-cifar10-32.

    Returns:
        A denoiser, float32 on the CPU, in evaluation mode.  `samplers.ddpm` takes the steps of
        DDPMPipeline, and `samplers.ddim` those of DDIMPipeline with `use_clipped_model_output`.

    Raises:
        ValueError: a part that a `Denoiser` has nothing for, named; a damaged file; weights that
            are in several files, of a variant, or in a pickle, which could execute code.
        FileNotFoundError: neither a folder nor a model that could be downloaded; no settings.
    """
    diffusers = _diffusers()
    folder = _folder_of(path_or_name)
    if (folder / "model_index.json").is_file():
        _read_settings(folder, "", "model_index.json", ("DDPMPipeline", "DDIMPipeline"))
    network = _read_network(diffusers, folder)
    path, settings = _read_settings(folder, "scheduler", "scheduler_config.json", _SCHEDULERS)
    with _add_path_to_error(path):
        scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
        return Denoiser(network, *_parts(scheduler, network.config.outputs)).eval()


@torch.no_grad()
def unet_from_diffusers(source: nn.Module) -> UNet:
    """Convert a `UNet2DModel` of the DDPM family: same input, same output; float32 on the CPU.

    Raises:
        ValueError: the source has a part that `UNet` does not have, named.
    """
    settings: Mapping[str, Any] = source.config  # pyright: ignore[reportAssignmentType]
    config, groups = _config(settings), settings["norm_num_groups"]
    unet = UNet(config)
    if _groups(unet) != {groups}:
        unet = UNet(replace(config, groups=groups))
    for weight, original in _weights(unet, source):
        weight.copy_(original)
    return unet.train(source.training)


def _diffusers() -> ModuleType:
    try:
        import diffusers

        from diffusion_lib.system import torchvision  # noqa: F401  (first: diffusers imports it too)

        _ = diffusers.DDPMPipeline  # pyright: ignore[reportPrivateImportUsage]  # imports the rest
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a package that it imports
        raise ImportError(
            f"diffusers is needed for this and could not be imported ({error}): "
            "pip install diffusers"
        ) from error
    return diffusers


def _folder_of(path_or_name: str | Path) -> Path:
    """Return the folder, or download a model: only files of it that cannot execute code."""
    path, name, reason = Path(path_or_name).expanduser(), str(path_or_name), "it has no such name"
    if path.is_dir():
        return path
    if not path.exists() and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        from huggingface_hub import snapshot_download  # comes with diffusers

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", f"*{_WEIGHTS}"]))
        except Exception as error:  # of the network, of its client, of a name that cannot be one
            reason = f"it could not be downloaded: {' '.join(str(error).split())}"
    raise FileNotFoundError(
        f"{name} is not a folder here, nor a model on huggingface.co ({reason}). Give the folder "
        "that diffusers saved, or a name such as google/ddpm-cifar10-32."
    )


@contextmanager
def _add_path_to_error(path: Path) -> Iterator[None]:
    """Raise any error, of diffusers or of this module, as a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # diffusers raises errors of many kinds at unexpected settings
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: {kind}{error}") from error


def _read_settings(
    folder: Path, part: str, name: str, kinds: tuple[str, ...]
) -> tuple[Path, dict[str, Any]]:
    """Read the settings of a part of a pipeline, in a folder of its own or next to the others."""
    path = folder / part / name
    path = path if path.is_file() else folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has neither {part}/{name} nor {name}: is it a folder that diffusers saved?"
        )
    with _add_path_to_error(path):
        settings = json.loads(path.read_text())
        kind = settings.get("_class_name") if isinstance(settings, dict) else None
        if kind not in kinds:
            raise ValueError(
                f"_class_name is {kind!r}, and what can be read is {' or '.join(kinds)}"
            )
    return path, settings


def _read_network(diffusers: ModuleType, folder: Path) -> UNet:
    path, settings = _read_settings(folder, "unet", "config.json", ("UNet2DModel",))
    weights = path.with_name(_WEIGHTS)
    if not weights.is_file():
        names = sorted(file.name for file in path.parent.glob(f"{weights.stem}*.*"))
        raise ValueError(
            f"{path.parent} has {', '.join(names[:3]) or 'no weights'}, but what is read is "
            f"{_WEIGHTS} alone, and no .bin file, a pickle, which can execute code. Convert one "
            "that you trust: diffusers.UNet2DModel.from_pretrained(FOLDER).save_pretrained(NEW), "
            "with variant='fp16' where the names have that; copy scheduler_config.json there."
        )
    with _add_path_to_error(path):
        network = diffusers.UNet2DModel.from_config(settings)
        _config(network.config)
    with _add_path_to_error(weights):
        tensors = load_file(weights)
    old = re.compile(rf"\.({'|'.join(_RENAMED)})\.")
    tensors = {old.sub(lambda m: f".{_RENAMED[m[1]]}.", k): x for k, x in tensors.items()}
    check_weights(network.state_dict(), tensors, weights)
    network.load_state_dict(tensors)
    return unet_from_diffusers(network.eval())


def _parts(scheduler: Any, outputs: int) -> tuple[NoiseSchedule, Prediction, float | None]:
    """Convert a scheduler to the schedule, prediction and clip of a denoiser."""
    config = scheduler.config
    different = []
    if config["prediction_type"] not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        different.append(f"prediction_type is {config['prediction_type']!r}, not one of {known}")
    if config["thresholding"]:
        different.append("thresholding is on; images are only clipped here")
    # DDIM's may stop at alpha_bar_1.
    if getattr(scheduler, "final_alpha_cumprod", 1) != 1:
        different.append("set_alpha_to_one is False; the last step ends at the clean image here")
    variance = config.get("variance_type")
    if variance == "learned" or (variance == "learned_range") != (outputs == 2):
        different.append(f"variance_type is {variance!r}, of a network of {outputs} output(s)")
    T, betas = config["num_train_timesteps"], scheduler.betas
    if len(betas) != T:
        different.append(f"num_train_timesteps is {T}, of {len(betas)} betas")
    if different:
        raise ValueError(f"not what a denoiser of this library can be: {'; '.join(different)}")
    if config["trained_betas"] is not None and not config["rescale_betas_zero_snr"]:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)  # not rounded to float32
    clip = float(config["clip_sample_range"]) if config["clip_sample"] else None
    return NoiseSchedule.from_betas(betas), _PREDICTIONS[config["prediction_type"]], clip


def _groups(network: nn.Module) -> set[int]:
    """Return the numbers of groups of a network's layers."""
    return {norm.num_groups for norm in network.modules() if isinstance(norm, nn.GroupNorm)}


def _description(network: UNet) -> dict[str, Any]:
    """Return the arguments of `UNet2DModel` that make the same network."""
    config, groups = network.config, _groups(network)
    different = []
    if config.classes:
        different.append(f"classes is {config.classes}, but its pipeline passes no labels on")
    if config.patch > 1:
        different.append(f"patch is {config.patch}, but it takes no patches of pixels as one")
    if len(groups) > 1:
        numbers = sorted(groups)
        different.append(f"groups is None, here {numbers}, but it has one number for all layers")
    if different:
        raise ValueError(
            f"diffusers' network cannot hold this one: {'; '.join(different)}. Train one that it "
            "can hold: UNetConfig(classes=0, patch=1, groups=4), or another divisor of the width, "
            "as in the preset mnist_diffusers."
        )
    channels, height, width = config.image_shape
    attends = [height // 2**level in config.attention for level in range(len(config.multipliers))]
    return _DDPM | {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": config.outputs * channels,
        "block_out_channels": tuple(config.width * m for m in config.multipliers),
        "layers_per_block": config.num_blocks,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "dropout": config.dropout,
        "norm_num_groups": groups.pop(),
    }


def _weights(unet: UNet, other: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair weights of ours, or thirds of them, with those of diffusers' network, in its shapes."""
    for name, other_names in _names(unet):
        module, others = unet.get_submodule(name), [other.get_submodule(n) for n in other_names]
        for part in ("weight", "bias"):
            pieces = getattr(module, part).chunk(len(others))
            for piece, weight in zip(pieces, (getattr(o, part) for o in others), strict=True):
                yield piece.view(weight.shape), weight


def _config(settings: Mapping[str, Any]) -> UNetConfig:
    """Convert the settings of a `UNet2DModel`, or raise a ValueError that names each difference."""
    different = [
        f"{name} is {settings[name]!r}, not {expected!r}"
        for name, expected in _DDPM.items()
        if settings.get(name, expected) != expected
    ]
    channels, widths = settings["in_channels"], settings["block_out_channels"]
    attends = {"DownBlock2D": False, "AttnDownBlock2D": True}
    down, up = list(settings["down_block_types"]), list(settings["up_block_types"])
    if not set(down) <= set(attends) or [kind.replace("Up", "Down") for kind in up[::-1]] != down:
        different.append(f"the blocks are {down} and {up}, not plain or Attn ones, alike both ways")
    size, dim = settings["sample_size"], settings.get("time_embedding_dim")
    if size is None:
        different.append("sample_size is None, so the size of its images is unknown")
    if dim not in (None, 4 * widths[0]):
        different.append(f"time_embedding_dim is {dim}, not {4 * widths[0]}")
    if settings["out_channels"] not in (channels, 2 * channels):
        different.append(f"{settings['out_channels']} channels of output for {channels} of input")
    if any(width % widths[0] for width in widths):
        different.append(f"block_out_channels are {widths}, not multiples of the first")
    if different or size is None:
        raise ValueError(f"not this library's network: {'; '.join(different)}")
    height, width = (size, size) if isinstance(size, int) else size
    return UNetConfig(
        image_shape=(channels, height, width),
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        num_blocks=settings["layers_per_block"],
        attention=tuple(height // 2**i for i, kind in enumerate(down) if attends[kind]),
        dropout=settings["dropout"],
        outputs=settings["out_channels"] // channels,
    )


def _names(unet: UNet) -> Iterator[tuple[str, list[str]]]:
    """Pair our name of each module that has weights with diffusers' names of it or of its parts."""
    yield "conv_in", ["conv_in"]
    yield "embed_time.0", ["time_embedding.linear_1"]
    yield "embed_time.2", ["time_embedding.linear_2"]
    blocks, levels = unet.config.num_blocks, len(unet.config.multipliers)
    down, up = iter(range(len(unet.down))), iter(range(len(unet.up)))
    for level in range(levels):
        if level > 0:
            yield f"down.{next(down)}.conv", [f"down_blocks.{level - 1}.downsamplers.0.conv"]
        for j in range(blocks):
            yield from _of_block(unet, f"down.{next(down)}", f"down_blocks.{level}", j)
    for j in range(2):
        yield from _of_block(unet, f"middle.{j}", "mid_block", j)
    for level in range(levels):
        for j in range(blocks + 1):
            yield from _of_block(unet, f"up.{next(up)}", f"up_blocks.{level}", j)
        if level < levels - 1:
            yield f"up.{next(up)}.conv", [f"up_blocks.{level}.upsamplers.0.conv"]
    yield "norm_out", ["conv_norm_out"]
    yield "conv_out", ["conv_out"]


def _of_block(unet: UNet, name: str, other: str, j: int) -> Iterator[tuple[str, list[str]]]:
    block, resnet = unet.get_submodule(name), f"{other}.resnets.{j}"
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{name}.{part}", [f"{resnet}.{part}"]
    yield f"{name}.time", [f"{resnet}.time_emb_proj"]
    if not isinstance(block.skip, nn.Identity):
        yield f"{name}.skip", [f"{resnet}.conv_shortcut"]
    if not isinstance(block.attention, nn.Identity):
        attention = f"{other}.attentions.{j}"
        yield f"{name}.attention.norm", [f"{attention}.group_norm"]
        yield f"{name}.attention.qkv", [f"{attention}.to_{part}" for part in "qkv"]
        yield f"{name}.attention.project", [f"{attention}.to_out.0"]
