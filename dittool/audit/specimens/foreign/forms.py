"""What an argument of a foreign forward may be: tensors to be made, by its name.

B batch · C latent channels · L text tokens · N latent tokens · D width · H W latent rows and columns
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, Literal

import torch
from torch import Tensor

BATCH, TEXT_TOKENS, SIDE_IN_TOKENS = 2, 7, 4
_LAYERS, _LARGE_TABLE = 3, 64  # of a list of a text's layers; places along a side of a table that is cut to size
Grid = tuple[int, int]
Content = Literal[
    "noise",
    "time",
    "label",
    "mask",
    "count",
    "pixels",
    "place",
    "across",
    "index",
    "row",
    "column",
    "cos",
    "sin",
    "turn",
]
_COUNTED = ("index", "row", "column")
CONDITIONS = ("time", "label", "text", "vector", "mask")  # kinds of arguments that are fed though they may be left out
POSITIONAL = ("place", "across", "index", "row", "column", "cos", "sin", "turn")  # contents that say where a token is

NAMES: Mapping[str, tuple[str, ...]] = {  # of forward's arguments, by what they are
    "latent": (
        *("x", "z", "hidden_states", "sample", "latent", "latents", "x_t", "xt", "z_t", "zt", "img", "noisy_latents"),
        *("inputs", "input", "noise", "image", "images"),
    ),
    "time": ("t", "timestep", "timesteps", "time", "sigma", "noise_labels", "time_step", "noise_level", "log_snr"),
    "label": ("y", "class_labels", "labels", "label", "class_label"),
    "text": (
        *("text", "context", "encoder_hidden_states", "txt", "caption", "captions", "text_embeds", "prompt_embeds"),
        *("text_tokens", "tokens", "cond"),
    ),
    "mask": ("mask", "text_mask", "encoder_attention_mask", "context_mask", "txt_mask", "caption_mask"),
    "vector": ("pooled_projections", "pooled", "vec", "vector", "cls", "clip_pooled"),
}
_LIKE = (  # parts of other names, the first that fits
    ("ignored", r"kwargs$|return_|cache|controlnet|skip_layers|interpolation|^callback"),
    ("drop", r"drop(?:ped)?(?:_ids)?$"),
    ("mask", r"mask|valid|padding"),
    ("rows", r"^(?:height|h|rows)$"),
    ("columns", r"^(?:width|w|columns|cols)$"),
    ("frames", r"^(?:num_)?frames$|^f$"),
    ("shapes", r"img_shapes|image_shapes"),
    ("rotary", r"rotary|rope|freqs|(?:^|_)(?:cos|sin)$"),
    ("count", r"_lens?$|lengths?$|seqlens?"),
    ("pixels", r"size|coords|crop|resolution|(?:^|_)hw$"),
    ("text place", r"(?:txt|text).*(?:ids|pos)"),
    ("words", r"(?:^|_)(?:input|token|word|prompt|text_token)_ids$"),
    ("sequence", r"position_ids?$|^pos_ids$"),
    ("grid", r"(?:^|_)grid$"),
    ("place", r"ids$|pos|coord|grid"),
    ("scale", r"guidance|scale|cfg|fps|aspect|ratio|strength"),
    ("time", r"time|sigma|noise_l"),
    ("vector", r"pool|vec|global|clip|cls|style_emb"),
    ("label", r"label|class|style|_id$|token_id"),
    ("text", r"text|txt|caption|prompt|context|cond|encoder|emb|feat|token|states"),
)


@dataclass(frozen=True)
class Form:
    """A tensor to be made. Sizes behind the batch may be changed by what the model says of them."""

    sizes: tuple[int, ...]
    content: Content = "noise"
    numbers: Literal["float", "int", "bool", "complex"] = "float"
    below: int = 2  # of labels
    listed: bool = False  # a list of samples, or of layers, along the first axis

    def made(self, grid: Grid, dtype: torch.dtype, seed: int = 0) -> Tensor:
        kind = {
            "float": torch.float32 if self.content == "time" else dtype,
            "int": torch.long,
            "bool": torch.bool,
            "complex": torch.complex64,
        }
        return self._values(grid, seed).to(kind[self.numbers])

    def _values(self, grid: Grid, seed: int) -> Tensor:
        sizes, rows = self.sizes, torch.arange(self.sizes[0] if self.sizes else 1)
        if self.content == "noise":
            return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))
        if self.content == "place":
            return _places(grid, sizes)
        if self.content == "across":  # (…, A, N)
            return _places(grid, (*sizes[:-2], sizes[-1], sizes[-2])).transpose(-1, -2)
        if self.content in ("cos", "sin", "turn"):
            angles = _angles(grid, sizes, paired=self.content != "turn")
            turns = {"cos": torch.cos, "sin": torch.sin, "turn": lambda angle: torch.polar(torch.ones(sizes), angle)}
            return turns[self.content](angles)
        if self.content in _COUNTED:
            return torch.arange(sizes[-1]).expand(sizes).clone()
        along = sizes[1:] or (1,)
        if self.content == "mask":
            if len(sizes) < 2:
                return torch.zeros(sizes)  # of whole samples, none of which is dropped
            if sizes[-1] == sizes[-2]:
                return torch.ones(sizes)  # of queries and keys
            kept = torch.arange(sizes[-1]) < sizes[-1] - 2 * rows[:, None]  # the second sample's last two are masked
            return kept.reshape(len(rows), *(1,) * (len(sizes) - 2), -1).expand(sizes)
        values = {
            "time": torch.linspace(150, 850, len(rows)),
            "label": (len(rows) - rows) % self.below,  # falling: a model that sorts them is seen
            "count": torch.full((len(rows),), TEXT_TOKENS),
            "pixels": torch.full((len(rows),), 64),
        }[self.content]
        return values.reshape(-1, *(1,) * len(along)).expand(len(rows), *along).reshape(sizes).clone()

    def written(self) -> str:
        """As a line of Python that makes it."""
        return f"list({self._written()})" if self.listed else self._written()

    def _written(self) -> str:
        shape = ", ".join(map(str, self.sizes))
        if self.content == "noise":
            return f"torch.randn({shape})"
        if self.content == "mask":
            return f"torch.ones({shape}{', dtype=torch.bool' if self.numbers == 'bool' else ''})"
        if self.content == "time":
            return f"torch.full(({shape},), 500{'.0' if self.numbers == 'float' else ''})"
        if self.content == "label":
            return f"torch.randint({self.below}, ({shape},))"
        if self.content in _COUNTED:
            return f"torch.arange({self.sizes[-1]}).expand({shape})"
        if self.content in ("cos", "turn"):  # of the angle 0
            return f"torch.ones({shape}{', dtype=torch.complex64' if self.numbers == 'complex' else ''})"
        return f"torch.zeros({shape}{', dtype=torch.long' if self.numbers == 'int' else ''})"


@dataclass(frozen=True)
class Plain:
    """Something that is no tensor, and may depend on the latent's tokens."""

    make: Callable[[Grid], object]
    text: str
    of_grid: bool = True

    def written(self) -> str:
        return self.text


