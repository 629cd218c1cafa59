/** Return the name of a badge's style. */
function styleOf(badge) {
  return `is-${badge.toLowerCase().replace(' ', '-')}`;
}

function badge(run) {
  return element('span', {class: `badge ${styleOf(run.badge)}`}, run.badge);
}

/** Return lines with a label each; the labels of equal length stand below one another. */
function labelled(lines) {
  return element('dl', {class: 'lines'}, ...lines.flatMap(([label, text]) =>
    [element('dt', {}, capitalized(label)), element('dd', {}, text)]));
}

function verdict(run) {
  const lines = [...run.lines];
  const also = run.reasons.slice(1).map((reason) => element('p', {}, reason));
  if (also.length) lines.splice(1, 0, ['also', element('div', {}, ...also)]);
  if (run.margins) lines.push(['margins', element('span', {class: 'margins'}, run.margins)]);
  return element('div', {class: `card verdict ${styleOf(run.badge)}`},
    element('p', {class: 'headline'}, badge(run), element('span', {}, run.headline)),
    lines.length ? labelled(lines) : null,
    element('p', {class: 'muted'}, run.progress),
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
      ...columns.map(([title, key]) => {
        if (key !== 'name') return cell(culprit[key], title);
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
