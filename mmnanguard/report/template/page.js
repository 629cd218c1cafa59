/** Return all charts: those that compare the runs, then those of each run. */
function allPlots() {
  return [...overview, ...sections.flatMap((section) => section.plots)];
}

/** Show a range of iterations in the charts and tables of all runs; null shows all. */
async function zoom(range) {
  isFollowing = true;
  for (const plot of allPlots()) {
    await Plotly.relayout(plot, {'xaxis.range': range || [...plot.home]});
  }
  for (const {events} of sections) {
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
    runs: sections.map(({events, run, root}) =>
      ({name: run.name, isOpen: root.open, filter: events.filter, page: events.page, newestFirst: events.newestFirst}))};
  try { sessionStorage.setItem(STATE, JSON.stringify(state)); } catch { /* the storage is full or forbidden */ }
}

async function restore() {
  let state = null;
  try { state = JSON.parse(sessionStorage.getItem(STATE)); } catch { /* the storage is forbidden */ }
  if (!state) return;
  for (const {events, run, root} of sections) {
    const known = state.runs.find(({name}) => name === run.name);
    if (!known) continue;
    Object.assign(events.filter, known.filter);
    events.newestFirst = known.newestFirst;
    events.page = known.page;
    if (sections.length > 1) root.open = known.isOpen;
    events.show();
  }
  if (state.range) await zoom(state.range);
  scrollTo(0, state.scroll);
}

/** Return the card with all runs in a row each. */
function comparison() {
  // A fact that is 0 in all runs distinguishes none of them.
  const all = data.runs.map((run) => Object.fromEntries(run.facts));
  const names = Object.keys(all[0]).filter((name) => all.some((facts) => facts[name] !== '0'));
  const open = (number) => { sections[number].root.open = true; };
  return element('div', {class: 'card comparison'}, element('h3', {}, `${data.runs.length} runs`),
    table([['run'], ['state'], ...names.map((name) => [name, 'number'])],
      data.runs.map((run, number) => element('tr', {},
        element('td', {}, element('span', {class: 'dot', style: `background:${colorOf(number)}`}), ' ',
          element('a', {href: `#run-${number}`, onclick: () => open(number)}, run.name)),
        element('td', {}, badge(run), ' ', run.headline),
        ...names.map((name) => element('td', {class: all[number][name] === '0' ? 'number zero' : 'number', 'data-label': name},
          all[number][name]))))));
}

function colorOf(number) {
  return data.colors[number % data.colors.length];
}

/** Return the section of a run; of several runs, each is folded once it is drawn. */
function section(run, number, parts) {
  const id = `run-${number}`;
  const path = element('p', {class: 'muted path'}, run.path);
  if (data.runs.length === 1) {
    return element('section', {class: 'run', id}, element('h2', {}, run.name), path, ...parts);
  }
  const root = element('details', {class: 'run', id, open: ''},
    element('summary', {}, element('span', {class: 'dot', style: `background:${colorOf(number)}`}),
      element('h2', {}, run.name), badge(run)), path, ...parts);
  root.addEventListener('toggle', () => {
    if (!root.open) return;
    // The width of the window may have changed meanwhile.
    const own = sections.find((section) => section.root === root);
    own.plots.forEach((plot) => Plotly.Plots.resize(plot));
  });
  return root;
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
  if (data.comparison) {
    const compared = chart(data.comparison, 'All runs', 'drag to zoom, double-click to zoom out', () => {});
    page.append(compared.root);
    overview.push(compared.plot);
    await compared.draw();
  }
  for (const [number, run] of data.runs.entries()) {
    const events = new Events(run, number);
    const drawn = [curves(run, events), stability(run)].filter((part) => part !== null);
    const root = section(run, number,
      [verdict(run), steps(run), ...drawn.map((part) => part.root), culprits(run, events), events.root]
        .filter((part) => part !== null));
    page.append(root);
    sections.push({run, events, root, plots: drawn.map(({plot}) => plot)});
    events.onzoomout = () => zoom(null);
    events.show();
    for (const {draw} of drawn) await draw();
  }
  await sameAxes();
  // Charts are measured while they can be seen.
  if (sections.length > 1) sections.forEach(({root}) => { root.open = false; });
  await restore();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    for (const plot of allPlots()) Plotly.relayout(plot, colors(plot.layout));
  });
  document.body.dataset.ready = 'yes';
  addEventListener('beforeunload', remember);
  if (data.reload !== null) {
    setInterval(() => { if (!isPaused && !document.hidden) location.reload(); }, data.reload * 1000);
  }
}

main();