@dataclass(frozen=True)
class Parts:
    """A dictionary, a tuple or a dataclass with parts."""

    kind: type
    items: tuple[tuple[str, Node], ...]

    def written(self) -> str:
        if self.kind is dict:
            return "{" + ", ".join(f'"{name}": {part.written()}' for name, part in self.items) + "}"
        if self.kind in (tuple, list):
            return f"[{', '.join(part.written() for _, part in self.items)}]"
        return f"{self.kind.__name__}({', '.join(f'{name}={part.written()}' for name, part in self.items)})"


Node = Form | Plain | Parts

NOTHING = Plain(lambda _grid: None, "None", of_grid=False)
EMPTY: dict[type, Node] = {
    dict: Plain(lambda _grid: {}, "{}", of_grid=False),
    list: Plain(lambda _grid: [], "[]", of_grid=False),
}


def built(node: Node, grid: Grid, dtype: torch.dtype) -> Any:
    if isinstance(node, Form):
        return list(node.made(grid, dtype)) if node.listed else node.made(grid, dtype)
    if isinstance(node, Plain):
        return node.make(grid)
    made = {name: built(part, grid, dtype) for name, part in node.items}
    return node.kind(made.values()) if node.kind in (tuple, list) else node.kind(**made)


def forms_in(node: Node, path: str) -> Iterator[tuple[str, Form]]:
    """Every tensor of an argument with its name, `cond.text`."""
    if isinstance(node, Form):
        yield path, node
    elif isinstance(node, Parts):
        for name, part in node.items:
            yield from forms_in(part, f"{path}.{name}")


