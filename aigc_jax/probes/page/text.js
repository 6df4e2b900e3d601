'use strict';
// Texts on colours: a number for each token, or one for each other token of the token that the pointer is at.

const STRONGEST = 5;

// a text of spans, with its white space visible
function textOf(tokens, label, apart = false) {
  const node = element('div', { class: 'text', tabindex: 0, 'aria-label': label });
  const spans = tokens.map((token) => {
    const span = element('span');
    // one character after another: a mark for white space is pale, and a line's end ends the line
    for (const piece of visible(token).split(/([⏎⇥␣∅])/)) {
      if (!piece) continue;
      span.append(/^[⏎⇥␣∅]$/.test(piece) ? element('i', {}, piece) : piece);
      if (piece === '⏎' && !apart) span.append('\n');
    }
    // a line may end where white space is, although a mark stands for it
    if (apart || /^\s/.test(token)) node.append(element('wbr'));
    node.append(span);
    if (/\s$/.test(token)) node.append(element('wbr'));
    return span;
  });
  return { node, spans };
}

function colour(span, value, scale) {
  const found = scale.of(value);
  span.style.background = found ? `rgb(${found})` : '';
  span.style.color = found ? inkOn(found) : '';
  span.classList.toggle('missing', !found);
}

function textPanel(panel, body) {
  const array = data.arrays[panel.array], own = panel.choices.map(choiceOf), diverging = panel.colours === 'diverging';
  const view = { own: panel.pairwise, from: 0, pinned: false }, whole = limits(array.values, diverging);
  const apart = panel.pairwise && panel.others !== null;
  const asked = textOf(panel.tokens, panel.title, apart), told = apart ? textOf(panel.others, `${panel.title}, what is coloured`) : asked;
  const bar = element('span', { class: 'scale' }), best = element('p', { class: 'note' }), readout = element('p', { class: 'pinned-text' });
  const row = () => chosenOf(array, [...own.map((choice) => choice.place), ...(panel.pairwise ? [view.from] : [])]);
  const small = panel.pairwise || own.length > 1 ? thumbs(panel, array, own, () => scaleOf({ ...panel, kind: 'heat' }, whole)) : null;
  const draw = () => {
    view.row = row();
    const scale = scaleOf(panel, view.own ? limits(view.row, diverging) : whole);
    told.spans.forEach((span, i) => colour(span, view.row[i], scale));
    showScale(bar, scale, panel.unit);
    if (!panel.pairwise) return;
    asked.spans.forEach((span, i) => {
      span.classList.toggle('chosen', i === view.from);
      span.classList.toggle('pinned', i === view.from && view.pinned);
    });
    best.textContent = strongest(panel, view);
    readout.textContent = view.pinned ? [`pinned: ${visible(panel.tokens[view.from])}`, detail(panel, view.from)].filter(Boolean).join('\n') : '';
  };
  const all = () => {
    if (small) small.draw();
    draw();
  };
  if (panel.pairwise) {
    view.from = firstOf(panel, array, own);
    asked.node.classList.add('asks');
    listenToTokens(asked, view, draw);
  }
  if (apart) asked.node.classList.add('apart');
  listenForTips(panel, view, asked, told);
  const separate = own.length || panel.pairwise ? toggle(panel.pairwise ? 'a scale of its own for each token' : 'a scale of its own for each', view.own, (on) => ((view.own = on), all())) : '';
  const parts = apart ? [asked.node, element('p', { class: 'caption' }, 'on what is chosen above:'), told.node] : [asked.node];
  body.append(element('div', { class: 'controls' }, ...own.map(chooser), separate, bar),
    element('div', { class: 'columns' }, ...(small ? [small.node] : []), element('div', { class: 'main' }, ...parts, best, readout)));
  if (panel.pairwise) body.append(element('p', { class: 'note' }, 'Point at a token to colour the others; click to keep it, and again to let it go.'));
  own.forEach((choice) => choice.listeners.push(draw));
  listenToArrows(body, own, (step) => {
    if (!panel.pairwise) return false;
    view.from = Math.min(Math.max(view.from + step, 0), panel.tokens.length - 1);
    draw();
    return true;
  });
  redraws.push(all);
  return all;
}

// the last token that has numbers: of a text read from left to right, the one that knows most
function firstOf(panel, array, own) {
  for (let i = panel.tokens.length - 1; i > 0; i--) {
    if (chosenOf(array, [...own.map((c) => c.place), i]).some((value) => typeof value === 'number')) return panel.others === null ? i : 0;
  }
  return 0;
}

const withUnit = (value, unit) => `${number(value)}${value === null || !unit ? '' : ' ' + unit}`;
const detail = (panel, i) => (panel.details ? panel.details[i] : '');
const othersOf = (panel) => panel.others || panel.tokens;

function strongest(panel, view) {
  const size = (i) => Math.abs(finite(view.row[i])), order = [...view.row.keys()].filter((i) => view.row[i] !== null && view.row[i] !== 0);
  order.sort((a, b) => size(b) - size(a));
  return order.slice(0, STRONGEST).map((i) => `${visible(othersOf(panel)[i])} ${number(view.row[i])}`).join('  ·  ');
}

function listenToTokens(asked, view, draw) {
  asked.spans.forEach((span, i) => {
    span.addEventListener('pointerenter', () => {
      if (view.pinned || view.from === i) return;
      view.from = i;
      draw();
    });
    span.addEventListener('click', () => {
      view.pinned = !(view.pinned && view.from === i);
      view.from = i;
      draw();
    });
  });
}

function listenForTips(panel, view, asked, told) {
  const pair = (i) => `${visible(panel.tokens[view.from])} → ${visible(othersOf(panel)[i])}\n${number(view.row[i])}`;
  const single = (i) => [visible(panel.tokens[i]), panel.pairwise ? '' : withUnit(view.row[i], panel.unit), detail(panel, i)].filter(Boolean).join('\n');
  const listen = (spans, text) => spans.forEach((span, i) => {
    span.addEventListener('pointermove', (event) => tip(event, text(i)));
    span.addEventListener('pointerleave', () => tip(null, null));
  });
  if (told !== asked) {
    listen(asked.spans, single);
    listen(told.spans, pair);
  } else listen(asked.spans, panel.pairwise ? (i) => [pair(i), detail(panel, i)].filter(Boolean).join('\n') : single);
}
