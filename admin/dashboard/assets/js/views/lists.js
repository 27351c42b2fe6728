// Alerts and the audit log: long lists, the newest first, of which more is
// loaded on demand.

import {getOr} from '../api.js';
import {problem} from '../dialog.js';
import {debounce, h, replace} from '../dom.js';
import {many, number, threshold, when} from '../format.js';
import {limitLabel} from '../forms.js';
import {adjust} from '../router.js';
import {facts, percents} from '../account.js';
import {accountLink, accountName, alertRules, groupName, groups, onEvent} from '../state.js';
import {table} from '../table.js';

const page = 100;

/**
 * listPage shows what route gives under field. filters are parameters of the
 * address and of the route: {name, label, values}. What is searched for is
 * looked for in what is loaded: text(item) is where.
 */
function listPage({title, search, route, field, columns, filters, text, account, fresh, none, above}) {
	return ({query, signal}) => {
		let current = query;
		let asked = null;
		let items = [];
		let cursor = null;
		let turn = 0;
		let state = 'loading';
		const list = h('section', {class: 'card flush', 'aria-busy': 'true'}, h('div', {class: 'empty'}, 'Loading…'));
		const find = h('input', {type: 'search', id: 'search', placeholder: search, 'aria-label': search, on: {input: debounce(() => signal.aborted || adjust({q: find.value.trim()}, {replace: true}), 200)}});
		const selects = filters.map((f) => h('select', {'aria-label': f.label, on: {change: (e) => adjust({[f.name]: e.target.value})}},
			h('option', {value: ''}, f.label), f.values.map((v) => h('option', {value: v}, v.replaceAll('_', ' ')))));
		const only = h('p', {class: 'note', hidden: true});
		const el = h('div', null, h('div', {class: 'head'}, h('h1', null, title), h('span', {class: 'grow'}), find, selects), above?.(signal), only, list);

		const names = ['account', ...filters.map((f) => f.name)];
		const filter = () => Object.fromEntries(names.map((n) => [n, current.get(n) || '']));

		async function load(more) {
			const mine = ++turn;
			list.setAttribute('aria-busy', 'true');
			try {
				const answer = await getOr(route, {...filter(), limit: page, cursor: more ? cursor : ''}, signal);
				if (mine !== turn) return;
				if (answer === null) {
					state = 'absent';
				} else {
					await groups(); // for their names
					for (const item of answer[field]) if (account(item) && called(item)) known.set(account(item), called(item));
					const unknown = [...new Set(answer[field].map(account))].filter((id) => id && !known.has(id)).slice(0, 100);
					await Promise.all(unknown.map(async (id) => known.set(id, await accountName(id).catch(() => id))));
					if (mine !== turn) return;
					items = more ? [...items, ...answer[field]] : answer[field];
					cursor = answer.next_cursor;
					state = 'shown';
				}
				show();
			} catch (err) {
				if (mine === turn && !signal.aborted) replace(list, h('div', {class: 'empty'}, problem(err, () => load(more))));
			} finally {
				if (mine === turn) list.removeAttribute('aria-busy');
			}
		}

		function show() {
			if (document.activeElement !== find) find.value = current.get('q') || '';
			filters.forEach((f, i) => (selects[i].value = current.get(f.name) || ''));
			if (state === 'absent') {
				replace(list, h('div', {class: 'empty'}, h('h2', null, 'Not available'), h('p', null, 'This gate does not keep them.')));
				return;
			}
			if (state !== 'shown') return;
			const q = (current.get('q') || '').toLowerCase();
			const rows = items.filter((item) => text(item).some((t) => (t || '').toLowerCase().includes(q)));
			const any = q || names.some((n) => current.get(n));
			replace(list, rows.length ? table({caption: q ? `${number(rows.length)} of the ${number(items.length)} that are loaded` : `The newest ${number(rows.length)}${cursor ? '' : ', which are all'}`, columns, rows}) :
				h('div', {class: 'empty'}, any ? [h('h2', null, 'None is like that'), h('p', null, h('a', {href: `#/${route}`}, 'Show all'))] : none),
			cursor && h('div', {class: 'pager'}, h('button', {type: 'button', on: {click: () => load(true)}}, 'Load older')));
		}

		async function update(next) {
			current = next;
			const now = JSON.stringify(filter());
			if (now === asked) {
				show();
				return;
			}
			asked = now;
			load(false);
			const id = current.get('account');
			only.hidden = !id;
			if (id) replace(only, 'Only those about ', about(id, await accountName(id).catch(() => id)), '. ', h('a', {href: `#/${route}`}, 'Show all'));
		}

		update(query);
		onEvent((e) => {
			const item = fresh(e);
			if (!item || state !== 'shown' || items.some((i) => i.id === item.id)) return;
			if (names.some((n) => current.get(n) && current.get(n) !== (n === 'account' ? account(item) : item[n]))) return;
			items.unshift(item);
			if (!list.contains(document.activeElement)) show();
		}, signal);
		return {el, update};
	};
}

/** called is what the account was called when the item was noted. */
const called = (item) => item.name || item.after?.name || item.before?.name;

/** What accounts are called, as far as it was asked for. */
const known = new Map();

const about = (id, name) => (id ? h('a', {href: accountLink(id)}, name || known.get(id) || id) : h('span', {class: 'muted'}, 'The gate'));