def holders_in(node: Node, path: str) -> Iterator[tuple[str, Parts]]:
    """Every part of an argument that holds others, with its name."""
    if isinstance(node, Parts):
        yield path, node
        for name, part in node.items:
            yield from holders_in(part, f"{path}.{name}")


def exchanged(node: Node, path: str, at: str, other: Node) -> Node:
    """The argument with another part at a name."""
    if path == at:
        return other
    if not isinstance(node, Parts) or not at.startswith(f"{path}."):
        return node
    return replace(node, items=tuple((name, exchanged(part, f"{path}.{name}", at, other)) for name, part in node.items))


def kind_of(name: str) -> str:
    """What an argument is by its name, "" when it does not say."""
    known = next((kind for kind, names in NAMES.items() if name in names), "")
    return known or next((kind for kind, pattern in _LIKE if re.search(pattern, name)), "")


class Widths:
    """A width of its own for every tensor: what the model says of it tells which tensor it met."""

    def __init__(self) -> None:
        self._next = chain((37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97), count(1009, 10))

    def __call__(self) -> int:
        return next(self._next)


def layers_of(width: int) -> Form:
    """A text's states, one tensor a layer of its encoder."""
    return Form((_LAYERS, BATCH, TEXT_TOKENS, width), listed=True)


def alternatives(kind: str, width: int, labels: int) -> list[Node]:
    """What an argument of a kind may be, the usual first."""
    tokens, vector = Form((BATCH, TEXT_TOKENS, width)), Form((BATCH, width))
    number, index = Form((BATCH,), "time"), Form((BATCH,), "label", "int", labels)
    mask = Form((BATCH, TEXT_TOKENS), "mask", "bool")
    cells = SIDE_IN_TOKENS**2
    made: dict[str, list[Node]] = {
        "time": [
            number,
            replace(number, numbers="int"),
            replace(number, sizes=(BATCH, 1)),
            replace(number, sizes=(1,)),
        ],
        "label": [index, tokens, Form((BATCH, 1, width)), vector, replace(index, sizes=(BATCH, TEXT_TOKENS))],
        "text": [
            *(tokens, vector, replace(index, sizes=(BATCH, TEXT_TOKENS)), layers_of(width)),
            Form((BATCH, 1, TEXT_TOKENS, width)),
        ],
        "vector": [vector, tokens],
        "mask": [
            *(mask, replace(mask, numbers="float"), replace(mask, numbers="int")),
        ],
        "drop": [replace(mask, sizes=(BATCH,)), replace(index, below=2), mask],
        "scale": [replace(number, sizes=(BATCH,)), replace(number, sizes=(BATCH, 1)), vector],
        "place": [
            *(Form((cells, 3), "place"), Form((BATCH, cells, 3), "place"), Form((cells, 4), "place")),
            *(Form((TEXT_TOKENS + cells, 3), "place"), Form((BATCH, TEXT_TOKENS + cells, 3), "place")),
            Form((BATCH, TEXT_TOKENS + cells), "index", "int"),
        ],
        "words": [replace(index, sizes=(BATCH, TEXT_TOKENS)), index],
        "rotary": [
            Parts(tuple, (("0", Form((cells, width), "cos")), ("1", Form((cells, width), "sin")))),
            *(Form((side, side, width), "turn", "complex") for side in (SIDE_IN_TOKENS, _LARGE_TABLE)),
            Form((cells, width), "turn", "complex"),
            *(_axes_of(side) for side in (SIDE_IN_TOKENS, 2 * SIDE_IN_TOKENS)),
            Form((TEXT_TOKENS,), "index", "int"),
        ],
        "text place": [Form((TEXT_TOKENS, 3), "place"), Form((BATCH, TEXT_TOKENS, 3), "place")],
        "count": [Form((BATCH,), "count", "int")],
        "pixels": [Form((BATCH, 2), "pixels"), Form((BATCH, 6), "pixels")],
        "rows": [Plain(lambda grid: grid[0], "height")],
        "columns": [Plain(lambda grid: grid[1], "width")],
        "frames": [Plain(lambda grid: 1, "1", of_grid=False)],
        "shapes": [Plain(lambda grid: [[(1, *grid)]] * BATCH, f"[[(1, height, width)]] * {BATCH}")],
    }
    made["grid"] = [Form((BATCH, 2, cells), "across"), *made["place"]]
    made["sequence"] = [*made["place"][-1:], *made["place"][:-1]]
    return made.get(kind, [tokens, vector, number, index, mask])


