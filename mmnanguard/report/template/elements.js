'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const ROWS_PER_PAGE = 25;
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

/** Return a cell; in a narrow window, its label stands before it. */
function cell(value, label = null) {
  const isNumber = typeof value === 'number';
  const text = isNumber ? count(value) : String(value ?? '');
  return element('td', {class: isNumber ? 'number' : null, 'data-label': text ? label : null}, text);
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
