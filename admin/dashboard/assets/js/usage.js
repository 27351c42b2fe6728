// Usage over time: which range is looked at, and what the API tells of it.

import {get, request} from './api.js';
import {h} from './dom.js';
import {dateTime, localInput, zone} from './format.js';
import {adjust} from './router.js';
import {key, groupName, groups} from './state.js';

const HOUR = 3600e3;
const DAY = 24 * HOUR;
const FINE = 89 * DAY; // days of other zones than UTC are made of quarters of an hour, which are kept for 90 days by default
const presets = {
	hour: {label: 'Hour', span: HOUR, step: 'minute'},
	day: {label: 'Day', span: DAY, step: 'hour'},
	week: {label: 'Week', span: 7 * DAY, step: 'hour'},
	month: {label: 'Month', span: 30 * DAY, step: 'day'},
	year: {label: 'Year', span: 365 * DAY, step: 'month'},
};
const steps = ['minute', 'hour', 'day', 'month'];

/** rangeOf reads the range that the address names: {name, from, to, step}. */
export function rangeOf(query) {
	const [from, to] = [new Date(query.get('from')), new Date(query.get('to'))];
	if (query.has('from') && query.has('to') && from < to) {
		const span = to - from;
		const step = span <= 3 * HOUR ? 'minute' : span <= 8 * DAY ? 'hour' : span <= 100 * DAY ? 'day' : 'month';
		return {name: 'own', from, to, step, label: `${dateTime(from)} – ${dateTime(to)}`};
	}
	const name = Object.hasOwn(presets, query.get('range') || '') ? query.get('range') : 'day';
	const p = presets[name];
	const now = new Date();
	return {name, from: new Date(now - p.span), to: now, step: p.step, label: `the last ${name}`};
}

/** rangePicker changes the range in the address. */
export function rangePicker(query) {
	const range = rangeOf(query);
	const from = h('input', {type: 'datetime-local', value: localInput(range.from), 'aria-label': 'From'});
	const to = h('input', {type: 'datetime-local', value: localInput(range.to), 'aria-label': 'To'});
	const own = h('form', {class: 'toolbar', hidden: range.name !== 'own', on: {submit: (e) => {
		e.preventDefault();
		const [a, b] = [new Date(from.value), new Date(to.value)];
		to.setCustomValidity(a < b ? '' : 'This has to be after the beginning.');
		if (own.reportValidity()) adjust({range: '', from: a.toISOString(), to: b.toISOString()});
	}, input: () => to.setCustomValidity('')}}, from, '–', to, h('button', {type: 'submit'}, 'Show'));
	const button = (name, label) => h('button', {
		type: 'button', 'aria-pressed': String(range.name === name),
		on: {click: () => (name === 'own' ? (own.hidden = false, from.focus()) : adjust({range: name, from: '', to: ''}))},
	}, label);
	return h('div', {class: 'toolbar'}, h('div', {class: 'segments', role: 'group', 'aria-label': 'Time range'},
		Object.entries(presets).map(([name, p]) => button(name, p.label)), button('own', 'Own…')), own);
}

/**
 * usage reports a range. What is not kept so finely any more is asked for in
 * coarser steps, and in days of UTC, which are kept longest.
 */
export async function usage(range, query, signal) {
	const first = steps.indexOf(range.step);
	let problem;
	for (const step of steps.slice(first)) {
		for (const timeZone of zone === 'UTC' || Date.now() - range.from > FINE ? ['UTC'] : [zone, 'UTC']) {
			try {
				return await get('usage', {...query, from: range.from.toISOString(), to: range.to.toISOString(), step, time_zone: timeZone}, signal);
			} catch (err) {
				if (err.status !== 400) throw err;
				problem ??= err;
			}
		}
	}
	throw problem;
}

/** before is the range as long as a report, just before it. */
export function before(report) {
	const [from, to] = [new Date(report.from), new Date(report.to)];
	return {from: new Date(from - (to - from)), to: from, step: report.step};
}

/** axis is what charts need to know of a report. */
export const axis = (report) => ({starts: report.series.map((s) => s.start), step: report.step, timeZone: report.time_zone});

const MOST = 6;
const CELLS = 20000;

/** nameOf names what a line of a breakdown stands for. */
export async function nameOf(line) {
	if ('key' in line) return line.key ? (await key(line.key)).name : 'Other keys';
	if ('group' in line) {
		await groups();
		return groupName(line.group);
	}
	return line.model || 'No model';
}

/**
 * stack parts a report, made with by, into series for its greatest lines and
 * one for the others, for each of the metrics, which are fields of totals.
 */
export async function stack(report, by, metrics, query, signal) {
	const size = (l) => l.totals.total_tokens || l.totals.requests;
	const lines = [...report.breakdown].sort((a, b) => size(b) - size(a)).filter((l) => size(l) > 0).slice(0, MOST);
	const values = lines.length > 0 && await cells(report, by, metrics, lines, query, signal);
	const names = values && await Promise.all(lines.map(nameOf));
	return metrics.map((metric) => {
		const total = report.series.map((s) => s.totals[metric]);
		if (!values) return [{label: 'All', values: total, color: 0}];
		const series = lines.map((_, i) => ({label: names[i], values: values[i].map((v) => v[metric]), color: i}));
		const rest = total.map((t, i) => Math.max(0, t - series.reduce((sum, s) => sum + s.values[i], 0)));
		return rest.some((v) => v > 0) ? [...series, {label: 'Others', values: rest, color: MOST}] : series;
	});
}

/** cells returns the totals of each line in each step. */
async function cells(report, by, metrics, lines, query, signal) {
	const ask = {...query, from: report.from, to: report.to, step: report.step, time_zone: report.time_zone};
	if (report.breakdown.length * report.series.length <= CELLS) {
		const {data} = await request('GET', 'usage', {query: {...ask, by, format: 'csv'}, signal, text: true});
		return fromCSV(data, by, metrics, lines, report.series.length);
	}
	if (by === 'group') return null; // a group would be taken with those below it
	return Promise.all(lines.map(async (l) => {
		const r = await get('usage', {...ask, [by]: l[by]}, signal);
		return r.series.map((s) => s.totals);
	}));
}

/** fromCSV takes the lines' totals out of a report in CSV. */
function fromCSV(text, by, metrics, lines, n) {
	const rows = parseCSV(text);
	const head = rows[0] || [];
	const label = head.indexOf(by);
	const columns = metrics.map((m) => [m, head.indexOf(m)]);
	const index = new Map(lines.map((l, i) => [l[by] ?? '', i]));
	const none = Object.fromEntries(metrics.map((m) => [m, 0]));
	const values = lines.map(() => new Array(n).fill(none));
	let [step, start] = [-1, ''];
	for (const row of rows.slice(1)) {
		if (row[0] !== start) {
			start = row[0];
			step++;
		}
		const i = index.get(row[label]);
		if (i !== undefined && step < n) values[i][step] = Object.fromEntries(columns.map(([m, c]) => [m, Number(row[c])]));
	}
	return values;
}

/** parseCSV reads RFC 4180: names may hold anything. */
export function parseCSV(text) {
	const rows = [];
	let row = [];
	const cell = /(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|$)/gy;
	for (let m; cell.lastIndex < text.length && (m = cell.exec(text));) {
		row.push(m[1] !== undefined ? m[1].replaceAll('""', '"') : m[2]);
		if (m[3] !== ',') {
			rows.push(row);
			row = [];
		}
	}
	return rows;
}
