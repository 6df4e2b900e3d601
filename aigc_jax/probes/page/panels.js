'use strict';
// Pictures, bars, and the page as a whole.

function picturesPanel(panel, body) {
  const { rows, columns, images, height, width } = panel, view = { pinned: null };
  const fit = Math.floor((body.clientWidth - 160) / columns.labels.length), size = Math.max(Math.min(Math.max(width, 112), fit), 16);
  const grid = element('div', { class: 'pictures', tabindex: 0, style: `grid-template-columns:auto repeat(${columns.labels.length},${size}px)` });
  const large = element('div', { class: 'large' }), shown = [];
  const text = (r, c) => [named(rows, r), named(columns, c)].filter((words) => words && words !== '∅').join(', ');
  const top = columns.labels.some(Boolean);
  if (top) grid.append(element('div'), ...columns.labels.map((label) => element('div', { class: 'top' }, label)));
  const draw = () => {
    shown.forEach(({ image, r, c }) => image.classList.toggle('chosen', Boolean(view.pinned) && view.pinned.join() === [r, c].join()));
    large.replaceChildren();
    if (!view.pinned) return;
    const [r, c] = view.pinned, side = Math.max(width, Math.min(420, width * 12));
    large.append(element('p', { class: 'caption' }, text(r, c)), element('img', { src: images[r][c], alt: text(r, c), style: `width:${side}px` }));
  };
  rows.labels.forEach((label, r) => {
    grid.append(element('div', { class: 'name' }, label));
    columns.labels.forEach((_, c) => {
      const image = element('img', { src: images[r][c], alt: text(r, c), decoding: 'async', style: `aspect-ratio:${width}/${height}` });
      image.addEventListener('pointermove', (event) => tip(event, text(r, c)));
      image.addEventListener('pointerleave', () => tip(null, null));
      image.addEventListener('click', () => {
        view.pinned = view.pinned && view.pinned.join() === [r, c].join() ? null : [r, c];
        draw();
      });
      shown.push({ image, r, c });
      grid.append(image);
    });
  });
  const names = [[rows, 'down'], [columns, 'across']].filter(([axis]) => axis.name).map(([axis, word]) => `${axis.name} ${word}`).join(', ');
  body.append(element('div', { class: 'scroll' }, grid), large, element('p', { class: 'note' }, `${names}${names ? '. ' : ''}Click a picture to see it large.`));
  listenToArrows(body, [], (step, which) => {
    if (!view.pinned) return false;
    view.pinned = view.pinned.map((at, i) => Math.min(Math.max(at + (2 - i === which ? step : 0), 0), (i ? columns : rows).labels.length - 1));
    draw();
    return true;
  });
  return draw;
}

function barsPanel(panel, body) {
  const values = data.arrays[panel.array].values, { axis } = panel, view = { sorted: false }, [low, high] = limits(values, false);
  const at = (value) => (100 * (value - low)) / (high - low), grid = element('div', { class: 'bars' });
  const draw = () => {
    const order = [...values.keys()], last = (value) => (value === null ? -Infinity : finite(value));
    if (view.sorted) order.sort((a, b) => last(values[b]) - last(values[a]) || a - b);
    grid.replaceChildren(...order.flatMap((i) => {
      const value = values[i], track = element('div', { class: 'track' });
      if (typeof value === 'number') track.append(element('b', { style: `left:${at(Math.min(value, 0))}%;width:${at(Math.abs(value) + low)}%` }));
      track.append(element('u', { style: `left:${at(0)}%` }));
      return [element('div', { class: 'name', title: named(axis, i) }, visible(axis.labels[i])), track, element('div', {}, number(value))];
    }));
  };
  body.append(element('div', { class: 'controls' }, toggle('largest first', false, (on) => ((view.sorted = on), draw())), [axis.name, panel.unit].filter(Boolean).join(', ')),
    element('div', { class: 'scroll' }, grid));
  return draw;
}

const KINDS = { heat: heatPanel, text: textPanel, pictures: picturesPanel, bars: barsPanel };
document.getElementById('title').textContent = data.title;
document.getElementById('notes').textContent = data.notes;
for (const panel of data.panels) {
  const section = element('section', { 'data-kind': panel.kind }, element('h2', {}, panel.title)), body = element('div');
  section.append(body);
  document.getElementById('panels').append(section);
  KINDS[panel.kind](panel, body)();
  if (panel.note) section.append(element('p', { class: 'note' }, panel.note));
}
// a frame of a notebook has its width only after all is drawn, and then no resize is told
let waiting = null, width = document.getElementById('panels').clientWidth;
new ResizeObserver(([{ target }]) => {
  if (target.clientWidth === width) return;
  width = target.clientWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => redraws.forEach((draw) => draw()), 120);
}).observe(document.getElementById('panels'));
dark.addEventListener('change', () => redraws.forEach((draw) => draw()));
