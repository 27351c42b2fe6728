// Alerts and the audit log: long lists, the newest first, of which more is
// loaded on demand.

import {getOr} from '../api.js';
import {problem} from '../dialog.js';
import {debounce, h, replace} from '../dom.js';
import {number, when} from '../format.js';
import {limitLabel} from '../forms.js';
import {adjust} from '../router.js';
import {accountLink, accountName, onEvent} from '../state.js';
import {table} from '../table.js';

const page = 100;

/**
 * listPage shows what route gives under field. filters: {name, label, values}
 * are parameters of the address; matches(item, query) applies them to what is
 * loaded.
 */
function listPage({title, route, field, columns, filters, matches, names, fresh, none}) {
	return ({query, signal}) => {
		let current = query;
		let items = [];
		let cursor = null;
		let state = 'loading';
		const list = h('section', {class: 'card flush', 'aria-busy': 'true'}, h('div', {class: 'empty'}, 'Loading…'));
		const inputs = filters.map((f) => (f.values ?
			h('select', {'aria-label': f.label, on: {change: (e) => adjust({[f.name]: e.target.value})}}, h('option', {value: ''}, f.label), f.values.map((v) => h('option', {value: v}, v.replaceAll('_', ' ')))) :
			h('input', {type: 'search', id: 'search', placeholder: f.label, 'aria-label': f.label, on: {input: debounce((e) => signal.aborted || adjust({[f.name]: e.target.value.trim()}, {replace: true}), 200)}})));
		const el = h('div', null, h('div', {class: 'head'}, h('h1', null, title), h('span', {class: 'grow'}), inputs), list);

		async function load(more) {
			list.setAttribute('aria-busy', 'true');
			try {
				const answer = await getOr(route, {limit: page, cursor: more ? cursor : ''}, signal);
				if (answer === null) {
					state = 'absent';
				} else {
					await Promise.all([...new Set(answer[field].map(names).filter(Boolean))].slice(0, 100).map(async (id) => known.set(id, await accountName(id).catch(() => id))));
					items = more ? [...items, ...answer[field]] : answer[field];
					cursor = answer.next_cursor;
					state = 'shown';
				}
				show();
			} catch (err) {
				if (!signal.aborted) replace(list, h('div', {class: 'empty'}, problem(err, () => load(more))));
			} finally {
				list.removeAttribute('aria-busy');
			}
		}

		function show() {
			filters.forEach((f, i) => {
				if (document.activeElement !== inputs[i]) inputs[i].value = current.get(f.name) || '';
			});
			if (state === 'absent') {
				replace(list, h('div', {class: 'empty'}, h('h2', null, 'Not available'), h('p', null, 'This gate does not keep them.')));
				return;
			}
			if (state !== 'shown') return;
			const rows = items.filter((item) => matches(item, current));
			replace(list, rows.length ? table({caption: `${number(rows.length)} of ${number(items.length)} loaded, newest first`, columns, rows}) :
				h('div', {class: 'empty'}, items.length ? h('p', null, 'None of what is loaded is like that.') : none),
			cursor && h('div', {class: 'pager'}, h('button', {type: 'button', on: {click: () => load(true)}}, 'Load older')));
		}

		load(false);
		onEvent((e) => {
			const item = fresh(e);
			if (!item || state !== 'shown' || items.some((i) => i.id === item.id)) return;
			items.unshift(item);
			if (!list.contains(document.activeElement)) show();
		}, signal);
		return {el, update(next) {
			current = next;
			show();
		}};
	};
}

/** What accounts are called, as far as it was asked for. */
const known = new Map();

const about = (id, name) => (id ? h('a', {href: accountLink(id)}, name || known.get(id) || id) : h('span', {class: 'muted'}, 'The gate'));
const holds = (text, ...parts) => parts.some((p) => (p || '').toLowerCase().includes(text));

const kinds = {threshold: 'warn', exceeded: 'bad', forecast: 'warn', store_degraded: 'bad', store_recovered: 'good'};

