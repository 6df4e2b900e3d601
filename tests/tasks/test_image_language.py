"""A language model on the codes of a trained autoencoder: its run needs the other one no more, and draws by class."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api, data, models
from aigc_jax.data import image_codes
from aigc_jax.errors import UsageError
from aigc_jax.generation import decode
from aigc_jax.models import Decoder
from aigc_jax.tasks import image_language
from aigc_jax.training import checkpoint, prepare, state_leaves
from tests import tiny, tiny_images

CODES, TIME = 8, 16  # an image of 8 x 8 is a grid of 4 x 4 codes


@pytest.fixture(scope='module', autouse=True)
def cached_programs(tmp_path_factory):
  with tiny.compile_cache(tmp_path_factory.mktemp('xla')):
    yield


@pytest.fixture(scope='module')
def autoencoder(tmp_path_factory):
  """The TrainedRun of a vector-quantized autoencoder."""
  folder = tmp_path_factory.mktemp('autoencoder')
  source = tiny_images.write_images(folder / 'images.npz')
  return tiny.train(tiny_images.config(source, 'vq', training={'steps': 8}), folder / 'vq')


def config(autoencoder, **sections):
  made = tiny.config(f'run:{autoencoder}', **sections)
  return made | {'data': {'source': f'run:{autoencoder}', 'batch_size': 8}}


@pytest.fixture(scope='module')
def language(autoencoder, tmp_path_factory):
  """(TrainedRun on the codes, what is drawn and evaluated): the autoencoder's run was gone after 4 steps."""
  folder = tmp_path_factory.mktemp('language')
  shutil.copytree(autoencoder.path, folder / 'vq')
  constant = {'schedule': 'constant'}
  run = tiny.train(config(folder / 'vq', training={'steps': 4}, optimizer=constant), folder / 'run')
  shutil.rmtree(folder / 'vq')
  return api.resume(run.path, 8, quiet=True)


def test_the_tokenizer_is_the_autoencoder_of_the_run(autoencoder, language):
  module = models.build(autoencoder.config['model'])
  codebook, tokenizer = autoencoder.state.extra['codes'], language.tokenizer
  with np.load(autoencoder.config['data']['source'].removeprefix('npz:')) as arrays:
    pixels = arrays['train_images'][..., None]
  variables = {'params': autoencoder.params}
  codes = module.apply(variables, pixels.astype(np.float32) / 255, codebook, method='codes')
  np.testing.assert_array_equal(tokenizer.encode_images(pixels), np.asarray(codes).reshape(-1, TIME))
  logits, _ = module.apply(variables, codes, codebook, method='from_codes')
  # (programs for other numbers of rows add in another order)
  np.testing.assert_allclose(tokenizer.decode_images(codes), jax.nn.sigmoid(logits), atol=1e-6)


def test_the_run_goes_on_without_the_autoencoders_run(language):
  last = language.metrics[-1]
  assert last['step'] == 8
  assert language.config['model']['vocabulary_size'] == CODES + 3
  assert language.config['model']['context_length'] == TIME
  assert language.evaluate()['loss'] == pytest.approx(last['validation/loss'], rel=1e-6)
  assert last['validation/loss'] < next(row['train/loss'] for row in language.metrics)
  assert [path.name for path in (language.path / 'samples').iterdir()].count('00000008-samples.png') == 1
  picture = language.draw(6, seed=1)
  assert (picture.ndim, picture.shape[2]) == (3, 1)
  assert 0 <= picture.min() < picture.max() <= 1
  np.testing.assert_array_equal(language.draw(6, seed=1), picture)
  assert (language.draw(6, seed=2) != picture).any()


def test_what_it_does_not_do(language):
  with pytest.raises(UsageError, match='writes no text; draw'):
    language.generate('whale')
  with pytest.raises(UsageError, match='tokens have nothing between them'):
    language.draw(4, interpolate=True)
  with pytest.raises(UsageError, match=r'label: 3 is no class; .*there are 0, 1, 2'):
    language.draw(4, label=3)


def stubborn():
  """A decoder that wants nothing more than class tokens, and next to them the code 1 + class, whatever came after."""

  def init_cache(batch_size, length):
    return jnp.full(batch_size, -1)

  def step(params, first, tokens, mask=None, memory=None):
    for t in range(tokens.shape[1]):
      waits = (first < 0) if mask is None else (first < 0) & mask[:, t]
      first = jnp.where(waits, tokens[:, t], first)
    wanted = jax.nn.one_hot(first - CODES + 1, CODES + 3) * 50 + (jnp.arange(CODES + 3) >= CODES) * 99.0
    return jnp.broadcast_to(wanted[:, None], (*tokens.shape, CODES + 3)), first

  return Decoder(init_cache, step, CODES + 3, TIME)


