'use strict';
// Matrices: small ones to choose from, and the chosen one large, with its labels and what the pointer is at.

const MOST_THUMBS = 400, MOST_ACROSS = 32, THUMB_PIXELS = 64, WIDE_CELL = 64;
const gridded = new Set(); // pairs of choices that have their small matrices already

// an image of a matrix (rows x columns from `first` on), thinned to at most so many pixels
function paint(canvas, array, first, rows, columns, scale, most = Infinity) {
  const high = Math.min(rows, most), wide = Math.min(columns, most), missing = dark.matches ? [74, 81, 89] : [207, 211, 215];
  canvas.width = wide;
  canvas.height = high;
  const pen = canvas.getContext('2d'), image = pen.createImageData(wide, high);
  for (let r = 0, i = 0; r < high; r++) {
    const line = first + Math.floor((r * rows) / high) * columns;
    for (let c = 0; c < wide; c++, i += 4) {
      const colour = scale.of(array.values[line + Math.floor((c * columns) / wide)]) || missing;
      image.data[i] = colour[0];
      image.data[i + 1] = colour[1];
      image.data[i + 2] = colour[2];
      image.data[i + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
}

// small matrices of the last two choices (of one: in lines), or null where they stand in an earlier panel
function thumbs(panel, array, own, scale) {
  const pair = own.slice(-2), key = pair.map((c) => JSON.stringify(c.axis)).join(), count = pair.reduce((n, c) => n * c.axis.labels.length, 1);
  if (!pair.length || count > MOST_THUMBS || (pair.length > 1 && pair[1].axis.labels.length > MOST_ACROSS) || gridded.has(key)) return null;
  gridded.add(key);
  const [down, over] = pair.length > 1 ? pair : [null, pair[0]], across = over.axis.labels.length;
  const lines = down ? down.axis.labels.length : Math.ceil(across / 12), perLine = down ? across : Math.min(across, 12);
  const size = Math.round(Math.min(Math.max(380 / perLine, 18), 72)), [rows, columns] = matrixShape(panel, array);
  const grid = element('div', { class: 'thumbs', tabindex: 0, 'aria-label': 'small matrices; arrows move the choice', style: `grid-template-columns:${down ? 'max-content ' : ''}repeat(${perLine},minmax(8px,${size}px))` });
  if (down) grid.append(element('div', { class: 'name' }, `${over.axis.name} →`), ...over.axis.labels.map((label) => element('div', { class: 'name top', title: named(over.axis, over.axis.labels.indexOf(label)) }, cut(visible(label), Math.floor(size / 6)))));
  const canvases = [];
  for (let line = 0; line < lines; line++) {
    if (down) grid.append(element('div', { class: 'name' }, named(down.axis, line)));
    for (let place = down ? 0 : line * 12; place < Math.min(across, down ? across : line * 12 + 12); place++) {
      const canvas = element('canvas', { onclick: () => choose(...(down ? [[down, line]] : []), [over, place]) });
      const text = [...(down ? [named(down.axis, line)] : []), named(over.axis, place)].join(', ');
      canvas.addEventListener('pointermove', (event) => tip(event, text));
      canvas.addEventListener('pointerleave', () => tip(null, null));
      canvases.push({ canvas, places: down ? [line, place] : [place] });
      grid.append(down ? canvas : element('div', {}, canvas, element('div', { class: 'name top' }, cut(visible(over.axis.labels[place]), Math.floor(size / 6)))));
    }
  }
  const mark = () => canvases.forEach(({ canvas, places }) => canvas.classList.toggle('chosen', pair.every((c, i) => c.place === places[i])));
  const draw = () => {
    const before = own.slice(0, -pair.length).map((c) => c.place);
    canvases.forEach(({ canvas, places }) => {
      const all = [...before, ...places];
      paint(canvas, array, offsetOf(array, all)[0], rows, columns, scale(all), THUMB_PIXELS);
    });
    mark();
  };
  own.forEach((choice) => choice.listeners.push(pair.includes(choice) ? mark : draw));
  return { node: grid, draw };
}

function matrixShape(panel, array) {
  const rest = array.shape.slice(panel.choices.length);
  return rest.length > 1 ? rest : [1, ...rest];
}

function heatPanel(panel, body) {
  const array = data.arrays[panel.array], own = panel.choices.map(choiceOf), [rows, columns] = panel.axes.slice(-2);
  const view = { panel, array, rows, columns, pinned: null, own: false }, whole = limits(array.values, panel.colours === 'diverging');
  const places = () => own.map((choice) => choice.place);
  const scaleAt = (at) => scaleOf(panel, view.own ? limits(chosenOf(array, at), panel.colours === 'diverging') : whole);
  const shared = { of: null };
  const scaleFor = (at) => (view.own ? scaleAt(at) : (shared.of ||= scaleAt(at)));
  const canvas = element('canvas', { tabindex: 0, 'aria-label': `${panel.title}; arrows move the choice` });
  const matrix = element('div', { class: 'matrix' }, canvas, (view.mark = element('div', { class: 'mark' })), (view.pin = element('div', { class: 'mark pinned' })));
  const bar = element('span', { class: 'scale' }), readout = element('p', { class: 'pinned-text' });
  const small = thumbs(panel, array, own, scaleFor);
  const draw = () => {
    view.scale = scaleFor(places());
    view.first = offsetOf(array, places())[0];
    drawMatrix(canvas, view, main.clientWidth);
    showScale(bar, view.scale);
    place(view.pin, view, view.pinned);
    readout.textContent = view.pinned ? told(view, own, ...view.pinned) : '';
  };
  const all = () => {
    shared.of = null;
    if (small) small.draw();
    draw();
  };
  const separate = own.length ? toggle('a scale of its own for each', false, (on) => ((view.own = on), all())) : '';
  const main = element('div', { class: 'main beside' }, element('div', { class: 'scroll' }, matrix), readout);
  body.append(element('div', { class: 'controls' }, ...own.map(chooser), separate, bar), element('div', { class: 'columns' }, ...(small ? [small.node] : []), main));
  follow(canvas, view, own, draw);
  own.forEach((choice) => choice.listeners.push(draw));
  listenToArrows(body, own, (step, which) => {
    if (!view.pinned) return false;
    const to = view.pinned.map((at, i) => Math.min(Math.max(at + (2 - i === which ? step : 0), 0), (i ? columns : rows).labels.length - 1));
    view.pinned = to;
    draw();
    return true;
  });
  redraws.push(all);
  return all;
}

// what is known of a cell, in lines
function told(view, own, row, column) {
  const { panel, array, rows, columns } = view, places = own.map((choice) => choice.place);
  const value = array.values[view.first + row * columns.labels.length + column];
  const lines = [own.map((choice) => named(choice.axis, choice.place)).join(', '), `${named(rows, row)} · ${named(columns, column)}`, number(value)];
  return [...lines, cellText(panel.details, places, row, column)].filter(Boolean).join('\n');
}

// of nested lists [rows][columns] or [*choices][rows][columns]
function cellText(texts, places, row, column) {
  if (!texts) return '';
  let found = texts;
  if (Array.isArray(texts[0][0])) for (const place of places) found = found[place];
  return found[row][column];
}

function follow(canvas, view, own, draw) {
  const at = (event) => {
    const box = canvas.getBoundingClientRect(), { left, top, wide, high } = view.layout;
    const cell = [Math.floor((event.clientY - box.top - top) / high), Math.floor((event.clientX - box.left - left) / wide)];
    return cell[0] >= 0 && cell[1] >= 0 && cell[0] < view.rows.labels.length && cell[1] < view.columns.labels.length ? cell : null;
  };
  canvas.addEventListener('pointermove', (event) => {
    const cell = at(event);
    place(view.mark, view, cell);
    tip(event, cell && told(view, own, ...cell));
  });
  canvas.addEventListener('pointerleave', () => {
    place(view.mark, view, null);
    tip(null, null);
  });
  canvas.addEventListener('click', (event) => {
    const cell = at(event);
    view.pinned = cell && view.pinned && cell.join() === view.pinned.join() ? null : cell;
    draw();
  });
}

function place(mark, view, cell) {
  mark.style.display = cell ? 'block' : 'none';
  if (!cell) return;
  const { left, top, wide, high } = view.layout;
  Object.assign(mark.style, { left: `${left + cell[1] * wide - 2}px`, top: `${top + cell[0] * high - 2}px`, width: `${wide + 4}px`, height: `${high + 4}px` });
}

// sizes of cells and of the room for labels, in pixels
function layoutOf(pen, view, available) {
  const { rows, columns, panel } = view, widest = (labels, most) => Math.min(most, Math.max(...labels.map((label) => pen.measureText(cut(visible(label), 18)).width)));
  const count = [rows.labels.length, columns.labels.length], name = pen.measureText(`← ${rows.name}`).width;
  const flat = name > Math.min(count[0] * 20, 620); // the name of few rows lies above them
  const left = Math.max(Math.ceil(widest(rows.labels, 150)) + 10 + (rows.name && !flat ? 16 : 0), flat ? Math.ceil(name) + 12 : 0);
  let wide = Math.min(Math.max(Math.floor((available - left - 4) / count[1]), 1), 34), high = Math.min(Math.max(Math.floor(680 / count[0]), 1), 34);
  if (panel.cells) [wide, high] = [Math.max(28, Math.min(WIDE_CELL, 12 + widest(panel.cells.flat(Infinity), WIDE_CELL))), 24];
  else if (Math.max(wide, high) < 2.5 * Math.min(wide, high)) wide = high = Math.min(wide, high);
  const label = widest(columns.labels, 110), upright = label > wide * 0.9 && (label > 24 || wide < 12);
  const top = (upright ? Math.ceil(label) : 14) + 8 + (columns.name ? 16 : 0);
  return { left, top, wide, high, upright, flat };
}

function drawMatrix(canvas, view, available) {
  const { rows, columns, array, scale, first } = view, pen = canvas.getContext('2d'), font = '11px ' + getComputedStyle(document.body).fontFamily;
  pen.font = font;
  const { left, top, wide, high, upright } = (view.layout = layoutOf(pen, view, available)), ratio = devicePixelRatio || 1;
  const counts = [rows.labels.length, columns.labels.length], width = left + wide * counts[1] + 12, height = top + high * counts[0] + 4;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  pen.scale(ratio, ratio);
  const image = (view.image ||= document.createElement('canvas'));
  paint(image, array, first, ...counts, scale);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, left, top, wide * counts[1], high * counts[0]);
  Object.assign(pen, { font, fillStyle: css('--soft'), textBaseline: 'middle', textAlign: 'right' });
  const every = [Math.ceil(11 / high), Math.ceil((upright ? 12 : 3 + Math.max(...columns.labels.map((l) => pen.measureText(cut(l, 9)).width))) / wide)];
  for (let r = 0; r < counts[0]; r += every[0]) pen.fillText(cut(visible(rows.labels[r]), 18), left - 6, top + (r + 0.5) * high, 150);
  for (let c = 0; c < counts[1]; c += every[1]) columnLabel(pen, cut(visible(columns.labels[c]), upright ? 18 : 9), left + (c + 0.5) * wide, top - 5, upright);
  axisNames(pen, view);
  if (view.panel.cells) writeCells(pen, view);
}

function columnLabel(pen, text, x, y, upright) {
  pen.save();
  pen.translate(x, y);
  pen.textAlign = upright ? 'left' : 'center';
  if (upright) pen.rotate(-Math.PI / 2);
  else pen.translate(0, -6);
  pen.fillText(text, 0, 0, 110);
  pen.restore();
}

function axisNames(pen, { rows, columns, layout }) {
  pen.fillStyle = css('--ink');
  pen.textAlign = 'left';
  if (columns.name) pen.fillText(`${columns.name} →`, layout.left, 8);
  if (!rows.name) return;
  if (layout.flat) return pen.fillText(`↓ ${rows.name}`, 4, layout.top - 11);
  pen.save();
  pen.translate(8, layout.top);
  pen.rotate(-Math.PI / 2);
  pen.textAlign = 'right';
  pen.fillText(`← ${rows.name}`, 0, 0);
  pen.restore();
}

function writeCells(pen, view) {
  const { rows, columns, panel, array, scale, first, layout } = view, places = panel.choices.map((axis) => choiceOf(axis).place);
  pen.textAlign = 'center';
  rows.labels.forEach((_, r) => columns.labels.forEach((_, c) => {
    const colour = scale.of(array.values[first + r * columns.labels.length + c]);
    pen.fillStyle = colour ? inkOn(colour) : css('--ink');
    pen.fillText(cut(visible(cellText(panel.cells, places, r, c)), 10), layout.left + (c + 0.5) * layout.wide, layout.top + (r + 0.5) * layout.high, layout.wide - 4);
  }));
}
