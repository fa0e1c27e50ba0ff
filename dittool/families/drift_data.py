"""The real samples of a one-step generator's run: an endless stream of latents with classes, the queues that groups are
drawn from, and those that its drawings are compared with.

Which real samples enter the queues with step s is a function of (seed, s), so stopping, resuming and any number of
processes give the same groups.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dittool.config.drift_schema import DriftConfig, MaeConfig
from dittool.data.choice import representative
from dittool.data.normalisation import LatentNorm
from dittool.data.records import LATENT
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import AGAIN
from dittool.data.shards.read import ShardSet
from dittool.data.shards.read_ahead import read_ahead
from dittool.devices import as_in_training, in_parts
from dittool.errors import BadDataError
from dittool.families.drift_groups import Groups, group_generator, group_numbers, noise_generator
from dittool.models.drift_dit import ClassConditions
from dittool.objective.drift import alpha_from_uniform, energy_distance
from dittool.objective.queues import SampleQueues, sent
from dittool.seeding import derive_seed
from dittool.shell import command_line

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks


_CPU = torch.device("cpu")
_LARGEST_EVALUATION, _EVALUATION_BATCH = 256, 64  # real samples, and those drawn at once


class LatentStream:
    """Groups of classes of a shards folder, their real samples from queues that take in a few new ones with each
    step.
    """

    def __init__(
        self,
        config: DriftConfig,
        shards: ShardSet,
        refs: Sequence[SampleRef],
        norm: LatentNorm,
        device: torch.device = _CPU,
    ) -> None:
        """`device`: where groups are made."""
        self._device = device
        self._config, self.samples = config, ClassSamples(shards, refs, norm, config.train.seed)
        self.classes = shards.classes
        drift, model = config.drift, config.model
        self.queues = SampleQueues(
            len(shards.classes), drift.class_queue, drift.global_queue, (model.channels, *model.cells), device
        )
        self._position = 0  # samples of the endless stream that have entered

    def fill(self) -> None:
        """Before the first step: until every queue can give what a group needs."""
        drift = self._config.drift
        while self.queues.held_by_all < drift.unconditional or int(self.queues.pushed.min()) < drift.positives:
            self._push(*_Arrivals(self.samples, self._position, 1)[0])

    def restore(self, state: Mapping[str, Any]) -> None:
        """The queues of a checkpoint, their samples read again from the shards."""
        self._position = state["position"]
        self.queues.restore(state, self.samples.latents)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: sample numbers, not samples."""
        return {**self.queues.to_dict(), "position": self._position}

    def batches(self, first: int, end: int, ranks: Ranks) -> Iterator[Groups]:
        """The micro-batches of steps `first` to `end`, exclusive. The new samples of a step enter the queues before its
        first one.
        """
        pushed = self._config.drift.pushed
        arriving = _Arrivals(self.samples, self._position, pushed)
        each, pinned = pushed * self.queues.sample_bytes, self._device.type == "cuda"
        workers = self._config.train.workers
        arrivals = read_ahead(arriving, range(end - first), workers, pin_memory=pinned, item_bytes=each)
        for step in range(first, end):
            # all of a step at once: where one cannot be read, the queues are still those of the step before
            self._push(*next(arrivals))
            for micro in range(self._config.train.accumulate):
                yield self._groups(group_numbers(self._config, step, micro, ranks))

    def _groups(self, numbers: range) -> Groups:
        """The groups of these numbers. Noise and real samples are made on the device; what is drawn on the host is some
        numbers for each group.
        """
        train, drift, model = self._config.train, self._config.drift, self._config.model
        noise = torch.empty(len(numbers), drift.generated, model.channels, *model.cells, device=self._device)
        names, drawn = [], []
        for row, number in enumerate(numbers):
            generator, label = group_generator(train.seed, number), self._label(number)
            uniform = torch.rand(1, generator=generator, dtype=torch.float64)
            noise[row].normal_(generator=noise_generator(generator, train.seed, number, self._device))
            group = (
                torch.tensor(label),
                alpha_from_uniform(uniform, drift.alpha_max, drift.alpha_exponent, drift.unguided)[0].float(),
                torch.randint(model.style_codebook, (drift.generated, model.style_tokens), generator=generator),
                self.queues.places_of_class(label, drift.positives, generator),
                self.queues.places_of_all(drift.unconditional, generator),
            )
            broken = [self.samples.id(number) for number in self.queues.not_finite(label, *group[-2:])]
            names.append(", ".join(broken) or f"group {number} of class '{self.classes[label]}'")
            drawn.append(group)
        labels, alpha, style, places, places_in_all = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        positives, unconditional = self.queues.of_classes(labels, places), self.queues.of_all(places_in_all)
        labels, alpha, style = (sent(part, self._device) for part in (labels, alpha, style))
        return Groups(names, 1 / train.accumulate, labels, alpha, noise, style, positives, unconditional)

    def _push(self, numbers: Tensor, labels: Tensor, latents: Tensor) -> None:
        self.queues.push(numbers, labels, latents)
        self._position += len(numbers)

    def _label(self, group: int) -> int:
        """Classes come in shuffled passes over all of them."""
        count = len(self.queues.pushed)
        return _order(self._config.train.seed, "classes", group // count, count)[group % count]


class _Arrivals(Dataset):
    """What enters the queues with each step from a position of the endless stream on, handed over at once: numbers
    (n,), classes (n,), latents (n, C, h, w).
    """

    def __init__(self, samples: ClassSamples, position: int, pushed: int) -> None:
        self._samples, self._position, self._pushed = samples, position, pushed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        first = self._position + step * self._pushed
        numbers, labels, latents = zip(*(self._samples[first + one] for one in range(self._pushed)), strict=True)
        return torch.tensor(numbers), torch.tensor(labels), torch.stack(latents)


class ClassSamples(Dataset):
    """The endless stream of real samples, in shuffled passes: at position n (sample number, class number, latent)."""

    def __init__(
        self, shards: ShardSet, refs: Sequence[SampleRef], norm: LatentNorm, seed: int, partial: bool = False
    ) -> None:
        """`partial`: some classes may have no sample. Raises `BadDataError` otherwise, and for a set without
        classes.
        """
        if not shards.classes:
            raise BadDataError(
                f"{shards.folder}: its samples have no classes",
                "embed class folders, images/CLASS/NAME.jpg, with this preset or with -s data.captions=folder",
            )
        self._shards, self._refs, self._norm, self._seed = shards, refs, norm, seed
        self._numbers = {name: number for number, name in enumerate(shards.classes)}
        self._labels = array("i", () if partial else map(self._read_label, range(len(refs))))
        present = set(self._numbers.values()) if partial else set(self._labels)
        if missing := [name for name, number in self._numbers.items() if number not in present]:
            raise BadDataError(
                f"{shards.folder}: {len(missing)} classes have no training sample, the first is '{missing[0]}'",
                "make the shards again with a smaller --holdout, or with more images of the class",
            )

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, position: int) -> tuple[int, int, Tensor]:
        number = _order(self._seed, "samples", position // len(self._refs), len(self._refs))[position % len(self._refs)]
        return number, self.label(number), self.latents(torch.tensor([number]))[0]

    def id(self, number: int) -> str:
        """The id of a sample."""
        return self._refs[number].id

    def representative(self, count: int, purpose: str) -> list[int]:
        """Numbers of at most so many samples that stand for all of them."""
        chosen = {ref.id for ref in representative(self._refs, count, purpose)}
        return [number for number, ref in enumerate(self._refs) if ref.id in chosen]

    def label(self, number: int) -> int:
        """The class of a sample. Raises `BadDataError` when its record names none of the set's."""
        return self._labels[number] if self._labels else self._read_label(number)

    def _read_label(self, number: int) -> int:
        record = self._shards.read_record(self._refs[number])
        if record.cls not in self._numbers:
            raise BadDataError(
                f"{self._shards.folder}: sample '{record.id}' is of class '{record.cls}', which the index does not"
                " list",
                AGAIN,
            )
        return self._numbers[record.cls]

    def latents(self, numbers: Tensor) -> Tensor:
        """(n, C, h, w), normalised, of sample numbers (n,)."""
        arrays = [
            torch.tensor(self._shards.read_array(self._refs[number], LATENT.member), dtype=torch.float32)
            for number in numbers.tolist()
        ]
        return self._norm.apply(torch.stack(arrays))


class LatentEvaluation:
    """Energy distance between real latents and as many drawn ones of the same classes, without guidance (α = 1)."""

    def __init__(self, config: DriftConfig, samples: ClassSamples) -> None:
        self._config = config
        numbers = samples.representative(_LARGEST_EVALUATION, "evaluation")
        self.real = samples.latents(torch.tensor(numbers))  # (n, C, h, w)
        self.labels = torch.tensor([samples.label(number) for number in numbers])

    def figures(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        drawn = self._draw(model, device)
        return {"eval_energy": energy_distance(drawn.flatten(1), self.real.flatten(1))}

    @torch.inference_mode()
    def _draw(self, model: nn.Module, device: torch.device) -> Tensor:
        config, generator = self._config.model, torch.Generator().manual_seed(derive_seed("latent evaluation"))
        noise = torch.randn(self.real.shape, generator=generator)
        style = torch.randint(config.style_codebook, (len(noise), config.style_tokens), generator=generator)

        def drawn(rows: slice) -> Tensor:
            z, labels, words = (each[rows].to(device) for each in (noise, self.labels, style))
            with as_in_training(device, self._config.train.precision):
                made = model(z, torch.ones(len(z), device=device), ClassConditions(labels, words))
            return made.float().cpu()

        return torch.cat(in_parts(drawn, len(noise), _EVALUATION_BATCH))


def require_fitting(config: DriftConfig | MaeConfig, shards: ShardSet) -> None:
    """Raises `BadDataError` when the latents are not those of the model."""
    model, stride = config.model, shards.card.vae.stride
    columns, rows = model.cells[1] * stride, model.cells[0] * stride
    found = sorted(shards.samples.bucket_counts())
    if found != [f"{columns}x{rows}"]:
        raise BadDataError(
            f"{shards.folder}: images of {', '.join(found)}; model.input {model.input} with a codec of stride {stride}"
            f" draws {columns}x{rows} alone",
            f'embed with data.buckets = ["{columns}x{rows}"], or change model.input',
        )
    facts = {
        "model.channels": (model.channels, shards.widths.latent_channels),
        "model.classes": (model.classes, len(shards.classes)),
    }
    if not shards.classes:
        facts.pop("model.classes")  # ClassSamples says what is wrong
    for key, (mine, theirs) in facts.items():
        if mine != theirs:
            raise BadDataError(f"{shards.folder}: {key} is {mine}, the data have {theirs}", f"set -s {key}={theirs}")
    if (vae := shards.card.vae.id) != config.encoders.vae:
        raise BadDataError(
            f"{shards.folder}: latents come from '{vae}', the configuration says '{config.encoders.vae}'",
            f"say it: {command_line('-s', f'encoders.vae={vae}')}",
        )


@lru_cache(maxsize=4)
def _order(seed: int, what: str, which: int, count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, what, which))).tolist()
