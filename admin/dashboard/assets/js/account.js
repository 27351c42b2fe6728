// What the pages of a key and of a group have in common: its limits and how
// they stand, its history, what was refused, what admission would decide.

import {getOr, path} from './api.js';
import {meter, ranking, stacked} from './chart.js';
import {problem} from './dialog.js';
import {h, replace, throttle} from './dom.js';
import {clock, count, instant, many, number, parts, share, threshold, when} from './format.js';
import {amountOrNone, field, limitLabel, limitNames} from './forms.js';
import {accountLink, accountName, onEvent} from './state.js';
import {axis, nameOf, rangeOf, stack, usage} from './usage.js';

/** standings lists how each limit of an account stands. */
export function standings(o) {
	const list = [];
	const q = o.state.quota;
	const max = o.effective.quota?.tokens;
	if (q && typeof max === 'number') list.push({name: 'quota', max: max + q.granted, ...q});
	for (const name of Object.keys(limitNames)) {
		const s = o.state.limits[name];
		const most = o.effective.limits[name];
		if (s && typeof most === 'number') list.push({name, max: most, reserved: 0, granted: 0, ...s});
	}
	return list.map((s) => ({...s, share: s.max > 0 ? (s.used + s.reserved) / s.max : 1}));
}

/** nearest is the standing with the highest share, of those that last. */
export const nearest = (o) => standings(o).sort((a, b) => b.share - a.share)[0];

/** quotaCell is a quota in a line of a table. */
export function quotaCell(o) {
	const s = standings(o).find((x) => x.name === 'quota');
	if (!s) return h('span', {class: 'muted'}, o.effective.quota?.tokens === 'unlimited' ? 'Unlimited' : 'No quota');
	return h('div', {class: 'quota'}, h('span', {class: 'small'}, count(s.used), h('span', {class: 'muted'}, ' of ', count(s.max))),
		meter({used: s.used, held: s.reserved, max: s.max, label: 'Token quota used'}));
}

/** schedule says in words when a quota starts anew. */
export function schedule(q) {
	if (!q || q.reset === 'manual') return 'only by hand';
	const at = q.at && q.at !== '00:00' ? ` at ${q.at}` : '';
	const day = q.reset === 'weekly' ? ` on ${q.week_start || 'monday'}` : q.reset === 'monthly' ? ` on ${q.month_day === 'last' ? 'the last day' : `day ${q.month_day || 1}`}` : '';
	return `${q.reset}${day}${at}${q.time_zone ? `, ${q.time_zone}` : ''}`;
}

/** periodStart is when the current period of an account's quota began. */
export function periodStart(o) {
	const q = o.effective.quota;
	const end = o.state.quota?.resets_at;
	if (!q || !end || q.reset === 'manual') return null;
	const tz = q.time_zone || 'UTC';
	const p = parts(new Date(end), tz);
	const [hour, minute] = (q.at || '00:00').split(':').map(Number);
	if (q.reset === 'daily') return instant(p.year, p.month - 1, p.day - 1, hour, minute, tz);
	if (q.reset === 'weekly') return instant(p.year, p.month - 1, p.day - 7, hour, minute, tz);
	const last = new Date(Date.UTC(p.year, p.month - 1, 0)).getUTCDate();
	const day = q.month_day === 'last' ? last : Math.min(q.month_day || 1, last);
	return instant(p.year, p.month - 2, day, hour, minute, tz);
}

/** limitsCard shows the quota and every other limit. */
export function limitsCard(o) {
	const all = standings(o);
	const q = all.find((s) => s.name === 'quota');
	const others = all.filter((s) => s.name !== 'quota');
	return h('section', {class: 'card wide'}, h('header', null, h('h2', null, 'Limits now'), h('span', {class: 'small'}, o.effective.quota ? `Quota: ${schedule(o.effective.quota)}` : 'No token quota')),
		q && h('div', {class: 'field'},
			h('div', {class: 'toolbar'}, h('strong', null, `${number(q.used)} of ${number(q.max)} tokens`), h('span', {class: 'muted'}, share(q.max ? q.used / q.max : 1)), h('span', {class: 'grow'}),
				h('span', {class: 'small muted'}, q.resets_at ? ['starts anew ', when(q.resets_at)] : 'starts anew by hand')),
			meter({used: q.used, held: q.reserved, max: q.max, label: 'Token quota used', big: true}),
			h('p', {class: 'small muted'}, `${number(q.remaining)} remain · ${number(q.reserved)} held by calls under way · ${number(q.granted)} granted for this period`)),
		others.length > 0 && h('div', {class: 'scroll'}, h('table', null, h('caption', {class: 'hidden'}, 'Limits beside the quota'),
			h('thead', null, h('tr', null, ['Limit', 'Used', 'Of', 'Share', 'Frees'].map((t, i) => h('th', {scope: 'col', class: ['', 'num', 'num', 'extra', ''][i]}, t)))),
			h('tbody', null, others.map((s) => h('tr', null, h('th', {scope: 'row'}, limitLabel(s.name)), h('td', {class: 'num'}, number(s.used)), h('td', {class: 'num'}, number(s.max)),
				h('td', {class: 'extra'}, meter({used: s.used, max: s.max, label: limitLabel(s.name)})), h('td', null, when(s.resets_at))))))),
		all.length === 0 && h('p', {class: 'muted'}, 'Nothing is limited here. Set a quota or a limit by editing it; the limits of groups above hold all the same.'));
}

