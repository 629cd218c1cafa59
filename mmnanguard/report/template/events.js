// The filter that shows all kinds of rows but updates.
const FOLLOWED = 'followed';
const FEW = 6;  // rows that need no filters

/** The table of all rows, with its filters. */
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
    const {update = 0} = run.kinds;
    this.totals = update && run.num_rows > update ? {[FOLLOWED]: run.num_rows - update} : {};
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
        element('option', {value}, `${data.titles[value] || value} (${count(total)})`)));
    this.root = element('div', {class: 'card events'},
      element('h3', {}, `Events, and ${data.titles.followed}`), this.chips,
      element('div', {class: 'filters', hidden: run.events.length < FEW ? '' : null},
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
    const isFollower = cause === FOLLOWED && event.kind !== 'update';
    return (!cause || isFollower || event.cause === cause || `kind ${event.kind}` === cause)
      && (!param || has(event.paramNames, param))
      && (!sample || has(event.sampleNames, sample))
      && (!text || event.all.includes(text.toLowerCase()))
      && this.isInRange(event);
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
    this.showChips();
    this.showStatus(matching.length);
    const turn = (by, title, isOff) => element('button', {class: 'small',
      disabled: isOff ? '' : null, onclick: () => { this.page += by; this.show(); }}, title);
    this.pages.replaceChildren(...(numPages > 1 ? [
      turn(-1, 'previous', this.page === 0),
      `page ${count(this.page + 1)} of ${count(numPages)}`,
      turn(1, 'next', this.page === numPages - 1)] : []));
    remember();
  }

  /** Show a button for each cause and one for the other kinds, with the count in the range of the charts. */
  showChips() {
    const inRange = (test, total) => this.range && this.run.events.length === this.run.num_rows
      ? this.run.events.filter((event) => test(event) && this.isInRange(event)).length : total;
    const chip = (value, name, total, color) => element('button', {class: 'chip',
      'aria-pressed': String(this.filter.cause === value), onclick: () => {
        this.filter.cause = this.filter.cause === value ? '' : value;
        this.page = 0;
        this.show();
      }}, color ? element('span', {class: 'dot', style: `background:${color}`}) : null, `${name} ${count(total)}`);
    const chips = this.run.causes.map(({name, count: total, color}) =>
      chip(name, name, inRange((event) => event.cause === name, total), color));
    if (this.totals[FOLLOWED]) {
      chips.push(chip(FOLLOWED, data.titles[FOLLOWED],
        inRange((event) => event.kind !== 'update', this.totals[FOLLOWED])));
    }
    this.chips.replaceChildren(...chips);
  }

  isInRange(event) {
    return !this.range || (event.iter >= this.range[0] && event.iter <= this.range[1]);
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
    const isShort = kept === this.run.num_rows && kept < FEW;
    this.status.replaceChildren(isShort ? '' : `${parts.join('; ')}. `);
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
    const isUpdate = event.kind === 'update';
    const number = (panel, text) => element('td', {class: 'number', 'data-label': text ? data.titles[panel] : null}, text);
    const exact = (value) => typeof value === 'number' ? value.toPrecision(4) : value ?? '';
    const made = element('tr', {class: `event ${isUpdate ? 'update' : 'follower'}`, tabindex: 0},
      cell(event.iter),
      element('td', {class: 'nowrap'},
        color ? element('span', {class: 'dot', style: `background:${color}`}) : null,
        isUpdate ? ` ${event.cause}` : event.kind),
      // The sentence of an alert ends with the line that stands below it.
      element('td', {class: 'what'}, isUpdate ? event.text.split('\n')[0] : event.text.replace(event.code && `: ${event.code}`, ''),
        event.code ? code(event.code) : null),
      number('loss', isUpdate ? exact(event.loss) : ''),
      number('grad_norm', isUpdate ? exact(event.grad_norm) : ''), number('loss_scale', scale));
    const toggle = () => {
      if (made.nextSibling && made.nextSibling.className === 'detail') {
        made.nextSibling.remove();
        return;
      }
      const listed = (title, names, total) => names.length
        ? element('pre', {}, `${title}: ${names.join(', ')}${total > names.length ? ' ...' : ''}`) : null;
      made.after(element('tr', {class: 'detail'}, element('td', {colspan: 6},
        isUpdate ? element('pre', {}, event.text) : null,
        listed(`samples (${count(event.num_samples)})`, event.sampleNames, event.num_samples),
        element('pre', {class: 'muted'}, event.detail))));
    };
    made.addEventListener('click', (click) => { if (click.target.tagName !== 'BUTTON') toggle(); });
    made.addEventListener('keydown', (key) => { if (key.key === 'Enter' && key.target === made) toggle(); });
    return made;
  }
}
