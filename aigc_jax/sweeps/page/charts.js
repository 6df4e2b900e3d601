'use strict';
// The charts of final values: against each parameter, over parallel axes, and over two parameters.

const finished = () => data.trials.map((trial, i) => ({ ...trial, i })).filter((t) => t.best !== null && t.state !== 'non-finite' && t.state !== 'failed');
const picture = (width, height, label) => {
  const made = document.createElementNS('http:' + '//www.w3.org/2000/svg', 'svg');
  made.setAttribute('viewBox', `0 0 ${width} ${height}`);
  made.setAttribute('role', 'img');
  made.setAttribute('aria-label', label);
  return made;
};

function parametersPanel(section) {
  const trials = finished(), keys = data.keys.filter((key) => !data.seeds.includes(key) || data.keys.length === 1);
  if (!trials.length || !keys.length) return section.classList.add('empty');
  const grid = element('div', { class: 'grid' });
  for (const key of keys) grid.append(element('figure', {}, element('figcaption', {}, key), scatter(key, trials)));
  section.append(grid, element('p', { class: 'note' }, `Each dot is a trial at its best evaluation; the line joins the means. ${data.higher ? 'Higher' : 'Lower'} is better.`));
}

function scatter(key, trials) {
  const width = 400, height = 240, svg = picture(width, height, `${data.metric} against ${key}`);
  svg.style.maxWidth = '480px';
  const axis = axisOf(key, 52, width - 12), y = scale(padded(extent(trials.map((t) => t.best)), false), [height - 34, 10]);
  for (const tick of y.ticks) {
    shape(svg, 'line', { class: 'axis', x1: 52, x2: width - 12, y1: y(tick), y2: y(tick) });
    shape(svg, 'text', { x: 46, y: y(tick) + 4, 'text-anchor': 'end' }, number(tick));
  }
  for (const [place, text] of spread(axis.ticks, 44)) shape(svg, 'text', { x: place, y: height - 18, 'text-anchor': 'middle' }, text);
  shape(svg, 'text', { class: 'label', x: (40 + width) / 2, y: height - 3, 'text-anchor': 'middle' }, short(key) + (axis.log ? ' (log)' : ''));
  const means = axis.values.map((value) => {
    const mine = trials.filter((t) => JSON.stringify(t.values[key]) === JSON.stringify(value));
    return mine.length && [axis.at(value), y(mine.reduce((a, t) => a + t.best, 0) / mine.length)];
  }).filter((point) => point && !Number.isNaN(point[0])).sort((a, b) => a[0] - b[0]);
  if (isNumeric(key) && means.length <= 30) shape(svg, 'polyline', { class: 'mean', points: means.map((p) => p.join()).join(' ') });
  const colour = colours('metric');
  for (const trial of trials) {
    const dot = shape(svg, 'circle', { class: 'dot', cx: axis.at(trial.values[key]), cy: y(trial.best), r: 3.6, fill: colour.of(trial.i) });
    dot.addEventListener('pointermove', (event) => tip(event, `${trial.name} ${describeTrial(trial)}\n${data.metric} ${number(trial.best, 6)}`));
    dot.addEventListener('pointerleave', () => tip(null, null));
  }
  return svg;
}

// ticks without those that would stand on one another
function spread(ticks, gap) {
  let last = -Infinity;
  return [...ticks].sort((a, b) => a[0] - b[0]).filter(([place]) => place - last >= gap && ((last = place), true));
}

function parallelPanel(section) {
  const trials = finished();
  if (trials.length < 2 || !data.keys.length) return section.classList.add('empty');
  const names = [...data.keys, data.metric], width = Math.max(620, section.clientWidth - 44, 110 * names.length), height = 300;
  const svg = picture(width, height, 'parallel coordinates'), top = 40, bottom = height - 16, brushes = {};
  const metric = scale(extent(trials.map((t) => t.best)), [bottom, top]);
  const axes = names.map((key, i) => {
    const x = 60 + (i * (width - 120)) / Math.max(names.length - 1, 1);
    const axis = key === data.metric ? { at: metric, ticks: metric.ticks.map((t) => [metric(t), number(t)]) } : axisOf(key, bottom, top);
    return { key, x, ...axis, value: (t) => (key === data.metric ? t.best : t.values[key]) };
  });
  const colour = colours('metric'), lines = trials.map((trial) => {
    const points = axes.map((axis) => [axis.x, axis.at(axis.value(trial))]).filter((p) => !Number.isNaN(p[1]));
    const line = shape(svg, 'polyline', { points: points.map((p) => p.join()).join(' '), fill: 'none', stroke: colour.of(trial.i), 'stroke-width': 1.5 });
    line.addEventListener('pointermove', (event) => tip(event, `${trial.name} ${describeTrial(trial)}\n${data.metric} ${number(trial.best, 6)}`));
    line.addEventListener('pointerleave', () => tip(null, null));
    return line;
  });
  const filter = () => lines.forEach((line, i) => {
    const inside = axes.every((axis) => !brushes[axis.key] || within(axis.at(axis.value(trials[i])), brushes[axis.key]));
    line.setAttribute('stroke-opacity', inside ? 0.8 : 0.06);
  });
  for (const axis of axes) drawAxis(svg, axis, top, bottom, brushes, filter);
  filter();
  const names_ = element('div', { class: 'legend' });
  legend(names_, colour.legend);
  section.append(element('div', { class: 'scroll' }, svg), names_, element('p', { class: 'note' }, 'Drag along an axis to keep the trials that cross it there; click it to see all. Colour is the metric.'));
}

