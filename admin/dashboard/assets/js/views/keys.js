// The list of keys, which the server searches, sorts and pages.

import {quotaCell, refreshing} from '../account.js';
import {create, move, removeKeys, resetQuotas, setDisabled, tryLine} from '../actions.js';
import {get} from '../api.js';
import {problem} from '../dialog.js';
import {debounce, h, renew, replace} from '../dom.js';
import {many, number, when} from '../format.js';
import {adjust, again, go, link} from '../router.js';
import {groupName, groups, known, mayChange, rooted} from '../state.js';
import {table} from '../table.js';

const sizes = [50, 100, 250, 500];

/** orders are what the list can be sorted by, and what each is called. */
const orders = {
	created: 'newest first', '-created': 'oldest first', name: 'A to Z', '-name': 'Z to A', used: 'most of the quota used first', '-used': 'least of the quota used first',
	last_used: 'last used first', '-last_used': 'longest unused first',
};
const falls = ['created', 'used', 'last_used'];

/** statusOf is what a key is, as a word and a colour. */
export function statusOf(k) {
	if (k.deleted_at) return ['deleted', 'bad'];
	if (k.disabled) return ['disabled', 'warn'];
	if (k.expires_at && new Date(k.expires_at) <= new Date()) return ['expired', 'warn'];
	return ['active', 'good'];
}

const columns = [
	{label: 'Name', head: true, sort: 'name', cell: (k) => [h('a', {href: link(['keys', k.id])}, k.name), k.source === 'config' && [' ', h('span', {class: 'tag', title: 'Set by Caddy’s configuration'}, 'config')]]},
	{label: 'Status', cell: (k) => h('span', {class: `tag ${statusOf(k)[1]}`}, statusOf(k)[0])},
	{label: 'Group', cell: (k) => (k.group ? h('a', {href: link(['groups', k.group])}, groupName(k.group)) : h('span', {class: 'muted'}, '–'))},
	{label: 'Quota', wide: true, sort: 'used', cell: quotaCell},
	{label: 'Secret', extra: true, cell: (k) => h('code', null, `${k.prefix}…`)},
	{label: 'Last used', sort: 'last_used', cell: (k) => when(k.last_used_at, 'never')},
	{label: 'Created', extra: true, sort: 'created', cell: (k) => when(k.created_at)},
];