/**
 * history shows what an account used in the range of the address, by another
 * field. filter is {key} or {group}. It returns {els, load(query)}.
 */
export function history(filter, by, heading, signal) {
	const chart = h('section', {class: 'card wide', 'aria-busy': 'true'}, h('header', null, h('h2', null, 'Tokens over time')), h('div', {class: 'chart'}));
	const parted = h('section', {class: 'card third'}, h('header', null, h('h2', null, heading)));
	let turn = 0;

	async function load(query) {
		const mine = ++turn;
		const range = rangeOf(query);
		chart.setAttribute('aria-busy', 'true');
		try {
			const report = await usage(range, {...filter, by}, signal);
			const [tokens] = await stack(report, by, ['total_tokens'], filter, signal);
			if (mine !== turn) return;
			const t = report.totals;
			replace(chart, h('header', null, h('h2', null, 'Tokens over time'), h('span', {class: 'small'},
				`${number(t.total_tokens)} tokens in ${many(t.requests, 'request')} · ${number(t.refused)} refused · ${number(t.failed)} failed`)),
			stacked({title: 'Tokens over time', unit: 'tokens', report: axis(report), series: tokens}));
			const lines = await Promise.all(report.breakdown.filter((l) => l.totals.requests > 0 || l.totals.total_tokens > 0).slice(0, 10).map(async (l) => ({
				name: await nameOf(l), value: l.totals.total_tokens, note: `in ${number(l.totals.requests)}`, href: l.key ? accountLink(l.key) : null,
			})));
			if (mine !== turn) return;
			replace(parted, h('header', null, h('h2', null, heading), h('span', {class: 'small'}, 'tokens in requests')),
				lines.length ? ranking(lines) : h('p', {class: 'muted'}, 'Nothing was used in this time.'));
		} catch (err) {
			if (!signal.aborted && mine === turn) replace(chart, h('header', null, h('h2', null, 'Tokens over time')), problem(err, () => load(query)));
		} finally {
			if (mine === turn) chart.removeAttribute('aria-busy');
		}
	}
	return {els: [chart, parted], load};
}

/** refusals shows the last ones of an account that the gate keeps. */
export function refusals(id, signal) {
	const ofGroup = id.startsWith('grp_');
	const list = h('ol', {class: 'feed', tabindex: 0, 'aria-label': 'Refusals'});
	const card = h('section', {class: 'card third', 'aria-busy': 'true'}, h('header', null, h('h2', null, 'Last refusals')));
	let turn = 0;

	async function load() {
		const mine = ++turn;
		try {
			const answer = await getOr('refusals', {[ofGroup ? 'group' : 'key']: id, limit: 30}, signal);
			const lines = await Promise.all((answer?.refusals || []).map(line));
			if (mine !== turn) return;
			replace(list, lines); // which keeps its place under who reads it
			const body = !answer ? h('p', {class: 'muted'}, 'They are not available.') :
				lines.length ? list : h('p', {class: 'muted'}, 'None since ', clock(answer.since), '. Those before are only counted, in the history above.');
			if (body !== list || !card.contains(list)) replace(card, h('header'), body);
			replace(card.firstChild, h('h2', null, 'Last refusals'), lines.length > 0 && h('span', {class: 'small', title: 'The gate keeps the latest ones until it is stopped'}, 'since ', clock(answer.since)));
		} catch (err) {
			if (!signal.aborted && mine === turn) replace(card, h('header', null, h('h2', null, 'Last refusals')), problem(err, load));
		} finally {
			card.removeAttribute('aria-busy');
		}
	}

	async function line(r) {
		const limit = r.limit && limitLabel(r.limit).toLowerCase() + (r.account === id || r.account === r.key ? '' : ` of ${await called(r.account)}`);
		const why = r.decision === 'observed' ? `${r.reason} (observed)` : r.reason;
		const who = ofGroup && await called(r.key);
		const rest = [who && why, r.model, limit].filter(Boolean).join(' · ');
		return h('li', null, when(r.time), h('span', {class: 'name', title: who || why}, who ? h('a', {href: accountLink(r.key)}, who) : why), h('span', {class: 'muted name', title: rest}, rest));
	}

	load();
	refreshing(load, signal, (e) => refuses(e) && (ofGroup || e.key === id), 2000); // groups below tell of themselves
	return card;
}

const called = (id) => accountName(id).catch(() => id);

/** refuses tells whether an event is of a call that was refused, or would have been. */
export const refuses = (e) => Boolean(e.key && e.reason) && (e.type === 'refusal' || e.type === 'settlement');

