// Numbers, times and amounts in the reader's locale and time zone.

import {h} from './dom.js';

const locale = navigator.language || 'en';
const whole = new Intl.NumberFormat(locale, {maximumFractionDigits: 0});
const short = new Intl.NumberFormat(locale, {notation: 'compact', maximumFractionDigits: 1});
const percent = new Intl.NumberFormat(locale, {style: 'percent', maximumFractionDigits: 0});
const fine = new Intl.NumberFormat(locale, {style: 'percent', maximumFractionDigits: 1});
const exactly = new Intl.NumberFormat(locale, {style: 'percent', maximumFractionDigits: 3});
const relative = new Intl.RelativeTimeFormat(locale, {numeric: 'auto'});

/** The reader's time zone, as an IANA name. */
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';

export const number = (n) => whole.format(n);
/** many counts things: "1 key", "2 keys". */
export const many = (n, what) => `${number(n)} ${what}${n === 1 ? '' : 's'}`;

export const compact = (n) => (Math.abs(n) < 10000 ? whole.format(n) : short.format(n));

/** share formats a fraction as a percentage. */
export function share(x) {
	if (!Number.isFinite(x)) return '–';
	return x > 0 && x < 0.1 ? fine.format(x) : percent.format(x);
}

/** threshold shows a number of percent. */
export const threshold = (percent) => exactly.format(percent / 100);

/** count shows a number shortly, the exact one in its title. */
export function count(n) {
	const text = compact(n);
	return h('span', {title: text === number(n) ? null : number(n)}, text);
}

export function bytes(n) {
	const units = ['B', 'kB', 'MB', 'GB', 'TB'];
	let i = 0;
	while (n >= 1000 && i < units.length - 1) {
		n /= 1000;
		i++;
	}
	return `${new Intl.NumberFormat(locale, {maximumFractionDigits: i > 0 && n < 100 ? 1 : 0}).format(n)} ${units[i]}`;
}

const formats = new Map();

function dates(options) {
	const key = JSON.stringify(options);
	if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(locale, options));
	return formats.get(key);
}

/** exact is a time to the second, with its zone. */
export const exact = (t) => dates({dateStyle: 'medium', timeStyle: 'long'}).format(new Date(t));

export const dateTime = (t) => dates({dateStyle: 'medium', timeStyle: 'short'}).format(new Date(t));

/** stepLabel names a step of a series in the zone of the report. */
export function stepLabel(t, step, timeZone, long) {
	const options = {
		minute: long ? {dateStyle: 'medium', timeStyle: 'short'} : {hour: 'numeric', minute: '2-digit'},
		hour: long ? {weekday: 'short', day: 'numeric', month: 'short', hour: 'numeric', minute: '2-digit'} : {hour: 'numeric', minute: '2-digit'},
		day: long ? {weekday: 'long', day: 'numeric', month: 'long', year: 'numeric'} : {day: 'numeric', month: 'short'},
		month: long ? {month: 'long', year: 'numeric'} : {month: 'short', year: 'numeric'},
	}[step];
	return dates({...options, timeZone}).format(new Date(t));
}

/** dayLabel names the day of a time. */
export const dayLabel = (t, timeZone) => dates({day: 'numeric', month: 'short', timeZone}).format(new Date(t));

const spans = [[60, 'second'], [60, 'minute'], [24, 'hour'], [Infinity, 'day']];
const FAR = 30 * 24 * 3600;

/** ago says how far away a time is: "3 minutes ago", "in 2 days"; its date, when that is more than 30 days. */
export function ago(t, now = Date.now()) {
	let n = (new Date(t) - now) / 1000;
	if (Math.abs(n) > FAR) return dates({dateStyle: 'medium'}).format(new Date(t));
	if (Math.abs(n) < 5) return relative.format(0, 'second');
	for (const [most, unit] of spans) {
		if (Math.abs(n) < most) return relative.format(Math.round(n), unit);
		n /= most;
	}
	return '';
}

/** when shows a time as a distance, exactly in its title. */
export function when(t, none = '–') {
	if (!t) return h('span', {class: 'muted'}, none);
	return h('time', {datetime: t, title: exact(t)}, ago(t));
}

/** clock is a time as the clock shows it, with its date when it is not of today. */
export function clock(t) {
	const today = new Date(t).toDateString() === new Date().toDateString();
	return h('span', {title: exact(t)}, today ? dates({timeStyle: 'short'}).format(new Date(t)) : dateTime(t));
}

/** amount reads a number with an optional suffix k, M or G; NaN if it is none. */
export function amount(text) {
	const m = /^([0-9][0-9 _.,']*)([kKmMgG]?)$/.exec(text.trim());
	if (!m) return NaN;
	let digits = m[1].replace(/[ _']/g, '');
	if (/^\d{1,3}([,.]\d{3})+$/.test(digits) && !m[2]) digits = digits.replace(/[,.]/g, ''); // thousands
	const n = Number(digits.replace(',', '.')) * {'': 1, k: 1e3, m: 1e6, g: 1e9}[m[2].toLowerCase()];
	const rounded = Math.round(n * 1000) / 1000;
	return Number.isInteger(rounded) && rounded <= 2 ** 53 ? rounded : NaN;
}

/** localInput is a time as the value of an input of type datetime-local. */
export function localInput(t) {
	if (!t) return '';
	const d = new Date(t);
	return new Date(d - d.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
}

/** instant returns the time at which the clocks of timeZone show what is given. */
export function instant(year, month, day, hour, minute, timeZone) {
	const wall = Date.UTC(year, month, day, hour, minute);
	let t = wall;
	for (let i = 0; i < 3; i++) t = wall - offset(t, timeZone);
	return new Date(t);
}

/** offset returns how many ms the clocks of timeZone are ahead of UTC at t. */
function offset(t, timeZone) {
	const p = parts(t, timeZone);
	return Date.UTC(p.year, p.month - 1, p.day, p.hour, p.minute, p.second) - Math.floor(t / 1000) * 1000;
}

/** parts returns what the clocks of timeZone show at t. */
export function parts(t, timeZone) {
	const f = new Intl.DateTimeFormat('en-u-hc-h23', {timeZone, year: 'numeric', month: 'numeric', day: 'numeric', hour: 'numeric', minute: 'numeric', second: 'numeric', calendar: 'gregory'});
	return Object.fromEntries(f.formatToParts(new Date(t)).map((p) => [p.type, Number(p.value)]));
}
