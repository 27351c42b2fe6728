// Tables that are cards on phones.

import {h} from './dom.js';

/**
 * table shows rows. Columns: {label, cell(row), num, wide, head, hide, sort}:
 * head makes the cell the row's header, wide gives it a line of its own on a
 * phone, extra hides it there, sort is its value for sorting, where sorting is {by, onSort}.
 */
export function table({caption, columns, rows, sorting, pick}) {
	const shown = columns.filter((c) => !c.hide);
	return h('div', {class: 'scroll'}, h('table', {class: 'cards'},
		h('caption', null, caption),
		h('thead', null, h('tr', null, pick && h('th', {scope: 'col'}, pick.all), shown.map((c) => heading(c, sorting)))),
		h('tbody', null, rows.map((row) => h('tr', null, pick && h('td', {class: 'pick'}, pick.one(row)), shown.map((c) => cell(c, row)))))));
}

function heading(c, sorting) {
	const attrs = {scope: 'col', class: c.num ? 'num' : null};
	if (!sorting || !c.sort) return h('th', attrs, c.label);
	const [by, down] = sorting.by ? [sorting.by.replace(/^-/, ''), sorting.by[0] === '-'] : ['', false];
	const is = by === c.name;
	if (is) attrs['aria-sort'] = down ? 'descending' : 'ascending';
	return h('th', attrs, h('button', {
		type: 'button', disabled: !sorting.onSort, title: sorting.onSort ? null : sorting.why,
		on: {click: () => sorting.onSort(is && !down ? '-' + c.name : is ? '' : c.name)},
	}, c.label, h('span', {'aria-hidden': 'true'}, is ? (down ? '▾' : '▴') : '')));
}

function cell(c, row) {
	const attrs = {class: [c.num && 'num', c.wide && 'wide', c.wrap && 'wrap', c.extra && 'extra'].filter(Boolean).join(' ') || null, 'data-label': c.head || c.wide ? null : c.label};
	return h(c.head ? 'th' : 'td', c.head ? {...attrs, scope: 'row'} : attrs, c.cell(row));
}

/** sorted returns the rows in the order that sorting asks for. */
export function sorted(rows, columns, by) {
	const name = (by || '').replace(/^-/, '');
	const column = columns.find((c) => c.name === name && c.sort);
	if (!column) return rows;
	const sign = by[0] === '-' ? -1 : 1;
	return [...rows].sort((a, b) => {
		const x = column.sort(a);
		const y = column.sort(b);
		return sign * (typeof x === 'string' ? x.localeCompare(y) : x - y);
	});
}
