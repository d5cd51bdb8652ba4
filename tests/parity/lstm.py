#!/usr/bin/env python3
"""Writes tests/parity/lstm.json: weights, windows and outputs of torch.nn.LSTM, which our forward pass must equal.

    apt-get install python3-torch    # or pip install torch
    python3 tests/parity/lstm.py

The committed file was made with PyTorch 1.13.1. Weights are stored as safetensors, written by hand here (8 bytes of
little-endian header length, JSON, raw data), so that the reader is tested as well.
"""

import base64
import json
import pathlib
import struct

import torch

torch.manual_seed(27)
lstm = torch.nn.LSTM(10, 32)
head = torch.nn.Linear(32, 16)
windows = torch.randn(48, 1, 10) * 2
windows = windows.clamp(-6, 6)
with torch.no_grad():
    outputs = head(lstm(windows)[0])

tensors = {name: getattr(lstm, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")}
tensors |= {"head.weight": head.weight, "head.bias": head.bias}
header, data = {}, b""
for name, tensor in tensors.items():
    values = tensor.detach().flatten().tolist()
    raw = struct.pack(f"<{len(values)}f", *values)
    header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
stored = struct.pack("<Q", len(text)) + text + data

rounded = lambda rows: [[float(f"{v:.9g}") for v in row] for row in rows]
json.dump(
    {
        "torch": torch.__version__,
        "safetensors": base64.b64encode(stored).decode(),
        "windows": rounded(windows[:, 0].tolist()),
        "outputs": rounded(outputs[:, 0].tolist()),
    },
    (pathlib.Path(__file__).parent / "lstm.json").open("w"),
    indent=0,
)
