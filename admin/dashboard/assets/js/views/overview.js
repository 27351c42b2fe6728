// The first page: how much was used, by whom, and what is near its end.

import {limitLabel} from '../forms.js';
import {nearest, refreshing, refuses} from '../account.js';
import {create, csvLink, tryLine} from '../actions.js';
import {get} from '../api.js';
import {meter, ranking, spark, stacked} from '../chart.js';
import {problem} from '../dialog.js';
import {h, replace} from '../dom.js';
import {clock, compact, many, number, share, when} from '../format.js';
import {adjust, go, link} from '../router.js';
import {accountLink, groups, key, known, mayChange, onEvent, recently, stale} from '../state.js';
import {axis, before, nameOf, rangeOf, rangePicker, stack, usage} from '../usage.js';

const tiles = [
	['total_tokens', 'Tokens'], ['requests', 'Requests'], ['refused', 'Refused'], ['failed', 'Failed'], ['estimated_tokens', 'Estimated tokens'],
];
const kinds = {model: 'Models', key: 'Keys', group: 'Groups'};

export function overview({query, signal}) {
	const tools = h('div', {class: 'toolbar'});
	const hint = h('div');
	const stats = h('dl', {class: 'stats'});
	const spoken = h('p', {class: 'hidden', 'aria-live': 'polite'});
	let spokenAt = Date.now();
	let nearAt = 0;
	const charts = {
		total_tokens: h('section', {class: 'card half'}), requests: h('section', {class: 'card half'}),
	};
	const tops = Object.fromEntries(Object.keys(kinds).map((k) => [k, h('section', {class: 'card third'})]));
	const near = h('section', {class: 'card third'});
	let current = query;
	let loading = null;
	let newest = [];
	let fullest = [];
	let fullestDue = 0;

	blank();
	const el = h('div', null,
		h('div', {class: 'head'}, h('h1', null, 'Overview'), h('span', {class: 'grow'}), tools), hint, stats, spoken,
		h('div', {class: 'grid'}, charts.total_tokens, charts.requests, tops.key, tops.group, tops.model, near, refusalCard(signal), feedCard(signal)));

	/** blank keeps the places of what is being loaded. */
	function blank() {
		replace(stats, tiles.map(([, label]) => h('div', {class: 'stat'}, h('dt', null, label), h('dd', {class: 'value'}, '–'), h('dd', {class: 'delta'}))));
		for (const [metric, card] of Object.entries(charts)) replace(card, heading(metric), h('div', {class: 'chart'}, stacked({title: '', unit: '', report: {starts: [new Date()], step: 'hour', timeZone: 'UTC'}, series: []}).firstChild));
		for (const [kind, card] of Object.entries(tops)) replace(card, h('header', null, h('h2', null, kinds[kind])));
		replace(near, h('header', null, h('h2', null, 'Near their limits')));
	}

	function controls() {
		const by = by_();
		replace(tools, h('label', {class: 'inline'}, 'By', h('select', {value: by, on: {change: (e) => adjust({by: e.target.value === 'model' ? '' : e.target.value})}},
			Object.keys(kinds).map((k) => h('option', {value: k}, k)))), rangePicker(current));
	}

	const by_ = () => (Object.hasOwn(kinds, current.get('by') || '') ? current.get('by') : 'model');

	function load() {
		loading ??= work().finally(() => (loading = null));
		return loading;
	}

	async function work() {
		const asked = current;
		for (const card of [stats, ...Object.values(charts)]) card.setAttribute('aria-busy', 'true');
		try {
			const range = rangeOf(asked);
			const by = by_();
			await refresh();
			const report = await usage(range, {by}, signal);
			const past = usage(before(report), {}, signal).then((r) => r.totals, () => null);
			const [tokens, requests] = await stack(report, by, ['total_tokens', 'requests'], {}, signal);
			if (asked !== current) return;
			showTotals(report, await past, range);
			const ask = {from: report.from, to: report.to, step: report.step, by, time_zone: report.time_zone};
			replace(charts.total_tokens, heading('total_tokens', ask), stacked({title: `Tokens over time, by ${by}`, unit: 'tokens', report: axis(report), series: tokens}));
			replace(charts.requests, heading('requests'), stacked({title: `Requests over time, by ${by}`, unit: 'requests', report: axis(report), series: requests}));
			empty(report);
			await Promise.all(Object.keys(kinds).map((k) => showTop(k, k === by ? report : null, range)));
		} catch (err) {
			if (!signal.aborted) replace(charts.total_tokens, heading('total_tokens'), problem(err, load));
		} finally {
			for (const card of [stats, ...Object.values(charts)]) card.removeAttribute('aria-busy');
		}
		if (asked !== current) setTimeout(load);
	}

	/** refresh asks again, now and then, how limits stand, and notes the names of keys with it. */
	async function refresh() {
		if (Date.now() - nearAt < 15e3) return;
		nearAt = Date.now();
		stale();
		({keys: newest} = await get('keys', {limit: 50}, signal));
		known(newest);
	}

	function showTotals(report, past, range) {
		replace(stats, tiles.map(([metric, label]) => {
			const now = report.totals[metric];
			return h('div', {class: 'stat'}, h('dt', null, label), h('dd', {class: 'value', title: number(now)}, compact(now)),
				h('dd', {class: 'delta'}, delta(now, past?.[metric], range)), spark(report.series.map((s) => s.totals[metric])));
		}));
		if (Date.now() - spokenAt < 60e3) return; // numbers that are read out all the time are no help
		spokenAt = Date.now();
		spoken.textContent = `${range.label}: ${tiles.map(([metric, label]) => `${label} ${number(report.totals[metric])}`).join(', ')}`;
	}

	async function showTop(kind, report, range) {
		report ??= await usage(range, {by: kind}, signal);
		const lines = report.breakdown.filter((l) => l.totals.total_tokens > 0 || l.totals.requests > 0).slice(0, 8);
		const items = await Promise.all(lines.map(async (l) => ({
			name: await nameOf(l), value: l.totals.total_tokens, href: l[kind] && kind !== 'model' ? accountLink(l[kind]) : null,
		})));
		replace(tops[kind], h('header', null, h('h2', null, `Top ${kinds[kind].toLowerCase()}`), h('span', {class: 'small'}, 'tokens')),
			items.length ? ranking(items) : h('p', {class: 'muted'}, 'Nothing was used in this time.'));
		if (kind === 'key') showNear(lines); // which may take longer
	}

	/** Groups, the keys that have used most of their quotas and, for their other limits, those that are busy or new. */
	async function showNear(lines) {
		near.setAttribute('aria-busy', 'true');
		try {
			await fillNear(lines);
		} catch (err) {
			if (!signal.aborted) replace(near, h('header', null, h('h2', null, 'Near their limits')), problem(err, load));
		} finally {
			near.removeAttribute('aria-busy');
		}
	}

	async function fillNear(lines) {
		const start = Date.now();
		if (start > fullestDue) {
			({keys: fullest} = await get('keys', {sort: 'used', status: 'active', limit: 10}, signal));
			fullestDue = Date.now() + Math.max(10e3, 50 * (Date.now() - start)); // the server has looked at all keys
		}
		const busy = await Promise.all(lines.filter((l) => l.key).map((l) => key(l.key)));
		const accounts = new Map([...(await groups()).values(), ...fullest, ...newest, ...busy].filter((a) => a.state).map((a) => [a.id, a]));
		const list = [...accounts.values()].map((account) => ({account, s: nearest(account)})).filter(({s}) => s && s.share > 0).sort((a, b) => b.s.share - a.s.share).slice(0, 7);
		replace(near, h('header', null, h('h2', null, 'Near their limits'), h('span', {class: 'small', title: 'All groups; of the keys those with the fullest quotas, the top ones and the 50 newest'}, 'groups and keys')),
			list.length ? h('ol', {class: 'rank'}, list.map(({account, s}) => h('li', null,
				h('a', {class: 'name', href: accountLink(account.id), title: account.name}, account.name),
				h('span', {class: 'num'}, share(s.share)),
				meter({used: s.used, held: s.reserved, max: s.max, label: `${limitLabel(s.name)} of ${account.name}`}),
				h('span', {class: 'small muted'}, limitLabel(s.name)), h('span', {class: 'small muted num'}, s.resets_at && ['frees ', when(s.resets_at)])))) :
				h('p', {class: 'muted'}, 'No limit is in use.'));
	}

	/** empty teaches the first step, where there are no keys or no calls yet. */
	function empty(report) {
		if (report.totals.requests + report.totals.refused > 0) {
			replace(hint);
			return;
		}
		replace(hint, newest.length === 0 ? h('section', {class: 'card empty'}, h('h2', null, 'No keys yet'),
			h('p', null, 'A key is what callers present to this gate. Its quota and limits hold from the first call.'),
			mayChange() && h('button', {type: 'button', class: 'primary', on: {click: () => create('keys', {}, (k) => go(['keys', k.id]))}}, 'Create the first key'),
			h('pre', null, tryLine('$KEY'))) :
			h('p', {class: 'note'}, 'No calls in this time. Choose a longer one, or make a call with one of the ', h('a', {href: link(['keys'])}, 'keys'), '.'));
	}

	function update(next) {
		current = next;
		controls();
		load();
	}

	update(query);
	refreshing(() => {
		for (const card of Object.values(charts)) if (card.contains(document.activeElement) || card.querySelector('details[open]')) return; // it is being read
		load();
	}, signal, () => true, 10000);
	return {el, update};
}

