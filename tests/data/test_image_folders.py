import numpy as np
import pytest
from PIL import Image

from aigc_jax.data.image_sources import open_images
from aigc_jax.errors import DataError

RNG = np.random.default_rng(0)


def write(path, mode='L', size=(5, 4), **options):
  """A random image of `size` (width, height); its pixels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  channels = {'L': (), 'RGB': (3,), 'RGBA': (4,), 'LA': (2,)}.get(mode, ())
  pixels = RNG.integers(0, 256, (size[1], size[0], *channels), np.uint8)
  Image.fromarray(pixels, mode if channels else None).save(path, **options)
  return pixels


def message_of(folder):
  with pytest.raises(DataError) as caught:
    open_images(f'images:{folder}')
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_subfolders_are_classes(tmp_path):
  first, second = write(tmp_path / 'cat' / 'b.png'), write(tmp_path / 'cat' / 'a.PNG')
  third = write(tmp_path / 'ant' / 'z.png', 'LA')
  (tmp_path / 'cat' / 'notes.txt').write_text('no image', encoding='utf-8')
  (tmp_path / '.hidden').mkdir()
  source = open_images(f'images:{tmp_path}')
  assert source.class_names == ('ant', 'cat')
  part = source.parts['all']
  assert (part.images.shape, part.images.dtype) == ((3, 4, 5, 1), np.uint8)
  np.testing.assert_array_equal(part.images[..., 0], [third[..., 0], second, first])
  assert part.labels.tolist() == [0, 1, 1]
  (tmp_path / 'cat' / 'a.PNG').rename(tmp_path / 'ant' / 'a.PNG')
  assert open_images(f'images:{tmp_path}').sha256 != source.sha256  # where a file lies is its class


def test_one_coloured_image_makes_all_coloured(tmp_path):
  gray, colour = write(tmp_path / 'a.png'), write(tmp_path / 'b.png', 'RGB')
  source = open_images(f'images:{tmp_path}')
  assert source.class_names == ('0',)
  np.testing.assert_array_equal(source.parts['all'].images, [np.repeat(gray[..., None], 3, axis=2), colour])
  transparent = write(tmp_path / 'a.png', 'RGBA')
  np.testing.assert_array_equal(
    open_images(f'images:{tmp_path}').parts['all'].images[0], transparent[..., :3]
  )


@pytest.mark.parametrize('validation', ['test', 'validation'])
def test_folders_of_splits(validation, tmp_path):
  for name in ('train/b/1', 'train/a/1', 'train/a/2', f'{validation}/b/1'):
    write(tmp_path / f'{name}.png')
  source = open_images(f'images:{tmp_path}')
  assert list(source.parts) == ['train', validation]
  assert source.parts['train'].labels.tolist() == [0, 0, 1]
  assert source.parts[validation].labels.tolist() == [1]  # numbered as in training
  write(tmp_path / validation / 'bb' / '1.png')
  assert message_of(tmp_path) == f"{tmp_path}/{validation}/bb: training has no class 'bb'; did you mean 'b'?"


def test_a_split_without_classes(tmp_path):
  write(tmp_path / 'train' / '1.png')
  write(tmp_path / 'test' / '1.png')
  source = open_images(f'images:{tmp_path}')
  assert source.parts['test'].labels.tolist() == [0]
  assert source.class_names == ('0',)


def test_jpeg(tmp_path):
  pixels = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
  Image.fromarray(pixels).save(tmp_path / 'a.jpg', quality=95)
  found = open_images(f'images:{tmp_path}').parts['all'].images
  assert found.shape == (1, 16, 16, 1)
  assert np.abs(found[0, ..., 0].astype(int) - pixels).max() < 8  # JPEG loses a little


def test_bad_folders(tmp_path):
  assert 'holds no PNG or JPEG image' in message_of(tmp_path)
  write(tmp_path / 'a' / '1.png')
  (tmp_path / 'b').mkdir()
  assert f'the folder {tmp_path}/b of a class holds no PNG or JPEG image' in message_of(tmp_path)
  write(tmp_path / 'b' / '1.png', size=(4, 5))
  first, second = tmp_path / 'a' / '1.png', tmp_path / 'b' / '1.png'
  sizes = f'{second}: 4 x 5 pixels, and {first} has 5 x 4; bring all images to one size'
  assert message_of(tmp_path) == sizes
  write(tmp_path / 'c.png')
  assert f'{tmp_path}/c.png lies beside folders of classes' in message_of(tmp_path)
  assert 'is a file; images takes a folder' in message_of(first)
  assert "no 'there-is-none'" in message_of('there-is-none')


def test_bad_images(tmp_path):
  path = tmp_path / 'a.png'
  write(path, 'RGB', size=(40, 40))
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  assert f'{path}: the image cannot be read: ' in message_of(tmp_path)
  path.write_bytes(whole[:20])
  assert str(path) in message_of(tmp_path)
  path.write_bytes(b'no image')
  assert message_of(tmp_path) == f'{path}: not a PNG or JPEG image'
  path.write_bytes(b'')
  assert message_of(tmp_path) == f'{path}: not a PNG or JPEG image'
  Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
  assert f'{path}: pixels of the mode I;16; convert it to 8 bits' in message_of(tmp_path)
  Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / 'a.jpg')
  path.unlink()
  content = (tmp_path / 'a.jpg').read_bytes()
  (tmp_path / 'a.jpg').write_bytes(content[:-100])
  assert f'{tmp_path}/a.jpg: the image cannot be read: ' in message_of(tmp_path)