/** comes is what follows for an account, or what happened to the gate. */
function comes(a) {
	if (a.exhausted_at) return ['Used up ', when(a.exhausted_at), ' at this rate', a.resets_at && [', starts anew ', when(a.resets_at)]];
	if (!a.limit) return a.message;
	return a.resets_at ? ['Starts anew ', when(a.resets_at)] : 'Starts anew by hand';
}

/** rulesCard says when alerts fire, and who is told. */
function rulesCard(signal) {
	const card = h('details', {class: 'card rules'}, h('summary', null, 'When alerts fire'));
	const load = () => alertRules().then((r) => r && replace(card,
		h('summary', null, `Alerts fire at ${percents(r.at)} of `, r.on.map((l, i) => [i > 0 && ', ', 'the ', limitLabel(l).toLowerCase()]), `; ${r.webhooks.length ? `${many(r.webhooks.length, 'webhook')} told` : 'no webhook is told'}`),
		facts([
			['Thresholds', [percents(r.at), '. Keys and groups may have their own: edit them, or set ', h('code', null, 'alert_at'), ' in the Caddyfile.']],
			['Forecast', r.forecast ? 'Also when a limit would be used up before it starts anew.' : 'Off'],
			['Webhooks', r.webhooks.length ? r.webhooks.map((w) => h('div', null, h('code', null, w.target), ' ', h('span', {class: 'tag'}, w.format), ' ', h('span', {class: 'tag'}, w.signed ? 'signed' : 'not signed'))) :
				['None. To be told, set one in the global options of the Caddyfile: ', h('code', null, 'llm_quota { webhook https://hooks.example.com/x }')]],
		])), (err) => signal.aborted || replace(card, h('summary', null, 'When alerts fire'), problem(err, load)));
	load();
	return card;
}

const kinds = {threshold: 'warn', exceeded: 'bad', forecast: 'warn', store_degraded: 'bad', store_recovered: 'good'};

export const alerts = listPage({
	title: 'Alerts', search: 'Search what is loaded', route: 'alerts', field: 'alerts',
	filters: [{name: 'kind', label: 'All kinds', values: Object.keys(kinds)}],
	account: (a) => a.account,
	text: (a) => [a.name, known.get(a.account), a.account, a.message, a.limit],
	fresh: (e) => e.type === 'alert' && e.alert,
	none: [h('h2', null, 'No alerts yet'), h('p', null, 'An alert fires once in a period when a key or group reaches one of its thresholds, and when the store fails.')],
	above: rulesCard,
	columns: [
		{label: 'Kind', cell: (a) => h('span', {class: `tag ${kinds[a.kind] || ''}`}, a.kind.replaceAll('_', ' '))},
		{label: 'When', cell: (a) => when(a.time)},
		{label: 'About', head: true, cell: (a) => about(a.account, a.name)},
		{label: 'Limit', cell: (a) => h('span', {class: 'whole'}, a.limit ? limitLabel(a.limit) : '–')},
		{label: 'Threshold', num: true, cell: (a) => (a.threshold ? `${threshold(a.threshold)}` : '–')},
		{label: 'Used', num: true, cell: (a) => (a.max ? `${number(a.used)} of ${number(a.max)}` : '–')},
		{label: 'What comes', wrap: true, cell: comes},
		{label: 'Webhooks', cell: (a) => (a.deliveries?.length ? a.deliveries.map((d) => h('div', {class: 'small'}, h('span', {class: `tag ${d.state === 'delivered' ? 'good' : d.state === 'dead' ? 'bad' : ''}`, title: d.error || null}, d.state), ' ', d.target, d.attempts > 1 && `, ${d.attempts} attempts`)) : h('span', {class: 'muted'}, 'None'))},
	],
});

const actions = ['create', 'update', 'delete', 'rotate', 'reset', 'grant', 'move', 'disable', 'enable', 'take_over', 'remove', 'put_back'];

export const audit = listPage({
	title: 'Audit', search: 'Search what is loaded', route: 'audit', field: 'entries',
	filters: [{name: 'action', label: 'All actions', values: actions}, {name: 'source', label: 'All sources', values: ['api', 'dashboard', 'cli', 'config']}],
	account: (e) => e.object,
	text: (e) => [e.actor, e.object, e.name, known.get(e.object)],
	fresh: (e) => e.type === 'change' && e.change,
	none: [h('h2', null, 'No changes yet'), h('p', null, 'Every change of keys and groups is noted here, with who made it, and what was before and after.')],
	columns: [
		{label: 'When', cell: (e) => when(e.time)},
		{label: 'Action', cell: (e) => h('span', {class: 'tag info'}, e.action.replaceAll('_', ' '))},
		{label: 'Object', head: true, cell: (e) => about(e.object, called(e))},
		{label: 'Who', wrap: true, cell: (e) => [e.actor && [e.actor, ' '], e.source ? h('span', {class: 'tag'}, e.source) : h('span', {class: 'muted'}, '–')]},
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
		else if (value !== null && value !== '' && !(Array.isArray(value) && !value.length)) into.set(at + name, Array.isArray(value) ? value.join(', ') : String(value).startsWith('grp_') ? groupName(value) : String(value));
	}
	return into;
}
