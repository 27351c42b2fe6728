// Charts in SVG. Each can be read with the keyboard, has a title and a
// description, and its numbers in a table below.

import {h, replace, svg, unique} from './dom.js';
import {compact, dayLabel, number, stepLabel} from './format.js';

const LEFT = 48;
const BOTTOM = 22;
const TOP = 8;

/**
 * stacked draws bars over time. report: {starts, step, timeZone}; series:
 * [{label, values, color}], the lowest first.
 */
export function stacked({title, unit, report, series}) {
	const {starts, step, timeZone} = report;
	const [W, H] = innerWidth < 720 ? [360, 200] : [720, 220]; // so that text stays readable
	const n = starts.length;
	const totals = starts.map((_, i) => series.reduce((sum, s) => sum + s.values[i], 0));
	const top = nice(Math.max(...totals, 1));
	const width = (W - LEFT) / n;
	const gap = width > 6 ? Math.min(4, width * 0.2) : width > 2 ? 0.5 : 0;
	const y = (v) => TOP + (H - TOP - BOTTOM) * (1 - v / top);
	const cursor = svg('rect', {class: 'cursor', y: TOP, height: H - TOP - BOTTOM, width, visibility: 'hidden'});
	const paths = series.map((s, k) => svg('path', {class: `f${s.color}`, d: bars(series, k, n, width, gap, y)}));
	const [titleID, descID] = [unique('title'), unique('desc')];
	const sum = totals.reduce((a, b) => a + b, 0);
	const most = totals.indexOf(Math.max(...totals));
	const plot = svg('svg', {viewBox: `0 0 ${W} ${H}`, class: 'plot', role: 'img', tabindex: 0, 'aria-labelledby': `${titleID} ${descID}`},
		svg('title', {id: titleID}, title),
		svg('desc', {id: descID}, sum === 0 ? 'Nothing in this time.' : `${number(sum)} ${unit} in all, the most, ${number(totals[most])}, at ${stepLabel(starts[most], step, timeZone, true)}. Arrow keys read step by step.`),
		gridlines(top, y, W), cursor, paths, timeLabels(report, width, W, H));
	const tip = h('div', {class: 'tip', hidden: true});
	const spoken = h('p', {class: 'hidden', 'aria-live': 'polite'});
	let at = -1;

	function point(i, speak) {
		at = Math.max(0, Math.min(n - 1, i));
		cursor.setAttribute('x', LEFT + at * width);
		cursor.setAttribute('visibility', 'visible');
		const name = stepLabel(starts[at], step, timeZone, true);
		const rows = series.map((s) => [s.label, s.values[at], s.color]).filter((r) => r[1] > 0);
		replace(tip, h('strong', null, name), h('table', {role: 'presentation'},
			rows.length > 1 && rows.map(([label, v, color]) => h('tr', null, h('td', null, swatch(color), ' ', label), h('td', {class: 'num'}, number(v)))),
			h('tr', null, h('td', null, rows.length > 1 ? 'All' : rows.length && series.length > 1 ? rows[0][0] : cap(unit)), h('td', {class: 'num'}, number(totals[at])))));
		tip.hidden = false;
		const box = plot.getBoundingClientRect();
		const x = (LEFT + (at + 0.5) * width) / W * box.width;
		const left = x + 12 + tip.offsetWidth > box.width ? x - 12 - tip.offsetWidth : x + 12;
		tip.style.transform = `translate(${Math.max(0, left)}px, ${TOP}px)`;
		if (speak) spoken.textContent = `${name}: ${number(totals[at])} ${unit}. ${rows.length > 1 ? rows.map(([label, v]) => `${label} ${number(v)}`).join(', ') : ''}`;
	}

	function away() {
		tip.hidden = true;
		cursor.setAttribute('visibility', 'hidden');
	}

	plot.addEventListener('pointermove', (e) => {
		const box = plot.getBoundingClientRect();
		const x = (e.clientX - box.left) / box.width * W - LEFT;
		if (x >= 0) point(Math.floor(x / width), false);
	});
	plot.addEventListener('pointerleave', away);
	plot.addEventListener('blur', away);
	plot.addEventListener('keydown', (e) => {
		const to = {ArrowLeft: (at < 0 ? n : at) - 1, ArrowRight: at + 1, Home: 0, End: n - 1}[e.key];
		if (e.key === 'Escape') away();
		if (to === undefined) return;
		e.preventDefault();
		point(to, true);
	});
	return h('div', {class: 'chart'}, plot, tip, spoken,
		series.length > 1 && h('ul', {class: 'legend'}, series.map((s) => h('li', null, swatch(s.color), h('span', {title: s.label}, s.label)))),
		dataTable(title, report, series));
}

const cap = (s) => s.slice(0, 1).toUpperCase() + s.slice(1);

function swatch(color) {
	return svg('svg', {viewBox: '0 0 10 10', width: 10, height: 10, 'aria-hidden': 'true'}, svg('rect', {width: 10, height: 10, rx: 2, class: `f${color}`}));
}

