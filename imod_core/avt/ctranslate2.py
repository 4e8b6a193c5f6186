"""Reading the variables of a CTranslate2 `model.bin`: a plain binary file, no pickle.

Layout (little-endian, format version 6): version, specification name, revision, then a count of variables, each a
name, a rank, the dimensions, a type code, a length in bytes and the data. A string is its length as 16 bits, then its
bytes and a zero.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from imod_core.errors import InputError

VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_variables(path: Path) -> dict[str, torch.Tensor]:
    """Every variable by name; float16 becomes float32."""
    with Path(path).open("rb") as file:
        (version,) = _unpack(file, "I")
        if version != VERSION:
            raise InputError(f"{path} is a CTranslate2 file of version {version}, expected {VERSION}.")
        _string(file)
        _, count = _unpack(file, "II")
        return dict(_variable(file) for _ in range(count))


def _variable(file: BinaryIO) -> tuple[str, torch.Tensor]:
    name = _string(file)
    (rank,) = _unpack(file, "B")
    shape = _unpack(file, "I" * rank)
    code, size = _unpack(file, "BI")
    values = np.frombuffer(file.read(size), dtype=DTYPES[code]).reshape(shape)
    tensor = torch.from_numpy(values.copy())
    return name, tensor.float() if tensor.dtype == torch.float16 else tensor


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "H")
    return file.read(length).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, layout: str) -> tuple:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))
