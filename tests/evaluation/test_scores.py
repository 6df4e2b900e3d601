"""Scores against counting by hand, and what any score must do."""

import itertools
import json
import math
import random

import numpy as np
import pytest

from aigc_jax.errors import DataError, UsageError
from aigc_jax.evaluation import perplexity, report, scores, words
from aigc_jax.typography import columns

CHINESE = ['类型“{0}”不能作为索引类型使用。', '应为标识符。', '春花秋月何时了，往事知多少。']
ENGLISH = ['The cat sat on the mat.', 'Call me Ishmael, some years ago', 'never mind how long']


def value_of(name, predictions, references):
  return {found.name: found.value for found in scores.score([name], predictions, references)}


def test_words_part_chinese_by_characters_and_others_by_spaces():
  assert words.words('Hello, 世界! GPT-2很好') == ['hello', '世', '界', 'gpt', '2', '很', '好']
  assert words.count_words('Hello, 世界 two-part') == 4
  assert words.is_chinese(CHINESE)
  assert not words.is_chinese(ENGLISH)
  assert not words.is_chinese([''])


@pytest.mark.parametrize('texts', [CHINESE, ENGLISH], ids=['chinese', 'english'])
def test_a_perfect_prediction_has_all_points_and_the_order_of_texts_none(texts):
  names = ['bleu', 'chrf', 'rouge', 'exact_match']
  found = scores.score(names, texts, texts)
  assert [score.name for score in found] == ['bleu', 'chrf', 'rouge1', 'rouge2', 'rougel', 'exact_match']
  assert all(score.value == pytest.approx(100) for score in found)
  worse = [text[: len(text) // 2] for text in texts]
  turned = [2, 0, 1]
  there = scores.score(names, worse, texts)
  moved = scores.score(names, [worse[i] for i in turned], [texts[i] for i in turned])
  assert [a.value for a in there] == pytest.approx([b.value for b in moved])
  assert all(0 <= a.value < 100 for a in there)


def test_bleu_is_the_one_of_its_paper_for_chinese_characters():
  """Precisions of n-grams and the penalty for brevity, counted plainly (Papineni et al. 2002, section 2.3)."""
  reference, prediction = '今天天气很好我们去公园吧', '今天天气很好我们回家吧'
  logs = []
  for n in range(1, 5):
    grams = lambda text, n=n: [text[i : i + n] for i in range(len(text) - n + 1)]
    rest, hits = grams(reference), 0
    for gram in grams(prediction):
      if gram in rest:
        rest.remove(gram)
        hits += 1
    logs.append(math.log(hits / len(grams(prediction))))
  expected = 100 * math.exp(sum(logs) / 4 + min(0, 1 - len(reference) / len(prediction)))
  assert value_of('bleu', [prediction], [reference])['bleu'] == pytest.approx(expected)
  assert 'tok:zh' in scores.score(['bleu'], [prediction], [reference])[0].protocol
  assert 'tok:13a' in scores.score(['bleu'], ENGLISH, ENGLISH)[0].protocol


def longest_common(a, b):
  """By trying all subsequences."""
  for n in range(len(a), 0, -1):
    for chosen in itertools.combinations(a, n):
      rest = iter(b)
      if all(word in rest for word in chosen):
        return n
  return 0


def test_rouge_is_counting_common_words_and_subsequences():
  generator = random.Random(0)
  pairs = [
    [''.join(generator.choices('春花秋月夜', k=generator.randint(1, 8))) for _ in range(2)] for _ in range(20)
  ]
  one, longest = [], []
  for prediction, reference in pairs:
    common = sum(min(prediction.count(c), reference.count(c)) for c in set(prediction))
    one.append(2 * common / (len(prediction) + len(reference)))
    longest.append(2 * longest_common(prediction, reference) / (len(prediction) + len(reference)))
  found = value_of('rouge', *map(list, zip(*pairs, strict=True)))
  assert found['rouge1'] == pytest.approx(100 * np.mean(one))
  assert found['rougel'] == pytest.approx(100 * np.mean(longest))


def test_distinct_counts_different_ngrams_of_all_predictions_together():
  found = value_of('distinct', ['a b a b', 'a b'], ['', ''])
  assert found == {'distinct_1': 2 / 6, 'distinct_2': 2 / 4}
  assert value_of('distinct', ['', ''], ['', '']) == {'distinct_1': 0, 'distinct_2': 0}


def test_empty_predictions_have_no_points():
  found = scores.score(['bleu', 'chrf', 'rouge', 'exact_match'], ['', ''], CHINESE[:2])
  assert [score.value for score in found] == [0] * 6


def test_what_is_no_score_or_has_no_partner_is_refused():
  with pytest.raises(UsageError, match="'blue' is no score; did you mean 'bleu'"):
    scores.check(['blue'])
  with pytest.raises(DataError, match='2 predictions and 1 references'):
    scores.score(['bleu'], ['a', 'b'], ['a'])


def test_perplexities_are_one_likelihood_by_four_counts():
  text = 'Call me 以实玛利'
  found = {score.name: score.value for score in perplexity.perplexities(12.0, 5, text)}
  counts = {'token': 5, 'word': 6, 'character': 12, 'byte': 8 + 12}
  assert found == pytest.approx({f'perplexity_per_{name}': math.exp(12 / n) for name, n in counts.items()})


def test_predictions_lie_beside_their_scores(tmp_path):
  rows = [{'source': 'a', 'prediction': '乙', 'reference': 'b'}]
  path = report.write(tmp_path / 'new', rows, [scores.Score('bleu', 12.5, 'how')], {'strategy': 'greedy'})
  assert [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] == rows
  written = json.loads((tmp_path / 'new' / 'scores.json').read_text(encoding='utf-8'))
  assert written['scores'] == {'bleu': {'value': 12.5, 'protocol': 'how'}}
  assert written['settings'] == {'strategy': 'greedy'}


def test_tables_align_wide_characters_and_cut_long_texts():
  rows = [{'source': '标识符 ' * 20, 'prediction': 'x'}, {'source': 'ab\ncd', 'prediction': '应为'}]
  lines = report.table(rows).splitlines()
  second = [columns(line[: line.index(mark)]) for line, mark in zip(lines, ('pred', 'x', '应'), strict=True)]
  assert len(set(second)) == 1
  assert '…' in lines[1]
  assert 'ab cd' in lines[2]
