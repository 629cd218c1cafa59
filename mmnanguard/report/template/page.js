'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const ROWS_PER_PAGE = 25;
const STORY_ROWS = 100;
const STATE = `mmnanguard ${location.pathname}`;
const CULPRITS = {
  parameters: [['parameter', 'name'], ['rejected', 'count'],
    ['routine', 'routine'], ['first', 'first'], ['last', 'last'],
    ['causes', 'causes']],
  modules: [['module', 'name'], ['autopsies', 'count'], ['first', 'first'],
    ['operations', 'causes']],
  samples: [['sample', 'name'], ['named', 'count'],
    ['rejected batches', 'batches'], ['last', 'last'], ['found by', 'causes']],
};

/** Return a new element. Strings become text, never HTML: names in the rows may hold tags. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function count(number) {
  return number.toLocaleString('en-US');
}

function capitalized(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function cell(value) {
  const isNumber = typeof value === 'number';
  const text = isNumber ? count(value) : String(value ?? '');
  return element('td', {class: isNumber ? 'number' : null}, text);
}

function table(head, rows) {
  const heads = head.map(([title, kind]) =>
    element('th', {class: kind || null}, title));
  return element('div', {class: 'scroll'}, element('table', {},
    element('thead', {}, element('tr', {}, ...heads)),
    element('tbody', {}, ...rows)));
}

function code(text) {
  const copy = element('button', {class: 'small', onclick: () => {
    const range = document.createRange();
    range.selectNodeContents(shown);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand('copy');  // the clipboard API needs a secure context, which plain http is not
    copy.textContent = 'copied';
  }}, 'copy');
  const shown = element('pre', {}, text);
  return element('div', {class: 'code'}, shown, copy);
}

function verdict(run) {
  const [state, ...rest] = run.verdict.split(/(?=[: ])/);
  return element('div', {class: `card verdict ${run.healthy ? 'healthy' : 'sick'}`},
    element('p', {}, element('b', {class: 'state'}, state), rest.join('')),
    element('p', {class: 'muted'}, run.progress),
    run.margins ? element('p', {class: 'margins'}, run.margins) : null,
    ...run.reasons.slice(1).map((reason) => element('p', {}, `Also: ${reason}`)),
    element('div', {class: 'facts'}, ...run.facts
      .filter(([name, value]) => value !== '0')
      .map(([name, value]) => element('span', {}, `${name} `, element('b', {}, value)))));
}

function steps(run) {
  if (!run.steps.length) return null;
  return element('div', {class: 'card'},
    element('h3', {}, run.healthy ? 'Worth doing' : 'What to do'),
    element('ol', {class: 'steps'}, ...run.steps.map((step) => element('li', {},
      element('b', {}, step.text),
      step.detail ? element('div', {class: 'muted'}, step.detail) : null,
      step.code ? code(step.code) : null))));
}

function culprits(run, filters) {
  const cards = Object.entries(CULPRITS).map(([kind, columns]) => {
    const ranked = run.culprits[kind];
    if (!ranked.length) return null;
    const rows = ranked.slice(0, 10).map((culprit) => element('tr', {},
      ...columns.map(([, key]) => {
        if (key !== 'name') return cell(culprit[key]);
        const field = kind === 'samples' ? 'sample' : 'param';
        return element('td', {}, element('button', {class: 'name',
          title: 'show its events', onclick: () => filters.only(field, culprit.name)},
        culprit.name));
      })));
    const note = kind === 'samples' && run.num_forgotten
      ? `Counts may be too low by ${count(run.num_forgotten)} at most.` : '';
    const more = ranked.length > 10 ? `The first 10 of ${ranked.length}${ranked.length === 50 ? ' or more' : ''}. ` : '';
    return element('div', {class: 'card'},
      element('h3', {}, capitalized(kind)),
      table(columns.map(([title, key]) =>
        [title, ['name', 'causes'].includes(key) ? '' : 'number']), rows),
      more || note ? element('small', {}, more + note) : null);
  }).filter((card) => card !== null);
  return cards.length ? element('div', {class: 'columns culprits'}, ...cards) : null;
}

function story(run) {
  const rows = run.events.filter((event) => event.kind !== 'update');
  return element('div', {class: 'card'},
    element('h3', {}, `${capitalized(data.titles.followed)}: attempts, alerts, autopsies, remedies, rollbacks, audits, dumps`),
    table([['iteration', 'number'], ['what'], ['']], rows.slice(0, STORY_ROWS).map((event) =>
      element('tr', {}, cell(event.iter),
        element('td', {class: 'nowrap'}, event.kind),
        element('td', {}, element('pre', {}, event.text),
          event.code ? code(event.code) : null)))),
    rows.length > STORY_ROWS
      ? element('small', {}, `${count(rows.length - STORY_ROWS)} more are in the table of events.`)
      : null);
}

/** The table of events with its filters. */
class Events {
  constructor(run, number) {
    this.run = run;
    this.page = 0;
    this.newestFirst = false;
    this.range = null;
    this.filter = {cause: '', param: '', sample: '', text: ''};
    this.inputs = {};
    this.onzoomout = () => {};
    for (const event of run.events) {
      event.paramNames = event.params.map((index) => run.names[index]);
      event.sampleNames = event.samples.map((index) => run.names[index]);
      event.all = [event.iter, event.kind, event.action, event.cause, event.text,
        event.detail, ...event.paramNames, ...event.sampleNames].join('\n').toLowerCase();
    }
    this.totals = {};
    for (const {name, count: total} of run.causes) this.totals[name] = total;
    for (const [kind, total] of Object.entries(run.kinds)) {
      if (kind !== 'update') this.totals[`kind ${kind}`] = total;
    }
    this.chips = element('div', {class: 'chips'});
    this.status = element('p', {class: 'muted status'});
    this.body = element('tbody');
    this.pages = element('div', {class: 'pages'});
    const select = element('select', {}, element('option', {value: ''}, 'all'),
      ...Object.entries(this.totals).map(([value, total]) =>
        element('option', {value}, `${value} (${count(total)})`)));
    this.root = element('div', {class: 'card events'},
      element('h3', {}, 'Events'), this.chips,
      element('div', {class: 'filters'},
        this.field('cause', 'Cause or kind', select),
        this.field('param', 'Parameter or module', element('input', {type: 'search'}), 'paramNames', number),
        this.field('sample', 'Sample', element('input', {type: 'search'}), 'sampleNames', number),
        this.field('text', 'Text', element('input', {type: 'search'}))),
      this.status,
      element('div', {class: 'scroll'}, element('table', {}, element('thead', {},
        element('tr', {},
          element('th', {class: 'number'}, element('button', {class: 'small', title: 'turn the order round',
            onclick: () => { this.newestFirst = !this.newestFirst; this.show(); }}, 'iteration')),
          ...['cause or kind', 'what'].map((title) => element('th', {}, title)),
          ...['loss', 'grad_norm', 'loss_scale'].map((panel) =>
            element('th', {class: 'number'}, data.titles[panel])))), this.body)),
      this.pages);
  }