/** bars is the path of one series, which stands on those before it. */
function bars(series, k, n, width, gap, y) {
	const d = [];
	for (let i = 0; i < n; i++) {
		const v = series[k].values[i];
		if (!(v > 0)) continue;
		let below = 0;
		for (let j = 0; j < k; j++) below += series[j].values[i];
		const x = LEFT + i * width + gap / 2;
		d.push(`M${x.toFixed(2)} ${y(below).toFixed(2)}V${Math.min(y(below + v), y(below) - 0.5).toFixed(2)}h${(width - gap).toFixed(2)}V${y(below).toFixed(2)}z`);
	}
	return d.join('');
}

/** nice is a round number not below v, for the top of an axis. */
function nice(v) {
	const unit = 10 ** Math.floor(Math.log10(v));
	for (const f of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (f * unit >= v) return Math.max(f * unit, 4);
	return v;
}

function gridlines(top, y, W) {
	const lines = top % 3 === 0 && top % 4 !== 0 ? 3 : 4;
	return Array.from({length: lines + 1}, (_, i) => {
		const v = top * i / lines;
		return [svg('line', {class: 'gridline', x1: LEFT, x2: W, y1: y(v), y2: y(v)}), svg('text', {x: LEFT - 8, y: y(v) + 4, 'text-anchor': 'end'}, compact(v))];
	});
}

function timeLabels({starts, step, timeZone}, width, W, H) {
	const every = Math.ceil(starts.length / (W / 90));
	let day = '';
	return starts.map((t, i) => {
		if (i % every !== 0 || (starts.length - i) * width < 36) return null;
		let text = stepLabel(t, step, timeZone);
		if (step === 'hour' && starts.length > 30) {
			text = dayLabel(t, timeZone);
			if (text === day) text = stepLabel(t, step, timeZone);
			else day = text;
		}
		return svg('text', {x: LEFT + (i + 0.5) * width, y: H - 4, 'text-anchor': 'middle'}, text);
	});
}

/** dataTable shows the numbers of a chart, made when it is opened. */
function dataTable(title, {starts, step, timeZone}, series) {
	const details = h('details', {class: 'data'}, h('summary', null, 'Show as table'));
	details.addEventListener('toggle', () => {
		if (!details.open || details.children.length > 1) return;
		details.append(h('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': title}, h('table', null,
			h('caption', null, title),
			h('thead', null, h('tr', null, h('th', {scope: 'col'}, 'Start'), series.map((s) => h('th', {scope: 'col', class: 'num'}, s.label)))),
			h('tbody', null, starts.map((t, i) => h('tr', null, h('th', {scope: 'row'}, stepLabel(t, step, timeZone, true)), series.map((s) => h('td', {class: 'num'}, number(s.values[i])))))))));
	});
	return details;
}

/** spark is a line without axes, said by what stands beside it. */
export function spark(values) {
	const top = Math.max(...values, 1);
	const step = 100 / Math.max(values.length - 1, 1);
	const d = values.map((v, i) => `${i ? 'L' : 'M'}${(i * step).toFixed(2)} ${(23 - 22 * v / top).toFixed(2)}`).join('');
	return svg('svg', {class: 'spark', viewBox: '0 0 100 24', preserveAspectRatio: 'none', 'aria-hidden': 'true'}, svg('path', {d}));
}

/** meter is a bar of what is used and held of max. */
export function meter({used, held = 0, max, label, big}) {
	const all = max > 0 ? (used + held) / max : 1;
	const pct = (v) => `${Math.max(0, Math.min(100, max > 0 ? 100 * v / max : 100))}%`;
	return h('div', {
		class: `meter${big ? ' big' : ''}${used >= max ? ' bad' : all >= 0.8 ? ' warn' : ''}`, role: 'meter', 'aria-label': label,
		'aria-valuemin': 0, 'aria-valuemax': max, 'aria-valuenow': Math.min(used, max), 'aria-valuetext': `${number(used)} of ${number(max)}`,
	}, h('i', {vars: {share: pct(used)}}), held > 0 && used < max && h('i', {class: 'held', vars: {share: pct(Math.min(held, max - used))}}));
}

/** ranking is a list of names with bars. items: [{name, href, value, note}]. */
export function ranking(items, format = compact) {
	const top = Math.max(...items.map((i) => i.value), 1);
	return h('ol', {class: 'rank'}, items.map((i) => h('li', null,
		i.href ? h('a', {class: 'name', href: i.href, title: i.name}, i.name) : h('span', {class: 'name', title: i.name}, i.name),
		h('span', {class: 'num', title: number(i.value)}, format(i.value), i.note && h('span', {class: 'muted'}, ' ', i.note)),
		h('div', {class: 'meter', 'aria-hidden': 'true'}, h('i', {vars: {share: `${100 * i.value / top}%`}})))));
}
