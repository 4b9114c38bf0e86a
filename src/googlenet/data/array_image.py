"""Images that Pillow cannot open: NumPy files (.npy) with any channels, and TIFF files with more than four."""

import logging
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class ChannelsError(ValueError):
    """An image with other channels than expected, or in a form that needs a further package."""


class ArrayImage(Image.Image):
    """An opened image of numbers, whose size, `num_channels` and `dtype` are known before it is read."""

    def __init__(self, format_name: str, shape: tuple[int, int, int], dtype: Any, read: Callable[[], NDArray[Any]]):
        super().__init__()
        height, width, self.num_channels = shape
        self._size, self._mode = (width, height), "L" if self.num_channels == 1 else "RGB"
        self.format, self.dtype, self._read = format_name, np.dtype(dtype), read
        if self.dtype.kind not in "uif":
            raise ValueError(f"values of type {self.dtype}; save integers or floats")

    def values(self) -> NDArray[Any]:
        """Read the pixels (h, w, num_channels)."""
        return self._read()

    def load(self) -> None:
        """Do nothing: `values` reads the pixels."""


def open_npy(file: BinaryIO) -> ArrayImage:
    """Read the header of a .npy file of the shape (h, w), (h, w, channels) or (channels, h, w).

    Of three axes, the last has the channels unless the first is shorter. Raises ValueError for another array.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array of the shape {shape}; an image has (h, w), (h, w, channels) or (channels, h, w)")
    start = file.tell()
    if dtype.hasobject or file.seek(0, 2) - start < np.prod(shape, dtype=float) * dtype.itemsize:
        raise ValueError("an incomplete array, or one of Python objects")
    is_first = len(shape) == 3 and shape[0] < shape[2]
    height, width, *channels = (*shape[1:], shape[0]) if is_first else shape

    def read() -> NDArray[Any]:
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
        return np.moveaxis(array, 0, -1) if is_first else array.reshape(height, width, -1)

    return ArrayImage("NPY", (height, width, *(channels or [1])), dtype, read)  # type: ignore[arg-type]


def open_tiff(file: BinaryIO) -> ArrayImage:
    """Read the header of a TIFF file, whose channels are samples, planes or pages of one size."""
    try:
        import tifffile
    except ImportError:
        raise ChannelsError(
            "not a TIFF that Pillow reads; for other channels: pip install 'googlenet[channels]'"
        ) from None
    # Without a handler, Python prints its messages about damaged files on standard error.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    series = tifffile.TiffFile(file).series[0]
    axes = [axis for axis, length in enumerate(series.shape) if series.axes[axis] not in "YX" and length > 1]
    if len(axes) > 1 or not {"Y", "X"} <= set(series.axes):
        raise ChannelsError(f"a TIFF with the axes {series.axes} {series.shape}; an image has one axis of channels")
    height, width = (series.shape[series.axes.index(axis)] for axis in "YX")

    def read() -> NDArray[Any]:
        array = series.asarray()
        return np.moveaxis(array, axes[0], -1).reshape(height, width, -1) if axes else array.reshape(height, width, 1)

    channels = series.shape[axes[0]] if axes else 1
    return ArrayImage("TIFF", (height, width, channels), series.dtype, read)