export const alerts = listPage({
	title: 'Alerts', route: 'alerts', field: 'alerts',
	filters: [{name: 'q', label: 'Search alerts'}, {name: 'kind', label: 'All kinds', values: Object.keys(kinds)}],
	names: (a) => (a.name ? null : a.account),
	matches: (a, q) => (!q.get('kind') || a.kind === q.get('kind')) && holds((q.get('q') || '').toLowerCase(), a.name, a.account, a.message, a.limit),
	fresh: (e) => e.type === 'alert' && e.alert,
	none: [h('h2', null, 'No alerts yet'), h('p', null, 'An alert fires once in a period when a key or group reaches one of its thresholds, and when the store fails. Set thresholds with alert_at, and a webhook in the Caddyfile to be told.')],
	columns: [
		{label: 'Kind', cell: (a) => h('span', {class: `tag ${kinds[a.kind] || ''}`}, a.kind.replaceAll('_', ' '))},
		{label: 'When', cell: (a) => when(a.time)},
		{label: 'About', head: true, cell: (a) => about(a.account, a.name)},
		{label: 'Limit', cell: (a) => (a.limit ? limitLabel(a.limit) : '–')},
		{label: 'Threshold', num: true, cell: (a) => (a.threshold ? `${number(a.threshold)} %` : '–')},
		{label: 'Used', num: true, cell: (a) => (a.max ? `${number(a.used)} of ${number(a.max)}` : '–')},
		{label: 'Message', wide: true, wrap: true, cell: (a) => [a.message, a.exhausted_at && [' Used up ', when(a.exhausted_at), '.']]},
		{label: 'Webhooks', wide: true, cell: (a) => (a.deliveries?.length ? a.deliveries.map((d) => h('div', {class: 'small'}, h('span', {class: `tag ${d.state === 'delivered' ? 'good' : d.state === 'dead' ? 'bad' : ''}`, title: d.error || null}, d.state), ' ', d.target, d.attempts > 1 && `, ${d.attempts} attempts`)) : h('span', {class: 'muted'}, 'None'))},
	],
});

const actions = ['create', 'update', 'delete', 'rotate', 'reset', 'grant', 'move', 'disable', 'enable', 'take_over', 'remove', 'put_back'];

export const audit = listPage({
	title: 'Audit', route: 'audit', field: 'entries',
	filters: [{name: 'q', label: 'Search who and what'}, {name: 'action', label: 'All actions', values: actions}, {name: 'source', label: 'All sources', values: ['api', 'dashboard', 'cli', 'config']}],
	names: (e) => e.object,
	matches: (e, q) => (!q.get('action') || e.action === q.get('action')) && (!q.get('source') || e.source === q.get('source')) && (!q.get('object') || e.object === q.get('object')) &&
		holds((q.get('q') || '').toLowerCase(), e.actor, e.object, known.get(e.object), e.before?.name, e.after?.name),
	fresh: (e) => e.type === 'change' && e.change,
	none: [h('h2', null, 'No changes yet'), h('p', null, 'Every change of keys and groups is noted here, with who made it, and what was before and after.')],
	columns: [
		{label: 'When', cell: (e) => when(e.time)},
		{label: 'Action', cell: (e) => h('span', {class: 'tag info'}, e.action.replaceAll('_', ' '))},
		{label: 'Object', head: true, cell: (e) => about(e.object, e.after?.name || e.before?.name)},
		{label: 'Who', wrap: true, cell: (e) => [e.actor || h('span', {class: 'muted'}, 'unknown'), ' ', h('span', {class: 'tag'}, e.source)]},
		{label: 'Changed', wide: true, wrap: true, cell: (e) => changes(e.before, e.after)},
	],
});

/** changes lists the fields that differ. */
function changes(before, after) {
	const a = flat(before);
	const b = flat(after);
	const names = [...new Set([...a.keys(), ...b.keys()])].filter((n) => a.get(n) !== b.get(n));
	if (!names.length) return h('span', {class: 'muted'}, '–');
	const lines = names.map((n) => h('div', {class: 'small'}, h('code', null, n), ' ', before && a.has(n) && [h('del', {class: 'muted'}, a.get(n)), ' → '], b.get(n) ?? '–'));
	return lines.length <= 3 ? lines : h('details', {class: 'data'}, h('summary', null, `${lines.length} fields`), lines);
}

/** flat turns an object into its fields by path, each as text; empty ones are left out. */
function flat(o, at = '', into = new Map()) {
	for (const [name, value] of Object.entries(o || {})) {
		if (value !== null && typeof value === 'object' && !Array.isArray(value)) flat(value, `${at}${name}.`, into);
		else if (value !== null && value !== '' && !(Array.isArray(value) && !value.length)) into.set(at + name, Array.isArray(value) ? value.join(', ') : String(value));
	}
	return into;
}
