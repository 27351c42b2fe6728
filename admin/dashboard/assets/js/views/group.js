// The page of one group.

import {auditOf, explainCard, facts, history, limitsCard, metadataOf, periodStart, refreshing, refusals, schedule, thresholds} from '../account.js';
import {assign, create, edit, grant, remove, reset} from '../actions.js';
import {path, request} from '../api.js';
import {ranking} from '../chart.js';
import {problem} from '../dialog.js';
import {h, renew, replace} from '../dom.js';
import {compact, dateTime, number, share, when} from '../format.js';
import {limitLabel, limitNames} from '../forms.js';
import {go, link, setTitle} from '../router.js';
import {accountLink, alertRules, groupName, groups, mayChange} from '../state.js';
import {nameOf, rangePicker, usage} from '../usage.js';

export function groupPage({params, query, signal}) {
	const head = h('div', {class: 'head'}, h('h1', null, 'Group'));
	const now = h('div', {class: 'grid'}, h('section', {class: 'card wide'}), h('section', {class: 'card third'}));
	const members = h('section', {class: 'card wide', 'aria-busy': 'true'}, h('header', null, h('h2', null, 'Members')));
	const range = h('div', {class: 'head'});
	const past = history({group: params.id}, 'key', 'Keys', signal);
	const el = h('div', null, head, now, range, h('div', {class: 'grid'}, past.els, explainCard('groups', params.id), refusals(params.id, signal), members, auditOf(params.id, signal, 'third')));

	let turn = 0;
	let shown = null;
	let headed = '';

	async function load() {
		const mine = ++turn;
		try {
			const [{data}, all, rules] = await Promise.all([request('GET', path('groups', params.id), {signal}), groups(), alertRules()]);
			if (mine !== turn) return;
			show(data, all, rules);
			await showMembers(data);
		} catch (err) {
			if (signal.aborted || mine !== turn) return;
			if (err.status === 404) replace(el, h('div', {class: 'card empty'}, h('h2', null, 'There is no such group'), h('p', null, h('a', {href: link(['groups'])}, 'All groups'))));
			else replace(now, problem(err, load));
		} finally {
			if (mine === turn) members.removeAttribute('aria-busy');
		}
	}

	function show(g, all, rules) {
		shown = g;
		setTitle(g.name);
		const children = [...all.values()].filter((c) => c.parent === g.id);
		const looks = JSON.stringify([g.name, g.source, g.deleted_at, Boolean(g.state.quota), above(g, all).map((a) => a.name)]);
		if (looks !== headed) renew(head, h('div', null, h('nav', {class: 'crumbs', 'aria-label': 'You are here'}, h('a', {href: link(['groups'])}, 'Groups'),
			above(g, all).map((a) => [' / ', h('a', {href: link(['groups', a.id])}, a.name)])),
		h('div', {class: 'title'}, h('h1', null, g.name), g.deleted_at && h('span', {class: 'tag bad'}, 'deleted'), g.source === 'config' && h('span', {class: 'tag'}, 'config'))), h('span', {class: 'grow'}), mayChange() && !g.deleted_at && controls(g));
		headed = looks; // not made anew under a finger that is on a button
		renew(now, g.source === 'config' && h('p', {class: 'note'}, 'This group is set by Caddy’s configuration, where its settings are changed. It can be reset and granted tokens here.'),
			limitsCard(g), h('section', {class: 'card third'}, h('header', null, h('h2', null, 'Settings')), facts([
				['Keys in it', h('a', {href: link(['keys'], {group: g.id})}, number(g.keys))],
				['Parent', g.parent ? h('a', {href: link(['groups', g.parent])}, groupName(g.parent)) : 'None'],
				children.length > 0 && ['Groups in it', children.map((c, i) => [i > 0 && ', ', h('a', {href: link(['groups', c.id])}, c.name)])],
				['Each member', memberText(g.member)],
				['Alerts at', thresholds(g.alert_at, rules)],
				...metadataOf(g),
				['Last used', when(g.last_used_at, 'never')],
				['Created', when(g.created_at)],
				['Changed', when(g.updated_at)],
				['ID', h('code', null, g.id)],
			])));
	}

	async function showMembers(g) {
		const start = periodStart(g) || new Date(Math.max(Date.parse(g.created_at), Date.now() - 30 * 24 * 3600e3));
		const report = await usage({from: start, to: new Date(), step: Date.now() - start < 8 * 24 * 3600e3 ? 'hour' : 'day'}, {group: g.id, by: 'key'}, signal);
		const most = report.totals.total_tokens;
		const lines = await Promise.all(report.breakdown.slice(0, 20).map(async (l) => ({
			name: await nameOf(l), value: l.totals.total_tokens, href: l.key ? accountLink(l.key) : null, note: most > 0 ? share(l.totals.total_tokens / most) : null,
		})));
		replace(members, h('header', null, h('h2', null, 'What each member used'), h('span', {class: 'small'}, `since ${dateTime(start)}`)),
			lines.length ? h('div', {class: lines.length > 6 ? 'columns' : null}, ranking(lines)) : h('p', {class: 'muted'}, 'Nothing yet in this period.'),
			report.breakdown.length > lines.length && h('p', {class: 'small muted'}, `and ${number(report.breakdown.length - lines.length)} others`));
	}

	function controls(g) {
		const config = g.source === 'config' && 'This is set by the configuration, and changes there.';
		const button = (label, run, blocked, cls) => h('button', {type: 'button', class: cls, disabled: Boolean(blocked), title: blocked || null, on: {click: run}}, label);
		return h('div', {class: 'toolbar'},
			button('Edit', () => edit('groups', g.id, load).catch((err) => now.prepend(problem(err))), config, 'primary'),
			button('Assign keys', () => assign(shown, load)),
			button('New key', () => create('keys', {group: g.id}, load)),
			button('Grant', () => grant('groups', shown, load), !g.state.quota && 'It has no token quota.'),
			button('Reset', () => reset('groups', shown, load)),
			button('Delete', () => remove('groups', shown, () => go(['groups'])), config, 'danger'));
	}

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
	}, signal, (e) => e.type === 'settlement' || e.change?.object === params.id);
	return {el, update};
}

function above(g, all) {
	const list = [];
	for (let p = all.get(g.parent); p && list.length < 16; p = all.get(p.parent)) list.unshift(p);
	return list;
}

/** memberText says what members inherit. */
function memberText(member) {
	const bound = (b) => (b === 'unlimited' ? b : compact(b));
	const list = Object.keys(limitNames).filter((n) => member.limits[n] !== null).map((n) => `${bound(member.limits[n])} ${limitLabel(n).toLowerCase()}`);
	if (member.quota) list.unshift(`${bound(member.quota.tokens)} tokens ${member.quota.tokens === 'unlimited' ? '' : schedule(member.quota)}`.trim());
	return list.length ? list.join('; ') : 'Nothing of its own';
}
