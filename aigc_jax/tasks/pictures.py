"""Pictures made of pictures."""

import numpy as np

LEAST_SIDE = 56  # pixels of a shown image


def grid(images, columns, padding=1):
  """Images [n, height, width, channels] in rows of `columns` -> one image; lines and empty places are 0.

  Small images are shown larger, each pixel as a square of pixels.
  """
  images = np.asarray(images)
  larger = max(1, LEAST_SIDE // max(images.shape[1:3]))
  images = images.repeat(larger, 1).repeat(larger, 2)
  number, height, width, channels = images.shape
  rows = -(-number // columns)
  made = np.zeros(
    (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), images.dtype
  )
  for i, image in enumerate(images):
    top, left = (
      padding + place * (side + padding)
      for place, side in zip(divmod(i, columns), (height, width), strict=True)
    )
    made[top : top + height, left : left + width] = image
  return made