def _axes_of(side: int) -> Parts:
    """Places along each axis of a video of one frame."""
    axes = Form((1,), "label", "int", below=1), Form((side,), "row", "int"), Form((side,), "column", "int")
    return Parts(tuple, tuple((str(i), axis) for i, axis in enumerate(axes)))


def grid_of_tokens(grid: Grid, tokens: int) -> Grid | None:
    """Rows and columns of so many square patches of a grid of cells; None where no patch size gives that number."""
    patch = math.isqrt(math.prod(grid) // max(tokens, 1))
    whole = patch and patch**2 * tokens == math.prod(grid) and not (grid[0] % patch or grid[1] % patch)
    return (grid[0] // patch, grid[1] // patch) if whole else None


def _places(grid: Grid, sizes: tuple[int, ...]) -> Tensor:
    """(…, N, A): zero, row and column of each latent token in row-major order; zeros for other tokens, which stand
    before them.
    """
    tokens, axes = sizes[-2], sizes[-1]
    found = torch.zeros(tokens, axes)
    by_rows = grid_of_tokens(grid, tokens) or grid
    if (others := tokens - math.prod(by_rows)) >= 0:
        index = torch.arange(math.prod(by_rows))
        for axis, values in zip((1, 2) if axes > 2 else (0, 1), (index // by_rows[1], index % by_rows[1]), strict=True):
            found[others:, axis] = values
    return found.expand(sizes).clone()


def _angles(grid: Grid, sizes: tuple[int, ...], paired: bool) -> Tensor:
    """(…, N, D) or (rows, columns, D): rotary angles, by turns of rows and of columns. Paired ones are the same in two
    neighbours and in both halves of D, so that rotating neighbours and rotating halves are both by one angle a pair.
    """
    is_table = len(sizes) == 3
    places = torch.cartesian_prod(*map(torch.arange, sizes[:2])).float() if is_table else _places(grid, (sizes[-2], 2))
    channel = torch.arange(sizes[-1])
    if paired:
        channel = channel % max(sizes[-1] // 2, 1) // 2
    angles = places[:, channel % 2] * 100.0 ** -((channel // 2) / (channel.max() + 1))  # (N, D)
    return (angles.reshape(sizes) if is_table else angles).expand(sizes).clone()
