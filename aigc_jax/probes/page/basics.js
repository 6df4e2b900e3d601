'use strict';
// What all panels are made of: elements, numbers and tokens as text, colours and their scale, the tip, the choices.

const data = JSON.parse(document.getElementById('data').textContent);
const dark = matchMedia('(prefers-color-scheme: dark)');
// colours from the lowest to the highest number, [on light, on dark]
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const BLUE_RED = [
  [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]],
  [[110, 180, 240], [40, 92, 140], [28, 32, 36], [150, 68, 42], [250, 150, 105]],
];
const MARKER = [
  [[255, 255, 255], [253, 224, 155], [240, 145, 55]],
  [[28, 32, 36], [112, 74, 20], [232, 146, 48]],
];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const redraws = []; // of everything whose colours depend on light and dark, or whose size on the window

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function number(value, digits = 3) {
  if (typeof value === 'string') return value === 'inf' ? '∞' : '−∞';
  if (value === null) return 'none';
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(digits - 1).replace('e+', 'e').replaceAll('-', '−');
  return Number(value.toPrecision(digits)).toString().replace('-', '−');
}

// a token with the white space at its ends visible, and its lines' ends
function visible(text) {
  if (text === '') return '∅';
  const [, first, inner, last] = text.match(/^(\s*)([^]*?)(\s*)$/);
  const shown = (part) => part.replace(/[^]/g, (c) => (c === '\n' ? '⏎' : c === '\t' ? '⇥' : '␣'));
  return shown(first) + inner.replaceAll('\n', '⏎') + shown(last);
}
const cut = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join('') + '…' : text);
const named = (axis, place) => `${axis.name} ${visible(axis.labels[place])}`.trim();

// the stops of a panel's colours, for a matrix or for a text
function stopsOf(panel) {
  const mode = dark.matches ? 1 : 0;
  return panel.colours === 'diverging' ? BLUE_RED[mode] : panel.kind === 'heat' ? VIRIDIS : MARKER[mode];
}

function mixed(stops, part) {
  const place = Math.min(Math.max(part, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (place - i)));
}

const finite = (value) => (value === 'inf' ? Infinity : value === '-inf' ? -Infinity : value);
// what is legible on a colour
const inkOn = (colour) => (colour.reduce((sum, c, k) => sum + (c / 255) ** 2.2 * [0.2126, 0.7152, 0.0722][k], 0) > 0.2 ? '#111' : '#fff');

// [lowest, highest] that colours stand for: with 0 in it, and in its middle where they are diverging
function limits(values, diverging) {
  let low = 0, high = 0;
  for (const value of values) {
    if (typeof value !== 'number') continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (diverging) [low, high] = [Math.min(low, -high), Math.max(high, -low)];
  return high > low ? [low, high] : [diverging ? -1 : 0, 1];
}

// a scale of colours: {of: value -> [r, g, b] or null, low, high, stops}
function scaleOf(panel, [low, high]) {
  const stops = stopsOf(panel), table = Array.from({ length: 256 }, (_, i) => mixed(stops, i / 255));
  const of = (value) => {
    if (value === null) return null;
    const part = (finite(value) - low) / (high - low);
    return table[Math.round(255 * Math.min(Math.max(part, 0), 1))];
  };
  return { of, low, high, stops };
}

function showScale(place, scale, unit) {
  const stops = scale.stops.map((c) => `rgb(${c})`).join(',');
  place.replaceChildren(number(scale.low), element('i', { style: `background:linear-gradient(90deg,${stops})` }), number(scale.high), element('span', {}, unit || ''));
}

function tip(event, text) {
  const box = document.getElementById('tip');
  box.style.display = text ? 'block' : 'none';
  if (!text) return;
  box.textContent = text;
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8))}px`;
  const above = event.clientY - box.offsetHeight - 12;
  box.style.top = `${above > 4 ? above : event.clientY + 18}px`;
}

// Choices are shared by all panels whose axes have the same name and labels: {axis, place, listeners}
const choices = new Map();
function choiceOf(axis) {
  const key = JSON.stringify([axis.name, axis.labels]);
  if (!choices.has(key)) choices.set(key, { axis, place: 0, listeners: [] });
  return choices.get(key);
}
function choose(...pairs) {
  const heard = new Set();
  for (const [choice, place] of pairs) {
    choice.place = Math.min(Math.max(place, 0), choice.axis.labels.length - 1);
    choice.listeners.forEach((listener) => heard.add(listener));
  }
  heard.forEach((listener) => listener());
}

// where the numbers of what is chosen begin, and how many there are
function offsetOf(array, places) {
  const size = array.shape.slice(places.length).reduce((a, b) => a * b, 1);
  return [places.reduce((at, place, i) => at * array.shape[i] + place, 0) * size, size];
}
function chosenOf(array, places) {
  const [first, size] = offsetOf(array, places);
  return array.values.slice(first, first + size);
}

function toggle(label, on, change) {
  return element('label', {}, element('input', { type: 'checkbox', checked: on, onchange: (e) => change(e.target.checked) }), label);
}

// a select, or for many places a slider, that follows the choice
function chooser(choice) {
  const { axis } = choice, many = axis.labels.length > 40;
  if (many) {
    const slider = element('input', { type: 'range', min: 0, max: axis.labels.length - 1, value: 0, oninput: () => choose([choice, Number(slider.value)]) });
    const shown = element('output');
    const follow = () => {
      slider.value = choice.place;
      shown.textContent = visible(axis.labels[choice.place]);
    };
    choice.listeners.push(follow);
    follow();
    return element('label', {}, axis.name, slider, shown);
  }
  const select = element('select', { onchange: () => choose([choice, select.selectedIndex]) });
  select.append(...axis.labels.map((label) => element('option', {}, cut(visible(label), 40))));
  choice.listeners.push(() => (select.selectedIndex = choice.place));
  return element('label', {}, axis.name, select);
}

// arrows: left and right move the last choice, up and down the one before
function listenToArrows(section, own, otherwise) {
  section.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-1, 1], ArrowRight: [1, 1], ArrowUp: [-1, 2], ArrowDown: [1, 2] }[event.key];
    if (!step || event.target.matches('select, input') || event.ctrlKey || event.metaKey || event.altKey) return;
    const choice = own.at(-Math.min(step[1], own.length));
    if (choice) choose([choice, choice.place + step[0]]);
    else if (!otherwise || !otherwise(step[0], step[1])) return;
    event.preventDefault();
  });
}
