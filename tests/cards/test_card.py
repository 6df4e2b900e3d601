"""Cards of tiny runs of several families: front matter that is valid, nothing unsaid or leaked, bad input in a line."""

import json
import math
import pathlib
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import aigc_jax
from aigc_jax import cli, files
from aigc_jax.cards import training_data, use
from aigc_jax.cards.about import seconds
from aigc_jax.cards.markdown import fenced, public, shortened
from aigc_jax.errors import UsageError
from aigc_jax.schemas import read_config
from tests import tiny, tiny_images
from tests.interop import peers
from tests.training.test_families import acting, masked, translation

SHORT = {'training': {'steps': 2, 'evaluate_every': 2, 'checkpoint_every': 2, 'sample_every': 2}}
WITHOUT_SAMPLES = {'training': SHORT['training'] | {'sample_every': None}}
SECTIONS = ('Model', 'How to use it', 'Evaluation', 'Memorization', 'Limits', 'Configuration')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  with tiny.compile_cache(tmp_path_factory.mktemp('xla')):
    yield tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def corpus(folder):
  return tiny.write_corpus(folder / 'secret_corpus.txt')


@pytest.fixture(scope='module')
def written(folder, corpus):
  """A run that writes text."""
  return tiny.train(tiny.config(corpus, **WITHOUT_SAMPLES), folder / 'writer')


def carded(run, output=None, **choices):
  """(front matter, Markdown) of a card, both checked for what every card must have."""
  path = run.card(output, samples=2, tokens=12, **choices)
  text = path.read_text(encoding='utf-8')
  loaded = ModelCard(text)  # Hugging Face's own reading of it
  assert isinstance(yaml.safe_load(text.split('---')[1]), dict)
  data = loaded.data.to_dict()
  for name in SECTIONS:
    assert f'\n## {name}\n' in text, name
  told = loaded.text.partition('## Configuration')[0]
  prose = re.sub(r'(`{3,}).*?\1', '', told, flags=re.S)
  assert not re.search(r'\b(None|nan|inf|True|False)\b|\[\]|\{\}|<[a-z_.]+ object', prose), prose
  assert not re.search(r'\{[a-z_.]+\}', prose), prose  # a template that was not filled in
  assert str(run.path.parent) not in text  # places of this machine
  assert '/home/' not in text
  for link in re.findall(r'!\[.*?\]\((.*?)\)', told):
    assert (path.parent / link).stat().st_size > 100, link
  return data, loaded.text


def results_of(data):
  """{metric: value} as the hub's library reads the model index."""
  _, results = model_index_to_eval_results(data['model-index'])
  assert all(
    result.dataset_split == 'validation' and math.isfinite(result.metric_value) for result in results
  )
  return {result.metric_type: result.metric_value for result in results}


def config_in(text):
  return json.loads(re.search(r'```json\n(.*?)\n```', text, re.S)[1])


def test_a_language_model(written, corpus):
  data, text = carded(written)
  found = results_of(data)
  last = [row for row in written.metrics if 'validation/loss' in row][-1]
  for name in ('loss', 'accuracy', 'bits_per_character', 'perplexity'):
    assert found[name] == pytest.approx(last[f'validation/{name}'], rel=1e-5)  # six digits are written
  assert data['library_name'] == 'aigc_jax'
  assert data['pipeline_tag'] == 'text-generation'
  assert 'language' not in data  # that of a text of one's own is not known
  assert 'base_model' not in data
  assert training_data.UNKNOWN in text
  assert '`text:secret_corpus.txt`' in text
  assert f'`{written.facts["sha256"]}`' in text
  assert '128 tokens' in text  # 2 steps of 4 x 16
  config = config_in(text)
  assert config['data']['source'] == 'text:secret_corpus.txt'
  config['data']['source'] = corpus
  assert read_config(config) == read_config(written.config)  # the card's config is the run's


def test_samples_are_compared_with_the_training_text(written, corpus):
  """What the table says is what a search of the samples in the training text finds."""
  path = written.card(samples=2, tokens=12)
  text = path.read_text(encoding='utf-8')
  drawn = written.generate('', num=2, max_new_tokens=12, strategy='sample', temperature=1.0, seed=0)
  whole = pathlib.Path(corpus.removeprefix('text:')).read_text(encoding='utf-8')
  train = whole[: int(len(whole) * 0.9)]
  longest = [
    max(n for n in range(13) for i in range(13) if i + n <= len(d.text) and d.text[i : i + n] in train)
    for d in drawn
  ]
  assert f'| {sum(longest) / 2:g}; {max(longest)} |' in text
  assert f'against the {len(train):,} characters' in text