function heading(metric, ask) {
	return h('header', null, h('h2', null, metric === 'requests' ? 'Requests' : 'Tokens'), ask && csvLink(ask));
}

/** delta compares with the time before. */
function delta(now, past, range) {
	if (past === undefined || past === null) return '';
	const name = range.name === 'own' ? 'the time before' : `the ${range.name} before`;
	if (past === 0) return now === 0 ? `none in ${name} either` : `none in ${name}`;
	const change = (now - past) / past;
	const sign = change > 0 ? '▲' : change < 0 ? '▼' : '=';
	return h('span', {title: `${number(past)} in ${name}`}, h('span', {'aria-hidden': 'true'}, sign, ' '), h('span', {class: 'hidden'}, change > 0 ? 'up ' : change < 0 ? 'down ' : ''), share(Math.abs(change)), ` on ${name}`);
}

/** strangers counts refusals of unknown callers, which the gate does not keep, whichever view is shown. */
let strangers = 0;

onEvent((e) => {
	if (e.type === 'refusal' && !e.key) strangers++;
});

/** refusalCard counts the refusals that the gate keeps. */
function refusalCard(signal) {
	const body = h('div');
	const unknown = h('p', {class: 'small muted'});
	const since = h('span', {class: 'small', title: 'The gate keeps the latest ones until it is stopped, of each key the last 100'});
	const card = h('section', {class: 'card third', 'aria-busy': 'true'}, h('header', null, h('h2', null, 'Refusals by reason'), since), body, unknown);
	let turn = 0;

	const counts = (answer) => ranking(Object.entries(answer.by_reason).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([name, value]) => ({name: name.replaceAll('_', ' '), value})));
	const any = (answer) => Object.keys(answer.by_reason).length > 0;

	async function load() {
		const mine = ++turn;
		try {
			const [refused, observed] = await Promise.all(['refused', 'observed'].map((decision) => get('refusals', {decision, limit: 1}, signal)));
			if (mine !== turn) return;
			replace(since, 'since ', clock(refused.since));
			replace(body, any(refused) ? counts(refused) : h('p', {class: 'muted'}, 'No call of a key was refused.'),
				any(observed) && [h('p', {class: 'small muted'}, 'Only observed, and admitted:'), counts(observed)]);
		} catch (err) {
			if (!signal.aborted && mine === turn) replace(body, problem(err, load));
		} finally {
			card.removeAttribute('aria-busy');
		}
	}

	const showStrangers = () => replace(unknown, strangers > 0 && `${many(strangers, 'call')} without a known key, since this page was opened`);
	showStrangers();
	onEvent((e) => e.type === 'refusal' && !e.key && showStrangers(), signal);
	load();
	refreshing(load, signal, refuses, 2000);
	return card;
}

