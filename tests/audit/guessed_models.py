"""Models whose inputs nobody describes: each asks for something that a name alone does not tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH = 16


class _Model(nn.Module):
    """Tokens of a latent of 4 channels, moved by a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.mix, self.out = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 16)
        self.time = nn.Linear(1, WIDTH)

    def run(self, x: Tensor, t: Tensor, c: Tensor | float = 0.0) -> Tensor:
        tokens = self.inward(nn.functional.unfold(x, 2, stride=2).transpose(1, 2))  # (B, N, D)
        tokens = tokens + self.mix(tokens) * (self.time(t[:, None].float() / 1000) + c)[:, None]
        return nn.functional.fold(self.out(tokens).transpose(1, 2), x.shape[-2:], 2, stride=2)


class NoConvolution(_Model):
    """Channels that only a product of matrices tells."""

    def forward(self, x, t):
        return self.run(x, t)


class Places(_Model):
    """Arguments that have no names."""

    def forward(self, *inputs):
        x, t = inputs
        return self.run(x, t)


class PlacesHandedOn(_Model):
    """Arguments without names, of which the source says nothing."""

    def forward(self, *inputs):
        return self.run(*inputs)


class NeverInside(_Model):
    """An object with attributes, one of which is not known."""

    def forward(self, batch):
        return self.run(batch.latents, batch.timestep, batch.secret("sesame"))


def by_place(model, height, width):
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, height or 8, width or 8, generator=drawn), torch.tensor([100.0, 700.0])


class OptionalMask(_Model):
    """A mask that may be left out, and that is refused in any usual shape."""

    def forward(self, x, t, mask=None):
        if mask is not None and mask.shape[1:] != (3, *x.shape[-2:]):
            raise ValueError("mask must be (B, 3, H, W)")
        return self.run(x, t)


class NeededOption(_Model):
    """A text that has a default, and is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(23, WIDTH)

    def forward(self, x, t, prompt_features=None):
        return self.run(x, t, self.text(prompt_features).mean(1))


class TwoWidths(_Model):
    """Two texts of different widths, keyword only, one of them pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(23, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, t, *, text_tokens, pooled_text):
        return self.run(x, t, self.first(text_tokens).mean(1) + self.second(pooled_text))


class Keys(_Model):
    """A dictionary whose keys stand in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.label = nn.Linear(23, WIDTH), nn.Embedding(11, WIDTH)

    def forward(self, x, t, cond):
        return self.run(x, t, self.text(cond["text"]).mean(1) + self.label(cond.get("label")))


@dataclass
class Condition:
    text: Tensor
    pooled: Tensor


class Annotated(_Model):
    """A dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.pooled = nn.Linear(23, WIDTH), nn.Linear(29, WIDTH)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.run(x, t, self.text(condition.text).mean(1) + self.pooled(condition.pooled))


class Listed(_Model):
    """A list of one text a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(23, WIDTH)

    def forward(self, x: Tensor, t: Tensor, texts: list[Tensor]) -> Tensor:
        return self.run(x, t, torch.stack([self.text(text).mean(0) for text in texts]))


class Frames(_Model):
    """A video, of which one frame is taken."""

    def forward(self, hidden_states, timestep):
        _batch, _channels, _frames, _height, _width = hidden_states.shape
        return self.run(hidden_states[:, :, 0], timestep)[:, :, None]


class Words(_Model):
    """Numbers of words, of a table that the labels' is smaller than."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)

    def forward(self, x, t, prompt):
        return self.run(x, t, self.table(prompt).mean(1))


class LayerByLayer(_Model):
    """A text's states, one tensor for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = nn.ModuleList([nn.Linear(23, WIDTH) for _ in range(5)])

    def forward(self, x, t, text_layers: list):
        return self.run(x, t, sum(project(text_layers[i]).mean(1) for i, project in enumerate(self.texts)))


class OfSamples(_Model):
    """A latent that comes, and is answered, as a list of samples."""

    def forward(self, x: list[Tensor], t: Tensor) -> list[Tensor]:
        return [answer for sample, time in zip(x, t, strict=True) for answer in self.run(sample[None], time[None])]


def turned(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, N, D) rotated by angles (N, D), neighbours in pairs."""
    pairs = tokens.unflatten(-1, (-1, 2))
    return tokens * cos + torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2) * sin


