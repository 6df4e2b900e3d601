'use strict';
// What all charts are made of: elements, numbers as text, scales, ticks, colours, and the tip at the pointer.

const data = JSON.parse(document.getElementById('data').textContent);
const CATEGORIES = ['#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9', '#f0e442', '#7f7f7f']; // Okabe and Ito
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const short = (key) => key.split('.').pop();
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function shape(parent, tag, attributes, text) {
  const made = document.createElementNS('http:' + '//www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return '';
  if (typeof value !== 'number') return typeof value === 'object' ? JSON.stringify(value) : String(value);
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) {
    return value.toExponential(digits - 1).replace(/\.?0+e/, 'e').replace('e+', 'e');
  }
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(Math.abs(value) + 1))))));
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  if (low === high) return low === 0 ? [-1, 1] : [low - Math.abs(low) * 0.05, high + Math.abs(high) * 0.05];
  return [low, high];
}

// value -> place between `from` and `to`; with `.ticks`, and `.back` from place to value
function scale([low, high], [from, to], log = false) {
  const f = log ? Math.log10 : (v) => v, g = log ? (v) => 10 ** v : (v) => v;
  const a = f(low), b = f(high);
  const at = (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
  at.back = (place) => g(a + ((place - from) / (to - from || 1)) * (b - a));
  at.ticks = log ? logTicks(low, high) : linearTicks(low, high);
  return at;
}

function linearTicks(low, high, count = 5) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of [1, 2, 5]) ticks.push(Number((m * 10 ** e).toPrecision(3)));
  }
  const inside = ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  const tens = inside.filter((t) => Number.isInteger(Number(Math.log10(t).toFixed(6))));
  return inside.length > 7 && tens.length > 1 ? tens : inside.length ? inside : linearTicks(low, high);
}

function ramp(part) {
  const place = Math.min(Math.max(part, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(place), RAMP.length - 2);
  const mixed = RAMP[i].map((c, k) => Math.round(c + (RAMP[i + 1][k] - c) * (place - i)));
  return `rgb(${mixed})`;
}

const isNumeric = (key, trials = data.trials) =>
  trials.every((t) => typeof t.values[key] === 'number' || t.values[key] === null) && trials.some((t) => t.values[key] !== null);

function spansDecades(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low > 0 && high / low >= 10;
}

// how a swept parameter lies on an axis: {at: value -> place, ticks: [[place, text]]}
function axisOf(key, from, to) {
  const values = [...new Set(data.trials.map((t) => JSON.stringify(t.values[key])))].map((v) => JSON.parse(v));
  if (isNumeric(key) && values.filter((v) => v !== null).length > 1) {
    const numbers = values.filter((v) => v !== null), log = spansDecades(numbers);
    const [low, high] = extent(numbers), pad = log ? (high / low) ** 0.06 : (high - low) * 0.06;
    const place = scale(log ? [low / pad, high * pad] : [low - pad, high + pad], [from, to], log);
    const ticks = numbers.length <= 6 ? numbers : place.ticks;
    return { at: (v) => (v === null ? NaN : place(v)), ticks: ticks.map((t) => [place(t), number(t)]), log, values };
  }
  values.sort((a, b) => String(a).localeCompare(String(b), undefined, { numeric: true }));
  const order = values.map((v) => JSON.stringify(v));
  const at = (v) => from + ((order.indexOf(JSON.stringify(v)) + 0.5) / order.length) * (to - from);
  return { at, ticks: values.map((v) => [at(v), v === null ? 'none' : number(v)]), log: false, values };
}

// colour of each trial by a swept parameter, 'metric' or 'configuration': {of: index -> colour, legend: [[colour, text]]}
function colours(by) {
  if (by === 'metric') {
    const [low, high] = extent(data.trials.map((t) => t.best).filter((v) => v !== null));
    return { of: (i) => (data.trials[i].best === null ? css('--line') : ramp((data.trials[i].best - low) / (high - low))), legend: legendOfRamp(low, high) };
  }
  const key = (i) => (by === 'configuration' ? String(data.ranked.findIndex((r) => r.trials.includes(i))) : JSON.stringify(data.trials[i].values[by]));
  const keys = data.trials.map((_, i) => key(i));
  const values = [...new Set(keys)];
  if (by !== 'configuration' && isNumeric(by) && values.length > 2) {
    const numbers = values.map(Number), log = spansDecades(numbers), f = log ? Math.log : (v) => v;
    const [low, high] = extent(numbers.map(f));
    numbers.sort((a, b) => a - b);
    const colour = (v) => ramp((f(v) - low) / (high - low));
    const shown = numbers.length <= 8 ? numbers : [numbers[0], numbers[numbers.length >> 1], numbers.at(-1)];
    return { of: (i) => colour(data.trials[i].values[by]), legend: shown.map((v) => [colour(v), number(v)]) };
  }
  const colour = (value) => CATEGORIES[values.indexOf(value) % CATEGORIES.length];
  const text = (value) => (by === 'configuration' ? describe(data.ranked[value]) : number(JSON.parse(value)));
  return { of: (i) => colour(keys[i]), legend: values.slice(0, 12).map((v) => [colour(v), text(v)]) };
}

const legendOfRamp = (low, high) => [0, 0.5, 1].map((part) => [ramp(part), number(low + part * (high - low))]);
const describe = (found) => found.keys.map((key, i) => `${short(key)}=${number(found.values[i])}`).join(' ') || 'all';
const describeTrial = (trial) => data.keys.map((key) => `${short(key)}=${number(trial.values[key])}`).join(' ');

function legend(parent, pairs) {
  parent.replaceChildren(...pairs.map(([colour, text]) => element('span', {}, element('i', { style: `background:${colour}` }), text)));
}

function tip(event, text) {
  const box = document.getElementById('tip');
  box.style.display = text ? 'block' : 'none';
  if (!text) return;
  box.textContent = text;
  const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, event.clientY - box.offsetHeight - 10)}px`;
}

function choice(label, options, chosen, change) {
  const select = element('select', { onchange: (event) => change(event.target.value) });
  for (const [value, text] of options) select.append(element('option', { value, selected: value === chosen }, text));
  return element('label', {}, label, select);
}

function toggle(label, on, change) {
  return element('label', {}, element('input', { type: 'checkbox', checked: on, onchange: (e) => change(e.target.checked) }), label);
}