/** auditOf shows the latest changes of one object. */
export function auditOf(id, signal, looks = '') {
	const card = h('section', {class: `card ${looks}`, 'aria-busy': 'true'}, h('header', null, h('h2', null, 'Changes')));
	const load = async () => {
		try {
			const answer = await getOr('audit', {account: id, limit: 20}, signal);
			replace(card, h('header', null, h('h2', null, 'Changes'), answer && h('a', {class: 'small', href: `#/audit?account=${encodeURIComponent(id)}`}, 'In the audit log')),
				!answer ? h('p', {class: 'muted'}, 'The audit log is not available.') :
					answer.entries.length ? h('ol', {class: 'feed'}, answer.entries.map((e) => h('li', null, when(e.time), h('span', {class: 'name'}, e.action), h('span', {class: 'muted'}, e.actor ? `${e.actor}, ${e.source}` : e.source)))) :
						h('p', {class: 'muted'}, 'None that is kept.'));
		} catch (err) {
			if (!signal.aborted) replace(card, h('header', null, h('h2', null, 'Changes')), problem(err, load));
		} finally {
			card.removeAttribute('aria-busy');
		}
	};
	load();
	onEvent((e) => e.type === 'change' && e.change?.object === id && load(), signal);
	return card;
}

/** explainCard asks what admission would decide. */
export function explainCard(kind, id) {
	const model = h('input', {type: 'text', spellcheck: 'false'});
	const input = h('input', {type: 'text', inputmode: 'numeric', placeholder: '0'});
	const output = h('input', {type: 'text', inputmode: 'numeric', placeholder: '0'});
	const result = h('div', {class: 'result', 'aria-live': 'polite'});
	const form = h('form', {on: {submit: async (e) => {
		e.preventDefault();
		form.setAttribute('aria-busy', 'true');
		try {
			const x = await getOr(path(kind, id, 'explain'), {model: model.value, input_tokens: amountOrNone(input.value), max_output_tokens: amountOrNone(output.value)});
			replace(result, x ? await explained(x) : h('p', {class: 'muted'}, 'This is not available on this gate.'));
		} catch (err) {
			replace(result, problem(err));
		} finally {
			form.removeAttribute('aria-busy');
		}
	}}}, h('div', {class: 'fields'}, field('Model', model), field('Input tokens', input), field('Most output tokens', output)), h('button', {type: 'submit'}, 'Would it be admitted?'));
	return h('section', {class: 'card wide'}, h('header', null, h('h2', null, 'Explain'), h('span', {class: 'small'}, 'What would be decided now. It changes nothing.')), form, result);
}

async function explained(x) {
	const decides = (l) => !x.admitted && l.account === x.account && l.limit === x.limit;
	return h('div', null,
		h('p', null, h('span', {class: `tag ${x.admitted ? 'good' : 'bad'}`}, x.admitted ? 'Admitted' : 'Refused'), ' ',
			x.admitted ? `${number(x.reserve?.input || 0)} input and ${number(x.reserve?.output || 0)} output tokens would be held.` : x.message || x.reason),
		!x.admitted && x.account && h('p', null, 'What decides: ', limitLabel(x.limit).toLowerCase(), ' of ', h('a', {href: accountLink(x.account)}, await accountName(x.account)), '.'),
		x.limits?.length > 0 && h('div', {class: 'scroll'}, h('table', null, h('caption', {class: 'hidden'}, 'Limits considered'),
			h('thead', null, h('tr', null, ['Account', 'Limit', 'Remaining', 'Frees', 'Verdict'].map((t) => h('th', {scope: 'col', class: t === 'Remaining' ? 'num' : null}, t)))),
			h('tbody', null, x.limits.map((l) => h('tr', null, h('th', {scope: 'row'}, l.name || l.account), h('td', null, limitLabel(l.limit)), h('td', {class: 'num'}, `${number(l.remaining)} of ${number(l.max)}`),
				h('td', null, when(l.resets_at)), h('td', null, h('span', {class: `tag ${l.fits ? 'good' : 'bad'}`}, decides(l) ? 'Decides' : l.fits ? 'Fits' : 'Does not fit'))))))));
}

/** refreshing calls load when something may have happened, but calmly. */
export function refreshing(load, signal, matches = () => true, every = 5000) {
	const soon = throttle(() => signal.aborted || load(), every);
	onEvent((e) => (e.type === 'poll' || matches(e)) && soon(), signal);
}

/** thresholds says at which shares of a limit alerts fire. */
export const thresholds = (own, rules) => (own ? `${percents(own)}, set here` : rules ? percents(rules.at) : 'The gate’s own thresholds');

export const percents = (list) => (list.length ? list.map(threshold).join(', ') : 'None');

/** facts lists what is known of an object. */
export const facts = (list) => h('dl', {class: 'facts'}, list.filter(Boolean).map(([name, value]) => [h('dt', null, name), h('dd', null, value)]));

/** metadataOf shows free text by name. */
export const metadataOf = (o) => Object.entries(o.metadata || {}).map(([k, v]) => [k, v]);