class RotaryPair(_Model):
    """Cosines and sines of rotary angles, which may be left out."""

    def forward(self, x, t, image_rotary_emb: tuple[Tensor, Tensor] | None = None):
        if image_rotary_emb is not None:
            cos, sin = image_rotary_emb
            t = t + turned(torch.ones(1, x.shape[-2] * x.shape[-1] // 4, WIDTH), cos, sin).mean()
        return self.run(x, t)


class RotaryTable(_Model):
    """A table of complex turns by rows and columns, and keyword arguments that must be given."""

    def forward(self, x, t, freqs_cis: Tensor, attention_kwargs=None):
        options = dict(**attention_kwargs)
        turns = freqs_cis[: x.shape[-2] // 2, : x.shape[-1] // 2].flatten(0, 1) * torch.ones(WIDTH // 2)
        assert torch.is_complex(turns) and len(turns) == x.shape[-2] * x.shape[-1] // 4 and not options
        return self.run(x, t + turns.real.mean())


class References(_Model):
    """Pictures beside the latent, of which there may be none, and where they belong."""

    def forward(self, x, t, input_images: list[Tensor], places: dict[int, list[int]], dropped):
        for sample in list(places.keys()):
            t = t + input_images[sample].mean()
        c = torch.ones(len(x), WIDTH)
        c[dropped] *= 0
        assert dropped.dtype == torch.bool
        return self.run(x, t, c)


class Joint(_Model):
    """Places of the text's tokens and the latent's in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.place = nn.Linear(23, WIDTH), nn.Linear(3, WIDTH)

    def forward(self, hidden_states, timestep, encoder_hidden_states, position_ids):
        tokens = torch.cat([self.text(encoder_hidden_states), self.inward(hidden_states)], dim=1)
        tokens = tokens + self.place(position_ids[None]) + self.time(timestep[:, None] / 1000)[:, None]
        return self.out(self.mix(tokens))[:, encoder_hidden_states.shape[1] :]


class Apart(_Model):
    """Places of the text's tokens and the latent's, each in a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.place = nn.Linear(23, WIDTH), nn.Linear(3, WIDTH)

    def forward(self, hidden_states, timestep, encoder_hidden_states, txt_ids, img_ids):
        tokens = torch.cat([self.text(encoder_hidden_states), self.inward(hidden_states)], dim=1)
        tokens = tokens + self.place(torch.cat([txt_ids, img_ids])[None]) + self.time(timestep[:, None] / 1000)[:, None]
        return self.out(self.mix(tokens))[:, encoder_hidden_states.shape[1] :]


class ControlPicture(_Model):
    """Another picture beside the latent, of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.control = nn.Conv2d(4, 16, 2, 2)

    def forward(self, x, t, control_states):
        tokens = self.control(control_states).flatten(2).transpose(1, 2)
        return self.run(x, t, tokens.mean(1))


class Head(nn.Module):
    """A head of an autoregressive model: one vector of conditions for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.time, self.cond = nn.Linear(9, WIDTH), nn.Linear(1, WIDTH), nn.Linear(23, WIDTH)
        self.scale, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 9)

    def forward(self, x, t, c):
        vector = self.time(t[:, None].float() / 1000) + self.cond(c)
        return self.out(self.inward(x) * (1 + self.scale(vector)))


class MayBeLeftOut(_Model):
    """Conditions that are None by default, one of them a picture, and arguments that nothing reads or that are no
    conditions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.augment, self.classes = nn.Linear(9, WIDTH), nn.Embedding(11, WIDTH)
        self.hinted = nn.Conv2d(3, WIDTH, 2, 2)

    def forward(self, x, t, aug_cond=None, class_cond=None, hint=None, size=None, mask=None, dtype=None):
        c = self.augment(x.new_zeros(len(x), 9) if aug_cond is None else aug_cond)
        c = c if class_cond is None else c + self.classes(class_cond)
        c = c if hint is None else c + self.hinted(hint).mean((2, 3))
        return self.run(x if dtype is None else x.to(dtype), t, c)


class RefusesAMask(_Model):
    """One mask fits nothing that is tried, as PixArt's over all tokens; another one beside it does."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(23, WIDTH)

    def forward(self, x, t, context, attention_mask=None, encoder_attention_mask=None):
        if attention_mask is not None:
            raise ValueError("the shape of the mask is not right")
        context = self.project(context)
        if encoder_attention_mask is not None:
            context = context * encoder_attention_mask[..., None]
        return self.run(x, t, context.mean(1))


class StatesBroughtAlong(_Model):
    """Tokens that, where they are given, take the place of a part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, WIDTH)

    def forward(self, x, t, states=None):
        return self.run(x, t, self.encoder(x.mean((2, 3))) if states is None else states.mean(1))


class Sized(_Model):
    """The size of the original picture under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.by_size, self.by_ratio = nn.Linear(2, WIDTH), nn.Linear(1, WIDTH)

    def forward(self, x, t, data_info):
        return self.run(x, t, self.by_size(data_info["img_hw"]) + self.by_ratio(data_info["aspect_ratio"]))


class DroppedInTraining(_Model):
    """In training mode a text must have the axis of length 1 that PixArt's has."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(23, WIDTH)
        self.register_buffer("null", torch.zeros(9, 23))

    def forward(self, x, t, text):
        if self.training:
            dropped = torch.rand(len(text)) < 0.5
            text = torch.where(dropped[:, None, None, None], self.null[: text.shape[2]], text)
        return self.run(x, t, self.text(text).flatten(1, -2).mean(1))


class AcrossTheGrid(_Model):
    """Rows and columns of each token, along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.of_tokens = nn.Linear(12, WIDTH)

    def forward(self, x, t, grid):
        rows, columns = grid[:, 0, :, None], grid[:, 1, :, None]
        return self.of_tokens(x) + rows.sin() + columns.cos() + self.time(t[:, None].float())[:, None]


class FramesLast(nn.Module):
    """(B, T, H, W, C), with the places of frames, rows and columns each by itself."""

    def __init__(self):
        super().__init__()
        self.into, self.time, self.out = nn.Linear(16, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 16)

    def forward(self, hidden_states, timestep, visual_rope_pos: tuple):
        batch, frames, height, width, channels = hidden_states.shape
        grid = frames, height // 2, width // 2
        x = hidden_states.view(batch, frames, grid[1], 2, grid[2], 2, channels).transpose(3, 4).flatten(4)
        places = zip(grid, visual_rope_pos, strict=True)
        turns = (place.sin().view(*(-1 if j == i else 1 for j in range(3)), 1) for i, (_, place) in enumerate(places))
        z = self.into(x) + sum(turns) + self.time(timestep[:, None].float())[:, None, None, None]
        z = self.out(z).unflatten(-1, (2, 2, channels)).transpose(3, 4)
        return z.reshape(batch, frames, height, width, channels)


class Never(_Model):
    """Cannot be guessed."""

    def forward(self, x, t, secret):
        return self.run(x, t, len(secret("sesame")))
