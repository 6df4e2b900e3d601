'use strict';
// Learning curves on a canvas: drag to zoom, double-click to go back, hover for the trial and its value.

const MARGIN = { left: 62, right: 14, top: 10, bottom: 40 };

// the first that has a curve: a single evaluation is a dot
const firstCurve = () => data.metrics.find((m) => data.trials.some((t) => t.curves[m] && t.curves[m][0].length > 1)) || data.metrics[0];

function curvesPanel(section) {
  const view = { metric: firstCurve(), x: 'step', by: data.keys.find((k) => !data.seeds.includes(k)) || 'configuration' };
  Object.assign(view, { logX: false, logY: false, mean: false, zoom: null, lit: -1, drag: null });
  const canvas = element('canvas', { tabindex: 0, 'aria-label': 'learning curves; the table of trials below has the numbers' });
  const names = element('div', { class: 'legend' });
  const again = (change) => (value) => {
    Object.assign(view, change(value), { zoom: null });
    drawCurves(canvas, view, names);
  };
  const colourings = [...data.keys, 'configuration', 'metric'].map((key) => [key, short(key)]);
  section.append(
    element('div', { class: 'controls' },
      choice('metric', data.metrics.map((m) => [m, m]), view.metric, again((v) => ({ metric: v }))),
      choice('over', [['step', 'steps'], ['seconds', 'seconds']], 'step', again((v) => ({ x: v }))),
      choice('colour', colourings, view.by, again((v) => ({ by: v }))),
      toggle('log x', false, again((v) => ({ logX: v }))),
      toggle('log y', false, again((v) => ({ logY: v }))),
      toggle('mean over seeds', false, again((v) => ({ mean: v })))),
    canvas, names, element('p', { class: 'note' }, 'Drag to zoom, double-click to see all. Curves are thinned to their highs and lows.'));
  listen(canvas, view, () => drawCurves(canvas, view, names));
  drawCurves(canvas, view, names);
  return () => drawCurves(canvas, view, names);
}

// [{trial or label, colour, x, y, band}] of what is chosen
function linesOf(view) {
  const colour = colours(view.by), column = view.x === 'step' ? 0 : 1;
  const positive = (x, y) => (!view.logX || x > 0) && (!view.logY || y > 0);
  const single = data.trials.map((trial, i) => {
    const found = trial.curves[view.metric];
    if (!found || !found.length) return null;
    const kept = found[0].map((_, k) => k).filter((k) => positive(found[column][k], found[2][k]));
    return { trial: i, name: `${trial.name} ${describeTrial(trial)}`, colour: colour.of(i), x: kept.map((k) => found[column][k]), y: kept.map((k) => found[2][k]) };
  });
  if (!view.mean) return single.filter((line) => line && line.x.length);
  return data.ranked.map((group) => meanOf(group, group.trials.map((i) => single[i]).filter((line) => line && line.x.length))).filter(Boolean);
}

// mean and standard deviation at the places of the first trial's curve, the others drawn straight between theirs
function meanOf(group, lines) {
  if (!lines.length) return null;
  const x = lines[0].x.filter((place) => lines.every((line) => place >= line.x[0] && place <= line.x.at(-1)));
  const columns = x.map((place) => lines.map((line) => between(line, place)));
  const y = columns.map((column) => column.reduce((a, b) => a + b) / column.length);
  const spread = columns.map((column, k) => Math.sqrt(column.reduce((a, b) => a + (b - y[k]) ** 2, 0) / Math.max(column.length - 1, 1)));
  return x.length ? { trial: group.trials[0], name: `${describe(group)} (mean of ${lines.length})`, colour: lines[0].colour, x, y, spread } : null;
}

function between(line, place) {
  let low = 0, high = line.x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (line.x[middle] <= place) low = middle;
    else high = middle;
  }
  const width = line.x[high] - line.x[low];
  return width ? line.y[low] + ((place - line.x[low]) / width) * (line.y[high] - line.y[low]) : line.y[low];
}

function drawCurves(canvas, view, names) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth || canvas.parentElement.clientWidth, height = width < 520 ? 300 : 400;
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext('2d');
  pen.scale(ratio, ratio);
  view.lines = linesOf(view);
  const all = (name) => view.lines.flatMap((line) => line[name]);
  const [x, y] = view.zoom || [extent(all('x')), padded(extent(all('y')), view.logY)];
  view.atX = scale(x, [MARGIN.left, width - MARGIN.right], view.logX);
  view.atY = scale(y, [height - MARGIN.bottom, MARGIN.top], view.logY);
  frameOf(pen, view, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(MARGIN.left, MARGIN.top, width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom);
  pen.clip();
  const many = view.lines.length > 60;
  view.lines.forEach((line, i) => i !== view.lit && strokeLine(pen, view, line, view.lit >= 0 || many ? 0.35 : 0.85, many ? 1 : 1.5));
  if (view.lit >= 0 && view.lines[view.lit]) strokeLine(pen, view, view.lines[view.lit], 1, 3);
  pen.restore();
  if (view.drag) markDrag(pen, view.drag);
  legend(names, view.lines.length ? colours(view.by).legend : [['transparent', `no trial has ${view.metric} yet`]]);
}