def test_beside_an_export_it_is_a_card_for_transformers(written, folder):
  assert 'aigc export runs/writer FOLDER' in carded(written)[1]
  aigc_jax.export(written, folder / 'exported')
  data, text = carded(written, folder / 'exported' / 'README.md')
  assert data['library_name'] == 'transformers'
  assert 'from transformers import AutoTokenizer, GPT2LMHeadModel' in text
  assert 'aigc export' not in text
  assert (folder / 'exported/plots/loss.png').is_file()
  carded(written, folder / 'docs' / 'mine.md')
  assert (folder / 'docs/mine/plots/loss.png').is_file()


def test_data_that_is_gone_or_changed_is_told_in_a_line(folder):
  source = tiny.write_corpus(folder / 'short_lived.txt')
  run = tiny.train(tiny.config(source, **WITHOUT_SAMPLES), folder / 'left_alone')
  for change in ('has changed since', 'could not be read'):
    if change == 'has changed since':
      tiny.write_corpus(folder / 'short_lived.txt', seed=1)
    else:
      (folder / 'short_lived.txt').unlink()
    data, text = carded(run)
    assert f'The data, `text:short_lived.txt`, {change} when this card was written' in text
    assert 'was not checked' in text
    assert results_of(data)['loss'] > 0
  assert 'of `bundled:moby_dick`' in carded(run, source='bundled:moby_dick')[1]


@pytest.mark.slow
def test_translation(folder):
  run = tiny.train(translation('text:none') | SHORT, folder / 'answers')
  scores = {'exact_match': {'value': 12.5, 'protocol': 'share of predictions'}}
  settings = {'checkpoint': run.step, 'data': 'the validation split', 'strategy': 'greedy'}
  (run.path / 'predictions').mkdir()
  files.write_json(run.path / 'predictions/scores.json', {'scores': scores, 'settings': settings})
  data, text = carded(run)
  assert data['language'] == ['en', 'zh']
  assert data['datasets'] == ['en_zh']
  assert data['pipeline_tag'] == 'translation'
  assert 'Apache-2.0, npm `typescript` 5.9.3' in text  # from the table beside the data
  assert results_of(data)['exact_match'] == 12.5
  assert 'share of predictions; greedy decoding' in text
  assert 'of 64 (' in text


@pytest.mark.parametrize('family', ['vae', pytest.param('contrastive', marks=pytest.mark.slow)])
def test_images(family, folder):
  source = tiny_images.write_images(folder / f'{family}.npz')
  config = tiny_images.config(source, family)
  fields = WITHOUT_SAMPLES if family == 'vae' else SHORT
  run = tiny.train(config | {'training': config['training'] | fields['training']}, folder / family)
  data, text = carded(run)
  draws = family == 'vae'
  assert ('## Memorization\n\n64 images' in text) == draws
  assert (run.path / 'plots/nearest.png').exists() == draws
  assert ('It makes nothing' in text) != draws
  assert 'loss' in results_of(data)


@pytest.mark.slow
@pytest.mark.parametrize('family', ['mlp', 'vq', 'masked_images', 'masked', 'acting', 'conditional'])
def test_other_families(family, folder, corpus):
  if family in ('masked', 'acting'):
    config = {'masked': masked, 'acting': acting}[family](corpus)
  else:
    config = tiny_images.config(tiny_images.write_images(folder / f'{family}.npz'), family)
  run = tiny.train(config | {'training': config['training'] | SHORT['training']}, folder / f'run_{family}')
  data, text = carded(run)
  assert 'loss' in results_of(data)
  assert ('## Memorization\n\n64 images' in text) == (family == 'conditional')


@pytest.mark.slow
def test_an_import_says_that_its_data_is_not_known(written, folder, corpus):
  aigc_jax.export(written, folder / 'some_gpt2')
  run = aigc_jax.from_pretrained(folder / 'some_gpt2', folder / 'imported', quiet=True)
  data, text = carded(run)
  assert data['base_model'] == 'some_gpt2'
  assert 'model-index' not in data
  assert 'datasets' not in data
  assert 'moby_dick' not in text  # the default of a field, and not what it was trained on
  assert 'What the model was trained on before it was imported is not known' in text
  _, text = carded(run, source=corpus)
  assert 'characters of `text:secret_corpus.txt`' in text
  assert 'held-out' not in text


@pytest.mark.slow
def test_an_import_without_a_tokenizer_writes_nothing(folder):
  peers.save(peers.make('gpt2', 0), folder / 'bare')
  run = aigc_jax.from_pretrained(folder / 'bare', folder / 'imported_bare', quiet=True)
  assert 'It came without a tokenizer' in carded(run)[1]