  field(name, title, input, names, number) {
    this.inputs[name] = input;
    input.name = name;
    input.addEventListener('input', () => {
      this.filter[name] = input.value;
      this.page = 0;
      this.show();
    });
    const label = element('label', {}, title, input);
    if (names) {
      const known = new Set(this.run.events.flatMap((event) => event[names]));
      const id = `${name}-${number}`;
      input.setAttribute('list', id);
      label.append(element('datalist', {id}, ...[...known].sort().slice(0, 1000)
        .map((value) => element('option', {value}))));
    }
    return label;
  }

  /** Set one filter, clear the other filters, and scroll to the table. */
  only(name, value) {
    for (const key of Object.keys(this.filter)) this.filter[key] = key === name ? value : '';
    this.page = 0;
    this.show();
    this.root.scrollIntoView();
  }

  matches(event) {
    const {cause, param, sample, text} = this.filter;
    const has = (names, part) => names.some((name) => name.toLowerCase().includes(part.toLowerCase()));
    return (!cause || event.cause === cause || `kind ${event.kind}` === cause)
      && (!param || has(event.paramNames, param))
      && (!sample || has(event.sampleNames, sample))
      && (!text || event.all.includes(text.toLowerCase()))
      && (!this.range || (event.iter >= this.range[0] && event.iter <= this.range[1]));
  }

