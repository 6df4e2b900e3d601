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


def tiles(picture, image_shape, number, padding=1):
  """The `number` images [n, height, width, channels] of a picture that `grid` made of them."""
  height, width, _ = image_shape
  larger = max(1, LEAST_SIDE // max(height, width))
  columns = (np.shape(picture)[1] - padding) // (width * larger + padding)
  corners = [
    (padding + row * (height * larger + padding), padding + column * (width * larger + padding))
    for row, column in (divmod(i, columns) for i in range(number))
  ]
  cut = lambda top, left: picture[top : top + height * larger : larger, left : left + width * larger : larger]
  return np.stack([cut(*corner) for corner in corners]).reshape(number, *image_shape)