def drawn(monkeypatch, tokenizer, number, label=None):
  """(the tokens that are drawn, the picture)."""
  seen, generate = [], decode.generate

  def spy(*arguments, **options):
    seen.append(generate(*arguments, **options))
    return seen[-1]

  monkeypatch.setattr(decode, 'generate', spy)
  known = data.Dataset(tokenizer, None, None, 0, {'class_names': ['0', '1', '2']})
  picture = image_language.draw(stubborn(), 1.0, {}, {}, known, jax.random.key(0), number, label)
  (made,) = seen
  return made.tokens, picture


@pytest.mark.parametrize(('label', 'classes'), [(None, [0, 1, 2, 0, 1]), (0, [0] * 5), (2, [2] * 5)])
def test_the_class_comes_first_and_is_never_drawn(label, classes, language, monkeypatch):
  tokens, picture = drawn(monkeypatch, language.tokenizer, 5, label)
  np.testing.assert_array_equal(tokens, np.tile(np.array(classes)[:, None] + 1, (1, TIME)))
  shown = image_language.grid(language.tokenizer.decode_images(tokens), 5)
  np.testing.assert_array_equal(picture, shown)


def test_what_has_no_codes_is_one_line(autoencoder, language, tmp_path):
  shutil.copytree(autoencoder.path, tmp_path / 'new')
  shutil.rmtree(tmp_path / 'new/checkpoints')
  for folder, words in (
    (language.path, "has no codes of images, since its model is 'transformer'"),
    (tmp_path / 'new', 'has no codes of images, since it has no checkpoint'),
    (tmp_path / 'nowhere', 'nowhere: no such run folder'),
  ):
    with pytest.raises(UsageError, match=words) as error:
      tiny.train(config(folder), tmp_path / 'run')
    assert '\n' not in str(error.value)
  with pytest.raises(UsageError, match=r"config.task.sample_prompt: 'whale' is text"):
    tiny.train(config(autoencoder.path, task={'sample_prompt': 'whale'}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def leaves(path):
  _, found = checkpoint.restore_fields(path / 'checkpoints', ('params',), 'latest')
  return state_leaves.host_copies(checkpoint.flat(found))


def test_init_from_another_run_on_the_same_codes(language, tmp_path):
  """Its tokenizer comes along, though the run of the autoencoder that both name is gone."""
  source = language.config['data']['source'].removeprefix('run:')
  still = {'optimizer': {'learning_rate': 0.0}, 'training': {'steps': 1}}
  started = tiny.train(config(source, init_from=str(language.path), **still), tmp_path / 'run')
  assert started.tokenizer.sha256 == language.tokenizer.sha256
  ours, theirs = leaves(started.path), leaves(language.path)
  assert {name: leaf.tobytes() for name, leaf in ours.items()} == {
    name: leaf.tobytes() for name, leaf in theirs.items()
  }


def with_other_codes(autoencoder, folder):
  """A copy of the autoencoder's run, of an earlier checkpoint."""
  shutil.copytree(autoencoder.path, folder)
  shutil.rmtree(folder / 'checkpoints/8')
  return folder


def test_init_from_a_run_on_other_symbols_is_refused(autoencoder, language, tmp_path):
  other = with_other_codes(autoencoder, tmp_path / 'other')
  made = prepare.image_tokenizer(f'run:{other}')
  assert isinstance(made, image_codes.ImageTokenizer)
  assert made.sha256 != language.tokenizer.sha256
  with pytest.raises(
    UsageError, match=r'config.init_from: .* was trained on the codes of another autoencoder'
  ):
    tiny.train(config(other, init_from=str(language.path)), tmp_path / 'run')
  text = tiny.write_corpus(tmp_path / 'words.txt')
  with pytest.raises(
    UsageError, match=r'config.init_from: .* was trained on codes of images, and config.data'
  ):
    tiny.train(tiny.config(text, init_from=str(language.path)), tmp_path / 'run')
  written = tiny.train(tiny.config(text, training={'steps': 1}), tmp_path / 'text')
  with pytest.raises(UsageError, match=r'config.init_from: .* was trained on text, and config.data'):
    tiny.train(config(autoencoder.path, init_from=str(written.path)), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
