"""Sets of images as files that others read and write: `.npz` in the layout of ADM's evaluator (guided-diffusion).

    arr_0               (N, H, W, 3) uint8: samples; arr_1, where it is there, their labels
    arr_0               (N, F) floats: features of the one network that is asked for
    inception, dinov2, clip, clip-crop, clip-text …    (N, F) floats: features by network
    mu, sigma           (F,) and (F, F): mean and covariance of Inception's features, all that FID needs

Features that are written bear their network's name, and Inception's `mu` and `sigma` stand beside them, where ADM's
evaluator and pytorch-fid look. What is read comes from anybody: `untrusted/npz`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.encoders.metric_networks import FeatureNetwork
from dittool.errors import BadDataError, DitError, UsageError
from dittool.nearest import did_you_mean
from dittool.storage import file_sha256, output_folder, read_json, require_replaceable, write_atomic
from dittool.untrusted.npz import Npz, open_npz
from dittool.validate.figures.distances import Gaussian, gaussian_of

NETWORKS = ("inception", "inception-clean", "dinov2", "clip", "clip-crop")
TEXTS = "clip-text"  # features of the captions, in the space of clip-crop
FEWEST = 16  # images: with fewer, every figure is noise
_BATCH = 32
_LARGEST_RECORD = 256 << 20  # bytes of what `dit sample` writes beside its samples


@dataclass(frozen=True)
class ImageSet:
    """What is known of one set of images. All rows belong to the same images, in the same order."""

    name: str  # for people
    sha256: str  # of its file; of data of ours, their identity hash
    images: int | None  # None: statistics do not say
    features: Mapping[str, Tensor] = field(default_factory=dict)  # network or TEXTS → (N, F)
    statistics: Gaussian | None = None  # of Inception's features
    networks: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # what made the features, if it is known
    sampling: Mapping[str, object] | None = None  # guidance, steps, seeds, where they are known

    def rows(self, network: str) -> Tensor:
        """(N, F). Raises `BadDataError` where there are none."""
        if network not in self.features:
            raise BadDataError(
                f"{self.name}: holds no features of '{network}'" + (", only mu and sigma" if self.statistics else ""),
                "only fid can be measured against statistics; for others name samples or features",
            )
        return self.features[network]


@dataclass(frozen=True)
class SetFile:
    """A file that was opened; nothing large is read yet."""

    path: Path
    arrays: Npz
    pixels: np.ndarray | None  # (N, H, W, 3) uint8, mapped
    prompts: Sequence[str] | None  # of each image, from the record that `dit sample` writes beside the samples
    record: Mapping[str, object] | None

    def needs(self, network: str) -> bool:
        """Whether its features of a network are to be made of its samples. What holds no samples has what it has."""
        return self.pixels is not None and network not in self.arrays


def open_set(path: Path, option: str) -> SetFile:
    """Raises `UsageError` when there is no such file, `BadDataError` and `UnsafeFileError` for what is in it."""
    if not path.is_file():
        raise UsageError(f"{option} {path}: no such file", did_you_mean(path, "check the path"))
    arrays = open_npz(path)
    known = {*NETWORKS, "arr_0", "mu"} & arrays.members.keys()
    if not known:
        raise BadDataError(
            f"{path}: holds {arrays.described}, neither arr_0 (samples or features) nor features by network nor mu and"
            " sigma",
            "docs/validation.md describes the file; numpy.savez(F, samples) writes one",
        )
    first = arrays.array("arr_0") if "arr_0" in arrays else None
    if first is not None and first.dtype == np.uint8 and (first.ndim != 4 or first.shape[3] != 3):
        raise BadDataError(f"{path}: arr_0 is of shape {first.shape}, samples are (N, H, W, 3)", "save RGB samples")
    pixels = first if first is not None and first.dtype == np.uint8 else None
    record = _record_beside(path)
    return SetFile(path, arrays, pixels, _prompts(record), record)


def read_set(
    file: SetFile, wanted: Sequence[str], networks: Mapping[str, FeatureNetwork], talk: Talk = SILENT
) -> ImageSet:
    """The features of the wanted networks: those in the file, else of its samples by `networks`.

    Raises `BadDataError` for arrays that cannot be what they are called.
    """
    arrays, features = file.arrays, {}
    if "arr_0" in arrays and file.pixels is None and len(set(wanted) - {TEXTS}) > 1:
        raise UsageError(
            f"{file.path}: arr_0 holds features of one network, and {', '.join(wanted)} are asked for",
            "name fewer --tests, or store each network's features under its name",
        )
    for network in wanted:
        if network in arrays:
            features[network] = _rows(file, network)
        elif network != TEXTS and "arr_0" in arrays and file.pixels is None:
            features[network] = _rows(file, "arr_0")
        elif network == TEXTS and file.prompts is not None and "clip-crop" in networks:
            features[TEXTS] = texts_of(networks["clip-crop"], file.prompts)
    missing = [network for network in wanted if network in networks and network not in features]
    if file.pixels is not None and missing:
        features |= extracted(file.pixels, {network: networks[network] for network in missing}, talk)
    counts = {len(rows) for rows in features.values()}
    if len(counts) > 1:
        raise BadDataError(
            f"{file.path}: features of {sorted(counts)} images, which should be the same", "save it again"
        )
    images = counts.pop() if counts else None
    if images is not None and images < FEWEST:
        raise BadDataError(f"{file.path}: {images} images, a set has at least {FEWEST}", "draw more")
    made_by = {network: networks[network].to_json() for network in missing}
    sampling = file.record.get("sampling") if file.record else None
    return ImageSet(
        file.path.name,
        file_sha256(file.path),
        images,
        features,
        _statistics(file),
        made_by,
        sampling if isinstance(sampling, dict) else None,
    )


def extracted(pixels: np.ndarray, networks: Mapping[str, FeatureNetwork], talk: Talk = SILENT) -> dict[str, Tensor]:
    """(N, F) of each network, a batch of samples in memory at a time."""
    parts: dict[str, list[Tensor]] = {name: [] for name in networks}
    with talk.progress("features", len(pixels), "image") as task:
        for start in range(0, len(pixels), _BATCH):
            batch = pixels[start : start + _BATCH]
            for name, network in networks.items():
                parts[name].append(network.features(batch))
            task.advance(len(batch))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def texts_of(network: FeatureNetwork, captions: Sequence[str]) -> Tensor:
    """(N, F)."""
    read: Callable[[Sequence[str]], Tensor] | None = network.texts
    assert read is not None, "clip-crop reads texts"
    return torch.cat([read(captions[start : start + _BATCH]) for start in range(0, len(captions), _BATCH)])


def require_features_file(path: Path, inputs: Sequence[Path]) -> None:
    """Before features are written: the place must be an `.npz`, and hold nothing but features. Raises `UsageError`."""
    if path.suffix.lower() != ".npz":
        raise UsageError(f"--features-out {path}: features are written as .npz", f"for example: {path.stem}.npz")
    output_folder(path.parent)
    require_replaceable(path, inputs, False, _holds_features, "--features-out")


def _holds_features(path: Path) -> bool:
    try:
        return open_npz(path).members.keys() <= {*NETWORKS, TEXTS, "mu", "sigma"}
    except DitError:
        return False


def write_features(path: Path, found: ImageSet) -> None:
    """Features by network, and Inception's `mu` and `sigma`. Raises OSError."""
    arrays: dict[str, Any] = {name: rows.float().numpy() for name, rows in found.features.items()}
    if "inception" in found.features:
        gaussian = gaussian_of(found.features["inception"])
        arrays |= {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}
    write_atomic(path, lambda file: np.savez(file, **arrays))