/** feedCard shows calls as they end. */
function feedCard(signal) {
	const list = h('ol', {class: 'feed', tabindex: 0, 'aria-label': 'Calls as they end'});
	const body = h('div', null, h('p', {class: 'muted'}, 'Calls appear here as they end.'));
	const add = async (e) => {
		if (e.type !== 'settlement' && e.type !== 'refusal') return;
		let name = e.key || 'Unknown caller';
		try {
			if (e.key) ({name} = await key(e.key));
		} catch { /* the ID will do */ }
		if (!list.isConnected) replace(body, list);
		list.prepend(h('li', null, h('span', {class: `tag ${e.type === 'refusal' ? 'bad' : ''}`}, e.type === 'refusal' ? 'refused' : compact(e.tokens)),
			h('span', {class: 'name', title: name}, e.key ? h('a', {href: accountLink(e.key)}, name) : name), h('span', {class: 'muted name', title: e.model}, e.model || e.reason || '')));
		while (list.children.length > MOST) list.lastChild.remove();
	};
	const MOST = 30;
	const before = recently(['settlement', 'refusal']).slice(-MOST);
	(async () => {
		for (const e of before) await add(e); // in their order, whatever the names take
	})();
	onEvent(add, signal);
	return h('section', {class: 'card third'}, h('header', null, h('h2', null, 'Live'), h('span', {class: 'small'}, 'tokens of each call')), body);
}
