// Tables that are cards on phones.

import {h} from './dom.js';

/**
 * table shows rows. Columns: {label, cell(row), num, wide, head, hide, sort}:
 * head makes the cell the row's header, wide gives it a line of its own on a
 * phone, extra hides it there, sort is the name of the order by it. sorting is
 * {by, falls, onSort}: by is the order that holds, with a "-" when it is
 * turned around, and falls those that begin with the greatest.
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
	const is = sorting.by.replace(/^-/, '') === c.sort;
	const down = sorting.falls.includes(c.sort) !== sorting.by.startsWith('-');
	if (is) attrs['aria-sort'] = down ? 'descending' : 'ascending';
	return h('th', attrs, h('button', {type: 'button', on: {click: () => sorting.onSort(sorting.by === c.sort ? '-' + c.sort : c.sort)}},
		c.label));
}

function cell(c, row) {
	const attrs = {class: [c.num && 'num', c.wide && 'wide', c.wrap && 'wrap', c.extra && 'extra'].filter(Boolean).join(' ') || null, 'data-label': c.head || c.wide ? null : c.label};
	return h(c.head ? 'th' : 'td', c.head ? {...attrs, scope: 'row'} : attrs, c.cell(row));
}