def _rows(file: SetFile, name: str) -> Tensor:
    array = file.arrays.array(name)
    if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
        what = "NaN or infinity" if array.ndim == 2 and array.dtype.kind == "f" else f"{array.shape} of {array.dtype}"
        raise BadDataError(f"{file.path}: '{name}' is {what}, features are finite floats (N, F)", "save it again")
    return torch.from_numpy(np.array(array, np.float32))


def _statistics(file: SetFile) -> Gaussian | None:
    if not {"mu", "sigma"} <= file.arrays.members.keys():
        return None
    mean, covariance = (np.array(file.arrays.array(name), np.float64) for name in ("mu", "sigma"))
    fits = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    if not fits or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise BadDataError(
            f"{file.path}: mu of {mean.shape} and sigma of {covariance.shape} are no mean and covariance",
            "mu is (F,), sigma (F, F), both finite",
        )
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))


def record_of(path: Path) -> Path:
    """What `dit sample` writes beside the samples of an `.npz`: prompts, seeds and settings."""
    return path.with_suffix(".json")


def _prompts(record: Mapping[str, object] | None) -> list[str] | None:
    prompts = record.get("prompts") if record else None
    return [str(prompt) for prompt in prompts] if isinstance(prompts, list) else None


def _record_beside(path: Path) -> Mapping[str, object] | None:
    beside = record_of(path)
    if not beside.is_file() or beside.stat().st_size > _LARGEST_RECORD:
        return None
    value = read_json(beside)
    return value if isinstance(value, dict) else None
