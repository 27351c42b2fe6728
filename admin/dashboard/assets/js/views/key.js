// The page of one key.

import {auditOf, explainCard, facts, history, limitsCard, metadataOf, refreshing, refusals, thresholds} from '../account.js';
import {edit, grant, move, remove, reset, rotate, setDisabled} from '../actions.js';
import {path, request} from '../api.js';
import {problem} from '../dialog.js';
import {h, renew, replace} from '../dom.js';
import {when} from '../format.js';
import {go, link, setTitle} from '../router.js';
import {alertRules, groupName, groups, mayChange} from '../state.js';
import {rangePicker} from '../usage.js';
import {statusOf} from './keys.js';

export function keyPage({params, query, signal}) {
	const head = h('div', {class: 'head'}, h('h1', null, 'Key'));
	const now = h('div', {class: 'grid'}, h('section', {class: 'card wide'}), h('section', {class: 'card third'}));
	const range = h('div', {class: 'head'});
	const past = history({key: params.id}, 'model', 'Models', signal);
	const el = h('div', null, head, now, range, h('div', {class: 'grid'}, past.els, explainCard('keys', params.id), refusals(params.id, signal), auditOf(params.id, signal)));

	let turn = 0;
	let shown = null;
	let headed = '';

	async function load() {
		const mine = ++turn;
		try {
			const [{data}, rules] = await Promise.all([request('GET', path('keys', params.id), {signal}), alertRules(), groups()]);
			if (mine === turn) show(data, rules);
		} catch (err) {
			if (signal.aborted || mine !== turn) return;
			if (err.status === 404) replace(el, h('div', {class: 'card empty'}, h('h2', null, 'There is no such key'), h('p', null, h('a', {href: link(['keys'])}, 'All keys'))));
			else replace(now, problem(err, load));
		}
	}

	function show(k, rules) {
		shown = k;
		setTitle(k.name);
		const [word, colour] = statusOf(k);
		const looks = JSON.stringify([k.name, word, k.source, k.deleted_at, Boolean(k.state.quota)]);
		if (looks !== headed) renew(head, h('div', null, h('nav', {class: 'crumbs', 'aria-label': 'You are here'}, h('a', {href: link(['keys'])}, 'Keys')),
			h('div', {class: 'title'}, h('h1', null, k.name), h('span', {class: `tag ${colour}`}, word), k.source === 'config' && h('span', {class: 'tag'}, 'config'))), h('span', {class: 'grow'}), mayChange() && !k.deleted_at && controls(k));
		headed = looks; // not made anew under a finger that is on a button
		renew(now, k.source === 'config' && h('p', {class: 'note'}, 'This key is set by Caddy’s configuration, where its settings and secret are changed. It can be disabled, reset and granted tokens here.'),
			limitsCard(k), h('section', {class: 'card third'}, h('header', null, h('h2', null, 'Settings')), facts([
				['Group', k.group ? h('a', {href: link(['groups', k.group])}, groupName(k.group)) : 'None'],
				['Secret', h('code', null, `${k.prefix}…`)],
				['Models', k.models.length ? h('code', null, k.models.join(' ')) : 'All'],
				['Addresses', k.allowed_ips.length ? h('code', null, k.allowed_ips.join(' ')) : 'All'],
				['Expires', when(k.expires_at, 'never')],
				['Alerts at', thresholds(k.alert_at, rules)],
				...metadataOf(k),
				['Last used', when(k.last_used_at, 'never')],
				['Created', when(k.created_at)],
				['Changed', when(k.updated_at)],
				k.deleted_at && ['Deleted', when(k.deleted_at)],
				['ID', h('code', null, k.id)],
			])));
	}

	function controls(k) {
		const config = k.source === 'config';
		const button = (label, run, blocked, cls) => h('button', {type: 'button', class: cls, disabled: Boolean(blocked), title: blocked || null, on: {click: run}}, label);
		const there = config && 'This is set by the configuration, and changes there.';
		return h('div', {class: 'toolbar'},
			button('Edit', () => edit('keys', k.id, load).catch(failed), there, 'primary'),
			button(k.disabled ? 'Enable' : 'Disable', () => setDisabled([shown], !shown.disabled, load)),
			button('Grant', () => grant('keys', shown, load), !k.state.quota && 'It has no token quota.'),
			button('Reset', () => reset('keys', shown, load)),
			button('Move', () => move([shown], load), there),
			button('New secret', () => rotate(shown, load), there),
			button('Delete', () => remove('keys', shown, () => go(['keys'])), there, 'danger'));
	}

	const failed = (err) => now.prepend(problem(err));

	function update(next) {
		replace(range, h('h2', null, 'History'), h('span', {class: 'grow'}), rangePicker(next));
		query = next;
		past.load(next);
	}

	load();
	update(query);
	refreshing(() => {
		load();
		if (!el.querySelector('.chart:focus-within')) past.load(query);
	}, signal, (e) => e.key === params.id || e.change?.object === params.id);
	return {el, update};
}