export function keys({query, signal}) {
	let current = query;
	let turn = 0;
	let shown = [];
	const chosen = new Map();
	const search = h('input', {type: 'search', id: 'search', placeholder: 'Search name or prefix', 'aria-label': 'Search keys by name or prefix', value: query.get('q') || '',
		on: {input: debounce(() => signal.aborted || adjust({q: search.value.trim(), cursor: '', page: ''}, {replace: true}), 200)}});
	const status = h('select', {'aria-label': 'Status', on: {change: () => adjust({status: status.value, cursor: '', page: ''})}},
		[['', 'All but deleted'], ['active', 'Active'], ['disabled', 'Disabled'], ['expired', 'Expired'], ['deleted', 'Deleted']].map(([v, t]) => h('option', {value: v}, t)));
	const group = h('select', {'aria-label': 'Group', on: {change: () => adjust({group: group.value, cursor: '', page: ''})}}, h('option', {value: ''}, 'All groups'));
	const order = h('select', {'aria-label': 'Order', class: 'phone', on: {change: () => sort(order.value)}}, // tables have headings to click
		Object.entries(orders).map(([v, t]) => h('option', {value: v}, t.slice(0, 1).toUpperCase() + t.slice(1))));
	const bulk = h('div', {class: 'toolbar', hidden: true, role: 'group', 'aria-label': 'Chosen keys'});
	const list = h('section', {class: 'card flush', 'aria-busy': 'true'}, h('div', {class: 'empty'}, 'Loading…'));
	const el = h('div', null,
		h('div', {class: 'head'}, h('h1', null, 'Keys'), h('span', {class: 'grow'}), search, group, status, order,
			mayChange() && h('button', {type: 'button', class: 'primary', id: 'new', on: {click: () => create('keys', {group: current.get('group') || ''}, (k) => go(['keys', k.id]))}}, 'New key')),
		bulk, list);

	const by = () => (Object.hasOwn(orders, current.get('sort') || '') ? current.get('sort') : 'created');
	const sort = (to) => adjust({sort: to === 'created' ? '' : to, cursor: '', page: ''});

	function controls() {
		order.value = by();
		if (document.activeElement !== search) search.value = current.get('q') || '';
		status.value = current.get('status') || '';
		groups().then((all) => {
			replace(group, h('option', {value: ''}, 'All groups'), rooted(all).map(({group: g, depth}) => h('option', {value: g.id}, '\u2003'.repeat(depth) + g.name)));
			group.value = current.get('group') || '';
		}, () => {});
	}

	async function load() {
		const mine = ++turn;
		const limit = sizes.includes(Number(current.get('limit'))) ? Number(current.get('limit')) : sizes[0];
		list.setAttribute('aria-busy', 'true');
		try {
			const [answer] = await Promise.all([get('keys', {
				limit, q: current.get('q'), group: current.get('group'), status: current.get('status'), sort: by(), cursor: current.get('cursor'),
			}, signal), groups()]);
			if (mine !== turn) return;
			known(answer.keys);
			show(answer, limit);
		} catch (err) {
			if (mine === turn && !signal.aborted) replace(list, h('div', {class: 'empty'}, problem(err, load)));
		} finally {
			if (mine === turn) list.removeAttribute('aria-busy');
		}
	}

	function show(answer, limit) {
		const page = Math.max(1, Number(current.get('page')) || 1);
		const whole = !answer.next_cursor && !current.get('cursor');
		shown = answer.keys;
		for (const id of chosen.keys()) if (!shown.some((k) => k.id === id)) chosen.delete(id);
		showBulk();
		if (shown.length === 0) {
			replace(list, none());
			return;
		}
		renew(list, table({
			caption: `${whole ? '' : `Page ${number(page)}, `}${many(shown.length, 'key')}, ${orders[by()]}`,
			columns, rows: shown, pick: mayChange() && picking(), sorting: {by: by(), falls, onSort: sort},
		}), pager(answer, limit, page, whole));
	}

	function pager(answer, limit, page, whole) {
		const to = (changes) => {
			const q = new URLSearchParams(current);
			for (const [n, v] of Object.entries(changes)) v ? q.set(n, v) : q.delete(n);
			return link(['keys'], q);
		};
		return h('nav', {class: 'pager', 'aria-label': 'Pages'},
			current.get('cursor') && h('a', {class: 'button', href: to({cursor: '', page: ''})}, 'First page'),
			answer.next_cursor && h('a', {class: 'button', href: to({cursor: answer.next_cursor, page: page + 1})}, 'Next page'),
			(!whole || shown.length > sizes[0]) && h('label', {class: 'inline push'}, 'On a page', h('select', {value: String(limit), on: {change: (e) => adjust({limit: e.target.value === '50' ? '' : e.target.value, cursor: '', page: ''})}},
				sizes.map((n) => h('option', {value: String(n)}, String(n))))));
	}

	function picking() {
		const all = h('input', {type: 'checkbox', 'aria-label': 'Choose all on this page', on: {change: () => {
			for (const k of shown) all.checked ? chosen.set(k.id, k) : chosen.delete(k.id);
			for (const box of list.querySelectorAll('tbody input')) box.checked = all.checked;
			showBulk();
		}}});
		all.checked = shown.length > 0 && shown.every((k) => chosen.has(k.id));
		return {all, one: (k) => h('input', {type: 'checkbox', checked: chosen.has(k.id), 'aria-label': `Choose ${k.name}`, on: {change: (e) => {
			e.target.checked ? chosen.set(k.id, k) : chosen.delete(k.id);
			showBulk();
		}}})};
	}

	function showBulk() {
		bulk.hidden = chosen.size === 0;
		if (bulk.hidden) return;
		const picked = [...chosen.values()];
		const api = picked.filter((k) => k.source !== 'config');
		const done = () => {
			chosen.clear();
			load();
		};
		const there = api.length < picked.length && 'Keys of the configuration are moved and deleted there';
		const button = (label, run, blocked, cls) => h('button', {type: 'button', class: cls, disabled: Boolean(blocked), title: blocked || null, on: {click: run}}, label);
		renew(bulk, h('strong', {role: 'status'}, `${number(picked.length)} chosen`),
			button('Move…', () => move(picked, done), there),
			button('Disable…', () => setDisabled(picked, true, done)),
			button('Enable…', () => setDisabled(picked, false, done)),
			button('Reset…', () => resetQuotas(picked, done)),
			button('Delete…', () => removeKeys(picked, done), there, 'danger'),
			button('Choose none', done, null, 'link'));
	}

	function none() {
		if (current.get('q') || current.get('group') || current.get('status') || current.get('cursor')) {
			return h('div', {class: 'empty'}, h('h2', null, 'No key is like that'), h('p', null, h('a', {href: link(['keys'])}, 'Show all keys')));
		}
		return h('div', {class: 'empty'}, h('h2', null, 'No keys yet'), h('p', null, 'A key is what callers present to this gate. Its quota and limits hold from the first call.'),
			mayChange() && h('button', {type: 'button', class: 'primary', on: {click: () => create('keys', {}, again)}}, 'Create the first key'), h('pre', null, tryLine('$KEY')));
	}

	function update(next) {
		current = next;
		controls();
		load();
	}

	update(query);
	refreshing(() => list.contains(document.activeElement) || chosen.size || load(), signal, (e) => e.type === 'settlement' || e.type === 'change', 10000);
	return {el, update};
}
