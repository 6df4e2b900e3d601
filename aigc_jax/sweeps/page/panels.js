'use strict';
// The tables, the samples, and the page as a whole.

function header() {
  document.getElementById('name').textContent = data.name;
  const states = Object.entries(data.states).map(([state, count]) => `${count} ${state}`).join(', ');
  const parts = [data.config, `${data.trials.length} trials: ${states}`, `by ${data.metric}, ${data.higher ? 'higher' : 'lower'} is better`, `cost ${data.cost} of one worker`];
  document.getElementById('facts').textContent = parts.filter(Boolean).join(' · ');
}

// a table whose columns sort; rows: [[cell, ...]], a cell is a value or {text, sort, node}
function sortable(columns, rows) {
  const body = element('tbody'), state = { column: -1, down: false };
  const key = (cell) => (cell && typeof cell === 'object' && 'sort' in cell ? cell.sort : cell);
  const compare = (a, b) => (a === null || a === undefined ? 1 : b === null || b === undefined ? -1 : typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const numeric = columns.map((_, c) => rows.some((row) => typeof key(row[c]) === 'number') && rows.every((row) => key(row[c]) === null || key(row[c]) === undefined || typeof key(row[c]) === 'number'));
  const fill = () => {
    const order = [...rows];
    if (state.column >= 0) order.sort((a, b) => compare(key(a[state.column]), key(b[state.column])) * (state.down ? -1 : 1));
    body.replaceChildren(...order.map((row) => element('tr', {}, ...row.map((cell, c) => element('td', { class: numeric[c] ? 'number' : null }, cell && cell.node ? cell.node : cell && cell.text !== undefined ? cell.text : number(cell, 6))))));
  };
  const head = columns.map((name, c) => element('th', { class: numeric[c] ? 'number' : null, scope: 'col' }, element('button', {
    onclick: (event) => {
      Object.assign(state, { down: state.column === c && !state.down, column: c });
      for (const other of event.target.closest('tr').children) other.removeAttribute('aria-sort');
      event.target.closest('th').setAttribute('aria-sort', state.down ? 'descending' : 'ascending');
      fill();
    },
  }, name)));
  fill();
  return element('div', { class: 'scroll' }, element('table', {}, element('thead', {}, element('tr', {}, ...head)), body));
}

function boardPanel(section) {
  const keys = data.ranked.length ? data.ranked[0].keys : [];
  const rows = data.ranked.map((found, rank) => {
    const failed = element('div', {}, String(found.failed.length || ''));
    for (const [name, state, why] of found.failed) failed.append(element('div', { class: 'why' }, `${name} ${state}: ${why}`));
    return [rank + 1, ...found.values, found.mean, found.spread, found.n, { sort: found.failed.length, node: failed }];
  });
  section.append(sortable(['rank', ...keys.map(short), `${data.metric} (mean)`, 'spread', 'n', 'failed'], rows),
    element('p', { class: 'note' }, 'Each trial counts at its best evaluation. Spread is the standard deviation over seeds (n − 1).'));
}

function samplesPanel(section) {
  if (!data.samples.length) return section.classList.add('empty');
  const grid = element('div', { class: 'grid' });
  for (const { trial, shown } of data.samples) {
    const found = data.trials[trial], figure = element('figure', {}, element('figcaption', {}, `${describeTrial(found)} (${number(found.best)})`));
    for (const one of shown) {
      figure.append(one.image ? element('img', { src: `data:image/png;base64,${one.image}`, alt: `${one.name} of ${found.name}`, decoding: 'async' }) : element('pre', {}, one.text));
    }
    grid.append(figure);
  }
  section.append(grid);
  if (data.more) section.append(element('p', { class: 'note' }, `The best ${data.ranked.length - data.more} configurations; ${data.more} others are left out.`));
}

function differencesPanel(section) {
  const { differ, same } = data.differences, keys = Object.keys(differ);
  const rows = data.trials.map((trial, i) => [trial.name, ...keys.map((key) => ({ sort: differ[key][i], text: differ[key][i] === null ? 'none' : number(differ[key][i]) }))]);
  if (keys.length) section.append(sortable(['trial', ...keys], rows));
  const list = Object.entries(same).map(([key, value]) => element('tr', {}, element('td', {}, key), element('td', {}, value === null ? 'none' : number(value))));
  section.append(element('details', {}, element('summary', {}, `${list.length} fields that are the same in all trials`), element('div', { class: 'scroll' }, element('table', {}, element('tbody', {}, ...list)))));
}

function costPanel(section) {
  const most = Math.max(...data.trials.map((t) => t.seconds), 1e-9);
  const rows = data.trials.map((trial) => [
    trial.name, ...data.keys.map((key) => trial.values[key]), { text: trial.state + (trial.message && trial.message !== trial.state ? `: ${trial.message}` : ''), sort: trial.state },
    { text: `${trial.step} of ${trial.steps}`, sort: trial.step }, trial.rate, trial.seconds,
    { sort: trial.seconds, node: element('div', { class: 'bar', style: `width:${Math.max(1, (120 * trial.seconds) / most)}px` }) },
  ]);
  section.append(sortable(['trial', ...data.keys.map(short), 'state', 'steps', 'steps a second', 'seconds', ''], rows),
    element('p', { class: 'note' }, `In all ${data.cost} of one worker. What lanes of one program took together is divided among them.`));
}

header();
const section = (id) => document.getElementById(id);
boardPanel(section('board'));
parametersPanel(section('parameters'));
let redraw = null;
if (data.metrics.length) redraw = curvesPanel(section('curves'));
else section('curves').classList.add('empty');
parallelPanel(section('parallel'));
heatPanel(section('heat'));
samplesPanel(section('samples'));
differencesPanel(section('differences'));
costPanel(section('cost'));
addEventListener('resize', () => redraw && redraw());
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => redraw && redraw());