  show() {
    const matching = this.run.events.filter((event) => this.matches(event));
    if (this.newestFirst) matching.reverse();
    const numPages = Math.max(Math.ceil(matching.length / ROWS_PER_PAGE), 1);
    this.page = Math.min(this.page, numPages - 1);
    for (const [name, input] of Object.entries(this.inputs)) input.value = this.filter[name];
    const first = this.page * ROWS_PER_PAGE;
    const shown = matching.slice(first, first + ROWS_PER_PAGE);
    this.body.replaceChildren(...shown.map((event) => this.row(event)));
    this.chips.replaceChildren(...this.run.causes.map((cause) => element('button', {
      class: 'chip', 'aria-pressed': String(this.filter.cause === cause.name),
      onclick: () => {
        this.filter.cause = this.filter.cause === cause.name ? '' : cause.name;
        this.page = 0;
        this.show();
      }}, element('span', {class: 'dot', style: `background:${cause.color}`}),
    `${cause.name} ${count(cause.count)}`)));
    this.showStatus(matching.length);
    const turn = (by, title, isOff) => element('button', {class: 'small',
      disabled: isOff ? '' : null, onclick: () => { this.page += by; this.show(); }}, title);
    this.pages.replaceChildren(...(numPages > 1 ? [
      turn(-1, 'previous', this.page === 0),
      `page ${count(this.page + 1)} of ${count(numPages)}`,
      turn(1, 'next', this.page === numPages - 1)] : []));
    remember();
  }

  showStatus(numMatching) {
    const kept = this.run.events.length;
    const total = this.totals[this.filter.cause] ?? this.run.num_rows;
    const parts = [`${count(numMatching)} rows match`];
    if (kept < this.run.num_rows) {
      parts.push(`this page holds ${count(kept)} of the run's ${count(this.run.num_rows)} rows, `
        + 'some of each kind, cause and parameter at even distances');
      if (this.filter.cause) parts.push(`of this one there are ${count(total)}`);
    }
    this.status.replaceChildren(`${parts.join('; ')}. `);
    if (this.range) {
      const [begin, end] = this.range.map((value) => count(Math.round(value)));
      this.status.append(`Iterations ${begin} to ${end} only, as the charts are zoomed. `,
        element('button', {class: 'small', onclick: () => this.onzoomout()}, 'zoom out'));
    }
  }

  row(event) {
    const color = (this.run.causes.find((cause) => cause.name === event.cause) || {}).color;
    const scale = event.scale
      ? event.scale.before === event.scale.after ? `${event.scale.after}`
        : `${event.scale.before} → ${event.scale.after}` : '';
    const made = element('tr', {class: 'event', tabindex: 0},
      cell(event.iter),
      element('td', {class: 'nowrap'},
        color ? element('span', {class: 'dot', style: `background:${color}`}) : null,
        event.kind === 'update' ? ` ${event.cause}` : event.kind),
      element('td', {}, event.text.split('\n')[0]),
      ...[event.loss, event.grad_norm].map((value) =>
        element('td', {class: 'number'}, typeof value === 'number' ? value.toPrecision(4) : value ?? '')),
      element('td', {class: 'number'}, scale));
    const toggle = () => {
      if (made.nextSibling && made.nextSibling.className === 'detail') {
        made.nextSibling.remove();
        return;
      }
      const listed = (title, names, total) => names.length
        ? element('pre', {}, `${title}: ${names.join(', ')}${total > names.length ? ' ...' : ''}`) : null;
      made.after(element('tr', {class: 'detail'}, element('td', {colspan: 6},
        element('pre', {}, event.text), event.code ? code(event.code) : null,
        listed(`samples (${count(event.num_samples)})`, event.sampleNames, event.num_samples),
        element('pre', {class: 'muted'}, event.detail))));
    };
    made.addEventListener('click', toggle);
    made.addEventListener('keydown', (key) => { if (key.key === 'Enter') toggle(); });
    return made;
  }
}

/** Return the changes that give a chart the colors of the page. */
function colors(layout) {
  const style = getComputedStyle(document.documentElement);
  const [text, grid] = ['--text', '--grid'].map((name) => style.getPropertyValue(name).trim());
  const changes = {'font.color': text};
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) {
      Object.assign(changes, {[`${key}.gridcolor`]: grid, [`${key}.linecolor`]: grid,
        [`${key}.zerolinecolor`]: grid});
    }
  }
  return changes;
}

/** Return the vertical axes of a layout: key of the axis and identifier of its panel. */
function verticalAxes(layout) {
  return Object.entries(layout.meta.panels);
}

/** Return changes of an axis's ticks; none where plotly chooses good ticks for the range. */
function ticks(layout, key, panel, [low, high]) {
  const name = `${key}.dtick`;
  if (panel === 'rejected') {  // the axis counts updates, so it has no ticks at halves
    return high < 6 ? {[name]: 1} : {[`${key}.tickmode`]: 'auto'};
  }
  if (panel !== 'loss_scale' || layout[key].type !== 'log') return {};
  const powers = Math.ceil((high - low) / Math.log10(2) / 5);
  return {[name]: Math.max(powers, 1) * Math.log10(2)};
}

