"""Cross-attention to a context with padding, four ways side by side. Run: python -m tests.bench.bench_attention

On a GPU with the sizes of the base preset: --batch 8 --heads 16 --tokens 4096 --patches 4096 --text 512

    mask      scaled_dot_product_attention with an additive bias (B, 1, 1, M): what dittool.models.layers does where
              there is padding
    no mask   the same over the padding as if it were context: the lower bound, and what is done where there is none
    packed    variable-length attention: nested tensors of layout jagged, padding cut out; the time to pack and unpack
              is counted
    flex      flex_attention with a block mask made once a batch, shared by all blocks; on a CPU uncompiled and forward
              only

Context of a sample: caption of a random length up to --text, CLS, --patches. The figures are forward and backward of
one layer's attention, medians over rounds in which the contenders take turns, as ratios to `mask`. Every way is first
compared with `mask`, row by row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

Attend = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """Queries, keys and values of one layer and which keys count."""

    q: Tensor  # (B, H, N, d)
    k: Tensor  # (B, H, M, d)
    v: Tensor  # (B, H, M, d)
    valid: Tensor  # (B, M) bool

    @staticmethod
    def random(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Case:
        context = options.text + 1 + options.patches
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(options.text // 8, options.text, (options.batch, 1), generator=generator)
        place = torch.arange(context)[None]
        valid = (place < lengths) | (place >= options.text)

        def tensor(rows: int) -> Tensor:
            values = torch.randn(options.batch, options.heads, rows, options.head_width, generator=generator)
            return values.to(device, dtype).requires_grad_()

        return Case(tensor(options.tokens), tensor(context), tensor(context), valid.to(device))


def masked(case: Case) -> Attend:
    bias = torch.zeros(case.valid.shape, device=case.q.device, dtype=case.q.dtype).masked_fill(~case.valid, -math.inf)[
        :, None, None
    ]
    return lambda: F.scaled_dot_product_attention(case.q, case.k, case.v, attn_mask=bias)


def unmasked(case: Case) -> Attend:
    return lambda: F.scaled_dot_product_attention(case.q, case.k, case.v)


def packed(case: Case) -> Attend:
    batch, heads, tokens, width = case.q.shape
    q_offsets = torch.arange(batch + 1, device=case.q.device) * tokens
    k_offsets = F.pad(case.valid.sum(dim=1).cumsum(0), (1, 0))
    chosen = case.valid.flatten().nonzero()[:, 0]

    def jagged(rows: Tensor, offsets: Tensor) -> Tensor:  # (Σ rows, H, d) → (B, H, jagged, d)
        return torch.nested.nested_tensor_from_jagged(rows, offsets).transpose(1, 2)

    def attend() -> Tensor:
        q = jagged(case.q.transpose(1, 2).reshape(-1, heads, width), q_offsets)
        k, v = (jagged(one.transpose(1, 2).reshape(-1, heads, width)[chosen], k_offsets) for one in (case.k, case.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()  # (B·N, H, d)
        return out.reshape(batch, tokens, heads, width).transpose(1, 2)

    return attend


def flexible(case: Case) -> Attend:
    def keep(b: Tensor, _h: Tensor, _i: Tensor, j: Tensor) -> Tensor:
        return case.valid[b, j]

    (batch, _, tokens, _), context = case.q.shape, case.k.shape[2]
    blocks = create_block_mask(keep, batch, None, tokens, context, device=case.q.device.type)
    if case.q.device.type == "cuda":
        run = torch.compile(flex_attention)
        return lambda: run(case.q, case.k, case.v, block_mask=blocks)
    # it has no backward on a CPU and refuses tensors that want one
    q, k, v = (one.detach() for one in (case.q, case.k, case.v))
    return lambda: flex_attention(q, k, v, block_mask=blocks)


def seconds(attend: Attend, backward: bool, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = attend()
    if backward:
        out.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("batch", 4),
        ("heads", 6),
        ("head-width", 64),
        ("tokens", 256),
        ("patches", 256),
        ("text", 128),
        ("rounds", 9),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    case = Case.random(options, device, dtype)
    backward = {"mask": True, "no mask": True, "packed": True, "flex": device.type == "cuda"}
    ways = {"mask": masked(case), "no mask": unmasked(case), "packed": packed(case), "flex": flexible(case)}
    for name, attend in ways.items():
        if name != "no mask":
            torch.testing.assert_close(attend(), ways["mask"](), rtol=2e-2, atol=2e-2)
    times: dict[tuple[str, bool], list[float]] = {}
    for turn in range(options.rounds + 2):  # the first two do not count
        for name, attend in ways.items():
            for both in {False, backward[name]}:
                took = seconds(attend, both, device)
                times.setdefault((name, both), []).extend([took] if turn > 1 else [])
    middle = {key: statistics.median(values) for key, values in times.items()}
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    share = float((~case.valid).float().mean())
    (batch, heads, tokens, width), context = case.q.shape, case.k.shape[2]
    print(
        f"{where}, {dtype}: B {batch}, H {heads}, d {width}, N {tokens}, M {context}, {share:.0%} of the context is"
        " padding"
    )
    print(f"  {'':<10}{'forward':>10}{'both':>10}   times as long as with a mask")
    for name in ways:
        cells = [
            f"{middle[name, both] / middle['mask', both]:.2f}" if (name, both) in middle else "–"
            for both in (False, True)
        ]
        print(f"  {name:<10}{cells[0]:>10}{cells[1]:>10}   {middle[name, False] * 1e3:.2f} ms forward")


if __name__ == "__main__":
    main()
