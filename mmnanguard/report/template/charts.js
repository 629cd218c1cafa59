/** Return the changes that give a chart the colors of the page. */
function colors(layout) {
  const style = getComputedStyle(document.documentElement);
  const [text, grid, card] = ['--text', '--grid', '--card'].map((name) => style.getPropertyValue(name).trim());
  const changes = {'font.color': text};
  // The label of several curves has no color of its own.
  if (layout.hovermode === 'x unified') changes['hoverlabel.bgcolor'] = card;
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
const overview = [];  // the charts that compare runs
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
      if (isFollowing || !keys.some((key) => /^xaxis\.(auto)?range/.test(key))) {
        remember();
        return;
      }
      if (change['xaxis.autorange']) zoom(null);
      else zoom(plot.layout.xaxis.range.map(Number));
    });
    plot.on('plotly_click', onclick);
  }};
}

/** Return the card with curves and events; null if there is nothing to draw. */
function curves(run, events) {
  if (!run.figure) return null;
  const byPlace = new Map(run.events.map((event) => [event.place, event]));
  for (const trace of run.figure.data) {
    if (trace.mode === 'markers') trace.text = trace.customdata.map((place) => hover(byPlace.get(place)));
  }
  const drawn = chart(run.figure, 'Curves and events', 'drag to zoom, double-click to zoom out', ({points}) => {
    const event = byPlace.get(points[0].customdata);
    if (event) events.only('text', String(event.text.split('\n')[0]));
  });
  drawn.root.append(element('small', {}, 'A curve is what was logged, which is a mean over some iterations. A dot is'
    + ' the exact value of an update; a triangle at the top stands for one that is not finite or far off.'
    + (run.events.length < run.num_rows ? ' Dots are some of the events, bars count all.' : '')));
  return drawn;
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