const within = (place, [a, b]) => place >= a && place <= b;

function drawAxis(svg, axis, top, bottom, brushes, filter) {
  shape(svg, 'line', { class: 'axis', x1: axis.x, x2: axis.x, y1: top, y2: bottom, style: 'stroke: var(--soft)' });
  shape(svg, 'text', { class: 'label', x: axis.x, y: 18, 'text-anchor': 'middle' }, short(axis.key));
  for (const [place, text] of spread(axis.ticks, 12)) shape(svg, 'text', { class: 'over', x: axis.x - 6, y: place + 4, 'text-anchor': 'end' }, text);
  const mark = shape(svg, 'rect', { x: axis.x - 7, width: 14, y: top, height: 0, fill: 'var(--accent)', 'fill-opacity': 0.3 });
  const grip = shape(svg, 'rect', { x: axis.x - 12, width: 24, y: top - 8, height: bottom - top + 16, fill: 'transparent', style: 'cursor: ns-resize' });
  let from = null;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientY - box.top) / box.height) * svg.viewBox.baseVal.height;
  };
  grip.addEventListener('pointerdown', (event) => {
    from = place(event);
    grip.setPointerCapture(event.pointerId);
  });
  grip.addEventListener('pointermove', (event) => {
    if (from === null) return;
    const [a, b] = [Math.min(from, place(event)), Math.max(from, place(event))];
    brushes[axis.key] = b - a > 3 ? [a, b] : null;
    mark.setAttribute('y', a);
    mark.setAttribute('height', b - a > 3 ? b - a : 0);
    filter();
  });
  grip.addEventListener('pointerup', (event) => {
    if (Math.abs(place(event) - from) <= 3) {
      brushes[axis.key] = null;
      mark.setAttribute('height', 0);
      filter();
    }
    from = null;
  });
}

function heatPanel(section) {
  const keys = data.keys.filter((key) => !data.seeds.includes(key)), trials = finished();
  if (keys.length < 2 || !trials.length) return section.classList.add('empty');
  const view = { x: keys[0], y: keys[1] }, place = element('div', { class: 'scroll' });
  const draw = () => place.replaceChildren(heatMap(view, trials));
  const options = keys.map((key) => [key, key]);
  section.append(element('div', { class: 'controls' }, choice('across', options, view.x, (v) => ((view.x = v), draw())), choice('down', options, view.y, (v) => ((view.y = v), draw()))), place,
    element('p', { class: 'note' }, `Mean of ${data.metric} over the other parameters and seeds.`));
  draw();
}

function heatMap(view, trials) {
  const [xs, ys] = [cellsOf(view.x), cellsOf(view.y)], cell = Math.max(54, Math.min(110, 900 / xs.length)), high = 34;
  const svg = picture(90 + cell * xs.length, 30 + high * ys.length + 18, `${data.metric} over ${view.x} and ${view.y}`);
  svg.style.maxWidth = `${90 + cell * xs.length}px`;
  const mean = (x, y) => {
    const mine = trials.filter((t) => x.has(t.values[view.x]) && y.has(t.values[view.y]));
    return mine.length ? mine.reduce((a, t) => a + t.best, 0) / mine.length : null;
  };
  const values = ys.map((y) => xs.map((x) => mean(x, y))), [low, top] = extent(values.flat().filter((v) => v !== null));
  ys.forEach((y, r) => {
    shape(svg, 'text', { x: 82, y: 24 + high * r + high / 2 + 4, 'text-anchor': 'end' }, y.text);
    xs.forEach((x, c) => {
      const value = values[r][c], part = value === null ? 0 : (value - low) / (top - low);
      shape(svg, 'rect', { x: 90 + cell * c, y: 24 + high * r, width: cell - 2, height: high - 2, fill: value === null ? 'var(--line)' : ramp(part) });
      shape(svg, 'text', { x: 89 + cell * (c + 0.5), y: 24 + high * (r + 0.5) + 3, 'text-anchor': 'middle', style: `fill: ${value === null ? 'var(--soft)' : part > 0.6 ? '#111' : '#fff'}` }, value === null ? 'no trial' : number(value));
    });
  });
  xs.forEach((x, c) => shape(svg, 'text', { x: 89 + cell * (c + 0.5), y: 16, 'text-anchor': 'middle' }, x.text));
  shape(svg, 'text', { class: 'label', x: 90 + (cell * xs.length) / 2, y: 24 + high * ys.length + 14, 'text-anchor': 'middle' }, `${short(view.x)} across, ${short(view.y)} down`);
  return svg;
}

// the rows or columns of a heat map: values, or of many numbers eight stretches; [{text, has: value -> bool}]
function cellsOf(key) {
  const axis = axisOf(key, 0, 8), values = axis.values;
  if (!isNumeric(key) || values.length <= 12) {
    const sorted = isNumeric(key) ? [...values].sort((a, b) => a - b) : values;
    return sorted.map((value) => ({ text: value === null ? 'none' : number(value), has: (v) => JSON.stringify(v) === JSON.stringify(value) }));
  }
  const place = (v) => Math.min(7, Math.floor(axis.at(v)));
  return [...Array(8).keys()].map((i) => {
    const inside = values.filter((v) => v !== null && place(v) === i);
    return { text: inside.length ? number(extentOf(inside)[0], 2) + ' …' : '', has: (v) => v !== null && place(v) === i, count: inside.length };
  }).filter((cell) => cell.count);
}

const extentOf = (values) => [Math.min(...values), Math.max(...values)];
