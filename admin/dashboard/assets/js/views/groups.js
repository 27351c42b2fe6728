// The tree of groups.

import {nearest, quotaCell, refreshing} from '../account.js';
import {create} from '../actions.js';
import {limitLabel} from '../forms.js';
import {problem} from '../dialog.js';
import {h, replace} from '../dom.js';
import {number, share, when} from '../format.js';
import {adjust, go, link} from '../router.js';
import {groups, mayChange, rooted, stale} from '../state.js';
import {table} from '../table.js';

const columns = [
	{label: 'Group', head: true, cell: ({group, depth}) => h('div', {class: depth ? 'tree' : 'tree root', vars: {depth: Math.max(0, depth - 1)}}, h('span', null, h('a', {href: link(['groups', group.id])}, group.name), group.source === 'config' && [' ', h('span', {class: 'tag'}, 'config')]))},
	{label: 'Keys', num: true, cell: ({group}) => h('a', {href: link(['keys'], {group: group.id})}, number(group.keys))},
	{label: 'Shared quota', wide: true, cell: ({group}) => quotaCell(group)},
	{label: 'Starts anew', cell: ({group}) => when(group.state.quota?.resets_at)},
	{label: 'Fullest limit', cell: ({group}) => fullest(group)},
	{label: 'Last used', cell: ({group}) => when(group.last_used_at, 'never')},
];

function fullest(group) {
	const s = nearest(group);
	if (!s) return h('span', {class: 'muted'}, 'None');
	return h('span', {class: s.share >= 1 ? 'bad' : s.share >= 0.8 ? 'warn' : null}, `${share(s.share)} of `, limitLabel(s.name).toLowerCase());
}

export function groupsPage({query, signal}) {
	let current = query;
	const search = h('input', {type: 'search', id: 'search', placeholder: 'Search groups', 'aria-label': 'Search groups by name', value: query.get('q') || '', on: {input: () => adjust({q: search.value.trim()}, {replace: true})}});
	const list = h('section', {class: 'card flush', 'aria-busy': 'true'}, h('div', {class: 'empty'}, 'Loading…'));
	const make = () => create('groups', {}, (g) => go(['groups', g.id]));
	const el = h('div', null, h('div', {class: 'head'}, h('h1', null, 'Groups'), h('span', {class: 'grow'}), search,
		mayChange() && h('button', {type: 'button', class: 'primary', id: 'new', on: {click: make}}, 'New group')), list);

	async function load() {
		try {
			const all = await groups();
			const q = (current.get('q') || '').toLowerCase();
			const rows = rooted(all).filter(({group}) => group.name.toLowerCase().includes(q)).map((r) => (q ? {...r, depth: 0} : r));
			replace(list, rows.length ? table({caption: `${number(rows.length)} ${rows.length === 1 ? 'group' : 'groups'}`, columns, rows}) :
				h('div', {class: 'empty'}, h('h2', null, q ? 'No group is like that' : 'No groups yet'),
					q ? h('p', null, h('a', {href: link(['groups'])}, 'Show all groups')) : h('p', null, 'A group holds its keys to a shared budget, and gives them defaults. Groups may stand in one another: a team within a department.'),
					!q && mayChange() && h('button', {type: 'button', class: 'primary', on: {click: make}}, 'Create the first group')));
		} catch (err) {
			if (!signal.aborted) replace(list, h('div', {class: 'empty'}, problem(err, load)));
		} finally {
			list.removeAttribute('aria-busy');
		}
	}

	function update(next) {
		current = next;
		load();
	}

	stale();
	load();
	refreshing(() => {
		if (list.contains(document.activeElement)) return;
		stale();
		load();
	}, signal, (e) => e.type === 'settlement' || e.type === 'change', 10000);
	return {el, update};
}