@pytest.mark.slow
def test_image_tokens_and_poems(folder):
  """Pictures that are drawn as tokens are compared as pictures, and a text of many documents by its documents."""
  config = tiny_images.config(tiny_images.write_images(folder / 'coded.npz'), 'vq')
  tiny.train(config | {'training': config['training'] | SHORT['training']}, folder / 'vq')
  config = tiny.config(f'run:{folder / "vq"}', **SHORT)
  config['data'] = {'source': f'run:{folder / "vq"}', 'batch_size': 8}
  config['task'] = {'name': 'language'}
  data, text = carded(tiny.train(config, folder / 'coded'))
  assert data['pipeline_tag'] == 'unconditional-image-generation'
  assert '## Memorization\n\n64 images' in text
  assert '`npz:coded.npz`' in text
  assert 'the codes of the autoencoder `vq`' in text
  poems = tiny.config('bundled:song_ci', data={'packing': 'documents', 'tokenizer': 'bpe:600'}, **SHORT)
  data, text = carded(tiny.train(poems, folder / 'poems'))
  assert data['language'] == ['zh']
  assert 'longest verbatim overlap in tokens' in text
  assert 'There it stands from character' in text


def test_places_of_this_machine_are_not_told():
  assert shortened('text:/home/me/my book.txt') == 'text:my book.txt'
  assert shortened('jsonl:~/a/b.jsonl#body') == 'jsonl:b.jsonl#body'
  assert shortened('--config.data.source=images:/data/dogs/') == '--config.data.source=images:dogs'
  for kept in ('bundled:moby_dick', 'runs/mine', '{source} Answer:', 'tfds:mnist:3.0.1', '^(embed|block)'):
    assert shortened(kept) == kept
  assert public({'a': ['/x/y', None, 3]}) == {'a': ['y', None, 3]}


def test_a_fence_is_longer_than_any_in_the_text():
  lines = fenced('a\n````\nb')
  assert (lines[0], lines[-1]) == ('`````text', '`````')


def about_with(argv, rows=()):
  made = type('About', (), {})()
  made.starts, made.rows, made.name = [{'argv': argv}], rows, 'mine'
  return made


def test_the_command_is_told_without_what_is_of_one_machine():
  argv = ['/usr/bin/aigc', 'train', '--config', 'configs/a.py:b', '--workdir', '/tmp/x', '--profile=1:2']
  argv += ['--config.data.source=text:/home/me/a b.txt']
  told = use.typed(about_with(argv))
  assert told == "aigc train --config configs/a.py:b '--config.data.source=text:a b.txt' --workdir=runs/mine"
  assert use.typed(about_with(['pytest', '-q'])) is None


def test_the_seconds_of_all_starts_are_added():
  rows = [{'time/seconds': s} for s in (1.0, 5.0)] + [{}] + [{'time/seconds': s} for s in (0.5, 2.0)]
  assert seconds(about_with([], rows)) == 7.0
  assert seconds(about_with([])) is None


def one_line(capsys, *arguments):
  status = cli.main(list(arguments))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith('aigc: ')
  return status, lines[0]


def test_bad_input_is_one_line(written, folder, capsys):
  status, line = one_line(capsys, 'card', str(folder / 'nothing'))
  assert status == 64
  assert 'no such run folder' in line
  empty = folder / 'begun'
  empty.mkdir()
  (empty / 'config.json').write_text((written.path / 'config.json').read_text())
  (empty / 'data.json').write_text((written.path / 'data.json').read_text())
  status, line = one_line(capsys, 'card', str(empty))
  assert status == 64
  assert "no checkpoint 'best'; there are: none" in line
  status, line = one_line(capsys, 'card', str(written.path), '--output', str(folder))
  assert 'is a folder' in line
  status, line = one_line(capsys, 'card', str(written.path), '--data=book.txt')
  assert 'kind:place' in line
  with pytest.raises(UsageError, match='must be 1 or more'):
    written.card(samples=0)


def test_the_command_writes_it(written, folder, capsys):
  output = folder / 'typed.md'
  options = [f'--output={output}', '--checkpoint=latest', '--samples=2', '--tokens=12']
  assert cli.main(['card', str(written.path), *options]) == 0
  assert capsys.readouterr().out == f'{output}\n'
  assert output.read_text(encoding='utf-8').startswith('---\nlibrary_name: aigc_jax\n')
  assert aigc_jax.card(written.path, folder / 'called.md', samples=2, tokens=12) == folder / 'called.md'


@pytest.mark.slow
def test_a_run_that_knows_its_text_by_heart_is_found_out(folder):
  """Trained hundreds of times on one short text, it writes passages of it that held-out text has nothing like."""
  source = tiny.write_corpus(folder / 'short.txt', words=80)
  config = tiny.config(
    source,
    model={'layers': 2, 'width': 64},
    data={'sequence_length': 48, 'validation_fraction': 0.4, 'batch_size': 8},
    training={'steps': 400, 'evaluate_every': 400, 'checkpoint_every': 400},
    optimizer={'learning_rate': 5e-3, 'schedule': 'cosine'},
  )
  run = tiny.train(config, folder / 'parrot')
  text = run.card(samples=4, tokens=128).read_text(encoding='utf-8')
  row = re.search(r'overlap in characters: median; maximum \| .*?; (\d+) \| .*?; (\d+) \|', text)
  assert int(row[1]) > 3 * int(row[2])  # 111 and 16 where this was written