const padded = ([low, high], log) => (log ? [low, high] : [low - (high - low) * 0.04, high + (high - low) * 0.04]);

function frameOf(pen, view, width, height) {
  pen.strokeStyle = css('--line');
  pen.fillStyle = css('--soft');
  pen.font = '11px system-ui, sans-serif';
  pen.lineWidth = 1;
  pen.textAlign = 'center';
  for (const tick of view.atX.ticks) {
    rule(pen, view.atX(tick), MARGIN.top, view.atX(tick), height - MARGIN.bottom);
    pen.fillText(number(tick), view.atX(tick), height - MARGIN.bottom + 15);
  }
  pen.textAlign = 'right';
  for (const tick of view.atY.ticks) {
    rule(pen, MARGIN.left, view.atY(tick), width - MARGIN.right, view.atY(tick));
    pen.fillText(number(tick), MARGIN.left - 7, view.atY(tick) + 4);
  }
  pen.textAlign = 'center';
  pen.fillStyle = css('--ink');
  pen.font = '12px system-ui, sans-serif';
  pen.fillText(view.x === 'step' ? 'step' : 'seconds', (MARGIN.left + width - MARGIN.right) / 2, height - 6);
  pen.save();
  pen.translate(13, (height - MARGIN.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(view.metric, 0, 0);
  pen.restore();
}

function rule(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function strokeLine(pen, view, line, alpha, width) {
  const at = (k, shift = 0) => [view.atX(line.x[k]), view.atY(line.y[k] + shift)];
  pen.strokeStyle = pen.fillStyle = line.colour;
  if (line.spread && !view.logY) {
    pen.globalAlpha = alpha * 0.2;
    pen.beginPath();
    line.x.forEach((_, k) => pen.lineTo(...at(k, line.spread[k])));
    for (let k = line.x.length - 1; k >= 0; k--) pen.lineTo(...at(k, -line.spread[k]));
    pen.fill();
  }
  pen.globalAlpha = alpha;
  pen.lineWidth = width;
  pen.beginPath();
  if (line.x.length === 1) pen.arc(...at(0), 2.5, 0, 7);
  line.x.forEach((_, k) => pen.lineTo(...at(k)));
  pen.stroke();
  pen.globalAlpha = 1;
}

function markDrag(pen, { x0, y0, x1, y1 }) {
  pen.globalAlpha = 0.15;
  pen.fillStyle = css('--accent');
  pen.fillRect(x0, y0, x1 - x0, y1 - y0);
  pen.globalAlpha = 1;
}

function listen(canvas, view, redraw) {
  const place = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener('pointerdown', (event) => {
    const [x0, y0] = place(event);
    canvas.setPointerCapture(event.pointerId);
    view.drag = { x0, y0, x1: x0, y1: y0 };
  });
  canvas.addEventListener('pointermove', (event) => {
    const [x, y] = place(event);
    if (view.drag) Object.assign(view.drag, { x1: x, y1: y });
    else {
      const before = view.lit, found = nearestLine(view, x, y);
      view.lit = found ? found.line : -1;
      tip(event, found && `${view.lines[found.line].name}\n${view.x} ${number(found.x)}: ${number(found.y, 6)}`);
      if (before === view.lit) return;
    }
    redraw();
  });
  canvas.addEventListener('pointerup', () => {
    const drag = view.drag;
    view.drag = null;
    if (drag && Math.abs(drag.x1 - drag.x0) > 6 && Math.abs(drag.y1 - drag.y0) > 6) {
      const sorted = (a, b) => (a < b ? [a, b] : [b, a]);
      view.zoom = [sorted(view.atX.back(drag.x0), view.atX.back(drag.x1)), sorted(view.atY.back(drag.y0), view.atY.back(drag.y1))];
    }
    redraw();
  });
  canvas.addEventListener('pointerleave', () => {
    view.lit = -1;
    tip(null, null);
    redraw();
  });
  canvas.addEventListener('dblclick', () => {
    view.zoom = null;
    redraw();
  });
}

function nearestLine(view, x, y) {
  let best = null, least = 14 ** 2;
  view.lines.forEach((line, i) => {
    for (let k = 0; k < line.x.length; k++) {
      const distance = (view.atX(line.x[k]) - x) ** 2 * 0.3 + (view.atY(line.y[k]) - y) ** 2;
      if (distance < least) [least, best] = [distance, { line: i, x: line.x[k], y: line.y[k] }];
    }
  });
  return best;
}
