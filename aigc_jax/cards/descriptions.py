"""What metrics, tasks and models are, in words: one table of each, which tests hold against all that there is."""

import re
from typing import NamedTuple

from aigc_jax import own_code

HIGHER, LOWER, NEITHER = '↑', '↓', ''


class Metric(NamedTuple):
  better: str  # HIGHER, LOWER or NEITHER
  text: str  # what it is, how it is computed, in what unit


# of the loss, by task; its unit is the task's own
LOSSES = {
  'language': 'cross-entropy of each token given those before it',
  'masked_language': 'cross-entropy of the tokens that are hidden, given all others',
  'translation': 'cross-entropy of each target token given the source and the right tokens before it, the end of the '
  'target included; without label smoothing',
  'autoencoding': "-log p(image | latent) plus the bottleneck's cost: beta times the divergence from the prior, or "
  'what keeps codes and encoder together; of a latent without either, nothing',
  'classification': 'cross-entropy of the class, without label smoothing',
  'contrastive': 'InfoNCE: cross-entropy of finding the other view of an image among all views of the batch',
  'masked_images': 'squared error of hidden pixels, from 0 to 1, alone',
  'q_learning': 'half the squared temporal difference along greedy episodes, with the network as its own target',
}
METRICS = {
  'accuracy': Metric(
    HIGHER, 'share, from 0 to 1, of the tokens, masks or examples whose likeliest answer is the right one'
  ),
  'exact_match': Metric(
    HIGHER,
    'share, from 0 to 1, of targets whose every token is the likeliest one behind the right ones: what greedy decoding '
    'writes without a mistake',
  ),
  'perplexity': Metric(
    LOWER, 'exp of the loss: among how many equally likely tokens the model chooses, per token'
  ),
  'pseudo_perplexity': Metric(
    LOWER,
    'exp of the loss at hidden tokens; not the perplexity of a text, nor that of tokens hidden one by one',
  ),
  'bits_per_character': Metric(
    LOWER,
    'loss of all tokens in bits, by the number of Unicode characters that they stand for, so that models of other '
    'tokenizers can be compared',
  ),
  'reconstruction': Metric(
    LOWER,
    '-log p(image | latent) of an image, by the likelihood of the model, in nats; under squared error, the sum of '
    'squared errors of its pixels',
  ),
  'kl': Metric(
    NEITHER, "divergence of an image's posterior from the prior N(0, 1), in nats: what its latent says of it"
  ),
  'elbo': Metric(
    HIGHER,
    'evidence lower bound on log p(image), in nats, one draw of the latent for each image (Kingma and Welling 2014); '
    'of a density where the likelihood is Gaussian',
  ),
  'importance_bound': Metric(
    HIGHER,
    'importance-weighted lower bound on log p(image), in nats, of config.task.importance_samples draws (Burda et al. '
    '2016, eq. 8)',
  ),
  'bits_per_dimension': Metric(
    LOWER,
    '-ELBO in bits by the number of pixels and channels; pixels have 256 levels, or 2 where they are binarized',
  ),
  'active_units': Metric(
    HIGHER, 'latents whose posterior mean varies over the images, variance above 0.01 (Burda et al. 2016)'
  ),
  'codebook_perplexity': Metric(
    HIGHER, 'exp of the entropy of how often each code is used: the codes in use, if all were used alike'
  ),
  'codes_used': Metric(HIGHER, 'codes that at least one image uses'),
  'calibration_error': Metric(
    LOWER,
    'expected calibration error, from 0 to 1: how far confidence is from accuracy in bins of like confidence (Guo et '
    'al. 2017, eq. 3; config.task.calibration_bins bins)',
  ),
  'contrast_accuracy': Metric(
    HIGHER,
    "share, from 0 to 1, of views whose nearest among the batch's is the other view of the same image; it depends on "
    'the batch size',
  ),
  'probe_accuracy': Metric(
    HIGHER,
    'share, from 0 to 1, of validation images whose class a logistic regression tells from frozen features; it learns '
    'from config.task.labels_per_class training images of each class',
  ),
  'neighbour_accuracy': Metric(
    HIGHER,
    'the same by the votes of the nearest of these few images, by the angle between features (Wu et al. 2018)',
  ),
  'return': Metric(HIGHER, 'sum of the rewards of an episode, without discount, mean over greedy episodes'),
  'length': Metric(NEITHER, 'steps of an episode, mean over greedy episodes'),
  'table_error': Metric(
    LOWER,
    "largest distance of a value from that of value iteration on the world's table, over states that can be reached",
  ),
}
# of `aigc eval --metrics`, whose own protocol stands beside each value
SCORES = {
  'bleu': Metric(
    HIGHER, 'BLEU of the corpus, 0 to 100 (Papineni et al. 2002): n-grams of predictions in references'
  ),
  'chrf': Metric(HIGHER, 'chrF2 of the corpus, 0 to 100 (Popović 2015): F-score of character n-grams'),
  'rouge1': Metric(HIGHER, 'ROUGE-1, 0 to 100 (Lin 2004): F1 of words'),
  'rouge2': Metric(HIGHER, 'ROUGE-2, 0 to 100: F1 of pairs of words'),
  'rougel': Metric(HIGHER, 'ROUGE-L, 0 to 100: F1 of the longest common subsequence of words'),
  'exact_match': Metric(HIGHER, 'share of predictions equal to their reference, 0 to 100'),
  'distinct_1': Metric(HIGHER, 'different words of all predictions, as a part of all words (Li et al. 2016)'),
  'distinct_2': Metric(HIGHER, 'different pairs of words of all predictions, as a part of all pairs'),
  'perplexity_per_token': Metric(LOWER, 'exp of the nats of the text by its tokens'),
  'perplexity_per_word': Metric(LOWER, 'exp of the nats of the text by its words'),
  'perplexity_per_character': Metric(LOWER, 'exp of the nats of the text by its characters'),
  'perplexity_per_byte': Metric(LOWER, 'exp of the nats of the text by its bytes'),
}
OF_CLASS = re.compile(r'accuracy_(\d+)')