const sections = [];
// True while zoom() changes all charts, because their events would call zoom() again.
let isFollowing = false;

/** Escape tags. Plotly renders some tags in its texts, and names in the rows may hold them. */
function plain(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

/** Return the text of a marker, broken into lines: plotly does not wrap texts. */
function hover(event) {
  const lines = [''];
  for (const word of event.text.split(/\s+/)) {
    if (lines[lines.length - 1].length + word.length > 90) lines.push('');
    lines[lines.length - 1] += `${word} `;
  }
  const what = event.kind === 'update' ? `${event.action}, ${event.cause}` : event.kind;
  const parts = [`iteration ${event.iter === null ? '?' : count(event.iter)}: ${what}`, ...lines.slice(0, 12)];
  if (event.kind === 'update') parts.push(`${data.titles.loss} ${event.loss}, ${data.titles.grad_norm} ${event.grad_norm}`);
  return parts.map(plain).join('<br>');
}

/** Return a card with a figure, as root, plot and a function that draws it. */
function chart(figure, title, note, onclick) {
  const plot = element('div', {class: 'plot', role: 'figure', 'aria-label': `${title}: ${note}`});
  const logLoss = element('button', {class: 'small', onclick: () => {
    const isLog = plot.layout.yaxis.type === 'log';
    Plotly.relayout(plot, {'yaxis.type': isLog ? 'linear' : 'log', 'yaxis.autorange': true});
  }}, `${data.titles.loss}: linear / log`);
  const root = element('div', {class: 'card'},
    element('div', {class: 'top'}, element('h3', {}, title), element('small', {}, note),
      figure.layout.meta.panels.yaxis === 'loss' ? logLoss : null), plot);
  return {root, plot, draw: async () => {
    await Plotly.newPlot(plot, figure.data, figure.layout, {responsive: true,
      // Plotly's default buttons include an upload of the chart to plotly's servers.
      displaylogo: false, modeBarButtons: [['toImage'], ['zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d']]});
    const fitted = verticalAxes(plot.layout)
      .map(([key, panel]) => ticks(plot.layout, key, panel, plot.layout[key].range));
    await Plotly.relayout(plot, Object.assign(colors(plot.layout), ...fitted));
    plot.home = [...plot.layout.xaxis.range];
    plot.on('plotly_relayout', (change) => {
      const keys = Object.keys(change);
      if (isFollowing || !keys.some((key) => key.startsWith('xaxis'))) {
        remember();
        return;
      }
      if (change['xaxis.autorange']) zoom(null);
      else zoom(plot.layout.xaxis.range.map(Number));
    });
    plot.on('plotly_click', onclick);
  }};
}

/** Return the card with curves and events. */
function curves(run, events) {
  const byPlace = new Map(run.events.map((event) => [event.place, event]));
  for (const trace of run.figure.data) {
    if (trace.mode === 'markers') trace.text = trace.customdata.map((place) => hover(byPlace.get(place)));
  }
  const note = 'drag to zoom, double-click to zoom out; what is not finite, or off the curve, is at its top'
    + (run.events.length < run.num_rows ? '; dots are some of the events, bars count all' : '');
  return chart(run.figure, 'Curves and events', note, ({points}) => {
    const event = byPlace.get(points[0].customdata);
    if (event) events.only('text', String(event.text.split('\n')[0]));
  });
}

/** Return the card with the samples of the monitor; null if there are none. */
function stability(run) {
  if (!run.stability) return null;
  const drawn = chart(run.stability.figure, 'Stability', run.stability.text, () => {});
  drawn.root.append(element('small', {}, 'Headroom counts the bits between the largest output of a module'
    + ' and 65504, where float16 ends: red is none, green is plenty. Hatched: in float32 or bfloat16, which'
    + ' have room enough. A vertical line marks an alert, the first update rejected after it, and the first loss'
    + ' that was not finite. Dashed: the countdown as an alert told it.'));
  return drawn;
}

/** Show a range of iterations in the charts and tables of all runs; null shows all. */
async function zoom(range) {
  isFollowing = true;
  for (const {plots, events} of sections) {
    for (const plot of plots) await Plotly.relayout(plot, {'xaxis.range': range || [...plot.home]});
    events.range = range;
    events.page = 0;
    events.show();
  }
  isFollowing = false;
}

/** Give panels of several runs the same axes, so that the runs compare. */
async function sameAxes() {
  if (sections.length < 2) return;
  const ranges = {};
  const plots = sections.flatMap((section) => section.plots);
  // Kinds of rows and names of modules are of each run.
  const axes = ({layout}) => verticalAxes(layout).filter(([key]) => layout[key].type !== 'category');
  // If the panel of one run is logarithmic, it becomes so in all runs.
  const type = ({layout}, key) => layout[key].type;
  const logs = plots.flatMap((plot) => axes(plot)
    .filter(([key]) => type(plot, key) === 'log').map(([, panel]) => panel));
  for (const plot of plots) {
    for (const [key, panel] of axes(plot)) {
      if (!logs.includes(panel) || type(plot, key) === 'log') continue;
      await Plotly.relayout(plot,
        {[`${key}.type`]: 'log', [`${key}.dtick`]: 1, [`${key}.autorange`]: true});
    }
  }
  for (const plot of plots) {
    for (const [key, panel] of axes(plot)) {
      const [low, high] = plot.layout[key].range;
      const known = ranges[panel] || [low, high];
      ranges[panel] = [Math.min(low, known[0]), Math.max(high, known[1])];
    }
  }
  for (const plot of plots) {
    const changes = {};
    for (const [key, panel] of axes(plot)) {
      changes[`${key}.range`] = [...ranges[panel]];
      Object.assign(changes, ticks(plot.layout, key, panel, ranges[panel]));
    }
    await Plotly.relayout(plot, changes);
  }
}

/** Store zoom, filters and scroll position, so that they outlive a reload. */
function remember() {
  if (!document.body.dataset.ready) return;
  const state = {scroll: scrollY, range: sections[0].events.range,
    runs: sections.map(({events, run}) =>
      ({name: run.name, filter: events.filter, page: events.page, newestFirst: events.newestFirst}))};
  try { sessionStorage.setItem(STATE, JSON.stringify(state)); } catch { /* the storage is full or forbidden */ }
}

async function restore() {
  let state = null;
  try { state = JSON.parse(sessionStorage.getItem(STATE)); } catch { /* the storage is forbidden */ }
  if (!state) return;
  for (const {events, run} of sections) {
    const known = state.runs.find(({name}) => name === run.name);
    if (!known) continue;
    Object.assign(events.filter, known.filter);
    events.newestFirst = known.newestFirst;
    events.page = known.page;
    events.show();
  }
  if (state.range) await zoom(state.range);
  scrollTo(0, state.scroll);
}

function comparison() {
  // A fact that is 0 in all runs distinguishes none of them.
  const all = data.runs.map((run) => Object.fromEntries(run.facts));
  const names = Object.keys(all[0]).filter((name) => all.some((facts) => facts[name] !== '0'));
  return element('div', {class: 'card comparison'}, element('h3', {}, `${data.runs.length} runs`),
    table([['run'], ['verdict'], ...names.map((name) => [name, 'number'])],
      data.runs.map((run, number) => element('tr', {},
        element('td', {}, element('a', {href: `#run-${number}`}, run.name)),
        element('td', {class: run.healthy ? 'healthy' : 'sick'}, run.verdict),
        ...names.map((name) => element('td', {class: 'number'}, all[number][name]))))));
}

async function main() {
  const page = document.getElementById('page');
  const live = data.reload === null ? '' : `live: loads itself again every ${data.reload} s `;
  let isPaused = false;
  const pause = element('button', {class: 'small', onclick: () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? 'go on' : 'pause';
  }}, 'pause');
  page.replaceChildren(element('div', {class: 'top'},
    element('h1', {}, 'mmnanguard report'),
    element('small', {}, live, live ? pause : '', ` made ${data.made}`)));
  if (data.runs.length > 1) page.append(comparison());
  for (const [number, run] of data.runs.entries()) {
    const events = new Events(run, number);
    const drawn = [curves(run, events), stability(run)].filter((part) => part !== null);
    page.append(element('section', {class: 'run', id: `run-${number}`},
      element('h2', {}, run.name), element('p', {class: 'muted'}, run.path),
      ...[verdict(run), steps(run), ...drawn.map(({root}) => root), culprits(run, events), story(run), events.root]
        .filter((part) => part !== null)));
    sections.push({run, events, plots: drawn.map(({plot}) => plot)});
    events.onzoomout = () => zoom(null);
    events.show();
    for (const {draw} of drawn) await draw();
  }
  await sameAxes();
  await restore();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    for (const plot of sections.flatMap(({plots}) => plots)) Plotly.relayout(plot, colors(plot.layout));
  });
  document.body.dataset.ready = 'yes';
  addEventListener('beforeunload', remember);
  if (data.reload !== null) {
    setInterval(() => { if (!isPaused && !document.hidden) location.reload(); }, data.reload * 1000);
  }
}

main();
