"""Matrix products in the precision the processor is fast in."""

from __future__ import annotations

import torch


def native_precision() -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware; elsewhere it would be slower than float32."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def autocast() -> torch.autocast:
    """One training step's forward pass in `native_precision`; weights and optimiser stay float32.

    Enter it anew in every step: inside one long block torch would keep using the first step's cast weights. Keep
    products whose shape changes from step to step outside: every new shape is compiled first.
    """
    precision = native_precision()
    return torch.autocast("cpu", precision, enabled=precision != torch.float32)