def metric(name: str, task: str) -> Metric:
  """What a metric of an evaluation is. Raises KeyError for one of our tasks without a description."""
  if own_code.is_own(task):
    return Metric(LOWER if name == 'loss' else NEITHER, 'as the task, code of its author, computes it')
  if name == 'loss':
    return Metric(LOWER, LOSSES[task])
  if OF_CLASS.fullmatch(name):
    return Metric(HIGHER, 'accuracy on the examples of one class alone')
  return METRICS[name]


TASKS = {
  'language': 'It predicts the next token of a text, and so writes texts.',
  'masked_language': 'It finds tokens of a text that are hidden, from both sides.',
  'translation': 'It reads one text and writes another: its answer, translation or second half.',
  'autoencoding': 'It gives images back through a narrow latent.',
  'classification': 'It tells to which class an image or a text belongs.',
  'contrastive': 'It tells two views of an image from those of all others, and learned so without labels; its features '
  'are for other tasks.',
  'masked_images': 'It gives hidden parts of images back, and learned so without labels; its features are for other '
  'tasks.',
  'q_learning': 'It says what each action in a world is worth, and so acts in it.',
}
MODELS = {
  'transformer': 'a decoder-only Transformer',
  'transformer_encoder': 'a Transformer encoder, which reads both ways',
  'transformer_encoder_decoder': 'a Transformer with an encoder and a decoder',
  'rnn': 'a recurrent network',
  'rnn_encoder_decoder': 'a recurrent encoder and decoder with attention',
  'autoencoder': 'an autoencoder',
  'vq_autoencoder': 'a vector-quantized autoencoder, whose latent is a grid of codes',
  'q_network': 'a fully connected network of action values',
  'q_table': 'a table with a value for each state and action',
  'mlp': 'a fully connected network',
  'cnn': 'a convolutional network',
  'resnet': 'a residual convolutional network',
  'vision_transformer': 'a Transformer on patches of images',
  'rnn_classifier': 'a recurrent classifier',
  'transformer_classifier': 'a Transformer encoder with a classifier behind it',
}
# fields of a model that say most, in this order
TOLD = (
  'architecture',
  'posterior',
  'cell',
  'direction',
  'encoder_layers',
  'layers',
  'heads',
  'key_value_heads',
  'width',
  'widths',
  'channels',
  'blocks',
  'latent_width',
  'code_width',
  'codebook_size',
  'patch_size',
  'positions',
  'normalization',
  'activation',
  'likelihood',
  'conditional',
  'dueling',
  'dropout',
  'actions',
)


def task(name) -> str:
  """What is learned, in a sentence."""
  return f'What it learns, `{name}`, is code of its author.' if own_code.is_own(name) else TASKS[name]


def model(config) -> str:
  """A complete `config.model` in words: 'a decoder-only Transformer: layers 4, heads 4, ...'."""
  is_own = own_code.is_own(config['name'])
  spoken = lambda value: ' and '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
  fields = [
    name.replace('_', ' ') if config[name] is True else f'{name.replace("_", " ")} {spoken(config[name])}'
    for name in ([*config][1:] if is_own else TOLD)
    if config.get(name) not in (None, False)
  ]
  kind = f'`{config["name"]}`, code of its author' if is_own else MODELS[config['name']]
  return f'{kind}: {", ".join(fields)}' if fields else kind


PICTURES = {
  'samples': 'images that it draws',
  'reconstructions': 'images of the validation split, and below each what it gives back',
  'interpolation': 'straight lines through the latent space, from one image to another',
  'latent_map': 'the plane of its two latents',
  'confusion': 'which classes it takes for which',
  'mistakes': 'the mistakes that it is surest of',
  'views': 'images of the validation split, and below each two views of it',
  'embeddings': 'its features of validation images on their first two principal axes',
  'translations': 'sources, what it writes, and the right answers',
  'sample': 'text that it writes',
  'rollout': 'how it acts',
}
OF_TASK = {
  ('masked_images', 'reconstructions'): 'what it sees of images, what it gives back, and the images, in rows',
  ('masked_language', 'sample'): 'a text with tokens hidden, and as it fills them in',
}


def picture(task: str, name: str) -> str:
  """What a sample of the run folder shows, by its file's name without step and suffix; '' where that is not known."""
  return OF_TASK.get((task, name)) or PICTURES.get(name, '')
